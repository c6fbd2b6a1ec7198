"""A real instance at work, for whoever must not disturb it: database, Redis, folders, keys and a process.

The vendor is a simulator that stands in for the real one: ``PROVIDER=twelvedata`` makes its prices real.
"""

import asyncio
import contextlib
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import redis.asyncio

from enhanced_websocket_service.chaos.parts import Part
from enhanced_websocket_service.clock import VirtualClock, parse_virtual_clock
from enhanced_websocket_service.market.calendar import TradingCalendar
from tests.waiting import eventually

from .faults.recording import drop_database, new_database, numbered_cache
from .playback import ROOT, Process, answer_of, free_port

DAY = date(2025, 6, 25)
HISTORY = ("2025-06-18", "2025-06-24")
HOURS = {"MARKET_OPEN": "07:00", "MARKET_CLOSE": "18:55"}
"""A long session: on a slow machine, too, everything happens in it."""
SPEED = 60.0
BEFORE_OPEN_S = 300.0
"""Virtual seconds in which the processes start."""
WITHIN_S = 40.0
CHANNEL = "market_data:realtime"


@dataclass
class Instance:
    """A ``run`` or ``demo`` and where it answers."""

    process: Process
    port: int

    async def get(self, path: str, **params: str) -> httpx.Response | None:
        """``None`` while nobody answers."""
        return await answer_of(self.port, path, **params)

    async def json(self, path: str, **params: str) -> dict[str, Any]:
        answer = await self.get(path, **params)
        assert answer is not None, self.process.text()[-4000:]
        found: dict[str, Any] = answer.json()
        return found

    async def state(self, wanted: str) -> dict[str, Any]:
        """Wait for a state; ``/health`` in it."""
        seen = "no answer"

        async def reached() -> dict[str, Any] | None:
            nonlocal seen
            assert self.process.running, self.process.text()[-4000:]
            answer = await self.get("/health")
            if answer is None:
                return None
            seen = answer.text
            found: dict[str, Any] = answer.json()
            return found if found["service_status"] == wanted else None

        return await eventually(
            reached, WITHIN_S, lambda: f"{wanted}: {seen}\n{self.process.text()[-4000:]}"
        )

    async def price(self) -> dict[str, Any]:
        """Wait for a price; ``/market/latest``."""

        async def priced() -> dict[str, Any] | None:
            assert self.process.running, self.process.text()[-4000:]
            answer = await self.get("/market/latest")
            return answer.json() if answer is not None and answer.status_code == 200 else None

        return await eventually(priced, WITHIN_S, lambda: self.process.text()[-4000:])


