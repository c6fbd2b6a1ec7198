"""Which quotes become ticks. Pure; one ``QuoteValidator`` holds the little state a symbol needs.

Owns: the rules of ``docs/reference/ticks.md``. Does not own: numbering, storage, the calendar.
"""

import math
from typing import NamedTuple

from .noise import same_but_noise
from .plausibility import (
    AGREEMENT_NEEDED,
    ANOTHER_KIND,
    USUAL_MOVE,
    BarWitness,
    Doubt,
    HeldQuotes,
    HeldState,
    Kind,
    Why,
    is_enough,
    kind_of,
    said,
    why_doubted,
)
from .tick import (
    MAX_PRICE,
    OUTLIER,
    PRICE_DECIMALS,
    UNWITNESSED,
    Flag,
    Quote,
    Rejection,
    quantise,
    rejection,
)

HELD_LIMIT = 64
"""Doubles of a held quote are no witnesses; of more than this many quotes the rest is refused."""
HELD_MOST = 4096
"""So many quotes wait for a witness at most; more are refused as unwitnessed, and their bars partial."""
REST_LAG_S = 25.0
"""A REST price may be as old as this: a younger price of the stream is not refuted by it."""

SMALLEST = 10.0**-PRICE_DECIMALS

Seen = tuple[int, float, float | None, float | None]


class Accepted:
    """An accepted quote with the flags that validation gave it."""

    __slots__ = ("flags", "quote", "repeated")

    def __init__(self, quote: Quote, flags: tuple[str, ...], repeated: bool) -> None:
        self.quote = quote
        self.flags = flags
        self.repeated = repeated  # equal to the tick before; normally real


class ValidatorState(NamedTuple):
    """All that a validator remembers."""

    last: float | None
    newest: int
    last_seen: Seen | None
    held: HeldState | None


Decision = tuple[list[Accepted], list[Rejection]]
_NOTHING: Decision = ([], [])


