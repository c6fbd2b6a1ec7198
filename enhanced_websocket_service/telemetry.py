"""Logging and metrics. Both are handed to components; neither is global state of theirs.

``structlog`` writes one event a line: a sentence, then ``key=value``. Secrets registered with
``configure_logging`` are replaced in every line, wherever they come from, library loggers included.
"""

import logging
import logging.handlers
import sys
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Any, Literal

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from .redaction import Redactor


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
) -> None:
    """Set up the root logger: standard error, and a rotating file in ``directory`` when given.

    A directory that cannot be used is a warning: the log is no reason not to collect.
    """
    redact = Redactor(secrets)

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
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    handlers[0].setFormatter(formatter(sys.stderr.isatty()))
    problem = None
    if directory is not None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            file = logging.handlers.RotatingFileHandler(
                directory / "enhanced_websocket_service.log", maxBytes=50_000_000, backupCount=5
            )
        except OSError as error:
            problem = f"LOG_DIR={directory} cannot be written ({error.strerror})"
        else:
            file.setFormatter(formatter(False))
            handlers.append(file)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    for chatty in ("httpx", "httpcore", "uvicorn.access", "websockets", "watchfiles"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if problem is not None:
        structlog.get_logger(__name__).warning(f"{problem}; the log goes on without a file.")


class Metrics:
    """Every metric of the service, on a registry of its own. Labels never hold a key."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.ticks = Counter(
            "ews_ticks_accepted", "Ticks accepted", ["symbol", "source"], registry=self.registry
        )
        self.rejected = Counter(
            "ews_ticks_rejected", "Quotes rejected", ["reason"], registry=self.registry
        )
        self.resent = Counter(
            "ews_ticks_resent", "Last prices the vendor sent again", registry=self.registry
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
        self.polls = Counter(
            "ews_polls", "Polled prices by what they told", ["result"], registry=self.registry
        )
        self.component_restarts = Counter(
            "ews_component_restarts",
            "Components restarted after a failure",
            ["component"],
            registry=self.registry,
        )
