"""The proof of continuity over the database: who covers each slot of a day, and a range in numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Protocol

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import DataError
from enhanced_websocket_service.market.calendar import TradingCalendar
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

    @property
    def covered(self) -> int:
        return sum(slot.status in COVERED for slot in self.slots)

    @property
    def summary(self) -> DaySummary:
        return summarise(self.day, self.slots)


class Continuity:
    """Reads the proof. Every method raises ``StorageError``.

    :param epoch: the process that asks, when it is the service itself: it is alive now.
    """

    def __init__(
        self,
        store: Evidence,
        calendar: TradingCalendar,
        clock: Clock,
        provider: Provider,
        *,
        epoch: int | None = None,
    ) -> None:
        self._store, self._calendar, self._clock = store, calendar, clock
        self._provider, self._epoch = provider, epoch

    async def day(self, symbol: str, day: date) -> DayContinuity:
        """The slots of ``day``, each with its reason when something lacks."""
        labels = self._calendar.expected_labels(day)
        if not labels:
            return DayContinuity(symbol, day, (), self._calendar.closure(day))
        now = self._clock.now()
        found = await self._store.evidence(symbol, labels)
        midnight = datetime.combine(day, datetime.min.time(), self._calendar.zone).timestamp()
        marks = await self._store.marks(
            min(midnight, labels[0] - _LOOK_BACK_S), min(now, labels[-1] + 2 * _LOOK_BACK_S)
        )
        alive = None if self._epoch is None else (self._epoch, now)
        known = spans(marks, alive, symbol)
        slots = (judge_slot(one, now, self._calendar, self._provider, known) for one in found)
        return DayContinuity(symbol, day, tuple(slots))

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
        days = self._calendar.trading_days(start, end)
        labels = {day: self._calendar.expected_labels(day) for day in days}
        asked = [label for day in days for label in labels[day]]
        found = {one.slot: one for one in await self._store.evidence(symbol, asked)}
        return [
            DayContinuity(
                symbol,
                day,
                tuple(
                    judge_slot(found[label], now, self._calendar, self._provider)
                    for label in labels[day]
                ),
            )
            for day in days
        ]

    def last_days(self, count: int) -> tuple[date, date]:
        """From the first of the last ``count`` trading days, today included, to today."""
        today = self._calendar.local_date(self._clock.now())
        day, left = today, count
        while True:
            left -= self._calendar.is_trading_day(day)
            if left <= 0:
                return day, today
            day -= timedelta(days=1)
