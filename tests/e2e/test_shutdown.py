"""A stop ends in time whatever hangs, a second signal ends it at once, and supervisors are told."""

import signal
import socket
import time
from pathlib import Path

import pytest

from enhanced_websocket_service.chaos.parts import Part
from tests.waiting import eventually

from .rig import WITHIN_S, Rig

DEADLINE_S = 6.0
SLACK_S = 3.0
"""For the end of the interpreter on a busy machine."""


@pytest.mark.timeout(150)
async def test_a_stop_keeps_its_deadline_while_both_servers_hang(rig: Rig, tmp_path: Path) -> None:
    async with (
        Part("postgres", tmp_path / "pg") as postgres,
        Part("valkey", tmp_path / "vk") as valkey,
    ):
        (rig.signals / "l0_ready.flag").write_text('{"ready": true}')
        process = await rig.run(
            DATABASE_URL=postgres.url,
            REDIS_URL=valkey.url,
            SHUTDOWN_TIMEOUT_S=str(DEADLINE_S),
            LOG_FORMAT="json",
        )
        await rig.price()
        postgres.stall()
        valkey.stall()
        # Not before the service is in the middle of waiting for them.
        await rig.state("active")
        began = time.monotonic()
        assert await process.stop() == 0, process.text()[-4000:]
        took = time.monotonic() - began
        postgres.go_on()
        valkey.go_on()
    print(process.text()[-5000:])
    assert took < DEADLINE_S + SLACK_S, process.text()[-4000:]
    assert "Not everything journaled is in PostgreSQL yet" in process.text()
