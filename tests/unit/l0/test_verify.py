"""Each fault that ``l0 verify`` must find, on a real file; and what it must not complain about."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from rich.console import Console

from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.l0.absences import Absences
from enhanced_websocket_service.l0.backup import BackupSet, to_frame
from enhanced_websocket_service.l0.verify import Verification, VerifyReport, render_verification
from enhanced_websocket_service.market.bar import Bar

from .fakes import CALENDAR, FakeStore, absences, at, bar, session_bars

NOW = at("2025-06-09T18:00")
BARS = session_bars("2025-06-03", "2025-06-04", "2025-06-05", "2025-06-06")
TEN = at("2025-06-04T10:00")


@dataclass
class House:
    directory: Path
    store: FakeStore
    backup: BackupSet
    absences: Absences

    async def write(self, bars: list[Bar], now: float = NOW) -> None:
        await self.backup.write(bars, provider="simulator", source="simulator", now=now)

    async def verify(
        self, start: date | None = None, end: date | None = None, now: float = NOW
    ) -> VerifyReport:
        subject = Verification(self.backup, self.store, CALENDAR, self.absences, source="simulator")
        return await subject.run(start, end, now)

    def kinds(self, report: VerifyReport) -> list[str]:
        return [one.kind for one in report.differences]


@pytest.fixture
async def house(tmp_path: Path) -> House:
    made = House(
        tmp_path,
        FakeStore(BARS),
        BackupSet(tmp_path, "USDCOP", CALENDAR),
        absences(tmp_path),
    )
    await made.write(BARS)
    return made


async def test_a_set_that_is_right_is_silent(house: House) -> None:
    report = await house.verify()
    assert report.as_dict() == {
        "symbol": "USDCOP",
        "ok": True,
        "start": "2025-06-03",
        "end": "2025-06-06",
        "rows_in_file": 240,
        "rows_in_database": 240,
        "expected_slots": 240,
        "known_absent": [],
        "differences": [],
        "notes": [],
    }


@pytest.mark.parametrize("place", [0.02, 0.3, 0.5, 0.8, 0.999])
async def test_a_flipped_byte(house: House, place: float) -> None:
    content = bytearray(house.backup.parquet.read_bytes())
    content[int(len(content) * place)] ^= 0x10
    house.backup.parquet.write_bytes(content)
    report = await house.verify()
    assert house.kinds(report)[0] == "backup_set"
    first = report.differences[0]
    assert "SHA-256" in first.what
    assert str(house.backup.parquet) == first.where
    assert "l0 incremental" in first.remedy


def rewrite(house: House, frame: pl.DataFrame, **changes: Any) -> None:
    """Another file, and metadata that agrees with it."""
    frame.write_parquet(house.backup.parquet, row_group_size=60)
    document = json.loads(house.backup.metadata.read_text())
    document["sha256"] = hashlib.sha256(house.backup.parquet.read_bytes()).hexdigest()
    house.backup.metadata.write_text(json.dumps({**document, **changes}))


@pytest.mark.parametrize("hidden", [True, False])
async def test_a_missing_row_group(house: House, hidden: bool) -> None:
    groups = [to_frame(BARS[i : i + 60]) for i in range(0, 240, 60)]
    without = pl.concat([groups[0], groups[2], groups[3]])
    if hidden:  # with a hash and a count that agree: only database and calendar can tell
        rewrite(house, without, rows=180)
    else:
        without.write_parquet(house.backup.parquet)
    report = await house.verify()
    lacking = next(one for one in report.differences if one.kind == "file_lacks_rows")
    assert (lacking.where, len(lacking.slots)) == ("2025-06-04", 60)
    assert "60 rows (08:00-12:55) of the database" in lacking.what
    assert ("backup_set" in house.kinds(report)) is not hidden
    assert "metadata" in house.kinds(report)


async def test_a_stale_metadata_file(house: House) -> None:
    old = house.backup.metadata.read_bytes()
    more = [*BARS, *session_bars("2025-06-09")]
    house.store.rows.update({(one.open_time, one.source): one for one in more})
    await house.write(more)
    house.backup.metadata.write_bytes(old)
    report = await house.verify()
    assert "SHA-256" in report.differences[0].what
    assert "60 bars of the database lie outside" not in " ".join(report.notes)  # the file has them


@pytest.mark.parametrize("field", ["missing_slots", "expected_slots", "range_end", "rows"])
async def test_metadata_that_says_something_else(house: House, field: str) -> None:
    wrong: dict[str, object] = {
        "missing_slots": ["2025-06-04T10:00:00-05:00"],
        "expected_slots": 241,
        "range_end": "2025-06-06T12:50:00-05:00",
        "rows": 239,
    }
    document = json.loads(house.backup.metadata.read_text())
    house.backup.metadata.write_text(json.dumps({**document, field: wrong[field]}))
    assert {"metadata", "backup_set"} & set(house.kinds(await house.verify()))


async def test_a_row_changed_in_the_database(house: House) -> None:
    old = house.store.rows[TEN, "simulator"]
    new = msgspec.structs.replace(old, close=old.close + 0.000001)
    house.store.rows[TEN, "simulator"] = new
    (found,) = (await house.verify()).differences
    assert (found.kind, found.where, found.slots) == ("values_differ", "2025-06-04", (TEN,))
    assert f"At 10:00: close {old.close} in the file and {new.close} in the database." == found.what
    assert "--start 2025-06-04 --end 2025-06-04 --refetch" in found.remedy


async def test_a_row_deleted_from_the_database(house: House) -> None:
    del house.store.rows[TEN, "simulator"]
    (found,) = (await house.verify()).differences
    assert (found.kind, found.slots) == ("database_lacks_rows", (TEN,))


async def test_a_row_added_to_the_database(house: House) -> None:
    gone = [one for one in BARS if one.open_time != TEN]
    await house.write(gone)
    (found,) = (await house.verify()).differences
    assert (found.kind, found.slots) == ("file_lacks_rows", (TEN,))


async def test_a_slot_missing_on_a_trading_day(house: House) -> None:
    del house.store.rows[TEN, "simulator"]
    await house.write([one for one in BARS if one.open_time != TEN])
    (found,) = (await house.verify()).differences
    assert (found.kind, found.where, found.slots) == ("slot_missing", "2025-06-04", (TEN,))
    assert "10:00" in found.what
    assert "l0 backfill --start 2025-06-04" in found.remedy

    house.absences.save([TEN])  # asked for, and the vendor does not have it
    report = await house.verify()
    assert report.ok
    assert report.known_absent == (TEN,)


async def test_a_thin_session_is_silent(house: House) -> None:
    """A US holiday: open in Colombia, few bars, most of them flat; the vendor has no more."""
    juneteenth = session_bars("2025-06-19")
    thin = [
        msgspec.structs.replace(one, open=4000.0, high=4000.0, low=4000.0, close=4000.0)
        for one in juneteenth[::7]
    ]
    absent = [
        one.open_time for one in juneteenth if one.open_time not in {b.open_time for b in thin}
    ]
    after = session_bars("2025-06-20")
    house.store.rows = {(one.open_time, one.source): one for one in [*thin, *after]}
    house.absences.save(absent)
    now = at("2025-06-21T10:00")
    await house.write([*thin, *after], now)
    report = await house.verify(now=now)
    assert report.ok
    assert report.known_absent == tuple(absent)


async def test_a_row_on_a_holiday(house: House) -> None:
    sunday = bar(at("2025-06-08T10:00"))
    await house.write([*BARS, sunday])
    house.store.rows[sunday.open_time, "simulator"] = sunday
    (found,) = (await house.verify()).differences
    assert (found.kind, found.where) == ("outside_session", "2025-06-08")


async def test_a_morning_that_went_on_is_no_difference(house: House) -> None:
    """The set was written at nine; by now more is due, and the service has stored some of it."""
    morning = [one for one in session_bars("2025-06-09") if one.open_time < at("2025-06-09T08:55")]
    await house.write([*BARS, *morning], at("2025-06-09T09:00"))
    later = [one for one in session_bars("2025-06-09") if one.open_time < at("2025-06-09T10:00")]
    house.store.rows.update({(one.open_time, one.source): one for one in later})
    report = await house.verify(now=at("2025-06-09T10:05"))
    assert report.ok
    assert report.notes[0].startswith("13 bars of the database lie outside the range of the set")
    # Asked about today expressly, what is due now counts.
    asked = await house.verify(end=date(2025, 6, 9), now=at("2025-06-09T13:10"))
    assert "slot_missing" in house.kinds(asked)


async def test_a_range_leaves_the_rest_alone(house: House) -> None:
    del house.store.rows[TEN, "simulator"]
    assert (await house.verify(date(2025, 6, 5))).ok
    assert (await house.verify(end=date(2025, 6, 3))).ok
    report = await house.verify(date(2025, 6, 4), date(2025, 6, 4))
    assert (report.expected, report.rows_in_file, report.rows_in_database) == (60, 60, 59)
    with pytest.raises(ConfigurationError):
        await house.verify(date(2025, 6, 5), date(2025, 6, 4))


def no_metadata(house: House) -> None:
    house.backup.metadata.unlink()


def no_file(house: House) -> None:
    house.backup.parquet.unlink()


def other_columns(house: House) -> None:
    rewrite(house, to_frame(BARS).drop("volume"))


@pytest.mark.parametrize("damage", [no_metadata, no_file, other_columns])
async def test_a_set_that_is_not_there_is_named_and_the_rest_still_checked(
    house: House, damage: Callable[[House], None]
) -> None:
    damage(house)
    del house.store.rows[TEN, "simulator"]
    report = await house.verify()
    assert house.kinds(report) == ["backup_set", "slot_missing"]
    assert report.rows_in_file is None


async def test_nothing_at_all(tmp_path: Path) -> None:
    empty = House(
        tmp_path,
        FakeStore(),
        BackupSet(tmp_path, "USDCOP", CALENDAR),
        absences(tmp_path),
    )
    report = await empty.verify()
    assert empty.kinds(report) == ["backup_set"]
    assert (report.start, report.rows_in_file) == (None, None)
    assert "no history" in shown(report)


async def test_a_set_of_another_world(house: House) -> None:
    document = json.loads(house.backup.metadata.read_text())
    house.backup.metadata.write_text(json.dumps({**document, "source": "twelvedata"}))
    assert "other_source" in house.kinds(await house.verify())


def shown(report: VerifyReport) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(render_verification(report))
    return capture.get()


async def test_the_terminal_shows_where_what_and_what_to_do(house: House) -> None:
    assert "No difference." in shown(await house.verify())
    for one in BARS[::2]:
        del house.store.rows[one.open_time, "simulator"]
    text = shown(await house.verify())
    assert "[2025-06-03] 30 rows (08:00, 08:10," in text
    assert "l0 backfill --start 2025-06-03 --end 2025-06-03" in text
    assert "4 differences." in text
