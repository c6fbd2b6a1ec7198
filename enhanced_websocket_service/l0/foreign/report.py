"""What an import shows: for a terminal and as JSON. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .conventions import Run
from .evidence import KINDS
from .job import FileReport
from .judgement import REASONS

RUNS_SHOWN: Final = 25


def report_dict(report: FileReport) -> dict[str, Any]:
    """One file for ``--json``. Stamps of runs are the digits of the file, whatever they mean."""
    return {
        "file": str(report.file),
        "source": report.source,
        "dry_run": report.dry_run,
        "refused": report.refused,
        "read": report.read,
        "accepted": report.accepted,
        "corrected": report.corrected,
        "quarantined": report.quarantined,
        "reasons": report.reasons,
        "grades": report.grades,
        "found": report.found,
        "written": None
        if report.written is None
        else {"new": report.written.new, "changed": report.written.changed},
        "quarantine_file": None if report.quarantine_file is None else str(report.quarantine_file),
        "quarantine_problem": report.quarantine_problem,
        "conventions": [
            {
                "symbol": symbol,
                "convention": run.convention,
                "assumed": run.assumed,
                "doubt": run.doubt,
                "rows": run.rows,
                "first_row": run.first_row,
                "last_row": run.last_row,
                "first_stamp": _digits(run.first_wall),
                "last_stamp": _digits(run.last_wall),
                "certainty": run.certainty,
                "evidence": run.evidence,
            }
            for symbol, run in report.runs
        ],
    }


def render(report: FileReport) -> RenderableType:
    """One file for a terminal."""
    parts: list[RenderableType] = [
        Text(str(report.file), style="bold"),
        _runs([run for _, run in report.runs]),
    ]
    if report.refused is not None:
        parts.append(Text(report.refused, style="red"))
    parts.append(
        Text(
            f"{report.accepted} accepted + {report.corrected} corrected + {report.quarantined} "
            f"quarantined = {report.read} read"
        )
    )
    if report.grades:
        parts.append(
            Text("grades: " + ", ".join(f"{n} {name}" for name, n in report.grades.items()))
        )
    if report.reasons:
        reasons = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for name, count in report.reasons.items():
            reasons.add_row(f"{count:>9}", name, Text(REASONS[name], style="dim"))
        parts.append(reasons)
    if report.dry_run:
        parts.append(Text("dry run: nothing was stored", style="yellow"))
    elif report.written is not None:
        parts.append(
            Text(
                f"{report.written.new} bars new and {report.written.changed} changed in market_data "
                f"as {report.source}"
            )
        )
    if report.quarantine_file is not None:
        parts.append(Text(f"quarantine: {report.quarantine_file}"))
    if report.quarantine_problem is not None:
        parts.append(Text(report.quarantine_problem, style="red"))
    return Group(*parts, Text(""))


def _runs(runs: Sequence[Run]) -> Table:
    table = Table(
        title="Conventions found (evidence in nats: + local time, - UTC; sure is beyond 7)",
        title_justify="left",
    )
    for name in ("rows", "from row", "stamps", "read as", "sure", "evidence"):
        table.add_column(name, justify="right" if name in ("rows", "from row", "sure") else "left")
    for run in runs[:RUNS_SHOWN]:
        table.add_row(
            str(run.rows),
            str(run.first_row),
            f"{_digits(run.first_wall)} .. {_digits(run.last_wall)}",
            _reading(run),
            f"{run.certainty:.1f}",
            run.doubt or _evidence(run),
        )
    if len(runs) > RUNS_SHOWN:
        rest = runs[RUNS_SHOWN:]
        table.add_row(str(sum(run.rows for run in rest)), "", f"{len(rest)} more runs", "", "", "")
    return table


def _reading(run: Run) -> Text:
    if run.convention is None:
        return Text("unknown", style="red")
    name = "UTC" if run.convention == "utc" else "local (COT)"
    return Text(f"{name}, assumed", style="yellow") if run.assumed else Text(name, style="green")


def _evidence(run: Run) -> str:
    told = [f"{kind} {run.evidence[kind]:+.0f}" for kind in KINDS if abs(run.evidence[kind]) >= 0.5]
    return ", ".join(told) or "none"


def _digits(wall: int) -> str:
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%d %H:%M")
