import asyncio
import errno
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from enhanced_websocket_service.errors import JournalError
from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.storage import journal as journal_module
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.journal_reader import (
    JournalReader,
    iterate,
    records_since,
    recover,
    segment_numbers,
    segment_path,
)
from enhanced_websocket_service.storage.segment import HEADER_SIZE, START, Position
from enhanced_websocket_service.watermarks import Hop, Watermarks
from tests.storage_samples import OPEN, bar, rejected, tick, ticks, update


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with_small_segments = Journal.open(tmp_path / "journal", segment_bytes=2000)
    yield with_small_segments
    with_small_segments.close()


def read_all(journal: Journal, position: Position = START) -> list[object]:
    reader = journal.reader(position)
    records: list[object] = []
    while batch := reader.read(7):
        records += batch
    assert reader.position == journal.end
    assert reader.damages == 0
    reader.close()
    return records


def test_what_is_appended_is_read_in_order_across_segments(journal: Journal) -> None:
    records = [
        *ticks(100),
        rejected(),
        update(bar(), at=OPEN + 301.0),
        EpochStarted("X", 1, None, None),
    ]
    for i in range(0, len(records), 5):
        journal.append(records[i : i + 5])
    assert read_all(journal) == records
    assert len(segment_numbers(journal.directory)) > 3
    assert journal.end.record == len(records)


def test_what_was_found_on_the_disk_is_not_owed_to_it(tmp_path: Path) -> None:
    """A standby appends nothing, so that no fsync would ever say so."""
    before = Journal.open(tmp_path)
    before.append(ticks(3))
    before.close()
    marks = Watermarks(["USDCOP"], time.monotonic)
    Journal.open(tmp_path, watermarks=marks).close()
    assert [(one.hop, one.count) for one in marks.undone()] == [(Hop.COMMITTED, 3)]


def test_a_segment_ends_with_its_time_but_never_empty(tmp_path: Path) -> None:
    """Only whole segments are deleted: in a quiet market one would otherwise grow for days."""
    journal = Journal.open(tmp_path, segment_s=0.0)
    numbers = []
    for i in range(1, 4):
        journal.append([tick(i)])
        numbers.append(journal.end.segment)
    assert numbers == [1, 2, 3]
    assert read_all(journal) == [tick(i) for i in (1, 2, 3)]
    journal.close()


def test_reading_goes_on_where_it_stopped(journal: Journal) -> None:
    journal.append(ticks(40))
    reader = journal.reader()
    first = reader.read(15)
    assert first + read_all(journal, reader.position) == ticks(40)
    reader.close()


