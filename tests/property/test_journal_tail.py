"""A row made of what was appended is, byte for byte, the row made of what the journal says."""

import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.errors import JournalError
from enhanced_websocket_service.market.calendar import BOGOTA
from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.journal_reader import JournalReader
from enhanced_websocket_service.storage.record_store import Batch
from enhanced_websocket_service.storage.records import Record
from enhanced_websocket_service.storage.segment import START, Position
from enhanced_websocket_service.storage.tail import Tail
from tests.storage_samples import rejected, tick, ticks

prices = st.integers(1, 999_999_999_999).map(lambda millionths: millionths / 1e6)
some_ticks = st.builds(
    tick,
    st.integers(1, 2**62),
    prices,
    bid=st.none() | prices,
    ask=st.none() | prices,
    volume=st.integers(-(2**31), 2**31 - 1),
    timestamp=st.integers(1, 4_000_000_000),
    received_at=st.floats(1.0, 4e9) | st.integers(1, 4_000_000_000),
    flags=st.sampled_from([(), ("crossed",), ("crossed", "held")]),
    trading_session=st.booleans(),
)
others = st.sampled_from([rejected(), rejected(raw="\ud800{"), EpochStarted("USDCOP", 7, 6, 5)])
batches = st.lists(some_ticks, min_size=1, max_size=12) | st.lists(
    st.one_of(some_ticks, others), min_size=1, max_size=4
)


def followed(reader: JournalReader, limits: list[int]) -> tuple[Batch, list[Position]]:
    batch, positions = Batch(BOGOTA), []
    at = 0
    while records := reader.read(limits[at % len(limits)]):
        assert len(records) <= limits[at % len(limits)]
        batch.add(records)
        positions.append(reader.position)
        at += 1
    return batch, positions


@settings(max_examples=150)
@given(
    st.lists(batches, max_size=12),
    st.lists(st.integers(1, 20), min_size=1, max_size=3),
    st.integers(1, 40),
    st.sampled_from([600, 2000, 1 << 20]),
)
def test_both_ways_give_the_same_rows_and_positions(
    appended: list[list[Record]], limits: list[int], most: int, segment_bytes: int
) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        patch("enhanced_websocket_service.storage.journal.Tail", lambda: Tail(most)),
    ):
        journal = Journal.open(Path(folder), segment_bytes=segment_bytes)
        for batch in appended:
            journal.append(batch)
        with (
            journal.reader() as quick,
            JournalReader(Path(folder), end=lambda: journal.end) as slow,
        ):
            rows, positions = followed(quick, limits)
            expected, expected_positions = followed(slow, limits)
            assert list(rows.tick_copy()) == list(expected.tick_copy())
            assert positions[-1:] == expected_positions[-1:]
            for kind in ("rejections", "updates", "epochs"):
                assert getattr(rows, kind) == getattr(expected, kind)
            # Wherever a reader begins anew, it goes on with the next record.
            for position in positions:
                quick.seek(position)
                slow.seek(position)
                again, anew = followed(quick, [5])[0], followed(slow, [5])[0]
                assert list(again.tick_copy()) == list(anew.tick_copy())
        journal.close()


def test_the_newest_ticks_need_no_disk(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    reader = journal.reader(journal.end)
    given = ticks(10)
    journal.append(given)
    with patch("os.pread", side_effect=AssertionError("read from the disk")):
        assert [*reader.read(4), *reader.read(100)] == given
    assert reader.position == journal.end
    journal.close()


def test_what_could_not_be_written_is_not_read(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    reader = journal.reader(journal.end)
    with patch("os.write", side_effect=OSError("full")), pytest.raises(JournalError):
        journal.append(ticks(3))
    assert reader.read() == []
    journal.append(ticks(2, first=7))
    assert [one.offset for one in reader.read() if isinstance(one, Tick)] == [7, 8]
    journal.close()


def test_only_the_newest_are_kept() -> None:
    tail, end = Tail(10), Position(1, 68, 0)
    for first in range(1, 30, 3):
        tail.add(end, ticks(3, first=first), [end.offset + 10, end.offset + 20, end.offset + 30])
        end = Position(1, end.offset + 30, end.record + 3)
        assert len(tail) <= 10
    assert tail.read(START, 5) is None
    found = tail.read(Position(1, end.offset - 20, end.record - 2), 5)
    assert found is not None
    assert [len(found[0]), found[1]] == [2, end]
    assert tail.read(Position(1, end.offset - 19, end.record - 2), 5) is None, "another place"
    assert tail.read(Position(2, end.offset - 20, end.record - 2), 5) is None, "another segment"
    assert tail.read(end, 5) is None
