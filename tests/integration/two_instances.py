"""Whole services on one database: each with a STATE_DIR and keys of its own, on one simulated vendor."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import httpx

from enhanced_websocket_service.clock import VirtualClock
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.service import connections
from enhanced_websocket_service.service.build import build_service
from enhanced_websocket_service.service.running import Service
from enhanced_websocket_service.settings import Settings, load_settings
from enhanced_websocket_service.twelvedata.keys import ApiKey
from enhanced_websocket_service.twelvedata.simulator import (
    Simulator,
    SimulatorConfig,
    market_from_options,
)
from tests.postgres_proxy import Proxy
from tests.waiting import eventually

BOGOTA = ZoneInfo("America/Bogota")
MORNING = datetime(2025, 6, 3, 8, 58, tzinfo=BOGOTA).timestamp()
SPEED = 10.0


@dataclass
class Instance:
    """One service; ``proxy`` is its way to PostgreSQL."""

    name: str
    settings: Settings
    proxy: Proxy
    clock: VirtualClock
    redis_url: str | None = None
    service: Service | None = None

    async def start(self) -> None:
        self.service = await build_service(
            self.settings, self.clock, self.proxy.dsn, self.redis_url, Failures(self.clock)
        )
        await self.service.start()

    async def stop(self) -> None:
        """An orderly end."""
        service, self.service = self.service, None
        if service is not None:
            await service.stop()

    async def die(self) -> None:
        """As if killed: nothing is drained, and the fence is not released."""
        service, self.service = self.service, None
        assert service is not None
        await service._supervisor.stop_all(1.0)
        service._database.abort()
        await service._fence.close()
        await service.api.stop()
        await service._rest.aclose()
        service._journal.close()

    @property
    def state(self) -> str:
        assert self.service is not None
        return self.service.lifecycle.current.state.value

    @property
    def reason(self) -> str:
        assert self.service is not None
        return self.service.lifecycle.current.reason

    @property
    def states(self) -> list[str]:
        assert self.service is not None
        return [change.state.value for change in self.service.lifecycle._states.history]

    @property
    def epoch(self) -> int:
        assert self.service is not None
        return self.service._pipeline.epoch

    async def get(self, path: str) -> Any:
        assert self.service is not None
        async with httpx.AsyncClient(base_url=self.service.api.url) as client:
            return (await client.get(path)).json()

    async def until(self, state: str, within_s: float = 15.0, reason: str = "") -> None:
        async def look() -> bool | None:
            return (self.state == state and reason in self.reason) or None

        await eventually(
            look, within_s, lambda: f"{self.name} {state} {reason}: {self.state} {self.reason}"
        )

    def raise_flag(self) -> None:
        folder = self.settings.ready_signals_dir
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "l0_ready.flag").write_text('{"ready": true}')


@dataclass
class Pair:
    """Two instances, A with its flag, and what stands in the database."""

    dsn: str
    clock: VirtualClock
    vendor: Simulator
    a: Instance
    b: Instance
    keys: dict[str, str] = field(default_factory=dict)

    async def rows(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(self.dsn)
        try:
            return [tuple(row) for row in await connection.fetch(statement, *arguments)]
        finally:
            await connection.close()

    async def stored(self) -> dict[int, list[int]]:
        """By epoch, the offsets of the stored ticks, ascending."""
        found: dict[int, list[int]] = {}
        for epoch, offset in await self.rows(
            "SELECT epoch, tick_offset FROM realtime_market_data ORDER BY epoch, tick_offset"
        ):
            found.setdefault(epoch, []).append(offset)
        return found

    def credits_of(self, name: str) -> int:
        """How many REST credits an instance has spent."""
        instance = self.a if name == "a" else self.b
        assert instance.service is not None
        now = self.clock.now()
        return int(instance.service._rest.keys.snapshot(now)["total_calls"])


@asynccontextmanager
async def pair(
    dsn: str,
    folder: Path,
    *,
    redis_url: str | None = None,
    start: float = MORNING,
    speed: float = SPEED,
) -> AsyncIterator[Pair]:
    """Two instances that have not been started, with the history they need in the database."""
    settings = load_settings({"PORT": "0"}).settings
    assert settings is not None
    calendar = settings.calendar()
    clock = VirtualClock(start, speed, is_trading_day=calendar.is_trading_day)
    market = market_from_options(None, None, scale=1.0, seed=1, symbol="USDCOP", calendar=calendar)
    vendor = Simulator(SimulatorConfig(market=market), clock)
    await vendor.start()
    made = []
    for name in ("a", "b"):
        proxy = Proxy(dsn)
        await proxy.up()
        own = settings.model_copy(
            update={
                "keys": (ApiKey("G1_1", f"key-of-{name}"),),
                "database_url": proxy.dsn,
                "redis_url": redis_url,
                "twelvedata_rest_url": vendor.rest_url,
                "twelvedata_ws_url": vendor.ws_url,
                "virtual_clock": clock.specification(),
                "state_dir": folder / name,
                "ready_signals_dir": folder / name / "ready",
                "backup_dir": folder / name / "backups",
            }
        )
        made.append(Instance(name, own, proxy, clock, redis_url))
    a, b = made
    try:
        async with connections.open_l0(a.settings) as l0:
            today = calendar.local_date(start)
            await l0.backfill(today - timedelta(days=14), today)
        yield Pair(dsn, clock, vendor, a, b)
    finally:
        for one in made:
            await one.stop()
        await asyncio.gather(*(one.proxy.down() for one in made))
        await vendor.stop()
