"""Candles to ticks: seeded, irregular, and exactly the candle when put together again. Pure."""

import random
from bisect import bisect_left
from itertools import pairwise
from operator import attrgetter
from typing import Protocol

from .model import SLOT_SECONDS, Candle, SimTick
from .pace import FEWEST_TICKS, CountedPace, Pace

_REMEMBERED_SLOTS = 512
_stamp = attrgetter("timestamp")


class CandleBook(Protocol):
    """Whole 5-minute candles in order of time."""

    def candles(self, start: int, end: int) -> list[Candle]:
        """Those that open in ``[start, end)``."""
        ...

    def next_open(self, at: int) -> int | None:
        """The first open at or after ``at``."""
        ...

    def previous_open(self, before: int) -> int | None:
        """The last open before ``before``."""
        ...

    def first_open(self) -> int | None:
        """The first open of all."""
        ...


def tick_prices(candle: Candle, count: int, rng: random.Random) -> list[float]:
    """At least two prices whose first, highest, lowest and last are exactly those of ``candle``.

    ``count`` is raised when the candle's corners need more ticks than that (at most four).
    """
    lowest, highest = candle.low, candle.high
    corners = []
    if highest > max(candle.open, candle.close):
        corners.append(highest)
    if lowest < min(candle.open, candle.close):
        corners.append(lowest)
    rng.shuffle(corners)
    count = max(count, FEWEST_TICKS + len(corners))
    places = sorted(rng.sample(range(1, count - 1), len(corners)))
    anchors = [(0, candle.open), *zip(places, corners, strict=True), (count - 1, candle.close)]
    noise = 0.15 * (highest - lowest)
    prices = [candle.open]
    for (start, from_price), (end, to_price) in pairwise(anchors):
        step = (to_price - from_price) / (end - start)
        for i in range(1, end - start):
            wandering = round(from_price + step * i + rng.gauss(0.0, noise), 5)
            prices.append(min(max(wandering, lowest), highest))
        prices.append(to_price)
    return prices


class CandleTicks:
    """A ``SymbolSource`` whose ticks are made from candles.

    The ticks of a candle depend on ``seed``, ``symbol`` and its open time alone, never on what was
    asked before.

    :param ticks_per_bar: the exact number (raised where the candle needs more); ``None``: 2 to 40.
    :param pace: another way to choose number and instants, instead of ``ticks_per_bar``.
    :param spread_bp: mean spread between bid and ask, basis points of the price; 0: no bid or ask.
    :param missing_quotes: share of ticks without bid and ask.
    """

    def __init__(
        self,
        symbol: str,
        book: CandleBook,
        *,
        seed: int = 0,
        ticks_per_bar: int | None = None,
        pace: Pace | None = None,
        spread_bp: float = 1.2,
        missing_quotes: float = 0.02,
    ) -> None:
        self._symbol = symbol
        self._book = book
        self._seed = seed
        exact = CountedPace(ticks_per_bar, ticks_per_bar) if ticks_per_bar else CountedPace()
        self._pace = pace or exact
        self._spread_bp = spread_bp
        self._missing = missing_quotes
        self._made: dict[int, list[SimTick]] = {}

    def ticks(self, start: int, end: int) -> list[SimTick]:
        first = start - start % SLOT_SECONDS
        found: list[SimTick] = []
        for candle in self._book.candles(first, end):
            made = self._ticks_of(candle)
            if candle.open_time >= start and candle.open_time + SLOT_SECONDS <= end:
                found.extend(made)
            else:
                first_due = bisect_left(made, start, key=_stamp)
                found.extend(made[first_due : bisect_left(made, end, key=_stamp)])
        return found

    def next_stamp(self, at: int) -> int | None:
        slot = at - at % SLOT_SECONDS
        rest = self.ticks(at, slot + SLOT_SECONDS)
        if rest:
            return rest[0].timestamp
        opening = self._book.next_open(slot + SLOT_SECONDS)
        if opening is None:
            return None
        return self.ticks(opening, opening + SLOT_SECONDS)[0].timestamp

    def last_tick(self, until: int) -> SimTick | None:
        slot = until - until % SLOT_SECONDS
        seen = self.ticks(slot, until + 1)
        if seen:
            return seen[-1]
        opening = self._book.previous_open(slot)
        if opening is None:
            return None
        return self.ticks(opening, opening + SLOT_SECONDS)[-1]

    def candles(self, start: int, end: int) -> list[Candle]:
        return self._book.candles(start, end)

    def first_open(self) -> int | None:
        return self._book.first_open()

    def _ticks_of(self, candle: Candle) -> list[SimTick]:
        made = self._made.get(candle.open_time)
        if made is None:
            if len(self._made) >= _REMEMBERED_SLOTS:
                self._made.clear()
            made = self._made[candle.open_time] = self._make(candle)
        return made

    def _make(self, candle: Candle) -> list[SimTick]:
        # A text seed is hashed by SHA-512: the same in every process and on every machine.
        rng = random.Random(f"{self._seed}|{self._symbol}|{candle.open_time}")  # noqa: S311
        count = self._pace.count(candle.open_time, rng)
        prices = tick_prices(candle, count, rng)
        stamps = self._pace.stamps(candle.open_time, len(prices), rng)
        made = []
        for stamp, price in zip(stamps, prices, strict=True):
            bid: float | None = None
            ask: float | None = None
            if self._spread_bp > 0 and rng.random() >= self._missing:
                half = price * self._spread_bp * rng.uniform(0.5, 1.5) / 20_000
                bid, ask = round(price - half, 6), round(price + half, 6)
            made.append(SimTick(stamp, price, bid, ask))
        return made
