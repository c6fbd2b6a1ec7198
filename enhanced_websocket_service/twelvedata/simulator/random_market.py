"""A seeded random market. A day's candles depend on the seed, the symbol and that day alone.

The price at midnight UTC is a smooth random function of the date, so neighbouring days meet without
either having to be computed from the other; inside a day a random bridge joins the two.
"""

import math
import random
from datetime import UTC, date, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from enhanced_websocket_service.market.calendar import BAR_SECONDS, BOGOTA, TradingCalendar

from .model import Candle

Regime = Literal["onshore", "24x5", "24x7"]

HISTORY_START = date(2020, 1, 2)
"""The first day of every random market: since then the real vendor has USD/COP bars too."""

_NEW_YORK = ZoneInfo("America/New_York")
_DAY = 86_400
_LONGEST_CLOSURE_DAYS = 14
_REMEMBERED_DAYS = 4096
_SWINGS = ((256, 0.045), (64, 0.02), (16, 0.012), (4, 0.006), (1, 0.003))
"""Waves of the daily level: length in days, standard deviation of the logarithm."""

_BAR_SIGMA = 6.4e-4  # standard deviation of a 5-minute return, measured on USD/COP
_WICK_SIGMA = 3.0e-4  # how far highs and lows reach beyond open and close


class RandomCandles:
    """A ``CandleBook`` of invented candles around ``base_price``.

    :param regime: ``onshore``: 08:00 .. 12:55 Bogota on trading days, every slot; ``24x5``: Sunday
        17:00 to Friday 16:55 New York; ``24x7``: always.
    :param volatility: 1.0 is that of USD/COP.
    """

    def __init__(
        self,
        symbol: str,
        *,
        seed: int,
        base_price: float,
        regime: Regime,
        volatility: float = 1.0,
        calendar: TradingCalendar | None = None,
    ) -> None:
        self._key = f"{seed}|{symbol}"
        self._base = base_price
        self._regime: Regime = regime
        self._volatility = volatility
        self._calendar = calendar or TradingCalendar()
        self._days: dict[date, list[Candle]] = {}

    def candles(self, start: int, end: int) -> list[Candle]:
        found: list[Candle] = []
        day = max(_date(start), HISTORY_START)
        while _midnight(day) < end:
            candles = self._day(day)
            if candles and start <= candles[0].open_time and candles[-1].open_time < end:
                found.extend(candles)
            else:
                found.extend(one for one in candles if start <= one.open_time < end)
            day += timedelta(days=1)
        return found

    def next_open(self, at: int) -> int | None:
        day = max(_date(at), HISTORY_START)
        for _ in range(_LONGEST_CLOSURE_DAYS):
            for candle in self._day(day):
                if candle.open_time >= at:
                    return candle.open_time
            day += timedelta(days=1)
        return None

    def previous_open(self, before: int) -> int | None:
        day = _date(before)
        for _ in range(_LONGEST_CLOSURE_DAYS):
            if day < HISTORY_START:
                break
            for candle in reversed(self._day(day)):
                if candle.open_time < before:
                    return candle.open_time
            day -= timedelta(days=1)
        return None

    def first_open(self) -> int | None:
        return self.next_open(_midnight(HISTORY_START))

    def _day(self, day: date) -> list[Candle]:
        candles = self._days.get(day)
        if candles is None:
            if len(self._days) >= _REMEMBERED_DAYS:
                self._days.clear()
            candles = self._days[day] = self._make(day)
        return candles

    def _make(self, day: date) -> list[Candle]:
        slots = self._slots(day)
        if not slots:
            return []
        rng = random.Random(f"{self._key}|{day.isoformat()}")  # noqa: S311
        sigma = _BAR_SIGMA * self._volatility
        walk = [0.0]
        for _ in slots:
            walk.append(walk[-1] + rng.gauss(0.0, sigma))
        start, end = self._level(day), self._level(day + timedelta(days=1))
        # Tilt the walk so that it ends where the next day begins.
        drift = (math.log(end / start) - walk[-1]) / len(slots)
        knots = [start * math.exp(step + drift * i) for i, step in enumerate(walk)]
        wick = _WICK_SIGMA * self._volatility
        candles = []
        for i, slot in enumerate(slots):
            opening = round(knots[i] * (1 + rng.gauss(0.0, 2e-5)), 5)
            close = round(knots[i + 1], 5)
            top, bottom = max(opening, close), min(opening, close)
            high = round(top * (1 + abs(rng.gauss(0.0, wick))), 5)
            low = round(bottom * (1 - abs(rng.gauss(0.0, wick))), 5)
            candles.append(Candle(slot, opening, max(high, top), min(low, bottom), close))
        return candles

    def _level(self, day: date) -> float:
        """The price at midnight UTC of ``day``."""
        number = day.toordinal()
        height = 0.0
        for length, sigma in _SWINGS:
            crest, place = divmod(number, length)
            part = (1 - math.cos(math.pi * place / length)) / 2
            before, after = self._crest(length, crest), self._crest(length, crest + 1)
            height += sigma * (before + (after - before) * part)
        return self._base * math.exp(height * self._volatility)

    def _crest(self, length: int, number: int) -> float:
        noise = random.Random(f"{self._key}|{length}|{number}").gauss(0.0, 1.0)  # noqa: S311
        return max(-2.0, min(2.0, noise))

    def _slots(self, day: date) -> list[int]:
        midnight = _midnight(day)
        slots = range(midnight, midnight + _DAY, BAR_SECONDS)
        if self._regime == "24x7":
            return list(slots)
        if self._regime == "24x5":
            return [slot for slot in slots if _open_24x5(slot)]
        # The onshore session lies inside one UTC day: Bogota is at UTC-5 all year.
        local = datetime.fromtimestamp(midnight + _DAY // 2, BOGOTA).date()
        return self._calendar.expected_labels(local)


def _open_24x5(slot: int) -> bool:
    local = datetime.fromtimestamp(slot, _NEW_YORK)
    weekday = local.weekday()
    if weekday == 6:
        return local.hour >= 17
    if weekday == 4:
        return local.hour < 17
    return weekday < 5


def _date(instant: int) -> date:
    return datetime.fromtimestamp(instant, UTC).date()


def _midnight(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
