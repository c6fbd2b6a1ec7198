"""The service as its API sees it: answers from memory, and reads of stored rows."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from typing import Any

from enhanced_websocket_service.bus.base import Bus
from enhanced_websocket_service.bus.redis import CACHING, PUBLISHING, REDIS
from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.failures import Failure, Failures
from enhanced_websocket_service.feeds.base import FeedStatus
from enhanced_websocket_service.feeds.liveness_monitor import LivenessMonitor
from enhanced_websocket_service.l0.continuity import Continuity
from enhanced_websocket_service.l0.continuity_page import summary_dict
from enhanced_websocket_service.l0.readiness import FlagState, ReadyFlag
from enhanced_websocket_service.l0.reconcile import Reconciler
from enhanced_websocket_service.l0.validator import Assessment
from enhanced_websocket_service.market.bar import INTERVALS, Bar
from enhanced_websocket_service.market.calendar import BAR_SECONDS, TradingCalendar, iso_local
from enhanced_websocket_service.market.hours import MarketHours
from enhanced_websocket_service.market.liveness.status import SymbolVerdict
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.serving.models import (
    ApiKeyUsage,
    CollectorStatus,
    ComparisonCounts,
    ComponentStatus,
    ContinuityRangeView,
    ContinuityView,
    DayNumbers,
    DeadSpanView,
    FailureView,
    FeedHealth,
    KeyView,
    L0Status,
    RealtimeCollection,
    SessionView,
    SlotView,
    StateInfo,
    StatusView,
    StorageStatus,
    SymbolStatus,
    SymbolVerdictView,
    VerdictChange,
)
from enhanced_websocket_service.serving.session import session_view
from enhanced_websocket_service.serving.views import BarQuery, HealthView, TickQuery
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.stream_store import StoredStretch, StreamStore
from enhanced_websocket_service.storage.writer import (
    IN_REJECTED,
    QUARANTINE,
    STORING,
    JournalWriter,
)
from enhanced_websocket_service.twelvedata.keys import KeyPool
from enhanced_websocket_service.twelvedata.ledger import KEY, REFUSED_FOR_S, STREAM, Access
from enhanced_websocket_service.twelvedata.planner import CreditPlanner

from .canary import Canary
from .health import HealthMonitor
from .key_health import KeyHealth
from .leadership import Leadership
from .lifecycle import Lifecycle
from .pipeline import Pipeline
from .states import ServiceState, StateChange, StateMachine
from .supervisor import Supervisor
from .work import WorkHealth

CAUSES_OF_HOPS = frozenset({STORING, REDIS, PUBLISHING, CACHING})
"""Parts of ``Failures`` whose reason a hop's problem repeats."""
_MICROSECOND = 1e-6  # the resolution of the database's times


