"""The whole service in this process, in mid-session, on real servers and a simulated vendor."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from enhanced_websocket_service.clock import parse_virtual_clock
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.calendar import is_trading_day
from enhanced_websocket_service.service.build import build_service
from enhanced_websocket_service.service.running import Service
from enhanced_websocket_service.settings import load_settings
from enhanced_websocket_service.twelvedata.simulator import (
    Simulator,
    SimulatorConfig,
    market_from_options,
)
from tests.waiting import eventually

STARTED_WITHIN_S = 60.0
TOLD_WITHIN_S = 10.0
"""Real seconds from the first undone work until ``/health`` is not healthy."""

_AGE = re.compile(r"the oldest for (\d+) s")


@dataclass
class Watched:
    """A service that collects; its answers over HTTP."""

    service: Service
    simulator: Simulator
    client: httpx.AsyncClient

    async def health(self) -> dict[str, Any]:
        answer = await self.client.get("/health")
        assert answer.status_code == 200, answer.text  # only ERROR and SHUTDOWN are unhealthy
        alive = await self.client.get("/health/live")
        assert alive.status_code == 200
        found: dict[str, Any] = answer.json()
        return found

    async def problem(self, *words: str, within_s: float = TOLD_WITHIN_S) -> str:
        """Wait until ``/health`` is degraded by a problem that has all ``words``."""
        seen: dict[str, Any] = {"problems": []}

        async def told() -> str | None:
            nonlocal seen
            with suppress(httpx.TransportError):  # a connection that had been idle for too long
                seen = await self.health()
            for problem in seen["problems"]:
                if all(word in problem for word in words):
                    assert seen["status"] == "degraded"
                    # Those of bars are of the service's clock.
                    if (age := _AGE.search(problem)) and not problem.startswith("bar_"):
                        assert int(age[1]) <= within_s, problem
                    return str(problem)
            return None

        return await eventually(told, within_s, lambda: f"{words}; {seen}")

    async def healthy(self, within_s: float = TOLD_WITHIN_S) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        async def well() -> dict[str, Any] | None:
            nonlocal seen
            try:
                seen = await self.health()
            except httpx.TransportError:  # as above
                return None
            return seen if seen["status"] == "healthy" else None

        return await eventually(well, within_s, lambda: f"healthy; {seen}")

    async def status(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.client.get("/status")).json()
        return found


@asynccontextmanager
async def watched_service(
    folder: Path, dsn: str, redis_url: str, *, start: str = "2025-06-25T08:31:00-05:00", **more: str
) -> AsyncIterator[Watched]:
    """ACTIVE and healthy, at 20 times the speed of life.

    :param more: settings by the names of their variables.
    """
    specification = f"{start},20,{time.time()!r}"
    clock = parse_virtual_clock(specification, is_trading_day)
    simulator = Simulator(SimulatorConfig(market=market_from_options(seed=3)), clock)
    await simulator.start()
    signals = folder / "signals"
    signals.mkdir()
    (signals / "l0_ready.flag").write_text('{"ready": true}')
    environ = {
        "DATABASE_URL": dsn,
        "REDIS_URL": redis_url,
        "TWELVEDATA_API_KEY_G1_1": "a-very-secret-key",
        "TWELVEDATA_REST_URL": simulator.rest_url,
        "TWELVEDATA_WS_URL": simulator.ws_url,
        "VIRTUAL_CLOCK": specification,
        "READY_SIGNALS_DIR": str(signals),
        "BACKUP_DIR": str(folder / "backups"),
        "STATE_DIR": str(folder / "state"),
        "L0_POLICY": "degraded",
        "PORT": "0",
        **more,
    }
    settings = load_settings(environ).settings
    failures = Failures(clock)
    service = await build_service(settings, clock, dsn, redis_url, failures)
    stop = asyncio.Event()
    running = asyncio.create_task(service.run(stop))
    try:
        await asyncio.wait(
            {running, asyncio.create_task(_listening(service))},
            return_when=asyncio.FIRST_COMPLETED,
        )
        base_url = f"http://127.0.0.1:{service.api.port}"
        async with httpx.AsyncClient(base_url=base_url, timeout=30) as client:
            it = Watched(service, simulator, client)

            async def collecting() -> bool | None:
                status = await it.status()
                ticks = status["realtime_collection"]["ticks_accepted"]
                return (status["service_status"] == "active" and ticks > 0) or None

            await eventually(collecting, STARTED_WITHIN_S, "ticks")
            await it.healthy(STARTED_WITHIN_S)
            yield it
    finally:
        stop.set()
        await running
        await simulator.stop()


async def _listening(service: Service) -> None:
    async def port() -> int | None:
        return service.api.port if service.api.port else None

    await eventually(port, STARTED_WITHIN_S, "a port")
