"""The only place where objects are wired."""

import asyncio
import gc
import math
from collections.abc import Awaitable
from time import monotonic
from typing import TypeVar

import structlog

from enhanced_websocket_service.bus.base import Bus
from enhanced_websocket_service.bus.collector import RedisCollector
from enhanced_websocket_service.bus.leases import RedisKeyLeases
from enhanced_websocket_service.bus.memory import MemoryBus
from enhanced_websocket_service.bus.names import SIMULATED_PREFIX, RedisNames
from enhanced_websocket_service.bus.redis import RedisBus
from enhanced_websocket_service.bus.world import RedisWorld
from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import ConfigurationError, EwsError
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.feeds.base import Feed, FeedGap
from enhanced_websocket_service.feeds.liveness_monitor import LivenessMonitor
from enhanced_websocket_service.feeds.polling import PollingFeed
from enhanced_websocket_service.feeds.router import FeedRouter
from enhanced_websocket_service.feeds.stream import StreamFeed
from enhanced_websocket_service.l0.continuity import Continuity
from enhanced_websocket_service.l0.readiness import ReadyFlag
from enhanced_websocket_service.l0.reconcile import Reconciler
from enhanced_websocket_service.market.hours import MarketHours
from enhanced_websocket_service.market.liveness.baseline import InactivityBaseline
from enhanced_websocket_service.market.reconciliation import Credits
from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.serving.admission import Admission
from enhanced_websocket_service.serving.api import create_app
from enhanced_websocket_service.serving.health import judge
from enhanced_websocket_service.serving.hub import Hub
from enhanced_websocket_service.serving.limits import Limits
from enhanced_websocket_service.serving.server import ApiServer
from enhanced_websocket_service.settings import Settings
from enhanced_websocket_service.storage.epochs import (
    EPOCH_IN_JOURNAL,
    JOURNAL_ALONE,
    KnownEpochs,
    begin_epoch,
    highest_epoch,
    impossible,
)
from enhanced_websocket_service.storage.fence import Fence
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.journal_reader import recover
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.slot_store import SlotStore
from enhanced_websocket_service.storage.stream_store import StreamStore
from enhanced_websocket_service.storage.tenure import Tenure
from enhanced_websocket_service.storage.writer import JournalWriter
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.twelvedata.planner import CreditPlanner
from enhanced_websocket_service.twelvedata.spending import LIVENESS, REPAIR
from enhanced_websocket_service.watermarks import Watermarks

from .assessment_file import AssessmentFile
from .connections import data_servers, l0_pipeline, vendor
from .cpu_latency import CpuLatency
from .health import HealthMonitor
from .key_health import KeyHealth
from .leadership import Leadership, instance_name
from .ledgers import KeyLedgers
from .lifecycle import Lifecycle
from .log_watch import watch_log
from .notify import Notifier
from .pipeline import Pipeline
from .preflight import preflight
from .restoring import go_on, has_happened, look_up_last_ticks, restore, until_when
from .running import Service
from .silence_file import SilenceFile
from .states import ALLOWED, ANY, ServiceState, StateMachine
from .supervisor import Supervisor
from .symbol_lifecycle import Schedule
from .vendor_clock import VendorClock
from .view import View
from .watching import Watched, watch
from .witnesses import PriceWitnesses
from .work import WorkLimits

log = structlog.get_logger(__name__)

Answer = TypeVar("Answer")

RECONCILING = frozenset({ServiceState.READY, ServiceState.ACTIVE, ServiceState.MARKET_CLOSED})
"""States in which history is neither awaited from L0 nor being repaired."""
ASK_TIMEOUT_S = 3.0
"""Real seconds that the start waits for what another part knows."""


