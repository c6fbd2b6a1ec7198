"""History from the vendor into the database, several pages at a time.

What is missing is derived from the database itself (and from the record of what the vendor does not
have), so a run that was killed goes on where it stopped: every answer is committed before its worker
asks again, and complete days spend no credit. Only slots of sessions are kept. Owns no credits, no
retries (the REST client does) and no flag (the pipeline does).
"""

import asyncio
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from datetime import date

import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import (
    ConfigurationError,
    DataError,
    L0Error,
    StorageError,
    VendorError,
    sentences,
)
from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.market.calendar import BAR_SECONDS, TradingCalendar, iso_local
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.twelvedata.keys import KeyPool

from .absences import FINAL_AFTER_S, Absences
from .interfaces import BarStore, HistorySource, Progress
from .paging import A_SESSION, Chunk, Paging
from .run import BackfillPlan, BackfillResult, BackfillRun
from .slots import settled_labels

log = structlog.get_logger(__name__)

PAGE_ROWS = 5000
SAVED_CALLS = 3
"""So many calls must be saved before complete days are read again for the holes around them. A kill
leaves a hole or two: resuming must not fetch the days between them once more."""

_Slots = tuple[int, ...]

Announce = Callable[[BackfillPlan], None]
"""Told the plan before the first call."""


class Backfill:
    """Fills the database with one symbol's vendor bars.

    :param keys: the pool behind ``rest``: as many questions are under way at a time as it has
        usable keys. ``None``: one.
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
        keys: KeyPool | None = None,
        page_rows: int = PAGE_ROWS,
    ) -> None:
        self._rest, self._database = rest, database
        self._calendar, self._clock = calendar, clock
        self._provider, self._symbol = provider, symbol
        self._absences = absences
        self._keys = keys
        self._page_rows = page_rows

    async def plan(
        self, start: date, end: date, *, refetch: bool = False, worthwhile: int = SAVED_CALLS
    ) -> BackfillPlan:
        """What ``run`` would ask for: nothing is asked of the vendor yet.

        :param start, end: local days, both inclusive; days to come are ignored.
        :param refetch: ask for every slot, also those that are there, and those the vendor once
            did not have.
        :param worthwhile: see ``SAVED_CALLS``.
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
        absent = self._absences.load()
        wanted = expected if refetch else tuple(slot for slot in lacking if slot not in absent)
        calls = self._paging(day_of).estimate(wanted, worthwhile)
        keys, seconds, left = 1, 0.0, None
        if self._keys is not None:
            budget = self._keys.budget(now)
            keys, left = budget.keys, budget.left
            seconds = self._keys.forecast(now, calls)
        return BackfillPlan(
            symbol=self._symbol,
            start=start,
            end=end,
            days=tuple(days),
            expected=expected,
            lacking=lacking,
            wanted=wanted,
            absent=tuple(slot for slot in lacking if slot in absent),
            calls=calls,
            keys=keys,
            seconds=seconds,
            credits_left=left,
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
        worthwhile: int = SAVED_CALLS,
        announce: Announce | None = None,
    ) -> BackfillResult:
        """Fetch and store what ``plan`` says. Cancellation or a fault keeps every page stored so far.

        :param progress: called with (days done, days in all) at the start and after every page.
        :param announce: called with the plan before the first call.
        :raises ConfigurationError: when ``start`` is after ``end``.
        :raises L0Error: the vendor or the database failed; says how far the run came. Its cause is
            the ``VendorError`` or ``StorageError``.
        """
        try:
            plan = await self.plan(start, end, refetch=refetch, worthwhile=worthwhile)
        except StorageError as error:
            raise L0Error(f"{self._symbol}: history cannot be planned: {error}") from error
        log.info("history planned", **plan.as_dict())
        if announce:
            announce(plan)
        run = BackfillRun(plan, self._absences.load(), progress)
        fetch = _Fetch(
            self._rest,
            self._database,
            self._clock,
            self._absences,
            run,
            self._paging(plan.day_of),
            purpose,
        )
        wanted = plan.wanted
        while wanted:
            # The first answers show what a page is; what they did not reach is cut accordingly.
            chunks = fetch.paging.chunks(wanted, anchors=True, worthwhile=worthwhile)
            left = await fetch.all_of(chunks, min(self._workers(), len(chunks)))
            if fetch.fault is not None:
                raise L0Error(
                    f"{self._symbol}: history from {start} to {end} is incomplete: "
                    f"{run.days_done} of {len(plan.days)} trading days are done, "
                    f"{len(run.missing())} slots are missing, the first at "
                    f"{iso_local((run.missing() or wanted)[0])}. "
                    + sentences(f"Cause: {fetch.fault}")
                ) from fetch.fault
            wanted = tuple(sorted(left))
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

    def _paging(self, day_of: dict[int, date]) -> Paging:
        number = {day: i for i, day in enumerate(dict.fromkeys(day_of.values()))}
        return Paging({slot: number[day] for slot, day in day_of.items()}, self._page_rows)

    def _workers(self) -> int:
        return 1 if self._keys is None else max(1, self._keys.budget(self._clock.now()).keys)


