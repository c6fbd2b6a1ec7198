"""The whole service against a vendor with the right time, while the clock of this machine is set and set."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from enhanced_websocket_service.clock import VirtualClock
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.calendar import BOGOTA
from enhanced_websocket_service.service import build, connections
from enhanced_websocket_service.service.running import Service
from enhanced_websocket_service.service.vendor_clock import PART
from enhanced_websocket_service.settings import load_settings
from enhanced_websocket_service.twelvedata.keys import ApiKey
from enhanced_websocket_service.twelvedata.simulator import (
    Simulator,
    SimulatorConfig,
    market_from_options,
)

pytestmark = pytest.mark.long

SPEED = 60.0
DAY = 86_400.0
BEGIN = datetime(2025, 6, 3, 8, 58, tzinfo=BOGOTA).timestamp()
KEYS = 16


@dataclass
class Machine:
    """``right`` is the vendor's; ``ours`` is wrong by ``error`` seconds of the clock."""

    error: float = 0.0
    anchor: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        calendar = load_settings({}).settings.calendar()
        self.right, self.ours = (
            VirtualClock(
                BEGIN,
                SPEED,
                anchor=self.anchor,
                is_trading_day=calendar.is_trading_day,
                real_time=real_time,
            )
            for real_time in (time.time, lambda: time.time() + self.error / SPEED)
        )


@dataclass
class Running:
    machine: Machine
    service: Service
    simulator: Simulator
    failures: Failures
    dsn: str

    async def until(self, what: str, met: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(60.0):
                while not met():
                    await self.machine.right.sleep(1.0)
        except TimeoutError:
            pytest.fail(f"{what}: not within a minute")

    @property
    def prices(self) -> int:
        return int(self.simulator._control.calls["/price"])


@asynccontextmanager
async def running(dsn: str, folder: Path, mode: str) -> AsyncIterator[Running]:
    machine = Machine()
    settings = load_settings({"FEED_MODE": mode, "PORT": "0"}).settings
    calendar = settings.calendar()
    market = market_from_options(None, None, scale=1.0, seed=1, symbol="USDCOP", calendar=calendar)
    simulator = Simulator(SimulatorConfig(market=market), machine.right)
    await simulator.start()
    settings = settings.model_copy(
        update={
            "keys": tuple(ApiKey(f"G1_{i}", f"key-{i}", 1) for i in range(KEYS)),
            "database_url": dsn,
            "twelvedata_rest_url": simulator.rest_url,
            "twelvedata_ws_url": simulator.ws_url,
            "virtual_clock": machine.right.specification(),
            "state_dir": folder,
            "ready_signals_dir": folder / "ready",
            "backup_dir": folder / "backups",
        }
    )
    today = calendar.local_date(machine.right.now())
    async with connections.open_l0(settings) as l0:
        await l0.backfill(today - timedelta(days=14), today)
    failures = Failures(machine.ours)
    service = await build.build_service(settings, machine.ours, dsn, None, failures)
    try:
        await service.start()
        made = Running(machine, service, simulator, failures, dsn)
        await made.until("active", lambda: service.lifecycle.current.state.value == "active")
        await made.until(
            "its offset", lambda: service._clock._skew.offset(machine.ours.now()) is not None
        )
        yield made
    finally:
        await service.stop()
        await simulator.stop()


@pytest.mark.parametrize("mode", ["rest", "auto"])
@pytest.mark.timeout(300)
async def test_a_clock_that_is_set_again_and_again_costs_neither_polls_nor_credits_nor_truth(
    mode: str, database_dsn: str, tmp_path: Path
) -> None:
    chance = random.Random(mode)  # the same jumps each time
    async with running(database_dsn, tmp_path, mode) as it:
        machine, right = it.machine, it.machine.right
        touched: set[int] = set()
        for _ in range(100):  # there and back: 200 jumps
            began = right.now()
            size = chance.choice([2.0, 30.0, 90.0, 3600.0, 7200.0, DAY]) * chance.uniform(0.8, 1.0)
            error = size * chance.choice([-1, 1])
            steps = 10 if chance.random() < 0.3 else 1  # it drifts, or is set
            for step in range(1, steps + 1):
                machine.error = error * step / steps
                await right.sleep(chance.uniform(1.0, 12.0) / steps)
            machine.error = 0.0
            touched |= {int(at - at % 300) for at in (began, right.now())}
            if mode == "rest":
                again, polled = right.now(), it.prices
                await it.until("two polls", lambda polled=polled: it.prices > polled + 1)  # type: ignore[misc] - of this turn
                assert right.now() - again <= 30.0 + right.span(0.0, at_least_real=1.0)
            await right.sleep(chance.uniform(0.0, 15.0))
        quiet = right.now() + 30.0
        await it.until("no problem of the clock", lambda: it.failures.of(PART) is None)
        await right.sleep_until(quiet - quiet % 300 + 690.0)
        _ledgers_are_right(it)
        live = await _live_bars(it.dsn)
        vendor = {
            bar.open_time: (bar.open, bar.high, bar.low, bar.close)
            for bar in await it.service._rest.time_series(
                "USDCOP", start=min(live), end=max(live), purpose="repair"
            )
        }
    whole = {slot for slot, (partial, _) in live.items() if not partial}
    assert touched & live.keys(), "or nothing is proved"
    assert not touched & whole
    if mode == "auto":
        assert whole, "the clock has been right for a bar"
        assert {slot: live[slot][1] for slot in whole} == {slot: vendor[slot] for slot in whole}


def _ledgers_are_right(it: Running) -> None:
    """What the vendor counted was counted here, too, and the vendor never had to refuse."""
    accounts = it.service._rest.keys.accounts(it.machine.ours.now())
    vendor = it.simulator._rest.ledger.shown(it.machine.right.now()).values()
    ours = sorted(one.day.used - one.under_way for one in accounts if one.day.used)
    assert [one["refused"] for one in vendor] == [0] * len(vendor)
    excess = sum(ours) - sum(one["day_used"] for one in vendor)
    # A clock that is a second off takes what we spent ourselves for somebody else's, now and then.
    assert 0 <= excess <= 0.03 * sum(ours)


async def _live_bars(dsn: str) -> dict[int, tuple[bool, tuple[float, ...]]]:
    """By slot, whether the last live revision of it is partial, and its prices."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT datetime, certificate, open, high, low, close FROM bar_revisions"
            " WHERE certificate IS NOT NULL ORDER BY revision"
        )
    finally:
        await connection.close()
    return {
        int(row["datetime"].timestamp()): (
            bool(json.loads(row["certificate"])["partial"]),
            tuple(float(row[name]) for name in ("open", "high", "low", "close")),
        )
        for row in rows
    }
