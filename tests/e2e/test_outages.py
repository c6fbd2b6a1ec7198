"""The disk under the journal fills up, and parts hang during a stop: told loudly, mended by themselves."""

import asyncio
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.storage.journal_reader import iterate
from tests.waiting import eventually

from .playback import Process
from .rig import WITHIN_S, Rig


def limit_files(process: Process, size: int) -> None:
    """From now on no file of ``process`` may grow beyond ``size`` bytes: as on a full disk."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


async def until(client: ClientConnection, wanted: Callable[[dict[str, Any]], bool]) -> list[dict]:  # type: ignore[type-arg]
    """The messages of ``client`` up to the first that is ``wanted``."""
    seen = []
    async with asyncio.timeout(WITHIN_S):
        while True:
            seen.append(json.loads(await client.recv()))
            if wanted(seen[-1]):
                return seen


def is_status(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda message: message["type"] == "status" and message["server_status"] == name


def is_tick(message: dict[str, Any]) -> bool:
    return message["type"] == "market_data" and not message.get("snapshot")


def journal_bytes(folder: Path) -> int:
    return max(path.stat().st_size for path in (folder / "state" / "journal").glob("*.journal"))


@pytest.mark.timeout(120)
async def test_a_full_disk_is_an_error_that_ends_when_there_is_room_again(rig: Rig) -> None:
    (rig.signals / "l0_ready.flag").write_text('{"ready": true}')
    process = await rig.run()
    await rig.price()
    async with connect(f"ws://127.0.0.1:{rig.port}/ws") as client, rig.client() as http:
        received = await until(client, is_tick)
        limit_files(process, 1)
        received += await until(client, is_status("error"))
        assert "File too large" in received[-1]["reason"]
        # It stays in error for as long as nothing can be journaled, and says so everywhere.
        answers: list[httpx.Response] = []

        async def for_a_while() -> bool | None:
            answers.append(await http.get("/health"))
            asked = answers[-1].json()["service_info"]["uptime_seconds"]
            return asked >= answers[0].json()["service_info"]["uptime_seconds"] + 4 or None

        await eventually(for_a_while, WITHIN_S, "more answers")
        assert {answer.status_code for answer in answers} == {503}
        history = (await http.get("/status")).json()["history"]
        assert [one["state"] for one in history].count("error") == 1
        limit_files(process, resource.RLIM_INFINITY)
        received += await until(client, is_status("active"))
        received += await until(client, is_tick)
        assert (await http.get("/health")).status_code == 200
    assert await process.stop() == 0
    ticks = {(m["epoch"], m["offset"]) for m in received if is_tick(m)}
    journaled = {
        (one.epoch, one.offset)
        for one in iterate(rig.folder / "state" / "journal")
        if isinstance(one, Tick)
    }
    assert ticks <= journaled
    connection = await asyncpg.connect(rig.environ["DATABASE_URL"])
    try:
        rows = await connection.fetch("SELECT epoch, tick_offset FROM realtime_market_data")
    finally:
        await connection.close()
    assert sorted(map(tuple, rows)) == sorted(journaled)
