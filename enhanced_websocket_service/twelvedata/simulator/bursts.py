"""Bursts: many extra ticks a second on top of the market, that leave every bar as it is. Pure.

A burst's prices lie in the range that the market has shown in the same 5-minute slot so far, and
the last one of each second is the market's own last price; so open, high, low and close of the slot
stay those of the market. Bids and asks differ from tick to tick: no two ticks of a second are equal.
"""

from .fault_values import Bursting
from .model import SLOT_SECONDS, SimTick, SymbolSource

SLICES = 20
"""A second's ticks leave in so many portions: 10,000 at once would be a test of buffers alone."""

_GOLDEN = 0.6180339887498949  # steps of this share visit a range evenly, in any number


class Burst:
    """The extra ticks of one symbol, from ``start`` (whole unix seconds) on."""

    def __init__(self, symbol: str, source: SymbolSource, start: int, how: Bursting) -> None:
        self.symbol = symbol
        self._source = source
        self._start = start
        self._how = how
        self._slice = 0  # the next one to leave, counted from the start

    def next_instant(self) -> float | None:
        """When the next portion leaves; ``None``: it is over."""
        if self._slice >= SLICES * self._how.seconds:
            return None
        return self._start + self._slice / SLICES

    def due(self, now: float) -> list[tuple[float, SimTick]]:
        """Every tick that leaves by ``now`` and has not left, with its instant."""
        found: list[tuple[float, SimTick]] = []
        while (at := self.next_instant()) is not None and at <= now:
            second, part = divmod(self._slice, SLICES)
            found += [(at, tick) for tick in self._portion(self._start + second, part)]
            self._slice += 1
        return found

    def _portion(self, stamp: int, part: int) -> list[SimTick]:
        rate = self._how.rate
        first, end = rate * part // SLICES, rate * (part + 1) // SLICES
        seen = self._seen(stamp)
        if seen is None or first == end:
            return []
        lowest, highest, last = seen
        span = highest - lowest
        half = None if last.bid is None or last.ask is None else (last.ask - last.bid) / 2
        ticks = []
        for i in range(first, end):
            price = round(lowest + span * (i * _GOLDEN % 1.0), 5) if span else last.price
            if i == rate - 1 or not lowest <= price <= highest:
                price = last.price
            bid = ask = None
            if half is not None:
                wide = half * (1 + i / rate)
                bid, ask = round(price - wide, 6), round(price + wide, 6)
            ticks.append(SimTick(stamp, price, bid, ask))
        return ticks

    def _seen(self, stamp: int) -> tuple[float, float, SimTick] | None:
        """Lowest and highest price of the slot up to ``stamp``, and the last tick."""
        slot = stamp - stamp % SLOT_SECONDS
        ticks = self._source.ticks(slot, stamp + 1)
        if not ticks:
            # Before the slot's first tick only its open can be told without changing the bar.
            following = self._source.ticks(stamp, slot + SLOT_SECONDS)[:1]
            only = following[0] if following else self._source.last_tick(stamp)
            return None if only is None else (only.price, only.price, only)
        prices = [tick.price for tick in ticks]
        return min(prices), max(prices), ticks[-1]
