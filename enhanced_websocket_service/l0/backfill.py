"""History from the vendor into the database, a page at a time.

What is missing is derived from the database itself (and from the record of what the vendor does not
have), so a run that was killed goes on where it stopped: every page is committed before the next is
asked for, and complete days spend no credit. Only slots of sessions are kept. Owns no credits, no
retries (the REST client does) and no flag (the pipeline does).
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass
from datetime import date

import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import (
    ConfigurationError,
    DataError,
    L0Error,
    StorageError,
    VendorError,
)
from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.market.calendar import BAR_SECONDS, TradingCalendar, iso_local
from enhanced_websocket_service.market.source import Provider

from .absences import FINAL_AFTER_S, Absences
from .interfaces import BarStore, HistorySource, Progress
from .slots import settled_labels, windows

log = structlog.get_logger(__name__)

PAGE_ROWS = 5000
A_SESSION = 60


@dataclass(frozen=True, slots=True)
class BackfillPlan:
    """What a run would ask for. Slots are unix seconds UTC, ascending."""

    symbol: str
    start: date
    end: date
    days: tuple[date, ...]  # the trading days of the range
    expected: tuple[int, ...]  # every settled slot of those days
    lacking: tuple[int, ...]  # no vendor bar in the database
    windows: tuple[tuple[int, ...], ...]  # what is to be asked for, one tuple a request range
    day_of: dict[int, date]

    @property
    def wanted(self) -> int:
        """How many slots will be asked for."""
        return sum(len(window) for window in self.windows)

    @property
    def calls_at_least(self) -> int:
        """Requests if the vendor has session bars only and gives full pages."""
        return sum(-(-len(window) // PAGE_ROWS) for window in self.windows)


@dataclass(frozen=True, slots=True)
class BackfillResult:
    """What a run did."""

    symbol: str
    start: date
    end: date
    days: int  # trading days in the range
    days_fetched: int  # of them, those something was asked for
    calls: int
    bars_written: int
    dropped: int  # vendor bars outside sessions, off the grid or not yet settled
    expected: int
    missing: tuple[int, ...]  # settled slots still without a vendor bar, unix seconds UTC


class Backfill:
    """Fills the database with one symbol's vendor bars.

    :param page_rows: rows asked for in one call; the vendor may give fewer, which is noticed.
    """

    def __init__(
        self,
        rest: HistorySource,
        database: BarStore,
        calendar: TradingCalendar,
        clock: Clock,
        *,
        provider: Provider,
        symbol: str,
        absences: Absences,
        page_rows: int = PAGE_ROWS,
    ) -> None:
        self._rest, self._database = rest, database
        self._calendar, self._clock = calendar, clock
        self._provider, self._symbol = provider, symbol
        self._absences = absences
        self._page_rows = page_rows

    async def plan(self, start: date, end: date, *, refetch: bool = False) -> BackfillPlan:
        """What ``run`` would ask for: nothing is asked of the vendor yet.

        :param start, end: local days, both inclusive; days to come are ignored.
        :param refetch: ask again for slots the vendor once did not have.
        :raises ConfigurationError: when ``start`` is after ``end``.
        :raises StorageError: when the database does not answer.
        """
        if start > end:
            raise ConfigurationError(f"The start {start} is after the end {end}; swap them.")
        now = self._clock.now()
        days = self._calendar.trading_days(start, min(end, self._calendar.local_date(now)))
        day_of = {label: day for day in days for label in settled_labels(self._calendar, day, now)}
        expected = tuple(day_of)
        lacking: tuple[int, ...] = ()
        if expected:
            # + 1: holds whether or not the store counts the end in, and meets no other label.
            present = await self._database.slots_present(
                self._symbol, expected[0], expected[-1] + 1
            )
            source = self._provider.bars
            lacking = tuple(slot for slot in expected if source not in present.get(slot, ()))
        absent = set() if refetch else self._absences.load()
        wanted = [slot for slot in lacking if slot not in absent]
        return BackfillPlan(
            symbol=self._symbol,
            start=start,
            end=end,
            days=tuple(days),
            expected=expected,
            lacking=lacking,
            windows=tuple(tuple(window) for window in windows(wanted)),
            day_of=day_of,
        )

    async def run(
        self,
        start: date,
        end: date,
        progress: Progress | None = None,
        *,
        purpose: str = "backfill",
        refetch: bool = False,
    ) -> BackfillResult:
        """Fetch and store what ``plan`` says. Cancellation or a fault keeps every page stored so far.

        :param progress: called with (days done, days in all) at the start and after every page.
        :raises ConfigurationError: when ``start`` is after ``end``.
        :raises L0Error: the vendor or the database failed; says how far the run came. Its cause is
            the ``VendorError`` or ``StorageError``.
        """
        try:
            plan = await self.plan(start, end, refetch=refetch)
        except StorageError as error:
            raise L0Error(f"{self._symbol}: history cannot be planned: {error}") from error
        run = _Run(plan, self._absences.load())
        log.info(
            "history planned",
            symbol=self._symbol,
            start=str(start),
            end=str(end),
            days=len(plan.days),
            slots_wanted=plan.wanted,
            calls_at_least=plan.calls_at_least,
        )
        if progress:
            progress(run.days_done, len(plan.days))
        for window in plan.windows:
            stack = [window]
            while stack:
                slots = stack.pop()
                try:
                    left, right = await self._page(run, slots, purpose)
                except (VendorError, StorageError, DataError) as error:
                    raise L0Error(
                        f"{self._symbol}: history from {start} to {end} is incomplete: "
                        f"{run.days_done} of {len(plan.days)} trading days are done, "
                        f"{len(run.missing())} slots are missing, the first at "
                        f"{iso_local(run.missing()[0])}. Cause: {error} "
                        "Run it again: what is done is kept and not asked for again."
                    ) from error
                stack.extend(rest for rest in (right, left) if rest)
                if progress:
                    progress(run.days_done, len(plan.days))
        result = run.result()
        log.info(
            "history fetched",
            symbol=self._symbol,
            calls=result.calls,
            bars_written=result.bars_written,
            dropped_outside_session=result.dropped,
            missing=len(result.missing),
        )
        return result

    async def _page(
        self, run: "_Run", slots: tuple[int, ...], purpose: str
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ask once for ``slots``; store the answer; return the slots it did not reach."""
        start, end = slots[0], slots[-1]
        page = await self._rest.time_series(
            self._symbol,
            start=start,
            end=end,
            interval_s=BAR_SECONDS,
            outputsize=self._page_rows,
            purpose=purpose,
        )
        run.calls += 1
        inside = [bar for bar in page if start <= bar.open_time <= end]
        if page and not inside:
            raise VendorError(
                f"The vendor was asked for bars from {iso_local(start)} to {iso_local(end)} and gave "
                f"{len(page)} others, the first at {iso_local(page[0].open_time)}."
            )
        kept = {bar.open_time: bar for bar in inside if bar.open_time in run.plan.day_of}
        run.dropped += sum(bar.open_time not in run.plan.day_of for bar in page)
        left, reached, right = _split(slots, inside)
        if kept:
            await self._database.upsert_vendor_bars([kept[slot] for slot in sorted(kept)])
        if run.settle(reached, kept, before=self._clock.now() - FINAL_AFTER_S):
            self._absences.save(run.absent)
        return left, right


