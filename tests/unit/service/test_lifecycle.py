"""The order of a day, where the clock or a feed does what they should not."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from enhanced_websocket_service.errors import (
    DatabaseUnavailable,
    EwsError,
    JournalError,
    L0Error,
)
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.feeds.base import BackgroundFeed, FeedStatus
from enhanced_websocket_service.l0.readiness import FlagState
from enhanced_websocket_service.l0.validator import Assessment
from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.events import Event
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.service.lifecycle import Lifecycle
from enhanced_websocket_service.service.pipeline import Pipeline, Record
from enhanced_websocket_service.service.states import ServiceState, StateMachine
from enhanced_websocket_service.service.symbol_lifecycle import Schedule
from enhanced_websocket_service.telemetry import Metrics

OPEN = int(datetime(2025, 1, 20, 13, 0, tzinfo=UTC).timestamp())
CLOSE = int(datetime(2025, 1, 20, 17, 55, tzinfo=UTC).timestamp())
TURNS = 50
"""Of the event loop, after which whatever could go on has."""


class SetClock:
    """A machine's clock that somebody sets; what sleeps for a while does not notice, as with the real one."""

    def __init__(self, now: float) -> None:
        self._ahead = now
        self._passed = 0.0
        self._moved = asyncio.Event()

    def now(self) -> float:
        return self._ahead + self._passed

    def elapsed(self) -> float:
        return self._passed

    async def sleep(self, seconds: float) -> None:
        end = self._passed + seconds
        while self._passed < end:
            await self._moved.wait()

    async def sleep_until(self, instant: float) -> None:
        while self.now() < instant:
            await self._moved.wait()

    def span(self, seconds: float, at_least_real: float = 0.0) -> float:
        return max(seconds, at_least_real)

    def set(self, seconds: float) -> None:
        """Set it ahead, or back."""
        self._ahead += seconds

    async def pass_time(self, seconds: float, step: float = 1.0) -> None:
        for _ in range(round(seconds / step)):
            self._passed += step
            moved, self._moved = self._moved, asyncio.Event()
            moved.set()
            for _ in range(TURNS):
                await asyncio.sleep(0)


class Quotes(BackgroundFeed):
    """Delivers what the test says; ``last`` is what was read when it was closed."""

    def __init__(self, said: "asyncio.Queue[Quote | BaseException]", last: list[Quote]) -> None:
        super().__init__("quotes")
        self._said = said
        self._last = last

    async def _run(self) -> None:
        try:
            while True:
                said = await self._said.get()
                if isinstance(said, BaseException):
                    raise said
                self.put(said)
        finally:
            for quote in self._last:
                self.put(quote)

    def set_symbols(self, symbols: Collection[str]) -> None:
        assert symbols == {"USDCOP"}

    def status(self) -> FeedStatus:
        raise AssertionError("nobody asks for it here")


class Flag:
    """A ready flag; ``problem`` when it does not say ready."""

    def __init__(self) -> None:
        self.problem: str | None = None

    def read(self) -> FlagState:
        return FlagState(exists=False, ready=self.problem is None, problem=self.problem)

    async def wait(self, on_change: Callable[[FlagState], None]) -> None:
        told: FlagState | None = None
        while (seen := self.read()) != told or not seen.ready:
            if seen != told:
                on_change(seen)
                told = seen
            await asyncio.sleep(0)


class History:
    """L0 data that lacks everything while the vendor says ``away``."""

    def __init__(self) -> None:
        self.away: str | None = None
        self.repairs = 0

    async def assess(self, symbol: str) -> Assessment:
        return cast(Any, _Good() if self.away is None else _Nothing())

    async def repair(self, symbol: str) -> None:
        self.repairs += 1
        if self.away:
            raise L0Error(self.away)

    async def check_files(self) -> None:
        raise AssertionError("nobody asks for it here")


class _Good:
    is_fresh = is_complete = True
    data_freshness_hours = completeness_percentage = missing_slots = 0


class _Nothing(_Good):
    is_fresh = is_complete = lacks_whole_bars_only = False
    reasons = ("USDCOP: there is no bar. Run `l0 backfill`.", "USDCOP: 0 of 431 slots are there")