class View:
    """Implements ``serving.views.ServiceView`` over the real parts."""

    def __init__(
        self,
        *,
        clock: Clock,
        calendars: Mapping[str, TradingCalendar],
        provider: Provider,
        provider_warning: str | None,
        states: StateMachine,
        flag: ReadyFlag,
        lifecycle: Lifecycle,
        leadership: Leadership,
        pipeline: Pipeline,
        bus: Bus,
        monitor: HealthMonitor,
        supervisor: Supervisor,
        journal: Journal,
        writer: JournalWriter,
        database: Database,
        stream: StreamStore,
        keys: KeyPool,
        key_health: KeyHealth,
        planner: CreditPlanner,
        continuity: Continuity,
        reconciler: Reconciler,
        liveness: LivenessMonitor,
        failures: Failures,
        work: WorkHealth,
        canary: Canary,
    ) -> None:
        self.symbols = tuple(calendars)
        self._clock = clock
        self._calendars = calendars
        self._hours = MarketHours(calendars)
        self._provider = provider
        self._provider_warning = provider_warning
        self._states = states
        self._flag = flag
        self._lifecycle = lifecycle
        self._leadership = leadership
        self._pipeline = pipeline
        self._bus = bus
        self._monitor = monitor
        self._supervisor = supervisor
        self._journal = journal
        self._writer = writer
        self._database = database
        self._stream = stream
        self._keys = keys
        self._key_health = key_health
        self._planner = planner
        self._continuity = continuity
        self._reconciler = reconciler
        self._liveness = liveness
        self._failures = failures
        self._work, self._canary = work, canary
        self._started = time.monotonic()  # real time: how long the process has been up

    def now(self) -> float:
        return self._clock.now()

    def service_state(self) -> str:
        return self._states.state.value

    def session(self, symbol: str) -> SessionView:
        return session_view(self._calendars[symbol], self.now())

    def today(self, symbol: str) -> date:
        return self._calendars[symbol].local_date(self.now())

    def latest(self, symbol: str) -> Tick | None:
        return self._bus.latest(symbol)

    def health(self) -> HealthView:
        feed = self._lifecycle.feed
        status = None if feed is None else feed.status()
        problems = self._work.problems()
        return HealthView(
            state=_state_info(self._states.current),
            uptime_seconds=self._uptime(),
            database=self._monitor.database,
            redis=self._monitor.redis,
            feed=FeedHealth(
                connected=status is not None and status.verdict != "dead",
                expected=self._states.state is ServiceState.ACTIVE
                and self._hours.is_open(self.now()),
                verdict="closed" if status is None else status.verdict,
                evidence=None if status is None else status.detail,
            ),
            problems=[
                *problems,
                *self._failing(problems),
                *self._key_health.problems(),
                *self._on_fallback(status),
            ],
            work=self._work.shown(self._canary.latencies, self._canary.told),
        )

    def _failing(self, problems: Sequence[str]) -> list[str]:
        """A sentence for each part that fails, but what connections and hops tell already."""
        connections = f"{self._monitor.database.error} {self._monitor.redis.error}"
        of_hops = " ".join(problems)
        return [
            _failure_sentence(one)
            for one in self._failures.present
            if one.reason not in connections
            and not (one.part in CAUSES_OF_HOPS and one.reason in of_hops)
            and not (one.part == QUARANTINE and IN_REJECTED in of_hops)
        ]

    def _on_fallback(self, status: FeedStatus | None) -> list[str]:
        """A sentence for each stream that failed and that REST stands in for. That a plan streams nothing
        is no failure.
        """
        if status is None or self._key_health.not_streamed() is not None:
            return []
        return [
            f"The stream of {symbol} is dead, prices come by REST, the fallback: {why}"
            for symbol, why in status.on_fallback().items()
        ]

    def health_details(self) -> dict[str, Any]:
        """What a periodic ``system_health`` row tells beside the state."""
        return {
            "ticks": self._pipeline.counts.ticks,
            "rejected": dict(self._pipeline.counts.rejected),
            "bars": self._pipeline.counts.bars,
            "writer": self._writer.status(),
            "redis_connected": self._monitor.redis.connected,
            "reconciliation": self._reconciler.status(),
            "failures": [_failure_sentence(one) for one in self._failures.present],
            "keys": self._key_health.problems(),
            "dead": {}
            if (feed := self._lifecycle.feed) is None
            else feed.status().dead(self.symbols),
        }

    def status(self) -> StatusView:
        now = self.now()
        counts = self._pipeline.counts
        feed = self._lifecycle.feed
        feed_status = None if feed is None else feed.status()
        latest = [tick for s in self.symbols if (tick := self.latest(s)) is not None]
        return StatusView(
            is_running=self._states.state not in (ServiceState.ERROR, ServiceState.SHUTDOWN),
            uptime_seconds=self._uptime(),
            l0_integration=self._l0(now),
            api_key_usage=self._key_usage(now),
            realtime_collection=RealtimeCollection(
                active=self._states.state is ServiceState.ACTIVE,
                websocket_connected=feed_status is not None and feed_status.websocket_connected,
                source=None if feed_status is None else feed_status.source,
                verdict="closed" if feed_status is None else feed_status.verdict,
                evidence=None if feed_status is None else feed_status.detail,
                last_tick_at=max((tick.timestamp for tick in latest), default=None),
                ticks_accepted=counts.ticks,
                ticks_rejected=sum(counts.rejected.values()),
                reconnects=0 if feed_status is None else feed_status.reconnects,
                verdicts=self._verdicts(feed_status),
                not_streamed=self._key_health.not_streamed(),
            ),
            state=_state_info(self._states.current),
            history=[_state_info(change) for change in self._states.history],
            symbols=self._symbols_status(now),
            storage=StorageStatus(
                database_connected=self._monitor.database.connected,
                redis_connected=self._monitor.redis.connected,
                journal_records=self._journal.end.record,
                writer_lag_records=self._writer.lag_records,
                writer_error=self._writer.last_error,
            ),
            collector=CollectorStatus(**asdict(self._leadership.status)),
            components=[
                ComponentStatus(
                    name=one.name,
                    running=one.running,
                    restarts=one.restarts,
                    last_error=one.failure,
                )
                for one in self._supervisor.components
            ],
            failures=[_failure_view(one) for one in self._failures.present],
            watermarks=self._work.by_symbol(),
            health_history=list(self._monitor.changes),
            bus=self._bus.status(),
            credits=self._credits(now),
            reconciliation=self._reconciler.status(),
            hygiene=self._pipeline.hygiene(),
            provider=self._provider.name,
            provider_warning=self._provider_warning,
            world=self._provider.world,
            simulated=self._provider.simulated,
        )

    async def bars(self, query: BarQuery) -> Sequence[Bar]:
        page = await self._database.bars(
            query.symbol,
            interval_s=INTERVALS[query.interval],
            start=query.start,
            end=self._bound(query.end),
            limit=query.limit,
            cursor=query.after,
            as_of=query.as_of,
            source=query.source,
        )
        return page.bars

    async def ticks(self, query: TickQuery) -> Sequence[Tick]:
        return await self._database.ticks(
            query.symbol,
            start=query.start,
            end=None if query.end is None else query.end - _MICROSECOND,
            after=query.after,
            limit=query.limit,
            # By receipt, which follows the offsets: a bound on stamps could leave out a tick
            # between two pages for good.
            as_of=min(query.as_of or math.inf, self.now()),
            source=query.source,
        )

    async def stream(self, symbol: str, after: tuple[int, int], limit: int) -> StoredStretch:
        return await self._stream.read(symbol, after, limit, as_of=self.now())

    async def stream_start(self, symbol: str, instant: float) -> tuple[int, int] | None:
        return await self._stream.first_at(symbol, instant, as_of=self.now())

    async def stored(self, timeout_s: float) -> bool:
        if self._writer.last_error is not None:
            return False  # nobody knows how long it will take
        return await self._writer.reached(self._journal.end.record, timeout_s)

    async def continuity(self, symbol: str, day: date) -> ContinuityView:
        found = await self._continuity.day(symbol, day)
        return ContinuityView(
            **summary_dict(found.summary),
            slots=[
                SlotView(
                    datetime=slot.open_time,
                    source=slot.source,
                    status=slot.status,
                    revision=slot.revision,
                    final=slot.final,
                    grade=slot.grade,
                    reason=slot.reason,
                    timezone=found.zone.key,
                )
                for slot in found.slots
            ],
        )

    async def continuity_range(self, symbol: str, start: date, end: date) -> ContinuityRangeView:
        days = [one.summary for one in await self._continuity.days(symbol, start, end)]
        return ContinuityRangeView(
            start=start.isoformat(),
            end=end.isoformat(),
            expected=sum(one.expected for one in days),
            covered=sum(one.covered for one in days),
            final=sum(one.final for one in days),
            unknown=sum(one.unknown for one in days),
            days=[DayNumbers(**summary_dict(one)) for one in days],
        )

    def _verdicts(self, status: FeedStatus | None) -> dict[str, SymbolVerdictView]:
        shown = self._liveness.shown() if status is None else status.verdicts
        sources = {} if status is None else status.sources
        return {one.symbol: _symbol_verdict(one, sources.get(one.symbol)) for one in shown}

    def _l0(self, now: float) -> L0Status:
        lifecycle = self._lifecycle
        return _l0_status(self._flag.read(), lifecycle.assessment, lifecycle.assessed_at, now)

    def _symbols_status(self, now: float) -> dict[str, SymbolStatus]:
        flag = self._flag.read()
        return {
            symbol: SymbolStatus(
                state=_state_info(one.states.current),
                history=[_state_info(change) for change in one.states.history],
                l0=_l0_status(flag, one.data.assessment, one.data.assessed_at, now),
                market_session=session_view(self._calendars[symbol], now),
            )
            for symbol, one in self._lifecycle.symbols.items()
        }

    def _key_usage(self, now: float) -> ApiKeyUsage:
        shown = self._keys.snapshot(now)
        return ApiKeyUsage(
            total_keys=shown["total_keys"],
            usable_keys=self._keys.usable(),
            current_key_index=shown["current_key_index"],
            total_calls=shown["total_calls"],
            problems=self._key_health.problems(),
            keys=[_key_view(one, now) for one in shown["keys"]],
        )

    def _credits(self, now: float) -> dict[str, object]:
        opening = self._hours.opening(now)
        zone = self._calendars[self.symbols[0]].zone
        return self._planner.show(now, opening.closes, opening.opens, zone)

    def _bound(self, end: float | None) -> float:
        """The API's ends are exclusive, the database's inclusive.

        Never later than now: a virtual clock may have been set back over rows of its future.
        """
        now = self.now()
        return now if end is None else min(end - _MICROSECOND, now)

    def _uptime(self) -> int:
        return int(time.monotonic() - self._started)


