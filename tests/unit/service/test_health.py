"""``system_health``: no change of state is forgotten while the database is away."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.errors import DatabaseUnavailable
from enhanced_websocket_service.service import health
from enhanced_websocket_service.service.health import HealthMonitor
from enhanced_websocket_service.service.states import ServiceState, StateMachine
from tests.waiting import eventually


class Store:
    def __init__(self) -> None:
        self.away = True
        self.rows: list[tuple[str, dict[str, Any], str | None]] = []
        self.written = asyncio.Event()

    async def ping(self) -> float:
        if self.away:
            raise DatabaseUnavailable("PostgreSQL cannot be reached (refused).")
        return 1.4

    async def record_health(
        self,
        status: str,
        details: dict[str, Any],
        response_time_ms: float | None = None,
        error_message: str | None = None,
    ) -> None:
        if self.away:
            raise DatabaseUnavailable("PostgreSQL cannot be reached (refused).")
        self.rows.append((status, details, error_message))
        self.written.set()


async def test_the_story_of_an_outage_is_told_once_it_is_over() -> None:
    store, states = Store(), StateMachine(0.0)
    monitor = HealthMonitor(
        clock=SystemClock(),
        states=states,
        store=store,
        ping_database=store.ping,
        ping_redis=None,
        details=lambda: {"ticks": 3},
    )
    for state, reason in (
        (ServiceState.ERROR, "PostgreSQL cannot be reached."),
        (ServiceState.INITIALIZING, "Trying again."),
    ):
        change = states.change(state, reason, 1_700_000_000.0)
        assert change is not None
        monitor.note(change)
    await monitor.write_pending()
    assert store.rows == []
    store.away = False
    running = asyncio.create_task(monitor.run())
    async with asyncio.timeout(10):
        while len(store.rows) < 2:
            store.written.clear()
            await store.written.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [(status, error) for status, _, error in store.rows] == [
        ("error", "PostgreSQL cannot be reached."),
        ("initializing", None),
    ]
    assert store.rows[0][1]["at"] == "2023-11-14T17:13:20-05:00"
    assert monitor.database.connected
    assert monitor.database.response_time_ms == 1
    assert not monitor.redis.connected
    assert monitor.redis.error == "REDIS_URL is not set."


async def test_the_rows_in_between_say_why_the_state_is_error() -> None:
    store, states = Store(), StateMachine(0.0)
    store.away = False
    monitor = HealthMonitor(
        clock=SystemClock(),
        states=states,
        store=store,
        ping_database=store.ping,
        ping_redis=None,
        details=lambda: {"ticks": 3},
        interval_s=0.0,
    )
    states.change(ServiceState.ERROR, "The disk is full.", 1_700_000_000.0)
    running = asyncio.create_task(monitor.run())
    async with asyncio.timeout(10):
        await store.written.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    status, details, error = store.rows[0]
    assert (status, details["ticks"], error) == ("error", 3, "The disk is full.")


async def test_a_ping_that_fails_says_why() -> None:
    store = Store()
    monitor = HealthMonitor(
        clock=SystemClock(),
        states=StateMachine(0.0),
        store=store,
        ping_database=store.ping,
        ping_redis=store.ping,
        details=dict,
    )
    running = asyncio.create_task(monitor.run())
    async with asyncio.timeout(10):
        while monitor.redis.error in (None, "Not asked yet."):
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert not monitor.database.connected
    assert monitor.database.error == "PostgreSQL cannot be reached (refused)."


class SetClock(SystemClock):
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.at = 1_750_000_000.0
        self.passed = 0.0

    def now(self) -> float:
        return self.at

    def elapsed(self) -> float:
        return self.passed


async def test_rows_go_on_when_the_clock_is_set_back() -> None:
    """The proof of continuity reads them: an hour without rows would be an hour without a witness."""
    store, clock = Store(), SetClock()
    store.away = False
    monitor = HealthMonitor(
        clock=clock,
        states=StateMachine(0.0),
        store=store,
        ping_database=store.ping,
        ping_redis=None,
        details=dict,
        interval_s=60.0,
    )
    running = asyncio.create_task(monitor.run())
    async with asyncio.timeout(10):
        while not monitor.database.connected:  # by then it has read the clock
            await asyncio.sleep(0)
        for count, moved in ((1, 0.0), (2, -3600.0), (3, 86_400.0)):
            clock.at += moved
            clock.passed += 61.0
            while len(store.rows) < count:
                monitor._wake.set()  # else it looks every two seconds
                await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert len(store.rows) == 3


async def test_a_server_that_hangs_is_told_although_its_driver_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """asyncpg does not give a query up before the server has taken note, or half a minute is over."""
    monkeypatch.setattr(health, "PING_TIMEOUT_S", 0.01)
    monkeypatch.setattr(health, "PING_EVERY_S", 0.01)
    answers, asked = asyncio.Event(), 0
    answers.set()

    async def ping() -> float:
        nonlocal asked
        asked += 1
        while not answers.is_set():
            with suppress(asyncio.CancelledError):
                await answers.wait()
        return 1.4

    monitor = HealthMonitor(
        clock=SystemClock(),
        states=StateMachine(0.0),
        store=Store(),
        ping_database=ping,
        ping_redis=None,
        details=dict,
    )

    async def is_connected(wanted: bool) -> bool | None:
        return monitor.database.connected is wanted or None

    running = asyncio.create_task(monitor.run())
    await eventually(lambda: is_connected(True), 10, "an answer")
    answers.clear()
    await eventually(lambda: is_connected(False), 10, "no answer")
    before = asked
    assert monitor.database.error == "No answer within 0.01 s."
    for _ in range(5):
        await asyncio.wait_for(monitor._asked_database.health(), 10)
    assert asked == before, "each question would hold a connection"
    answers.set()
    await eventually(lambda: is_connected(True), 10, "an answer again")
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_a_row_pushed_out_while_it_is_written_takes_no_other_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "MAX_PENDING_ROWS", 2)
    states = StateMachine(0.0)

    def note(reason: str) -> None:
        change = states.change(ServiceState.ERROR, reason, 0.0)
        assert change is not None
        monitor.note(change)

    class Slow(Store):
        async def record_health(self, *row: Any) -> None:
            await super().record_health(*row)
            if len(self.rows) == 1:
                note("third")

    store = Slow()
    store.away = False
    monitor = HealthMonitor(
        clock=SystemClock(),
        states=states,
        store=store,
        ping_database=store.ping,
        ping_redis=None,
        details=dict,
    )
    note("first")
    note("second")
    await monitor.write_pending()
    assert [error for _, _, error in store.rows] == ["first", "second", "third"]