class Day:
    """A lifecycle with everything around it that a session needs."""

    def __init__(self, now: float, schedule: Schedule | None = None) -> None:
        self.clock = SetClock(now)
        self.said: asyncio.Queue[Quote | BaseException] = asyncio.Queue()
        self.last: list[Quote] = []
        self.bars: list[BarUpdate] = []
        self.full = False
        self.history, self.flag = History(), Flag()
        self.database: EwsError | None = None
        self.failures = Failures(self.clock)
        calendar = TradingCalendar()
        self.states = StateMachine(now)
        self.pipeline = Pipeline(
            {"USDCOP": calendar}, journal=self, publish=self.publish, metrics=Metrics(), epoch=1
        )
        self.lifecycle = Lifecycle(
            clock=self.clock,
            calendars={"USDCOP": calendar},
            states=self.states,
            flag=cast(Any, self.flag),
            history=self.history,
            pipeline=self.pipeline,
            connect=self.connect,
            make_feed=lambda: Quotes(self.said, self.last),
            on_change=lambda change: None,
            schedule=schedule or Schedule(),
            failures=self.failures,
        )

    def append(self, records: Sequence[Record]) -> None:
        """The journal."""
        if self.full:
            raise JournalError("No space left on device")

    def publish(self, events: Sequence[Event]) -> None:
        self.bars += [event for event in events if isinstance(event, BarUpdate)]

    async def connect(self) -> None:
        """The database is there, or not."""
        if self.database is not None:
            raise self.database

    def say(self, stamp: int) -> None:
        self.said.put_nowait(quote(stamp))


def quote(stamp: int) -> Quote:
    return Quote("USDCOP", stamp, 4100.0, "simulator_websocket", float(stamp))


@asynccontextmanager
async def day(now: float, schedule: Schedule | None = None) -> AsyncIterator[Day]:
    one = Day(now, schedule)
    running = asyncio.create_task(one.lifecycle.run())
    try:
        yield one
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_bars_are_closed_at_once_after_a_clock_that_was_ahead_is_set_back() -> None:
    async with day(OPEN + 3600.0) as one:  # an hour ahead
        await one.clock.pass_time(5)
        assert one.states.state is ServiceState.ACTIVE
        one.clock.set(-3600.0)
        await one.clock.pass_time(5)
        one.say(OPEN + 9)
        await one.clock.pass_time(300)
        assert [update.bar.open_time for update in one.bars] == [OPEN]


async def test_a_session_goes_on_when_a_clock_that_jumped_past_its_close_is_set_back() -> None:
    async with day(OPEN + 600.0) as one:
        await one.clock.pass_time(5)
        one.clock.set(6 * 3600.0)
        await one.clock.pass_time(10)
        assert one.states.state is ServiceState.MARKET_CLOSED
        one.clock.set(-6 * 3600.0)
        await one.clock.pass_time(5)
        assert one.states.state is ServiceState.ACTIVE
        one.say(OPEN + 620)
        await one.clock.pass_time(1)
        assert one.pipeline.counts.ticks == 1


async def test_a_cancellation_that_leaks_out_of_the_feed_does_not_end_the_collection() -> None:
    async with day(OPEN + 600.0) as one:
        await one.clock.pass_time(5)
        one.said.put_nowait(asyncio.CancelledError())
        await one.clock.pass_time(1)
        assert one.states.state is ServiceState.ERROR
        assert "ended without being asked to" in one.states.current.reason
        await one.clock.pass_time(5)
        assert one.states.state is ServiceState.ACTIVE
        one.say(OPEN + 610)
        await one.clock.pass_time(1)
        assert one.pipeline.counts.ticks == 1


@pytest.mark.parametrize("full", [False, True])
async def test_what_the_feed_had_read_at_the_close_is_taken_or_told(full: bool) -> None:
    async with day(CLOSE - 5.0) as one:
        await one.clock.pass_time(4)
        one.last.append(quote(CLOSE - 1))
        with capture_logs() as logs:
            await one.clock.pass_time(5)
            one.full = full
            await one.clock.pass_time(2)
        assert one.states.state is ServiceState.MARKET_CLOSED
        assert one.pipeline.counts.ticks == (0 if full else 1)
        told = [
            log for log in logs if log["event"] == "The last quotes of the feed could not be taken"
        ]
        assert len(told) == full


AWAY = "The vendor answered 503."


@asynccontextmanager
async def in_error(schedule: Schedule | None = None) -> AsyncIterator[Day]:
    """A day whose data cannot be repaired, in the session, after the first repair."""
    one = Day(OPEN + 600.0, schedule)
    one.history.away = AWAY
    running = asyncio.create_task(one.lifecycle.run())
    try:
        await one.clock.pass_time(5)
        assert one.states.state is ServiceState.ERROR
        yield one
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_the_cause_of_a_failed_repair_stays_whatever_is_measured_meanwhile() -> None:
    async with in_error() as one:
        for _ in range(20 * 60):
            await one.clock.pass_time(1)
            reason = one.states.current.reason
            assert AWAY.rstrip(".") in reason
            assert "The last repair failed at 2025-01-20T08:" in reason
            assert "; the next is due 2025-01-20T08:" in reason
        assert one.history.repairs == 5  # after 0, 1, 3, 7 and 15 minutes
        changes = [change.state for change in one.states.history]
        # Measured once a minute, but nothing changed except by a repair.
        assert changes.count(ServiceState.ERROR) == one.history.repairs
        assert changes.count(ServiceState.CHECKING_DATA) == 2
        assert "`.;" not in str(one.states.history)
        one.history.away = None
        await one.clock.pass_time(61)
        assert one.states.state is ServiceState.ACTIVE
        assert one.failures.present == ()
        path = [change.state for change in one.states.history][-3:]
        assert path == [ServiceState.CHECKING_DATA, ServiceState.READY, ServiceState.ACTIVE]


