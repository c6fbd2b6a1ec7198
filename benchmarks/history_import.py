"""A million bars through ``l0 import``, as a ratio to the least that must be done.

    python benchmarks/history_import.py [--rows N] [--rounds N]

The import: read the CSV, check, decide the convention, grade, PostgreSQL, parquet. The floor: ``COPY`` of
the same rows from a ready CSV into an equal table, and a bare polars parquet write. Both run in turn, in
processes of their own, on one embedded PostgreSQL; the figure is the ratio of the medians.
"""

import argparse
import asyncio
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import asyncpg  # noqa: E402
import polars as pl  # noqa: E402

from enhanced_websocket_service.clock import SystemClock  # noqa: E402
from enhanced_websocket_service.l0.foreign.job import ForeignImport  # noqa: E402
from enhanced_websocket_service.market.calendar import TradingCalendar  # noqa: E402
from enhanced_websocket_service.market.source import Provider  # noqa: E402
from enhanced_websocket_service.storage.embedded import EmbeddedServers  # noqa: E402
from enhanced_websocket_service.storage.imports import ImportStore  # noqa: E402
from enhanced_websocket_service.storage.postgres import Database  # noqa: E402

SYMBOLS = ("USDCOP", "EURCOP")
LIMIT = 2.0


def generate(directory: Path, rows: int) -> None:
    """Sessions of two random markets up to last year, as another system would export them, and the
    same rows as they stand in the table."""
    calendar = TradingCalendar()
    days = calendar.trading_days(date(1985, 1, 1), date(2025, 12, 31))
    labels = [label for day in days for label in calendar.expected_labels(day)]
    bars = pl.concat(
        _market(labels[-(rows // len(SYMBOLS)) :], symbol, seed)
        for seed, symbol in enumerate(SYMBOLS)
    )
    at = pl.from_epoch("slot")
    written = pl.lit("2026-01-09 02:21:37.974303+00")
    prices = ("open", "high", "low", "close", "volume")
    bars.select(
        at.dt.strftime("%Y-%m-%d %H:%M:%S").alias("time"),
        pl.col("symbol").str.replace("COP", "/COP"),
        *prices,
        source=pl.lit("twelvedata"),
        created_at=written,
        updated_at=written,
    ).write_csv(directory / "foreign.csv")
    bars.select(
        "symbol",
        at.dt.strftime("%Y-%m-%d %H:%M:%S+00").alias("datetime"),
        *prices,
        source=pl.lit("floor"),
    ).write_csv(directory / "ready.csv", include_header=False)
    _backup_frame(bars, "floor").write_parquet(directory / "ready.parquet")


def _market(labels: list[int], symbol: str, seed: int) -> pl.DataFrame:
    bars = pl.DataFrame({"slot": labels}).with_columns(symbol=pl.lit(symbol), volume=pl.lit(0))
    count = pl.int_range(pl.len())
    step = (count.hash(seed=2 * seed) % 20_001).cast(pl.Float64) / 10_000 - 1
    reach = (count.hash(seed=2 * seed + 1) % 1_001).cast(pl.Float64) / 1_000 + 0.01
    # A slow wave holds the price where USD/COP is; steps of a few pesos make the bars.
    bars = bars.with_columns(close=(4000 + 600 * (count / 90_000).sin() + step * 1.5).round(2))
    bars = bars.with_columns(open=pl.col("close").shift().fill_null(pl.col("close")))
    return bars.with_columns(
        high=(pl.max_horizontal("open", "close") + reach).round(2),
        low=(pl.min_horizontal("open", "close") - reach).round(2),
    )


def _backup_frame(bars: pl.DataFrame, source: str) -> pl.DataFrame:
    return bars.select(
        pl.from_epoch("slot").dt.cast_time_unit("us").dt.replace_time_zone("UTC").alias("datetime"),
        "symbol",
        *("open", "high", "low", "close"),
        pl.col("volume").cast(pl.Int64),
        source=pl.lit(source),
    )


async def run_import(dsn: str, directory: Path) -> dict[str, float]:
    database = Database(dsn, Provider())
    await database.connect()
    try:
        job = ForeignImport(
            ImportStore(database),
            {symbol: TradingCalendar() for symbol in SYMBOLS},
            SystemClock(),
            quarantine=directory / "quarantine",
        )
        began = time.perf_counter()
        report = await job.run(directory / "foreign.csv")
        stored = time.perf_counter()
        frame = _backup_frame(pl.concat(report.bars.values()), report.source)
        frame.write_parquet(directory / "imported.parquet", compression="zstd")
        ended = time.perf_counter()
    finally:
        await database.close()
    assert report.written is not None
    return {
        "seconds": ended - began,
        "import_s": stored - began,
        "parquet_s": ended - stored,
        "written": report.written.new,
        "quarantined": report.quarantined,
    }


async def run_floor(dsn: str, directory: Path) -> dict[str, float]:
    frame = pl.read_parquet(directory / "ready.parquet")
    connection = await asyncpg.connect(dsn)
    began = time.perf_counter()
    columns = ("symbol", "datetime", "open", "high", "low", "close", "volume", "source")
    await connection.copy_to_table(
        "market_data",
        source=str(directory / "ready.csv"),
        columns=columns,
        format="csv",
        timeout=600,
    )
    stored = time.perf_counter()
    frame.write_parquet(directory / "floor.parquet", compression="zstd")
    ended = time.perf_counter()
    await connection.close()
    return {"seconds": ended - began, "copy_s": stored - began, "parquet_s": ended - stored}


def child(what: str, dsn: str, directory: Path) -> None:
    run = run_import if what == "import" else run_floor
    figures = asyncio.run(run(dsn, directory))
    figures["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(figures))


def in_a_process(what: str, dsn: str, directory: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", what, dsn, str(directory)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


async def measure(directory: Path, rows: int, rounds: int) -> int:
    servers = EmbeddedServers(directory / "state")
    try:
        generate(directory, rows)
        dsn = await servers.start_postgres("benchmark")
        database = Database(dsn, Provider())
        await database.connect()
        await database.close()
        connection = await asyncpg.connect(dsn)
        found: dict[str, list[dict[str, float]]] = {"floor": [], "import": []}
        for number in range(rounds):
            for what in ("floor", "import") if number % 2 == 0 else ("import", "floor"):
                await connection.execute("TRUNCATE market_data")
                await connection.execute("CHECKPOINT")
                figures = in_a_process(what, dsn, directory)
                found[what].append(figures)
                told = ", ".join(f"{name} {value:.2f}" for name, value in figures.items())
                print(f"round {number + 1} {what}: {told}", flush=True)
        await connection.close()
    finally:
        await servers.erase()
    medians = {
        what: statistics.median(one["seconds"] for one in runs) for what, runs in found.items()
    }
    ratio = medians["import"] / medians["floor"]
    peak = max(one["peak_mb"] for one in found["import"])
    floor_peak = max(one["peak_mb"] for one in found["floor"])
    print(
        f"{rows} bars: import {medians['import']:.2f} s, floor {medians['floor']:.2f} s, "
        f"ratio {ratio:.2f} (at most {LIMIT}); peak memory {peak:.0f} MB (floor {floor_peak:.0f} MB)"
    )
    return 0 if ratio <= LIMIT else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "DSN", "DIRECTORY"))
    options = parser.parse_args()
    if options.child:
        child(options.child[0], options.child[1], Path(options.child[2]))
        return 0
    directory = Path(tempfile.mkdtemp(prefix="ews-import-"))
    directory.chmod(0o711)  # started as root, PostgreSQL runs as a user who must get in
    try:
        return asyncio.run(measure(directory, options.rows, options.rounds))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
