"""Key ledgers on file."""

from pathlib import Path

import pytest

from enhanced_websocket_service.service.ledgers import SavedLedgers
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool, Wait
from tests.unit.l0.fakes import StillClock

NOON = 1_749_038_400.0


def ledgers(directory: Path, now: float = NOON) -> tuple[SavedLedgers, KeyPool]:
    keys = KeyPool([ApiKey("G1_1", "a-secret")])
    return SavedLedgers(directory / "state", keys, StillClock(now)), keys


def test_what_was_spent_is_known_after_a_restart(tmp_path: Path) -> None:
    saved, keys = ledgers(tmp_path)
    for _ in range(8):
        keys.acquire(NOON)
        keys._accounts[0].last_used = NOON - 8
    saved.save()
    assert b"a-secret" not in saved.path.read_bytes()
    again, fresh = ledgers(tmp_path, NOON + 1)
    again.load()
    answer = fresh.acquire(NOON + 1)
    assert isinstance(answer, Wait)
    assert answer.until == NOON + 60


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff"])
def test_a_file_that_cannot_be_used_is_no_obstacle(tmp_path: Path, content: bytes) -> None:
    saved, keys = ledgers(tmp_path)
    saved.path.parent.mkdir()
    saved.path.write_bytes(content)
    saved.load()
    assert not isinstance(keys.acquire(NOON), Wait)


def test_a_directory_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    saved, _ = ledgers(tmp_path)
    saved.save()
