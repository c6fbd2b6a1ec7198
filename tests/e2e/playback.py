"""Plays a recording through the real service and compares what it stored with the recording.

Simulator, L0 backfill and service run as separate processes that share virtual time; PostgreSQL and
Valkey are embedded. Used by the tests on a small generated recording and by
``scripts/play_recording.py`` on the real one.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import asyncpg
import httpx
import polars as pl

from enhanced_websocket_service.clock import VirtualClock, parse_virtual_clock
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.storage.embedded import EmbeddedServers
from tests.waiting import PATIENCE, eventually

ROOT = Path(__file__).resolve().parents[2]
IMPORT_PATH = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
STARTED_WITHIN_S = 30.0
PREPARATION_S = 25.0
"""Real seconds for servers, simulator, backfill and service to be ready before the clock matters."""


@dataclass(frozen=True)
class Playback:
    """What to play. ``first .. last`` are COT days; speeds are virtual seconds per real second."""

    recording: Path | None  # None: a random market
    first: date
    last: date
    speed: float = 120.0
    closed_speed: float = 20_000.0
    history_days: int = 14
    ticks: bool = False
    scale: float = 1.0
    ticks_per_bar: int | None = None
    simulate: tuple[str, ...] = ()  # further options of the simulator
    preparation_s: float = PREPARATION_S
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """The comparison; ``faults`` is empty when reality was reproduced."""

    live_bars: int = 0
    expected_bars: int = 0
    sessions: int = 0
    complete_sessions: int = 0
    closed_days: int = 0
    ticks_sent: int = 0
    ticks_stored: int = 0
    revised: int = 0
    rejected: int = 0
    real_seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


class Process:
    """A command of ours as a real process; its output goes to a file that failures show.

    :param cwd: where it runs: its ``.env`` is read there, and a package there is the one that runs.
    :param stdout: where its standard output goes instead, with the file left to standard error.
    """

    def __init__(
        self, name: str, folder: Path, cwd: Path = ROOT, *, stdout: int | None = None
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._cwd = cwd
        self._stdout = stdout
        self._process: asyncio.subprocess.Process | None = None

    async def start(
        self, *arguments: str, environ: Mapping[str, str], through: Sequence[str] = ()
    ) -> None:
        """:param through: a command that runs the rest of its arguments in its place."""
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *through,
                sys.executable,
                "-m",
                "enhanced_websocket_service",
                *arguments,
                cwd=self._cwd,
                # Of two packages the one in the working directory wins.
                env={**os.environ, "PYTHONPATH": IMPORT_PATH, **environ},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output if self._stdout is None else self._stdout,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    async def finished(self, within_s: float) -> int:
        """Wait for the end; the exit code."""
        assert self._process is not None
        async with asyncio.timeout(PATIENCE * within_s):
            return await self._process.wait()

    async def stop(self, number: int = signal.SIGTERM, within_s: float = 40.0) -> int:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        try:
            return await self.finished(within_s)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            raise AssertionError(
                f"{self.name} did not stop in time:\n{self.text()[-4000:]}"
            ) from None

    async def said(self, text: str, within_s: float = STARTED_WITHIN_S) -> str:
        """Wait until a line of the output contains ``text``; that line."""

        async def line() -> str | None:
            found = next((one for one in self.text().splitlines() if text in one), None)
            if found is None and not self.running:
                raise AssertionError(f"{self.name} ended:\n{self.text()[-4000:]}")
            return found

        return await eventually(line, within_s, lambda: f"{text!r} in:\n{self.text()[-4000:]}")


async def answer_of(port: int, path: str, **params: str) -> httpx.Response | None:
    """What a service of this machine answers; ``None`` while nobody does."""
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            return await http.get(path, params=params, timeout=10)
    except httpx.TransportError:
        return None


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Stack:
    """Everything that runs; see ``stack``."""

    folder: Path
    clock: VirtualClock
    environ: dict[str, str]
    simulator: Process
    service: Process
    rest_url: str
    base_url: str


@contextlib.asynccontextmanager
async def stack(play: Playback, folder: Path) -> AsyncIterator[Stack]:
    """Servers, simulator, finished L0 backfill and a started service; all stopped at the end."""
    calendar = _calendar(play)
    session = calendar.current_or_next(
        datetime.combine(play.first, datetime.min.time(), calendar.zone).timestamp()
    )
    start = datetime.fromtimestamp(session.opens, calendar.zone) - timedelta(minutes=30)
    async with EmbeddedServers(folder / "servers") as servers:
        database_url = await servers.start_postgres()
        redis_url = await servers.start_valkey()
        # The anchor lies ahead: until then everything starts and L0 is filled, the same morning.
        anchor = time.time() + play.preparation_s
        specification = f"{start.isoformat()},{play.speed:g},{anchor!r},{play.closed_speed:g}"
        clock = parse_virtual_clock(specification, calendar.is_trading_day)
        port = free_port()
        environ = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "VIRTUAL_CLOCK": specification,
            "TWELVEDATA_API_KEY_G1_1": "playback-key",
            "STATE_DIR": str(folder / "state"),
            "READY_SIGNALS_DIR": str(folder / "signals"),
            "BACKUP_DIR": str(folder / "backups"),
            "PORT": str(port),
            "LOG_FORMAT": "json",
            "COLUMNS": "200",
            **play.environ,
        }
        simulator, backfill, service = (
            Process(name, folder) for name in ("simulator", "backfill", "service")
        )
        options = list(play.simulate)
        if play.recording is not None:
            options += ["--ticks" if play.ticks else "--bars", str(play.recording)]
        if play.ticks:
            options += ["--scale", str(play.scale)]
        if play.ticks_per_bar is not None:
            options += ["--ticks-per-bar", str(play.ticks_per_bar)]
        await simulator.start("simulate", "--port", "0", *options, environ=environ)
        try:
            rest_url = (await simulator.said("TWELVEDATA_REST_URL=")).partition("=")[2].strip()
            ws_url = (await simulator.said("TWELVEDATA_WS_URL=")).partition("=")[2].strip()
            environ |= {"TWELVEDATA_REST_URL": rest_url, "TWELVEDATA_WS_URL": ws_url}
            until = play.first - timedelta(days=1)
            since = play.first - timedelta(days=play.history_days)
            await backfill.start(
                "l0", "backfill", "--start", str(since), "--end", str(until), environ=environ
            )
            code = await backfill.finished(60.0)
            if code and not play.ticks:
                raise AssertionError(f"backfill failed with {code}:\n{backfill.text()}")
            if code:  # recorded ticks have no history before their first day
                (folder / "signals").mkdir(exist_ok=True)
                (folder / "signals" / "l0_ready.flag").write_text('{"ready": true}')
            await service.start("run", environ=environ)
            try:
                yield Stack(
                    folder, clock, environ, simulator, service, rest_url, f"http://127.0.0.1:{port}"
                )
            finally:
                if service.running:
                    await service.stop()
        finally:
            for process in (backfill, simulator):
                if process.running:
                    await process.stop()


async def play(what: Playback, folder: Path) -> Outcome:
    """Play ``what`` to its end and compare."""
    calendar = _calendar(what)
    outcome = Outcome()
    began = time.monotonic()
    async with stack(what, folder) as running, httpx.AsyncClient(timeout=60.0) as http:
        for number in range((what.last - what.first).days + 1):
            day = what.first + timedelta(days=number)
            session = calendar.session(day)
            if session is None:
                outcome.closed_days += 1
                continue
            # Everything of the session is stored some real seconds after its close.
            settled = session.closes + 60 + 10 * what.speed
            await _sleep_until(running, settled)
            sent = await http.get(
                f"{running.rest_url}/_sim/sent",
                params={"symbol": "USD/COP", "start": session.opens, "end": session.closes},
            )
            sent.raise_for_status()
            (folder / f"sent-{day}.json").write_bytes(sent.content)
            status = (await http.get(f"{running.base_url}/status")).json()
            if status["service_status"] not in ("market_closed", "active"):
                outcome.faults.append(
                    f"{day}: after the session the service is {status['service_status']}"
                )
        code = await running.service.stop()
        if code != 0:
            outcome.faults.append(f"the service exited with {code}")
        await compare(what, folder, running.environ["DATABASE_URL"], outcome)
    outcome.real_seconds = time.monotonic() - began
    return outcome


async def compare(what: Playback, folder: Path, dsn: str, outcome: Outcome) -> None:
    """Stored bars against the recording, stored ticks against what the simulator sent."""
    calendar = _calendar(what)
    expected = expected_bars(what)
    connection = await asyncpg.connect(dsn)
    try:
        for number in range((what.last - what.first).days + 1):
            day = what.first + timedelta(days=number)
            await _compare_day(day, calendar, expected, folder, connection, outcome)
        outcome.rejected = await connection.fetchval("SELECT count(*) FROM rejected_ticks")
        outcome.revised = await connection.fetchval(
            "SELECT count(*) FROM bar_revisions WHERE revision > 0"
        )
    finally:
        await connection.close()


async def _compare_day(
    day: date,
    calendar: TradingCalendar,
    expected: Mapping[int, tuple[float, float, float, float]],
    folder: Path,
    connection: asyncpg.Connection,
    outcome: Outcome,
) -> None:
    midnight = datetime.combine(day, datetime.min.time(), calendar.zone)
    rows = await connection.fetch(
        "SELECT datetime, open, high, low, close FROM market_data "
        "WHERE symbol = 'USDCOP' AND source = 'simulator_websocket' "
        "AND datetime >= $1 AND datetime < $2 ORDER BY datetime",
        midnight,
        midnight + timedelta(days=1),
    )
    live = {
        int(row["datetime"].timestamp()): tuple(
            float(row[field]) for field in ("open", "high", "low", "close")
        )
        for row in rows
    }
    labels = calendar.live_labels(day)
    wanted = {label: expected[label] for label in labels if label in expected}
    outcome.live_bars += len(live)
    outcome.expected_bars += len(wanted)
    if labels:
        outcome.sessions += 1
        outcome.complete_sessions += len(wanted) == len(labels)
    for label in sorted(wanted.keys() | live.keys()):
        if wanted.get(label) != live.get(label):
            at = datetime.fromtimestamp(label, UTC).isoformat()
            outcome.faults.append(f"bar {at}: recorded {wanted.get(label)}, live {live.get(label)}")
    if not labels:
        return
    sent = pl.read_json(folder / f"sent-{day}.json")
    stored = await connection.fetch(
        "SELECT time, last, bid, ask FROM realtime_market_data "
        "WHERE symbol = 'USDCOP' AND trading_session AND session_date = $1 "
        "ORDER BY epoch, tick_offset",
        day,
    )
    outcome.ticks_sent += len(sent)
    outcome.ticks_stored += len(stored)
    rows_sent = [tuple(row) for row in sent.select("timestamp", "price", "bid", "ask").iter_rows()]
    rows_stored = [
        (int(row["time"].timestamp()), *(_number(row[name]) for name in ("last", "bid", "ask")))
        for row in stored
    ]
    if rows_sent != rows_stored:
        pairs = zip(rows_sent, rows_stored, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(sent), len(stored)))
        outcome.faults.append(
            f"{day}: {len(rows_sent)} ticks sent, {len(rows_stored)} stored; they differ from number "
            f"{at}: sent {rows_sent[at : at + 2]}, stored {rows_stored[at : at + 2]}"
        )


def expected_bars(what: Playback) -> dict[int, tuple[float, float, float, float]]:
    """The bars of the recording, or those polars computes from its ticks, by their open."""
    assert what.recording is not None
    frame = pl.read_parquet(what.recording)
    if what.ticks:
        frame = (
            frame.with_columns(
                price=((pl.col("bid") + pl.col("ask")) / 2 * what.scale).round(6),
                slot=pl.col("datetime").dt.truncate("5m"),
            )
            .group_by("slot", maintain_order=True)
            .agg(
                open=pl.col("price").first(),
                high=pl.col("price").max(),
                low=pl.col("price").min(),
                close=pl.col("price").last(),
            )
            .rename({"slot": "datetime"})
        )
    return {
        int(at.timestamp()): prices
        for at, *prices_list in frame.select("datetime", "open", "high", "low", "close").iter_rows()
        for prices in [tuple(prices_list)]
    }


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))


def _calendar(what: Playback) -> TradingCalendar:
    def at(name: str, default: str) -> datetime:
        return datetime.strptime(what.environ.get(name, default), "%H:%M").replace(tzinfo=UTC)

    closed = what.environ.get("EXTRA_CLOSURES", "")
    return TradingCalendar(
        at("MARKET_OPEN", "08:00").time(),
        at("MARKET_CLOSE", "12:55").time(),
        extra_closures=[date.fromisoformat(day) for day in closed.split(",") if day],
    )


async def _sleep_until(running: Stack, instant: float) -> None:
    """Wait for virtual time, noticing at once when a process dies."""

    async def reached() -> bool | None:
        for process in (running.simulator, running.service):
            if not process.running:
                raise AssertionError(f"{process.name} died:\n{process.text()[-4000:]}")
        return running.clock.now() >= instant or None

    await eventually(reached, 24 * 3600.0, "virtual time")
