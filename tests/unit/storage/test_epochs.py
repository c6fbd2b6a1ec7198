from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.errors import StorageError
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.storage import epochs
from enhanced_websocket_service.storage.epochs import KnownEpochs, highest_epoch

NOW = 1_750_000_000.5
LIMIT = 9_007_199_254_740_992
"""2^53: what JavaScript's numbers tell apart ends there."""


def begin_epoch(
    state_dir: Path, real: float = NOW, failures: Failures | None = None, **known: int | None
) -> int:
    failures = failures or Failures(SystemClock())
    return epochs.begin_epoch(state_dir, KnownEpochs(**known), failures, lambda: real)  # type: ignore[arg-type] # journal is never None here


def test_the_first_epoch_is_the_time_in_milliseconds(tmp_path: Path) -> None:
    assert begin_epoch(tmp_path / "new") == 1_750_000_000_500
    assert highest_epoch(tmp_path / "new") == 1_750_000_000_500


def test_two_in_the_same_millisecond_differ(tmp_path: Path) -> None:
    begun = [begin_epoch(tmp_path) for _ in range(3)]
    assert begun == [1_750_000_000_500, 1_750_000_000_501, 1_750_000_000_502]


def test_a_clock_set_back_does_not_repeat_an_epoch(tmp_path: Path) -> None:
    first = begin_epoch(tmp_path)
    assert begin_epoch(tmp_path, NOW - 86_400) == first + 1


@pytest.mark.parametrize("place", ["journal", "database"])
def test_the_journal_and_postgresql_are_always_exceeded(tmp_path: Path, place: str) -> None:
    """Whatever the clock says: years ahead, too."""
    assert begin_epoch(tmp_path, **{place: 9_000_000_000_000}) == 9_000_000_000_001


def test_redis_alone_is_believed_a_day_ahead_and_no_further(tmp_path: Path) -> None:
    failures = Failures(SystemClock())
    near, far = int(NOW * 1000) + 80_000_000, int(NOW * 1000) + 90_000_000
    assert begin_epoch(tmp_path / "near", redis=near) == near + 1
    assert begin_epoch(tmp_path / "far", failures=failures, redis=far) == 1_750_000_000_500
    (told,) = failures.present
    assert told.part == "epoch in Redis"
    assert str(far) in told.reason
    # PostgreSQL knows of the same: then it was begun.
    assert begin_epoch(tmp_path / "both", database=far, redis=far) == far + 1


@given(
    values=st.lists(st.integers(-1, 1 << 70) | st.none(), min_size=3, max_size=3),
    content=st.binary(max_size=30) | st.integers(0, 1 << 65).map(lambda one: b"%d" % one),
    real=st.floats(0, 4e9),
)
def test_what_is_given_out_grows_and_stays_below_2_to_the_53(
    values: list[int | None], content: bytes, real: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("state")
    (folder / "epoch").write_bytes(content)
    known: dict[str, int | None] = dict(zip(("journal", "database", "redis"), values, strict=True))
    known["journal"] = known["journal"] or 0
    believed = [v for v in (known["journal"], known["database"]) if v is not None and v < LIMIT]
    if LIMIT - 1 in (*believed, highest_epoch(folder)):
        return
    first = begin_epoch(folder, real, **known)
    second = begin_epoch(folder, real, **{**known, "journal": first})
    assert max([0, *believed]) < first < second < LIMIT


def test_an_impossible_one_is_named_and_not_believed(tmp_path: Path) -> None:
    failures = Failures(SystemClock())
    poison = (1 << 62) - 1
    epoch = begin_epoch(tmp_path, failures=failures, journal=poison, database=poison, redis=poison)
    assert epoch == 1_750_000_000_500
    assert [one.part for one in failures.present] == [
        *("epochs in the journal", "epochs in PostgreSQL", "epoch in Redis"),
    ]
    assert "db migrate" in failures.present[1].reason


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"-5", b"9" * 40, b"12\n34", b"\xff", b"%d" % LIMIT]
)
def test_a_foreign_file_counts_for_nothing_and_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "epoch").write_bytes(content)
    failures = Failures(SystemClock())
    assert highest_epoch(tmp_path) == 0
    assert begin_epoch(tmp_path, 0.0, failures, journal=7) == 8
    assert [one.part for one in failures.present] == ["epoch file"]
    assert highest_epoch(tmp_path) == 8


def test_an_epoch_that_cannot_be_stored_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the directory should be")
    with pytest.raises(StorageError, match="cannot be read"):
        begin_epoch(tmp_path / "state")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]
