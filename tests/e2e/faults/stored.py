"""What the database holds after a stage, read without the service's own code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, NamedTuple

import asyncpg
import polars as pl

Prices = tuple[float, float, float, float]
SLOT_S = 300


class Tick(NamedTuple):
    """A row of ``realtime_market_data``."""

    stamp: int
    price: float
    bid: float | None
    ask: float | None
    source: str
    epoch: int
    offset: int
    flags: tuple[str, ...]
    received_at: float
    in_session: bool

    @property
    def seen(self) -> tuple[int, float, float | None, float | None]:
        return (self.stamp, self.price, self.bid, self.ask)

    @property
    def streamed(self) -> bool:
        return self.source.endswith("_websocket")


class LiveBar(NamedTuple):
    """A bar made of ticks, and what its certificate says."""

    prices: Prices
    partial: bool


@dataclass
class Stored:
    """Everything of one day; bars by the unix second of their open."""

    ticks: list[Tick] = field(default_factory=list)
    rejected: list[tuple[str, float]] = field(default_factory=list)  # reason, received
    live: dict[int, LiveBar] = field(default_factory=dict)
    final: dict[int, Prices] = field(default_factory=dict)
    text: str = ""  # every row of every table


async def read_stored(dsn: str, day: date, *, everything: bool = True) -> Stored:
    """Read ``day`` (COT); with ``everything`` also the text of all rows of all tables."""
    stored = Stored()
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT extract(epoch FROM time)::bigint AS stamp, last, bid, ask, source, epoch, "
            "tick_offset, flags, extract(epoch FROM received_at)::float8 AS received, "
            "trading_session FROM realtime_market_data "
            "WHERE (received_at AT TIME ZONE 'America/Bogota')::date = $1 "
            "ORDER BY epoch, tick_offset",
            day,
        )
        stored.ticks = [
            Tick(
                row["stamp"],
                float(row["last"]),
                _number(row["bid"]),
                _number(row["ask"]),
                row["source"],
                row["epoch"],
                row["tick_offset"],
                tuple(row["flags"] or ()),
                row["received"],
                row["trading_session"],
            )
            for row in rows
        ]
        stored.rejected = [
            (row["reason"], row["received"])
            for row in await connection.fetch(
                "SELECT reason, extract(epoch FROM received_at)::float8 AS received "
                "FROM rejected_ticks "
                "WHERE (received_at AT TIME ZONE 'America/Bogota')::date = $1",
                day,
            )
        ]
        await _bars(connection, day, stored)
        if everything:
            stored.text = await _text(connection)
    finally:
        await connection.close()
    return stored


async def _bars(connection: asyncpg.Connection, day: date, stored: Stored) -> None:
    rows = await connection.fetch(
        "SELECT extract(epoch FROM datetime)::bigint AS slot, open, high, low, close, source, "
        "bar_status, (certificate ->> 'partial')::boolean AS partial FROM market_data "
        "WHERE (datetime AT TIME ZONE 'America/Bogota')::date = $1",
        day,
    )
    for row in rows:
        prices = tuple(float(row[name]) for name in ("open", "high", "low", "close"))
        if row["source"] == "simulator":
            if row["bar_status"] == "reconciled":
                stored.final[row["slot"]] = prices  # type: ignore[assignment]
        else:
            stored.live[row["slot"]] = LiveBar(prices, bool(row["partial"]))  # type: ignore[arg-type]


async def _text(connection: asyncpg.Connection) -> str:
    tables = await connection.fetch(
        "SELECT format('%I.%I', table_schema, table_name) AS name FROM information_schema.tables "
        "WHERE table_type = 'BASE TABLE' "
        "AND table_schema NOT IN ('pg_catalog', 'information_schema')"
    )
    pieces: list[str] = []
    for table in tables:
        rows = await connection.fetch(f"SELECT t::text AS row FROM {table['name']} AS t")
        pieces += [row["row"] for row in rows]
    return "\n".join(pieces)


def bars_of(ticks: Sequence[Tick]) -> Mapping[int, Prices]:
    """The bars that polars makes of the ticks that may enter one, in the order of the offsets."""
    frame = pl.DataFrame(
        [
            (one.stamp // SLOT_S * SLOT_S, one.stamp, one.price)
            for one in ticks
            if one.in_session and not {"future", "late"} & set(one.flags)
        ],
        schema={"slot": pl.Int64, "stamp": pl.Int64, "price": pl.Float64},
        orient="row",
    )
    # Stamps order seconds, arrival orders what is inside one: a stable sort gives both.
    bars = (
        frame.sort("stamp", maintain_order=True)
        .group_by("slot", maintain_order=True)
        .agg(
            open=pl.col("price").first(),
            high=pl.col("price").max(),
            low=pl.col("price").min(),
            close=pl.col("price").last(),
        )
    )
    return {row[0]: (row[1], row[2], row[3], row[4]) for row in bars.iter_rows()}


def recorded_bars(recording: Any) -> Mapping[int, Prices]:
    """The bars of a recording by the unix second of their open."""
    frame = pl.read_parquet(recording).select("datetime", "open", "high", "low", "close")
    return {int(row[0].timestamp()): tuple(row[1:]) for row in frame.iter_rows()}


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))
