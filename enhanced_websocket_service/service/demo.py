"""``demo``: everything on this machine, in one process, in virtual time.

Private PostgreSQL and Valkey, the vendor simulator, an L0 backfill, then the very service that
``run`` runs. Nothing is left running at the end; the data stays in the state directory.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from enhanced_websocket_service.clock import VirtualClock
from enhanced_websocket_service.errors import ConfigurationError, DatabaseUnavailable
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.l0.readiness import ReadyFlag
from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.calendar import BOGOTA, TradingCalendar, iso_local
from enhanced_websocket_service.market.events import Event, StatusChanged
from enhanced_websocket_service.redaction import redact_url
from enhanced_websocket_service.settings import Settings
from enhanced_websocket_service.storage.embedded import EmbeddedServers
from enhanced_websocket_service.twelvedata.keys import ApiKey
from enhanced_websocket_service.twelvedata.simulator import (
    TRIAL_SYMBOLS,
    MarketSource,
    Simulator,
    SimulatorConfig,
    market_from_options,
)

from . import build, connections, worlds
from .log_watch import watch_log

log = structlog.get_logger(__name__)

LEAD = timedelta(minutes=7)
"""How long before the open the default demo starts."""
HISTORY_DAYS = 21
_REGIMES: Final = {"fx": "24x5", "24x7": "24x7"}
"""The simulator's name for the hours of a calendar."""
CLOSED_SPEEDUP = 30.0
"""Closed hours pass this much faster than sessions."""
DATABASE_BACK_WITHIN_S = 60.0
"""Real seconds in which a private PostgreSQL that died should be back."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """The options of the command; ``at`` is COT where it has no offset."""

    at: str | None
    speed: float
    bars: Path | None
    ticks: Path | None
    scale: float
    seed: int
    state_dir: Path


async def run_demo(
    settings: Settings, options: DemoOptions, out: Console, stop: asyncio.Event
) -> None:
    """Run until ``stop`` is set.

    :param settings: read without ``settings.PLACES``: the demo has servers and folders of its own.
    :raises EwsError: what cannot be used, and what to do about it.
    """
    calendars = settings.calendars()
    calendar = calendars[settings.symbols[0]]
    market = market_from_options(
        options.bars,
        options.ticks,
        scale=options.scale,
        seed=options.seed,
        regime=_REGIMES.get(calendar.name, "onshore"),
        symbol=settings.symbols[0],
        random_symbols=(*settings.symbols[1:], *TRIAL_SYMBOLS),
        calendar=settings.calendar(),
    )
    start = _start(options, calendar, market)
    around_the_clock = any(one.round_the_clock for one in calendars.values())
    out.print("Starting PostgreSQL and Valkey ...")
    async with EmbeddedServers(options.state_dir) as servers:
        database_url = await servers.start_postgres()
        redis_url = await servers.start_valkey()
        clock = VirtualClock(
            start.timestamp(),
            options.speed,
            is_trading_day=settings.calendar().is_trading_day,
            # What is closed for one market is the session of another.
            closed_speed=None if around_the_clock else options.speed * CLOSED_SPEEDUP,
        )
        simulator = Simulator(SimulatorConfig(market=market), clock)
        await simulator.start()
        try:
            effective = settings.model_copy(
                update={
                    "keys": (ApiKey("G1_1", "demo-key"),),
                    "database_url": database_url,
                    "twelvedata_rest_url": simulator.rest_url,
                    "twelvedata_ws_url": simulator.ws_url,
                    "virtual_clock": clock.specification(),
                    "state_dir": options.state_dir,
                    "ready_signals_dir": options.state_dir / "ready-signals",
                    "backup_dir": options.state_dir / "backups",
                }
            )
            worlds.check_folders(effective)
            await worlds.claim_private(database_url)
            failures = Failures(clock)
            async with servers.kept_running(failures):
                await _serve(effective, redis_url, clock, failures, out, stop)
        finally:
            await simulator.stop()
    out.print(f"Nothing is left running. The data is kept in {options.state_dir}", soft_wrap=True)


async def _serve(
    settings: Settings,
    redis_url: str,
    clock: VirtualClock,
    failures: Failures,
    out: Console,
    stop: asyncio.Event,
) -> None:
    assert settings.database_url is not None
    settings.ready_signals_dir.mkdir(parents=True, exist_ok=True)
    # The flag of an earlier demo says nothing about this one.
    ReadyFlag(settings.ready_signals_dir, clock).withdraw()
    service = await build.build_service(settings, clock, settings.database_url, redis_url, failures)
    unsubscribe = service.bus.subscribe(_Narrator(clock, out))
    log_watch = asyncio.create_task(watch_log(failures), name="log")
    l0: asyncio.Task[None] | None = None
    try:
        await service.start()
        _introduce(settings, redis_url, service.api.url, clock, out)
        l0 = asyncio.create_task(_fill(settings, clock, out), name="demo-l0")
        stopped = asyncio.create_task(stop.wait(), name="demo-stop")
        await asyncio.wait({l0, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            l0.result()
        await stopped
    finally:
        if l0 is not None:
            l0.cancel()
            await asyncio.wait({l0})
        await service.stop()
        unsubscribe()
        log_watch.cancel()
        await asyncio.wait({log_watch})


async def _fill(settings: Settings, clock: VirtualClock, out: Console) -> None:
    """Play the part of the L0 system; again when the database went away meanwhile and is back."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DATABASE_BACK_WITHIN_S
    while True:
        try:
            return await _backfill(settings, clock, out)
        except DatabaseUnavailable as error:
            if loop.time() > deadline:
                raise
            log.warning("The backfill begins again", reason=str(error))
            await asyncio.sleep(1)


