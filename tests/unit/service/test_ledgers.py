"""Key ledgers on file."""

from pathlib import Path

import pytest

from enhanced_websocket_service.service.ledgers import KeyLedgers
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool, Wait

NOON = 1_749_038_400.0


def ledgers(directory: Path) -> tuple[KeyLedgers, KeyPool]:
    keys = KeyPool([ApiKey("G1_1", "a-secret")], spacing_s=0)
    return KeyLedgers(keys, directory / "state"), keys


def test_what_was_spent_is_known_after_a_restart(tmp_path: Path) -> None:
    saved, keys = ledgers(tmp_path)
    for _ in range(8):
        keys.acquire(NOON)
    saved.save(NOON)
    assert b"a-secret" not in (tmp_path / "state" / "keys.json").read_bytes()
    again, fresh = ledgers(tmp_path)
    again.load(NOON + 1)
    answer = fresh.acquire(NOON + 1)
    assert isinstance(answer, Wait)
    assert answer.until == NOON + 60


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff"])
def test_a_file_that_cannot_be_used_is_no_obstacle(tmp_path: Path, content: bytes) -> None:
    saved, keys = ledgers(tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "keys.json").write_bytes(content)
    saved.load(NOON)
    assert not isinstance(keys.acquire(NOON), Wait)


def test_a_directory_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    saved, _ = ledgers(tmp_path)
    saved.save(NOON)
