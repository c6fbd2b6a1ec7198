"""The JSON answers, as pydantic models: one definition for the code, OpenAPI and the tests.

Instants are unix seconds UTC inside (``Instant``) and ISO 8601 with offset, America/Bogota, in JSON. The
service fills the models that ``views.py`` names; the API adds ``timestamp`` and ``service_status``.
"""

from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema, field_serializer

from enhanced_websocket_service.market.calendar import iso_local
from enhanced_websocket_service.market.source import World

Instant = Annotated[
    float,
    PlainSerializer(iso_local, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "format": "date-time",
            "examples": ["2025-01-20T10:30:15-05:00"],
        },
        mode="serialization",
    ),
]
"""Unix seconds UTC; in JSON ISO 8601 with offset, America/Bogota."""

State = Literal[
    "initializing",
    "waiting_l0",
    "checking_data",
    "ready",
    "active",
    "market_closed",
    "error",
    "shutdown",
]
Verdict = Literal["live", "quiet", "suspect", "dead", "closed"]


class View(BaseModel):
    """Base: immutable; an unknown field is a programming error, not a silent extra."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Answer(View):
    """What every JSON answer carries."""

    timestamp: Instant
    service_status: str


class ErrorAnswer(Answer):
    """Any answer that is not a success. ``error`` is stable; ``detail`` is a sentence for people."""

    error: str
    detail: str


# --- /health ----------------------------------------------------------------------------------


class PartHealth(View):
    """Whether a part of the service answered when last asked, and how fast (real time)."""

    connected: bool
    response_time_ms: int | None = None
    error: str | None = None


class FeedHealth(View):
    """The vendor's side. ``expected`` is false outside sessions, when silence is no fault."""

    connected: bool
    expected: bool
    verdict: Verdict = "closed"
    evidence: str | None = None


class ServiceInfo(View):
    name: str
    status: str
    uptime_seconds: int
    reason: str
    since: Instant | None


class ConnectivityInfo(View):
    database: PartHealth
    redis: PartHealth
    feed: FeedHealth


class SystemResources(View):
    """Per cent of the machine: all processors, memory, and the disk that holds the state."""

    cpu_percent: float
    memory_percent: float
    disk_percent: float


class HopHealth(View):
    """A station of a price: what it did last, and what waits there.

    ``oldest_undone_s``: real seconds for disk, PostgreSQL, Redis and clients, else of the service's clock.
    ``latency_ms`` is what the last probe took; ``probe`` what it said, where it failed or left something out.
    """

    last_done: Instant | None
    undone: int
    oldest_undone_s: float | None
    latency_ms: float | None = None
    probe: str | None = None


class HealthAnswer(Answer):
    status: Literal["healthy", "degraded", "unhealthy"]
    service: str
    version: str
    service_info: ServiceInfo
    connectivity: ConnectivityInfo
    system_resources: SystemResources
    problems: list[str]
    work: dict[str, HopHealth] = {}
    """By hop: received, accepted, journaled, published, cached, committed, bar_closed, bar_reconciled."""


class LiveAnswer(Answer):
    status: Literal["alive"]


class ReadyAnswer(Answer):
    status: Literal["ready", "not_ready"]
    reason: str


# --- /status ----------------------------------------------------------------------------------


class StateInfo(View):
    """The state, why, and since when."""

    state: str
    reason: str
    since: Instant


class L0Status(View):
    """The historical foundation; ``None`` where it has not been looked at yet."""

    ready_signal_exists: bool
    data_freshness_hours: float | None
    completeness_percentage: float | None
    is_fresh: bool
    is_complete: bool
    missing_slots: int | None = None
    last_bar: Instant | None = None
    checked_at: Instant | None = None
    reason: str | None = None


class SessionView(View):
    """Where the market stands, in its own zone. Minutes are rounded up; what does not apply is ``null``."""

    calendar: str
    timezone: str
    status: Literal["open", "closed"]
    is_trading_day: bool
    holiday: str | None
    current_session_start: Instant | None
    current_session_end: Instant | None
    minutes_until_close: int | None
    next_session_start: Instant
    next_session_end: Instant
    minutes_until_open: int | None

    @field_serializer(
        *("current_session_start", "current_session_end"),
        *("next_session_start", "next_session_end"),
    )
    def _local(self, instant: float | None) -> str | None:
        return None if instant is None else iso_local(instant, ZoneInfo(self.timezone))


