"""The command line: parse, call what does the work, print. No command means ``run``.

Exit codes: 0 done (also after SIGTERM or Ctrl-C), 1 failed, 2 bad usage or configuration.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import structlog
import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import __version__
from .errors import ConfigurationError, EwsError
from .l0.continuity import DayContinuity
from .l0.continuity_page import day_dict, render_day, render_days, window_proof
from .l0.foreign.job import FileReport
from .l0.foreign.report import render as render_import
from .l0.foreign.report import report_dict
from .l0.report import render, result_dict
from .l0.run import BackfillPlan
from .l0.verify import render_verification
from .service import build
from .service.demo import DemoOptions, run_demo
from .settings import Loaded, load_settings
from .telemetry import configure_logging
from .twelvedata.simulator import Limits, Simulator, SimulatorConfig, market_from_options

log = structlog.get_logger(__name__)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

app = typer.Typer(
    help="Real-time USD/COP market data: L0 history, live ticks, 5-minute bars, WebSocket and REST.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
)
l0 = typer.Typer(help="The historical data (L0).", no_args_is_help=True)
config = typer.Typer(help="The configuration.", no_args_is_help=True)
app.add_typer(l0, name="l0")
app.add_typer(config, name="config")

HostOption = Annotated[str | None, typer.Option(help="Address to listen on (HOST).")]
PortOption = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Port to listen on, 0 for any (PORT).")
]
BarsOption = Annotated[
    Path | None, typer.Option(help="Recorded 5-minute bars (parquet, csv, csv.gz).")
]
TicksOption = Annotated[
    Path | None, typer.Option(help="Recorded quotes: time, bid, ask (parquet, csv, csv.gz).")
]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
DateOption = Annotated[str | None, typer.Option(metavar="DATE", help="COT day, YYYY-MM-DD.")]


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    try:
        app(standalone_mode=True)
    except ConfigurationError as error:
        for fault in error.faults:
            err.print(f"error: {fault}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except EwsError as error:
        err.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output (a pager, head) has gone; that is no failure of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(0)


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
    loaded = _load(host=host, port=port)
    _until_signalled(lambda stop: build.run_service(loaded.settings, stop))


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
        Path | None, typer.Option(help="Where everything is kept (STATE_DIR/demo).")
    ] = None,
) -> None:
    """Everything on this machine, no keys, no servers: a trading session in virtual time."""
    # The demo tells its story itself; the log only what deserves attention, unless asked for more.
    loaded = _load(default_level="WARNING", host=host, port=port)
    options = DemoOptions(
        at=at,
        speed=speed,
        bars=bars,
        ticks=ticks,
        scale=scale,
        seed=seed,
        state_dir=state_dir or loaded.settings.state_dir / "demo",
    )
    _until_signalled(lambda stop: run_demo(loaded.settings, options, out, stop))


@app.command()
def simulate(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port, 0 for any.")] = 8765,
    bars: BarsOption = None,
    ticks: TicksOption = None,
    scale: Annotated[float, typer.Option(help="Factor on the prices of --ticks.")] = 1.0,
    ticks_per_bar: Annotated[
        int | None, typer.Option(help="Ticks made of each bar; default 2 to 40, seeded.")
    ] = None,
    seed: SeedOption = 0,
    plan: Annotated[str, typer.Option(help="basic, grow, pro or ultra.")] = "pro",
    regime: Annotated[str, typer.Option(help="onshore or 24x5.")] = "onshore",
    row_cap: Annotated[
        int, typer.Option(min=1, max=5000, help="Most rows in one answer, whatever is asked for.")
    ] = 5000,
) -> None:
    """The vendor simulator alone: TwelveData REST and WebSocket on one port."""
    loaded = _load()
    settings = loaded.settings
    market = market_from_options(
        bars,
        ticks,
        scale=scale,
        ticks_per_bar=ticks_per_bar,
        seed=seed,
        regime=regime,
        calendar=settings.calendar(),
    )
    simulator = Simulator(
        SimulatorConfig(market=market, plan=plan, limits=Limits(row_cap=row_cap)), settings.clock()
    )

    async def serve(stop: asyncio.Event) -> None:
        await simulator.start(host, port)
        out.print(f"TWELVEDATA_REST_URL={simulator.rest_url}", soft_wrap=True)
        out.print(f"TWELVEDATA_WS_URL={simulator.ws_url}", soft_wrap=True)
        try:
            await stop.wait()
        finally:
            await simulator.stop()

    _until_signalled(serve)


@l0.command("backfill")
def l0_backfill(
    start: DateOption = None,
    end: DateOption = None,
    plan_only: Annotated[
        bool, typer.Option("--plan", "--dry-run", help="Show what would be asked for; ask nothing.")
    ] = False,
    refetch: Annotated[
        bool,
        typer.Option("--refetch", help="Ask again for what is there or is known to be absent."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """History of the COT days --start to --end, both inclusive; then backup set and ready flag."""
    first, last = _day(start, "--start"), _day(end, "--end")
    if first is None or last is None:
        raise ConfigurationError("l0 backfill needs --start DATE and --end DATE.")
    settings = _load().settings

    async def plan() -> Any:
        async with build.open_l0(settings) as pipeline:
            return await pipeline.plan(first, last, refetch=refetch)

    async def work(tell: Callable[[str, int, int], None]) -> Any:
        async with build.open_l0(settings) as pipeline:
            return await pipeline.backfill(
                first, last, tell, refetch=refetch, announce=_announce_plan
            )

    if not plan_only:
        _report_fetch(_with_progress("Backfill", work), as_json)
        return
    plans = _run(plan())
    if as_json:
        _print_json([one.as_dict() for one in plans])
    else:
        for one in plans:
            out.print(one.sentence(), markup=False, soft_wrap=True)


@l0.command("incremental")
def l0_incremental(as_json: JsonOption = False) -> None:
    """Catch up from the last complete bar to now."""
    settings = _load().settings

    async def work(tell: Callable[[str, int, int], None]) -> Any:
        async with build.open_l0(settings) as pipeline:
            return await pipeline.incremental(tell, announce=_announce_plan)

    _report_fetch(_with_progress("Incremental", work), as_json)


@l0.command("verify")
def l0_verify(
    start: DateOption = None, end: DateOption = None, as_json: JsonOption = False
) -> None:
    """Backup set against hash, database and calendar; exit code 1 on any difference."""
    first, last = _day(start, "--start"), _day(end, "--end")
    settings = _load().settings

    async def work() -> Any:
        async with build.open_l0(settings, with_vendor=False) as pipeline:
            return await pipeline.verify(first, last)

    reports = _run(work())
    if as_json:
        _print_json([report.as_dict() for report in reports])
    else:
        for report in reports:
            out.print(render_verification(report), soft_wrap=True)
    raise typer.Exit(0 if all(report.ok for report in reports) else 1)


@l0.command("import")
def l0_import(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Bars from elsewhere: parquet, csv, csv.gz."),
    ],
    assume: Annotated[
        Literal["utc", "cot"] | None,
        typer.Option(help="What the stamps mean where the evidence does not tell."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Judge and report, store nothing.")
    ] = False,
    quarantine: Annotated[
        Path | None,
        typer.Option(
            help="Where refused rows go, with reasons: a .csv or .parquet file, or a directory "
            "(STATE_DIR/quarantine)."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Bars that other systems exported; exit code 1 when a file had to be refused."""
    settings = _load().settings
    ask = not as_json and assume is None and sys.stdin.isatty() and err.is_terminal

    async def work() -> list[FileReport]:
        reports = []
        async with build.open_import(settings, quarantine=quarantine, dry_run=dry_run) as job:
            for file in files:
                report = await job.run(file, assume=assume, dry_run=dry_run)
                if not as_json:
                    out.print(render_import(report))
                if report.refused and ask and (answer := _ask_convention()):
                    report = await job.run(file, assume=answer, dry_run=dry_run)
                    out.print(render_import(report))
                reports.append(report)
        return reports

    reports = _run(work())
    if as_json:
        _print_json([report_dict(report) for report in reports])
    raise typer.Exit(1 if any(report.refused for report in reports) else 0)


