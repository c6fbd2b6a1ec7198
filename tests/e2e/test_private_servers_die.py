"""A private PostgreSQL or Valkey that dies is started again, and no tick is lost."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import asyncpg
import httpx
import psutil
import pytest

from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.storage.embedded import EmbeddedServers
from enhanced_websocket_service.storage.journal_reader import iterate
from tests.waiting import eventually

from .conftest import start_demo
from .rig import WITHIN_S
from .test_demo import healthy, leftovers


def pid(folder: Path, server: str) -> int:
    return int(json.loads((folder / "state" / "embedded" / f"{server}.json").read_text())["pid"])


async def ticks_after(port: int, count: int) -> int:
    """Wait until more than ``count`` ticks were accepted; how many."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:

        async def more() -> int | None:
            with suppress(httpx.TransportError):
                status = (await http.get("/status")).json()
                accepted = int(status["realtime_collection"]["ticks_accepted"])
                return accepted if accepted > count else None
            return None

        return await eventually(more, WITHIN_S, f"more than {count} ticks")


@pytest.mark.timeout(600)
async def test_servers_that_die_are_started_again_and_every_tick_is_stored(tmp_path: Path) -> None:
    process, port = await start_demo(tmp_path, "--at", "2025-06-25T07:57:00", "--speed", "40")
    try:
        await healthy(port, WITHIN_S)
        accepted = await ticks_after(port, 0)
        postgres, valkey = pid(tmp_path, "postgres"), pid(tmp_path, "valkey")
        os.kill(valkey, signal.SIGKILL)
        os.kill(postgres, signal.SIGKILL)
        await process.said("The private PostgreSQL ended (signal 9) and is being started again")
        await process.said("The private Valkey ended (signal 9) and is being started again")
        await healthy(port, WITHIN_S)
        assert pid(tmp_path, "postgres") != postgres
        assert pid(tmp_path, "valkey") != valkey
        accepted = await ticks_after(port, accepted)

        # One that cannot be started for a while: said for as long as that lasts.
        postgres = pid(tmp_path, "postgres")
        data = Path(psutil.Process(postgres).cwd())  # the data folder, wherever it had to lie
        (data / "PG_VERSION").rename(data / "elsewhere")
        os.kill(postgres, signal.SIGQUIT)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:

            async def named() -> bool | None:
                problems = " ".join((await http.get("/health")).json()["problems"])
                return ("cannot be started again" in problems and "PG_VERSION" in problems) or None

            await eventually(named, WITHIN_S, "the problem in /health")
        accepted = await ticks_after(port, accepted)
        (data / "elsewhere").rename(data / "PG_VERSION")
        await healthy(port, WITHIN_S)
        await ticks_after(port, accepted)
    finally:
        code = await process.stop(signal.SIGINT)
    assert code == 0
    assert leftovers(tmp_path) == []
    journaled = [
        (one.epoch, one.offset)
        for one in iterate(tmp_path / "state" / "journal")
        if isinstance(one, Tick)
    ]
    async with EmbeddedServers(tmp_path / "state") as servers:
        connection = await asyncpg.connect(await servers.start_postgres())
        try:
            rows = await connection.fetch("SELECT epoch, tick_offset FROM realtime_market_data")
        finally:
            await connection.close()
    assert sorted(map(tuple, rows)) == journaled
    assert len(journaled) > accepted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=lambda one: one.name)
async def test_a_death_and_the_end_at_once_leave_nothing_running(
    tmp_path: Path, number: signal.Signals
) -> None:
    process, _ = await start_demo(tmp_path)
    try:
        await process.said("All prices are invented")
        os.kill(pid(tmp_path, "postgres"), signal.SIGKILL)
        os.kill(pid(tmp_path, "valkey"), signal.SIGKILL)
        if number is signal.SIGHUP:  # in the middle of the new start
            await process.said("is being started again")
    finally:
        code = await process.stop(number)
    assert code == 0, process.text()[-6000:]
    assert "Nothing is left running." in process.text()
    assert leftovers(tmp_path) == []