class KeyView(View):
    """One vendor key. ``name`` tells which without telling the key: G1_3, or its last digits."""

    name: str
    state: str
    calls_today: int
    calls_this_minute: int | None = None
    cooldown_until: Instant | None = None
    latency_ms: float | None = None
    refused: str | None = None
    """The vendor's words, where it called the key wrong or its plan excludes what we ask for."""
    refused_since: Instant | None = None
    next_try: Instant | None = None
    """When a disabled key is tried again."""
    streams: bool | None = None
    """Whether the vendor streams with it; null: it has not been asked."""
    not_streamed: str | None = None


class ApiKeyUsage(View):
    """``current_key_index`` counts from 0; ``total_calls`` since UTC midnight."""

    total_keys: int
    usable_keys: int | None = None
    """Not disabled."""
    current_key_index: int
    total_calls: int
    problems: list[str] = []
    """What no key is left for; in the ``problems`` of ``/health``, too."""
    keys: list[KeyView] = []


class VerdictChange(View):
    """A verdict of the past; changes between live and quiet are no news and not listed."""

    verdict: Verdict
    evidence: str
    at: Instant


class DeadSpanView(View):
    """A stretch for which the stream was not to be believed: from its last new price to the next."""

    start: Instant
    found_at: Instant
    end: Instant | None
    evidence: str


class ComparisonCounts(View):
    """REST prices compared with the stream's, since the start of the process, by result."""

    agrees: int = 0
    differs: int = 0
    unclear: int = 0
    late: int = 0
    failed: int = 0
    refused: int = 0


class SymbolVerdictView(View):
    """The verdict on the stream of one symbol, and the numbers behind it (seconds).

    ``source`` tells who delivers the symbol now: while REST does, the stream stays ``dead`` here.
    """

    verdict: Verdict
    evidence: str
    since: Instant
    source: str | None
    silence_s: float | None
    suspect_after_s: float
    usual_silence_s: float
    usual_gap_s: float
    learned_days: int
    last_price_at: Instant | None
    last_new_price_at: Instant | None = None
    """The last price that proved the stream: a new one, with a stamp at most two minutes old."""
    lag_s: float = 0.0
    """How far the stamps steadily lie behind our clock; less a minute where all are whole minutes."""
    rest_fault: str | None = None
    """Why the REST price is no witness now."""
    rest_price: float | None
    rest_asked_at: Instant | None
    samples: ComparisonCounts
    history: list[VerdictChange]
    dead_spans: list[DeadSpanView] = []


class RealtimeCollection(View):
    """The live feed: what it delivers and how we judge its silence."""

    active: bool
    websocket_connected: bool
    source: str | None = None
    verdict: Verdict = "closed"
    evidence: str | None = None
    last_tick_at: Instant | None = None
    ticks_accepted: int = 0
    ticks_rejected: int = 0
    reconnects: int = 0
    verdicts: dict[str, SymbolVerdictView] = {}
    """By symbol; ``verdict`` and ``evidence`` above speak for what is delivered, REST included."""
    not_streamed: str | None = None
    """Why no API key may stream. No fault where prices come by REST from the start."""


class StorageStatus(View):
    """The way from the journal to PostgreSQL; lag is what is journaled but not there yet."""

    database_connected: bool
    redis_connected: bool
    journal_records: int | None = None
    writer_lag_records: int | None = None
    writer_error: str | None = None


class ComponentStatus(View):
    name: str
    running: bool
    restarts: int = 0
    last_error: str | None = None


class ClientCounts(View):
    """WebSocket clients now, and totals since the start of the process."""

    connected: int
    by_mode: dict[str, int]
    by_symbol: dict[str, int]
    slow: int
    connections_total: int
    messages_sent_total: int
    skipped_ticks_total: int
    slowed_total: int
    closed_slow_total: int


class ConnectionCounts(View):
    """TCP connections now, clients included, and what was refused since the start, by reason."""

    open: int
    maximum: int
    clients_maximum: int
    refused_total: dict[str, int]


class StreamPosition(View):
    """The last tick given out for a symbol: what a client resumes from."""

    epoch: int | None
    offset: int


class FailureView(View):
    """The last failure of a part that has not succeeded since."""

    part: str
    reason: str
    since: Instant
    last_at: Instant
    times: int


class SymbolStatus(View):
    """A symbol on its own: its state and why, its history's foundation, and where its market stands."""

    state: StateInfo
    history: list[StateInfo] = []
    l0: L0Status
    market_session: SessionView


class WatermarkView(View):
    """How far a hop has got with one symbol, when, and since when what is not done waits there.

    ``position`` is a journal record for journaled and committed, a slot's open for bars, a count of quotes
    for received, else an offset.
    """

    position: int | None
    done_at: Instant | None
    undone: int
    oldest_undone_s: float | None


