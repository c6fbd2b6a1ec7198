"""What the API needs from the service: one protocol, implemented where the parts are wired.

Everything synchronous answers from memory, at once and in every state: the API calls it while PostgreSQL,
Redis and the vendor are away. The ``async`` methods read stored rows; they raise
``errors.DatabaseUnavailable`` (answered 503) when the database cannot be asked, and never block the loop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Protocol

from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.storage.stream_store import StoredStretch

from .models import (
    ContinuityRangeView,
    ContinuityView,
    FeedHealth,
    HopHealth,
    PartHealth,
    SessionView,
    StateInfo,
    StatusView,
)


@dataclass(frozen=True, slots=True)
class HealthView:
    """The service's share of ``/health``; the verdict over it is ``health.judge``."""

    state: StateInfo
    uptime_seconds: int  # real seconds since the start of the process
    database: PartHealth
    redis: PartHealth
    feed: FeedHealth
    problems: Sequence[str] = ()
    """What else keeps the service from ``healthy``: a sentence each."""
    work: Mapping[str, HopHealth] = field(default_factory=dict)
    """By hop: the last work done, and what waits there."""


@dataclass(frozen=True, slots=True)
class BarQuery:
    """Which bars, all bounds in unix seconds UTC. Answers are ordered by ``open_time``.

    Without ``newest`` the first ``limit`` rows of the window, with it the last ``limit``
    (still oldest first).
    """

    symbol: str
    interval: str  # a name of market.bar.INTERVALS
    start: float | None  # open_time >= start
    end: float | None  # open_time < end
    after: int | None  # open_time > after: where the page before ended
    limit: int
    newest: bool
    as_of: float | None  # the revisions known at that instant; None: the latest
    source: str | None  # only this source; None: the best row of each slot (view market_bars)


@dataclass(frozen=True, slots=True)
class TickQuery:
    """Which ticks; bounds on the vendor's stamp, unix seconds UTC. Ordered by (epoch, offset)."""

    symbol: str
    start: float | None
    end: float | None
    after: tuple[int, int] | None  # (epoch, offset) > after
    limit: int
    newest: bool
    as_of: float | None  # received_at <= as_of
    source: str | None


class ServiceView(Protocol):
    """The service as its clients may see it."""

    @property
    def symbols(self) -> Sequence[str]:
        """The served symbols, ours (USDCOP); the first is the default. Never empty."""
        ...

    def now(self) -> float:
        """The service's clock (virtual or not), unix seconds UTC."""
        ...

    def service_state(self) -> str:
        """One of the eight states, lower case."""
        ...

    def health(self) -> HealthView: ...

    def status(self) -> StatusView: ...

    def latest(self, symbol: str) -> Tick | None:
        """The last price known, also from before a restart; ``None`` when there is none."""
        ...

    def session(self, symbol: str) -> SessionView:
        """``session.session_view(calendar, now)`` does it."""
        ...

    def today(self, symbol: str) -> date:
        """The day that it is in the market of ``symbol``."""
        ...

    async def bars(self, query: BarQuery) -> Sequence[Bar]:
        """At most ``query.limit`` bars.

        :raises errors.DatabaseUnavailable: answered with 503.
        """
        ...

    async def ticks(self, query: TickQuery) -> Sequence[Tick]:
        """At most ``query.limit`` stored ticks.

        :raises errors.DatabaseUnavailable: answered with 503.
        """
        ...

    async def stream(self, symbol: str, after: tuple[int, int], limit: int) -> StoredStretch:
        """At most ``limit`` ticks behind ``after`` (epoch, offset), with the bars and epochs among them.

        :raises errors.StorageError: they cannot be read.
        """
        ...

    async def stream_start(self, symbol: str, instant: float) -> tuple[int, int] | None:
        """(epoch, offset) of the first tick stamped at or after ``instant`` (unix seconds UTC).

        :raises errors.StorageError: it cannot be read.
        """
        ...

    async def stored(self, timeout_s: float) -> bool:
        """Wait until everything published is stored, at most so many real seconds; whether it is."""
        ...

    async def continuity(self, symbol: str, day: date) -> ContinuityView:
        """Who covers each expected slot of ``day``; no slots on a closed day.

        :raises errors.DatabaseUnavailable: answered with 503.
        """
        ...

    async def continuity_range(self, symbol: str, start: date, end: date) -> ContinuityRangeView:
        """The trading days of ``start .. end``, both inclusive, in numbers.

        :raises errors.DatabaseUnavailable: answered with 503.
        """
        ...