async def _backfill(settings: Settings, clock: VirtualClock, out: Console) -> None:
    """History up to yesterday, then the ready flag."""
    now = clock.now()
    calendars = settings.calendars().values()
    # Of markets that do not rest the day has begun.
    end = max(one.local_date(now) - timedelta(days=not one.round_the_clock) for one in calendars)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("days"),
        console=out,
    ) as bars:
        row = bars.add_task("L0 backfill", total=None)
        async with connections.open_l0(settings) as pipeline:
            await pipeline.backfill(
                end - timedelta(days=HISTORY_DAYS - 1),
                end,
                lambda _symbol, done, total: bars.update(row, completed=done, total=total),
            )


def _introduce(
    settings: Settings, redis_url: str, url: str, clock: VirtualClock, out: Console
) -> None:
    websocket = url.replace("http", "ws", 1)
    lines = {
        "Dashboard": url,
        "API page": f"{url}/docs",
        "Health": f"curl {url}/health",
        "WebSocket": f"{websocket}/ws",
        "DATABASE_URL": redact_url(settings.database_url or ""),
        "REDIS_URL": redact_url(redis_url),
        "Virtual time": f"{iso_local(int(clock.now()))}, {clock.speed:g} times as fast",
    }
    for name, value in lines.items():
        out.print(f"  {name:<13} {value}", markup=False, soft_wrap=True)
    out.print("All prices are invented by the simulator. Ctrl-C stops everything.")


class _Narrator:
    """Prints a line for each change of state and each bar."""

    def __init__(self, clock: VirtualClock, out: Console) -> None:
        self._clock = clock
        self._out = out
        self._state = ("", "")

    def __call__(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, StatusChanged) and self._state != (event.state, event.reason):
                self._state = (event.state, event.reason)
                self._say(f"{event.state.upper()}: {event.reason}")
            elif isinstance(event, BarUpdate):
                bar = event.bar
                origin = "by the vendor"
                if bar.certificate:
                    origin = f"from {sum(bar.certificate.ticks.values())} ticks"
                opened = datetime.fromtimestamp(bar.open_time, BOGOTA).strftime("%H:%M")
                digits = 2 if bar.close >= 100 else 5  # pips of a major pair
                self._say(
                    f"{bar.symbol} {opened} {bar.status}: open {bar.open:.{digits}f} "
                    f"high {bar.high:.{digits}f} low {bar.low:.{digits}f} "
                    f"close {bar.close:.{digits}f} {origin}"
                )

    def _say(self, text: str) -> None:
        stamp = datetime.fromtimestamp(self._clock.now(), BOGOTA).strftime("%a %d %b %H:%M:%S")
        self._out.print(f"{stamp}  {text}", markup=False, soft_wrap=True)


def _start(options: DemoOptions, calendar: TradingCalendar, market: MarketSource) -> datetime:
    """``--at``, or some minutes before the open of the last trading day that has prices."""
    if options.at is not None:
        try:
            at = datetime.fromisoformat(options.at)
        except ValueError:
            raise ConfigurationError(
                f"--at {options.at!r} is not a time like 2025-06-27T07:55."
            ) from None
        return at if at.tzinfo is not None else at.replace(tzinfo=BOGOTA)
    # Real time on purpose: "recent" is meant as the person at the keyboard sees it.
    now = datetime.now(BOGOTA)
    day = now.date() - timedelta(days=1)
    source = market.sources[market.symbols[0]]
    last = source.last_tick(int(now.timestamp()))
    if last is not None:
        day = min(day, calendar.local_date(last.timestamp))
    while (session := calendar.session(day)) is None:
        day -= timedelta(days=1)
    return datetime.fromtimestamp(session.opens, BOGOTA) - LEAD
