"""A whole installation whose every part a test can break: vendor, PostgreSQL, Valkey and the service.

Each part is a process of its own. ``/health`` is sampled all the time, so that a test can say what a user
would have seen at any moment.
"""

import asyncio
import contextlib
import json
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from enhanced_websocket_service.chaos.parts import Part
from enhanced_websocket_service.clock import VirtualClock, parse_virtual_clock
from enhanced_websocket_service.market.calendar import TradingCalendar
from tests.e2e.playback import Process, answer_of, free_port
from tests.waiting import eventually

DAY = date(2025, 6, 25)
HOURS = {"MARKET_OPEN": "07:00", "MARKET_CLOSE": "18:55"}
"""A long session: on a slow machine, too, everything happens in it."""
BEFORE_OPEN_S = 600.0
WITHIN_S = 60.0
LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class Sample:
    """What ``/health`` said at ``at`` (monotonic); ``status`` is empty when it did not answer."""

    at: float
    status: str
    state: str
    problems: tuple[str, ...]
    code: int

    def names(self, pattern: str) -> bool:
        return any(re.search(pattern, problem, re.I) for problem in self.problems)


@dataclass
class Instance:
    """One ``run``, where it answers, and the switches of its machine."""

    process: Process
    port: int
    switches: Path
    samples: list[Sample] = field(default_factory=list)
    seen: set[tuple[int, int]] = field(default_factory=set)  # (epoch, offset) a client got live
    told: set[tuple[int, int]] = field(default_factory=set)  # those it was told it does not get

    def fault(self, **faults: Any) -> None:
        """Switch the faults of this instance's machine; none: all is well."""
        fresh = self.switches.with_suffix(".new")
        fresh.write_text(json.dumps(faults))
        fresh.replace(self.switches)

    async def get(self, path: str) -> dict[str, Any]:
        answer = await answer_of(self.port, path)
        assert answer is not None, self.process.text()[-4000:]
        found: dict[str, Any] = answer.json()
        return found

    async def look(self) -> Sample:
        answer = await answer_of(self.port, "/health")
        now = time.monotonic()
        if answer is None:
            return Sample(now, "", "", (), 0)
        body = answer.json()
        return Sample(
            now, body["status"], body["service_status"], tuple(body["problems"]), answer.status_code
        )

    async def until(self, what: str, wanted: Any, within_s: float = WITHIN_S) -> Sample:
        """The first sample from now on for which ``wanted`` is true."""
        first = len(self.samples)

        async def found() -> Sample | None:
            assert self.process.running, self.process.text()[-4000:]
            return next((one for one in self.samples[first:] if wanted(one)), None)

        return await eventually(
            found, within_s, lambda: f"{what}: {self.samples[-3:]}\n{self.process.text()[-3000:]}"
        )

    async def well(self, within_s: float = WITHIN_S) -> Sample:
        return await self.until(
            "healthy and active",
            lambda one: one.status == "healthy" and one.state == "active",
            within_s,
        )

    async def sample(self) -> None:
        while True:
            self.samples.append(await self.look())
            await asyncio.sleep(LOOK_EVERY_S)

    async def listen(self) -> None:
        """A client as the product's own: it resumes, and knows what it was told it does not get."""
        cursor = ""
        while True:
            with contextlib.suppress(OSError, WebSocketException, TimeoutError):
                url = f"ws://127.0.0.1:{self.port}/ws/USDCOP{cursor}"
                async with connect(url, max_queue=None) as client:
                    async for text in client:
                        message = json.loads(text)
                        if message["type"] == "market_data" and not message.get("snapshot"):
                            place = (message["epoch"], message["offset"])
                            self.seen.add(place)
                            cursor = f"?since=USDCOP:{place[0]}:{place[1]}"
                        elif message["type"] == "skipped":
                            span = range(message["from"], message["to"] + 1)
                            self.told |= {(message["epoch"], offset) for offset in span}
            await asyncio.sleep(LOOK_EVERY_S)


