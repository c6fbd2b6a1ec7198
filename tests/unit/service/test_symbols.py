"""Several symbols side by side: one feed, own hours, own failures."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Literal, cast

import pytest

from enhanced_websocket_service.errors import (
    JournalError,
    L0Error,
    NotEntitled,
    VendorError,
    VendorUnavailable,
)
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.feeds.base import BackgroundFeed, FeedStatus
from enhanced_websocket_service.l0.validator import Assessment
from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.calendar import TradingCalendar, named_calendar
from enhanced_websocket_service.market.events import Event
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.service.lifecycle import Lifecycle
from enhanced_websocket_service.service.pipeline import Pipeline, Record
from enhanced_websocket_service.service.states import ANY, ServiceState, StateChange, StateMachine
from enhanced_websocket_service.service.symbol_lifecycle import Schedule
from enhanced_websocket_service.telemetry import Metrics

from .test_lifecycle import Flag, SetClock

OPEN = int(datetime(2025, 1, 20, 13, 0, tzinfo=UTC).timestamp())  # a Monday
CLOSE = int(datetime(2025, 1, 20, 17, 55, tzinfo=UTC).timestamp())
MIDNIGHT = int(datetime(2025, 1, 21, tzinfo=UTC).timestamp())
FRIDAY_EVENING = int(datetime(2025, 1, 24, 22, 0, tzinfo=UTC).timestamp())
CALENDARS = {
    "USDCOP": TradingCalendar,
    "EURUSD": lambda: named_calendar("fx"),
    "BTCUSD": lambda: named_calendar("24x7"),
}
EXCLUDED = "BTCUSD is available starting with the Grow plan."


class Told(BackgroundFeed):
    """A feed that remembers which symbols it was to collect."""

    def __init__(self, made: "Market") -> None:
        super().__init__("told")
        self._market = made

    def set_symbols(self, symbols: Collection[str]) -> None:
        self._market.collected.append(set(symbols))

    async def _run(self) -> None:
        while True:
            said = await self._market.said.get()
            if isinstance(said, BaseException):
                raise said
            self.put(said)

    def status(self) -> FeedStatus:
        raise AssertionError("nobody asks for it here")


class History:
    """Everything is there, but for the symbols whose questions the vendor refuses."""

    def __init__(self) -> None:
        self.refused: dict[str, str] = {}
        self.poor: dict[str, VendorError | None] = {}
        """Symbols that have partial bars alone, and what the vendor says when asked for whole ones: ``None``,
        that it has none.
        """
        self.repairs: list[str] = []

    async def assess(self, symbol: str) -> Assessment:
        lacks = symbol in self.refused
        poor = symbol in self.poor
        return Assessment(
            symbol=symbol,
            data_freshness_hours=None if lacks else 1.0,
            missing_slots=400 if lacks else 0,
            is_fresh=not lacks,
            completeness_percentage=0.0 if lacks else 50.0 if poor else 100.0,
            is_complete=not lacks and not poor,
            expected=400,
            present=0 if lacks else 200 if poor else 400,
            last_bar_end=None,
            gaps=tuple(range(200)) if poor else (),
            partial=tuple(range(200)) if poor else (),
            reasons=(f"{symbol}: the database has no bar at all.",)
            if lacks
            else (f"{symbol}: 200 of 400 slots are present.",)
            if poor
            else (),
        )

    async def repair(self, symbol: str) -> None:
        self.repairs.append(symbol)
        if symbol in self.refused:
            raise L0Error(self.refused[symbol])
        if (said := self.poor.get(symbol)) is not None:
            raise L0Error(str(said)) from said

    async def check_files(self) -> None:
        raise AssertionError("nobody asks for it here")


class Market:
    """A service of three symbols, without its outer parts."""

    def __init__(self, now: float, policy: Literal["strict", "degraded"]) -> None:
        self.clock = SetClock(now)
        self.said: asyncio.Queue[Quote | BaseException] = asyncio.Queue()
        self.collected: list[set[str]] = []
        self.feeds = 0
        self.changes: list[StateChange] = []
        self.bars: list[BarUpdate] = []
        self.history, self.flag = History(), Flag()
        self.failures = Failures(self.clock)
        self.states = StateMachine(now, allowed=ANY)
        calendars = {symbol: make() for symbol, make in CALENDARS.items()}
        self.pipeline = Pipeline(
            calendars, journal=self, publish=self.publish, metrics=Metrics(), epoch=1
        )
        self.lifecycle = Lifecycle(
            clock=self.clock,
            calendars=calendars,
            states=self.states,
            flag=cast(Any, self.flag),
            history=self.history,
            pipeline=self.pipeline,
            connect=self.connect,
            make_feed=self.make_feed,
            on_change=self.changes.append,
            schedule=Schedule(startup_timeout_s=600.0, l0_policy=policy),
            failures=self.failures,
        )

    def append(self, records: Sequence[Record]) -> None:
        """The journal."""

    def publish(self, events: Sequence[Event]) -> None:
        self.bars += [event for event in events if isinstance(event, BarUpdate)]

    async def connect(self) -> None:
        """The database is there."""

    def make_feed(self) -> Told:
        self.feeds += 1
        return Told(self)

    def say(self, symbol: str, stamp: int) -> None:
        self.said.put_nowait(Quote(symbol, stamp, 4100.0, "simulator_websocket", float(stamp)))

    def states_of(self) -> dict[str, str]:
        return {symbol: self.lifecycle.state_of(symbol).value for symbol in CALENDARS}


@asynccontextmanager
async def market(
    now: float,
    prepare: Callable[[Market], None] = lambda _: None,
    policy: Literal["strict", "degraded"] = "strict",
) -> AsyncIterator[Market]:
    one = Market(now, policy)
    prepare(one)
    running = asyncio.create_task(one.lifecycle.run())
    try:
        yield one
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


def without_btc(one: Market) -> None:
    one.history.refused["BTCUSD"] = EXCLUDED


async def test_a_symbol_that_the_plan_excludes_stops_no_other() -> None:
    async with market(OPEN + 600.0, without_btc) as one:
        await one.clock.pass_time(10)
        assert one.states_of() == {"USDCOP": "active", "EURUSD": "active", "BTCUSD": "error"}
        assert one.collected[-1] == {"USDCOP", "EURUSD"}
        assert one.feeds == 1
        assert one.states.state is ServiceState.ACTIVE
        reason = one.states.current.reason
        # Each until its own close, in the time of its own market.
        assert "USDCOP: Collecting until 2025-01-20T12:55:00-05:00." in reason
        assert "EURUSD: Collecting until 2025-01-20T17:00:00-05:00." in reason
        assert "BTCUSD" not in reason
        # It is named beside the repair that failed, and its reason says what is the matter.
        named = {failure.part: failure.reason for failure in one.failures.present}
        assert set(named) == {"L0 repair of BTCUSD", "BTCUSD"}
        assert named["BTCUSD"].startswith("error: BTCUSD: the database has no bar at all.")
        assert EXCLUDED.rstrip(".") in named["BTCUSD"]
        # And goes on as soon as it can.
        one.history.refused.clear()
        await one.clock.pass_time(70)
        assert one.states_of()["BTCUSD"] == "active"
        assert one.collected[-1] == set(CALENDARS)
        assert one.failures.present == ()


async def test_when_nothing_works_the_service_is_in_error() -> None:
    def without_any(one: Market) -> None:
        one.history.refused = dict.fromkeys(CALENDARS, "The vendor answered 503.")

    async with market(OPEN + 600.0, without_any) as one:
        await one.clock.pass_time(5)
        assert one.states.state is ServiceState.ERROR
        assert all(symbol in one.states.current.reason for symbol in CALENDARS)
        assert one.collected == []


async def test_the_feed_collects_those_whose_sessions_are_open() -> None:
    async with market(CLOSE - 20.0) as one:
        await one.clock.pass_time(10)
        assert one.collected[-1] == set(CALENDARS)
        one.say("USDCOP", CLOSE - 10)
        await one.clock.pass_time(1)
        assert one.pipeline.offsets["USDCOP"] == 1
        await one.clock.pass_time(20)
        assert one.states_of() == {
            "USDCOP": "market_closed",
            "EURUSD": "active",
            "BTCUSD": "active",
        }
        assert one.collected[-1] == {"EURUSD", "BTCUSD"}
        assert one.states.state is ServiceState.ACTIVE
        one.say("EURUSD", CLOSE + 5)
        await one.clock.pass_time(1)
        assert one.pipeline.offsets["EURUSD"] == 1
        assert one.feeds == 1


async def test_sessions_without_a_pause_are_collected_without_one() -> None:
    async with market(MIDNIGHT - 30.0) as one:
        await one.clock.pass_time(5)
        assert one.states_of()["BTCUSD"] == "active"
        changes = len(one.collected)
        await one.clock.pass_time(60)
        session = one.lifecycle.symbols["BTCUSD"].states.current
        assert session.state is ServiceState.ACTIVE
        assert session.reason == "Collecting until 2025-01-22T00:00:00+00:00."
        assert len(one.collected) == changes
        assert one.feeds == 1
        states = [change.state for change in one.lifecycle.symbols["BTCUSD"].states.history]
        assert states.count(ServiceState.MARKET_CLOSED) == 0


async def test_a_week_of_foreign_exchange_ends_on_friday_evening() -> None:
    async with market(FRIDAY_EVENING - 20.0) as one:
        await one.clock.pass_time(10)
        assert one.states_of() == {
            "USDCOP": "market_closed",
            "EURUSD": "active",
            "BTCUSD": "active",
        }
        await one.clock.pass_time(30)
        assert one.states_of()["EURUSD"] == "market_closed"
        assert one.collected[-1] == {"BTCUSD"}
        reason = one.lifecycle.symbols["EURUSD"].states.current.reason
        assert "the next opens 2025-01-26T17:00:00-05:00" in reason


async def test_a_feed_that_fails_is_begun_anew_by_those_who_were_collected() -> None:
    async with market(CLOSE + 3600.0) as one:
        await one.clock.pass_time(5)
        assert one.states_of() == {
            "USDCOP": "market_closed",
            "EURUSD": "active",
            "BTCUSD": "active",
        }
        one.said.put_nowait(JournalError("No space left on device"))
        await one.clock.pass_time(1)
        # Who was not collected has not failed.
        assert one.states_of() == {"USDCOP": "market_closed", "EURUSD": "error", "BTCUSD": "error"}
        await one.clock.pass_time(5)
        assert one.states_of()["EURUSD"] == one.states_of()["BTCUSD"] == "active"
        assert one.collected[-1] == {"EURUSD", "BTCUSD"}
        assert one.feeds == 2
        one.say("BTCUSD", CLOSE + 3620)
        await one.clock.pass_time(1)
        assert one.pipeline.offsets["BTCUSD"] == 1


async def test_what_all_need_fails_for_all_and_is_one_change_of_the_service() -> None:
    async with market(OPEN + 600.0) as one:
        await one.clock.pass_time(5)
        before = len(one.changes)
        one.lifecycle.interrupt(JournalError("No space left on device"))
        await one.clock.pass_time(1)
        assert set(one.states_of().values()) == {"error"}
        assert [change.state for change in one.changes[before:]] == [ServiceState.ERROR]
        await one.clock.pass_time(5)
        assert set(one.states_of().values()) == {"active"}
        one.lifecycle.enter_shutdown("Stopping.")
        assert set(one.states_of().values()) == {"shutdown"}
        assert one.states.state is ServiceState.SHUTDOWN


async def test_time_that_a_symbol_missed_is_a_gap_of_its_bars_alone() -> None:
    async with market(OPEN + 600.0) as one:
        await one.clock.pass_time(5)
        one.said.put_nowait(JournalError("No space left on device"))
        await one.clock.pass_time(10)
        for symbol in CALENDARS:
            one.say(symbol, OPEN + 620)
        await one.clock.pass_time(300)
        partial = {
            update.bar.symbol: update.bar.certificate.partial
            for update in one.bars
            if update.bar.open_time == OPEN + 600 and update.bar.certificate is not None
        }
        assert partial == dict.fromkeys(CALENDARS, True)


async def test_a_missing_flag_holds_up_each_symbol_until_it_is_overdue() -> None:
    def without_flag(one: Market) -> None:
        one.flag.problem = "There is no ready flag."
        without_btc(one)

    async with market(OPEN + 600.0, without_flag) as one:
        await one.clock.pass_time(300, step=5.0)
        assert set(one.states_of().values()) == {"waiting_l0"}
        assert one.states.current.reason == ("USDCOP, EURUSD, BTCUSD: There is no ready flag.")
        await one.clock.pass_time(400, step=5.0)
        assert one.states_of() == {"USDCOP": "active", "EURUSD": "active", "BTCUSD": "error"}
        assert "No L0 ready signal after 10 minutes" in (
            one.lifecycle.symbols["BTCUSD"].states.current.reason
        )


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (NotEntitled("History begins with the Grow plan."), "No API key may ask the vendor"),
        (None, "The vendor was asked, and has no whole bars"),
    ],
)
@pytest.mark.parametrize("policy", ["strict", "degraded"])
async def test_partial_bars_that_no_key_can_replace_are_no_error(
    policy: Literal["strict", "degraded"], said: VendorError | None, told: str
) -> None:
    def thin(one: Market) -> None:
        one.history.poor["USDCOP"] = said

    async with market(OPEN + 600.0, thin, policy) as one:
        await one.clock.pass_time(130, step=5.0)
        own = one.lifecycle.symbols["USDCOP"].states
        assert ServiceState.ERROR not in {change.state for change in own.history}
        reason = own.current.reason
        assert "200 of 400 slots are present" in reason
        if policy == "degraded":
            assert own.state is ServiceState.ACTIVE
        else:
            assert own.state is ServiceState.WAITING_L0
            assert told in reason
            assert "L0_POLICY=degraded goes live without them" in reason
            one.history.poor.clear()  # somebody brought them
            await one.clock.pass_time(65, step=5.0)
            assert own.state is ServiceState.ACTIVE


async def test_partial_bars_that_the_vendor_may_replace_later_are_an_error_until_then() -> None:
    def thin(one: Market) -> None:
        one.history.poor["USDCOP"] = VendorUnavailable("The vendor answered 503.")

    async with market(OPEN + 600.0, thin) as one:
        await one.clock.pass_time(5)
        assert one.states_of()["USDCOP"] == "error"