class _Fetch:
    """The workers of one run. They share the paging, the book-keeping and the first fault."""

    def __init__(
        self,
        rest: HistorySource,
        database: BarStore,
        clock: Clock,
        absences: Absences,
        run: BackfillRun,
        paging: Paging,
        purpose: str,
    ) -> None:
        self.paging = paging
        self.fault: VendorError | StorageError | DataError | None = None
        self._rest, self._database, self._clock = rest, database, clock
        self._absences, self._run, self._purpose = absences, run, purpose
        self._symbol = run.plan.symbol

    async def all_of(self, chunks: list[Chunk], workers: int) -> list[int]:
        """Ask for ``chunks`` (newest first); the slots that the answers did not reach.

        After a fault no worker begins another chunk, but each finishes the one it has paid for.
        """
        queue, left = deque(chunks), list[int]()

        async def work() -> None:
            while queue and self.fault is None:
                chunk = queue.popleft()
                try:
                    rest = await self._chunk(chunk)
                except (VendorError, StorageError, DataError) as error:
                    self.fault = self.fault or error
                    return
                if rest is None:
                    _join(queue, chunk.run)
                else:
                    left.extend(rest)

        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(work(), name=f"backfill-{self._symbol}-{number}")
        return left

    async def _chunk(self, chunk: Chunk) -> list[int] | None:
        """Ask for a chunk; what its answers did not reach, ``None`` when there was nothing at all.

        A few slots that an answer left at an end are asked for at once, without an anchor: most
        likely the vendor does not have them, and nothing must be left half known.
        """
        beyond: list[int] = []
        questions = [(chunk.start, chunk.slots)]
        while questions:
            start, slots = questions.pop()
            page, left, reached, right = await self._ask(start, slots)
            await self._store(page, slots, reached)
            if not page and slots is chunk.slots and len(slots) > A_SESSION:
                return None
            for part in (right, left):
                # Nothing reached: the same question again would get the same answer.
                if part and (len(part) <= A_SESSION or not reached):
                    questions.append((part[0], part))
                else:
                    beyond.extend(part)
        return beyond

    async def _ask(
        self, start: int, slots: tuple[int, ...]
    ) -> tuple[list[Bar], _Slots, _Slots, _Slots]:
        """The bars from ``start`` to the last of ``slots``; and ``slots`` before the answer, those it
        speaks for, and those after it."""
        end = slots[-1]
        page = await self._rest.time_series(
            self._symbol,
            start=start,
            end=end,
            interval_s=BAR_SECONDS,
            outputsize=self.paging.page_rows,
            purpose=self._purpose,
        )
        self._run.calls += 1
        rows = sorted(bar.open_time for bar in page if start <= bar.open_time <= end)
        if page and not rows:
            raise VendorError(
                f"The vendor was asked for bars from {iso_local(start)} to {iso_local(end)} and gave "
                f"{len(page)} others, the first at {iso_local(page[0].open_time)}."
            )
        parts = self._split(slots, rows)
        outside = sum(row not in self._run.plan.day_of for row in rows)
        self._run.dropped += outside
        self.paging.learn(slots, rows, outside=outside, left=len(parts[0]), right=len(parts[2]))
        return page, *parts

    def _split(self, slots: _Slots, rows: list[int]) -> tuple[_Slots, _Slots, _Slots]:
        """See ``_ask``.

        An answer may be cut short at any number of rows, without saying so. So it says nothing about
        slots before its first row, unless it is empty. After its last row the vendor has nothing
        once it was seen to keep the newest rows, or where those slots are young (and their absence
        is not put on record), unless more than a session is absent.
        """
        if not rows:
            return (), slots, ()
        first, last = bisect_left(slots, rows[0]), bisect_right(slots, rows[-1])
        young = slots[-1] + BAR_SECONDS > self._clock.now() - FINAL_AFTER_S
        if len(slots) - last <= A_SESSION and (self.paging.keeps_newest or young):
            last = len(slots)
        return slots[:first], slots[first:last], slots[last:]

    async def _store(self, page: list[Bar], slots: _Slots, reached: _Slots) -> None:
        """Commit an answer: first its bars, then the record of what the vendor does not have.

        The record is a file, perhaps in a folder that cannot be written: no bar may be lost to it.
        """
        asked = set(slots)
        kept = {bar.open_time: bar for bar in page if bar.open_time in asked}
        if kept:
            await self._database.upsert_vendor_bars([kept[slot] for slot in sorted(kept)])
        if self._run.note_absences(reached, kept, before=self._clock.now() - FINAL_AFTER_S):
            self._absences.save(self._run.absent)
        self._run.settle(reached, kept)


def _join(queue: deque[Chunk], run: int) -> None:
    """Make one question of what is left of a run after a page of nothing.

    Before the vendor's history begins there is nothing for years; where there is something after
    all, the answer is the newest page of it, and no call is lost.
    """
    same = [chunk for chunk in queue if chunk.run == run]
    if len(same) > 1:
        others = [chunk for chunk in queue if chunk.run != run]
        queue.clear()
        slots = tuple(slot for chunk in reversed(same) for slot in chunk.slots)
        queue.extend([Chunk(slots, same[-1].start, run), *others])
