"""The stage of a storm: servers, simulator, history, the service and its clients, each a process."""

import math
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx

from enhanced_websocket_service.clock import VirtualClock, parse_virtual_clock
from enhanced_websocket_service.market.calendar import BOGOTA, TradingCalendar, iso_local
from enhanced_websocket_service.market.source import Provider

from .parts import Part
from .processes import ChaosError, Program
from .schedule import SLOW_CLIENT

PACKAGE: Final = "enhanced_websocket_service"
SYMBOL: Final = "USDCOP"
PROVIDER: Final = Provider("simulator")
DAY: Final = date(2025, 6, 25)
"""A plain Wednesday; the storm lives in virtual time."""
CLOSES: Final = 17 * 60
LONGEST_SESSION: Final = 15 * 60
"""Minutes; with it the session lies inside one UTC day, as the random market wants it."""
HISTORY_DAYS: Final = 6
MOST_TICKS_PER_BAR: Final = 10_000
SLOT_S: Final = 300
CLIENTS: Final = (
    ("client-every", "every", 0),
    # A small window: when it stalls, the service notices within seconds.
    (SLOW_CLIENT, "every", 32 * 1024),
    ("client-latest", "latest", 0),
    ("client-bars", "bars", 0),
)


@dataclass(frozen=True)
class Setting:
    """What is staged. Seconds are real; ``seconds`` is the length of the storm itself.

    :ivar speed: virtual seconds a real one; lowered when the session would not fit into a day.
    :ivar calm_s: after the storm and before the close, in which the service must recover.
    :ivar prepare_s: for simulator, backfill and service to start; then the session opens.
    """

    seconds: float
    ticks_per_second: float = 2000.0
    seed: int = 0
    speed: float = 120.0
    calm_s: float = 6.0
    prepare_s: float = 9.0

    @property
    def real_session_s(self) -> float:
        return self.seconds + self.calm_s + 8.0  # the storm waits for the first tick

    @property
    def effective_speed(self) -> float:
        return min(self.speed, LONGEST_SESSION * 60 / self.real_session_s)

    @property
    def session_minutes(self) -> int:
        wanted = self.real_session_s * self.effective_speed / 60
        return min(LONGEST_SESSION, math.ceil(wanted / 5) * 5)

    @property
    def ticks_per_bar(self) -> int:
        wanted = round(self.ticks_per_second * SLOT_S / self.effective_speed)
        return max(2, min(MOST_TICKS_PER_BAR, wanted))


@dataclass
class Clients:
    """The client processes and their diaries."""

    programs: dict[str, Program]
    modes: dict[str, str]
    diaries: dict[str, Path]


@dataclass
class World:
    """Everything that runs; see ``staged``."""

    setting: Setting
    folder: Path
    clock: VirtualClock
    calendar: TradingCalendar
    postgres: Part
    valkey: Part
    simulator: Program
    service: Program
    second: Program
    rest_url: str
    base_url: str
    journal: Path
    environ: dict[str, str]
    http: httpx.AsyncClient
    clients: Clients = field(default_factory=lambda: Clients({}, {}, {}))

    @property
    def opens(self) -> int:
        session = self.calendar.session(DAY)
        assert session is not None
        return session.opens

    @property
    def closes(self) -> int:
        session = self.calendar.session(DAY)
        assert session is not None
        return session.closes

    def real_time(self, instant: float) -> float:
        """When the virtual ``instant`` is; unix seconds."""
        return self.clock.anchor + (instant - self.clock.start) / self.clock.speed

    async def status(self) -> dict[str, Any] | None:
        """``/status``; ``None`` while the service does not answer."""
        try:
            answer = await self.http.get(f"{self.base_url}/status", timeout=2.0)
            return dict(answer.json()) if answer.status_code == 200 else None
        except (httpx.TransportError, ValueError):
            return None

    async def set_faults(self, faults: dict[str, Any] | None) -> None:
        """Set faults of the vendor; ``None`` takes all back."""
        url = f"{self.rest_url}/_sim/faults"
        answer = await (
            self.http.delete(url) if faults is None else self.http.post(url, json=faults)
        )
        if answer.status_code != 200:
            raise ChaosError(f"The simulator refused the faults {faults}: {answer.text}")

    async def start_clients(self, clients: Sequence[tuple[str, str, int]] = CLIENTS) -> None:
        url = f"{self.base_url.replace('http', 'ws', 1)}/ws"
        for name, mode, buffer_bytes in clients:
            diary = self.folder / f"{name}.diary"
            arguments = (f"{PACKAGE}.chaos.client", url, str(diary), mode, str(buffer_bytes))
            environ = {"VIRTUAL_CLOCK": self.environ["VIRTUAL_CLOCK"]}
            program = Program(name, arguments, environ, self.folder)
            self.clients.programs[name] = program
            self.clients.modes[name] = mode
            self.clients.diaries[name] = diary
            await program.start()

    async def stop_clients(self) -> None:
        for program in self.clients.programs.values():
            if program.running:
                await program.stop()


