import re

from enhanced_websocket_service.storage.pool import QUERIES, WRITES
from enhanced_websocket_service.storage.sql import load


def test_references_are_filled_in() -> None:
    for statements in (load("queries.sql"), load("writes.sql")):
        assert statements
        for name, text in statements.items():
            assert not re.search(r"\{\w+\}", text), name
            assert text, name


def test_reads_do_not_write_and_stay_in_their_world() -> None:
    for name, text in QUERIES.items():
        assert not re.search(r"\b(INSERT|UPDATE|DELETE)\b", text), name
        if name.startswith(("select_", "compose_", "newest_", "ticks_", "slots_", "last_")):
            assert "ews_is_simulated(source) = $4" in text, name


def test_names_are_not_shared() -> None:
    assert not QUERIES.keys() & WRITES.keys()
