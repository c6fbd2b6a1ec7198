"""Backfill as processes on a small generated recording; ``scripts/prove_backfill.py`` has the real one."""

import random
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest

from .backfilling import CALENDAR, Account, Backfilling, Task

FIRST, LAST = date(2025, 4, 1), date(2025, 6, 6)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Some 45 sessions with holes at every place, one thin day and one empty one."""
    source = random.Random(5)
    rows = []
    for number, day in enumerate(CALENDAR.trading_days(FIRST, LAST)):
        labels = CALENDAR.expected_labels(day)
        kept = [s for s in labels if source.random() > (0.8 if number == 20 else 0.02)]
        for slot in kept if number != 30 else []:
            opening, close = (round(4000 + source.uniform(-50, 50), 6) for _ in range(2))
            high, low = max(opening, close) + 1.5, min(opening, close) - 0.25
            rows.append((datetime.fromtimestamp(slot, UTC), opening, high, low, close))
    path = tmp_path / "recording.parquet"
    columns = ["datetime", "open", "high", "low", "close"]
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(path)
    return path


async def backfilled(recording: Path, folder: Path, dsn: str, **more: int) -> Account:
    task = Task(recording, FIRST, LAST, now="2025-06-09T18:00:00-05:00", **more)
    return await Backfilling(task, folder, dsn).run()


async def test_a_recording_arrives_for_the_least_credits(
    recording: Path, tmp_path: Path, database_dsn: str
) -> None:
    account = await backfilled(recording, tmp_path, database_dsn, row_cap=500)
    assert account.faults == []
    assert account.bars == pl.read_parquet(recording).height
    assert account.calls <= account.minimum + 2


async def test_killed_and_resumed_it_loses_nothing_and_pays_little_twice(
    recording: Path, tmp_path: Path, database_dsn: str
) -> None:
    account = await backfilled(
        recording, tmp_path, database_dsn, row_cap=60, kills=4, most_requests=5, seed=3
    )
    assert account.faults == []
    assert account.bars == pl.read_parquet(recording).height
    assert account.kills == 4
    assert account.committed_days_asked_again == 0
    assert account.pages_fetched_twice <= 4 * 8
