"""Ticks, bars and rejections to store, and a journal with a writer around it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from enhanced_websocket_service.market.bar import Bar, BarUpdate, Certificate
from enhanced_websocket_service.market.tick import Rejection, Tick
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.writer import JournalWriter
from tests.waiting import eventually

OPEN = 1748955600  # 2025-06-03 08:00:00 COT
SYMBOL = "USDCOP"


def tick(offset: int, price: float = 4100.25, **changes: Any) -> Tick:
    fields: dict[str, Any] = {
        "symbol": SYMBOL,
        "epoch": 1,
        "offset": offset,
        "timestamp": OPEN + offset,
        "price": price,
        "bid": 4100.0,
        "ask": 4100.5,
        "volume": 0,
        "source": "simulator_websocket",
        "received_at": OPEN + offset + 0.25,
        "trading_session": True,
    }
    return Tick(**{**fields, **changes})


def ticks(count: int, first: int = 1, **changes: Any) -> list[Tick]:
    return [tick(i, 4100 + i / 1000, **changes) for i in range(first, first + count)]


def rejected(reason: str = "outlier", **changes: Any) -> Rejection:
    fields: dict[str, Any] = {
        "symbol": SYMBOL,
        "timestamp": OPEN,
        "price": 9999.0,
        "bid": None,
        "ask": None,
        "source": "simulator_websocket",
        "received_at": OPEN + 0.5,
        "reason": reason,
    }
    return Rejection(**{**fields, **changes})


def bar(open_time: int = OPEN, close: float = 4100.5, **changes: Any) -> Bar:
    fields: dict[str, Any] = {
        "symbol": SYMBOL,
        "interval_s": 300,
        "open_time": open_time,
        "open": 4100.0,
        "high": max(4101.0, close),
        "low": min(4099.0, close),
        "close": close,
        "volume": 0,
        "source": "simulator",
        "revision": 0,
        "status": "closed",
    }
    return Bar(**{**fields, **changes})


def update(of: Bar, *, at: float, epoch: int = 1, offset: int = 0) -> BarUpdate:
    return BarUpdate(bar=of, epoch=epoch, offset=offset, published_at=at)


CERTIFICATE = Certificate(
    ticks={"simulator_websocket": 3},
    first_tick=OPEN + 1,
    last_tick=OPEN + 290,
    longest_silence_s=200,
    partial=False,
)


@asynccontextmanager
async def writing(
    journal: Journal, database: Database, **options: Any
) -> AsyncIterator[JournalWriter]:
    """A writer that runs inside the block."""
    settings: dict[str, Any] = {"epoch": 1, "symbols": [SYMBOL], "batch_wait_ms": 1, **options}
    writer = JournalWriter(journal, database, **settings)
    task = asyncio.create_task(writer.run(), name="writer")
    try:
        yield writer
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def told(writer: JournalWriter, words: str) -> str:
    """Wait until the writer is interrupted for a reason with ``words`` in it; that reason."""

    async def look() -> str | None:
        reason = writer.last_error
        return reason if reason is not None and words in reason else None

    return await eventually(look, 10, lambda: f"{words!r} in {writer.last_error!r}")


async def rows(database: Database, sql: str) -> list[tuple[Any, ...]]:
    """What ``sql`` answers."""
    async with database.connection("testing") as connection:
        return [tuple(row) for row in await connection.fetch(sql)]


async def stored(database: Database) -> list[tuple[int, int]]:
    """(epoch, offset) of every stored tick, in order."""
    return await rows(
        database, "SELECT epoch, tick_offset FROM realtime_market_data ORDER BY epoch, tick_offset"
    )