def _split(
    slots: tuple[int, ...], bars: list[Bar]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """``slots`` before the answer, those it speaks for, and those after it.

    An answer may be cut short at any number of rows, without saying so, and keeps what is nearest
    its end. So it says nothing about slots before its first bar, unless it is empty. After its last
    bar the vendor has nothing, unless more than a session is absent: then somebody cut at the
    wrong end, and asking once more costs one call.
    """
    if not bars:
        return (), slots, ()
    first = bisect_left(slots, min(bar.open_time for bar in bars))
    last = bisect_right(slots, max(bar.open_time for bar in bars))
    if len(slots) - last <= A_SESSION:
        last = len(slots)
    return slots[:first], slots[first:last], slots[last:]


class _Run:
    """The book-keeping of one run."""

    def __init__(self, plan: BackfillPlan, absent: set[int]) -> None:
        self.plan = plan
        self.absent = absent
        self.calls = 0
        self.dropped = 0
        self._written: set[int] = set()
        self._unanswered = Counter(plan.day_of[slot] for window in plan.windows for slot in window)
        self._days_asked = len(self._unanswered)

    @property
    def days_done(self) -> int:
        return len(self.plan.days) - len(self._unanswered)

    def settle(self, slots: tuple[int, ...], kept: dict[int, Bar], *, before: float) -> bool:
        """Note an answer about ``slots``; whether the record of absences changed."""
        self._written.update(kept)
        for slot in slots:
            day = self.plan.day_of[slot]
            self._unanswered[day] -= 1
            if not self._unanswered[day]:
                del self._unanswered[day]
        known = len(self.absent)
        came = self.absent & kept.keys()
        self.absent -= came
        self.absent.update(s for s in slots if s not in kept and s + BAR_SECONDS <= before)
        return bool(came) or len(self.absent) != known

    def missing(self) -> tuple[int, ...]:
        return tuple(slot for slot in self.plan.lacking if slot not in self._written)

    def result(self) -> BackfillResult:
        return BackfillResult(
            symbol=self.plan.symbol,
            start=self.plan.start,
            end=self.plan.end,
            days=len(self.plan.days),
            days_fetched=self._days_asked,
            calls=self.calls,
            bars_written=len(self._written),
            dropped=self.dropped,
            expected=len(self.plan.expected),
            missing=self.missing(),
        )
