"""Imported bars in ``market_data``: many at once, by COPY, each with its grade.

Frames, not ``Bar`` objects: an import may have a million rows. Instants are unix seconds UTC.
"""

import asyncio
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import polars as pl

from enhanced_websocket_service.errors import DataError, RowsAltered
from enhanced_websocket_service.market.calendar import utc

from .pool import QUERIES, WRITES
from .postgres import Database

COMPARED: Final = pl.Schema(
    {
        "slot": pl.Int64(),
        **dict.fromkeys(("open", "high", "low", "close"), pl.Float64()),
        "grade": pl.String(),
        "rank": pl.Int32(),
        "own": pl.Boolean(),
    }
)
_COLUMNS: Final = (
    *("symbol", "datetime", "open", "high", "low", "close", "volume", "source"),
    *("published_at", "grade"),
)
_CHUNK: Final = 200_000
_PATIENCE_S: Final = 3600.0
"""Real seconds for one COPY; the pool's own limit is made for reads."""


@dataclass(frozen=True, slots=True)
class Written:
    """What an import changed."""

    new: int
    changed: int


class ImportStore:
    """Reads and writes imported bars through ``database``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def compared(self, symbol: str, start: int, end: int, source: str) -> pl.DataFrame:
        """The bars between ``start`` and ``end``, both inclusive, as ``COMPARED``: for each slot the best
        one of other sources, and that of ``source`` itself (``own``). Raises ``StorageError``.
        """
        buffer = io.BytesIO()
        simulated = self._database.provider.simulated
        async with self._database.connection("reading bars to compare") as connection:
            # Parameters cannot be sent with COPY: asyncpg puts them in as literals, quoted.
            await connection.copy_from_query(
                QUERIES["bars_to_compare"],
                *(symbol, utc(start), utc(end), simulated, source),
                output=buffer,
                format="csv",
                timeout=_PATIENCE_S,
            )
        content = buffer.getvalue()
        if not content:
            return pl.DataFrame(schema=COMPARED)
        text = {name: pl.String() if name == "own" else kind for name, kind in COMPARED.items()}
        frame = pl.read_csv(content, has_header=False, new_columns=list(COMPARED), schema=text)
        return frame.with_columns(own=pl.col("own") == "t")

    async def store(self, bars: pl.DataFrame, symbol: str, source: str, now: float) -> Written:
        """Store ``bars`` (slot, open, high, low, close, volume, grade; a row each slot) in one transaction.

        Bars that are there with the same values stay as they are; a better grade of the same source is
        not replaced; a version that is replaced stays in ``bar_revisions``.

        :param now: when they became known, unix seconds UTC.
        :raises DataError: a bar that the table cannot hold; nothing was stored.
        :raises StorageError: the database failed; nothing was stored.
        """
        rows = bars.select(
            symbol=pl.lit(symbol),
            datetime="slot",
            open="open",
            high="high",
            low="low",
            close="close",
            volume="volume",
            source=pl.lit(source),
            # To the second: PostgreSQL reads a million of them.
            published_at=pl.lit(utc(int(now)).strftime("%Y-%m-%d %H:%M:%S+00")),
            grade="grade",
        )
        doing = "storing imported bars"
        async with self._database.transaction(doing) as connection:
            await connection.execute(WRITES["patience"])
            await connection.execute(WRITES["lock_import"], symbol, source)
            if not await connection.fetchval(QUERIES["has_bars_of"], symbol, source):
                # Nothing to compare with: straight into the table.
                _check(rows.height - await _copy(connection, "market_data", rows), rows.height)
                return Written(rows.height, 0)
            await connection.execute(WRITES["make_imported_bars"])
            await _copy(connection, "incoming_bars", rows)
            count = "SELECT count(*) FROM market_data WHERE symbol = $1 AND source = $2"
            before = await connection.fetchval(count, symbol, source)
            await connection.execute(WRITES["keep_replaced_versions"], timeout=_PATIENCE_S)
            status = await connection.execute(WRITES["upsert_imported_bars"], timeout=_PATIENCE_S)
            absent = await connection.fetchval(WRITES["absent_bars"], timeout=_PATIENCE_S)
            _check(absent, rows.height)
            new = await connection.fetchval(count, symbol, source) - before
        return Written(new, int(status.rpartition(" ")[2]) - new)


def _check(absent: int, of: int) -> None:
    if absent:
        raise RowsAltered(
            f"market_data took {of - absent} of {of} bars: a trigger of its owner's keeps them out. Nothing "
            "was stored."
        )


async def _copy(connection: Any, table: str, rows: pl.DataFrame) -> int:
    """How many rows the table took."""
    copied = 0
    try:
        # While PostgreSQL takes one chunk in, the next is written in a thread.
        chunks = rows.iter_slices(_CHUNK)
        ready = asyncio.create_task(_text(chunks), name="next chunk of an import")
        try:
            while (buffer := await ready) is not None:
                ready = asyncio.create_task(_text(chunks), name="next chunk of an import")
                said = await connection.copy_to_table(
                    table, source=buffer, columns=_COLUMNS, format="csv", timeout=_PATIENCE_S
                )
                copied += int(said.rpartition(" ")[2])
        finally:
            await asyncio.gather(ready, return_exceptions=True)
    except asyncpg.DataError as error:
        raise DataError(f"A bar does not fit into market_data: {error}") from error
    return copied


async def _text(chunks: Iterator[pl.DataFrame]) -> io.BytesIO | None:
    """The next of ``chunks`` as CSV, ``None`` after the last."""
    return await asyncio.to_thread(_next_text, chunks)


def _next_text(chunks: Iterator[pl.DataFrame]) -> io.BytesIO | None:
    chunk = next(chunks, None)
    if chunk is None:
        return None
    buffer = io.BytesIO()
    chunk.with_columns(
        datetime=pl.from_epoch("datetime").dt.strftime("%Y-%m-%d %H:%M:%S+00")
    ).write_csv(buffer, include_header=False)
    buffer.seek(0)
    return buffer
