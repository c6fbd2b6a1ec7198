"""Logging and metrics. Both are handed to components; neither is global state of theirs.

``structlog`` writes one event a line: a sentence, then ``key=value``. Secrets registered with
``configure_logging`` are replaced in every line, wherever they come from, library loggers included.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Literal

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .log_writer import LogWriter, RotatingFile, StreamOutput, log_writers
from .redaction import Redactor

_OPEN_WITHIN_S = 3.0
"""Real seconds after which a folder for the log counts as one that does not answer."""


class Rarely:
    """Which of many equal events the log hears of: of each kind one in ``seconds``. Pure.

    A line for each would let any stranger fill the disk.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._told: dict[str, float] = {}
        self._since: dict[str, int] = {}

    def due(self, now: float, kind: str = "") -> int:
        """Count one event; how many there were since one was told if this one should be, else 0.

        :param now: seconds of any clock that is not set back.
        """
        self._since[kind] = self._since.get(kind, 0) + 1
        if kind in self._told and now - self._told[kind] < self._seconds:
            return 0
        self._told[kind] = now
        return self._since.pop(kind)


def configure_logging(
    *,
    level: str = "INFO",
    form: Literal["text", "json"] = "text",
    directory: Path | None = None,
    secrets: Iterable[str] = (),
    stream: Literal["stdout", "stderr"] = "stderr",
    wait_s: float = 0.0,
) -> None:
    """Set up the root logger: a standard stream, and a rotating file in ``directory`` when given.

    Neither a reader that stalls nor a folder that cannot be written keeps anybody from working: see
    ``log_writer``. What is the matter with the folder is logged.

    :param wait_s: see ``LogWriter``.
    """
    formatter = _formatters(form, Redactor(secrets))
    root = logging.getLogger()
    for writer in log_writers():
        writer.close()
    for old in list(root.handlers):
        root.removeHandler(old)
    # With no handler at all Python would write to standard error by itself, secrets included.
    root.addHandler(logging.NullHandler())
    output = getattr(sys, stream)
    # None: it was closed when we started; what has its number by now is another file.
    if output is not None:
        name = {"stdout": "Standard output", "stderr": "Standard error"}[stream]
        root.addHandler(
            LogWriter(
                StreamOutput(output, name),
                "log output",
                formatter(output.isatty()),
                encoding=output.encoding,
                wait_s=wait_s,
            )
        )
    root.setLevel(level)
    for chatty in ("httpx", "httpcore", "uvicorn.access", "websockets", "watchfiles"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    if directory is not None:
        root.addHandler(_log_file(directory, formatter(False), wait_s))


def _formatters(
    form: Literal["text", "json"], redact: Redactor
) -> Callable[[bool], logging.Formatter]:
    """Set up structlog; what makes a formatter for its lines, with colours or without."""

    def redaction(
        _logger: Any, _name: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        return {key: redact(value) for key, value in event.items()}

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=False),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redaction,
    ]

    def formatter(colours: bool) -> logging.Formatter:
        renderer: Any
        if form == "json":
            renderer = structlog.processors.JSONRenderer()
        else:
            renderer = structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=0)
        return structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )

    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    return formatter


def _log_file(directory: Path, formatter: logging.Formatter, wait_s: float) -> LogWriter:
    """The rotating file in ``directory``; why it takes no lines is logged, where it does not."""
    path, name = directory / "enhanced_websocket_service.log", f"LOG_DIR={directory}"
    output = RotatingFile(path, name, max_bytes=50_000_000, backups=5)
    writer = LogWriter(output, "log files", formatter, wait_s=wait_s)
    answered = writer.tried(_OPEN_WITHIN_S)
    if not answered or writer.fault is not None:
        structlog.get_logger(__name__).warning(
            f"{writer.fault or f'{name} does not answer'}. The log goes on without it; name a folder "
            "this user may write, or leave LOG_DIR unset."
        )
    return writer


class _DroppedLogLines(Collector):
    """Asked at each scrape: the log is older than any service, and has threads of its own."""

    def collect(self) -> Iterator[Metric]:
        dropped = CounterMetricFamily(
            "ews_log_lines_dropped",
            "Log lines that their reader or disk did not take",
            labels=["output"],
        )
        for writer in log_writers():
            dropped.add_metric([writer.part], writer.dropped)
        yield dropped


class _UndoneWork(Collector):
    """Asked at each scrape: an age grows while nobody does anything."""

    def __init__(self) -> None:
        self.read: Callable[[], Mapping[str, tuple[float, int]]] = dict
        self.read_symbols: Callable[[], Mapping[tuple[str, str], float]] = dict

    def collect(self) -> Iterator[Metric]:
        ages = GaugeMetricFamily(
            "ews_undone_seconds", "Age of the oldest work not done", labels=["hop"]
        )
        counts = GaugeMetricFamily("ews_undone_work", "Work not done", labels=["hop"])
        for hop, (age_s, count) in self.read().items():
            ages.add_metric([hop], age_s)
            counts.add_metric([hop], count)
        by_symbol = GaugeMetricFamily(
            "ews_symbol_undone_seconds",
            "Age of the oldest work not done of a symbol",
            labels=["symbol", "hop"],
        )
        for (symbol, hop), age_s in self.read_symbols().items():
            by_symbol.add_metric([symbol, hop], age_s)
        yield from (ages, counts, by_symbol)


