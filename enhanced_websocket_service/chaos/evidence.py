"""Reads what each place holds after a storm, and has it judged."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from redis.asyncio import Redis

from enhanced_websocket_service.bus.names import SIMULATED_PREFIX, RedisNames
from enhanced_websocket_service.market.price_view import price_data
from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.storage.journal_reader import JournalReader
from enhanced_websocket_service.storage.segment import START

from .comparison import (
    Sent,
    Window,
    bars_by_polars,
    compare_bars,
    compare_counts,
    compare_rows,
    match_sent,
)
from .following import Follower
from .journal_account import Faults, JournalAccount, Prices, Record, prices_of
from .ledger import Ledger
from .tick_table import TickRow
from .world import DAY, PROVIDER, SYMBOL, World, utc_text

_SENT = msgspec.json.Decoder(dict[str, Any])
_TICKS = """
    SELECT epoch, tick_offset, extract(epoch FROM time)::bigint, last::float8, bid::float8, ask::float8,
        volume, source, (extract(epoch FROM received_at) * 1000000)::bigint, trading_session, flags
    FROM realtime_market_data WHERE symbol = $1 ORDER BY epoch, tick_offset
"""
_PRICES = "open::float8, high::float8, low::float8, close::float8"


class _Last:
    """Remembers the last published tick while the journal is read."""

    def __init__(self) -> None:
        self.tick: Tick | None = None

    def see(self, record: Record) -> None:
        if (
            isinstance(record, Tick)
            and record.trading_session
            and "future" not in record.flags
            and (self.tick is None or record.timestamp >= self.tick.timestamp)
        ):
            self.tick = record


def read_journal(directory: Path, faults: Faults) -> tuple[JournalAccount, Tick | None]:
    """The whole journal, and the tick that the cache must hold."""
    account, last = JournalAccount(faults, PROVIDER.bars), _Last()
    with JournalReader(directory, START) as reader:
        while records := reader.read():
            for record in records:
                account.see(record)
                last.see(record)
        for damage in reader.damage:
            faults.add("journal_damaged", str(damage))
    account.close()
    return account, last.tick


async def read_sent(world: World) -> list[Sent]:
    """What the simulator sent, in the order of the wire."""
    parameters = {"symbol": "USD/COP", "format": "ndjson"}
    sent = []
    async with world.http.stream("GET", f"{world.rest_url}/_sim/sent", params=parameters) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line:
                one = _SENT.decode(line)
                quote = (one["timestamp"], one["price"], one["bid"], one["ask"])
                sent.append(Sent(quote, one["resent"]))
    return sent


async def read_vendor_bars(world: World) -> dict[int, Prices]:
    """The simulator's own bars of the day, asked for in plain HTTP."""
    labels = world.calendar.expected_labels(DAY)
    answer = await world.http.get(
        f"{world.rest_url}/time_series",
        params={
            "symbol": "USD/COP",
            "interval": "5min",
            "timezone": "UTC",
            "start_date": utc_text(labels[0]),
            "end_date": utc_text(labels[-1]),
            "outputsize": "5000",
            "apikey": "the-judge",
        },
    )
    answer.raise_for_status()
    bars = {}
    for row in answer.json()["values"]:
        slot = int(datetime.fromisoformat(row["datetime"]).replace(tzinfo=UTC).timestamp())
        if labels[0] <= slot <= labels[-1]:
            bars[slot] = (
                *(float(row["open"]), float(row["high"])),
                *(float(row["low"]), float(row["close"])),
            )
    return bars


async def judge_redis(world: World, last: Tick | None, account: JournalAccount) -> dict[str, int]:
    """The cache holds the last price; the stream only what was journaled. Call it while it runs."""
    faults = account.faults
    names = RedisNames(SIMULATED_PREFIX)  # invented prices in a Redis that is given by address
    client: Any = Redis.from_url(world.valkey.url)
    try:
        cached = await client.get(names.price(SYMBOL))
        entries = await client.xrange(names.stream("ticks", SYMBOL))
    finally:
        await client.aclose()
    if last is not None and (cached is None or json.loads(cached) != price_data(last)):
        faults.add("cache", f"the cache has {cached!r}, published last was {price_data(last)}")
    for name, fields in entries:
        epoch, offset = map(int, name.decode().split("-"))
        row = account.ticks.find(epoch, offset)
        if row is None or account.ticks.quote(row)[1] != json.loads(fields[b"data"])["price"]:
            faults.add("redis_not_journaled", f"stream entry {name!r}")
    return {"stream_entries": len(entries), "cached": int(cached is not None)}


