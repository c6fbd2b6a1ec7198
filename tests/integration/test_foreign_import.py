"""Foreign files into a real PostgreSQL: what speaks for a slot, twice is once, nothing better is lost."""

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import polars as pl
import pytest

from enhanced_websocket_service.clock import VirtualClock
from enhanced_websocket_service.errors import ConfigurationError, DataError
from enhanced_websocket_service.l0.backup import to_bars
from enhanced_websocket_service.l0.foreign.grading import GRADES
from enhanced_websocket_service.l0.foreign.job import QUARANTINE, FileReport, ForeignImport
from enhanced_websocket_service.l0.foreign.report import render, report_dict
from enhanced_websocket_service.market.bar import Bar, Certificate
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.storage.imports import ImportStore
from enhanced_websocket_service.storage.postgres import Database
from tests.foreign_files import (
    CALENDAR,
    COT,
    Row,
    close_only,
    filler,
    line,
    market,
    partial,
    told,
    write,
)
from tests.shared_data import shared
from tests.unit.l0.foreign.judging import sessions

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_770_000_000.0  # 2026-02-02
CLOCK = VirtualClock(NOW, 1.0, is_trading_day=CALENDAR.is_trading_day)
REAL = Provider("twelvedata")


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    database = Database(database_dsn, REAL, clock=CLOCK)
    await database.connect()
    yield database
    await database.close()


@pytest.fixture
async def connection(database_dsn: str, database: Database) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(database_dsn)
    yield connection
    await connection.close()


def importer(database: Database, tmp_path: Path, **how: Any) -> ForeignImport:
    symbols = how.pop("symbols", ["USDCOP"])
    options: dict[str, Any] = {"quarantine": tmp_path / "quarantine"}
    calendars = dict.fromkeys(symbols, CALENDAR)
    return ForeignImport(ImportStore(database), calendars, CLOCK, **(options | how))


def export(tmp_path: Path, rows: Sequence[Row], name: str = "export.csv") -> Path:
    return write(tmp_path / name, [line(row) for row in rows], ending="\r\r\n")


def vendor(rows: Sequence[Row], source: str = "twelvedata") -> list[Bar]:
    return [Bar("USDCOP", 300, row.slot, *row.prices, 0, source, 0, "reconciled") for row in rows]


def as_bar(bar: Bar) -> tuple[float, ...]:
    return (bar.open_time, bar.open, bar.high, bar.low, bar.close)


async def spoken(database: Database, rows: Sequence[Row]) -> list[Bar]:
    return (await database.bars("USDCOP", start=rows[0].slot, end=rows[-1].slot, limit=10_000)).bars


async def table(connection: Any) -> list[Any]:
    return list(await connection.fetch("SELECT * FROM market_data ORDER BY id"))


async def test_bars_arrive_at_their_true_time_with_their_grade(
    database: Database, connection: Any, tmp_path: Path
) -> None:
    chance = random.Random(1)
    truth = sessions()
    rows = list(truth)
    rows[3], rows[4] = close_only(rows[3]), partial(rows[4], 3, chance)
    rows[9] = replace(rows[9], low=-1.0)
    report = await importer(database, tmp_path).run(export(tmp_path, told(rows, COT)))
    assert (report.read, report.accepted, report.corrected) == (len(rows), 0, len(rows) - 1)
    assert report.grades == {"close_only": 1, "partial": 1, "whole": len(rows) - 3}
    assert report.written is not None
    assert (report.written.new, report.written.changed) == (len(rows) - 1, 0)
    found = await spoken(database, truth)
    assert {bar.source for bar in found} == {"import:export"}
    assert [as_bar(bar) for bar in found] == [
        (row.slot, *row.prices) for i, row in enumerate(rows) if i != 9
    ]
    graded = await connection.fetch("SELECT grade, count(*) FROM market_bars GROUP BY 1 ORDER BY 1")
    assert {row["grade"]: row["count"] for row in graded} == report.grades
    assert report_dict(report)["reasons"] == {"bad_price": 1}
    assert render(report) is not None


async def test_twice_is_once(database: Database, connection: Any, tmp_path: Path) -> None:
    path = export(tmp_path, told(sessions(), COT))
    job = importer(database, tmp_path)
    await job.run(path)
    before = await table(connection)
    again = await job.run(path)
    assert again.written is not None
    assert (again.written.new, again.written.changed) == (0, 0)
    assert again.quarantined == 0
    assert await table(connection) == before


