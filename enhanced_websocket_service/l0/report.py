"""What ``l0 status`` shows: the flag, the verdict on the data, the backup set. Pure."""

from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from enhanced_websocket_service.market.calendar import iso_local

from .backup import BackupMetadata
from .readiness import FlagState
from .run import BackfillResult
from .validator import Assessment

GAPS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class SymbolReport:
    """One symbol: its data in the database and its backup set."""

    assessment: Assessment
    last_vendor_bar: int | None  # its open, unix seconds UTC
    backup: BackupMetadata | None
    backup_problems: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        backup = self.backup
        return {
            "symbol": self.assessment.symbol,
            **assessment_dict(self.assessment),
            "last_vendor_bar": _iso(self.last_vendor_bar),
            "backup": None
            if backup is None
            else {
                "file": backup.file,
                "rows": backup.rows,
                "range_start": backup.range_start,
                "range_end": backup.range_end,
                "missing_slots": len(backup.missing_slots),
                "completeness_percentage": backup.completeness_percentage,
                "created_at": backup.created_at,
                "sha256": backup.sha256,
            },
            "backup_problems": list(self.backup_problems),
        }


@dataclass(frozen=True, slots=True)
class L0Report:
    """The whole of ``l0 status`` at ``now`` (unix seconds UTC)."""

    now: float
    provider: str
    flag_path: str
    flag: FlagState
    symbols: tuple[SymbolReport, ...]

    @property
    def ok(self) -> bool:
        """Flag, data and backup are all as they should be."""
        return self.flag.ready and all(
            one.assessment.ok and not one.backup_problems for one in self.symbols
        )

    @property
    def reasons(self) -> list[str]:
        """Everything that is not as it should be, a sentence each."""
        return [
            *([] if self.flag.problem is None else [self.flag.problem]),
            *(reason for one in self.symbols for reason in one.assessment.reasons),
            *(problem for one in self.symbols for problem in one.backup_problems),
        ]

    def as_dict(self) -> dict[str, Any]:
        """The report for ``--json``; times are ISO 8601 with offset, America/Bogota."""
        return {
            "timestamp": iso_local(int(self.now)),
            "ok": self.ok,
            "provider": self.provider,
            "ready_signal_exists": self.flag.exists,
            "ready_signal": {
                "path": self.flag_path,
                "ready": self.flag.ready,
                "problem": self.flag.problem,
                "timestamp": self.flag.timestamp,
            },
            "symbols": [one.as_dict() for one in self.symbols],
            "reasons": self.reasons,
        }


def assessment_dict(assessment: Assessment) -> dict[str, Any]:
    """The fields of ``l0_integration`` in ``/status`` that come from the data, and some more."""
    hours = assessment.data_freshness_hours
    return {
        "data_freshness_hours": None if hours is None else round(hours, 2),
        "completeness_percentage": round(assessment.completeness_percentage, 2),
        "is_fresh": assessment.is_fresh,
        "is_complete": assessment.is_complete,
        "missing_slots": assessment.missing_slots,
        "expected_slots": assessment.expected,
        "present_slots": assessment.present,
        "last_bar_end": _iso(assessment.last_bar_end),
        "gaps": [iso_local(slot) for slot in assessment.gaps],
    }


def result_dict(result: BackfillResult) -> dict[str, Any]:
    """A finished backfill or incremental for ``--json``."""
    return {
        "symbol": result.symbol,
        "plan": result.plan.as_dict(),
        "start": result.start.isoformat(),
        "end": result.end.isoformat(),
        "trading_days": result.days,
        "days_fetched": result.days_fetched,
        "calls": result.calls,
        "bars_written": result.bars_written,
        "dropped_outside_session": result.dropped,
        "expected_slots": result.expected,
        "missing_slots": [iso_local(slot) for slot in result.missing],
    }


def render(report: L0Report) -> RenderableType:
    """The report for a terminal."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("Now", iso_local(int(report.now)))
    table.add_row("Provider", report.provider)
    table.add_row("Ready flag", _mark(report.flag.ready, "ready", "not ready"))
    for one in report.symbols:
        data = one.assessment
        table.add_row("", "")
        table.add_row("Symbol", data.symbol)
        table.add_row("Last bar ends", _iso(data.last_bar_end) or "no bars")
        if data.data_freshness_hours is not None:
            fresh = f"{data.data_freshness_hours:.1f} h, {data.missing_slots} slots behind"
            table.add_row("Fresh", _mark(data.is_fresh, f"yes ({fresh})", f"no ({fresh})"))
        complete = f"{data.completeness_percentage:.2f} %, {data.present} of {data.expected} slots"
        table.add_row("Complete", _mark(data.is_complete, f"yes ({complete})", f"no ({complete})"))
        if data.gaps:
            shown = ", ".join(iso_local(slot) for slot in data.gaps[:GAPS_SHOWN])
            more = len(data.gaps) - GAPS_SHOWN
            table.add_row("Missing", shown + (f" and {more} more" if more > 0 else ""))
        if one.backup is not None:
            backup = one.backup
            table.add_row(
                "Backup",
                f"{backup.rows} bars, {backup.range_start} to {backup.range_end}, "
                f"{len(backup.missing_slots)} slots missing, written {backup.created_at}",
            )
    faults = [Text(f"- {reason}", style="yellow") for reason in report.reasons]
    return Group(table, *([Text("")] if faults else []), *faults)


def _mark(good: bool, yes: str, no: str) -> Text:
    return Text(yes, style="green") if good else Text(no, style="red")


def _iso(instant: int | None) -> str | None:
    return None if instant is None else iso_local(instant)
