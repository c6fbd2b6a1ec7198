"""``journal``: what is in the tick journal, and copies of it."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from enhanced_websocket_service.errors import ConfigurationError, EwsError
from enhanced_websocket_service.market.calendar import iso_local
from enhanced_websocket_service.serving.params import parse_instant
from enhanced_websocket_service.settings import Settings
from enhanced_websocket_service.storage.journal_export import Selection, export, parse_place
from enhanced_websocket_service.storage.journal_inspect import (
    JournalReport,
    inspect,
    stored_up_to,
)

from .console import JsonOption, err, load, out, print_json, run_to_end

journal = typer.Typer(help="The tick journal.", no_args_is_help=True)

DirOption = Annotated[
    Path | None,
    typer.Option(
        "--dir", exists=True, file_okay=False, help="The journal's directory (STATE_DIR/journal)."
    ),
]


@journal.command("inspect")
def journal_inspect(directory: DirOption = None, as_json: JsonOption = False) -> None:
    """Segments, records, ranges, damage and how far it is stored; exit code 1 when damaged."""
    settings = load().settings
    report = inspect(directory or settings.state_dir / "journal")
    _ask_checkpoint(report, settings)
    if as_json:
        print_json(report.as_dict())
    else:
        _show(report)
    raise typer.Exit(1 if report.damage else 0)


@journal.command("export")
def journal_export(
    what: Annotated[
        Literal["ticks", "bars", "rejections"], typer.Option(help="Which records.")
    ] = "ticks",
    form: Annotated[
        Literal["ndjson", "csv", "parquet"], typer.Option("--format", help="Of the output.")
    ] = "ndjson",
    file: Annotated[
        Path | None, typer.Option("--out", help="The file to write; default: standard output.")
    ] = None,
    symbol: Annotated[str | None, typer.Option(help="Default: all.")] = None,
    start: Annotated[
        str | None,
        typer.Option(metavar="ISO", help="Stamped at or after; without offset America/Bogota."),
    ] = None,
    end: Annotated[str | None, typer.Option(metavar="ISO", help="Stamped before.")] = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="EPOCH:OFFSET", help="The first tick.")
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", metavar="EPOCH:OFFSET", help="The last tick.")
    ] = None,
    directory: DirOption = None,
) -> None:
    """Copy records out, also while the service runs; exit code 1 when some could not be read."""
    settings = load(default_level="WARNING").settings
    if form == "parquet" and file is None:
        raise ConfigurationError("--format parquet needs --out FILE.")
    selection = Selection(
        what=what,
        symbol=symbol,
        start=_instant(start, "--start"),
        end=_instant(end, "--end"),
        first=_place(first, "--from"),
        last=_place(last, "--to"),
    )
    report = export(
        directory or settings.state_dir / "journal", selection, form, file or sys.stdout.buffer
    )
    sys.stdout.flush()
    err.print(f"{report.rows} {what} exported.", markup=False)
    if report.damages:
        err.print(f"{report.damages} damaged places were left out: see journal inspect.")
    raise typer.Exit(1 if report.damages else 0)


def _ask_checkpoint(report: JournalReport, settings: Settings) -> None:
    if not settings.database_url:
        report.checkpoint_note = "not known: DATABASE_URL is not set"
        return
    try:
        report.checkpoint = run_to_end(stored_up_to(settings.database_url, report.journal_id))
    except EwsError as error:
        report.checkpoint_note = f"not known: {error}"
    else:
        if report.checkpoint is None:
            report.checkpoint_note = "none: this database has stored nothing of this journal"


def _show(report: JournalReport) -> None:
    out.print(f"Journal     {report.journal_id} in {report.directory}", soft_wrap=True)
    out.print(f"In use      {f'by process {report.owner}' if report.owner else 'no'}")
    checkpoint = report.checkpoint_note
    if report.checkpoint is not None:
        segment, offset, record = report.checkpoint
        checkpoint = f"segment {segment}, byte {offset}, record {record}: "
        checkpoint += f"{report.not_stored} records not stored yet"
    out.print(f"Checkpoint  {checkpoint}", soft_wrap=True)
    table = Table("segment", "bytes", "records", "from", "to", "ticks", "bars", "rejections")
    for one in report.segments:
        counts = (str(one.kinds.get(name, 0)) for name in ("ticks", "bars", "rejections"))
        times = ("" if at is None else iso_local(at)[:19] for at in (one.first_at, one.last_at))
        table.add_row(str(one.number), str(one.size), str(one.records), *times, *counts)
    out.print(table)
    for (symbol, epoch), r in sorted(report.ranges.items()):
        holes = r.last - r.first + 1 - r.count
        note = f", {holes} missing between them" if holes else ""
        out.print(f"{symbol} epoch {epoch}: offsets {r.first} .. {r.last}, {r.count} ticks{note}")
    for kept in report.kept_back:
        end = report.end if kept.end is None else kept.end
        out.print(
            f"Records {kept.first.record} .. {end.record} are not for PostgreSQL: {kept.winner} meanwhile.",
            markup=False,
            soft_wrap=True,
        )
    if report.torn_bytes:
        out.print(
            f"{report.torn_bytes} bytes behind the last whole record: a write under way, or what a "
            "killed process left; the next start cuts them off.",
            soft_wrap=True,
        )
    for damage in report.damage:
        out.print(f"Damage: {damage}", markup=False, soft_wrap=True)


def _instant(text: str | None, option: str) -> float | None:
    try:
        return parse_instant(text)
    except ValueError as error:
        raise ConfigurationError(f"{option} {text!r} {error}.") from None


def _place(text: str | None, option: str) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        return parse_place(text)
    except ValueError:
        raise ConfigurationError(
            f"{option} {text!r} is not EPOCH:OFFSET, like 1748955600123:1."
        ) from None