@dataclass
class Production:
    """The real instance, and what it needs; see ``production``.

    :ivar environ: what is set where the real instance runs: all of it.
    :ivar quiet: a copy of its database that nobody works with, which every change shows in.
    """

    folder: Path
    server_dsn: str
    clock: VirtualClock
    vendor: dict[str, str]
    environ: dict[str, str]
    live: str
    quiet: str
    redis_url: str
    service: Instance
    databases: list[str] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    _numbers: int = 0

    def simulated(self, database: str, **changes: str) -> dict[str, str]:
        """The environment of an instance whose prices are invented, in folders of its own."""
        self._numbers += 1
        own = self.folder / f"simulated-{self._numbers}"
        (own / "signals").mkdir(parents=True)
        (own / "signals" / "l0_ready.flag").write_text('{"ready": true}')
        return {
            **_COMMON,
            **self.vendor,
            "DATABASE_URL": database,
            "TWELVEDATA_API_KEY_G1_1": f"a-key-of-instance-{self._numbers}",
            "VIRTUAL_CLOCK": self.environ["VIRTUAL_CLOCK"],
            "STATE_DIR": str(own / "state"),
            "READY_SIGNALS_DIR": str(own / "signals"),
            "BACKUP_DIR": str(own / "backups"),
            **changes,
        }

    def real(self, database: str, **changes: str) -> dict[str, str]:
        """The same with the word that its prices are real."""
        return self.simulated(database, PROVIDER="twelvedata", **changes)

    def cache(self, number: int) -> str:
        """Another Valkey database on the same server."""
        return numbered_cache(self.redis_url, number)

    async def database(self, template: str | None = None) -> str:
        """A new database, empty or a copy; dropped at the end."""
        self.databases.append(await new_database(self.server_dsn, "world", template))
        return self.databases[-1]

    async def start(self, *arguments: str, environ: Mapping[str, str], cwd: Path = ROOT) -> Process:
        process = Process(f"{arguments[0]}-{len(self.processes)}", self.folder, cwd=cwd)
        self.processes.append(process)
        await process.start(*arguments, environ=environ)
        return process

    async def command(self, *arguments: str, environ: Mapping[str, str]) -> tuple[int, str]:
        """Exit code and output of a command that ends by itself."""
        process = await self.start(*arguments, environ=environ)
        return await process.finished(WITHIN_S), process.text()

    async def run(self, environ: Mapping[str, str]) -> Instance:
        port = free_port()
        return Instance(await self.start("run", "--port", str(port), environ=environ), port)

    async def world(self, database: str) -> str:
        """What ``db world`` says of a database: real, simulated or nobody."""
        environ = {**_COMMON, "DATABASE_URL": database, "STATE_DIR": str(self.folder / "nowhere")}
        code, text = await self.command("db", "world", "--json", environ=environ)
        assert code == 0, text
        return world_in(text)


_COMMON = {
    "L0_WINDOW_DAYS": "2",
    "LOG_FORMAT": "json",
    "LOG_LEVEL": "INFO",
    "COLUMNS": "300",
    **HOURS,
}


@contextlib.asynccontextmanager
async def production(folder: Path, server_dsn: str) -> AsyncIterator[Production]:
    """History, a simulator as its vendor, and the real instance, ACTIVE; all ended afterwards."""
    calendar = TradingCalendar(*(datetime.strptime(at, "%H:%M").time() for at in HOURS.values()))  # noqa: DTZ007
    session = calendar.session(DAY)
    assert session is not None
    start = datetime.fromtimestamp(session.opens, calendar.zone) - timedelta(seconds=BEFORE_OPEN_S)
    # Real time: the anchor that all processes share.
    specification = f"{start.isoformat()},{SPEED:g},{time.time()!r}"
    home = folder / "production"
    home.mkdir()
    common = {**_COMMON, "VIRTUAL_CLOCK": specification}
    simulator = Process("simulator", folder)
    await simulator.start("simulate", "--port", "0", "--ticks-per-bar", "100", environ=common)
    made: Production | None = None
    async with Part("valkey", folder / "valkey") as valkey:
        live = await new_database(server_dsn, "world")
        try:
            vendor = {
                name: (await simulator.said(f"{name}=")).partition("=")[2].strip()
                for name in ("TWELVEDATA_REST_URL", "TWELVEDATA_WS_URL")
            }
            environ = {
                **common,
                **vendor,
                "PROVIDER": "twelvedata",
                "DATABASE_URL": live,
                "REDIS_URL": valkey.url,
                "TWELVEDATA_API_KEY_G1_1": "a-production-key",
                **{
                    name: str(home / name.partition("_")[0].lower())
                    for name in ("STATE_DIR", "READY_SIGNALS_DIR", "BACKUP_DIR", "LOG_DIR")
                },
            }
            made = Production(
                folder=folder,
                server_dsn=server_dsn,
                clock=parse_virtual_clock(specification, calendar.is_trading_day),
                vendor=vendor,
                environ=environ,
                live=live,
                quiet="",
                redis_url=valkey.url,
                service=Instance(simulator, 0),
                databases=[live],
            )
            first, last = HISTORY
            code, text = await made.command(
                "l0", "backfill", "--start", first, "--end", last, environ=environ
            )
            assert code == 0, text
            made.quiet = await made.database(live)
            made.service = await made.run(environ)
            await made.service.state("active")
            await made.service.price()
            yield made
        finally:
            for process in (*(made.processes if made else ()), simulator):
                if process.running:
                    await process.stop()
            for dsn in made.databases if made else (live,):
                await drop_database(server_dsn, dsn)


