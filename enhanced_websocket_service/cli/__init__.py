"""The command line: parse, call what does the work, print. No command means ``run``.

Exit codes: 0 done (also after SIGTERM, SIGHUP or Ctrl-C), 1 failed, 2 bad usage or configuration.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from enhanced_websocket_service import __version__
from enhanced_websocket_service.errors import ConfigurationError, EwsError
from enhanced_websocket_service.service import build
from enhanced_websocket_service.service.connections import starts_servers
from enhanced_websocket_service.service.demo import DemoOptions, run_demo
from enhanced_websocket_service.service.notify import Notifier
from enhanced_websocket_service.settings import PLACES, FaultySettings
from enhanced_websocket_service.twelvedata.simulator import (
    Limits,
    Simulator,
    SimulatorConfig,
    faults_from_options,
    load_script,
    market_from_options,
)

from .chaos import chaos
from .config import config, judged_with
from .console import has_terminal, load, narration, out, print_failure, until_signalled
from .database import database
from .history import l0
from .journal import journal

app = typer.Typer(
    help="Real-time USD/COP market data: L0 history, live ticks, 5-minute bars, WebSocket and REST.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(l0, name="l0")
app.add_typer(journal, name="journal")
app.add_typer(database, name="db")
app.add_typer(config, name="config")
app.command()(chaos)

UsageError: Any = typer.BadParameter.__base__
"""Of the click that typer brings, which is not always the package of that name."""

HostOption = Annotated[str | None, typer.Option(help="Address to listen on (HOST).")]
PortOption = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Port to listen on, 0 for any (PORT).")
]
BarsOption = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="Recorded 5-minute bars (parquet, csv, csv.gz)."
    ),
]
TicksOption = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="Recorded quotes: time, bid, ask (parquet, csv, csv.gz)."
    ),
]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    as_json = "--json" in sys.argv
    try:
        code = app(standalone_mode=not as_json)
    except UsageError as error:  # told on standard error by typer itself but with --json
        print_failure(error.format_message(), as_json=as_json)
        sys.exit(2)
    except ConfigurationError as error:
        print_failure(*error.faults, as_json=as_json)
        sys.exit(2)
    except EwsError as error:
        print_failure(str(error), as_json=as_json)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output (a pager, head) has gone; that is no failure of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        run()


@app.command()
def run(host: HostOption = None, port: PortOption = None) -> None:
    """The service, configured by the environment and .env."""
    try:
        loaded = load(stream="stdout", log_wait_s=0.0, host=host, port=port)
    except FaultySettings as error:
        raise judged_with(error) from None
    settings = loaded.settings
    notifier = Notifier.from_environ(os.environ)
    until_signalled(
        lambda stop: build.run_service(settings, stop, notifier),
        # Private servers must not outlive a process that nobody could stop any more.
        ends_with_terminal=has_terminal() or starts_servers(settings),
    )


@app.command()
def demo(
    host: HostOption = None,
    port: PortOption = None,
    at: Annotated[
        str | None, typer.Option(metavar="ISO", help="Virtual time to start at (COT).")
    ] = None,
    speed: Annotated[float, typer.Option(min=0.1, help="How much faster than real time.")] = 60.0,
    bars: BarsOption = None,
    ticks: TicksOption = None,
    scale: Annotated[float, typer.Option(help="Factor on the prices of --ticks.")] = 1.0,
    seed: SeedOption = 0,
    state_dir: Annotated[
        Path | None,
        typer.Option(help="Where everything is kept (`demo` in the user's state folder)."),
    ] = None,
) -> None:
    """Everything on this machine, no keys, no servers: a trading session in virtual time."""
    # The demo tells its story itself; the log only what deserves attention, unless asked for more.
    # What leads to the servers and folders of a real service is none of its business.
    loaded = load(
        default_level="WARNING",
        log_wait_s=0.0,
        ignored=PLACES,
        host=host,
        port=port,
        state_dir=state_dir,
    )
    options = DemoOptions(
        at=at,
        speed=speed,
        bars=bars,
        ticks=ticks,
        scale=scale,
        seed=seed,
        state_dir=state_dir or loaded.settings.state_dir / "demo",
    )
    with narration() as tale:
        until_signalled(lambda stop: run_demo(loaded.settings, options, tale, stop))


@app.command()
def simulate(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port, 0 for any.")] = 8765,
    bars: BarsOption = None,
    ticks: TicksOption = None,
    scale: Annotated[float, typer.Option(help="Factor on the prices of --ticks.")] = 1.0,
    ticks_per_bar: Annotated[
        str | None,
        typer.Option(metavar="N|A-B", help="Ticks made of each bar; default 2-40, seeded."),
    ] = None,
    arrivals: Annotated[
        str, typer.Option(help="How they come: bursty (default), poisson or regular.")
    ] = "",
    tick_every: Annotated[
        str | None,
        typer.Option(metavar="S[,S@TIME]...", help="Instead: seconds between two ticks."),
    ] = None,
    seed: SeedOption = 0,
    plan: Annotated[str, typer.Option(help="basic, grow, pro or ultra.")] = "pro",
    regime: Annotated[str, typer.Option(help="onshore or 24x5.")] = "onshore",
    row_cap: Annotated[
        int, typer.Option(min=1, max=5000, help="Most rows in one answer, whatever is asked for.")
    ] = 5000,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="A fault from the start; may be repeated."),
    ] = None,
    fault_script: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Faults that begin and end at given times."),
    ] = None,
) -> None:
    """The vendor simulator alone: TwelveData REST and WebSocket on one port."""
    loaded = load(log_wait_s=0.0)
    settings = loaded.settings
    calendar, clock = settings.calendar(), settings.clock()
    faults = faults_from_options(fault or ())
    now = clock.now()
    steps = load_script(fault_script, now, calendar.current_or_next(now)) if fault_script else ()
    market = market_from_options(
        bars,
        ticks,
        scale=scale,
        ticks_per_bar=ticks_per_bar,
        arrivals=arrivals,
        tick_every=tick_every,
        seed=seed,
        regime=regime,
        calendar=calendar,
    )
    simulator = Simulator(
        SimulatorConfig(
            market=market,
            plan=plan,
            limits=Limits(row_cap=row_cap),
            seed=seed,
            faults=faults,
            script=steps,
        ),
        clock,
    )

    async def serve(stop: asyncio.Event) -> None:
        await simulator.start(host, port)
        out.print(f"TWELVEDATA_REST_URL={simulator.rest_url}", soft_wrap=True)
        out.print(f"TWELVEDATA_WS_URL={simulator.ws_url}", soft_wrap=True)
        try:
            await stop.wait()
        finally:
            await simulator.stop()

    until_signalled(serve)