class QuoteValidator:
    """Decides the quotes of one symbol, in arrival order.

    A price outside ``band_pct`` of the last one is held until others of its level confirm it, and then
    the held ones are accepted in order; one of the old level refutes it, and they are rejected as
    ``outlier``. How many others, and of which kind, ``plausibility`` says. The last price is that of the
    newest stamp: neither a late nor a future tick becomes what others are measured by.

    :param believe_first: the very first price needs no witness, because nobody could be asked for one.
    """

    def __init__(self, band_pct: float = 5.0, *, believe_first: bool = True) -> None:
        self._band = band_pct / 100.0
        self._believe_first = believe_first
        self._largest = USUAL_MOVE
        self._last: float | None = None
        self._newest = 0  # the stamp of ``_last``
        self._stored_until = 0  # where ``_last`` is the close of a stored bar: the end of that
        self._last_seen: Seen | None = None  # the last tick in order of arrival
        self._held = HeldQuotes()

    def seed(
        self,
        timestamp: int,
        price: float,
        bid: float | None = None,
        ask: float | None = None,
        *,
        timely: bool = True,
    ) -> None:
        """Start from the last journaled tick; ``timely`` as in ``check``."""
        self._last_seen = (timestamp, price, bid, ask)
        if timely:
            self.remember(timestamp, price)

    def remember(self, timestamp: int, price: float) -> None:
        """An earlier tick, neither late nor in the future: measure by it what comes."""
        if self._last is None or timestamp >= self._newest:
            self._last, self._newest = price, timestamp

    def assume(self, bar: BarWitness) -> None:
        """The last stored bar, before a feed begins: prices are measured by its close unless a tick is
        younger. Nothing is decided by it about quotes that are held: ``on_bar`` does that.
        """
        if self._held:
            return
        if self._last is None or bar.opens >= max(self._newest, self._stored_until):
            self._last, self._stored_until = bar.close, bar.ends

    def expect(self, move: float) -> None:
        """The largest move between neighbouring prices in the pair's history, as a part of the earlier."""
        self._largest = max(USUAL_MOVE, move)

    def needs_another_kind(self, price: float) -> bool:
        """Whether ``price`` would be held however often its own source repeats it."""
        if self._is_plausible(price):
            return False
        return why_doubted(price, self._last, self._largest) in ANOTHER_KIND

    @property
    def last(self) -> float | None:
        """What prices are measured by; ``None``: nothing is known."""
        return self._last

    @property
    def band(self) -> float:
        """How far from the last price a price may lie, as a part of it."""
        return self._band

    def accepted(self, price: float, timestamp: int, seen: Seen) -> None:
        """Quotes were accepted elsewhere, by the same rules: what ``check`` would remember of them."""
        self._last, self._newest, self._last_seen = price, timestamp, seen

    def state(self) -> ValidatorState:
        """What ``go_back`` needs to undo whatever is decided from here on."""
        held = self._held
        state = held.state() if held.quotes else None
        return ValidatorState(self._last, self._newest, self._last_seen, state)

    def go_back(self, state: ValidatorState) -> None:
        self._last, self._newest, self._last_seen, held = state
        self._held.go_back(held)

    @property
    def held(self) -> int:
        """How many quotes wait for later ones to agree or disagree with them."""
        return len(self._held.quotes)

    @property
    def held_stamps(self) -> list[int]:
        """Their stamps."""
        return [quote.timestamp for quote in self._held.quotes]

    @property
    def held_quotes(self) -> list[Quote]:
        return list(self._held.quotes)

    @property
    def doubt(self) -> Doubt | None:
        """Why quotes are held; ``None``: none are."""
        held = self._held
        if not held:
            return None
        first = held.quotes[0]
        return Doubt(
            first.symbol,
            self._why(),
            first.price,
            self._last,
            held.kinds,
            first.timestamp,
            first.received_at,
            max(self._newest, self._stored_until),
            len(held),
        )

    def hold_again(self, quotes: list[Quote]) -> None:
        """These were held when the process was killed; in order of arrival."""
        for quote in quotes:
            self._held.add(quote)

    def is_resent(self, quote: Quote) -> bool:
        """Whether ``quote`` is the vendor sending its last price again after a subscription.

        Only the first price frame after a subscribe-status may be dropped for it: elsewhere equal
        ticks are normally real, since the vendor's stamps are whole seconds. A held quote counts as
        the last price, too: else it would confirm itself by being sent again.
        """
        if not quote.first_after_subscribe or not math.isfinite(quote.price):
            return False
        if self._held and _equal(said(self._held.quotes[-1]), quote):
            return True
        return self._last_seen is not None and _equal(self._last_seen, quote)

    def stands(self, price: float) -> bool:
        """Whether ``price`` is the last one, as it is told over another channel."""
        return self._last is not None and same_but_noise(self._last, price)

    def is_unchanged(self, quote: Quote) -> bool:
        """Whether ``quote`` is a price without a stamp that tells nothing new: it is the last price, or the
        held one of the same kind, of which it is a witness and no second tick.
        """
        if quote.stamped or quote.raw:
            return False
        if self.stands(quote.price):
            return True
        if not self._held:
            return False
        last = self._held.quotes[-1]
        return kind_of(last) == "rest" and same_but_noise(last.price, quote.price)

    def check(self, quote: Quote, *, timely: bool = True) -> Decision:
        """Decide ``quote`` and whatever it settles about the held ones, in arrival order.

        :param timely: not stamped too far ahead. What is, is accepted whatever its price, and
            nothing else is measured by it.
        """
        fault = _fault(quote)
        if fault is not None:
            return [], [rejection(quote, fault)]
        if timely and not self._is_plausible(quote.price):
            return self._outside(quote)
        refused = self._refuted(quote) if timely and self._held else []
        return [self._accept(quote, timely=timely)], refused

    def on_rest_price(self, price: float, at: float) -> Decision:
        """A REST price that becomes no tick: it confirms or refutes the held quotes, or neither.

        :param at: when it was received, unix seconds UTC.
        """
        if not self._held or not math.isfinite(price) or price <= 0:
            return _NOTHING
        held = self._held.quotes[0]
        if self._is_nearer_to_held(price):
            return self._confirmed("rest")
        if self._last is not None and self._agrees(price, self._last):
            return _NOTHING if _may_be_older(at, held) else ([], self._refuse(OUTLIER))
        self._held.disputed = True
        return _NOTHING

    def on_bar(self, bar: BarWitness) -> Decision:
        """A finished bar as a witness of the held quotes.

        One that ends after the last price was the last may know their level; only one that begins after
        the first of them can refute them. Where no price is known, its close becomes the last price.
        """
        if not self._held or not math.isfinite(bar.close) or bar.close <= 0:
            return _NOTHING
        kind: Kind = "bar" if bar.asked else "stored"
        last = self._last
        if last is None:
            if self._agrees(bar.close, self._held.quotes[0].price):
                return self._confirmed(kind)
            self._last, self._stored_until = bar.close, bar.ends
            return self._settled()
        if self._is_nearer_to_held(bar.close):
            known = max(self._newest, self._stored_until)
            return self._confirmed(kind) if bar.ends > known else _NOTHING
        begins_later = bar.asked and bar.opens >= self._held.quotes[0].timestamp
        if begins_later and self._agrees(bar.close, last):
            return [], self._refuse(OUTLIER)
        return _NOTHING

    def overdue(self) -> Decision:
        """No witness came for as long as a price may wait.

        What is merely unheard of is believed when it stood and nobody spoke against it. What looks like
        another scale is not: a wrong unit stands, too.
        """
        if not self._held:
            return _NOTHING
        why, held = self._why(), self._held
        stood = why == "first" or held.agreeing > AGREEMENT_NEEDED
        if why != "scale" and stood and not held.disputed:
            return self._believe(), []
        return [], self._refuse(UNWITNESSED)

    def flush(self) -> list[Rejection]:
        """The session ends or the service stops: what is still held was never confirmed."""
        return self._refuse(OUTLIER)

    def _agrees(self, price: float, reference: float) -> bool:
        return abs(price - reference) <= self._band * reference

    def _is_plausible(self, price: float) -> bool:
        last = self._last
        return self._believe_first if last is None else self._agrees(price, last)

    def _is_nearer_to_held(self, price: float) -> bool:
        """Whether ``price`` agrees with the held level, and better than with the last price."""
        level, last = self._held.quotes[0].price, self._last
        nearer = last is None or abs(price - level) < abs(price - last)
        return nearer and self._agrees(price, level)

    def _why(self) -> Why:
        """By the one that is nearest to the last price: what agrees with it is as likely as it is."""
        held = self._held
        whys = {
            why_doubted(price, self._last, self._largest) for price in (held.lowest, held.highest)
        }
        return "move" if "move" in whys else whys.pop() if len(whys) == 1 else "scale"

    def _outside(self, quote: Quote) -> Decision:
        held = self._held
        refused: list[Rejection] = []
        if held and not self._agrees(quote.price, held.quotes[0].price):
            refused = self._refuse(OUTLIER)
        if len(held) >= HELD_LIMIT and held.is_double(quote):
            return [], [rejection(quote, OUTLIER, f"{HELD_LIMIT} equal ones are held")]
        if len(held) >= HELD_MOST:
            return [], [rejection(quote, UNWITNESSED, f"{HELD_MOST} others are held")]
        held.add(quote)
        accepted, _ = self._settled()
        return accepted, refused

    def _confirmed(self, kind: Kind) -> Decision:
        self._held.answered(kind)
        return self._settled()

    def _settled(self) -> Decision:
        """The held quotes, accepted, if enough speaks for them."""
        held = self._held
        if is_enough(self._why(), held.distinct, held.kinds, held.rest_prices):
            return self._believe(), []
        return _NOTHING

    def _refuted(self, quote: Quote) -> list[Rejection]:
        """``quote`` agrees with the last price, so the held ones are wrong, unless it is older."""
        first = self._held.quotes[0]
        if quote.timestamp < first.timestamp:
            return []
        if kind_of(quote) == "rest" and _may_be_older(quote.received_at, first):
            return []
        return self._refuse(OUTLIER)

    def _believe(self) -> list[Accepted]:
        believed = self._held.take()
        accepted = [self._accept(one, held=True) for one in believed]
        # Also when a tick of the old price level carries a later stamp.
        newest = max(one.timestamp for one in believed)
        self._last = next(quantise(q.price) for q in reversed(believed) if q.timestamp == newest)
        return accepted

    def _refuse(self, reason: str) -> list[Rejection]:
        return [rejection(quote, reason) for quote in self._held.take()]

    def _accept(self, quote: Quote, *, held: bool = False, timely: bool = True) -> Accepted:
        stamp, price = quote.timestamp, quantise(quote.price)
        bid, ask = _rounded(quote.bid), _rounded(quote.ask)
        flags: tuple[str, ...] = ()
        if bid is not None and ask is not None and ask < bid:
            flags = (Flag.CROSSED,)
        if not quote.stamped:
            flags += (Flag.RECEIVED,)
        if held:
            flags += (Flag.HELD,)
        if timely:
            if stamp >= self._newest:
                self._last, self._newest = price, stamp
            else:
                flags += (Flag.OUT_OF_ORDER,)
        seen = (stamp, price, bid, ask)
        repeated = seen == self._last_seen
        self._last_seen = seen
        return Accepted(quote, flags, repeated)


def _may_be_older(at: float, held: Quote) -> bool:
    """Whether a REST price received at ``at`` may be from before a price of the stream."""
    return kind_of(held) == "stream" and at < held.received_at + REST_LAG_S


def _equal(seen: Seen, quote: Quote) -> bool:
    """Whether ``quote`` says the same again, be it through a 32-bit float."""
    stamp, *known = seen
    return stamp == quote.timestamp and all(
        one is other is None
        or (one is not None and other is not None and same_but_noise(one, other))
        for one, other in zip(known, (quote.price, quote.bid, quote.ask), strict=True)
    )


def _fault(quote: Quote) -> str | None:
    if quote.raw:
        return "unparsable"
    fault = _number_fault(quote.price)
    if fault is None and quote.bid is not None:
        fault = _number_fault(quote.bid)
    if fault is None and quote.ask is not None:
        fault = _number_fault(quote.ask)
    return fault


def _number_fault(value: float) -> str | None:
    if SMALLEST <= value < MAX_PRICE:
        return None
    if not math.isfinite(value):
        return "not_a_number"
    if value >= MAX_PRICE:
        return "out_of_range"
    return None if quantise(value) > 0 else "not_positive"


def _rounded(value: float | None) -> float | None:
    return None if value is None else quantise(value)
