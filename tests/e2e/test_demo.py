"""``demo`` as its user meets it: one command, a whole session, nothing left behind."""

import asyncio
import json
import signal
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg
import httpx
import psutil
import pytest
from websockets.asyncio.client import connect

from tests.waiting import PATIENCE, eventually

from .conftest import start_demo, told

PRICES_WITHIN_S = 60.0
SESSION_OVER_WITHIN_S = 90.0
OPENS = datetime.fromisoformat("2025-06-25T08:00:00-05:00")
OPENED = timedelta(seconds=10)
"""Who is ready before the open is ``active`` some virtual seconds after it."""


def leftovers(folder: Path) -> list[str]:
    """Processes that have to do with ``folder``, by their command line or working directory."""
    found = []
    for process in psutil.process_iter():
        try:
            text = " ".join([*process.cmdline(), process.cwd()])
            if str(folder) in text and process.status() != psutil.STATUS_ZOMBIE:
                found.append(text)
        except psutil.Error:
            continue
    return found


def missing_live(live: Sequence[datetime], history: Sequence[Mapping[str, str]]) -> list[datetime]:
    """The slots of the session that were collected whole and have no live bar.

    Six virtual minutes are a second of the machine: a slow one begins to collect after the open.
    """
    began = next(entry["since"] for entry in history if entry["state"] == "active")
    slots = [OPENS + n * timedelta(minutes=5) for n in range(59)]
    assert set(live) <= set(slots)
    whole = [slot for slot in slots if slot >= datetime.fromisoformat(began) - OPENED]
    assert len(whole) > 30, f"it took until {began} to begin"
    return sorted(set(whole) - set(live))


async def healthy(port: int, within_s: float) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:

        async def is_healthy() -> bool | None:
            try:
                return (await client.get("/health")).json()["status"] == "healthy" or None
            except httpx.TransportError:
                return None

        await eventually(is_healthy, within_s, "healthy")


@pytest.mark.timeout(900)
async def test_a_whole_session_before_your_eyes(tmp_path: Path) -> None:
    process, port = await start_demo(tmp_path, "--speed", "400", "--at", "2025-06-25T07:20:00")
    try:
        await healthy(port, within_s=20)
        async with connect(f"ws://127.0.0.1:{port}/ws") as socket:
            async with asyncio.timeout(PATIENCE * PRICES_WITHIN_S):
                welcome = json.loads(await socket.recv())
                assert welcome["type"] == "welcome"
                kinds = set()
                while "market_data" not in kinds:
                    message = json.loads(await socket.recv())
                    kinds.add(message["type"])
            assert message["data"]["source"] == "simulator_websocket"
            async with asyncio.timeout(PATIENCE * SESSION_OVER_WITHIN_S):
                while not (
                    message["type"] == "status" and message["server_status"] == "market_closed"
                ):
                    message = json.loads(await socket.recv())
                    kinds.add(message["type"])
        assert kinds >= {"market_data", "bar", "status"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            status = (await client.get("/status")).json()
        states = [entry["state"] for entry in status["history"]]
        order = [s for i, s in enumerate(states) if i == 0 or s != states[i - 1]]
        expected = [
            "initializing",
            "waiting_l0",
            "checking_data",
            "ready",
            "active",
            "market_closed",
        ]
        assert order[:6] == expected
        dsn = await told(process, "DATABASE_URL")
        connection = await asyncpg.connect(dsn)
        try:
            rows = await connection.fetch(
                "SELECT datetime FROM market_data WHERE source = 'simulator_websocket'"
            )
            stored_states = await connection.fetch("SELECT DISTINCT status FROM system_health")
        finally:
            await connection.close()
        live = sorted(row["datetime"] for row in rows)
        assert len(set(live)) == len(live)
        assert missing_live(live, status["history"]) == []
        assert {row["status"] for row in stored_states} >= set(expected[1:])
        assert "L0 ready signal detected" in process.text()
        assert " by the vendor\n" in process.text()
        assert "from 0 ticks" not in process.text()
    finally:
        code = await process.stop(signal.SIGINT)
    assert code == 0
    assert "demo-key" not in process.text()
    assert leftovers(tmp_path) == []


@pytest.mark.timeout(600)
async def test_killed_twice_then_started_cleanly_the_data_is_still_there(tmp_path: Path) -> None:
    """As a plain user: see test_embedded_processes.py, which owns what a kill leaves behind."""
    seen = []
    for attempt in range(3):
        process, port = await start_demo(tmp_path, "--at", "2025-06-25T07:50:00")
        try:
            await healthy(port, within_s=30)
            dsn = await told(process, "DATABASE_URL")
            connection = await asyncpg.connect(dsn)
            seen.append(await connection.fetchval("SELECT count(*) FROM system_health"))
            await connection.close()
        finally:
            code = await process.stop(signal.SIGKILL if attempt < 2 else signal.SIGINT)
        assert code == (-signal.SIGKILL if attempt < 2 else 0)
        process.log.rename(tmp_path / f"demo-{attempt}.log")
    assert 0 < seen[0] < seen[1] < seen[2]
    assert leftovers(tmp_path) == []