def world_in(text: str) -> str:
    """The world of the database in what ``db world --json`` prints."""
    found = json.loads(text[text.index("{") :])
    for name in ("database", "postgresql", "postgres"):
        found = found.get(name, found) if isinstance(found, dict) else found
    if isinstance(found, dict):
        found = found["world"]
    return "nobody" if found is None else str(found)


def is_refusal(code: int, text: str, place: str) -> bool:
    """Whether a command ended as it must before another's place: named, with both worlds and the remedy."""
    names = (place, "real", "simulated", "db world")
    return code == 2 and all(name in text for name in names) and "Traceback" not in text


async def rows(dsn: str) -> dict[str, Any]:
    """Every table of a database, its columns and its rows, in an order of their own."""
    connection = await asyncpg.connect(dsn)
    try:
        columns = await connection.fetch(
            "SELECT table_name, column_name, data_type FROM information_schema.columns "
            "WHERE table_schema = 'public' ORDER BY 1, 2"
        )
        tables = await connection.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        )
        found: dict[str, Any] = {"columns": [tuple(row) for row in columns]}
        for (table,) in tables:
            texts = await connection.fetch(f'SELECT t::text FROM "{table}" AS t ORDER BY 1')
            found[table] = [row[0] for row in texts]
        return found
    finally:
        await connection.close()


async def foreign_rows(dsn: str, wanted: str) -> dict[str, list[str]]:
    """By table that names sources, those that are not of ``wanted`` (``real`` or ``simulated``)."""
    connection = await asyncpg.connect(dsn)
    try:
        named = await connection.fetch(
            "SELECT c.table_name, c.column_name FROM information_schema.columns AS c "
            "JOIN pg_tables AS t ON t.tablename = c.table_name AND t.schemaname = c.table_schema "
            "WHERE c.table_schema = 'public' AND c.column_name ~ '(^|_)source$'"
        )
        found = {}
        for table, column in named:
            sources = await connection.fetch(f'SELECT DISTINCT "{column}" FROM "{table}"')
            others = [
                row[0]
                for row in sources
                if row[0] and row[0].startswith("simulator") is (wanted == "real")
            ]
            if others:
                found[table] = others
        return found
    finally:
        await connection.close()


async def scalar(dsn: str, sql: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def keys(url: str) -> dict[str, bytes]:
    """Every key of a Redis with what it holds, as the server would dump it."""
    async with redis.asyncio.Redis.from_url(url) as client:
        found = {}
        for name in await client.keys("*"):
            content = await client.dump(name)
            if content is not None:
                found[name.decode(errors="replace")] = content
        return found


async def mark(url: str, *worlds: str) -> str | None:
    """The key that says whose a Redis is, when it says one of ``worlds``."""
    async with redis.asyncio.Redis.from_url(url) as client:
        for name in await client.keys("*world*"):
            if await client.type(name) == b"string":
                text = (await client.get(name)).decode(errors="replace")
                if any(re.search(rf"\b{world}\b", text) for world in worlds):
                    return str(name.decode())
        return None


def listing(folder: Path) -> dict[str, Any]:
    """Every file and folder below, with its time and content."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted([folder, *folder.rglob("*")])
    }


@contextlib.asynccontextmanager
async def listening(url: str) -> AsyncIterator[list[dict[str, Any]]]:
    """What is published on the requester's channel."""
    heard: list[dict[str, Any]] = []
    take = heard.append
    async with redis.asyncio.Redis.from_url(url) as client, client.pubsub() as pubsub:
        await pubsub.subscribe(CHANNEL)

        async def listen() -> None:
            async for message in pubsub.listen():
                if message["type"] == "message":
                    take(json.loads(message["data"]))

        task = asyncio.create_task(listen())
        try:
            yield heard
        finally:
            task.cancel()
            await asyncio.wait({task})
