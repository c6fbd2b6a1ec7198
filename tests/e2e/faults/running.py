"""A simulator and a service as processes that share a clock, and what can be asked of them."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx

from enhanced_websocket_service.clock import VirtualClock, parse_virtual_clock
from enhanced_websocket_service.market.calendar import is_trading_day
from tests.e2e.playback import Process, free_port

from .consumer import Consumer
from .expectation import Stage

T = TypeVar("T")

TAUGHT_DAY, DAY = date(2024, 5, 9), date(2024, 5, 10)
OPENS, CLOSES = "11:30", "13:10"
"""The clock leaves its session speed at 13:10: what follows the close passes in no time."""
SYMBOL, VENDOR_SYMBOL = "USDCOP", "USD/COP"
LOOK_S = 0.12
PREPARATION_S = 18.0
"""Real seconds before the clock of a stage matters: everything starts."""
STARTED_WITHIN_S = 60.0


@dataclass(frozen=True)
class Place:
    """Where a stage can work."""

    folder: Path
    recording: Path
    database_dsn: str
    redis_url: str
    taught: Path | None = None  # a STATE_DIR that has seen days before


class Running:
    """The handles of a stage in progress."""

    def __init__(
        self, clock: VirtualClock, service: Process, simulator: Process, environ: dict[str, str]
    ) -> None:
        self.clock, self.service, self.simulator = clock, service, simulator
        self.environ = environ
        self.base = f"http://127.0.0.1:{environ['PORT']}"
        self.vendor = environ["TWELVEDATA_REST_URL"]
        self.http = httpx.AsyncClient(timeout=20.0)
        self.consumer = Consumer()

    async def status(self) -> dict[str, Any] | None:
        """``/status``; ``None`` while nobody answers."""
        try:
            answer = await self.http.get(f"{self.base}/status")
        except httpx.TransportError:
            return None
        return dict(answer.json()) if answer.status_code == 200 else None

    async def simulated(self, path: str, **parameters: Any) -> Any:
        answer = await self.http.get(f"{self.vendor}/_sim/{path}", params=parameters)
        answer.raise_for_status()
        return answer.json()

    async def set_faults(self, faults: Mapping[str, Any]) -> None:
        answer = await self.http.post(f"{self.vendor}/_sim/faults", json=dict(faults))
        assert answer.status_code == 200, answer.text

    async def clear_faults(self) -> None:
        (await self.http.delete(f"{self.vendor}/_sim/faults")).raise_for_status()

    async def until(self, look: Callable[[], Awaitable[T | None]], real_s: float, what: str) -> T:
        """Like ``eventually``, but seldom: every look costs the service a millisecond."""
        deadline = time.monotonic() + real_s
        while (found := await look()) is None:
            for process in (self.service, self.simulator):
                if not process.running:
                    raise AssertionError(f"{process.name} died:\n{process.text()[-3000:]}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {real_s:.0f} s: {what}{self.last_words()}")
            await asyncio.sleep(LOOK_S)
        return found

    def last_words(self) -> str:
        """The end of the service's log, for a failure."""
        return f"\n{self.service.text()[-1500:]}"

    async def reach(self, instant: float) -> None:
        await self.clock.sleep_until(instant)


def keys_of(stage: Stage) -> tuple[str, ...]:
    """The API keys of a stage: texts that occur nowhere else."""
    return tuple(f"key{i}-{stage.name}-0123456789abcdef" for i in range(1, stage.keys + 1))


def at(day: date, time_of_day: str) -> float:
    """A local time as unix seconds."""
    return datetime.fromisoformat(f"{day}T{time_of_day}-05:00").timestamp()


def closing(day: date) -> float:
    """The close of the session of ``day``."""
    return at(day, f"{CLOSES}:00")


def judged(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """What ``/status`` says of the symbol's stream; of the feed where there is no stream."""
    feed = status["realtime_collection"]
    one: Mapping[str, Any] = (feed.get("verdicts") or {}).get(SYMBOL) or feed
    return one


def verdict_history(status: Mapping[str, Any]) -> list[tuple[float, str]]:
    """The changes of the symbol's verdict that ``/status`` remembers, oldest first."""
    return [
        (datetime.fromisoformat(str(change["at"])).timestamp(), str(change["verdict"]))
        for change in judged(status).get("history", ())
    ]


@contextlib.asynccontextmanager
async def started(
    stage: Stage,
    place: Place,
    keys: tuple[str, ...],
    *,
    day: date = DAY,
    preparation_s: float = PREPARATION_S,
) -> AsyncIterator[Running]:
    """Simulator and service, the latter collecting; both stopped at the end."""
    anchor = time.time() + preparation_s
    start = f"{day}T{stage.starts}-05:00,{stage.speed:g},{anchor!r},{stage.closed_speed:g}"
    clock = parse_virtual_clock(start, is_trading_day)
    signals, state = place.folder / "signals", place.folder / "state"
    signals.mkdir(exist_ok=True)
    (signals / "l0_ready.flag").write_text('{"ready": true}')
    if place.taught is not None:
        shutil.copytree(place.taught, state)
    environ = {
        "DATABASE_URL": place.database_dsn,
        "REDIS_URL": place.redis_url,
        "VIRTUAL_CLOCK": start,
        "MARKET_OPEN": OPENS,
        "MARKET_CLOSE": CLOSES,
        "STATE_DIR": str(state),
        "READY_SIGNALS_DIR": str(signals),
        "BACKUP_DIR": str(place.folder / "backups"),
        "LOG_FORMAT": "json",
        "COLUMNS": "200",
        **{f"TWELVEDATA_API_KEY_G1_{i}": one for i, one in enumerate(keys, 1)},
        **stage.environ,
    }
    simulator = Process(f"simulator-{stage.name}", place.folder)
    service = Process(f"service-{stage.name}", place.folder)
    options = ["--bars", str(place.recording)]
    if stage.ticks_per_bar is not None:
        options += ["--ticks-per-bar", str(stage.ticks_per_bar)]
    await simulator.start("simulate", "--port", "0", *options, *stage.simulate, environ=environ)
    try:
        vendor = (await simulator.said("TWELVEDATA_REST_URL=", 60)).partition("=")[2].strip()
        stream = (await simulator.said("TWELVEDATA_WS_URL=", 60)).partition("=")[2].strip()
        port = free_port()
        environ |= {"TWELVEDATA_REST_URL": vendor, "TWELVEDATA_WS_URL": stream, "PORT": str(port)}
        running = Running(clock, service, simulator, environ)
        if stage.set_before_start:
            await running.set_faults(stage.faults[0].sets)
        await service.start("run", environ=environ)
        try:
            await running.until(lambda: _active(running), STARTED_WITHIN_S, "the state active")
            yield running
        finally:
            if service.running:
                await service.stop()
            await running.http.aclose()
    finally:
        if simulator.running:
            await simulator.stop()


async def _active(running: Running) -> dict[str, Any] | None:
    status = await running.status()
    return status if status is not None and status["service_status"] == "active" else None
