"""Which quotes become ticks. Pure; one ``QuoteValidator`` holds the little state a symbol needs.

Owns: the rules of ``docs/reference/ticks.md``. Does not own: numbering, storage, the calendar.
"""

import math
from typing import NamedTuple

from .noise import same_but_noise
from .tick import (
    MAX_PRICE,
    PRICE_DECIMALS,
    Flag,
    Quote,
    Rejection,
    quantise,
    rejection,
)

AGREEMENT_NEEDED = 2
"""How many later prices must agree with a held one before it is believed."""
HELD_LIMIT = 64
"""Doubles of a held quote are no witnesses; of more than this many quotes the rest is refused."""
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
    held: tuple[Quote, ...]


Decision = tuple[list[Accepted], list[Rejection]]
_NOTHING: Decision = ([], [])


class QuoteValidator:
    """Decides the quotes of one symbol, in arrival order.

    A price outside ``band_pct`` of the last one is held: when the next two quotes, or one REST
    price, agree with it, the held ones are accepted in order (the market really moved); otherwise
    they are rejected as ``outlier``. The last price is that of the newest stamp: neither a late nor
    a future tick becomes what others are measured by.
    """

    def __init__(self, band_pct: float = 5.0) -> None:
        self._band = band_pct / 100.0
        self._last: float | None = None
        self._newest = 0  # the stamp of ``_last``
        self._last_seen: Seen | None = None  # the last tick in order of arrival
        self._held: list[Quote] = []

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

    @property
    def band(self) -> float:
        """How far from the last price a price may lie, as a part of it."""
        return self._band

    def accepted(self, price: float, timestamp: int, seen: Seen) -> None:
        """Quotes were accepted elsewhere, by the same rules: what ``check`` would remember of them."""
        self._last, self._newest, self._last_seen = price, timestamp, seen

    def state(self) -> ValidatorState:
        """What ``go_back`` needs to undo whatever is decided from here on."""
        return ValidatorState(self._last, self._newest, self._last_seen, tuple(self._held))

    def go_back(self, state: ValidatorState) -> None:
        self._last, self._newest, self._last_seen, held = state
        self._held = list(held)

    @property
    def held(self) -> int:
        """How many quotes wait for later ones to agree or disagree with them."""
        return len(self._held)

    @property
    def held_stamps(self) -> list[int]:
        """Their stamps."""
        return [quote.timestamp for quote in self._held]

    def is_resent(self, quote: Quote) -> bool:
        """Whether ``quote`` is the vendor sending its last price again after a subscription.

        Only the first price frame after a subscribe-status may be dropped for it: elsewhere equal
        ticks are normally real, since the vendor's stamps are whole seconds. A held quote counts as
        the last price, too: else it would confirm itself by being sent again.
        """
        if not quote.first_after_subscribe or not math.isfinite(quote.price):
            return False
        if self._held and _equal(_seen(self._held[-1]), quote):
            return True
        return self._last_seen is not None and _equal(self._last_seen, quote)

    def is_unchanged(self, quote: Quote) -> bool:
        """Whether ``quote`` is a price without a stamp that tells nothing new."""
        return (
            not quote.stamped
            and not quote.raw
            and self._last is not None
            and same_but_noise(self._last, quote.price)
        )

    def check(self, quote: Quote, *, timely: bool = True) -> Decision:
        """Decide ``quote`` and whatever it settles about the held ones, in arrival order.

        :param timely: not stamped too far ahead. What is, is accepted whatever its price, and
            nothing else is measured by it.
        """
        fault = _fault(quote)
        if fault is not None:
            return [], [rejection(quote, fault)]
        last = self._last
        if timely and last is not None and not self._agrees(quote.price, last):
            return self._outside(quote)
        refused = self._refuted(quote) if timely and self._held else []
        return [self._accept(quote, timely=timely)], refused

    def on_rest_price(self, price: float, at: float) -> Decision:
        """A REST price that becomes no tick: it confirms or refutes the held quotes, or neither.

        :param at: when it was received, unix seconds UTC.
        """
        if not self._held or not math.isfinite(price) or price <= 0 or self._last is None:
            return _NOTHING
        held = self._held[0]
        if abs(price - held.price) < abs(price - self._last):
            return (self._believe(), []) if self._agrees(price, held.price) else _NOTHING
        if self._agrees(price, self._last) and not _may_be_older(at, held):
            return [], self._refuse_held()
        return _NOTHING

    def flush(self) -> list[Rejection]:
        """The session ends or the service stops: what is still held was never confirmed."""
        return self._refuse_held()

    def _agrees(self, price: float, reference: float) -> bool:
        return abs(price - reference) <= self._band * reference

    def _outside(self, quote: Quote) -> Decision:
        held = self._held
        if not held or not self._agrees(quote.price, held[0].price):
            refused = self._refuse_held()
            self._held = [quote]
            return [], refused
        witnesses = {_seen(one) for one in held}
        if len(held) >= HELD_LIMIT and _seen(quote) in witnesses:
            return [], [rejection(quote, "outlier")]
        held.append(quote)
        # The same frame delivered three times is one witness, not three.
        witnesses.add(_seen(quote))
        if len(witnesses) > AGREEMENT_NEEDED or _is_rest(quote):
            return self._believe(), []
        return _NOTHING

    def _refuted(self, quote: Quote) -> list[Rejection]:
        """``quote`` agrees with the last price, so the held ones are wrong, unless it is older."""
        first = self._held[0]
        if quote.timestamp < first.timestamp:
            return []
        if _is_rest(quote) and _may_be_older(quote.received_at, first):
            return []
        return self._refuse_held()

    def _believe(self) -> list[Accepted]:
        believed, self._held = self._held, []
        accepted = [self._accept(one, held=True) for one in believed]
        # Also when a tick of the old price level carries a later stamp.
        newest = max(one.timestamp for one in believed)
        self._last = next(quantise(q.price) for q in reversed(believed) if q.timestamp == newest)
        return accepted

    def _refuse_held(self) -> list[Rejection]:
        if not self._held:
            return []
        refused, self._held = self._held, []
        return [rejection(quote, "outlier") for quote in refused]

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


def _is_rest(quote: Quote) -> bool:
    return quote.source.endswith("_rest")


def _may_be_older(at: float, held: Quote) -> bool:
    """Whether a REST price received at ``at`` may be from before a price of the stream."""
    return not _is_rest(held) and at < held.received_at + REST_LAG_S


def _seen(quote: Quote) -> Seen:
    return (quote.timestamp, quantise(quote.price), _rounded(quote.bid), _rounded(quote.ask))


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
