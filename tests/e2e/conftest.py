"""Real processes for the tests: a demo in the middle of its session, and a place to run commands."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx
import pytest

from enhanced_websocket_service.clock import parse_virtual_clock
from enhanced_websocket_service.market.calendar import is_trading_day
from enhanced_websocket_service.twelvedata.simulator import (
    Simulator,
    SimulatorConfig,
    market_from_options,
)
from tests.waiting import eventually

from .playback import Process, free_port
from .rig import SESSION, Rig

STARTED_WITHIN_S = 60.0


@dataclass(frozen=True)
class RunningService:
    """Where to reach a service that collects ticks, with all its parts up."""

    base_url: str
    ws_url: str
    database_dsn: str
    redis_url: str


async def start_demo(
    folder: Path, *options: str, port: int | None = None, stdout: int | None = None
) -> tuple[Process, int]:
    """A ``demo`` process on a free port, its data under ``folder``."""
    port = free_port() if port is None else port
    process = Process("demo", folder, stdout=stdout)
    await process.start(
        "demo",
        "--port",
        str(port),
        "--state-dir",
        str(folder / "state"),
        *options,
        environ={"COLUMNS": "300", "LOG_LEVEL": "INFO", "LOG_FORMAT": "json"},
    )
    return process, port


async def told(process: Process, name: str) -> str:
    """The value that the demo printed beside ``name``."""
    line = await process.said(f"  {name} ")
    return line.split(maxsplit=1)[1].strip()


async def _collecting(process: Process, base_url: str) -> None:
    async with httpx.AsyncClient(base_url=base_url) as client:

        async def collecting() -> bool | None:
            assert process.running, process.text()[-4000:]
            try:
                latest = await client.get("/market/latest")
                health = await client.get("/health")
            except httpx.TransportError:
                return None
            return (latest.status_code == 200 and health.json()["status"] == "healthy") or None

        await eventually(collecting, STARTED_WITHIN_S, lambda: process.text()[-4000:])


@pytest.fixture(scope="session")
def running_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("demo")
    with ThreadPoolExecutor(1) as pool, asyncio.Runner() as runner:

        def run(coroutine):  # type: ignore[no-untyped-def]
            # On a thread and loop of its own: pytest-asyncio's loops stay untouched.
            return pool.submit(runner.run, coroutine).result()

        # Slow enough that the session lasts for all tests that use it.
        process, port = run(start_demo(folder, "--speed", "20", "--at", _before_a_session()))
        try:
            base_url = f"http://127.0.0.1:{port}"
            dsn = run(told(process, "DATABASE_URL"))
            redis_url = run(told(process, "REDIS_URL"))
            run(_collecting(process, base_url))
            yield RunningService(base_url, f"ws://127.0.0.1:{port}", dsn, redis_url)
        finally:
            assert run(process.stop()) == 0


def _before_a_session() -> str:
    return "2025-06-25T07:58:00-05:00"


@pytest.fixture
async def rig(tmp_path: Path, database_dsn: str, valkey_url: str) -> AsyncIterator[Rig]:
    """Nine minutes before the open, forty times as fast as life; the vendor is simulated."""
    specification = f"{SESSION}T07:51:00-05:00,40,{time.time()!r}"
    clock = parse_virtual_clock(specification, is_trading_day)
    simulator = Simulator(SimulatorConfig(market=market_from_options(seed=3)), clock)
    await simulator.start()
    signals = tmp_path / "signals"
    signals.mkdir()
    made = Rig(
        tmp_path,
        {
            "DATABASE_URL": database_dsn,
            "REDIS_URL": valkey_url,
            "TWELVEDATA_API_KEY_G1_1": "a-very-secret-key",
            "TWELVEDATA_REST_URL": simulator.rest_url,
            "TWELVEDATA_WS_URL": simulator.ws_url,
            "VIRTUAL_CLOCK": specification,
            "STATE_DIR": str(tmp_path / "state"),
            "READY_SIGNALS_DIR": str(signals),
            "BACKUP_DIR": str(tmp_path / "backups"),
        },
        simulator,
    )
    try:
        yield made
    finally:
        for process in made.processes:
            if process.running:
                await process.stop()
        await simulator.stop()
        assert "a-very-secret-key" not in "".join(one.text() for one in made.processes)


@pytest.fixture
async def connection(database_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    made = await asyncpg.connect(database_dsn)
    try:
        yield made
    finally:
        await made.close()