async def run_service(
    settings: Settings, stop: asyncio.Event, notifier: Notifier | None = None
) -> None:
    """The command ``run``: until ``stop``, then an orderly end.

    :param notifier: tells whoever started the process how it is.
    :raises ConfigurationError: what ``preflight`` finds; nothing was started.
    :raises EwsError: what it could not foresee.
    """
    found = await preflight(settings)
    for warning in found.warnings:
        log.warning(warning)
    if found.faults:
        raise ConfigurationError(*found.faults)
    clock = settings.clock()
    failures = Failures(clock)
    async with data_servers(settings, failures=failures) as (database_url, redis_url):
        service = await build_service(settings, clock, database_url, redis_url, failures)
        # What a service is made of lives as long as it does. Left to the collector, each full
        # collection looks at all of it, and nothing else happens for 50 to 120 ms.
        gc.collect()
        gc.freeze()
        notifier = notifier or Notifier(None)
        service.bus.subscribe(notifier.on_events)
        beside = [
            asyncio.create_task(notifier.keep_alive(), name="watchdog"),
            asyncio.create_task(watch_log(failures), name="log"),
        ]
        try:
            await service.run(stop)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)


async def build_service(
    settings: Settings, machine: Clock, database_url: str, redis_url: str | None, failures: Failures
) -> Service:
    """Wire the service; nothing runs yet but the journal is open and the epoch durable.

    :param machine: the clock that ``settings`` describe; the service goes by the vendor's where the two
        differ.

    :raises EwsError: what cannot be used, and what to do about it.
    """
    metrics = Metrics()
    clock = VendorClock(machine, failures, metrics, virtual=settings.virtual_clock is not None)
    provider = settings.data_provider
    calendars = settings.calendars()
    hours = MarketHours(calendars)
    rest = vendor(settings, clock, metrics, failures=failures)
    keys = rest.keys
    database = Database(database_url, provider, clock=clock, calendars=calendars, failures=failures)
    marks = Watermarks(settings.symbols, monotonic, cached=redis_url is not None)
    names = _redis_names(settings)
    redis = None
    if redis_url is not None:
        world = RedisWorld(provider.world, names, settings.symbols)
        redis = RedisBus(redis_url, names=names, world=world, failures=failures)
    bus: Bus = MemoryBus() if redis is None else redis
    planner = CreditPlanner(keys)
    ledgers = KeyLedgers(keys, settings.state_dir, clock, failures, simulated=provider.simulated)
    rest.shared, rest.on_date = ledgers.shared, clock.http_date
    history = l0_pipeline(settings, clock, rest, database, failures)
    journal = Journal.open(
        settings.state_dir / "journal",
        fsync_ms=settings.journal_fsync_ms,
        on_failure=lambda error: lifecycle.interrupt(error),
        metrics=metrics,
        watermarks=marks,
    )
    try:
        # One process at a time has the journal: named after it, the lease of one that was killed is ours.
        owner = str(journal.journal_id)
        leases = (
            None
            if redis_url is None
            else RedisKeyLeases(redis_url, owner=owner, names=names, failures=failures)
        )
        recovery = recover(journal.directory, settings.symbols)
        recovery.keep(provider.world)  # invented prices must not touch real ones
        if redis is not None:
            # Before the database, whose schema would be brought up to date for nothing.
            await _ask(redis.check_world(), "whose prices it holds")
        tenure = Tenure(settings.state_dir, journal, failures)
        if recovery.impossible_epoch is not None:
            failures.failed(EPOCH_IN_JOURNAL, impossible(recovery.impossible_epoch, JOURNAL_ALONE))
        known = KnownEpochs(
            journal=recovery.highest_epoch,
            database=await _ask(_highest_epoch(database), "its highest epoch"),
            redis=None if redis is None else await _ask(redis.highest_epoch(), "its highest epoch"),
        )
        own_epoch = max(recovery.highest_epoch, highest_epoch(settings.state_dir))
        epoch = begin_epoch(settings.state_dir, known, failures)
        own = dict(recovery.last_in_session)
        await _ask(look_up_last_ticks(recovery, database, settings.symbols), "the last ticks")
        pipeline = Pipeline(
            calendars,
            journal=journal,
            publish=bus.publish,
            metrics=metrics,
            epoch=epoch,
            price_band_pct=settings.price_band_pct,
            bar_close_delay_s=settings.bar_close_delay_ms / 1000,
            future_tolerance_s=settings.future_tolerance_s,
            incomplete=lambda symbol, start, end: reconciler.repair(symbol, start, end),
            stamped=clock.stamp,
            reached=lambda symbol: liveness.reached(symbol),
            doubted=lambda symbol: witnesses.wake(symbol),
            watermarks=marks,
        )
        clock.on_set = pipeline.clock_set
        now = clock.now()

        published = [t for t in recovery.last_in_session.values() if has_happened(t, now)]
        pipeline.seed(tick for tick in recovery.last.values() if has_happened(tick, now))
        restore(pipeline, journal, now, published, simulated=provider.simulated)
        # Before any bar closes: the one that was forming when the process died must say so.
        collected_until = until_when(published, own)
    except BaseException:  # whatever it was, the directory must be free for the next start
        journal.close()
        raise
    states = StateMachine(now, allowed=ALLOWED if len(calendars) == 1 else ANY)
    flag = ReadyFlag(settings.ready_signals_dir, clock)
    limits = _limits(settings)
    hub = Hub(settings.symbols, clock, lambda: states.state.value, metrics, limits)

    def seed(tick: Tick) -> None:
        bus.seed(tick, (clock.now() - tick.received_at) / clock.span(0.0, at_least_real=1.0))

    for tick in published:
        seed(tick)
        hub.seed(tick)
    bus.subscribe(hub.on_events)
    supervisor = Supervisor(metrics, failures)

    baseline = InactivityBaseline()

    def may_spend(purpose: str, at: float) -> bool:
        opening = hours.opening(at)
        return planner.may_spend(purpose, at, opening.closes, opening.opens)

    async def compare(symbol: str) -> float:
        price = await rest.price(symbol, LIVENESS, retries=0)
        witnesses.on_rest_price(symbol, price)
        return price

    witnesses = PriceWitnesses(
        settings.symbols,
        clock,
        pipeline,
        vendor=rest,
        stored=database,
        may_spend=may_spend,
        is_open=lambda symbol, at: calendars[symbol].is_open(at),
        failures=failures,
        on_failure=lambda error: lifecycle.interrupt(error),
    )
    liveness = LivenessMonitor(
        settings.symbols,
        clock,
        metrics,
        baseline=baseline,
        session_at=lambda symbol, at: calendars[symbol].open_session(at),
        ask=compare,
        may_ask=lambda at: may_spend(LIVENESS, at),
        spacing=lambda at: keys.budget(at).min_interval_s,
        doubtful=pipeline.needs_another_kind,
    )

    def on_gap(gap: FeedGap) -> None:
        pipeline.interrupted(gap.start, gap.end, gap.symbol)
        calendar = calendars[gap.symbol]
        if calendar.is_open(gap.end) or calendar.is_open(gap.start):
            reconciler.repair(gap.symbol, gap.start, gap.end)

    def on_outage(symbol: str, start: float) -> None:
        pipeline.interrupted(start, math.inf, symbol)

    def pace(at: float) -> float:
        opening = hours.opening(at)
        return planner.poll_interval(at, opening.closes, opening.opens)

    def make_feed() -> Feed:
        stream = StreamFeed(
            settings.twelvedata_ws_url,
            keys,
            settings.symbols,
            clock,
            provider,
            metrics,
            liveness=liveness,
            leases=leases,
        )
        polling = PollingFeed(
            rest,
            settings.symbols,
            clock,
            provider,
            pace,
            is_open=hours.is_open,
            witness=witnesses.on_rest_price,
            last_price=pipeline.last_price,
            metrics=metrics,
        )
        witnesses.prepare()
        return FeedRouter(
            stream,
            polling,
            metrics,
            settings.feed_mode,
            on_gap=on_gap,
            on_outage=on_outage,
        )

    monitor = HealthMonitor(
        clock=clock,
        states=states,
        store=database,
        ping_database=database.ping,
        ping_redis=None if redis is None else redis.ping,
        details=lambda: view.health_details(),
        interval_s=settings.health_interval_s,
        epoch=epoch,
        symbols=lambda: lifecycle.symbol_states(),
        failures=failures,
        judge=lambda: judge(view.health()),
    )
    writer = JournalWriter(
        journal,
        database,
        epoch=epoch,
        symbols=settings.symbols,
        tenure=tenure,
        keep_s=settings.journal_keep_hours * 3600,
        keep_bytes=settings.journal_keep_mb * 1024 * 1024,
        metrics=metrics,
        failures=failures,
        watermarks=marks,
    )
    slots = SlotStore(database)

    def credits_at(at: float) -> Credits:
        opening = hours.opening(at)
        return Credits(keys.left(at), planner.plan(at, opening.closes, opening.opens).reserve)

    reconciler = Reconciler(
        rest=rest,
        store=slots,
        calendars=calendars,
        clock=clock,
        provider=provider,
        publish=pipeline.on_vendor_bars,
        changeable=pipeline.changeable,
        stored=lambda timeout_s: writer.reached(journal.end.record, timeout_s),
        may_run=lambda symbol: lifecycle.state_of(symbol) in RECONCILING and leadership.may_work,
        credits=credits_at,
        write_backup=history.write_backup,
        window_days=settings.l0_window_days,
        metrics=metrics,
        failures=failures,
        may_repair=lambda at: may_spend(REPAIR, at),
    )

    def check() -> None:
        journal.check()
        for part in (database, redis):
            if part is not None and part.wrong_world is not None:
                raise part.wrong_world

    async def go_on_under(epoch: int) -> None:
        """Another instance has collected meanwhile: the stream goes on after its last tick."""
        await _ask(look_up_last_ticks(recovery, database, settings.symbols), "the last ticks")
        for tick in go_on(pipeline, recovery, epoch, clock.now()):
            seed(tick)
        monitor.epoch = continuity.epoch = epoch

    instance = instance_name()
    fence = Fence(
        database_url,
        settings.symbols,
        owner=journal.journal_id,
        name=instance,
        world=provider.world,
    )
    mark = None
    if redis_url is not None:
        mark = RedisCollector(
            redis_url, owner=fence.owner, name=instance, failures=failures, names=names
        )
    leadership = Leadership(
        fence=fence,
        tenure=tenure,
        journal=journal,
        reachable=lambda: database.connected,
        epoch=epoch,
        known=own_epoch,
        next_epoch=lambda highest: begin_epoch(
            settings.state_dir, KnownEpochs(database=highest), failures
        ),
        begin_epoch=go_on_under,
        failures=failures,
        mark=mark,
    )
    continuity = Continuity(slots, calendars, clock, provider, epoch=epoch)
    lifecycle = Lifecycle(
        clock=clock,
        calendars=calendars,
        states=states,
        flag=flag,
        collected_until=collected_until,
        check=check,
        history=history,
        pipeline=pipeline,
        connect=database.connect,
        make_feed=make_feed,
        on_change=lambda change: service.on_state(change),
        on_symbol=lambda: monitor.note_symbols(clock.now()),
        schedule=Schedule(
            pre_open_s=settings.pre_open_minutes * 60,
            close_drain_s=settings.close_drain_s,
            late_grace_s=settings.late_grace_s,
            startup_timeout_s=settings.startup_timeout_minutes * 60,
            l0_policy=settings.l0_policy,
        ),
        failures=failures,
        leadership=leadership,
        kept=AssessmentFile(settings.state_dir, calendars, failures, simulated=provider.simulated),
    )
    database.on_wrong_world = lifecycle.interrupt
    if redis is not None:
        redis.on_wrong_world = lifecycle.interrupt
        redis.may_cache = lambda: leadership.may_work
    key_health = KeyHealth(
        rest,
        clock,
        provider,
        settings.symbols,
        settings.feed_mode,
        feed=lambda: None if lifecycle.feed is None else lifecycle.feed.status(),
        is_open=hours.is_open,
        owed=reconciler.owed,
        may_ask=lambda: leadership.may_work,
    )
    work, canary = watch(
        Watched(
            clock=clock,
            marks=marks,
            pipeline=pipeline,
            journal=journal,
            writer=writer,
            database=database,
            bus=bus,
            redis=redis,
            hub=hub,
            reconciler=reconciler,
            failures=failures,
            metrics=metrics,
        ),
        _work_limits(settings),
        probe_s=settings.health_probe_s,
        pace=pace,
        expecting=lambda: states.state in (ServiceState.READY, ServiceState.ACTIVE),
        may_probe=lambda: states.state is not ServiceState.SHUTDOWN and leadership.may_work,
    )
    view = View(
        clock=clock,
        calendars=calendars,
        provider=provider,
        provider_warning=settings.provider_warning,
        states=states,
        flag=flag,
        lifecycle=lifecycle,
        leadership=leadership,
        pipeline=pipeline,
        bus=bus,
        monitor=monitor,
        supervisor=supervisor,
        journal=journal,
        writer=writer,
        database=database,
        keys=keys,
        key_health=key_health,
        planner=planner,
        stream=StreamStore(database),
        continuity=continuity,
        reconciler=reconciler,
        liveness=liveness,
        failures=failures,
        work=work,
        canary=canary,
    )
    admission = Admission(limits, metrics, settings.cors_origins, settings.trusted_proxies)
    app = create_app(
        view,
        hub,
        metrics.registry,
        cors_origins=settings.cors_origins,
        state_dir=settings.state_dir,
        admission=admission,
    )
    api = ApiServer(
        app,
        settings.host,
        settings.port,
        admission=admission,
        trusted_proxies=settings.trusted_proxies,
        compression=settings.client_compression,
        ping_interval_s=settings.client_ping_interval_s or None,
        ping_timeout_s=settings.client_ping_timeout_s,
        ssl_cert=settings.ssl_cert_path,
        ssl_key=settings.ssl_key_path,
        shutdown_timeout_s=max(1, round(settings.shutdown_timeout_s / 4)),
    )
    service = Service(
        clock=clock,
        metrics=metrics,
        bus=bus,
        redis=redis,
        leases=leases,
        database=database,
        journal=journal,
        writer=writer,
        fence=fence,
        leadership=leadership,
        mark=mark,
        pipeline=pipeline,
        lifecycle=lifecycle,
        monitor=monitor,
        canary=canary,
        supervisor=supervisor,
        hub=hub,
        api=api,
        rest=rest,
        ledgers=ledgers,
        key_health=key_health,
        liveness=liveness,
        cpu_latency=CpuLatency(settings.cpu_latency_us),
        silences=SilenceFile(baseline, settings.state_dir, failures, simulated=provider.simulated),
        hours=hours,
        reconciler=reconciler,
        witnesses=witnesses,
        last_ticks=recovery.last,
        late_grace_s=settings.late_grace_s,
        shutdown_timeout_s=settings.shutdown_timeout_s,
    )
    return service


