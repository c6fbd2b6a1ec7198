"""One release after another on the same STATE_DIR, journal, database and Redis, each ended by ``kill -9``.

An older release is taken out of the history of the repository and runs as it was. What it left is read
by its own commands, so that this release is held against what the older one meant.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import polars as pl
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from enhanced_websocket_service.clock import VirtualClock, parse_virtual_clock
from enhanced_websocket_service.market.calendar import TradingCalendar
from tests.waiting import eventually

from .playback import ROOT, Process, answer_of, free_port

PACKAGE = "enhanced_websocket_service"
DAY = date(2025, 6, 25)
HOURS = {"MARKET_OPEN": "07:00", "MARKET_CLOSE": "18:55"}
"""A long session inside one UTC day: on a slow machine, too, all lives happen in it."""
SPEED = 200.0
TICKS_PER_BAR = 80
BEFORE_OPEN_S = 900.0
"""Virtual seconds in which simulator and service start."""
WITHIN_S = 40.0
BACKLOG = 25
"""Ticks that clients got and PostgreSQL did not, at least, when a life ends."""
SLOT_S = 300
MIDDLE_S = (60, 240)
"""Where in its slot a bar is cut in two by the kill."""

IN_NO_BAR = ("late", "future")
"""Flags of ticks that came when their bar could take none any more, or before its time."""

Place = tuple[int, int]
"""(epoch, offset)."""

TEACH = """
import inspect
import sys
from pathlib import Path
from enhanced_websocket_service.market.silence import SilenceProfile
from enhanced_websocket_service.service.silence_file import SilenceFile

profile = SilenceProfile()
for minute in range(12 * 60):
    profile.learn("USDCOP", sys.argv[2], minute, 16, 9)
failures = []
if "failures" in inspect.signature(SilenceFile).parameters:
    from enhanced_websocket_service.clock import SystemClock
    from enhanced_websocket_service.failures import Failures

    failures = [Failures(SystemClock())]