def _l0_status(
    flag: FlagState, found: Assessment | None, checked_at: float | None, now: float
) -> L0Status:
    if found is None:
        return L0Status(
            ready_signal_exists=flag.exists,
            data_freshness_hours=None,
            completeness_percentage=None,
            is_fresh=False,
            is_complete=False,
            reason=flag.problem or "Not measured yet.",
        )
    hours = None if found.last_bar_end is None else (now - found.last_bar_end) / 3600
    return L0Status(
        ready_signal_exists=flag.exists,
        data_freshness_hours=None if hours is None else round(hours, 2),
        completeness_percentage=round(found.completeness_percentage, 2),
        is_fresh=found.is_fresh,
        is_complete=found.is_complete,
        missing_slots=found.missing_slots,
        last_bar=None if found.last_bar_end is None else found.last_bar_end - BAR_SECONDS,
        checked_at=checked_at,
        reason=flag.problem or (" ".join(found.reasons) or None),
    )


def _state_info(change: StateChange) -> StateInfo:
    return StateInfo(state=change.state.value, reason=change.reason, since=change.at)


def _failure_view(one: Failure) -> FailureView:
    return FailureView(
        part=one.part,
        reason=one.reason,
        since=one.since,
        last_at=one.last_at,
        times=one.times,
    )


