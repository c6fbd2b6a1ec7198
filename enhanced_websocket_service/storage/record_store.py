"""Puts journaled records into their tables, inside the caller's transaction.

The quick way stores a whole batch at once and fails as a whole. The careful way halves what fails until
the record that cannot be stored stands alone; it goes to ``rejected_ticks`` with the reason
``unstorable``, everything else to where it belongs.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeVar
from zoneinfo import ZoneInfo

import asyncpg
import msgspec
import structlog

from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.calendar import utc
from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.market.tick import Rejection, Tick

from .binary_copy import TICK_COLUMNS, UNENCODABLE, copy_chunks, tick_rows, tick_tuples
from .pool import WRITES
from .postgres import STORED_INTERVAL_S
from .records import Record

log = structlog.get_logger(__name__)

UNSTORABLE: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.RaiseError,  # a trigger of the database's owner
    *UNENCODABLE,
)
"""The fault lies in the data: storing it again would fail again."""

_CAREFUL_SLICE: Final = 512
_PLACE: Final = "realtime_market_data_symbol_epoch_tick_offset_key"

Kind = TypeVar("Kind", bound=Record)


@dataclass(slots=True)
class Stored:
    """What became of a batch."""

    quarantined: int = 0  # in rejected_ticks, because their own table cannot hold them
    duplicates: int = 0  # ticks that were stored before
    refused: dict[tuple[str, type], int] = field(default_factory=dict)
    """Of the quarantined, how many by symbol and kind."""
    why: str | None = None
    """What PostgreSQL said to the last of them."""


class Batch:
    """Records on their way into one transaction, sorted and their ticks encoded as they come in.

    :param zone: whose days ``session_date`` is.
    """

    def __init__(self, zone: ZoneInfo) -> None:
        self._zone = zone
        self._rows: list[bytes] = []
        self.fault: Exception | None = None
        """Why the ticks cannot be encoded as they are: the quick way would fail."""
        self.size = 0
        """Bytes of journal."""
        self.ticks: list[Tick] = []
        self.rejections: list[Rejection] = []
        self.updates: list[BarUpdate] = []
        self.epochs: list[EpochStarted] = []

    def __len__(self) -> int:
        return len(self.ticks) + len(self.rejections) + len(self.updates) + len(self.epochs)

    def add(self, records: Sequence[Record], size: int = 0) -> None:
        """Take in the next records of the journal, ``size`` bytes of it."""
        self.size += size
        ticks: list[Tick] = []
        for record in records:
            if isinstance(record, Tick):
                ticks.append(record)
            elif isinstance(record, Rejection):
                self.rejections.append(record)
            elif isinstance(record, BarUpdate):
                self.updates.append(record)
            else:
                self.epochs.append(record)
        self.ticks += ticks
        try:
            self._rows += tick_tuples(ticks, self._zone)
        except UNENCODABLE as error:
            self.fault = error

    def kinds(self) -> set[tuple[str, type]]:
        """What it holds, as ``kind_of`` has it."""
        lists = (self.ticks, self.rejections, self.updates, self.epochs)
        return {kind_of(record) for records in lists for record in records}

    def tick_copy(self) -> Iterator[bytes]:
        """All ticks in the form of ``tick_rows``, cut where it suits; raises ``fault``."""
        if self.fault is not None:
            raise self.fault
        return copy_chunks(self._rows)


class RecordStore:
    """Stores batches over one asyncpg connection that is inside a transaction."""

    def __init__(self, connection: Any, zone: ZoneInfo) -> None:
        self._connection = connection
        self._zone = zone
        self._stored = Stored()

    async def store(self, batch: Batch, *, careful: bool) -> Stored:
        """Store ``batch``; raises one of ``UNSTORABLE`` unless ``careful``."""
        self._stored = Stored()
        if careful:
            await self._put_slices(batch.ticks, self._put_ticks)
        elif batch.ticks:
            await self._copy(_one_by_one(batch.tick_copy()))
        put = self._put_slices if careful else self._put
        await put(batch.rejections, self._put_rejections)
        await put(batch.updates, self._put_bars)
        await put(batch.epochs, self._put_epochs)
        return self._stored

    async def _put(self, records: list[Kind], put: Callable[[list[Kind]], Awaitable[None]]) -> None:
        if records:
            await put(records)

    async def _put_slices(
        self, records: list[Kind], put: Callable[[list[Kind]], Awaitable[None]]
    ) -> None:
        """Carefully, and never so much at a stretch that live ticks would have to wait."""
        for first in range(0, len(records), _CAREFUL_SLICE):
            await self._put_carefully(records[first : first + _CAREFUL_SLICE], put)

    async def _put_carefully(
        self, records: list[Kind], put: Callable[[list[Kind]], Awaitable[None]]
    ) -> None:
        try:
            async with self._connection.transaction():  # a savepoint
                await put(records)
        except UNSTORABLE as error:
            if len(records) == 1:
                await self._give_up(records[0], error)
                return
            middle = len(records) // 2
            await self._put_carefully(records[:middle], put)
            await self._put_carefully(records[middle:], put)

    async def _give_up(self, record: Record, error: Exception) -> None:
        if isinstance(record, Tick) and _stored_before(error):
            self._stored.duplicates += 1
            log.warning(
                "A tick was stored before; it is not stored twice",
                symbol=record.symbol,
                epoch=record.epoch,
                offset=record.offset,
            )
            return
        detail = f"{type(error).__name__}: {error}"
        stored, key = self._stored, kind_of(record)
        stored.quarantined += 1
        stored.refused[key] = stored.refused.get(key, 0) + 1
        stored.why = detail
        log.error(
            "A record cannot be stored; it is in rejected_ticks", reason=detail, record=record
        )
        await self._connection.execute(WRITES["insert_rejected"], *_quarantine_row(record, detail))

    async def _put_ticks(self, ticks: list[Tick]) -> None:
        await self._copy(tick_rows(ticks, self._zone))

    async def _copy(self, rows: bytearray | AsyncIterator[bytes]) -> None:
        await self._connection.copy_to_table(
            "realtime_market_data", source=rows, columns=TICK_COLUMNS, format="binary"
        )

    async def _put_rejections(self, rejections: list[Rejection]) -> None:
        rows = [_rejected_row(rejection) for rejection in rejections]
        await self._connection.executemany(WRITES["insert_rejected"], rows)

    async def _put_bars(self, updates: list[BarUpdate]) -> None:
        revisions = [_revision_row(update) for update in updates]
        await self._connection.executemany(WRITES["insert_bar_revision"], revisions)
        current = [_bar_row(one) for one in updates if one.bar.interval_s == STORED_INTERVAL_S]
        await self._connection.executemany(WRITES["upsert_live_bar"], current)

    async def _put_epochs(self, epochs: list[EpochStarted]) -> None:
        rows = [(e.symbol, e.epoch, e.previous_epoch, e.previous_last_offset) for e in epochs]
        await self._connection.executemany(WRITES["insert_epoch"], rows)


def kind_of(record: Record) -> tuple[str, type]:
    """The symbol of ``record``, and what it is."""
    symbol = record.bar.symbol if isinstance(record, BarUpdate) else record.symbol
    return symbol, type(record)


async def _one_by_one(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    """As the socket takes them: all at once would be copied at once, while live ticks wait."""
    for chunk in chunks:
        yield chunk


def _stored_before(error: Exception) -> bool:
    """Whether the tick's place is taken; what a constraint of the database's owner refuses is not stored."""
    return isinstance(error, asyncpg.UniqueViolationError) and error.constraint_name == _PLACE


def _rejected_row(rejection: Rejection) -> tuple[Any, ...]:
    return (
        _clean(rejection.symbol),
        _time(rejection.timestamp),
        rejection.price,
        rejection.bid,
        rejection.ask,
        _clean(rejection.source),
        _time(rejection.received_at),
        _clean(rejection.reason),
        None,
        _clean(rejection.raw) if rejection.raw else None,
    )


def _quarantine_row(record: Record, detail: str) -> tuple[Any, ...]:
    """A row that always fits; whatever the record is, ``raw`` has all of it."""
    document = {"record": type(record).__name__, **msgspec.structs.asdict(record)}
    raw = _clean(msgspec.json.encode(document).decode())
    tail = ("unstorable", _clean(detail), raw)
    if isinstance(record, Tick | Rejection):
        values = (_time(record.timestamp), record.price, record.bid, record.ask)
        received = _time(record.received_at)
        return (_clean(record.symbol), *values, _clean(record.source), received, *tail)
    if isinstance(record, BarUpdate):
        bar = record.bar
        values = (_time(bar.open_time), bar.close, None, None)
        received = _time(record.published_at)
        return (_clean(bar.symbol), *values, _clean(bar.source), received, *tail)
    return (_clean(record.symbol), None, None, None, None, None, None, *tail)


def _revision_row(update: BarUpdate) -> tuple[Any, ...]:
    bar = update.bar
    return (
        *(bar.symbol, bar.interval_s, utc(bar.open_time), bar.source, update.epoch, bar.revision),
        *(bar.status, bar.open, bar.high, bar.low, bar.close, bar.volume, _certificate(update)),
        *(update.offset, utc(update.published_at)),
    )


def _bar_row(update: BarUpdate) -> tuple[Any, ...]:
    bar = update.bar
    return (
        *(bar.symbol, utc(bar.open_time), bar.open, bar.high, bar.low, bar.close, bar.volume),
        *(bar.source, update.epoch, bar.revision, bar.status, _certificate(update)),
        utc(update.published_at),
    )


def _certificate(update: BarUpdate) -> str | None:
    certificate = update.bar.certificate
    return None if certificate is None else msgspec.json.encode(certificate).decode()


def _clean(text: str) -> str:
    """PostgreSQL's text holds every character but NUL."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _time(instant: float) -> datetime | None:
    """``instant``, unless no calendar has it; the record itself stays in ``raw``."""
    try:
        return utc(instant)
    except (ValueError, OverflowError, OSError):
        return None
