"""The running service: starts its components, and stops them in an order that loses nothing."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic

import structlog

from enhanced_websocket_service.bus.base import Bus
from enhanced_websocket_service.bus.collector import RedisCollector
from enhanced_websocket_service.bus.leases import RedisKeyLeases
from enhanced_websocket_service.bus.redis import RedisBus
from enhanced_websocket_service.errors import EwsError
from enhanced_websocket_service.feeds.base import FeedStatus
from enhanced_websocket_service.feeds.liveness_monitor import LivenessMonitor, VerdictNews
from enhanced_websocket_service.l0.reconcile import Reconciler
from enhanced_websocket_service.market.events import StatusChanged
from enhanced_websocket_service.market.hours import MarketHours
from enhanced_websocket_service.market.liveness.status import is_news
from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.serving.hub import Hub
from enhanced_websocket_service.serving.server import ApiServer
from enhanced_websocket_service.storage.fence import Fence
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.writer import JournalWriter
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.twelvedata.rest import RestClient

from .canary import Canary
from .cpu_latency import CpuLatency
from .health import HealthMonitor
from .key_health import KeyHealth
from .leadership import Leadership
from .ledgers import KeyLedgers
from .lifecycle import Lifecycle
from .pipeline import Pipeline
from .silence_file import SilenceFile
from .states import ServiceState, StateChange
from .supervisor import Supervisor
from .vendor_clock import VendorClock
from .witnesses import PriceWitnesses

log = structlog.get_logger(__name__)

VERDICT_CHECK_S = 1.0
PATIENCE = 0.6
"""Share of the shutdown time-out for which the drain may wait for PostgreSQL."""


class Service:
    """Everything wired by ``build``; ``run`` is its whole life."""

    def __init__(
        self,
        *,
        clock: VendorClock,
        metrics: Metrics,
        bus: Bus,
        redis: RedisBus | None,
        leases: RedisKeyLeases | None,
        database: Database,
        journal: Journal,
        writer: JournalWriter,
        fence: Fence,
        leadership: Leadership,
        mark: RedisCollector | None,
        pipeline: Pipeline,
        lifecycle: Lifecycle,
        monitor: HealthMonitor,
        canary: Canary,
        supervisor: Supervisor,
        hub: Hub,
        api: ApiServer,
        rest: RestClient,
        ledgers: KeyLedgers,
        key_health: KeyHealth,
        liveness: LivenessMonitor,
        cpu_latency: CpuLatency,
        silences: SilenceFile,
        hours: MarketHours,
        reconciler: Reconciler,
        witnesses: PriceWitnesses,
        last_ticks: Mapping[str, Tick],
        late_grace_s: float,
        shutdown_timeout_s: float,
    ) -> None:
        self.api = api
        self.lifecycle = lifecycle
        self._clock = clock
        self._metrics = metrics
        self.bus = bus
        self._redis = redis
        self._leases = leases
        self._database = database
        self._journal = journal
        self._writer = writer
        self._fence = fence
        self._leadership = leadership
        self._mark = mark
        self._pipeline = pipeline
        self._monitor = monitor
        self._canary = canary
        self._supervisor = supervisor
        self._hub = hub
        self._rest = rest
        self._ledgers = ledgers
        self._key_health = key_health
        self._cpu_latency = cpu_latency
        self._silences = silences
        self._hours = hours
        liveness.subscribe(self._on_verdict)
        self._reconciler = reconciler
        self._witnesses = witnesses
        self._last_ticks = last_ticks
        self._late_grace_s = late_grace_s
        self._shutdown_timeout_s = shutdown_timeout_s
        self._told: dict[str, str] = {}  # the verdicts last published: overall, and by symbol
        self._dead: dict[str, str] = {}  # of whom ``system_health`` says that nothing comes
        self._verdict_news = VerdictNews()
        self._started = False

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set, then drain within the shutdown time-out.

        :raises ConfigurationError: the port or the certificate cannot be used.
        """
        try:
            await self.start()
            await stop.wait()
        finally:
            await self.stop()

    def on_state(self, change: StateChange) -> None:
        """Log, store and publish a change of state."""
        level = log.error if change.state is ServiceState.ERROR else log.info
        level("Service state", state=change.state.value, reason=change.reason)
        for state in ServiceState:
            self._metrics.state.labels(state.value).set(state is change.state)
        self._monitor.note(change)
        self._publish_status(change)
        if change.state is ServiceState.ACTIVE:
            self._cpu_latency.hold()
        else:
            self._cpu_latency.release()
        if change.state is ServiceState.MARKET_CLOSED:
            self._silences.save()  # a session is over: what it taught must not get lost

    async def start(self) -> None:
        """Listen, begin the epoch, start every component; raises as ``run``."""
        await self.api.start()
        self._started = True
        self._ledgers.sync()
        now = self._clock.now()
        self._silences.load(self._hours.today(now))
        self._pipeline.begin_epoch(
            self._pipeline.epoch,
            {symbol: (tick.epoch, tick.offset) for symbol, tick in self._last_ticks.items()},
        )
        self.on_state(self.lifecycle.current)
        start = self._supervisor.start
        start("api", self._watch_api)
        start("clock", self._watch_clock)
        start("journal", self._journal.run)
        start("writer", self._writer.run)
        start("leadership", self._leadership.run)
        if self._redis is not None:
            start("redis", self._redis.run)
        if self._leases is not None:
            start("key-leases", self._leases.run)
        start("health", self._monitor.run)
        start("canary", self._canary.run)
        start("ledgers", self._ledgers.keep)
        start("keys", self._key_health.run)
        start("silences", self._silences.keep)
        start("verdict", self._watch_verdict)
        start("l0-watch", self.lifecycle.watch_data)
        start("reconciliation", self._reconciler.run)
        start("witnesses", self._witnesses.run)
        start("lifecycle", self.lifecycle.run)

    async def stop(self) -> None:
        """Drain and release everything; also after a ``start`` that failed."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._shutdown_timeout_s

        def left(share: float = 1.0) -> float:
            return max(0.1, share * (deadline - loop.time()))

        # A server that hangs holds up even who no longer wants its answer: asyncpg waits for it
        # when a query is cancelled. From here on such waits fail, and clients still get a goodbye.
        cut = loop.call_later(PATIENCE * self._shutdown_timeout_s, self._database.abort)
        try:
            if self._started:
                await self._drain(left)
        finally:
            cut.cancel()
        await self.api.stop()
        await self._supervisor.stop_all(left(0.3))
        await self._rest.aclose()
        with suppress(TimeoutError):
            async with asyncio.timeout(left(0.5)):
                if self._leases is not None:
                    await self._leases.close()
                if self._mark is not None:
                    await self._mark.close()
                if self._redis is not None:
                    await self._redis.close()
        await self._fence.close(left(0.2))
        await self._database.close(left(0.5))
        try:
            self._journal.close()
        except EwsError as error:
            log.error("The journal was not closed cleanly", error=str(error))
        log.info("Stopped")

    async def _drain(self, left: Callable[[float], float]) -> None:
        """Bring what was collected to where it belongs, then say goodbye to clients.

        :param left: the given share of the real seconds that remain.
        """
        # Feed first: nothing new may come in while the rest drains.
        await self._supervisor.stop("lifecycle", left(0.4))
        self.lifecycle.enter_shutdown("Stopping: draining what was collected.")
        try:
            self._pipeline.on_time(self._clock.now(), self._late_grace_s)
        except EwsError as error:
            log.error("The last bars could not be journaled", error=str(error))
        for name in (
            "witnesses",
            "reconciliation",
            "l0-watch",
            "verdict",
            "silences",
            "keys",
            "ledgers",
            "canary",
            "health",
            "clock",
        ):
            await self._supervisor.stop(name, left(0.2))
        self._ledgers.sync()
        self._silences.save()
        # A database that was never reached, or is another's by now, takes nothing any more.
        database = self._database
        hopeless = not database.connected or database.wrong_world is not None
        if not await self._writer.drain(0.0 if hopeless else left(0.5)):
            log.warning(
                "Not everything journaled is in PostgreSQL yet; the next start writes the rest",
                records=self._writer.lag_records,
            )
        await self._supervisor.stop("writer", left(0.3))
        # Only now: what was drained was stored because the fence was ours.
        await self._supervisor.stop("leadership", left(0.2))
        with suppress(TimeoutError):
            async with asyncio.timeout(left(0.3)):
                await self._leadership.release()
        try:
            async with asyncio.timeout(left(0.2)):
                await self._monitor.write_pending()
        except TimeoutError:
            log.warning("The last system_health rows were not written")
        if self._redis is not None:
            await self._redis.drain(left(0.2))
        self._hub.close_all()
        await self._supervisor.stop("api", left(0.2))

    def _publish_status(self, change: StateChange) -> None:
        feed = self.lifecycle.feed
        status = None if feed is None else feed.status()
        self._told = _verdicts(status)
        self.bus.publish(
            [
                StatusChanged(
                    change.state.value,
                    change.reason,
                    "closed" if status is None else status.verdict,
                    self._clock.now(),
                    evidence=None if status is None else status.detail,
                    verdicts={} if status is None else _by_symbol(status),
                )
            ]
        )

    async def _watch_verdict(self) -> None:
        """Tell clients when the verdict on the feed changes, also where nobody told us at once."""
        while True:
            await self._clock.sleep(self._clock.span(VERDICT_CHECK_S, at_least_real=0.25))
            self._on_verdict()

    def _on_verdict(self) -> None:
        feed = self.lifecycle.feed
        status = None if feed is None else feed.status()
        dead = {} if status is None else status.dead(self._hub.symbols)
        if dead.keys() != self._dead.keys():
            self._monitor.note_dead(dead, self._clock.now())
            self._dead = dead
        verdicts = _verdicts(status)
        if verdicts.keys() != self._told.keys() or any(
            is_news(self._told[name], verdict) for name, verdict in verdicts.items()
        ):
            before = self._told.get("")
            # Real time: the log is read by people.
            if verdicts[""] != before and self._verdict_news.due("", verdicts[""], monotonic()):
                log.info("Feed verdict", verdict=verdicts[""], before=before)
            self._publish_status(self.lifecycle.current)

    async def _watch_clock(self) -> None:
        await self._clock.run(self._rest.ask_time)

    async def _watch_api(self) -> None:
        await self.api.wait()
        # Collecting goes on, but nobody could see it: the state and the log must say so.
        self.lifecycle.interrupt(EwsError("The API server ended by itself."))
        await asyncio.Event().wait()


def _by_symbol(status: FeedStatus) -> dict[str, str]:
    return {one.symbol: one.verdict for one in status.verdicts}


def _verdicts(status: FeedStatus | None) -> dict[str, str]:
    """By symbol and, under the empty name, the verdict on the feed."""
    if status is None:
        return {"": "closed"}
    return {"": status.verdict, **_by_symbol(status)}
