import asyncio
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pandas
import polars as pl
import pytest

from enhanced_websocket_service.errors import DataError, L0Error
from enhanced_websocket_service.l0.backup import SCHEMA, BackupSet, to_bars, to_frame
from enhanced_websocket_service.market.bar import Bar

from .fakes import CALENDAR, at, bar, session_bars

ROOT = Path(__file__).resolve().parents[3]
NOW = at("2025-06-04T18:00")
OLD = session_bars("2025-06-03")
NEW = session_bars("2025-06-03", "2025-06-04")


def backup(directory: Path) -> BackupSet:
    return BackupSet(directory, "USDCOP", CALENDAR)


async def write(directory: Path, bars: list[Bar]) -> BackupSet:
    subject = backup(directory)
    await subject.write(bars, provider="simulator", source="simulator", now=NOW)
    return subject


async def test_the_set_reads_back_as_written(tmp_path: Path) -> None:
    subject = await write(tmp_path / "made" / "here", list(reversed(NEW)))
    assert subject.parquet.name == "usdcop_m5_complete_backup.parquet"
    assert subject.metadata.name == "usdcop_m5_backup_metadata.json"
    frame, metadata = await subject.read()
    assert to_bars(frame) == NEW
    assert await subject.verify() == []
    document = json.loads(subject.metadata.read_text())
    assert document == {
        "schema_version": 1,
        "symbol": "USDCOP",
        "interval": "5min",
        "provider": "simulator",
        "source": "simulator",
        "file": "usdcop_m5_complete_backup.parquet",
        "rows": 120,
        "range_start": "2025-06-03T08:00:00-05:00",
        "range_end": "2025-06-04T12:55:00-05:00",
        "expected_slots": 120,
        "missing_slots": [],
        "completeness_percentage": 100.0,
        "sha256": hashlib.sha256(subject.parquet.read_bytes()).hexdigest(),
        "created_at": "2025-06-04T18:00:00-05:00",
    }
    assert metadata.rows == 120


async def test_the_file_is_typed_sorted_and_in_utc(tmp_path: Path) -> None:
    subject = await write(tmp_path, NEW)
    frame = pl.read_parquet(subject.parquet)
    assert frame.columns == [
        *("datetime", "symbol", "open", "high", "low", "close", "volume", "source")
    ]
    assert frame.schema["datetime"] == pl.Datetime("us", "UTC")
    assert frame.get_column("datetime").is_sorted()
    assert str(frame.item(0, "datetime")) == "2025-06-03 13:00:00+00:00"
    assert frame.schema == SCHEMA


async def test_pandas_polars_and_duckdb_read_the_same(tmp_path: Path) -> None:
    subject = await write(tmp_path, NEW)
    table = pandas.read_parquet(subject.parquet)
    assert str(table["datetime"].dt.tz) == "UTC"
    assert [int(stamp.timestamp()) for stamp in table["datetime"]] == [b.open_time for b in NEW]
    frame = pl.read_parquet(subject.parquet)
    assert pl.from_pandas(table).equals(frame)
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT epoch(datetime)::bigint, * EXCLUDE (datetime) FROM read_parquet(?)",
            [str(subject.parquet)],
        )
        assert [row[:6] + row[7:] for row in rows.fetchall()] == [
            (b.open_time, b.symbol, b.open, b.high, b.low, b.close, b.source) for b in NEW
        ]
        (compression,) = connection.execute(
            "SELECT DISTINCT compression FROM parquet_metadata(?)", [str(subject.parquet)]
        ).fetchall()
    assert compression == ("ZSTD",)


async def test_missing_slots_are_listed(tmp_path: Path) -> None:
    gone = {at("2025-06-03T08:00"), at("2025-06-04T12:55"), at("2025-06-04T09:30")}
    subject = await write(tmp_path, [one for one in NEW if one.open_time not in gone])
    _, metadata = await subject.read()
    assert metadata.missing_slots == [
        "2025-06-03T08:00:00-05:00",
        "2025-06-04T09:30:00-05:00",
        "2025-06-04T12:55:00-05:00",
    ]
    assert metadata.completeness_percentage == 97.5


async def test_no_bars_make_an_empty_typed_file(tmp_path: Path) -> None:
    frame, metadata = await (await write(tmp_path, [])).read()
    assert frame.schema == SCHEMA
    assert (metadata.rows, metadata.range_start, metadata.expected_slots) == (0, None, 0)


