"""``run`` as a process: what it refuses, what it waits for, and what it says meanwhile."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import redis.asyncio
from websockets.asyncio.client import connect

from enhanced_websocket_service.clock import parse_virtual_clock
from enhanced_websocket_service.market.calendar import is_trading_day
from enhanced_websocket_service.twelvedata.simulator import (
    Simulator,
    SimulatorConfig,
    market_from_options,
)
from tests.waiting import eventually

from .playback import Process, free_port

SESSION = date(2025, 6, 25)
ENDPOINTS = ("/health", "/status", "/market/latest", "/market/session")
WITHIN_S = 30.0


@dataclass
class Rig:
    """A folder, a virtual morning and an environment in which ``run`` could work."""

    folder: Path
    environ: dict[str, str]
    processes: list[Process] = field(default_factory=list)
    port: int = 0

    async def command(self, *arguments: str, **changes: str | None) -> Process:
        environ = {
            name: value for name, value in {**self.environ, **changes}.items() if value is not None
        }
        process = Process(f"{arguments[0]}-{len(self.processes)}", self.folder)
        await process.start(*arguments, environ=environ)
        self.processes.append(process)
        return process

    async def run(self, **changes: str | None) -> Process:
        self.port = free_port()
        return await self.command("run", "--port", str(self.port), **changes)

    async def refused(self, **changes: str | None) -> tuple[int, str]:
        """The exit code and output of a ``run`` that ends by itself."""
        process = await self.run(**changes)
        return await process.finished(WITHIN_S), process.text()

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=10)

    async def price(self) -> dict[str, Any]:
        """Wait for a price; ``/market/latest``."""
        async with self.client() as client:

            async def priced() -> dict[str, Any] | None:
                try:
                    answer = await client.get("/market/latest")
                except httpx.TransportError:
                    return None
                return answer.json() if answer.status_code == 200 else None

            return await eventually(priced, WITHIN_S, "a price")

    async def state(self, wanted: str, within_s: float = WITHIN_S) -> dict[str, httpx.Response]:
        """Wait for a state; the four endpoints as they answer in it."""
        seen = "no answer"
        async with self.client() as client:

            async def in_state() -> dict[str, httpx.Response] | None:
                nonlocal seen
                try:
                    answers = {path: await client.get(path) for path in ENDPOINTS}
                except httpx.TransportError:
                    return None
                seen = str(answers["/status"].json()["state"])
                states = {answer.json()["service_status"] for answer in answers.values()}
                return answers if states == {wanted} else None

            return await eventually(
                in_state,
                within_s,
                lambda: f"{wanted}; it is {seen}\n{self.processes[-1].text()[-3000:]}",
            )


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


@pytest.fixture
async def rig(tmp_path: Path, database_dsn: str, valkey_url: str) -> AsyncIterator[Rig]:
    """Seven minutes before the open, sixty times as fast as life; the vendor is simulated."""
    specification = f"{SESSION}T07:53:00-05:00,60,{time.time()!r}"
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
    )
    try:
        yield made
    finally:
        for process in made.processes:
            if process.running:
                await process.stop()
        await simulator.stop()
        assert "a-very-secret-key" not in "".join(one.text() for one in made.processes)


async def test_without_a_key_it_says_which_variable(rig: Rig) -> None:
    code, text = await rig.refused(TWELVEDATA_API_KEY_G1_1="your_real_api_key_here")
    assert code == 2
    assert "TWELVEDATA_API_KEY_G1_1" in text


async def test_without_a_database_it_names_the_variable_and_the_demo(rig: Rig) -> None:
    code, text = await rig.refused(DATABASE_URL=None)
    assert code == 2
    assert "DATABASE_URL" in text
    assert "demo" in text


async def test_all_faults_of_the_configuration_at_once(rig: Rig) -> None:
    code, text = await rig.refused(MARKET_OPEN="late", SYMBOLS="usd/cop", LOG_LEVEL="loud")
    assert code == 2
    for name in ("MARKET_OPEN", "SYMBOLS", "LOG_LEVEL"):
        assert name in text
    assert "Traceback" not in text


async def test_a_taken_port_is_named(rig: Rig) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        process = await rig.command("run", "--port", str(other.getsockname()[1]))
        assert await process.finished(WITHIN_S) == 2
    assert "PORT" in process.text()
    assert "Traceback" not in process.text()


async def test_an_unusable_state_directory_is_named(rig: Rig) -> None:
    blocked = rig.folder / "file"
    blocked.write_text("not a folder")
    code, text = await rig.refused(STATE_DIR=str(blocked / "below"))
    assert code in (1, 2)
    assert str(blocked) in text
    assert "Traceback" not in text


async def test_a_day_from_a_broken_flag_to_live_prices_and_an_orderly_end(rig: Rig) -> None:
    flag = rig.folder / "signals" / "l0_ready.flag"
    flag.write_text('{"ready": tru')
    process = await rig.run()
    answers = await rig.state("waiting_l0")
    documented(answers, "degraded", 200)
    assert "JSON" in answers["/health"].json()["service_info"]["reason"]

    # No history at all: the service repairs by itself once the flag is good.
    flag.write_text('{"ready": true}')
    documented(await rig.state("ready"), "healthy", 200)
    await process.said("L0 ready signal detected")
    documented(await rig.state("active"), "healthy", 200)

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
            cached = json.loads(await cache.get("usdcop:latest_price"))
        assert cached["symbol"] == "USDCOP"
        assert cached["source"] == "simulator_websocket"

        assert await process.stop() == 0
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
    (rig.folder / "signals" / "l0_ready.flag").write_text('{"ready": true}')
    first = await rig.run()
    await rig.state("active")
    before = await rig.price()
    assert await first.stop() == 0
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
    assert await idle.stop() == 0
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


async def test_a_newer_instance_takes_the_database_over(rig: Rig) -> None:
    (rig.folder / "signals" / "l0_ready.flag").write_text('{"ready": true}')
    await rig.run()
    await rig.state("active")
    older = rig.port
    await rig.run(STATE_DIR=str(rig.folder / "other"))
    await rig.state("active")
    rig.port = older
    answers = await rig.state("error")
    documented(answers, "unhealthy", 503)
    assert "newer instance" in answers["/health"].json()["service_info"]["reason"]


async def test_without_redis_it_works_degraded(rig: Rig) -> None:
    (rig.folder / "signals" / "l0_ready.flag").write_text('{"ready": true}')
    await rig.run(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    answers = await rig.state("active")
    documented(answers, "degraded", 200)
    assert answers["/health"].json()["connectivity"]["redis"]["connected"] is False
    await rig.price()


@pytest.mark.timeout(90)
async def test_an_unreachable_database_is_waited_for_and_then_an_error(rig: Rig) -> None:
    port = free_port()
    url = f"postgresql://me:hunter2@127.0.0.1:{port}/usdcop_trading"
    process = await rig.run(DATABASE_URL=url)
    documented(await rig.state("initializing"), "degraded", 200)
    documented(await rig.state("error"), "unhealthy", 503)
    assert "hunter2" not in process.text()
    assert await process.stop() == 0


async def test_data_that_cannot_be_repaired_is_an_error_that_retries(rig: Rig) -> None:
    (rig.folder / "signals" / "l0_ready.flag").write_text('{"ready": true}')
    process = await rig.run(TWELVEDATA_REST_URL=f"http://127.0.0.1:{free_port()}")
    answers = await rig.state("error")
    documented(answers, "unhealthy", 503)
    assert "l0 backfill" in answers["/health"].json()["service_info"]["reason"]
    documented(await rig.state("checking_data"), "degraded", 200)
    assert await process.stop() == 0


async def test_after_the_session_the_market_is_closed(rig: Rig) -> None:
    evening = f"{SESSION}T20:00:00-05:00,1,{time.time()!r}"
    (rig.folder / "signals" / "l0_ready.flag").touch()  # empty: counts after two seconds
    await rig.run(VIRTUAL_CLOCK=evening, L0_POLICY="degraded")
    answers = await rig.state("market_closed")
    documented(answers, "healthy", 200)
    session = answers["/market/session"].json()
    assert session["status"] == "closed"
    assert session["minutes_until_open"] in (719, 720)
    assert datetime.fromisoformat(session["next_session_start"]) == datetime(
        2025, 6, 26, 13, 0, tzinfo=UTC
    )