async def test_a_corrected_export_replaces_and_the_old_version_stays_known(
    database: Database, connection: Any, tmp_path: Path
) -> None:
    rows = sessions()
    job = importer(database, tmp_path)
    await job.run(export(tmp_path, rows))
    rows[5] = replace(rows[5], high=rows[5].high + 1)
    rows[6] = close_only(rows[6])
    report = await job.run(export(tmp_path, rows))
    assert report.written is not None
    assert (report.written.new, report.written.changed) == (0, 1)
    assert report.reasons == {"worse_than_existing": 1}
    bars = await spoken(database, rows)
    assert bars[5].high == rows[5].high
    assert bars[5].revision == 1
    assert bars[6].high > bars[6].low, "the better version of the same file stays"
    kept = await connection.fetch("SELECT source, revision, high FROM bar_revisions")
    assert [(row["source"], row["revision"]) for row in kept] == [("import:export", 0)]


async def test_nothing_better_is_replaced_by_worse(
    database: Database, connection: Any, tmp_path: Path
) -> None:
    truth = sessions()
    await database.upsert_vendor_bars(vendor(truth))
    chance = random.Random(1)
    poor = [close_only(row) if i % 2 else partial(row, 5, chance) for i, row in enumerate(truth)]
    report = await importer(database, tmp_path).run(export(tmp_path, poor))
    assert report.reasons == {"worse_than_existing": len(truth)}
    # Even where another program writes a poor bar beside a good one, the good one speaks.
    await connection.execute(
        "INSERT INTO market_data (symbol, datetime, open, high, low, close, source, grade) "
        "SELECT symbol, datetime, close, close, close, close + 1, 'twelvedata', 'close_only' "
        "FROM market_data WHERE false"
    )
    assert [as_bar(bar) for bar in await spoken(database, truth)] == [
        (row.slot, *row.prices) for row in truth
    ]


async def test_the_better_grade_speaks_whatever_the_source(
    database: Database, connection: Any
) -> None:
    at = sessions()[0].slot
    birth = Certificate(
        ticks={}, first_tick=None, last_tick=None, longest_silence_s=300, partial=True
    )
    certificate = msgspec.json.encode(birth).decode()
    ranked = [
        ("twelvedata", None, None),
        ("import:b", "whole", None),
        ("twelvedata_websocket", None, None),
        ("twelvedata_rest", None, None),
        ("import:c", "reconstructed", None),
        ("import:d", "partial", None),
        ("twelvedata_websocket_2_websocket", None, certificate),
        ("import:e", "close_only", None),
        ("import:f", "of a newer version", None),
    ]
    for source, grade, proof in reversed(ranked):
        await connection.execute(
            "INSERT INTO market_data (symbol, datetime, open, high, low, close, source, grade, "
            "certificate) VALUES ('USDCOP', to_timestamp($1), 1, 1, 1, 1, $2, $3, $4::text::jsonb)",
            *(at, source, grade, proof),
        )
    for source, grade, proof in ranked:
        view = await connection.fetchrow("SELECT source, grade FROM market_bars")
        assert view["source"] == source
        assert view["grade"] == (grade or ("partial" if proof else "whole"))
        assert (await database.bars("USDCOP", start=at)).bars[0].source == source
        assert (await database.bars("USDCOP")).bars[0].source == source
        assert (await database.bars("USDCOP", start=at, as_of=4e9)).bars[0].source == source
        await connection.execute("DELETE FROM market_data WHERE source = $1", source)


async def test_grades_rank_alike_in_python_and_sql(connection: Any) -> None:
    ranks = [await connection.fetchval("SELECT ews_grade_rank($1)", grade) for grade in GRADES]
    assert ranks == list(range(len(GRADES)))


async def test_what_cannot_be_told_is_refused_and_stores_nothing(
    database: Database, connection: Any, tmp_path: Path
) -> None:
    """Half an hour of a 24-hour feed: no edge, no week, no night to compare with."""
    truth = market(date(2025, 5, 6), 1, 5, around_the_clock=True)
    path = export(tmp_path, [truth[slot] for slot in sorted(truth) if slot % 86_400 < 86_100])
    job = importer(database, tmp_path)
    flat = [close_only(replace(row, close=4000 + i % 7)) for i, row in enumerate(truth.values())]
    path = export(tmp_path, flat)
    report = await job.run(path)
    assert report.refused is not None
    assert "--assume utc" in report.refused
    assert report_dict(report)["refused"] == report.refused
    assert render(report) is not None
    assert await table(connection) == []
    assert (report.accepted, report.corrected, report.quarantined) == (0, 0, report.read)
    assert report.quarantine_file is not None
    assert pl.read_parquet(report.quarantine_file).height == report.read
    assumed = await job.run(path, assume="utc")
    assert assumed.refused is None
    assert assumed.accepted == 60