async def judge_database(world: World, account: JournalAccount, ledger: Ledger) -> None:
    """Tables against the journal, bars against polars and the vendor."""
    faults = account.faults
    vendor = await read_vendor_bars(world)
    async with _connected(world.postgres.url) as connection:
        rows = [_tick_row(row) async for row in _rows(connection, _TICKS, SYMBOL)]
        ledger.stored["ticks"] = await asyncio.to_thread(compare_rows, account.ticks, rows, faults)
        rejected = dict(
            await connection.fetch("SELECT reason, count(*) FROM rejected_ticks GROUP BY reason")
        )
        ledger.stored["rejected"] = sum(rejected.values())
        compare_counts("rejected ticks", dict(account.rejected), rejected, faults)
        epochs = await connection.fetch("SELECT epoch FROM tick_epochs ORDER BY epoch")
        compare_counts("epochs", account.epochs, [row[0] for row in epochs], faults)
        revisions = {
            (row[0], row[1], row[2], row[3], tuple(row[4:]))
            for row in await connection.fetch(
                "SELECT extract(epoch FROM datetime)::bigint, revision, status, source, "  # noqa: S608
                f"{_PRICES} FROM bar_revisions WHERE epoch > 0"
            )
        }
        ledger.stored["bar_revisions"] = len(revisions)
        for one in account.published_bars - revisions:
            faults.add("bar_not_stored", str(one))
        for one in revisions - account.published_bars:
            faults.add("bar_stored_not_journaled", str(one))
        live = await connection.fetch(
            f"SELECT extract(epoch FROM datetime)::bigint, {_PRICES} FROM market_data "  # noqa: S608
            "WHERE source = ANY ($1)",
            [PROVIDER.websocket, PROVIDER.rest],
        )
        final = await connection.fetch(
            f"SELECT extract(epoch FROM datetime)::bigint, {_PRICES} FROM market_bars "  # noqa: S608
            "WHERE symbol = $1 AND source = $2 AND status = 'reconciled' "
            "AND datetime >= to_timestamp($3::bigint)",
            *(SYMBOL, PROVIDER.bars, world.opens),
        )
    for slot, count in Counter(row[0] for row in live).items():
        if count > 1:
            faults.add("bar_twice", f"slot {slot} has {count} live rows")
    expected = await asyncio.to_thread(bars_by_polars, account.ticks)
    published = {slot: prices_of(bar) for slot, bar in account.live_bars.items()}
    compare_bars("bar_published_not_polars", expected, published, faults)
    ledger.bars = {
        "live": compare_bars("bar_stored_not_polars", expected, _by_slot(live), faults),
        "expected": len(vendor),
        "reconciled": compare_bars("bar_not_vendor", vendor, _by_slot(final), faults),
    }


def judge_clients(world: World, account: JournalAccount, ledger: Ledger) -> None:
    """Every diary against the journal."""
    for name, path in world.clients.diaries.items():
        follower = Follower(
            name, world.clients.modes[name], account.ticks, account.published_bars, account.faults
        )
        ledger.clients[name] = follower.read(_lines(path)).shown()


def judge_sent(
    world: World,
    sent: Sequence[Sent],
    account: JournalAccount,
    ledger: Ledger,
    excuses: Sequence[Window],
) -> None:
    found = match_sent(
        sent, account.ticks, PROVIDER.websocket, world.real_time, excuses, account.faults
    )
    ledger.sent = {
        "sent": found.sent,
        "resent": found.resent,
        "journaled": found.journaled,
        "not_journaled": found.not_journaled,
        "gaps": found.gaps,
        "longest_gap": found.longest_gap,
    }


def _tick_row(row: Any) -> TickRow:
    *values, flags = row
    return TickRow._make((*values, tuple(flags or ())))


def _by_slot(rows: Sequence[Any]) -> dict[int, Prices]:
    return {row[0]: (row[1], row[2], row[3], row[4]) for row in rows}


def _lines(path: Path) -> Iterator[str]:
    with path.open() as file:
        for line in file:
            yield line.rstrip("\n")


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def _rows(connection: Any, query: str, *arguments: object) -> AsyncIterator[Any]:
    async with connection.transaction():
        async for row in connection.cursor(query, *arguments, prefetch=5000):
            yield row