def _redis_names(settings: Settings) -> RedisNames:
    """Plain names for real prices, and in a private server; invented ones stand apart in a given Redis."""
    given = settings.redis_url is not None
    return RedisNames(SIMULATED_PREFIX if given and settings.data_provider.simulated else "")


async def _highest_epoch(database: Database) -> int:
    await database.connect()
    return await database.highest_epoch()


async def _ask(answer: Awaitable[Answer], what: str) -> Answer | None:
    """What a part knows, or ``None`` when it cannot be asked now."""
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            return await answer
    except ConfigurationError:
        raise  # waiting does not mend a DATABASE_URL that cannot be understood
    except (EwsError, OSError, TimeoutError) as error:
        log.warning(f"Not asked for {what}", error=str(error) or type(error).__name__)
        return None


def _work_limits(settings: Settings) -> WorkLimits:
    return WorkLimits(
        undone_s=settings.health_undone_s,
        held_s=settings.health_held_s,
        bar_s=settings.health_bar_s,
        reconciled_s=settings.health_reconciled_s,
    )


def _limits(settings: Settings) -> Limits:
    unsent = settings.client_buffer_kb * 1024
    return Limits(
        high_water=unsent,
        low_water=unsent // 8,
        hard=unsent * 4,
        age_s=settings.client_buffer_age_s,
        stall_s=settings.client_stall_s,
        clients=settings.max_clients,
        clients_per_address=settings.max_clients_per_address,
        messages_per_s=settings.client_messages_per_s,
        message_burst=settings.client_message_burst,
        message_bytes=settings.client_message_max_bytes,
        handshake_s=settings.client_handshake_s,
    )
