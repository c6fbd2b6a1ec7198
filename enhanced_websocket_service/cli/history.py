"""``l0``: the commands of the historical data."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from enhanced_websocket_service.errors import ConfigurationError, PartlyDone
from enhanced_websocket_service.l0.continuity import DayContinuity
from enhanced_websocket_service.l0.continuity_page import (
    day_dict,
    render_day,
    render_days,
    window_proof,
)
from enhanced_websocket_service.l0.foreign.job import FileReport
from enhanced_websocket_service.l0.foreign.report import render as render_import
from enhanced_websocket_service.l0.foreign.report import report_dict
from enhanced_websocket_service.l0.report import render, result_dict
from enhanced_websocket_service.l0.run import BackfillPlan
from enhanced_websocket_service.l0.verify import render_verification
from enhanced_websocket_service.service import connections

from .console import (
    DateOption,
    JsonOption,
    day_option,
    err,
    load,
    out,
    print_json,
    run_to_end,
    with_progress,
)

l0 = typer.Typer(help="The historical data (L0).", no_args_is_help=True)


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
    first, last = day_option(start, "--start"), day_option(end, "--end")
    if first is None or last is None:
        raise ConfigurationError("l0 backfill needs --start DATE and --end DATE.")
    settings = load().settings

    async def plan() -> Any:
        async with connections.open_l0(settings) as pipeline:
            return await pipeline.plan(first, last, refetch=refetch)

    async def work(tell: Callable[[str, int, int], None]) -> Any:
        async with connections.open_l0(settings) as pipeline:
            return await pipeline.backfill(
                first, last, tell, refetch=refetch, announce=_announce_plan
            )

    if not plan_only:
        _fetch("Backfill", work, as_json)
        return
    plans = run_to_end(plan())
    if as_json:
        print_json([one.as_dict() for one in plans])
    else:
        for one in plans:
            out.print(one.sentence(), markup=False, soft_wrap=True)


@l0.command("incremental")
def l0_incremental(as_json: JsonOption = False) -> None:
    """Catch up from the last complete bar to now."""
    settings = load().settings

    async def work(tell: Callable[[str, int, int], None]) -> Any:
        async with connections.open_l0(settings) as pipeline:
            return await pipeline.incremental(tell, announce=_announce_plan)

    _fetch("Incremental", work, as_json)


@l0.command("verify")
def l0_verify(
    start: DateOption = None, end: DateOption = None, as_json: JsonOption = False
) -> None:
    """Backup set against hash, database and calendar; exit code 1 on any difference."""
    first, last = day_option(start, "--start"), day_option(end, "--end")
    settings = load().settings

    async def work() -> Any:
        async with connections.open_l0(settings, with_vendor=False) as pipeline:
            return await pipeline.verify(first, last)

    reports = run_to_end(work())
    if as_json:
        print_json([report.as_dict() for report in reports])
    else:
        for report in reports:
            out.print(render_verification(report), soft_wrap=True)
    raise typer.Exit(0 if all(report.ok for report in reports) else 1)


@l0.command("import")
def l0_import(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            exists=True,
            dir_okay=False,
            help="Bars from elsewhere: parquet, csv, csv.gz.",
        ),
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
    """Bars that other systems exported; exit code 1 when a file was refused or its quarantine failed."""
    settings = load().settings
    ask = not as_json and assume is None and sys.stdin.isatty() and err.is_terminal

    async def work() -> list[FileReport]:
        reports = []
        async with connections.open_import(settings, quarantine=quarantine, dry_run=dry_run) as job:
            for file in files:
                report = await job.run(file, assume=assume, dry_run=dry_run)
                if not as_json:
                    out.print(render_import(report))
                if report.refused and ask and (answer := _ask_convention()):
                    report = await job.run(file, assume=answer, dry_run=dry_run)
                    out.print(render_import(report))
                reports.append(report)
        return reports

    reports = run_to_end(work())
    if as_json:
        print_json([report_dict(report) for report in reports])
    failed = any(report.refused or report.quarantine_problem for report in reports)
    raise typer.Exit(1 if failed else 0)


@l0.command("status")
def l0_status(as_json: JsonOption = False) -> None:
    """The flag, freshness, completeness and the backup set; exit code 1 when not all is well."""
    settings = load().settings

    async def work() -> Any:
        async with connections.open_l0(settings, with_vendor=False) as pipeline:
            report = await pipeline.status()
        async with connections.open_slots(settings) as (slots, continuity):
            proofs = [
                await window_proof(slots, continuity, symbol, settings.l0_window_days)
                for symbol in settings.symbols
            ]
        return report, proofs

    report, proofs = run_to_end(work())
    if as_json:
        print_json(
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
        str | None,
        typer.Option("--date", metavar="DATE", help="Its day; default: today."),
    ] = None,
    start: DateOption = None,
    end: DateOption = None,
    symbol: Annotated[str | None, typer.Option(help="Default: the first of SYMBOLS.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Who covers each 5-minute slot, and what is missing and why; exit code 1 when some slot is."""
    on, first, last = (
        day_option(day, "--date"),
        day_option(start, "--start"),
        day_option(end, "--end"),
    )
    if (first is None) != (last is None) or (on is not None and first is not None):
        raise ConfigurationError("l0 continuity takes --date DATE, or --start DATE and --end DATE.")
    settings = load().settings
    if symbol is not None and symbol not in settings.symbols:
        raise ConfigurationError(f"--symbol {symbol!r} is not among {', '.join(settings.symbols)}.")
    wanted = symbol or settings.symbols[0]

    async def work() -> list[DayContinuity]:
        async with connections.open_slots(settings) as (_, continuity):
            if first is not None and last is not None:
                return await continuity.days(wanted, first, last)
            return [await continuity.day(wanted, on or continuity.today(wanted))]

    days: list[DayContinuity] = run_to_end(work())
    if as_json:
        shown = [day_dict(one) for one in days]
        print_json(shown if first is not None else shown[0])
    else:
        for line in render_days(days) if first is not None else render_day(days[0]):
            out.print(line, no_wrap=True, soft_wrap=True)
    raise typer.Exit(any(one.summary.unknown for one in days))


def _ask_convention() -> Literal["utc", "cot"] | None:
    answer = typer.prompt(
        "Are its stamps utc or cot? Anything else leaves the file out", default="-"
    )
    return "utc" if answer == "utc" else "cot" if answer == "cot" else None


def _announce_plan(plan: BackfillPlan) -> None:
    # To standard error, like the bar that follows: standard output is for the result.
    err.print(plan.sentence(), markup=False, soft_wrap=True)


def _fetch(what: str, work: Callable[..., Any], as_json: bool) -> None:
    """Run ``work`` and report it, symbol by symbol, also when some of them failed."""
    try:
        _report_fetch(with_progress(what, work), as_json)
    except PartlyDone as error:
        _report_fetch(error.results, as_json)
        raise


def _report_fetch(results: Any, as_json: bool) -> None:
    if as_json:
        print_json([result_dict(result) for result in results])
        return
    for one in results:
        out.print(
            f"{one.symbol} {one.start} .. {one.end}: {one.bars_written} bars written in "
            f"{one.calls} calls; {one.expected - len(one.missing)} of {one.expected} slots present.",
            soft_wrap=True,
        )
