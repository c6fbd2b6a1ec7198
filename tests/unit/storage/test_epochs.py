from pathlib import Path

import pytest

from enhanced_websocket_service.errors import StorageError
from enhanced_websocket_service.storage.epochs import begin_epoch, highest_epoch

NOW = 1_750_000_000.5


def now() -> float:
    return NOW


def test_the_first_epoch_is_the_time_in_milliseconds(tmp_path: Path) -> None:
    assert begin_epoch(tmp_path / "new", real_time=now) == 1_750_000_000_500
    assert highest_epoch(tmp_path / "new") == 1_750_000_000_500


def test_two_in_the_same_millisecond_differ(tmp_path: Path) -> None:
    epochs = [begin_epoch(tmp_path, real_time=now) for _ in range(3)]
    assert epochs == [1_750_000_000_500, 1_750_000_000_501, 1_750_000_000_502]


def test_a_clock_set_back_does_not_repeat_an_epoch(tmp_path: Path) -> None:
    first = begin_epoch(tmp_path, real_time=now)
    assert begin_epoch(tmp_path, real_time=lambda: NOW - 86_400) == first + 1


def test_whoever_knows_a_higher_one_is_believed(tmp_path: Path) -> None:
    assert begin_epoch(tmp_path, None, 9_000_000_000_000, 5, real_time=now) == 9_000_000_000_001


def test_an_impossible_one_is_not_believed(tmp_path: Path) -> None:
    """Anybody can write to Redis; a number that no BIGINT holds would end all storing."""
    assert begin_epoch(tmp_path, 1 << 63, 5, 10**30, real_time=now) == 1_750_000_000_500


@pytest.mark.parametrize("content", [b"", b"abc", b"-5", b"9" * 40, b"12\n34"])
def test_a_damaged_file_counts_for_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "epoch").write_bytes(content)
    assert highest_epoch(tmp_path) == 0
    assert begin_epoch(tmp_path, 7, real_time=lambda: 0.0) == 8


def test_an_epoch_that_cannot_be_stored_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the directory should be")
    with pytest.raises(StorageError, match="cannot be read"):
        begin_epoch(tmp_path / "state", real_time=now)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]