class Metrics:
    """Every metric of the service, on a registry of its own. Labels never hold a key."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_DroppedLogLines())
        self.undone = _UndoneWork()
        """Who knows what is not done is named here, once it is there."""
        self.registry.register(self.undone)
        self.ticks = Counter(
            "ews_ticks_accepted", "Ticks accepted", ["symbol", "source"], registry=self.registry
        )
        self.rejected = Counter(
            "ews_ticks_rejected", "Quotes rejected", ["reason"], registry=self.registry
        )
        self.resent = Counter(
            "ews_ticks_resent", "Last prices the vendor sent again", registry=self.registry
        )
        self.withheld = Counter(
            "ews_quotes_withheld",
            "Quotes of a stream that has not proved itself, while REST serves the symbol",
            ["symbol"],
            registry=self.registry,
        )
        self.late = Counter(
            "ews_ticks_late", "Ticks too late for their bar", registry=self.registry
        )
        self.odd_ticks = Counter(
            "ews_ticks_odd",
            "Accepted ticks with something odd about them, by kind",
            ["symbol", "kind"],
            registry=self.registry,
        )
        self.bars = Counter(
            "ews_bars_published", "Bars published", ["status"], registry=self.registry
        )
        self.reconciled_slots = Counter(
            "ews_reconciled_slots",
            "Slots in answers of the vendor, by what the answer meant",
            ["finding"],
            registry=self.registry,
        )
        self.slots_lacking = Gauge(
            "ews_slots_without_vendor_bar",
            "Slots of the L0 window that the vendor has not given yet",
            ["symbol"],
            registry=self.registry,
        )
        self.slots_lost = Gauge(
            "ews_slots_awaiting_repair",
            "Slots that a gap of the feed touched and the vendor's bars have not repaired yet",
            ["symbol"],
            registry=self.registry,
        )
        self.bar_drift = Histogram(
            "ews_bar_drift",
            "Distance of whole live bars from the vendor's, in price units",
            ["field"],
            buckets=(0.0, 0.01, 0.1, 0.5, 1, 2, 5, 10, 50),
            registry=self.registry,
        )
        self.tick_price = Gauge(
            "ews_last_price", "Price of the last tick", ["symbol"], registry=self.registry
        )
        self.state = Gauge(
            "ews_service_state", "1 for the current state", ["state"], registry=self.registry
        )
        self.journal_bytes = Counter(
            "ews_journal_bytes", "Bytes written to the journal", registry=self.registry
        )
        self.writer_lag = Gauge(
            "ews_writer_lag_records", "Journaled, not yet in PostgreSQL", registry=self.registry
        )
        self.writer_batch = Histogram(
            "ews_writer_batch_records",
            "Records per committed batch",
            buckets=(1, 10, 100, 1000, 10000),
            registry=self.registry,
        )
        self.clients = Gauge("ews_clients", "WebSocket clients connected", registry=self.registry)
        self.messages = Counter(
            "ews_client_messages", "Messages sent to clients", registry=self.registry
        )
        self.clients_refused = Counter(
            "ews_connections_refused",
            "Connections and handshakes refused",
            ["reason"],
            registry=self.registry,
        )
        self.clients_slowed = Counter(
            "ews_clients_slowed",
            "Clients found to be slow, by what waited: too many bytes, or bytes too old",
            ["cause"],
            registry=self.registry,
        )
        self.clients_closed = Counter(
            "ews_clients_closed",
            "WebSocket clients that the service closed, by close code",
            ["code"],
            registry=self.registry,
        )
        self.feed_connected = Gauge(
            "ews_feed_connected", "1 while the vendor socket is open", registry=self.registry
        )
        self.feed_reconnects = Counter(
            "ews_feed_reconnects", "Vendor socket reconnects", registry=self.registry
        )
        self.feed_verdict = Gauge(
            "ews_feed_verdict",
            "1 for the present verdict on a symbol's stream",
            ["symbol", "verdict"],
            registry=self.registry,
        )
        self.feed_silence = Gauge(
            "ews_feed_silence_seconds",
            "Since the last price of the stream",
            ["symbol"],
            registry=self.registry,
        )
        self.liveness_samples = Counter(
            "ews_liveness_samples",
            "REST prices asked to compare with, by result",
            ["symbol", "result"],
            registry=self.registry,
        )
        self.feed_gaps = Counter(
            "ews_feed_gaps",
            "Times in which the stream did not deliver",
            ["symbol", "cause"],
            registry=self.registry,
        )
        self.vendor_frames = Counter(
            "ews_vendor_frames", "Frames from the vendor by kind", ["kind"], registry=self.registry
        )
        self.vendor_calls = Counter(
            "ews_vendor_calls", "REST calls by outcome", ["outcome"], registry=self.registry
        )
        self.credits_spent = Counter(
            "ews_credits_spent", "API credits spent", ["purpose"], registry=self.registry
        )
        self.credits_left = Gauge(
            "ews_credits_left", "API credits left today on usable keys", registry=self.registry
        )
        self.clock_offset = Gauge(
            "ews_clock_offset_seconds",
            "The vendor's clock minus this machine's; NaN while unknown",
            registry=self.registry,
        )
        self.polls = Counter(
            "ews_polls", "Polled prices by what they told", ["result"], registry=self.registry
        )
        self.component_restarts = Counter(
            "ews_component_restarts",
            "Components restarted after a failure",
            ["component"],
            registry=self.registry,
        )
