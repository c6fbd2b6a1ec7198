import errno
import json
import os
import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from rich.console import Console

from enhanced_websocket_service.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    L0Error,
    PartlyDone,
)
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.l0.backup import BackupSet, to_bars
from enhanced_websocket_service.l0.pipeline import L0Pipeline
from enhanced_websocket_service.l0.readiness import ReadyFlag
from enhanced_websocket_service.l0.report import render, result_dict
from enhanced_websocket_service.market.bar import Bar

from .fakes import (
    CALENDAR,
    SIMULATOR,
    FakeStore,
    FakeVendor,
    StillClock,
    absences,
    at,
    bar,
    session_bars,
)

WEEK = ("2025-06-03", "2025-06-04", "2025-06-05", "2025-06-06")
NOW = at("2025-06-06T18:00")
START, END = date(2025, 6, 3), date(2025, 6, 6)


class House:
    """An L0 pipeline on a fake vendor and store, with real files."""

    def __init__(
        self,
        directory: Path,
        vendor: FakeVendor,
        store: FakeStore | None = None,
        symbols: Sequence[str] = ("USDCOP",),
    ) -> None:
        self.vendor, self.store = vendor, store or FakeStore()
        self.clock = StillClock(NOW)
        self.flag = ReadyFlag(directory / "signals", self.clock)
        self.failures = Failures(self.clock)
        self.backups = directory / "backups"
        self.set = BackupSet(self.backups, "USDCOP", CALENDAR)
        self.pipeline = L0Pipeline(
            rest=vendor,
            database=self.store,
            calendars=dict.fromkeys(symbols, CALENDAR),
            clock=self.clock,
            provider=SIMULATOR,
            backup_dir=self.backups,
            flag=self.flag,
            failures=self.failures,
            window_days=4,
        )


async def test_backfill_writes_database_set_and_flag(tmp_path: Path) -> None:
    house = House(tmp_path, FakeVendor(session_bars(*WEEK)))
    told: list[tuple[str, int, int]] = []
    (result,) = await house.pipeline.backfill(START, END, lambda *what: told.append(what))
    assert told[-1] == ("USDCOP", 4, 4)
    assert result_dict(result) == {
        "symbol": "USDCOP",
        "plan": result.plan.as_dict(),
        "start": "2025-06-03",
        "end": "2025-06-06",
        "trading_days": 4,
        "days_fetched": 4,
        "calls": 1,
        "bars_written": 240,
        "dropped_outside_session": 0,
        "expected_slots": 240,
        "missing_slots": [],
    }
    assert (await house.set.read())[1].rows == 240
    state = house.flag.read()
    assert state.ready
    assert state.timestamp == "2025-06-06T18:00:00-05:00"
    assert state.details["source"] == "simulator"
    assert state.details["symbols"]["USDCOP"]["rows"] == 240
    assessment = await house.pipeline.assess("USDCOP")
    assert assessment.ok


