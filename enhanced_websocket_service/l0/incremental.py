"""From the last complete vendor bar to now, and every hole in the completeness window.

A window of days is looked at as well as the tail, because the check before going live looks at it: a
tail alone could never repair a hole that an earlier, late answer left behind.
"""

from datetime import date

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import L0Error, StorageError
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.source import Provider

from .backfill import Announce, Backfill
from .interfaces import BarStore, Progress
from .run import BackfillResult
from .slots import completed_days


class Incremental:
    """Catches one symbol up with the vendor: usually one call, none when nothing is missing."""

    def __init__(
        self,
        backfill: Backfill,
        database: BarStore,
        calendar: TradingCalendar,
        clock: Clock,
        *,
        provider: Provider,
        symbol: str,
        window_days: int,
    ) -> None:
        self._backfill, self._database = backfill, database
        self._calendar, self._clock = calendar, clock
        self._provider, self._symbol = provider, symbol
        self._window_days = window_days

    async def run(
        self,
        progress: Progress | None = None,
        *,
        start: date | None = None,
        purpose: str = "incremental",
        announce: Announce | None = None,
    ) -> BackfillResult:
        """Fetch up to now, from ``start`` (a local day) when given. Raises as ``Backfill.run``."""
        now = self._clock.now()
        today = self._calendar.local_date(now)
        if start is None:
            start = await self._start(now)
        return await self._backfill.run(
            min(start, today),
            today,
            progress,
            purpose=purpose,
            worthwhile=1,  # the window is short: reading its days again costs less than a call
            announce=announce,
        )

    async def _start(self, now: float) -> date:
        window = completed_days(self._calendar, now, self._window_days)[0]
        try:
            last = await self._database.last_bar(self._symbol, vendor_only=True)
        except StorageError as error:
            raise L0Error(f"{self._symbol}: the last bar cannot be read: {error}") from error
        if last is None or last.source != self._provider.bars:
            return window
        return min(window, self._calendar.local_date(last.open_time))