@asynccontextmanager
async def staged(setting: Setting, folder: Path) -> AsyncIterator[World]:
    """Servers, simulator, history of some days and the started service; all ended afterwards.

    :raises ChaosError: something does not start.
    """
    minutes = setting.session_minutes
    hours = {
        "MARKET_OPEN": _wall(CLOSES - minutes),
        "MARKET_CLOSE": _wall(CLOSES),
        "L0_WINDOW_DAYS": "2",
    }
    calendar = TradingCalendar(
        datetime.strptime(hours["MARKET_OPEN"], "%H:%M").time(),  # noqa: DTZ007 - a wall time
        datetime.strptime(hours["MARKET_CLOSE"], "%H:%M").time(),  # noqa: DTZ007
    )
    session = calendar.session(DAY)
    assert session is not None
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=60.0, trust_env=False))
        postgres = await stack.enter_async_context(Part("postgres", folder / "postgres"))
        valkey = await stack.enter_async_context(Part("valkey", folder / "valkey"))
        # Real time: the anchor lies ahead, so that the session opens once all are up.
        anchor = time.time() + setting.prepare_s
        clock = f"{iso_local(session.opens)},{setting.effective_speed:g},{anchor!r}"
        port = _free_port()
        environ = {
            "DATABASE_URL": postgres.url,
            "REDIS_URL": valkey.url,
            "VIRTUAL_CLOCK": clock,
            "STATE_DIR": str(folder / "state"),
            "READY_SIGNALS_DIR": str(folder / "signals"),
            "BACKUP_DIR": str(folder / "backups"),
            "PORT": str(port),
            "LOG_FORMAT": "json",
            **{f"TWELVEDATA_API_KEY_G1_{n}": f"chaos-key-{n}" for n in (1, 2, 3)},
            **hours,
        }
        simulator = _program(
            *("simulator", folder, environ, "simulate", "--port", "0"),
            *("--seed", str(setting.seed), "--ticks-per-bar", str(setting.ticks_per_bar)),
        )
        await simulator.start()
        stack.push_async_callback(simulator.kill)
        rest_url = (await simulator.said("TWELVEDATA_REST_URL=")).partition("=")[2].strip()
        ws_url = (await simulator.said("TWELVEDATA_WS_URL=")).partition("=")[2].strip()
        environ |= {"TWELVEDATA_REST_URL": rest_url, "TWELVEDATA_WS_URL": ws_url}
        first, last = DAY - timedelta(days=HISTORY_DAYS), DAY - timedelta(days=1)
        backfill = _program(
            *("backfill", folder, environ, "l0", "backfill"),
            *("--start", first.isoformat(), "--end", last.isoformat()),
        )
        await backfill.start()
        stack.push_async_callback(backfill.kill)
        if await backfill.finished(120.0):
            raise ChaosError(f"The history could not be prepared:\n{backfill.tail()}")
        service = _program("service", folder, environ, "run")
        own = {name: str(folder / f"{name.lower()}-2") for name in ("STATE_DIR", "BACKUP_DIR")}
        second = _program("second", folder, {**environ, **own, "PORT": str(_free_port())}, "run")
        world = World(
            setting=setting,
            folder=folder,
            clock=parse_virtual_clock(clock, calendar.is_trading_day),
            calendar=calendar,
            postgres=postgres,
            valkey=valkey,
            simulator=simulator,
            service=service,
            second=second,
            rest_url=rest_url,
            base_url=f"http://127.0.0.1:{port}",
            journal=folder / "state" / "journal",
            environ=environ,
            http=http,
        )

        async def end_all() -> None:
            for program in (service, second, *world.clients.programs.values()):
                await program.kill()

        stack.push_async_callback(end_all)
        await service.start()
        yield world


def _program(name: str, folder: Path, environ: dict[str, str], *arguments: str) -> Program:
    return Program(name, (PACKAGE, *arguments), environ, folder)


def _wall(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def utc_text(instant: float) -> str:
    """As the vendor wants its dates with ``timezone=UTC``."""
    return datetime.fromtimestamp(instant, UTC).strftime("%Y-%m-%d %H:%M:%S")


def local_text(instant: float) -> str:
    return datetime.fromtimestamp(instant, BOGOTA).strftime("%H:%M:%S")