async def test_a_dry_run_stores_nothing(
    database: Database, connection: Any, tmp_path: Path
) -> None:
    report = await importer(database, tmp_path).run(export(tmp_path, sessions()), dry_run=True)
    assert (report.accepted, report.written) == (len(sessions()), None)
    assert await table(connection) == []
    assert not (tmp_path / "quarantine").exists()


@pytest.mark.parametrize("name", ["refused.csv", "refused.parquet", "directory"])
async def test_quarantine_keeps_the_lines_as_they_were(
    database: Database, tmp_path: Path, name: str
) -> None:
    rows = sessions()
    closed = filler(date(2025, 6, 2), 4000.0)
    lines = [line(row) for row in [*rows, *closed]] + ["what, is this"]
    one, two = (write(tmp_path / file, lines, ending="\r\n") for file in ("a.csv", "b.csv"))
    job = importer(database, tmp_path, quarantine=tmp_path / name)
    reports = [await job.run(one), await job.run(two)]
    files = [report.quarantine_file for report in reports]
    if name == "directory":
        assert files == [tmp_path / name / "a.parquet", tmp_path / name / "b.parquet"]
        found = pl.concat(pl.read_parquet(file) for file in files if file)
    else:
        assert files == [tmp_path / name] * 2
        read = pl.read_csv if name.endswith(".csv") else pl.read_parquet
        found = read(tmp_path / name).cast(QUARANTINE)
    assert found["file"].value_counts()["count"].to_list() == [61, 61]
    first = found.filter(pl.col("file") == str(one))
    assert first["line"].to_list() == lines[len(rows) :]
    assert first["reason"].to_list() == ["holiday"] * 60 + ["unparsable"]
    assert first["detail"].to_list()[-1] == "has 2 of 9 fields"