def flip_a_byte(subject: BackupSet) -> None:
    content = bytearray(subject.parquet.read_bytes())
    content[len(content) // 2] ^= 1
    subject.parquet.write_bytes(content)


def cut(subject: BackupSet) -> None:
    os.truncate(subject.parquet, subject.parquet.stat().st_size // 2)


def other_rows(subject: BackupSet) -> None:
    pl.read_parquet(subject.parquet).head(50).write_parquet(subject.parquet)


def shuffled_with_right_hash(subject: BackupSet) -> None:
    rewrite(subject, to_frame(NEW).reverse())


def doubled_with_right_hash(subject: BackupSet) -> None:
    rewrite(subject, to_frame([*NEW[:-1], NEW[-2]]).sort("datetime"))


def rewrite(subject: BackupSet, frame: pl.DataFrame) -> None:
    frame.write_parquet(subject.parquet)
    document = json.loads(subject.metadata.read_text())
    document["sha256"] = hashlib.sha256(subject.parquet.read_bytes()).hexdigest()
    subject.metadata.write_text(json.dumps(document))


def wrong_count(subject: BackupSet) -> None:
    edit(subject, '"rows": 120', '"rows": 121')


def wrong_range(subject: BackupSet) -> None:
    edit(subject, '"range_end": "2025-06-04T12:55', '"range_end": "2025-06-04T12:50')


def torn_metadata(subject: BackupSet) -> None:
    edit(subject, '"rows"', '"ro')


def no_field(subject: BackupSet) -> None:
    edit(subject, '"sha256"', '"md5"')


def edit(subject: BackupSet, old: str, new: str) -> None:
    text = subject.metadata.read_text()
    assert old in text
    subject.metadata.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip_a_byte, "SHA-256"),
        (cut, "SHA-256"),
        (other_rows, "SHA-256"),
        (shuffled_with_right_hash, "not in order"),
        (doubled_with_right_hash, "doubled"),
        (wrong_count, "120 rows, its metadata says 121"),
        (wrong_range, "range"),
        (torn_metadata, "cannot be used"),
        (no_field, "cannot be used"),
        (lambda subject: subject.parquet.unlink(), "There is no backup at"),
        (lambda subject: subject.metadata.unlink(), "There is no backup metadata"),
    ],
)
async def test_verification_finds(
    tmp_path: Path, damage: Callable[[BackupSet], None], said: str
) -> None:
    subject = await write(tmp_path, NEW)
    damage(subject)
    problems = await subject.verify()
    assert said in " ".join(problems)
    with pytest.raises(DataError):
        await subject.read()


async def test_an_unwritable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(L0Error, match="BACKUP_DIR: cannot write the backup set"):
        await write(tmp_path / "file", NEW)


def staged(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.suffix == ".next"]


class PowerCut(BaseException):
    """The machine stops: nothing after it runs, no clean-up either."""


@contextmanager
def stopping_at(
    step: int, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> Iterator[list[str]]:
    """Raise ``error`` instead of the ``step``-th change of the disk; yields the changes made."""
    made: list[str] = []

    def counted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if len(made) == step:
                raise error(f"at {name}")
            made.append(name)
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", counted("fsync", os.fsync))
        patch.setattr(Path, "replace", counted("replace", Path.replace))
        patch.setattr(pl.DataFrame, "write_parquet", counted("parquet", pl.DataFrame.write_parquet))
        yield made


@pytest.mark.parametrize("step", range(8))
@pytest.mark.parametrize("first", [True, False])
async def test_a_crash_leaves_the_old_set_or_the_new(
    tmp_path: Path, step: int, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not first:
        await write(tmp_path, OLD)
    with stopping_at(step, monkeypatch, PowerCut) as made:
        if step < 7:
            with pytest.raises(PowerCut):
                backup(tmp_path)._write(NEW, "simulator", "simulator", NOW)
        else:
            backup(tmp_path)._write(NEW, "simulator", "simulator", NOW)
    renames = made.count("replace")
    after = backup(tmp_path)
    if renames == 0 and first:
        assert await after.verify() == [
            f"There is no backup metadata at {after.metadata}. Run `l0 backfill`."
        ]
    else:
        frame, metadata = await after.read()
        expected = OLD if renames == 0 else NEW
        assert to_bars(frame) == expected
        assert metadata.rows == len(expected)
    # Another program that looks at the parquet file alone sees a whole one at any time.
    if renames or not first:
        assert pl.read_parquet(after.parquet).height in (len(OLD), len(NEW))
    # And the next writer is not hindered.
    await write(tmp_path, NEW)
    assert await after.verify() == []
    assert staged(tmp_path) == []


@pytest.mark.parametrize("step", range(7))
async def test_a_failing_disk_leaves_the_old_set_or_the_new_and_says_so(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(tmp_path, OLD)
    with stopping_at(step, monkeypatch, OSError), pytest.raises(L0Error):
        await write(tmp_path, NEW)
    frame, _ = await backup(tmp_path).read()
    assert to_bars(frame) in (OLD, NEW)


async def test_prices_survive_to_the_last_digit(tmp_path: Path) -> None:
    odd = [bar(OLD[0].open_time, price=3999.123457), bar(OLD[1].open_time, price=0.000001)]
    subject = await write(tmp_path, odd)
    assert to_bars((await subject.read())[0]) == odd


_KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
import polars as pl
from tests.unit.l0 import test_backup as parts

step, directory = int(sys.argv[1]), Path(sys.argv[2])
made = 0

def counted(real):
    def call(*arguments, **options):
        global made
        if made == step:
            os.kill(os.getpid(), signal.SIGKILL)
        made += 1
        return real(*arguments, **options)
    return call

os.fsync = counted(os.fsync)
Path.replace = counted(Path.replace)
pl.DataFrame.write_parquet = counted(pl.DataFrame.write_parquet)
asyncio.run(parts.write(directory, parts.NEW))
"""


async def test_kill_9_at_any_step_leaves_the_old_set_or_the_new(tmp_path: Path) -> None:
    async def killed(step: int) -> BackupSet:
        subject = await write(tmp_path / str(step), OLD)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _KILLED, str(step), str(subject.directory)), cwd=ROOT
        )
        assert (await process.wait()) == (-signal.SIGKILL if step < 7 else 0)
        return subject

    sets = []
    for step in range(8):
        subject = await killed(step)
        # Whoever looks at a file alone sees a whole one, also before anything was mended.
        assert pl.read_parquet(subject.parquet).height in (len(OLD), len(NEW))
        frame, metadata = await subject.read()
        assert await subject.verify() == []
        sets.append(frame.height)
        assert metadata.rows == frame.height
        assert to_bars(frame) == (OLD if frame.height == len(OLD) else NEW)
    assert sets[0] == len(OLD)
    assert sets[-1] == len(NEW)
    assert sets == sorted(sets)