@dataclass
class Installation:
    """See the module."""

    folder: Path
    clock: VirtualClock
    environ: dict[str, str]
    simulator: Process
    postgres: Part
    valkey: Part
    tasks: list[asyncio.Task[None]]
    instances: list[Instance] = field(default_factory=list)
    locking: asyncpg.Connection | None = None
    slowing: asyncio.Task[None] | None = None

    async def begin(self, **environ: str) -> Instance:
        """Start ``run``; sampled and listened to from now on."""
        number, port = len(self.instances) + 1, free_port()
        switches = self.folder / f"faults-{number}.json"
        switches.write_text("{}")
        instance = Instance(Process(f"run-{number}", self.folder), port, switches)
        self.instances.append(instance)
        await instance.process.start(
            *("run", "--port", str(port)),
            environ={**self.environ, **environ},
            through=(sys.executable, "-m", "tests.e2e.matrix.injected", str(switches)),
        )
        for watch in (instance.sample, instance.listen):
            self.tasks.append(asyncio.create_task(watch()))
        return instance

    async def vendor(self, **faults: Any) -> None:
        """Set faults of the vendor; none: end all."""
        url = f"{self.environ['TWELVEDATA_REST_URL']}/_sim/faults"
        async with httpx.AsyncClient() as http:
            if faults:
                (await http.post(url, json=faults)).raise_for_status()
            else:
                (await http.delete(url)).raise_for_status()

    async def sql(self, *statements: str) -> list[Any]:
        """Run them on one connection; the rows of the last."""
        connection = await asyncpg.connect(self.environ["DATABASE_URL"])
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return list(await connection.fetch(statements[-1]))
        finally:
            await connection.close()

    async def ledger(self, instance: Instance) -> list[str]:
        """What is lost or doubled between the client and the table, once everything is drained."""

        async def drained() -> bool | None:
            writer = (await instance.get("/status"))["storage"]
            return True if writer["writer_lag_records"] < 50 else None

        await eventually(drained, WITHIN_S, lambda: instance.process.text()[-3000:])
        assert await instance.process.stop() == 0, instance.process.text()[-3000:]
        rows = await self.sql(
            "SELECT epoch, tick_offset, count(*) AS times FROM realtime_market_data GROUP BY 1, 2"
        )
        stored = {(row["epoch"], row["tick_offset"]) for row in rows}
        faults = [f"doubled in the table: {row}" for row in rows if row["times"] != 1]
        if lost := sorted(instance.seen - stored):
            faults.append(f"{len(lost)} that a client saw are not in the table: {lost[:3]}")
        for epoch in {place[0] for place in stored}:
            offsets = {offset for known, offset in stored if known == epoch}
            if holes := sorted(set(range(1, max(offsets) + 1)) - offsets):
                faults.append(f"epoch {epoch} lacks {len(holes)} offsets: {holes[:3]}")
        if rejected := await self.sql("SELECT reason, count(*) FROM rejected_ticks GROUP BY 1"):
            faults += [f"rejected: {row}" for row in rejected if row["reason"] == "unstorable"]
        return faults


@contextlib.asynccontextmanager
async def installation(
    folder: Path, *, speed: float, ticks_per_bar: int = 100, **settings: str
) -> AsyncIterator[Installation]:
    """All parts but the service, whose session is about to open."""
    calendar = TradingCalendar(*(datetime.strptime(at, "%H:%M").time() for at in HOURS.values()))  # noqa: DTZ007
    session = calendar.session(DAY)
    assert session is not None
    start = datetime.fromtimestamp(session.opens - BEFORE_OPEN_S, calendar.zone)
    # Real time: the anchor that all processes share.
    specification = f"{start.isoformat()},{speed:g},{time.time()!r}"
    signals = folder / "signals"
    signals.mkdir()
    (signals / "l0_ready.flag").write_text('{"ready": true}')
    environ = {
        "TWELVEDATA_API_KEY_G1_1": "a-key-of-the-matrix",
        "TWELVEDATA_API_KEY_G1_2": "another-key-of-the-matrix",
        "VIRTUAL_CLOCK": specification,
        "STATE_DIR": str(folder / "state"),
        "READY_SIGNALS_DIR": str(signals),
        "BACKUP_DIR": str(folder / "backups"),
        "L0_WINDOW_DAYS": "2",
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "INFO",
        "COLUMNS": "300",
        **HOURS,
        **settings,
    }
    simulator = Process("simulator", folder)
    await simulator.start(
        *("simulate", "--port", "0", "--seed", "7", "--ticks-per-bar", str(ticks_per_bar)),
        environ=environ,
    )
    made: Installation | None = None
    tasks: list[asyncio.Task[None]] = []
    async with Part("postgres", folder / "pg") as postgres, Part("valkey", folder / "kv") as valkey:
        try:
            for name in ("TWELVEDATA_REST_URL", "TWELVEDATA_WS_URL"):
                environ[name] = (await simulator.said(f"{name}=")).partition("=")[2].strip()
            environ |= {"DATABASE_URL": postgres.url, "REDIS_URL": valkey.url}
            clock = parse_virtual_clock(specification, calendar.is_trading_day)
            made = Installation(folder, clock, environ, simulator, postgres, valkey, tasks)
            yield made
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for process in (
                (*(one.process for one in made.instances if made), simulator)
                if made
                else (simulator,)
            ):
                if process.running:
                    await process.stop(signal.SIGKILL)


def without(environ: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in names}
