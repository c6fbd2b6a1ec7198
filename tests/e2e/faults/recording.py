"""Generated recordings, and databases to work in."""

import contextlib
import random
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import asyncpg
import polars as pl

from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.storage.embedded import EmbeddedServers
from enhanced_websocket_service.twelvedata.simulator import market_from_options

from .running import CLOSES, DAY, TAUGHT_DAY, VENDOR_SYMBOL

FIRST_BAR = "08:00"


def make_recording(path: Path) -> Path:
    """Plausible bars of three weeks of sessions up to ``DAY``."""
    rng = random.Random(17)
    calendar = TradingCalendar(_time(FIRST_BAR), _time(CLOSES))
    rows, price = [], 3900.0
    for day in calendar.trading_days(TAUGHT_DAY - timedelta(days=21), DAY):
        for label in calendar.expected_labels(day):
            moves = [round(price + rng.gauss(0, 3), 4) for _ in range(4)]
            price = moves[-1]
            at = datetime.fromtimestamp(label, UTC)
            rows.append((at, "USDCOP", moves[0], max(moves), min(moves), price, 0, "twelvedata"))
    columns = ["datetime", "symbol", "open", "high", "low", "close", "volume", "source"]
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(path)
    return path


def true_ticks(
    recording: Path, ticks_per_bar: int | None, day: date = DAY
) -> list[tuple[int, float]]:
    """Every (stamp, price) that the simulator's market has on ``day``, sent or not."""
    source = market_from_options(recording, ticks_per_bar=ticks_per_bar).get(VENDOR_SYMBOL)
    assert source is not None
    midnight = int(datetime.combine(day, time(5), UTC).timestamp())
    return [(tick.timestamp, tick.price) for tick in source.ticks(midnight, midnight + 86_400)]


async def new_database(dsn: str, prefix: str, template: str | None = None) -> str:
    """The DSN of a new database on the server of ``dsn``: empty, or a copy of the one behind ``template``."""
    name = f"{prefix}_{uuid.uuid4().hex[:12]}"
    copied = "" if template is None else f' TEMPLATE "{database_name(template)}"'
    await execute(dsn, f'CREATE DATABASE "{name}"{copied}')
    head, _, options = dsn.partition("?")
    return f"{head.rpartition('/')[0]}/{name}?{options}"


async def drop_database(server_dsn: str, dsn: str) -> None:
    """Drop it whoever is connected."""
    await execute(server_dsn, f'DROP DATABASE "{database_name(dsn)}" WITH (FORCE)')


def database_name(dsn: str) -> str:
    return dsn.partition("?")[0].rpartition("/")[2]


def numbered_cache(url: str, number: int) -> str:
    """The Valkey database ``number`` of the server of ``url``."""
    return f"{url.rpartition('=')[0]}={number}"


async def execute(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def own_servers(folder: Path) -> AsyncIterator[tuple[str, str]]:
    """A PostgreSQL and a Valkey of one's own: their DSN and URL."""
    async with EmbeddedServers(folder / "servers", durable=False) as servers:
        yield await servers.start_postgres("postgres"), await servers.start_valkey()


def _time(text: str) -> time:
    hours, minutes = text.split(":")
    return time(int(hours), int(minutes))
