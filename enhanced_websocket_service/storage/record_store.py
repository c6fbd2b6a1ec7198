"""Puts journaled records into their tables, inside the caller's transaction.

The quick way stores a whole batch at once and fails as a whole. The careful way halves what fails until
the record that cannot be stored stands alone; it goes to ``rejected_ticks`` with the reason
``unstorable``, everything else to where it belongs. Where the table is at fault, not the record, nothing
goes anywhere: a table that refuses what it took before, or a plain record too, is told, and the journal keeps
its records until it is mended.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeVar, cast
from zoneinfo import ZoneInfo

import asyncpg
import msgspec
import structlog

from enhanced_websocket_service.errors import RowsAltered, UnfitTables
from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.calendar import utc
from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.market.tick import HELD, MAX_PRICE, Rejection, Tick
from enhanced_websocket_service.market.validation import SMALLEST

from .binary_copy import TICK_COLUMNS, UNENCODABLE, copy_chunks, tick_rows, tick_tuples
from .pool import WRITES
from .postgres import STORED_INTERVAL_S
from .records import Record
from .table_forms import BARS, TICKS, WritingForm

log = structlog.get_logger(__name__)

UNSTORABLE: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.RaiseError,  # a trigger of the database's owner
    RowsAltered,
    *UNENCODABLE,
)
"""The fault lies in the data, or in the table: storing it again would fail again."""

_CAREFUL_SLICE: Final = 512
_UNTRUE_S: Final = 86_400.0
"""A tick stamped further from its receipt needs no partition of its own: its stamp is wrong."""
_ELSEWHERE: Final = 1 << 62
"""An offset that no tick has: for rows that are rolled back."""
_PLAIN: Final = 1.0

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


@dataclass(slots=True)
class Witnesses:
    """Records that the tables took: one that they refuse now shows that the table has changed.

    :param symbol: a symbol that is collected.
    """

    symbol: str = ""
    tick: Tick | None = None
    update: BarUpdate | None = None

    def remember(self, batch: "Batch") -> None:
        """``batch`` was stored whole."""
        if batch.ticks:
            self.tick = batch.ticks[-1]
        if batch.updates:
            self.update = batch.updates[-1]


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
                if record.reason == HELD:
                    continue  # its fate follows in the journal, and only that has a row
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
    """Stores batches over one asyncpg connection that is inside a transaction.

    :param form: how the tables want it.
    :param witnesses: what tells a table at fault from a record at fault; needed to store carefully.
    """

    def __init__(
        self,
        connection: Any,
        zone: ZoneInfo,
        form: WritingForm,
        witnesses: Witnesses | None = None,
    ) -> None:
        self._connection = connection
        self._zone = zone
        self._form = form
        self._witnesses = witnesses or Witnesses()
        self._stored = Stored()
        self._taken: set[type[Record]] = set()  # kinds of which a record was stored

    async def store(self, batch: Batch, *, careful: bool) -> Stored:
        """Store ``batch``; raises one of ``UNSTORABLE`` unless ``careful``.

        :raises UnfitTables: with ``careful``: a table is at fault, so that nothing may be given up.
        """
        self._stored = Stored()
        if careful:
            # What is deferred to the commit could not be told from record to record.
            await self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            await self._put_slices(batch.ticks, self._put_ticks)
        elif batch.ticks:
            await self._copy(_one_by_one(batch.tick_copy()), len(batch.ticks))
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
        duplicates = self._stored.duplicates
        try:
            async with self._connection.transaction():  # a savepoint
                await put(records)
        except UNSTORABLE as error:
            self._stored.duplicates = duplicates
            if len(records) == 1:
                await self._give_up(records[0], error, put)
                return
            middle = len(records) // 2
            await self._put_carefully(records[:middle], put)
            await self._put_carefully(records[middle:], put)
        else:
            self._taken.add(_kind(records[0]))

    async def _give_up(
        self, record: Kind, error: Exception, put: Callable[[list[Kind]], Awaitable[None]]
    ) -> None:
        if isinstance(record, Tick) and self._stored_before(error):
            self._stored.duplicates += 1
            log.warning(
                "A tick was stored before; it is not stored twice",
                symbol=record.symbol,
                epoch=record.epoch,
                offset=record.offset,
            )
            return
        if not isinstance(error, UNENCODABLE) and await self._is_the_tables_fault(
            record, error, put
        ):
            raise UnfitTables(_table_at_fault(record, error)) from error
        detail = f"{type(error).__name__}: {error}"
        stored, key = self._stored, kind_of(record)
        stored.quarantined += 1
        stored.refused[key] = stored.refused.get(key, 0) + 1
        stored.why = f"{_named(record)}: {_said(error)}"
        log.error(
            "A record cannot be stored; it is in rejected_ticks", reason=detail, record=record
        )
        await self._connection.execute(WRITES["insert_rejected"], *_quarantine_row(record, detail))

    async def _is_the_tables_fault(
        self, record: Kind, error: Exception, put: Callable[[list[Kind]], Awaitable[None]]
    ) -> bool:
        """Whether any other record of this kind would have been refused, too."""
        if isinstance(error, asyncpg.SequenceGeneratorLimitExceededError):
            return True
        if _lacks_partition(error):
            return not _is_misdated(record)
        if _kind(record) in self._taken:
            return False
        witness = cast(Kind | None, self._witness(record))
        if witness is None:
            return False
        attempt = self._connection.transaction()  # a savepoint
        await attempt.start()
        try:
            await put([witness])
        except UNSTORABLE:
            return True
        finally:
            await attempt.rollback()
        return False

    def _witness(self, record: Record) -> Record | None:
        """One that the table took before or, where none is known, ``record`` without its oddities."""
        known = self._witnesses
        if isinstance(record, Tick):
            return msgspec.structs.replace(
                known.tick or _plain_tick(record, known.symbol), offset=_ELSEWHERE
            )
        if isinstance(record, BarUpdate):
            return known.update or _plain_bar(record, known.symbol)
        return None

    async def _put_ticks(self, ticks: list[Tick]) -> None:
        await self._copy(tick_rows(ticks, self._zone), len(ticks))

    async def _copy(self, rows: bytearray | AsyncIterator[bytes], count: int) -> None:
        """:raises RowsAltered: the table does not hold what was written there."""
        connection = self._connection
        if self._form.staged:
            await connection.execute(WRITES["make_incoming_ticks"])
        table = "incoming_ticks" if self._form.staged else TICKS
        said = await connection.copy_to_table(
            table, source=rows, columns=TICK_COLUMNS, format="binary"
        )
        if not self._form.staged:
            if (copied := int(said.rpartition(" ")[2])) != count:
                raise RowsAltered(
                    f"{TICKS} took {copied} of {count} ticks: a trigger keeps them out"
                )
            return
        known = await connection.execute(WRITES["drop_known_ticks"])
        self._stored.duplicates += int(known.rpartition(" ")[2])
        await connection.execute(WRITES["insert_incoming_ticks"])
        row = await connection.fetchrow(WRITES["altered_ticks"])
        await connection.execute(WRITES["empty_incoming_ticks"])
        if row is not None:
            what = f"has other values in {row['columns']}" if row["columns"] else "is not there"
            raise RowsAltered(
                f"{row['altered']} of {count} ticks are not in {TICKS} as they were written: "
                f"{row['symbol']} {row['epoch']}:{row['tick_offset']} {what}"
                f"{_by_triggers(self._form.tick_triggers)}"
            )

    async def _put_rejections(self, rejections: list[Rejection]) -> None:
        rows = [_rejected_row(rejection) for rejection in rejections]
        await self._connection.executemany(WRITES["insert_rejected"], rows)

    async def _put_bars(self, updates: list[BarUpdate]) -> None:
        revisions = [_revision_row(update) for update in updates]
        await self._connection.executemany(WRITES["insert_bar_revision"], revisions)
        current = [_bar_row(one) for one in updates if one.bar.interval_s == STORED_INTERVAL_S]
        await self._connection.executemany(WRITES["upsert_live_bar"], current)
        if self._form.bars_compared:
            for row in current:
                if not await self._connection.fetchval(WRITES["bar_is_there"], *row[:10]):
                    raise RowsAltered(
                        f"the bar {row[0]} {row[1]:%Y-%m-%d %H:%M}Z is not in {BARS} as it was written"
                        f"{_by_triggers(self._form.bar_triggers)}"
                    )

    async def _put_epochs(self, epochs: list[EpochStarted]) -> None:
        rows = [(e.symbol, e.epoch, e.previous_epoch, e.previous_last_offset) for e in epochs]
        await self._connection.executemany(WRITES["insert_epoch"], rows)

    def _stored_before(self, error: Exception) -> bool:
        """Whether the tick's place is taken; what a constraint of the owner refuses is not stored."""
        return (
            isinstance(error, asyncpg.UniqueViolationError)
            # Of a partition, the index has a name of its own; its columns are in the message.
            and (error.constraint_name in self._form.identities or _names_place(error))
        )


