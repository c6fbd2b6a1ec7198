"""What a client yields. Prices are floats with at most 6 decimals; times are aware datetimes."""

from datetime import datetime
from typing import Any, Final, Literal

import msgspec

NOT_PUBLISHED: Final = "not_published"


class Cursor(msgspec.Struct, frozen=True, order=True):
    """A place in one symbol's stream: everything up to this tick is known."""

    epoch: int
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}"


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """One price, exactly once and in order."""

    symbol: str
    epoch: int
    offset: int
    price: float
    bid: float | None
    ask: float | None
    spread: float | None
    volume: int
    timestamp: datetime  # the vendor's stamp
    received_at: datetime  # when the service had it
    source: str
    replayed: bool = False  # out of the past, because ``start`` asked for it


class Snapshot(Tick, frozen=True, kw_only=True):
    """The last known price at the moment of connecting: to be shown, not to be counted."""


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a bar. Of several, the highest ``revision`` counts."""

    symbol: str
    interval: str
    opens_at: datetime
    open: float
    high: float
    low: float
    close: float
    volume: int
    source: str
    revision: int
    status: Literal["closed", "revised", "reconciled"]
    certificate: dict[str, Any] | None
    epoch: int
    offset: int  # the last tick when it was published
    published_at: datetime
    replayed: bool = False


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The service's state or a verdict on its feed has changed."""

    server_status: str
    reason: str
    feed_verdict: str
    evidence: str | None
    verdicts: dict[str, str]
    timestamp: datetime


class Epoch(msgspec.Struct, frozen=True, kw_only=True):
    """The service was restarted: offsets begin again at 1."""

    symbol: str
    epoch: int
    previous_epoch: int | None
    previous_last_offset: int | None


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Offsets ``first .. last`` (inclusive) that did not come and will not come any more.

    ``reason`` is the server's, or ``not_received`` for a hole that the client found itself, or
    ``history_lost`` when the server no longer knows what this client has. ``last`` is ``None`` when
    nobody knows where the epoch ended.
    """

    symbol: str
    epoch: int
    first: int
    last: int | None
    reason: str

    @property
    def lost(self) -> bool:
        """False for ticks that were stored but are not for clients: nothing is missing then."""
        return self.reason != NOT_PUBLISHED


class Connected(msgspec.Struct, frozen=True, kw_only=True):
    """The server said ``welcome``. ``resumed``: from where, by symbol."""

    symbols: list[str]
    epoch: int | None
    offsets: dict[str, int]
    server_status: str
    resumed: dict[str, Cursor]


class Disconnected(msgspec.Struct, frozen=True, kw_only=True):
    """The connection ended, or could not be made. ``retry_in_s``: real seconds until the next try."""

    code: int | None  # the close code, where there was one
    reason: str
    retry_in_s: float


class ServerError(msgspec.Struct, frozen=True, kw_only=True):
    """The server could not use something; the connection lives."""

    code: str
    message: str


Event = Tick | Snapshot | Bar | Status | Epoch | Gap | Connected | Disconnected | ServerError
