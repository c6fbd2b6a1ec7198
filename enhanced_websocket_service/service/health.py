"""Keeps an eye on the parts, and writes ``system_health``: every state change, and a row now and then.

Rows wait in a bounded queue while PostgreSQL is away, so that the story of an outage is told once
it is over. Pings are in real time: they measure the machine, not the market.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import EwsError
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.calendar import iso_local
from enhanced_websocket_service.serving.health import Level
from enhanced_websocket_service.serving.models import HealthChange, PartHealth

from .states import ServiceState, StateChange, StateMachine

log = structlog.get_logger(__name__)

ROWS: Final = "system_health"
"""The part of ``Failures``: the rows of that table, which wait here meanwhile."""
PING_EVERY_S = 2.0
PING_TIMEOUT_S = 2.0
MAX_PENDING_ROWS = 1000
MAX_CHANGES = 50


class HealthStore(Protocol):
    """Where the rows go."""

    async def record_health(
        self,
        status: str,
        details: dict[str, Any],
        response_time_ms: float | None = None,
        error_message: str | None = None,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class _Row:
    status: str
    details: dict[str, Any]
    error: str | None


def _row(change: StateChange, details: dict[str, Any]) -> _Row:
    """Every row in ERROR has its reason: people and the proof of continuity look at the newest."""
    error = change.reason if change.state is ServiceState.ERROR else None
    return _Row(change.state.value, details, error)


class HealthMonitor:
    """Pings the database and Redis; ``database`` and ``redis`` hold the latest result.

    :param ping_redis: ``None`` when no Redis is configured.
    :param details: what a periodic row says beside the state.
    :param epoch: of this process; told in every row.
    :param symbols: their states; told in every row where there are several.
    :param failures: told when a row cannot be written, and when one is again.
    :param judge: the level of ``/health`` and its problems, now.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        states: StateMachine,
        store: HealthStore,
        ping_database: Callable[[], Awaitable[float]],
        ping_redis: Callable[[], Awaitable[float]] | None,
        details: Callable[[], Mapping[str, Any]],
        interval_s: float = 60.0,
        epoch: int = 0,
        symbols: Callable[[], Mapping[str, StateChange]] = lambda: {},
        failures: Failures | None = None,
        judge: Callable[[], tuple[Level, list[str]]] = lambda: ("healthy", []),
    ) -> None:
        self._judge = judge
        self.changes: deque[HealthChange] = deque(maxlen=MAX_CHANGES)
        """The last changes of the level, oldest first."""
        self._clock = clock
        self._states = states
        self._store = store
        self._asked_database = _Part(ping_database)
        self._asked_redis = None if ping_redis is None else _Part(ping_redis)
        self._details = details
        self._interval_s = interval_s
        self.epoch = epoch
        self._failures = failures or Failures(clock)
        self._symbols = symbols
        self._rows: deque[_Row] = deque(maxlen=MAX_PENDING_ROWS)
        self._wake = asyncio.Event()
        self.database = PartHealth(connected=False, error="Not asked yet.")
        self.redis = PartHealth(
            connected=False,
            error="REDIS_URL is not set." if ping_redis is None else "Not asked yet.",
        )

    def note(self, change: StateChange) -> None:
        """Queue a row for a state change."""
        details = {"reason": change.reason, **self._stamp(change.at)}
        self._rows.append(_row(change, details))
        self._wake.set()

    def note_dead(self, dead: Mapping[str, str], at: float) -> None:
        """Queue a row that says of which symbols nothing brings prices now, and why."""
        details = {"dead": dict(dead), **self._stamp(at)}
        self._rows.append(_row(self._states.current, details))
        self._wake.set()

    def note_symbols(self, at: float) -> None:
        """Queue a row that says how each symbol is, where the state of the service stays as it is."""
        self._rows.append(_row(self._states.current, self._stamp(at)))
        self._wake.set()

    async def run(self) -> None:
        """Ping and write until cancelled."""
        try:
            await self._watch()
        finally:
            self._asked_database.forget()
            if self._asked_redis is not None:
                self._asked_redis.forget()

    async def _watch(self) -> None:
        next_row = self._clock.elapsed() + self._interval_s
        while True:
            self._wake.clear()
            self.database = await self._asked_database.health()
            if self._asked_redis is not None:
                self.redis = await self._asked_redis.health()
            elapsed = self._clock.elapsed()
            if elapsed >= next_row:
                next_row = elapsed + self._clock.span(self._interval_s, at_least_real=1.0)
                details = {**self._details(), **self._stamp(self._clock.now())}
                self._rows.append(_row(self._states.current, details))
            self.look()
            if self.database.connected:
                await self.write_pending()
            try:
                async with asyncio.timeout(PING_EVERY_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def look(self) -> None:
        """Queue a row when health has turned since the last look."""
        level, problems = self._judge()
        if self.changes and self.changes[-1].status == level:
            return
        now = self._clock.now()
        first = not self.changes
        self.changes.append(HealthChange(status=level, since=now, problems=problems))
        if not first:
            log.info("Health", status=level, problems=problems)
            details = {"health": level, "problems": problems, **self._stamp(now)}
            self._rows.append(_row(self._states.current, details))

    def _stamp(self, at: float) -> dict[str, Any]:
        """When, by the service's clock, and which process: the proof of continuity reads both."""
        told: dict[str, Any] = {"at": iso_local(at), "epoch": self.epoch}
        if len(symbols := self._symbols()) > 1:
            told["symbols"] = {
                name: {"state": one.state.value, "reason": one.reason}
                for name, one in symbols.items()
            }
        return told

    async def write_pending(self) -> None:
        """Write the queued rows; what the database refuses now stays queued."""
        elapsed = self.database.response_time_ms
        while self._rows:
            row = self._rows[0]
            try:
                await self._store.record_health(row.status, row.details, elapsed, row.error)
            except EwsError as error:
                self._failures.failed(ROWS, str(error))
                return
            self._failures.succeeded(ROWS)
            if self._rows and self._rows[0] is row:  # else it was pushed out meanwhile
                self._rows.popleft()


class _Part:
    """A part that is asked how it is; ``ping`` as in ``HealthMonitor``.

    One question at a time, and none is taken back: asyncpg waits half a minute for a server that hangs
    before it gives up a query, for as long the last good answer would stand; and each question holds a
    connection.
    """

    def __init__(self, ping: Callable[[], Awaitable[float]]) -> None:
        self._ping = ping
        self._asked: asyncio.Task[float] | None = None

    async def health(self) -> PartHealth:
        """How it is, within ``PING_TIMEOUT_S``."""
        asked = self._asked
        if asked is None:
            asked = self._asked = asyncio.create_task(self._answer(), name="ping")
        await asyncio.wait({asked}, timeout=PING_TIMEOUT_S)
        if not asked.done():
            return PartHealth(connected=False, error=f"No answer within {PING_TIMEOUT_S:g} s.")
        self._asked = None
        try:
            elapsed_ms = asked.result()
        except (EwsError, OSError) as error:
            return PartHealth(connected=False, error=str(error) or type(error).__name__)
        return PartHealth(connected=True, response_time_ms=round(elapsed_ms))

    def forget(self) -> None:
        """Nobody waits for the answer any more."""
        if self._asked is not None:
            self._asked.cancel()
            self._asked.add_done_callback(lambda asked: asked.cancelled() or asked.exception())

    async def _answer(self) -> float:
        return await self._ping()
