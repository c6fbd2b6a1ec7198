"""API keys that the vendor refuses, as ``/health`` and ``/status`` of a real process tell it."""

import itertools
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
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

HOUR_S = 3300.0
"""The service counts from its own question or answer, which the vendor sees a moment (times 600) later."""
SECRETS = ("good-key-one", "good-key-two")


@asynccontextmanager
async def vendor(rig: Rig, clock_setting: str, plan: str) -> AsyncIterator[Simulator]:
    """A simulator of this test's own, in its own time; the rig's processes use it.

    :param clock_setting: where the clock begins and how fast it runs.
    """
    specification = f"{clock_setting},{time.time()!r}"
    clock = parse_virtual_clock(specification, is_trading_day)
    simulator = Simulator(SimulatorConfig(market=market_from_options(seed=3), plan=plan), clock)
    await simulator.start()
    rig.environ |= {
        "TWELVEDATA_REST_URL": simulator.rest_url,
        "TWELVEDATA_WS_URL": simulator.ws_url,
        "VIRTUAL_CLOCK": specification,
        "TWELVEDATA_API_KEY_G1_1": SECRETS[0],
        "TWELVEDATA_API_KEY_G1_2": SECRETS[1],
    }
    (rig.signals / "l0_ready.flag").write_text('{"ready": true}')
    try:
        yield simulator
    finally:
        for process in rig.processes:
            if process.running:
                await process.stop()
        await simulator.stop()


async def requests(simulator: Simulator) -> list[dict[str, Any]]:
    """Every REST call that reached the vendor."""
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{simulator.rest_url}/_sim/requests")
        found: list[dict[str, Any]] = answer.json()["requests"]
        return found


async def until(
    rig: Rig, path: str, wanted: Callable[[dict[str, Any]], bool], what: str
) -> dict[str, Any]:
    """The first answer at ``path`` that is ``wanted``."""
    seen: dict[str, Any] = {}
    async with rig.client() as client:

        async def look() -> dict[str, Any] | None:
            nonlocal seen
            try:
                seen = (await client.get(path)).json()
            except httpx.TransportError:
                return None
            return seen if wanted(seen) else None

        return await eventually(
            look, WITHIN_S, lambda: f"{what}: {seen}\n{rig.processes[-1].text()[-3000:]}"
        )


def closed_and_well(answer: dict[str, Any]) -> bool:
    return bool(answer["status"] == "healthy" and answer["service_status"] == "market_closed")


def both_usable(answer: dict[str, Any]) -> bool:
    return bool(answer["api_key_usage"]["usable_keys"] == 2)


def healthy(answer: dict[str, Any]) -> bool:
    return bool(answer["status"] == "healthy" and answer["service_status"] == "active")


def lacks(text: str) -> Callable[[dict[str, Any]], bool]:
    return lambda answer: any(one.startswith(text) for one in answer["problems"])


@pytest.mark.timeout(240)
async def test_refused_keys_degrade_health_and_come_back_in_a_quiet_night(rig: Rig) -> None:
    """Nothing of the service needs a key then; that they are refused it learns from a command."""
    async with vendor(rig, f"{SESSION}T13:20:00-05:00,600", "pro") as simulator:
        process = await rig.run()
        answer = await until(rig, "/health", closed_and_well, "healthy")
        simulator.inject({"rest_status": "401"})
        command = await rig.command(
            "l0", "backfill", "--start", "2025-05-05", "--end", "2025-05-06"
        )
        assert await command.finished(WITHIN_S) == 1
        answer = await until(rig, "/health", lacks("No usable API key: 2 refused"), "a problem")
        assert answer["status"] == "degraded"
        problem = answer["problems"][-1]
        assert "(401), since 2025-06-2" in problem
        assert "Check the TWELVEDATA_API_KEY settings" in problem
        usage = (await until(rig, "/status", lambda _: True, "status"))["api_key_usage"]
        assert usage["usable_keys"] == 0
        assert usage["problems"][0].startswith("No usable API key")
        for key in usage["keys"]:
            assert key["state"] == "disabled"
            assert key["refused"].startswith("The vendor answered 401")
            assert key["refused_since"] < key["next_try"]
        # Known after a restart, and since when.
        since = problem.partition("since ")[2].partition(". ")[0]
        assert await process.stop() == 0
        (rig.signals / "l0_ready.flag").write_text('{"ready": true}')
        await rig.run()
        answer = await until(rig, "/health", lacks("No usable API key: 2 refused"), "the problem")
        assert f"since {since}." in answer["problems"][-1]
        simulator.inject({"rest_status": None})
        await until(rig, "/health", closed_and_well, "healthy again by itself")
        await until(rig, "/status", both_usable, "the other key, too")
        tries: dict[str, list[tuple[float, int]]] = defaultdict(list)
        for one in await requests(simulator):
            tries[one["key"]].append((one["at"], one["status"]))
        assert len(tries) == 2
        for calls in tries.values():
            first = next(i for i, (_, status) in enumerate(calls) if status == 401)
            again = next(i for i, (_, status) in enumerate(calls) if i > first and status == 200)
            moments = [at for at, _ in calls[first : again + 1]]
            assert all(b - a >= HOUR_S for a, b in itertools.pairwise(moments))


@pytest.mark.timeout(240)
async def test_keys_that_cannot_stream_are_told_and_no_fault_unless_the_stream_is_wanted(
    rig: Rig, tmp_path: Path
) -> None:
    """The requester's situation: free keys, polled within their plan; one of them is mistyped."""
    rig.environ["TWELVEDATA_API_KEY_G1_3"] = "invalid-as-mistyped"
    async with vendor(rig, f"{SESSION}T08:20:00-05:00,60", "basic"):
        process = await rig.run()

        def told(status: dict[str, Any]) -> bool:
            states = {key["name"]: key for key in status["api_key_usage"]["keys"]}
            return (
                status["realtime_collection"]["not_streamed"] is not None
                and [states[f"G1_{i}"]["streams"] for i in (1, 2)] == [False, False]
                and states["G1_3"]["state"] == "disabled"
                and status["service_status"] == "active"
            )

        status = await until(rig, "/status", told, "every key refused")
        said = status["realtime_collection"]["not_streamed"]
        assert said.startswith(
            "No API key may stream USD/COP: 1 refused by the vendor (401), 2 whose"
        )
        assert "not permitted" in status["api_key_usage"]["keys"][0]["not_streamed"]
        assert status["api_key_usage"]["usable_keys"] == 2
        answer = await until(rig, "/health", healthy, "healthy by REST alone")
        assert answer["problems"] == []
        assert await process.stop() == 0

        await rig.run(FEED_MODE="websocket")
        answer = await until(rig, "/health", lacks("No API key may stream USD/COP"), "a problem")
        assert answer["status"] == "degraded"
        assert any("FEED_MODE=auto" in one for one in answer["problems"])