async def test_a_flag_that_is_taken_away_after_a_failed_repair_does_not_take_the_cause_along() -> (
    None
):
    async with in_error() as one:
        one.flag.problem = "There is no ready flag"
        await one.clock.pass_time(10)
        assert one.states.state is ServiceState.WAITING_L0
        assert "There is no ready flag. The last repair failed at" in one.states.current.reason
        assert AWAY.rstrip(".") in one.states.current.reason


async def test_a_flag_that_never_comes_is_an_error_until_it_does() -> None:
    async with day(OPEN + 600.0, Schedule(startup_timeout_s=600.0)) as one:
        one.flag.problem = "There is no ready flag."
        one.history.away = AWAY
        await one.clock.pass_time(300)
        assert one.states.state is ServiceState.WAITING_L0
        for _ in range(3):
            await one.clock.pass_time(700, step=5.0)
            assert one.states.state is ServiceState.ERROR
            assert "No L0 ready signal after 10 minutes" in one.states.current.reason
        # Starting, waiting, repairing, and an error that tells of the last repair.
        assert len(one.states.history) == 3 + one.history.repairs
        changes = [change.state for change in one.states.history]
        assert changes[:3] == ["initializing", "waiting_l0", "checking_data"]
        assert set(changes[3:]) == {ServiceState.ERROR}
        one.flag.problem = "The ready flag says no."
        await one.clock.pass_time(700, step=5.0)
        assert "waiting_l0" in [change.state for change in one.states.history][3:]
        one.flag.problem = one.history.away = None
        await one.clock.pass_time(120)
        assert one.states.state is ServiceState.ACTIVE


async def test_without_a_flag_the_data_is_repaired_and_measured_every_minute() -> None:
    """C7: data that becomes good is noticed within a minute, not after another hour; and repaired."""
    schedule = Schedule(startup_timeout_s=3600.0)
    async with day(OPEN - 3600.0, schedule) as one:
        one.flag.problem = "There is no ready flag."
        one.history.away = AWAY
        await one.clock.pass_time(3590, step=5.0)
        assert (one.states.state, one.history.repairs) == (ServiceState.WAITING_L0, 0)
        await one.clock.pass_time(20, step=5.0)
        assert one.states.state is ServiceState.ERROR
        assert one.history.repairs == 1
        await one.clock.pass_time(130, step=5.0)
        assert one.history.repairs == 2  # after 0, 1, 3, 7 and 15 minutes: they cost credits
        one.history.away = None  # somebody else has mended it
        await one.clock.pass_time(61)
        assert one.states.state is ServiceState.ACTIVE


async def test_a_failure_does_not_begin_the_time_out_of_the_flag_anew() -> None:
    async with day(OPEN + 600.0, Schedule(startup_timeout_s=600.0)) as one:
        one.flag.problem = "There is no ready flag."
        await one.clock.pass_time(500, step=5.0)
        one.lifecycle.interrupt(JournalError("No space left on device"))
        await one.clock.pass_time(110, step=5.0)
        assert one.states.state is ServiceState.ACTIVE


async def test_another_cause_does_not_stay_in_the_state_while_the_flag_is_waited_for_again() -> (
    None
):
    async with day(OPEN + 600.0, Schedule(startup_timeout_s=600.0)) as one:
        one.flag.problem = "There is no ready flag."
        one.history.away = AWAY
        await one.clock.pass_time(700, step=5.0)
        assert "No L0 ready signal after 10 minutes" in one.states.current.reason
        one.lifecycle.interrupt(JournalError("No space left on device"))
        await one.clock.pass_time(1)
        assert one.states.current.reason == "No space left on device."
        await one.clock.pass_time(10, step=5.0)
        assert "No L0 ready signal after 10 minutes" in one.states.current.reason


async def test_a_database_that_stays_away_is_told_once_and_left_when_it_is_back() -> None:
    async with in_error() as one:
        one.database = DatabaseUnavailable("PostgreSQL cannot be reached.")
        await one.clock.pass_time(600)
        assert one.states.current.reason == "PostgreSQL cannot be reached."
        before = len(one.states.history)
        await one.clock.pass_time(600)
        assert len(one.states.history) == before
        one.database = one.history.away = None
        await one.clock.pass_time(6)
        assert one.states.state is ServiceState.ACTIVE


async def test_going_live_on_bad_data_says_why_it_was_not_repaired() -> None:
    async with day(OPEN + 600.0, Schedule(l0_policy="degraded")) as one:
        one.history.away = AWAY
        await one.clock.pass_time(5)
        assert one.states.state is ServiceState.ACTIVE
        assert AWAY.rstrip(".") in one.states.current.reason
        assert "the next is due" not in one.states.current.reason
        assert [failure.part for failure in one.failures.present] == ["L0 repair"]