class HealthChange(View):
    """``/health`` turned to ``status`` at ``since``; ``problems`` of that moment."""

    status: Literal["healthy", "degraded", "unhealthy"]
    since: Instant
    problems: list[str]


class StatusView(View):
    """All of ``/status`` but what the API knows itself (clients, positions, session, version)."""

    is_running: bool
    uptime_seconds: int
    l0_integration: L0Status
    api_key_usage: ApiKeyUsage
    realtime_collection: RealtimeCollection
    state: StateInfo
    """Of the service: that of the symbol which is furthest, ``active`` before all."""
    history: list[StateInfo] = []
    symbols: dict[str, SymbolStatus] = {}
    storage: StorageStatus
    components: list[ComponentStatus] = []
    failures: list[FailureView] = []
    """Parts that fail at present; ``problems`` of ``/health`` has a sentence for each."""
    watermarks: dict[str, dict[str, WatermarkView]] = {}
    """By symbol and hop: the last work done, and the age of the oldest work not done."""
    health_history: list[HealthChange] = []
    """The last changes of the ``status`` of ``/health``, oldest first."""
    bus: dict[str, Any] = {}
    """What publishing has done so far, and what waits for Redis."""
    credits: dict[str, Any] = {}
    reconciliation: dict[str, Any] = {}
    """By symbol: how much of the L0 window is final, and how far live bars were from the vendor's."""
    hygiene: dict[str, Any] = {}
    """By symbol: what was odd about its quotes since the start, in counts."""
    provider: str
    provider_warning: str | None = None
    """Why prices that count as real may be invented all the same."""
    world: World
    """Whose rows, keys and messages this instance writes, and whose places it refuses."""
    simulated: bool


class StatusAnswer(StatusView, Answer):
    version: str
    market_session: SessionView
    clients: ClientCounts
    connections: ConnectionCounts
    positions: dict[str, StreamPosition]


# --- /market ----------------------------------------------------------------------------------


class SessionAnswer(SessionView, Answer):
    symbol: str


class LatestAnswer(View):
    """The last price. ``timestamp`` is the tick's own, ``server_time`` that of this answer."""

    symbol: str
    price: float
    bid: float | None
    ask: float | None
    spread: float | None
    volume: int
    timestamp: str
    source: str
    epoch: int
    offset: int
    server_time: Instant
    age_seconds: float
    service_status: str


class CertificateRow(View):
    ticks: dict[str, int]
    first_tick: str | None
    last_tick: str | None
    longest_silence_s: int
    partial: bool


class BarRow(View):
    symbol: str
    datetime: str
    open: float
    high: float
    low: float
    close: float
    volume: int
    source: str
    revision: int
    status: Literal["closed", "revised", "reconciled"]
    certificate: CertificateRow | None


class TickRow(View):
    symbol: str
    price: float
    bid: float | None
    ask: float | None
    spread: float | None
    volume: int
    timestamp: str
    source: str
    epoch: int
    offset: int
    received_at: str
    trading_session: bool
    flags: list[str]


class BarsAnswer(Answer):
    """Rows oldest first; ``next_cursor`` continues behind the last, ``null`` when there is no more."""

    symbol: str
    interval: str
    data: list[BarRow]
    next_cursor: str | None


class TicksAnswer(Answer):
    """Rows by epoch and offset; ``next_cursor`` as for bars."""

    symbol: str
    data: list[TickRow]
    next_cursor: str | None


class SlotView(View):
    """One expected 5-minute slot and who covers it; its label in the zone of its market."""

    datetime: Instant
    source: str | None
    status: Literal["vendor", "live", "both", "pending", "unknown"]
    revision: int | None = None
    final: bool = False
    """Two answers of the vendor agree."""
    grade: str | None = None
    reason: str | None = None
    timezone: str = Field("America/Bogota", exclude=True)

    @field_serializer("datetime")
    def _local(self, instant: float) -> str:
        return iso_local(instant, ZoneInfo(self.timezone))


class DayNumbers(View):
    """A day in numbers; ``covered`` is vendor + live + both, all five add up to ``expected``."""

    date: str
    expected: int
    covered: int
    vendor: int = 0
    live: int = 0
    both: int = 0
    pending: int = 0
    unknown: int = 0
    final: int = 0


class ContinuityView(DayNumbers):
    """A day, slot by slot."""

    slots: list[SlotView]


class ContinuityAnswer(ContinuityView, Answer):
    symbol: str


class ContinuityRangeView(View):
    """The trading days of a range (``start`` and ``end`` inclusive), and their sums."""

    start: str
    end: str
    expected: int
    covered: int
    final: int
    unknown: int
    days: list[DayNumbers]


class ContinuityRangeAnswer(ContinuityRangeView, Answer):
    symbol: str
