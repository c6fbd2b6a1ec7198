"""After a failure the journal can be asked whether it works again, without a record coming of it."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from enhanced_websocket_service.errors import JournalError
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.journal_reader import iterate
from tests.storage_samples import ticks


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal.open(tmp_path / "journal")
    yield journal
    journal.close()


def fails(number: int):  # type: ignore[no-untyped-def]
    def failing(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return failing


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_journal_that_cannot_be_written_says_so_until_it_can(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    journal.check()
    journal.append(ticks(3))
    size = os.fstat(journal._fd).st_size
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fails(number))
        with pytest.raises(JournalError):
            journal.append(ticks(1, first=4))
        for _ in range(3):
            with pytest.raises(JournalError, match=os.strerror(number)):
                journal.check()
        assert journal.failure is not None
    journal.check()
    assert journal.failure is None
    assert os.fstat(journal._fd).st_size == size
    journal.append(ticks(2, first=4))
    assert list(iterate(journal.directory)) == ticks(5)


def test_a_check_that_is_cut_short_leaves_nothing_behind(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when the disk takes a part of it, nor when that part cannot be cut off again."""
    journal.append(ticks(3))
    real_write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda fd, data: real_write(fd, data[:10]))
        with pytest.raises(JournalError):
            journal.append(ticks(1, first=4))
        with pytest.raises(JournalError):
            journal.check()
        patched.setattr(os, "ftruncate", fails(errno.EIO))
        with pytest.raises(JournalError):
            journal.check()
    journal.check()
    journal.append(ticks(2, first=4))
    journal.close()
    assert list(iterate(journal.directory)) == ticks(5)
    again = Journal.open(journal.directory)
    assert list(iterate(journal.directory)) == ticks(5)
    again.close()


async def test_only_an_fsync_ends_a_failed_fsync(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.append(ticks(1))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails(errno.EIO))
        assert not await journal.sync()
        with pytest.raises(JournalError, match="fsynced"):
            journal.check()
    assert await journal.sync()
    journal.check()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs to be root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_file_system_that_is_really_full(small_disk: Path) -> None:
    other = small_disk / "somebody-elses"
    other.write_bytes(bytes(400_000))
    journal = Journal.open(small_disk / "journal", segment_bytes=200_000)
    try:
        written, failure = 0, ""
        while not failure:
            try:
                journal.append(ticks(100, first=written + 1))
                written += 100
            except JournalError as error:
                failure = str(error)
        assert "No space left" in failure or "is the disk full" in failure
        with pytest.raises(JournalError):
            journal.check()
        assert list(iterate(journal.directory)) == ticks(written)
        other.unlink()
        journal.check()
        journal.append(ticks(100, first=written + 1))
        assert list(iterate(journal.directory)) == ticks(written + 100)
    finally:
        journal.close()