def _failure_sentence(one: Failure) -> str:
    times = "" if one.times == 1 else f", {one.times} times, last {iso_local(int(one.last_at))}"
    return f"Failing since {iso_local(int(one.since))}{times}: {one.part}: {one.reason}"


def _symbol_verdict(one: SymbolVerdict, source: str | None) -> SymbolVerdictView:
    return SymbolVerdictView(
        verdict=one.verdict,
        evidence=one.evidence,
        since=one.since,
        source=source,
        silence_s=None if one.silence_s is None else round(one.silence_s, 1),
        suspect_after_s=round(one.suspect_after_s, 1),
        usual_silence_s=round(one.usual_silence_s, 1),
        usual_gap_s=round(one.usual_gap_s, 2),
        learned_days=one.learned_days,
        last_price_at=one.last_price_at,
        last_new_price_at=one.last_new_price_at,
        lag_s=round(one.lag_s, 1),
        rest_fault=one.rest_fault,
        rest_price=one.rest_price,
        rest_asked_at=one.rest_asked_at,
        samples=ComparisonCounts(**one.samples),
        history=[
            VerdictChange(verdict=change.verdict, evidence=change.evidence, at=change.at)
            for change in one.history
        ],
        dead_spans=[
            DeadSpanView(
                start=span.start, found_at=span.found_at, end=span.end, evidence=span.evidence
            )
            for span in one.dead_spans
        ],
    )


def _key_view(shown: Mapping[str, Any], now: float) -> KeyView:
    cooling = shown["cooling_s"]
    access: Mapping[str, Access] = shown["access"]
    refused = {topic: one for topic, one in access.items() if one.refusal}
    wrong, unstreamed = refused.get(KEY), refused.get(STREAM)
    # Of the key itself, or of what its plan excludes of the REST API.
    told = wrong or next((one for name, one in refused.items() if name != STREAM), None)
    return KeyView(
        name=shown["label"],
        state="disabled" if wrong else "cooling" if cooling else "usable",
        calls_today=shown["calls_today"],
        calls_this_minute=shown["minute_used"],
        cooldown_until=now + cooling if cooling else None,
        latency_ms=shown["latency_ms"],
        refused=None if told is None else told.refusal,
        refused_since=None if told is None else told.since,
        next_try=None if wrong is None else wrong.at + REFUSED_FOR_S,
        streams=False if unstreamed else True if STREAM in access else None,
        not_streamed=None if unstreamed is None else unstreamed.refusal,
    )
