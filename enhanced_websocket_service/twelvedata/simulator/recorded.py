"""Recorded bars and ticks, held in memory in order of time."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from math import isnan

from .model import SLOT_SECONDS, Candle, SimTick


class RecordedCandles:
    """A ``CandleBook`` of recorded 5-minute candles. What was not recorded does not exist.

    :param candles: in order of time, unique.
    """

    def __init__(self, candles: Sequence[Candle]) -> None:
        self._candles = list(candles)
        self._opens = array("q", (candle.open_time for candle in self._candles))

    def candles(self, start: int, end: int) -> list[Candle]:
        return self._candles[bisect_left(self._opens, start) : bisect_left(self._opens, end)]

    def next_open(self, at: int) -> int | None:
        i = bisect_left(self._opens, at)
        return self._opens[i] if i < len(self._opens) else None

    def previous_open(self, before: int) -> int | None:
        i = bisect_left(self._opens, before)
        return self._opens[i - 1] if i else None

    def first_open(self) -> int | None:
        return self._opens[0] if self._opens else None


class RecordedTicks:
    """A ``SymbolSource`` of recorded ticks; its candles are computed from them.

    The columns are of equal length, the stamps non-decreasing; within one second their order is
    that of the wire. A bid or ask that is NaN is unknown.
    """

    def __init__(
        self,
        stamps: Iterable[int],
        prices: Iterable[float],
        bids: Iterable[float],
        asks: Iterable[float],
    ) -> None:
        # Columns, not objects: a month of a liquid pair has millions of ticks.
        self._stamps = array("q", stamps)
        self._prices = array("d", prices)
        self._bids = array("d", bids)
        self._asks = array("d", asks)
        points = zip(self._stamps, self._prices, strict=True)
        self._book = RecordedCandles(candles_of(points, SLOT_SECONDS))

    def ticks(self, start: int, end: int) -> list[SimTick]:
        first, last = bisect_left(self._stamps, start), bisect_left(self._stamps, end)
        return [self._tick(i) for i in range(first, last)]

    def next_stamp(self, at: int) -> int | None:
        i = bisect_left(self._stamps, at)
        return self._stamps[i] if i < len(self._stamps) else None

    def last_tick(self, until: int) -> SimTick | None:
        i = bisect_right(self._stamps, until)
        return self._tick(i - 1) if i else None

    def candles(self, start: int, end: int) -> list[Candle]:
        return self._book.candles(start, end)

    def first_open(self) -> int | None:
        return self._book.first_open()

    def _tick(self, i: int) -> SimTick:
        bid, ask = self._bids[i], self._asks[i]
        return SimTick(
            self._stamps[i],
            self._prices[i],
            None if isnan(bid) else bid,
            None if isnan(ask) else ask,
        )


def candles_of(points: Iterable[tuple[int, float]], interval_s: int) -> list[Candle]:
    """The candles of (stamp, price) in order of time, on the UTC grid of ``interval_s`` seconds."""
    candles: list[Candle] = []
    slot, opening, high, low, close = -1, 0.0, 0.0, 0.0, 0.0
    for stamp, price in points:
        start = stamp - stamp % interval_s
        if start != slot:
            if slot >= 0:
                candles.append(Candle(slot, opening, high, low, close))
            slot, opening, high, low = start, price, price, price
        elif price > high:
            high = price
        elif price < low:
            low = price
        close = price
    if slot >= 0:
        candles.append(Candle(slot, opening, high, low, close))
    return candles
