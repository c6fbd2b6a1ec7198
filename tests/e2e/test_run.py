"""``run`` as a process: what it refuses, what it waits for, and what it says meanwhile."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import httpx
import pytest
import redis.asyncio
from websockets.asyncio.client import connect

from enhanced_websocket_service.service.cpu_latency import DEVICE
from tests.waiting import eventually

from .playback import free_port
from .rig import SESSION, WITHIN_S, Rig


def documented(answers: Mapping[str, httpx.Response], health: str, code: int) -> None:
    """What every state owes its clients: the four answers, their verdict, time and reason."""
    assert answers["/health"].status_code == code
    assert answers["/health"].json()["status"] == health
    assert answers["/health"].json()["service_info"]["reason"]
    assert answers["/status"].status_code == answers["/market/session"].status_code == 200
    latest = answers["/market/latest"]
    if latest.status_code == 404:
        assert latest.json()["error"] == "no_price_yet"
    else:
        assert latest.json()["price"] > 0
    for answer in answers.values():
        assert datetime.fromisoformat(answer.json()["timestamp"]).utcoffset() is not None


def open_files(pid: int) -> set[Path]:
    return {path.resolve() for path in Path(f"/proc/{pid}/fd").iterdir()}


async def test_a_day_from_a_broken_flag_to_live_prices_and_an_orderly_end(rig: Rig) -> None:
    flag = rig.signals / "l0_ready.flag"
    flag.write_text('{"ready": tru')
    process = await rig.run(CPU_LATENCY_US="50")
    answers = await rig.state("waiting_l0")
    documented(answers, "degraded", 200)
    assert "JSON" in answers["/health"].json()["service_info"]["reason"]

    # No history at all: the service repairs by itself once the flag is good.
    flag.write_text('{"ready": true}')
    documented(await rig.state("ready"), "healthy", 200)
    await process.said("L0 ready signal detected")
    documented(await rig.state("active"), "healthy", 200)
    if may_limit := os.access(DEVICE, os.W_OK):
        assert DEVICE in open_files(process.pid)
    else:
        await process.said("CPU_LATENCY_US has no effect")

    async with connect(f"ws://127.0.0.1:{rig.port}/ws/USDCOP") as client:
        await client.send("{not json")
        await client.send(json.dumps({"type": "heartbeat"}))
        seen: dict[str, dict[str, object]] = {}
        async with asyncio.timeout(WITHIN_S):
            while not {"market_data", "error", "heartbeat_response"} <= seen.keys():
                message = json.loads(await client.recv())
                seen[message["type"]] = message
        assert seen["heartbeat_response"]["server_status"] == "active"
        assert seen["market_data"]["data"]["source"] == "simulator_websocket"  # type: ignore[index]
        gone = await connect(f"ws://127.0.0.1:{rig.port}/ws")
        gone.transport.abort()  # a client that vanishes without a word

        async with redis.asyncio.Redis.from_url(rig.environ["REDIS_URL"]) as cache:
            # The cache follows at its own pace, behind the clients.
            cached = json.loads(
                await eventually(
                    lambda: cache.get("simulated:usdcop:latest_price"), WITHIN_S, "a cached price"
                )
            )
        assert cached["symbol"] == "USDCOP"
        assert cached["source"] == "simulator_websocket"

        assert await process.stop() == 0, process.text()[-3000:]
        assert may_limit == ("Processors sleep as the machine likes again" in process.text())
        await client.wait_closed()
        assert client.close_code == 1012

    connection = await asyncpg.connect(rig.environ["DATABASE_URL"])
    try:
        stored = await connection.fetchval("SELECT count(*) FROM realtime_market_data")
        last = await connection.fetchval(
            "SELECT status FROM system_health ORDER BY id DESC LIMIT 1"
        )
    finally:
        await connection.close()
    assert stored > 0
    assert last == "shutdown"


async def test_a_restart_knows_the_last_price_and_begins_a_new_epoch(rig: Rig) -> None:
    (rig.signals / "l0_ready.flag").write_text('{"ready": true}')
    first = await rig.run()
    await rig.state("active")
    before = await rig.price()
    assert await first.stop() == 0, first.text()[-3000:]
    # Nothing feeds it yet: a closed vendor port, so every price is from before the restart.
    idle = await rig.run(TWELVEDATA_WS_URL=f"ws://127.0.0.1:{free_port()}/", FEED_MODE="websocket")
    known = await rig.price()
    assert (known["epoch"], known["offset"]) >= (before["epoch"], before["offset"])
    async with connect(f"ws://127.0.0.1:{rig.port}/ws") as client:
        async with asyncio.timeout(WITHIN_S):
            welcome = json.loads(await client.recv())
            snapshot = json.loads(await client.recv())
    assert welcome["epoch"] > known["epoch"]
    assert (snapshot["type"], snapshot["snapshot"]) == ("market_data", True)
    assert (snapshot["epoch"], snapshot["offset"]) == (known["epoch"], known["offset"])
    assert await idle.stop() == 0, idle.text()[-3000:]
    await rig.run()
    await rig.state("active")
    connection = await asyncpg.connect(rig.environ["DATABASE_URL"])

    async def both_epochs_stored() -> bool | None:
        query = "SELECT count(DISTINCT epoch), count(*), count(DISTINCT (epoch, tick_offset)) FROM "
        row = await connection.fetchrow(query + "realtime_market_data")
        return (row[0] == 2 and row[1] == row[2]) or None

    try:
        await eventually(both_epochs_stored, WITHIN_S, "ticks of both epochs")
    finally:
        await connection.close()


async def test_a_second_instance_waits_and_takes_over_from_one_that_was_killed(rig: Rig) -> None:
    (rig.signals / "l0_ready.flag").write_text('{"ready": true}')
    first = await rig.run()
    await rig.state("active")
    active = rig.port
    await rig.run(STATE_DIR=str(rig.folder / "other"))
    answers = await rig.state("ready")
    documented(answers, "degraded", 200)
    standby = rig.port
    rig.port = active
    await rig.state("active")
    assert await first.stop(signal.SIGKILL) == -signal.SIGKILL
    rig.port = standby
    await rig.state("active")


async def test_without_redis_it_works_degraded(rig: Rig) -> None:
    (rig.signals / "l0_ready.flag").write_text('{"ready": true}')
    await rig.run(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    answers = await rig.state("active")
    documented(answers, "degraded", 200)
    assert answers["/health"].json()["connectivity"]["redis"]["connected"] is False
    await rig.price()


@pytest.mark.timeout(300)
async def test_an_unreachable_database_is_waited_for_and_then_an_error(rig: Rig) -> None:
    port = free_port()
    url = f"postgresql://me:hunter2@127.0.0.1:{port}/usdcop_trading"
    process = await rig.run(DATABASE_URL=url)
    documented(await rig.state("initializing"), "degraded", 200)
    documented(await rig.state("error"), "unhealthy", 503)
    assert "hunter2" not in process.text()
    assert await process.stop() == 0, process.text()[-3000:]


async def test_the_cause_stays_until_a_repair_succeeds(
    rig: Rig, connection: asyncpg.Connection
) -> None:
    """The vendor answers 503 and the database is empty: from the first failure on every look tells it."""
    rig.simulator.inject({"rest_status": "503"})
    (rig.signals / "l0_ready.flag").write_text('{"ready": true}')
    process = await rig.run()
    documented(await rig.state("error"), "unhealthy", 503)
    silent: list[str] = []
    failures: set[str] = set()
    async with rig.client() as client:

        async def third_failure() -> bool | None:
            health = (await client.get("/health")).json()
            status = (await client.get("/status")).json()
            shown = [health["service_info"]["reason"], status["state"]["reason"]]
            silent.extend(one for one in shown if "503" not in one)
            silent.extend(str(one) for one in [health["problems"]] if "L0 repair" not in str(one))
            (repair,) = (one for one in status["failures"] if one["part"] == "L0 repair")
            assert "503" in repair["reason"]
            assert "The last repair failed at 2025-06-25T" in health["service_info"]["reason"]
            failures.add(repair["last_at"])
            return len(failures) == 3 or None

        await eventually(third_failure, WITHIN_S, process.text)
        assert silent == []
        assert (
            await connection.fetchval(
                "SELECT count(*) FROM system_health WHERE status = 'error' AND position('503' in "
                "error_message) = 0"
            )
            == 0
        )
        rig.simulator.inject({"rest_status": None})
        await rig.state("active")
        status = (await client.get("/status")).json()
        assert status["failures"] == []
        # Retries that found nothing new changed nothing: a change for each repair that failed.
        states = [one["state"] for one in status["history"]]
        assert states[:2] == ["initializing", "checking_data"]
        assert states.count("error") <= len(failures) + 2
        assert states.count("checking_data") <= 3  # measuring, repairing; measured again
    text = process.text()
    assert text.count("L0 ready signal detected") == 1
    assert "`.;" not in text
    assert await process.stop() == 0, text[-3000:]


async def test_data_that_cannot_be_repaired_says_what_to_do(rig: Rig) -> None:
    (rig.signals / "l0_ready.flag").write_text('{"ready": true}')
    process = await rig.run(TWELVEDATA_REST_URL=f"http://127.0.0.1:{free_port()}")
    answers = await rig.state("error")
    documented(answers, "unhealthy", 503)
    reason = answers["/health"].json()["service_info"]["reason"]
    assert "l0 backfill" in reason
    assert "The last repair failed at 2025-06-25T" in reason
    assert "ConnectError" in reason
    assert await process.stop() == 0, process.text()[-3000:]


async def test_going_live_on_bad_data_is_said_wherever_the_state_is(rig: Rig) -> None:
    (rig.signals / "l0_ready.flag").write_text('{"ready": true}')
    rest = f"http://127.0.0.1:{free_port()}"
    rig.set_clock(f"{SESSION}T07:50:00-05:00")
    await rig.run(TWELVEDATA_REST_URL=rest, L0_POLICY="degraded")
    answers = await rig.state("ready")
    reason = answers["/health"].json()["service_info"]["reason"]
    assert "not usable (L0_POLICY=degraded)" in reason


async def test_after_the_session_the_market_is_closed(rig: Rig) -> None:
    evening = f"{SESSION}T20:00:00-05:00,1,{time.time()!r}"
    (rig.signals / "l0_ready.flag").touch()  # empty: counts after two seconds
    await rig.run(VIRTUAL_CLOCK=evening, L0_POLICY="degraded")
    answers = await rig.state("market_closed")
    documented(answers, "healthy", 200)
    session = answers["/market/session"].json()
    assert session["status"] == "closed"
    assert session["minutes_until_open"] in (719, 720)
    assert datetime.fromisoformat(session["next_session_start"]) == datetime(
        2025, 6, 26, 13, 0, tzinfo=UTC
    )