async def test_the_flag_is_down_while_a_command_runs(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Looking(FakeVendor):
        async def time_series(self, symbol: str, **question: Any) -> list[Bar]:
            seen.append(house.flag.path.exists())
            return await super().time_series(symbol, **question)

    house = House(tmp_path, Looking(session_bars(*WEEK)))
    house.flag.write()
    await house.pipeline.backfill(START, END)
    assert seen == [False]
    assert house.flag.read().ready


async def test_a_failed_command_leaves_the_flag_down_and_says_what_is_missing(
    tmp_path: Path,
) -> None:
    house = House(tmp_path, FakeVendor(session_bars(*WEEK), fail_at=1))
    house.flag.write()
    with pytest.raises(L0Error) as failure:
        await house.pipeline.backfill(START, END)
    assert not house.flag.path.exists()
    assert "240 slots are missing" in str(failure.value)
    assert "out of order" in str(failure.value)
    assert str(failure.value).endswith("The ready flag stays withdrawn.")


async def test_a_set_that_cannot_be_written_leaves_the_flag_down_and_the_bars_there(
    tmp_path: Path,
) -> None:
    house = House(tmp_path, FakeVendor(session_bars(*WEEK)[7:]))
    house.flag.write()
    house.backups.write_text("a file where the directory should be")
    with pytest.raises(L0Error, match="BACKUP_DIR: cannot write") as failure:
        await house.pipeline.backfill(START, END)
    assert str(failure.value).endswith("The ready flag stays withdrawn.")
    assert not house.flag.path.exists()
    assert len(house.store.rows) == 233


FAULTS = [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ESTALE, errno.EIO]


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_repair_stores_bars_whatever_the_file_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    """And asks the vendor once, though it cannot put on file what he does not have."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(fault, os.strerror(fault), "a file of that folder")

    house = House(tmp_path, FakeVendor(session_bars(*WEEK)[7:]))
    with monkeypatch.context() as broken:
        broken.setattr(Path, "mkdir", refuse)
        await house.pipeline.check_files()
        (told,) = house.failures.present
        assert told.part == "backup files"
        assert os.strerror(fault) in told.reason
        await house.pipeline.repair("USDCOP")
        assert len(house.store.rows) == 233
        calls = len(house.vendor.calls)
        await house.pipeline.repair("USDCOP")
        assert len(house.vendor.calls) == calls
        assert {one.part for one in house.failures.present} == {
            "backup files",
            "vendor gaps file of USDCOP",
        }
        # The same sentence wherever it was seen: one that changes would be logged each time.
        assert told.reason in [one.reason for one in house.failures.present]
    await house.pipeline.check_files()
    assert house.failures.present == ()
    assert (await house.set.read())[1].rows == 233
    assert len(absences(house.backups).load()) == 7


async def test_what_the_folder_lacks_is_seen_again_when_it_is_gone_later(tmp_path: Path) -> None:
    house = House(tmp_path, FakeVendor(session_bars(*WEEK)))
    await house.pipeline.repair("USDCOP")
    shutil.rmtree(house.backups)
    house.backups.write_text("a file in its place")
    await house.pipeline.check_files()
    assert [one.part for one in house.failures.present] == ["backup files"]
    house.backups.unlink()
    await house.pipeline.check_files()
    assert house.failures.present == ()
    assert (await house.set.read())[1].rows == 240


def spoil(backups: Path, how: str) -> None:
    """Make the set in ``backups`` one that is owed."""
    parquet = backups / "usdcop_m5_complete_backup.parquet"
    if how == "folder closed":
        shutil.rmtree(backups)
        backups.write_text("a file in its place")
    elif how == "no parquet":
        parquet.unlink()
    elif how == "other parquet":
        parquet.write_bytes(b"PAR1" + parquet.read_bytes()[4:-1])


@pytest.mark.parametrize(
    "how",
    ["folder closed", "no parquet", "other parquet", "bar added", "bar corrected"],
)
async def test_a_set_that_is_owed_is_written_by_the_next_process_too(
    tmp_path: Path, how: str
) -> None:
    before = House(tmp_path, FakeVendor(session_bars(*WEEK)))
    await before.pipeline.repair("USDCOP")
    spoil(before.backups, how)
    if how == "bar added":
        await before.store.upsert_vendor_bars(session_bars("2025-06-02"))
    elif how == "bar corrected":
        (one,) = session_bars("2025-06-03")[:1]
        await before.store.upsert_vendor_bars([bar(one.open_time, price=3900.0)])

    house = House(tmp_path, before.vendor, before.store)  # it was restarted
    await house.pipeline.check_files()
    if how == "folder closed":
        assert [one.part for one in house.failures.present] == ["backup files"]
        house.backups.unlink()
        await house.pipeline.check_files()
    assert house.failures.present == ()
    frame, metadata = await house.set.read()
    assert metadata.rows == len(house.store.rows)
    assert to_bars(frame) == [one for _, one in sorted(house.store.rows.items())]
    assert len(house.vendor.calls) == len(before.vendor.calls), "nothing is asked for again"


async def test_a_set_that_has_what_the_database_lacks_is_left_alone(tmp_path: Path) -> None:
    """It may be the only copy of a history whose database is a new one."""
    before = House(tmp_path, FakeVendor(session_bars(*WEEK)))
    await before.pipeline.repair("USDCOP")
    written = before.set.parquet.read_bytes()
    for store in (FakeStore(), FakeStore(session_bars("2025-06-05"))):
        house = House(tmp_path, before.vendor, store)
        await house.pipeline.check_files()
        assert house.failures.present == ()
    assert before.set.parquet.read_bytes() == written


async def test_no_set_is_owed_of_a_database_that_is_empty_or_away(tmp_path: Path) -> None:
    class Away(FakeStore):
        async def vendor_bars(self, symbol: str, start: int, end: int) -> list[Bar]:
            raise DatabaseUnavailable("PostgreSQL does not answer.")

    for store in (FakeStore(), Away(session_bars(*WEEK))):
        house = House(tmp_path, FakeVendor([]), store)
        await house.pipeline.check_files()
        assert house.failures.present == ()
        assert not house.set.exists


@pytest.mark.parametrize("mended", ["read", "removed"])
async def test_a_gaps_file_that_could_not_be_read_is_well_once_it_can_be(
    tmp_path: Path, mended: str
) -> None:
    """Also when nothing is repaired for a long time: nobody else reads it."""
    house = House(tmp_path, FakeVendor(session_bars(*WEEK)))
    path = absences(house.backups).path
    path.mkdir(parents=True)
    await house.pipeline.repair("USDCOP")
    assert [one.part for one in house.failures.present] == ["vendor gaps file of USDCOP"]
    await house.pipeline.check_files()
    assert [one.part for one in house.failures.present] == ["vendor gaps file of USDCOP"]
    path.rmdir()
    if mended == "read":
        path.write_text("{}")
    await house.pipeline.check_files()
    assert house.failures.present == ()


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_flag_that_cannot_be_withdrawn_or_written_keeps_no_bar_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    def refuse(*_: Any) -> bool:
        raise L0Error(f"READY_SIGNALS_DIR: {os.strerror(fault)}.")

    house = House(tmp_path, FakeVendor(session_bars(*WEEK)))
    for name in ("withdraw", "write"):
        with monkeypatch.context() as broken:
            broken.setattr(ReadyFlag, name, refuse)
            with pytest.raises(L0Error, match=f"READY_SIGNALS_DIR: {os.strerror(fault)}"):
                await house.pipeline.backfill(START, END)
        assert len(house.store.rows) == 240
        assert (await house.set.read())[1].rows == 240
        assert not house.flag.path.exists()
    await house.pipeline.backfill(START, END)
    assert house.flag.read().ready
    assert len(house.vendor.calls) == 1


async def test_no_history_at_all_is_a_failure(tmp_path: Path) -> None:
    house = House(tmp_path, FakeVendor([]))
    with pytest.raises(L0Error, match="there is no history"):
        await house.pipeline.backfill(START, END)
    assert not house.flag.path.exists()


async def test_bad_usage_leaves_the_flag_alone(tmp_path: Path) -> None:
    house = House(tmp_path, FakeVendor([]))
    house.flag.write()
    with pytest.raises(ConfigurationError):
        await house.pipeline.backfill(END, START)
    assert house.flag.read().ready


async def test_incremental_catches_up_and_renews_the_flag(tmp_path: Path) -> None:
    house = House(tmp_path, FakeVendor(session_bars(*WEEK)), FakeStore(session_bars(*WEEK[:3])))
    (result,) = await house.pipeline.incremental()
    assert (result.calls, result.bars_written) == (1, 60)
    assert house.flag.read().details["command"] == "incremental"


@pytest.mark.parametrize("flagged", [True, False])
async def test_repair_leaves_the_flag_alone(tmp_path: Path, flagged: bool) -> None:
    house = House(tmp_path, FakeVendor(session_bars(*WEEK)), FakeStore(session_bars(*WEEK[:3])))
    if flagged:
        house.flag.write({"writer": "somebody else"})
    assert not (await house.pipeline.assess("USDCOP")).ok
    await house.pipeline.repair("USDCOP")
    assert (await house.pipeline.assess("USDCOP")).ok
    assert house.flag.read().exists == flagged
    assert (await house.set.read())[1].rows == 240
    assert house.vendor.calls[0][2] == "repair"
    written = house.set.metadata.stat().st_mtime_ns
    await house.pipeline.repair("USDCOP")  # nothing came: nothing is written
    assert house.set.metadata.stat().st_mtime_ns == written


async def test_only_bars_of_the_configured_provider_count(tmp_path: Path) -> None:
    real = [bar(one.open_time, "twelvedata") for one in session_bars(*WEEK)]
    house = House(tmp_path, FakeVendor(session_bars(*WEEK[:2])), FakeStore(real))
    assessment = await house.pipeline.assess("USDCOP")
    assert assessment.present == 0
    assert assessment.data_freshness_hours is None
    await house.pipeline.backfill(START, END)
    assert (await house.set.read())[1].rows == 120


async def test_status_before_and_after(tmp_path: Path) -> None:
    house = House(tmp_path, FakeVendor(session_bars(*WEEK)))
    before = await house.pipeline.status()
    assert not before.ok
    assert len(before.reasons) == 4  # flag, freshness, completeness, backup
    await house.pipeline.backfill(START, END)
    after = await house.pipeline.status()
    assert after.ok
    assert after.reasons == []
    document = json.loads(json.dumps(after.as_dict()))
    assert document["ready_signal_exists"] is True
    assert document["symbols"][0]["data_freshness_hours"] == 5.0
    assert document["symbols"][0]["completeness_percentage"] == 100.0
    assert document["symbols"][0]["backup"]["rows"] == 240
    assert text(after).splitlines()[2].split() == ["Ready", "flag", "ready"]


async def test_status_names_holes_and_damage(tmp_path: Path) -> None:
    house = House(tmp_path, FakeVendor(session_bars(*WEEK)))
    await house.pipeline.backfill(START, END)
    for minute in range(0, 40, 5):
        del house.store.rows[at(f"2025-06-05T10:{minute:02}"), "simulator"]
    house.set.parquet.write_bytes(b"rubbish")
    house.flag.path.write_text("rubbish")
    report = await house.pipeline.status()
    shown = " ".join(text(report).split())
    assert "2025-06-05T10:00:00-05:00" in shown
    assert "and 3 more" in shown
    assert "not valid JSON" in shown
    assert "SHA-256" in shown
    assert not report.ok


async def test_a_database_that_is_gone_is_an_l0_error_of_the_command(tmp_path: Path) -> None:
    class Gone(FakeStore):
        async def slots_present(self, symbol: str, start: int, end: int) -> dict[int, list[str]]:
            raise DatabaseUnavailable("PostgreSQL cannot be reached.")

    house = House(tmp_path, FakeVendor([]), Gone())
    with pytest.raises(L0Error, match="PostgreSQL cannot be reached"):
        await house.pipeline.backfill(START, END)
    with pytest.raises(DatabaseUnavailable):
        await house.pipeline.assess("USDCOP")


def text(report: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(render(report))
    return capture.get()


@pytest.mark.parametrize("symbols", [("BTCUSD", "USDCOP"), ("USDCOP", "BTCUSD")])
async def test_a_symbol_that_the_plan_excludes_stops_no_other(
    tmp_path: Path, symbols: Sequence[str]
) -> None:
    """C6: the order of SYMBOLS decides nothing."""
    house = House(tmp_path, FakeVendor(session_bars(*WEEK), excluded="BTCUSD"), symbols=symbols)
    with pytest.raises(L0Error):
        await house.pipeline.repair("BTCUSD")
    with pytest.raises(PartlyDone, match="BTCUSD is available starting with the Grow plan") as told:
        await house.pipeline.backfill(START, END)
    assert "Done, and named in the ready flag: USDCOP." in str(told.value)
    (result,) = told.value.results
    assert result_dict(result)["bars_written"] == 240
    flag = house.flag.read()
    assert flag.ready
    assert list(flag.details["symbols"]) == ["USDCOP"]
    assert list(flag.details["failed"]) == ["BTCUSD"]
    assert (await house.pipeline.assess("USDCOP")).ok


async def test_when_no_symbol_is_done_the_flag_stays_withdrawn(tmp_path: Path) -> None:
    house = House(tmp_path, FakeVendor(session_bars(*WEEK), excluded="BTCUSD"), symbols=("BTCUSD",))
    house.flag.write({})
    with pytest.raises(L0Error, match="The ready flag stays withdrawn") as told:
        await house.pipeline.backfill(START, END)
    assert not isinstance(told.value, PartlyDone)
    assert not house.flag.path.exists()


async def test_prices_that_the_tables_cannot_hold_are_told(tmp_path: Path) -> None:
    """C12: all bars are there, each of them rounded away."""
    small = [replace(one, close=0.000245) for one in session_bars(*WEEK)]
    house = House(tmp_path, FakeVendor([]), FakeStore(small))
    found = await house.pipeline.assess("USDCOP")
    assert not found.ok
    assert "does not fit DECIMAL(12,6)" in found.reasons[0]
