"""Three markets and a symbol that the vendor does not have, in one service, over the close of one of them."""

import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

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

from .rig import SESSION, WITHIN_S, Rig

SYMBOLS = "USDCOP,EURUSD@fx,BTCUSD@24x7,GBPJPY@fx"
SPEED = 30


@pytest.fixture
async def rig(tmp_path: Path, database_dsn: str, valkey_url: str) -> AsyncIterator[Rig]:
    """Ten minutes before the close of the Colombian session, on a Wednesday."""
    specification = f"{SESSION}T12:45:00-05:00,{SPEED},{time.time()!r}"
    clock = parse_virtual_clock(specification, is_trading_day)
    simulator = Simulator(SimulatorConfig(market=market_from_options(seed=3)), clock)
    await simulator.start()
    (tmp_path / "signals").mkdir()
    (tmp_path / "signals" / "l0_ready.flag").write_text('{"ready": true}')
    made = Rig(
        tmp_path,
        {
            "SYMBOLS": SYMBOLS,
            "DATABASE_URL": database_dsn,
            "REDIS_URL": valkey_url,
            "TWELVEDATA_API_KEY_G1_1": "one-secret-key",
            "TWELVEDATA_API_KEY_G1_2": "another-secret-key",
            "TWELVEDATA_REST_URL": simulator.rest_url,
            "TWELVEDATA_WS_URL": simulator.ws_url,
            "VIRTUAL_CLOCK": specification,
            "STATE_DIR": str(tmp_path / "state"),
            "READY_SIGNALS_DIR": str(tmp_path / "signals"),
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


async def until(
    client: httpx.AsyncClient,
    rig: Rig,
    wanted: Callable[[dict[str, Any]], bool],
    within_s: float = WITHIN_S,
) -> dict[str, Any]:
    """``/status`` once it is as wanted."""
    seen: dict[str, Any] = {}

    async def look() -> dict[str, Any] | None:
        nonlocal seen
        try:
            seen = (await client.get("/status")).json()
        except httpx.TransportError:
            return None
        return seen if wanted(seen) else None

    def what() -> str:
        states = {one: found["state"] for one, found in seen.get("symbols", {}).items()}
        return f"{states}\n{rig.processes[-1].text()[-4000:]}"

    return await eventually(look, within_s, what)


def states(status: dict[str, Any]) -> dict[str, str]:
    return {symbol: one["state"]["state"] for symbol, one in status["symbols"].items()}


async def test_each_market_has_its_own_hours_and_one_that_fails_stops_no_other(rig: Rig) -> None:
    process = await rig.run()
    async with rig.client() as client:
        three = {"USDCOP": "active", "EURUSD": "active", "BTCUSD": "active"}
        status = await until(client, rig, lambda one: states(one) == {**three, "GBPJPY": "error"})
        assert status["service_status"] == "active"
        assert "GBPJPY" in status["symbols"]["GBPJPY"]["state"]["reason"]
        health = (await client.get("/health")).json()
        assert health["status"] == "degraded"
        assert any("GBPJPY: error" in problem for problem in health["problems"])

        sessions = {
            symbol: (await client.get("/market/session", params={"symbol": symbol})).json()
            for symbol in status["symbols"]
        }
        day = SESSION.isoformat()
        assert {symbol: one["current_session_end"] for symbol, one in sessions.items()} == {
            "USDCOP": f"{day}T12:55:00-05:00",
            "EURUSD": f"{day}T17:00:00-04:00",
            "BTCUSD": "2025-06-26T00:00:00+00:00",
            "GBPJPY": f"{day}T17:00:00-04:00",
        }
        plain = (await client.get("/market/session")).json()
        assert (plain["symbol"], plain["calendar"]) == ("USDCOP", "default")

        # The Colombian session ends; the others go on, on the same connection.
        closed = {"USDCOP": "market_closed", "EURUSD": "active", "BTCUSD": "active"}
        status = await until(
            client, rig, lambda one: states(one) == {**closed, "GBPJPY": "error"}, 60.0
        )
        assert status["service_status"] == "active"
        assert set(status["realtime_collection"]["verdicts"]) >= {"EURUSD", "BTCUSD"}
        positions = status["positions"]

        def further(one: dict[str, Any]) -> bool:
            offsets = one["positions"]
            return all(
                offsets[symbol]["offset"] > positions[symbol]["offset"]
                for symbol in ("EURUSD", "BTCUSD")
            )

        await until(client, rig, further)

        for symbol, expected in (("USDCOP", 60), ("EURUSD", 288), ("BTCUSD", 288)):
            answer = (await client.get("/market/continuity", params={"symbol": symbol})).json()
            assert (answer["date"], answer["expected"]) == (day, expected)
            # The vendor's history, and what was collected, up to now.
            now = datetime.fromisoformat(answer["timestamp"])
            lacking = [
                slot
                for slot in answer["slots"]
                if slot["status"] == "unknown"
                and (now - datetime.fromisoformat(slot["datetime"])).total_seconds() > 900
            ]
            assert lacking == []
    assert await process.stop() == 0, process.text()[-3000:]
    for name in ("usdcop", "eurusd", "btcusd"):
        assert (rig.folder / "backups" / f"{name}_m5_complete_backup.parquet").exists()


async def test_a_backfill_reports_each_symbol_and_fails_for_one(rig: Rig) -> None:
    command = await rig.command(
        *("l0", "backfill", "--start", "2025-06-20", "--end", "2025-06-24", "--json")
    )
    assert await command.finished(60.0) == 1
    told = command.text()
    assert "GBPJPY" in told
    flag = (rig.signals / "l0_ready.flag").read_text()
    assert '"USDCOP"' in flag
    assert '"failed": {"GBPJPY"' in flag


async def test_an_unknown_calendar_is_named_with_those_there_are(rig: Rig) -> None:
    process = await rig.command("run", SYMBOLS="EURUSD@nyse")
    assert await process.finished(30.0) == 2
    assert "there is no calendar 'nyse'; there are default, fx, 24x7" in process.text()