def _kind(record: Record) -> type[Record]:
    return type(record)


def kind_of(record: Record) -> tuple[str, type]:
    """The symbol of ``record``, and what it is."""
    symbol = record.bar.symbol if isinstance(record, BarUpdate) else record.symbol
    return symbol, type(record)


async def _one_by_one(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    """As the socket takes them: all at once would be copied at once, while live ticks wait."""
    for chunk in chunks:
        yield chunk


def _names_place(error: asyncpg.UniqueViolationError) -> bool:
    return (error.detail or "").startswith("Key (symbol, epoch, tick_offset")


def _lacks_partition(error: Exception) -> bool:
    """PostgreSQL has no code of its own for it: a CHECK that is violated has a name."""
    return isinstance(error, asyncpg.CheckViolationError) and error.constraint_name is None


def _is_misdated(record: Record) -> bool:
    if not isinstance(record, Tick):
        return False
    return abs(record.timestamp - record.received_at) > _UNTRUE_S


def _plain_tick(tick: Tick, symbol: str) -> Tick:
    """``tick`` with values that any table of ticks takes, as far as they were odd."""
    return msgspec.structs.replace(
        tick,
        symbol=symbol,
        timestamp=int(tick.received_at),
        price=_plain_price(tick.price),
        bid=None,
        ask=None,
        volume=0,
        source=_clean(tick.source),
    )


def _plain_bar(update: BarUpdate, symbol: str) -> BarUpdate:
    bar = update.bar
    prices = dict.fromkeys(("open", "high", "low", "close"), _plain_price(bar.close))
    plain = msgspec.structs.replace(
        bar, symbol=symbol, volume=0, source=_clean(bar.source), **prices
    )
    return msgspec.structs.replace(update, bar=plain)


def _plain_price(price: float) -> float:
    return price if SMALLEST <= price < MAX_PRICE else _PLAIN


def _by_triggers(names: tuple[str, ...]) -> str:
    return f"; its triggers: {', '.join(names)}" if names else ""


def _said(error: Exception) -> str:
    words = str(error).partition("\n")[0]  # what follows repeats the row
    state = getattr(error, "sqlstate", None)
    return f"{words} [{state}]" if state else words


def _named(record: Record) -> str:
    if isinstance(record, Tick):
        return f"tick {record.symbol} {record.epoch}:{record.offset}"
    if isinstance(record, BarUpdate):
        return f"bar {record.bar.symbol} {record.bar.open_time}"
    return f"{type(record).__name__} {record.symbol}"


def _table_at_fault(record: Record, error: Exception) -> str:
    table, what = (TICKS, "ticks") if isinstance(record, Tick) else (BARS, "bars")
    cure = ""
    if _lacks_partition(error):
        cure = (
            f" To mend it, make the partition, or one for all that have none: CREATE TABLE {table}_default "
            f"PARTITION OF {table} DEFAULT;"
        )
    elif isinstance(error, asyncpg.SequenceGeneratorLimitExceededError):
        cure = " To mend it: `db migrate --rewrite` as the owner of the table makes its ids BIGINT."
    return (
        f"{table} takes no {what} as it is: PostgreSQL says {_said(error)}. The journal keeps them, and they "
        f"are stored as soon as the table takes them.{cure}"
    )


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