async def test_a_quarantine_that_cannot_be_written_keeps_no_bar_out(
    database: Database, connection: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.csv", [*map(line, sessions()), "what"])
    (tmp_path / "blocked").write_text("no folder")
    report = await importer(database, tmp_path, quarantine=tmp_path / "blocked" / "below").run(path)
    assert report.quarantine_file is None
    assert report.quarantine_problem is not None
    assert str(tmp_path / "blocked" / "below") in report.quarantine_problem
    assert report_dict(report)["quarantine_problem"] == report.quarantine_problem
    assert len(await table(connection)) == len(sessions())
    again = await importer(database, tmp_path).run(path)
    assert again.quarantine_problem is None
    assert again.quarantine_file is not None
    assert pl.read_parquet(again.quarantine_file).height == 1


async def test_the_file_itself_is_no_place_for_its_quarantine(
    database: Database, connection: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.csv", [*map(line, sessions()), "what"])
    with pytest.raises(ConfigurationError, match="is the file to import"):
        await importer(database, tmp_path, quarantine=path).run(path)
    assert await table(connection) == []


async def test_several_symbols_in_one_file(
    database: Database, connection: Any, tmp_path: Path
) -> None:
    rows = [line(row) for row in sessions()]
    euros = [one.replace("USD/COP", "EUR/COP") for one in rows]
    others = [one.replace("USD/COP", "GBP/COP") for one in rows[:5]]
    path = write(tmp_path / "mixed.csv", [*rows, *euros, *others])
    report = await importer(database, tmp_path, symbols=["EURCOP", "USDCOP"]).run(path)
    assert report.reasons == {"other_symbol": 5}
    counts = await connection.fetch("SELECT symbol, count(*) FROM market_data GROUP BY 1")
    assert {row["symbol"]: row["count"] for row in counts} == dict.fromkeys(
        ["EURCOP", "USDCOP"], len(rows)
    )
    with pytest.raises(DataError, match="holds EURCOP, GBPCOP, USDCOP; configured is BRLCOP"):
        await importer(database, tmp_path, symbols=["BRLCOP"]).run(path)


async def test_sources_are_told_apart(database: Database, tmp_path: Path) -> None:
    job = importer(database, tmp_path)
    long = "a" * 60
    assert job.source_of(Path("/x/rates.csv.gz")) == "import:rates"
    assert len(job.source_of(Path(f"{long}.csv"))) <= 50
    assert job.source_of(Path(f"{long}.csv")) != job.source_of(Path(f"{long}a.csv"))
    simulated = importer(database, tmp_path, simulated=True)
    assert simulated.source_of(Path("rates.csv")) == "simulator_import:rates"


async def run_cli(*arguments: str, **environment: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "enhanced_websocket_service", "l0", "import", *arguments),
        cwd=ROOT,
        env={**os.environ, "LOG_LEVEL": "ERROR", **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_the_command(database_dsn: str, database: Database, tmp_path: Path) -> None:
    rows = sessions()
    good = export(tmp_path, told(rows, COT))
    flat = [
        close_only(replace(row, close=4000 + i % 7))
        for i, row in enumerate(market(date(2025, 5, 6), 1, 5, around_the_clock=True).values())
    ]
    thin = export(tmp_path, flat, "thin.csv")
    state = {"STATE_DIR": str(tmp_path / "state")}
    code, out, _ = await run_cli(str(good), "--dry-run", "--json", **state)
    assert code == 0
    assert json.loads(out)[0]["corrected"] == len(rows)
    code, out, _ = await run_cli(
        *(str(good), str(thin), "--json"), DATABASE_URL=database_dsn, **state
    )
    first, second = json.loads(out)
    assert code == 1
    assert first["written"] == {"new": len(rows), "changed": 0}
    assert first["conventions"][0]["convention"] == "cot"
    assert "--assume" in second["refused"]
    assert len(await spoken(database, rows)) == len(rows)
    code, _, err = await run_cli(str(tmp_path / "none.csv"), "--dry-run", **state)
    assert code == 2
    assert "does not exist" in " ".join(err.replace("│", " ").split())


DIRTY = {
    # the table of the data's own README, and what follows from it
    "dirty_1": {
        "read": 1079, "flat_rows": 952, "local_time_rows": 0, "outside_hours": 34,
        "holiday_rows": 184, "missing_slots": 148, "trading_days": 17, "colliding_slots": 0,
        "bars": 872,
    },
    "dirty_2": {
        "read": 1164, "flat_rows": 940, "local_time_rows": 119, "holiday_rows": 173,
        "missing_slots": 32, "colliding_slots": 3, "bars": 988,
    },
    "dirty_3": {"read": 1466, "local_time_rows": 1125, "sunday_rows": 15, "colliding_slots": 10},
    "dirty_5": {"read": 2683, "local_time_rows": 2683, "sunday_rows": 84, "bars": 600},
}  # fmt: skip


async def import_dirty(database: Database, tmp_path: Path, name: str) -> FileReport:
    path = next(shared("data").glob(f"{name}_*"))
    return await importer(database, tmp_path).run(path)


@pytest.mark.parametrize("name", list(DIRTY))
async def test_recorded_dirty_files(
    database: Database, connection: Any, tmp_path: Path, name: str
) -> None:
    report = await import_dirty(database, tmp_path, name)
    bars = report.bars["USDCOP"]
    told_ = {**report.found, "read": report.read, "bars": bars.height}
    assert told_ | DIRTY[name] == told_
    assert report.accepted + report.corrected + report.quarantined == report.read
    stored = {
        row["slot"]: row
        for row in await connection.fetch(
            "SELECT extract(epoch FROM datetime)::bigint AS slot, close::float8, grade FROM market_data"
        )
    }
    assert len(stored) == bars.height
    for slot in stored:
        assert slot in CALENDAR.expected_labels(CALENDAR.local_date(slot))
    truth = pl.read_parquet(shared("data/usdcop_m5_dev.parquet"))
    met = truth.with_columns(slot=pl.col("datetime").dt.epoch("s")).join(bars, on="slot")
    assert met.height == (bars.height if name in ("dirty_1", "dirty_2") else 0)
    assert met.filter((pl.col("close") - pl.col("close_right")).abs() > 1e-4).is_empty()
    whole = met.filter(pl.col("grade") == "whole")
    for price in ("open", "high", "low"):
        assert whole.filter((pl.col(price) - pl.col(f"{price}_right")).abs() > 1e-4).is_empty()


@pytest.mark.parametrize("name", ["dirty_1", "dirty_2"])
async def test_recorded_dirty_files_replace_no_vendor_bar(
    database: Database, tmp_path: Path, name: str
) -> None:
    truth = to_bars(pl.read_parquet(shared("data/usdcop_m5_dev.parquet")))
    await database.upsert_vendor_bars(truth)
    report = await import_dirty(database, tmp_path, name)
    assert set(report.grades) == {"whole"}, "only what equals a whole bar is taken"
    page = await database.bars("USDCOP", start=0, limit=100_000)
    assert [as_bar(bar) for bar in page.bars] == [as_bar(bar) for bar in truth]
    assert {bar.source for bar in page.bars} == {"twelvedata"}
