"""What it is compared with: PostgreSQL alone, and one INSERT for each tick."""

import time
from pathlib import Path

import asyncpg

from benchmarks.ingest.service import parse
from enhanced_websocket_service.market.calendar import TradingCalendar, utc
from enhanced_websocket_service.storage.binary_copy import TICK_COLUMNS

COLUMNS = ", ".join(TICK_COLUMNS)


async def export(dsn: str, directory: Path) -> None:
    """The rows of the table as files for ``copy``: by the server, for the server."""
    connection = await asyncpg.connect(dsn)
    for form in ("csv", "binary"):
        rows = f"SELECT {COLUMNS} FROM realtime_market_data ORDER BY tick_offset"
        file = directory / f"rows.{form}"
        await connection.execute(f"COPY ({rows}) TO '{file}' (FORMAT {form})", timeout=600)
    await connection.close()


async def copy(dsn: str, directory: Path, form: str) -> dict[str, float]:
    """The same rows, from a file on the server into the same table with the same indexes."""
    connection = await asyncpg.connect(dsn)
    began = time.perf_counter()
    await connection.execute(
        f"COPY realtime_market_data ({COLUMNS}) FROM '{directory / f'rows.{form}'}' (FORMAT {form})",
        timeout=600,
    )
    wall = time.perf_counter() - began
    await connection.close()
    return {"seconds": wall}


async def inserts(dsn: str, frames: list[bytes]) -> dict[str, float]:
    """The earlier way: each tick is one INSERT, committed before the next is looked at."""
    connection = await asyncpg.connect(dsn)
    calendar = TradingCalendar()
    insert = await connection.prepare(
        "INSERT INTO realtime_market_data (symbol, time, bid, ask, last, volume, spread, "
        "session_date, trading_session, source) "
        "VALUES ($1, $2, $3::float8, $4::float8, $5::float8, $6, $7::float8, $8, $9, $10)"
    )
    began, cpu = time.perf_counter(), time.process_time()
    for frame in frames:
        for quote in parse([frame]):
            bid, ask = quote.bid, quote.ask
            spread = None if bid is None or ask is None else ask - bid
            await insert.fetch(
                *(quote.symbol, utc(quote.timestamp), bid, ask, quote.price, quote.volume),
                *(spread, calendar.local_date(quote.timestamp), True, quote.source),
            )
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    await connection.close()
    return {"seconds": wall, "cpu_seconds": cpu}
