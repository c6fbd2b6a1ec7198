"""Judging lines as a command would, without a database."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from enhanced_websocket_service.l0.foreign.judgement import EXISTING, Judgement, judge
from enhanced_websocket_service.l0.foreign.reading import read_table
from tests.foreign_files import CALENDAR, HEADER, Row, line, market, write

NOW = 1.9e9
NOTHING = pl.DataFrame(schema=EXISTING)


def sessions(start: date = date(2025, 5, 5), days: int = 9, seed: int = 3) -> list[Row]:
    """True bars of whole sessions, ascending."""
    truth = market(start, days, seed)
    return [truth[slot] for slot in sorted(truth)]


def judge_lines(path: Path, lines: Sequence[str], *, header: str = HEADER, **how: Any) -> Judgement:
    table = read_table(write(path / "export.csv", lines, header=header))
    options: dict[str, Any] = {
        "symbol": "USDCOP",
        "calendar": CALENDAR,
        "now": NOW,
        "existing": NOTHING,
    }
    return judge(table.rows, **(options | how))


def judge_rows(path: Path, rows: Sequence[Row], **how: Any) -> Judgement:
    return judge_lines(path, [line(row) for row in rows], **how)


def reasons(judgement: Judgement) -> dict[int, str]:
    """Row -> why it is not a bar."""
    return dict(judgement.quarantined.select("row", "reason").iter_rows())


def existing(rows: Sequence[Row], grade: str = "whole", rank: int = 0) -> pl.DataFrame:
    """``rows`` as bars of another source in the database."""
    return pl.DataFrame(
        [(row.slot, *row.prices, grade, rank) for row in rows], schema=EXISTING, orient="row"
    )