@l0.command("status")
def l0_status(as_json: JsonOption = False) -> None:
    """The flag, freshness, completeness and the backup set; exit code 1 when not all is well."""
    settings = _load().settings

    async def work() -> Any:
        async with build.open_l0(settings, with_vendor=False) as pipeline:
            report = await pipeline.status()
        async with build.open_slots(settings) as (slots, continuity):
            proofs = [
                await window_proof(slots, continuity, symbol, settings.l0_window_days)
                for symbol in settings.symbols
            ]
        return report, proofs

    report, proofs = _run(work())
    if as_json:
        _print_json(
            {**report.as_dict(), "continuity": {one.symbol: one.as_dict() for one in proofs}}
        )
    else:
        out.print(render(report))
        for proof in proofs:
            out.print()
            for line in proof.lines():
                out.print(line, no_wrap=True, soft_wrap=True)
    raise typer.Exit(0 if report.ok else 1)


@l0.command("continuity")
def l0_continuity(
    day: Annotated[
        str | None, typer.Option("--date", metavar="DATE", help="COT day; default: today.")
    ] = None,
    start: DateOption = None,
    end: DateOption = None,
    symbol: Annotated[str | None, typer.Option(help="Default: the first of SYMBOLS.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Who covers each 5-minute slot, and what is missing and why; exit code 1 when some slot is."""
    on, first, last = _day(day, "--date"), _day(start, "--start"), _day(end, "--end")
    if (first is None) != (last is None) or (on is not None and first is not None):
        raise ConfigurationError("l0 continuity takes --date DATE, or --start DATE and --end DATE.")
    settings = _load().settings
    if symbol is not None and symbol not in settings.symbols:
        raise ConfigurationError(f"--symbol {symbol!r} is not among {', '.join(settings.symbols)}.")
    wanted = symbol or settings.symbols[0]

    async def work() -> list[DayContinuity]:
        async with build.open_slots(settings) as (_, continuity):
            if first is not None and last is not None:
                return await continuity.days(wanted, first, last)
            return [await continuity.day(wanted, on or continuity.last_days(1)[1])]

    days: list[DayContinuity] = _run(work())
    if as_json:
        shown = [day_dict(one) for one in days]
        _print_json(shown if first is not None else shown[0])
    else:
        for line in render_days(days) if first is not None else render_day(days[0]):
            out.print(line, no_wrap=True, soft_wrap=True)
    raise typer.Exit(any(one.summary.unknown for one in days))


@config.command("check")
def config_check(as_json: JsonOption = False) -> None:
    """The effective settings with secrets redacted, and every fault at once."""
    loaded = _load()
    shown = loaded.settings.redacted()
    if as_json:
        _print_json({"settings": shown, "warnings": list(loaded.warnings)})
        return
    for name, value in shown.items():
        out.print(f"{name}={'' if value is None else value}", markup=False, soft_wrap=True)


def _load(*, default_level: str = "INFO", **overrides: Any) -> Loaded:
    loaded = load_settings(os.environ, dotenv=Path(".env"), overrides=overrides)
    settings = loaded.settings
    chosen = "log_level" in settings.model_fields_set
    configure_logging(
        level=settings.log_level if chosen else default_level,
        form=settings.log_format,
        directory=settings.log_dir,
        secrets=settings.secrets(),
    )
    for warning in loaded.warnings:
        log.warning(warning)
    return loaded


def _ask_convention() -> Literal["utc", "cot"] | None:
    answer = typer.prompt(
        "Are its stamps utc or cot? Anything else leaves the file out", default="-"
    )
    return "utc" if answer == "utc" else "cot" if answer == "cot" else None


def _day(text: str | None, option: str) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"{option} {text!r} is not a date like 2025-06-27.") from None


def _run(work: Awaitable[Any]) -> Any:
    async def main() -> Any:
        task = asyncio.current_task()
        assert task is not None
        # As Ctrl-C does: cancelled, so that what the work started (private servers) is stopped.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(0)


def _until_signalled(serve: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run ``serve`` until SIGTERM or Ctrl-C asks it to stop; a second signal ends it at once."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()

        def on_signal(number: int) -> None:
            if stop.is_set():
                log.error("Second signal: stopping at once, without draining")
                os._exit(1)
            log.info("Stopping", signal=signal.Signals(number).name)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)
        await serve(stop)

    _run(main())


def _with_progress(
    title: str, work: Callable[[Callable[[str, int, int], None]], Awaitable[Any]]
) -> Any:
    """A progress bar on a terminal, plain log lines elsewhere."""
    if not err.is_terminal:
        return _run(
            work(lambda symbol, done, total: log.info(title, symbol=symbol, done=done, days=total))
        )
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("days"),
        TimeElapsedColumn(),
        console=err,
    ) as bars:
        rows: dict[str, Any] = {}

        def tell(symbol: str, done: int, total: int) -> None:
            if symbol not in rows:
                rows[symbol] = bars.add_task(f"{title} {symbol}", total=total)
            bars.update(rows[symbol], completed=done, total=total)

        return _run(work(tell))


def _announce_plan(plan: BackfillPlan) -> None:
    # To standard error, like the bar that follows: standard output is for the result.
    err.print(plan.sentence(), markup=False, soft_wrap=True)


def _report_fetch(results: Any, as_json: bool) -> None:
    if as_json:
        _print_json([result_dict(result) for result in results])
        return
    for one in results:
        out.print(
            f"{one.symbol} {one.start} .. {one.end}: {one.bars_written} bars written in "
            f"{one.calls} calls; {one.expected - len(one.missing)} of {one.expected} slots present.",
            soft_wrap=True,
        )


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
