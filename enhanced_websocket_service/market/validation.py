"""Which quotes become ticks. Pure; one ``QuoteValidator`` holds the little state a symbol needs.

Owns: the rules of ``docs/reference/ticks.md``. Does not own: numbering, storage, the calendar.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from .tick import MAX_PRICE, Flag, Quote, Rejection, quantise, rejection

AGREEMENT_NEEDED = 2
"""How many later prices must agree with a held one before it is believed."""


class Accepted:
    """An accepted quote with the flags that validation gave it."""

    __slots__ = ("flags", "quote")

    def __init__(self, quote: Quote, flags: tuple[str, ...]) -> None:
        self.quote = quote
        self.flags = flags


class ValidatorState(NamedTuple):
    """All that a validator remembers."""

    last: float | None
    last_seen: tuple[int, float, float | None, float | None] | None
    held: tuple[Quote, ...]


class QuoteValidator:
    """Decides the quotes of one symbol, in arrival order.

    A price outside ``band_pct`` of the last accepted one is held: when the next two quotes, or one
    REST quote, agree with it, the held ones are accepted in order (the market really moved);
    otherwise they are rejected as ``outlier``.
    """

    def __init__(self, band_pct: float = 5.0) -> None:
        self._band = band_pct / 100.0
        self._last: float | None = None
        self._last_seen: tuple[int, float, float | None, float | None] | None = None
        self._held: list[Quote] = []

    def seed(
        self, timestamp: int, price: float, bid: float | None = None, ask: float | None = None
    ) -> None:
        """Start from the last journaled tick."""
        self._last = price
        self._last_seen = (timestamp, price, bid, ask)

    def state(self) -> ValidatorState:
        """What ``go_back`` needs to undo whatever is decided from here on."""
        return ValidatorState(self._last, self._last_seen, tuple(self._held))

    def go_back(self, state: ValidatorState) -> None:
        self._last, self._last_seen, held = state
        self._held = list(held)

    @property
    def held(self) -> int:
        """How many quotes wait for later ones to agree or disagree with them."""
        return len(self._held)

    def is_resent(self, quote: Quote) -> bool:
        """Whether ``quote`` is the vendor sending its last price again after a subscription.

        Only the first price frame after a subscribe-status may be dropped for it: elsewhere equal
        ticks are normally real, since the vendor's stamps are whole seconds.
        """
        return (
            quote.first_after_subscribe
            and self._last_seen is not None
            and self._last_seen
            == (quote.timestamp, quantise(quote.price), _rounded(quote.bid), _rounded(quote.ask))
        )

    def check(self, quote: Quote) -> tuple[list[Accepted], list[Rejection]]:
        """Decide ``quote`` and whatever it settles about the held ones, in arrival order."""
        fault = _fault(quote)
        if fault is not None:
            return [], [rejection(quote, fault)]
        if self._last is None or self._agrees(quote.price, self._last):
            refused = self._refuse_held()
            return [self._accept(quote, held=False)], refused
        if self._held and self._agrees(quote.price, self._held[0].price):
            self._held.append(quote)
            if len(self._held) > AGREEMENT_NEEDED or quote.source.endswith("_rest"):
                believed, self._held = self._held, []
                return [self._accept(one, held=True) for one in believed], []
            return [], []
        refused = self._refuse_held()
        self._held = [quote]
        return [], refused

    def flush(self) -> list[Rejection]:
        """The session ends or the service stops: what is still held was never confirmed."""
        return self._refuse_held()

    def _agrees(self, price: float, reference: float) -> bool:
        return abs(price - reference) <= self._band * reference

    def _refuse_held(self) -> list[Rejection]:
        if not self._held:
            return []
        refused, self._held = self._held, []
        return [rejection(quote, "outlier") for quote in refused]

    def _accept(self, quote: Quote, *, held: bool) -> Accepted:
        price = quantise(quote.price)
        bid, ask = _rounded(quote.bid), _rounded(quote.ask)
        flags: list[str] = []
        if bid is not None and ask is not None and ask < bid:
            flags.append(Flag.CROSSED)
        if not quote.stamped:
            flags.append(Flag.RECEIVED)
        if held:
            flags.append(Flag.HELD)
        self._last = price
        self._last_seen = (quote.timestamp, price, bid, ask)
        return Accepted(quote, tuple(flags))


def _fault(quote: Quote) -> str | None:
    if quote.raw:
        return "unparsable"
    for value in _known(quote):
        if not math.isfinite(value):
            return "not_a_number"
        if quantise(value) <= 0:
            return "not_positive"
        if value >= MAX_PRICE:
            return "out_of_range"
    return None


def _known(quote: Quote) -> Iterable[float]:
    yield quote.price
    if quote.bid is not None:
        yield quote.bid
    if quote.ask is not None:
        yield quote.ask


def _rounded(value: float | None) -> float | None:
    return None if value is None else quantise(value)
