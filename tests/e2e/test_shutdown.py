"""A stop ends in time whatever hangs, a second signal ends it at once, and supervisors are told."""

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import asyncpg
import httpx
import pytest

from enhanced_websocket_service.chaos.parts import Part
from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.storage.journal_reader import iterate
from tests.waiting import eventually

from .rig import WITHIN_S, Rig

DEADLINE_S = 6.0
SLACK_S = 12.0
"""For the end of the interpreter on a busy machine."""


async def collecting(rig: Rig) -> None:
    """Wait for a tick of this very life."""
    async with rig.client() as http:

        async def ticking() -> bool | None:
            try:
                status = (await http.get("/status")).json()
            except httpx.TransportError:
                return None
            return status["realtime_collection"]["ticks_accepted"] > 0 or None

        await eventually(ticking, WITHIN_S, "a tick")


@pytest.mark.timeout(180)
async def test_a_stop_keeps_its_deadline_and_a_second_signal_ends_it_while_the_servers_hang(
    rig: Rig, tmp_path: Path
) -> None:
    (rig.signals / "l0_ready.flag").write_text('{"ready": true}')
    async with (
        Part("postgres", tmp_path / "pg") as postgres,
        Part("valkey", tmp_path / "vk") as valkey,
    ):
        servers = {"DATABASE_URL": postgres.url, "REDIS_URL": valkey.url}
        process = await rig.run(**servers, SHUTDOWN_TIMEOUT_S=str(DEADLINE_S))
        await collecting(rig)
        postgres.stall()
        valkey.stall()
        began = time.monotonic()
        assert await process.stop() == 0, process.text()[-4000:]
        assert time.monotonic() - began < DEADLINE_S + SLACK_S, process.text()[-4000:]
        postgres.go_on()
        valkey.go_on()

        process = await rig.run(**servers, SHUTDOWN_TIMEOUT_S="60")
        await collecting(rig)
        postgres.stall()
        os.kill(process.pid, signal.SIGTERM)
        await process.said("Stopping: draining")
        began = time.monotonic()
        assert await process.stop() == 1
        assert time.monotonic() - began < SLACK_S
        postgres.go_on()

        # Nothing of either is lost: a third life stores what the two could not.
        process = await rig.run(**servers)
        await collecting(rig)
        assert await process.stop() == 0
        journaled = [
            (one.epoch, one.offset)
            for one in iterate(rig.folder / "state" / "journal")
            if isinstance(one, Tick)
        ]
        connection = await asyncpg.connect(postgres.url)
        try:
            rows = await connection.fetch("SELECT epoch, tick_offset FROM realtime_market_data")
        finally:
            await connection.close()
    assert len({epoch for epoch, _ in journaled}) == 3
    assert sorted(map(tuple, rows)) == journaled


async def test_systemd_is_told_when_it_is_ready_how_it_is_and_that_it_stops(rig: Rig) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        address = str(rig.folder / "notify")
        listener.bind(address)
        listener.setblocking(False)
        told: list[str] = []

        async def said(text: str) -> None:
            async def heard() -> bool | None:
                with contextlib.suppress(BlockingIOError):
                    told.extend(listener.recv(4096).decode().splitlines())
                return any(line.startswith(text) for line in told) or None

            await eventually(heard, WITHIN_S, lambda: f"{text!r} in {told}")

        process = await rig.run(NOTIFY_SOCKET=address, WATCHDOG_USEC="300000")
        await said("READY=1")
        async with rig.client() as http:
            assert (await http.get("/health/live")).status_code == 200
        await said("STATUS=waiting_l0: ")
        told.clear()
        await said("WATCHDOG=1")
        assert await process.stop() == 0
        await said("STOPPING=1")
        assert told.count("READY=1") == 0