def test_a_batch_is_one_write(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []
    real_write = os.write
    monkeypatch.setattr(
        os, "write", lambda fd, data: writes.append(len(data)) or real_write(fd, data)
    )
    journal.append(ticks(10))
    assert len(writes) == 1


def test_nothing_appended_is_nothing_written(journal: Journal) -> None:
    assert journal.append([]) == journal.end


@pytest.mark.parametrize("kept", [0, 1, 50, 200])
def test_a_short_write_leaves_nothing_behind(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    journal.append(ticks(3))
    end = journal.end
    real_write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda fd, data: real_write(fd, data[:kept]))
        with pytest.raises(JournalError, match="is the disk full"):
            journal.append(ticks(3, first=4))
    assert journal.end == end
    assert journal.failure is not None
    assert segment_path(journal.directory, end.segment).stat().st_size == end.offset
    journal.append(ticks(2, first=4))
    assert journal.failure is None
    assert read_all(journal) == ticks(5)


def test_a_failed_write_that_cannot_be_cut_off_never_counts(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole records of the failed batch stand in the file; the next segment declares them void."""
    journal.append(ticks(3))
    real_write = os.write

    def cannot(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda fd, data: real_write(fd, data[:-1]))
        patched.setattr(os, "ftruncate", cannot)
        with pytest.raises(JournalError):
            journal.append(ticks(3, first=4))
    assert read_all(journal) == ticks(3)
    journal.append(ticks(2, first=10))
    assert read_all(journal) == [*ticks(3), *ticks(2, first=10)]
    assert list(iterate(journal.directory)) == [*ticks(3), *ticks(2, first=10)]


def test_failures_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[JournalError] = []
    journal = Journal.open(tmp_path, on_failure=told.append)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(JournalError, match="No space left on device") as caught:
            journal.append(ticks(1))
    assert told == [caught.value]
    journal.close()


def test_a_full_disk_at_the_start_of_a_segment_is_survived(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    while journal.end.offset < 2000:
        journal.append(ticks(5, first=journal.end.record + 1))
    count = journal.end.record
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda fd, data: 0)
        for _ in range(3):
            with pytest.raises(JournalError):
                journal.append(ticks(1, first=count + 1))
    journal.append(ticks(1, first=count + 1))
    assert read_all(journal) == ticks(count + 1)


async def test_after_a_failed_fsync_a_new_segment_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[JournalError] = []
    journal = Journal.open(tmp_path, on_failure=told.append)
    journal.append(ticks(3))
    before = journal.end.segment

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(journal_module.os, "fsync", broken)
        assert await journal.sync() is False
    assert journal.end.segment == before + 1
    assert "could not be fsynced" in str(journal.failure)
    assert told == [journal.failure]
    journal.append(ticks(2, first=4))
    assert "could not be fsynced" in str(journal.failure), "a write is no proof of an fsync"
    assert await journal.sync() is True
    assert journal.failure is None
    assert read_all(journal) == ticks(5)
    journal.close()


async def test_a_disk_that_stays_broken_is_tried_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each failed fsync begins a segment and is an error in the log."""
    pauses: list[float] = []
    enough = asyncio.Event()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 12:
            enough.set()
            await asyncio.Event().wait()

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    journal = Journal.open(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(journal_module.asyncio, "sleep", sleep)
        patched.setattr(journal_module.os, "fsync", broken)
        task = asyncio.create_task(journal.run())
        await enough.wait()
        task.cancel()
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.05, 5.0)
    journal.close()


async def test_too_many_open_files_are_a_failure_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[JournalError] = []
    journal = Journal.open(tmp_path, segment_bytes=1, on_failure=told.append)
    for i in range(1, 4):
        journal.append([tick(i)])  # sealed segments wait for their fsync

    def none_left(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(journal_module.os, "dup", none_left)
        assert await journal.sync() is False
    assert "Too many open files" in str(journal.failure)
    assert told == [journal.failure]
    end = journal.end
    assert await journal.sync() is True
    assert (journal.failure, journal.end) == (None, end)
    journal.append([tick(4)])
    assert read_all(journal) == [tick(i) for i in range(1, 5)]
    journal.close()


async def test_a_segment_that_is_deleted_under_way_is_told_and_replaced(tmp_path: Path) -> None:
    """Somebody makes room on the disk: what is written to that file from here on is nowhere."""
    journal = Journal.open(tmp_path)
    journal.append(ticks(3))
    segment_path(tmp_path, journal.end.segment).unlink()
    assert await journal.sync() is False
    assert "was deleted" in str(journal.failure)
    journal.append(ticks(2, first=4))
    assert await journal.sync() is True
    assert journal.failure is None
    assert list(iterate(tmp_path)) == ticks(2, first=4)
    journal.close()


def test_reading_a_deleted_segment_fails_instead_of_waiting_for_it(journal: Journal) -> None:
    journal.append([rejected(), tick(1)])
    segment_path(journal.directory, journal.end.segment).unlink()
    with pytest.raises(JournalError, match="was deleted"):
        journal.reader().read()


async def test_run_fsyncs_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = asyncio.Event()
    loop = asyncio.get_running_loop()
    calls = []
    real_fsync = os.fsync

    def fsync(fd: int) -> None:
        real_fsync(fd)
        calls.append(fd)
        loop.call_soon_threadsafe(synced.set)

    journal = Journal.open(tmp_path, fsync_ms=20)
    await journal.sync()
    monkeypatch.setattr(journal_module.os, "fsync", fsync)
    task = asyncio.create_task(journal.run())
    for i in range(1, 21):
        journal.append([tick(i)])
        await asyncio.sleep(0)
    await synced.wait()
    task.cancel()
    assert len(calls) == 1
    journal.close()


async def test_waiting_ends_with_the_next_append(journal: Journal) -> None:
    journal.append(ticks(1))
    waiter = asyncio.create_task(journal.wait_past(journal.end))
    await asyncio.sleep(0)
    assert not waiter.done()
    journal.append(ticks(1, first=2))
    await asyncio.wait_for(waiter, 40)
    await journal.wait_past(START)


def test_one_owner(journal: Journal) -> None:
    with pytest.raises(JournalError, match=f"belongs to a running process \\(pid {os.getpid()}\\)"):
        Journal.open(journal.directory)


def test_closing_lets_go(journal: Journal) -> None:
    journal.append(ticks(2))
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="is closed"):
        journal.append(ticks(1))
    again = Journal.open(journal.directory)
    assert again.journal_id == journal.journal_id
    again.append(ticks(1, first=3))
    assert read_all(again) == ticks(3)
    again.close()


def test_a_torn_tail_is_cut_off_the_file(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    end = journal.append(ticks(3))
    journal.close()
    path = segment_path(tmp_path, end.segment)
    with path.open("ab") as file:
        file.write(b"\xec\x00\x00\x50 torn")
    again = Journal.open(tmp_path)
    assert path.stat().st_size == end.offset
    assert again.damage == [], "a torn tail is what a kill leaves; it is no damage"
    again.close()


def test_segment_numbers_are_never_used_again(tmp_path: Path) -> None:
    ends = []
    for _ in range(4):
        journal = Journal.open(tmp_path)
        ends.append(journal.end)
        journal.close()
    assert [end.segment for end in ends] == [1, 2, 3, 4]
    assert segment_numbers(tmp_path) == [4], "segments without a record do not pile up"


def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="file/journal is unusable"):
        Journal.open(tmp_path / "file" / "journal")


def test_two_journals_in_one_directory_are_not_touched(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    journal.append(ticks(3))
    journal.close()
    (tmp_path / "journal_id").write_text(str(uuid.uuid4()))
    before = segment_path(tmp_path, 1).read_bytes()
    with pytest.raises(JournalError, match="two journals were mixed"):
        Journal.open(tmp_path)
    assert segment_path(tmp_path, 1).read_bytes() == before


def test_a_lost_identity_is_found_in_the_segments(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    journal.append(ticks(3))
    journal.close()
    (tmp_path / "journal_id").unlink()
    again = Journal.open(tmp_path)
    assert again.journal_id == journal.journal_id
    assert read_all(again) == ticks(3)
    again.close()


def test_pruning_stays_behind_the_checkpoint_and_keeps_the_young(journal: Journal) -> None:
    for i in range(1, 101, 5):
        journal.append(ticks(5, first=i))
    numbers = segment_numbers(journal.directory)
    middle = Position(numbers[len(numbers) // 2], HEADER_SIZE, 0)
    assert journal.prune(middle, keep_s=3600, keep_bytes=1 << 30) == 0
    assert journal.prune(START, keep_s=-1, keep_bytes=0) == 0
    for number in numbers[:2]:
        os.utime(segment_path(journal.directory, number), (0, 0))
    assert journal.prune(middle, keep_s=3600, keep_bytes=1 << 30) == 2
    journal.prune(middle, keep_s=3600, keep_bytes=0)
    assert segment_numbers(journal.directory) == [n for n in numbers if n >= middle.segment]
    journal.prune(journal.end, keep_s=-1, keep_bytes=0)
    assert segment_numbers(journal.directory) == [journal.end.segment]


def test_bytes_behind_counts_what_is_left_to_read(journal: Journal) -> None:
    journal.append(ticks(2))
    position = journal.end
    assert journal.bytes_behind(position) == 0
    for i in range(3, 60, 3):
        journal.append(ticks(3, first=i))
    total = sum(
        segment_path(journal.directory, n).stat().st_size
        for n in segment_numbers(journal.directory)
    )
    assert journal.bytes_behind(position) == total - position.offset


def test_recovery_knows_the_last_tick_of_each_symbol(journal: Journal) -> None:
    journal.append([tick(1, symbol="EURUSD"), EpochStarted("EURUSD", 9, None, None)])
    journal.append(ticks(50))
    journal.append([tick(7, epoch=2), rejected()])
    recovery = recover(journal.directory)
    assert recovery.last == {"EURUSD": tick(1, symbol="EURUSD"), "USDCOP": tick(7, epoch=2)}
    assert recovery.highest_epoch == 9
    assert recover(journal.directory, ["USDCOP"]).last["USDCOP"] == tick(7, epoch=2)


def test_recovery_of_an_empty_directory(tmp_path: Path) -> None:
    assert recover(tmp_path).last == {}
    assert recover(tmp_path).highest_epoch == 0
    assert list(records_since(tmp_path, 0)) == []


def test_records_since_an_instant(journal: Journal) -> None:
    closed = update(bar(OPEN), at=OPEN + 301.0)
    journal.append(ticks(80))
    journal.append([closed, rejected()])
    journal.append([tick(81), tick(82, timestamp=OPEN + 10)])
    since = OPEN + 60
    expected = [*ticks(21, first=60), tick(81)]
    assert list(records_since(journal.directory, since)) == expected
    assert list(records_since(journal.directory, OPEN))[80] == closed
    until = OPEN + 70.5
    assert list(records_since(journal.directory, since, until)) == ticks(11, first=60)


def test_a_reader_from_elsewhere_needs_no_lock(journal: Journal) -> None:
    journal.append(ticks(30))
    with JournalReader(journal.directory) as reader:
        assert reader.read(100) == ticks(30)
        journal.append(ticks(1, first=31))
        assert reader.read(100) == ticks(1, first=31)


def test_a_symbol_that_never_ticked_does_not_make_a_start_read_everything(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, segment_bytes=4096)
    journal.append([tick(1, symbol="EURUSD")])
    for first in range(1, 2000, 50):
        journal.append(ticks(50, first=first))
    journal.close()
    assert len(segment_numbers(tmp_path)) > 10
    wanted = ["USDCOP", "EURUSD"]
    assert set(recover(tmp_path, wanted).last) == {"USDCOP", "EURUSD"}
    assert set(recover(tmp_path, wanted, search_bytes=8192).last) == {"USDCOP"}

    since = OPEN + 1990
    newest = [one for one in ticks(2000) if one.timestamp >= since]
    earlier = {"USDCOP": since, "EURUSD": OPEN}
    found = list(records_since(tmp_path, since, earlier=earlier))
    assert found == [tick(1, symbol="EURUSD"), *newest]
    found = list(records_since(tmp_path, since, earlier=earlier, search_bytes=8192))
    assert found == newest, "half of what is older would be taken for all of it"
