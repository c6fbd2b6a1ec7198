"""The proof of continuity over the database: who covers each slot of a day, and a range in numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import DataError
from enhanced_websocket_service.market.calendar import BOGOTA, TradingCalendar
from enhanced_websocket_service.market.continuity import (
    COVERED,
    DaySummary,
    Mark,
    Slot,
    judge_slot,
    spans,
    summarise,
)
from enhanced_websocket_service.market.slot import SlotEvidence
from enhanced_websocket_service.market.source import Provider

MAX_RANGE_DAYS = 1100
_LOOK_BACK_S = 3600.0
"""The state at the open was entered before it."""


class Evidence(Protocol):
    """What is stored; see ``storage.slot_store``."""

    async def evidence(self, symbol: str, labels: Sequence[int]) -> list[SlotEvidence]: ...

    async def marks(self, start: float, end: float) -> list[Mark]: ...


@dataclass(frozen=True, slots=True)
class DayContinuity:
    """One day, slot by slot; no slots on a closed day."""

    symbol: str
    day: date
    slots: tuple[Slot, ...]
    closed: str | None = None  # why the market is closed all day
    zone: ZoneInfo = BOGOTA  # of its market

    @property
    def covered(self) -> int:
        return sum(slot.status in COVERED for slot in self.slots)

    @property
    def summary(self) -> DaySummary:
        return summarise(self.day, self.slots)


class Continuity:
    """Reads the proof. Every method raises ``StorageError``.

    :param calendars: by symbol.
    :param epoch: the process that asks, when it is the service itself: it is alive now.
    """

    def __init__(
        self,
        store: Evidence,
        calendars: Mapping[str, TradingCalendar],
        clock: Clock,
        provider: Provider,
        *,
        epoch: int | None = None,
    ) -> None:
        self._store, self._calendars, self._clock = store, dict(calendars), clock
        self._provider, self.epoch = provider, epoch

    async def day(self, symbol: str, day: date) -> DayContinuity:
        """The slots of ``day``, each with its reason when something lacks."""
        calendar = self._calendars[symbol]
        labels = calendar.expected_labels(day)
        if not labels:
            return DayContinuity(symbol, day, (), calendar.closure(day), calendar.zone)
        now = self._clock.now()
        found = await self._store.evidence(symbol, labels)
        marks = await self._store.marks(
            min(calendar.day_start(day), labels[0] - _LOOK_BACK_S),
            min(now, labels[-1] + 2 * _LOOK_BACK_S),
        )
        alive = None if self.epoch is None else (self.epoch, now)
        known = spans(marks, alive, symbol)
        slots = (judge_slot(one, now, calendar, self._provider, known) for one in found)
        return DayContinuity(symbol, day, tuple(slots), zone=calendar.zone)

    async def days(self, symbol: str, start: date, end: date) -> list[DayContinuity]:
        """The trading days of ``start .. end`` (inclusive), without reasons that need the service's
        own words.

        :raises DataError: ``start`` after ``end``, or more than 1,100 days.
        """
        if start > end:
            raise DataError(f"The start {start} is after the end {end}; swap them.")
        if (end - start).days >= MAX_RANGE_DAYS:
            raise DataError(f"{start} .. {end} is longer than {MAX_RANGE_DAYS} days; ask for less.")
        now = self._clock.now()
        calendar = self._calendars[symbol]
        days = calendar.trading_days(start, end)
        labels = {day: calendar.expected_labels(day) for day in days}
        asked = [label for day in days for label in labels[day]]
        found = {one.slot: one for one in await self._store.evidence(symbol, asked)}
        return [
            DayContinuity(
                symbol,
                day,
                tuple(
                    judge_slot(found[label], now, calendar, self._provider) for label in labels[day]
                ),
                zone=calendar.zone,
            )
            for day in days
        ]

    def today(self, symbol: str) -> date:
        """The day that it is in the market of ``symbol``."""
        return self._calendars[symbol].local_date(self._clock.now())

    def last_days(self, symbol: str, count: int) -> tuple[date, date]:
        """From the first of the last ``count`` trading days, today included, to today."""
        today, calendar = self.today(symbol), self._calendars[symbol]
        day, left = today, count
        while True:
            left -= calendar.is_trading_day(day)
            if left <= 0:
                return day, today
            day -= timedelta(days=1)