SilenceFile(profile, Path(sys.argv[1]), *failures, simulated=sys.argv[3] == "simulated").save()
"""
"""Run by the older release: what it would have learned the day before, in the file as it writes it."""


def older_release(commit: str, folder: Path) -> Path:
    """The package of ``commit``, ready to be run from the returned folder.

    Skips where the repository does not have the commit, but for CI, which would be green for nothing.
    """
    command = ["git", "-C", str(ROOT), "archive", commit, PACKAGE, f"{PACKAGE}.py"]
    try:
        archive = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"").decode(errors="replace").strip() or error
        reason = f"needs the release {commit} from the history of a whole git clone: {said}"
        if os.environ.get("CI", "").lower() in ("", "0", "false"):
            pytest.skip(reason)
        pytest.fail(reason)
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


@dataclass
class Life:
    """A process of a release, and what its client saw of it."""

    process: Process
    root: Path
    port: int
    seen: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ticks(self) -> dict[Place, dict[str, Any]]:
        """What came live: the price known before is not counted."""
        return {
            (one["epoch"], one["offset"]): one["data"]
            for one in self.seen
            if one["type"] == "market_data" and not one.get("snapshot")
        }

    async def get(self, path: str, **params: str) -> httpx.Response | None:
        """``None`` while nobody answers."""
        return await answer_of(self.port, path, **params)

    def faults(self) -> list[str]:
        """What its log has of errors."""
        found = []
        for line in self.process.text().splitlines():
            try:
                level = json.loads(line).get("level")
            except (ValueError, AttributeError):
                level = "not JSON"
            if level not in ("debug", "info", "warning"):
                found.append(line)
        return found


@dataclass
class Estate:
    """What one release leaves to the next, and the world around it."""

    folder: Path
    clock: VirtualClock
    environ: dict[str, str]
    admin_dsn: str
    simulator: Process
    lives: list[Life] = field(default_factory=list)

    @property
    def state_dir(self) -> Path:
        return Path(self.environ["STATE_DIR"])

    @property
    def database(self) -> str:
        return urlsplit(self.environ["DATABASE_URL"]).path[1:]

    async def query(self, sql: str, *arguments: object) -> list[Any]:
        connection = await asyncpg.connect(self.environ["DATABASE_URL"])
        try:
            return list(await connection.fetch(sql, *arguments))
        finally:
            await connection.close()

    async def begin(self, root: Path) -> Life:
        """Start ``run`` of the release in ``root``."""
        number, port = len(self.lives) + 1, free_port()
        life = Life(Process(f"life-{number}", self.folder, cwd=root), root, port)
        self.lives.append(life)
        await life.process.start("run", "--port", str(port), environ=self.environ)
        return life

    async def collecting(self, life: Life, after: int = 0) -> dict[str, Any]:
        """Wait until it is ACTIVE and healthy and a whole bar of its own is in the database; its /status.

        :param after: the highest epoch of the lives before.
        """
        seen = ""

        async def healthy() -> dict[str, Any] | None:
            nonlocal seen
            assert life.process.running, life.process.text()[-4000:]
            health = await life.get("/health")
            seen = "no answer" if health is None else health.text
            if health is None or health.json()["status"] != "healthy":
                return None
            status = await life.get("/status")
            assert status
            found: dict[str, Any] = status.json()
            return found if found["service_status"] == "active" else None

        status = await eventually(
            healthy, WITHIN_S, lambda: f"{seen}\n{life.process.text()[-4000:]}"
        )

        async def whole_bar() -> bool | None:
            rows = await self.query(
                "SELECT FROM market_data WHERE certificate @> '{\"partial\": false}' "
                "AND source LIKE '%\\_websocket' AND bar_epoch > $1",
                after,
            )
            return bool(rows) or None

        await eventually(whole_bar, WITHIN_S, lambda: life.process.text()[-4000:])
        return status

    @contextlib.asynccontextmanager
    async def watching(self, life: Life) -> AsyncIterator[None]:
        """A client writes down what ``life`` publishes, to its end."""

        async def watch() -> None:
            with contextlib.suppress(ConnectionClosed):
                async with connect(f"ws://127.0.0.1:{life.port}/ws/USDCOP") as client:
                    async for message in client:
                        life.seen.append(json.loads(message))

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def kill_in_the_middle(self, life: Life) -> None:
        """``kill -9`` in the middle of a bar, when clients know more than PostgreSQL does."""
        await self._reachable(False)
        published = len(life.ticks)

        async def ahead() -> bool | None:
            assert life.process.running, life.process.text()[-4000:]
            first, last = MIDDLE_S
            return (
                len(life.ticks) >= published + BACKLOG
                and first <= self.clock.now() % SLOT_S <= last
            ) or None

        await eventually(ahead, WITHIN_S, lambda: f"a backlog\n{life.process.text()[-4000:]}")
        assert await life.process.stop(signal.SIGKILL) == -signal.SIGKILL
        await self._reachable(True)

    async def _reachable(self, allowed: bool) -> None:
        """Let the database in, or cut every connection and refuse new ones."""
        connection = await asyncpg.connect(self.admin_dsn)
        try:
            await connection.execute(
                f'ALTER DATABASE "{self.database}" ALLOW_CONNECTIONS {str(allowed).lower()}'
            )
            if not allowed:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1",
                    self.database,
                )
        finally:
            await connection.close()

    async def export(self, root: Path, journal: Path, what: str) -> list[dict[str, Any]]:
        """The records of a journal, as the release in ``root`` reads them."""
        name = f"export-{what}-{time.monotonic_ns()}"
        file = self.folder / f"{name}.ndjson"
        process = Process(name, self.folder, cwd=root)
        arguments = ("journal", "export", "--what", what, "--dir", str(journal), "--out", str(file))
        await process.start(*arguments, environ=self.environ)
        assert await process.finished(WITHIN_S) == 0, process.text()
        return [json.loads(line) for line in file.read_text().splitlines()]

    def copy_of_the_journal(self) -> Path:
        """What a dead process left, for whoever reads it later."""
        copy = self.folder / f"journal-{len(self.lives)}"
        shutil.copytree(self.state_dir / "journal", copy)
        return copy


@contextlib.asynccontextmanager
async def estate(
    folder: Path, settings: Mapping[str, str], database_dsn: str, admin_dsn: str, redis_url: str
) -> AsyncIterator[Estate]:
    """A vendor whose session is about to open; ends everything that runs, at the end."""
    calendar = TradingCalendar(*(datetime.strptime(at, "%H:%M").time() for at in HOURS.values()))  # noqa: DTZ007
    session = calendar.session(DAY)
    assert session is not None
    start = datetime.fromtimestamp(session.opens - BEFORE_OPEN_S, calendar.zone)
    # Real time: the anchor that all processes share.
    specification = f"{start.isoformat()},{SPEED:g},{time.time()!r}"
    signals = folder / "signals"
    signals.mkdir()
    (signals / "l0_ready.flag").write_text('{"ready": true}')
    environ = {
        "DATABASE_URL": database_dsn,
        "REDIS_URL": redis_url,
        "TWELVEDATA_API_KEY_G1_1": "the-key-of-all-releases",
        "VIRTUAL_CLOCK": specification,
        "STATE_DIR": str(folder / "state"),
        "READY_SIGNALS_DIR": str(signals),
        "BACKUP_DIR": str(folder / "backups"),
        "L0_WINDOW_DAYS": "2",
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "INFO",
        "COLUMNS": "200",
        **HOURS,
        **settings,
    }
    simulator = Process("simulator", folder)
    await simulator.start(
        *("simulate", "--port", "0", "--seed", "6", "--ticks-per-bar", str(TICKS_PER_BAR)),
        environ=environ,
    )
    clock = parse_virtual_clock(specification, calendar.is_trading_day)
    made = Estate(folder, clock, environ, admin_dsn, simulator)
    try:
        for name in ("TWELVEDATA_REST_URL", "TWELVEDATA_WS_URL"):
            environ[name] = (await simulator.said(f"{name}=")).partition("=")[2].strip()
        yield made
    finally:
        for process in (*(life.process for life in made.lives), simulator):
            if process.running:
                await process.stop(signal.SIGKILL)


async def resumed(
    life: Life, cursor: Place, *, by_message: bool, until: int
) -> list[dict[str, Any]]:
    """What a client gets that goes on behind ``cursor``, up to tick ``until`` of another epoch.

    :param by_message: with ``resume`` on an open connection instead of ``since`` in the address.
    """
    epoch, offset = cursor
    url = f"ws://127.0.0.1:{life.port}/ws/USDCOP"
    if not by_message:
        url += f"?since=USDCOP:{epoch}:{offset}"
    messages: list[dict[str, Any]] = []
    async with asyncio.timeout(4 * WITHIN_S), connect(url, max_queue=None) as client:
        if by_message:
            await client.send(
                json.dumps({"type": "resume", "symbol": "USDCOP", "epoch": epoch, "offset": offset})
            )
        newest, seam = 0, False
        while True:
            messages.append(json.loads(await client.recv()))
            one = messages[-1]
            seam = seam or one["type"] == "epoch"
            if is_tick(one) and one["epoch"] > epoch:
                # What came live before the answer to ``resume`` comes again in its place.
                newest = max(newest, one["offset"])
                if seam and one["offset"] == newest >= until:
                    return messages


def is_tick(message: Mapping[str, Any]) -> bool:
    return message["type"] == "market_data" and not message.get("snapshot")


def bars_of(ticks: Sequence[Mapping[str, Any]]) -> dict[datetime, tuple[float, ...]]:
    """Open, high, low and close of each slot, from ticks as ``journal export`` writes them."""
    frame = (
        pl.DataFrame(ticks, infer_schema_length=None)
        .filter(
            pl.col("trading_session"),
            ~pl.col("flags").list.eval(pl.element().is_in(IN_NO_BAR)).list.any(),
        )
        .with_columns(at=pl.col("timestamp").str.to_datetime(time_zone="UTC"))
        .sort("at", "epoch", "offset")
        .group_by(slot=pl.col("at").dt.truncate(f"{SLOT_S}s"), maintain_order=True)
        .agg(
            open=pl.col("price").first(),
            high=pl.col("price").max(),
            low=pl.col("price").min(),
            close=pl.col("price").last(),
        )
    )
    return {row[0]: tuple(row[1:]) for row in frame.iter_rows()}


async def teach(root: Path, state_dir: Path, world: str) -> None:
    """Let the older release write down the silences of the day before."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", TEACH, str(state_dir), str(DAY - timedelta(days=1)), world),
        cwd=root,
    )
    assert await process.wait() == 0
