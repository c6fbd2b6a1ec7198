"""Sustained ticks a second through the whole path, from the vendor's frame to the committed row.

    python benchmarks/ingest [--ticks N --rounds N --batch N --inserts N]

The service's process is held on one core; the embedded PostgreSQL has the others. Beside it, in turn and
on the same server: COPY of the same rows from a file by the server alone (the floor), and one INSERT a tick
(the earlier way). Then each stage alone, and an outage's backlog drained beside live ticks. The frames come
from memory: what the vendor's socket costs is the network library's. Figures are medians of the rounds.

What is compared is wall time, for the same rows in the same emptied table with the same indexes and
constraints, under the same settings (synchronous_commit on), the checkpoint before it done. COPY reads a
file of the server's and commits once; the service journals each tick, fsyncs the journal, and commits every
16,000 rows with its checkpoint. PostgreSQL's CPU time is on the other core in both. The path is measured with
nobody listening, and with a client who gets every tick: what its messages cost is the service's core, too.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import asyncpg  # noqa: E402
import uvloop  # noqa: E402

from benchmarks.ingest import floors, service, stages  # noqa: E402
from benchmarks.ingest.market import read_frames, write_frames  # noqa: E402
from enhanced_websocket_service.storage.embedded import EmbeddedServers  # noqa: E402
from enhanced_websocket_service.storage.postgres import Database  # noqa: E402
from enhanced_websocket_service.telemetry import configure_logging  # noqa: E402

TARGET = 50_000
RATIO = 0.5
Figures = dict[str, float]
Measure = Callable[[Path, str, list[bytes], int], Awaitable[Figures]]


async def work(what: str, dsn: str, directory: Path, options: argparse.Namespace) -> Figures:
    """One measurement, in a process of its own."""
    if what.startswith("copy "):
        return await floors.copy(dsn, directory, what.removeprefix("copy "))
    frames = read_frames(directory / "frames")
    if what == "insert":
        return await floors.inserts(dsn, frames[: options.inserts])
    if what == "stages":
        return stages.stages(directory, frames, options.batch)
    measures: dict[str, Measure] = {
        "service": service.sustained,
        "unheard": partial(service.sustained, listening=False),
        "backlog": service.backlog,
        "stretches": service.stretches,
    }
    return await measures[what](directory, dsn, frames, options.batch)


def in_a_process(what: str, dsn: str, directory: Path, options: argparse.Namespace) -> Figures:
    command = [sys.executable, __file__, "--child", what, dsn, str(directory)]
    command += ["--batch", str(options.batch), "--inserts", str(options.inserts)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


async def measure(directory: Path, options: argparse.Namespace) -> int:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[1:])  # what is started from here has these, PostgreSQL too
    servers = EmbeddedServers(directory / "state")
    found: dict[str, list[Figures]] = {}
    try:
        write_frames(directory / "frames", options.ticks)
        dsn = await servers.start_postgres("benchmark")
        database = Database(dsn, service.PROVIDER)
        await database.connect()
        await database.close()
        connection = await asyncpg.connect(dsn)

        async def run(what: str) -> None:
            await connection.execute("TRUNCATE realtime_market_data")
            await connection.execute("CHECKPOINT")
            figures = await asyncio.to_thread(in_a_process, what, dsn, directory, options)
            found.setdefault(what, []).append(figures)
            told = ", ".join(f"{name} {value:.2f}" for name, value in figures.items())
            print(f"  {what}: {told}", flush=True)
            if what in ("service", "unheard"):
                rows = "SELECT count(*), max(tick_offset) FROM realtime_market_data"
                assert tuple(await connection.fetchrow(rows)) == (options.ticks, options.ticks)

        for number in range(options.rounds):
            print(f"round {number + 1}, load {os.getloadavg()[0]:.1f}")
            for what in ("service", "unheard")[:: 1 if number % 2 else -1]:
                await run(what)
            if number == 0:
                await floors.export(dsn, directory)
            for what in ("copy csv", "copy binary", "insert"):
                await run(what)
        print("then")
        await run("backlog")
        await run("stretches")
        await run("stages")
        await connection.close()
    finally:
        await servers.erase()
    return report(found, options)


def report(found: dict[str, list[Figures]], options: argparse.Namespace) -> int:
    def middle(what: str, name: str) -> float:
        return statistics.median(one[name] for one in found[what])

    copies = {form: options.ticks / middle(f"copy {form}", "seconds") for form in ("csv", "binary")}
    for what, told in (
        ("unheard", "whole path, frame to committed row"),
        ("service", "the same, and a client who gets every tick"),
    ):
        rate = options.ticks / middle(what, "seconds")
        cpu = middle(what, "cpu_seconds") / options.ticks * 1e6
        print(
            f"{told}: {rate:,.0f} ticks/s ({TARGET:,} wanted), {cpu:.1f} us of CPU a tick: "
            f"{1e6 / cpu:,.0f} ticks/s at full use of its core"
        )
        for form, known in copies.items():
            print(
                f"  to COPY of the same rows from {form}, {known:,.0f} rows/s: {rate / known:.2f}, "
                f"at full use of its core {1e6 / cpu / known:.2f} ({RATIO} wanted)"
            )
    rate = options.ticks / middle("unheard", "seconds")
    ratio = rate / copies["csv"]
    earlier = options.inserts / middle("insert", "seconds")
    print(
        f"one INSERT a tick: {earlier:,.0f} ticks/s; the path is {rate / earlier:.0f} times as fast"
    )
    print("CPU a tick by stage, each alone:")
    alone = found["stages"][0]
    for name, value in alone.items():
        part = f" ({stages.PARTS[name]})" if name in stages.PARTS else ""
        print(f"  {name:12} {value:6.2f} us{part}")
    sums = sum(value for name, value in alone.items() if name not in stages.PARTS)
    print(f"  {'together':12} {sums:6.2f} us; the rest is transactions, fsync and the event loop")
    drain = found["backlog"][0]
    print(
        f"backlog: {drain['drained_a_second']:,.0f} ticks/s beside {service.LIVE_TICKS_A_SECOND:,} "
        f"live ones; live batches late by p50 {drain['draining_p50_ms']:.1f}, "
        f"p99 {drain['draining_p99_ms']:.1f}, max {drain['draining_max_ms']:.1f} ms "
        f"(without backlog {drain['calm_p50_ms']:.1f}, {drain['calm_p99_ms']:.1f}, "
        f"{drain['calm_max_ms']:.1f}); memory grew by {drain['growth_mb']:.0f} MB"
    )
    longest = found["stretches"][0]["longest_ms"]
    print(f"  the event loop is never held longer than {longest:.1f} ms of CPU while it drains")
    print(f"peak memory of the service: {middle('service', 'peak_mb'):.0f} MB")
    return 0 if rate >= TARGET and ratio >= RATIO else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ticks", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256, help="frames that a read finds waiting")
    parser.add_argument("--inserts", type=int, default=5_000)
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "DSN", "DIRECTORY"))
    options = parser.parse_args()
    if options.child:
        what, dsn, folder = options.child
        configure_logging(level="WARNING")
        if not what.startswith("copy"):
            os.sched_setaffinity(0, {0})
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            print(json.dumps(runner.run(work(what, dsn, Path(folder), options))))
        return 0
    directory = Path(tempfile.mkdtemp(prefix="ews-ingest-"))
    directory.chmod(0o777)  # started as root, PostgreSQL runs as a user who reads and writes here
    try:
        return asyncio.run(measure(directory, options))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
