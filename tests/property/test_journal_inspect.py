"""The journal's damage, told: every byte of a segment is a record's, a damaged place's, or torn."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.journal_inspect import JournalReport, inspect
from enhanced_websocket_service.storage.journal_reader import read_identity, segment_path
from enhanced_websocket_service.storage.records import decode, encode
from enhanced_websocket_service.storage.segment import FRAME_OVERHEAD, HEADER_SIZE, scan, seed
from tests.property.test_journal_recovery import (
    BOUNDS,
    END,
    RECORDS,
    damaged,
    read_everything,
)
from tests.property.test_journal_recovery import without_fsync as without_fsync
from tests.property.test_journal_recovery import written as written
from tests.storage_samples import ticks


def total(report: JournalReport) -> int:
    return sum(one.records for one in report.segments)


def whole_records(size: int) -> list[int]:
    """How long the records are that end within ``size`` bytes of the segment."""
    return [stop - begin for begin, stop in BOUNDS if stop <= size]


def test_every_single_flipped_bit(written: Path) -> None:
    """All of them, not a sample: the others are found, none is invented, the damage is exact."""
    content = segment_path(written, 1).read_bytes()[HEADER_SIZE:]
    identity = read_identity(written)
    assert identity is not None
    start = seed(identity, 1)
    payloads = [encode(record) for record in RECORDS]
    bounds = [(begin - HEADER_SIZE, stop - HEADER_SIZE) for begin, stop in BOUNDS]
    for bit in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        found = scan(bytes(flipped), HEADER_SIZE, start, final=True, limit=1000)
        hit = next(i for i, (_, stop) in enumerate(bounds) if bit // 8 < stop)
        assert found.payloads == payloads[:hit] + payloads[hit + 1 :]
        assert found.gaps == [bounds[hit]]


def test_truncation_at_every_byte_is_told_as_torn_and_nothing_is_changed(written: Path) -> None:
    content = segment_path(written, 1).read_bytes()
    for size in range(HEADER_SIZE, END + 1):
        with damaged(written, content[:size]) as directory:
            report = inspect(directory)
            whole = whole_records(size)
            assert (total(report), report.damage) == (len(whole), [])
            assert report.torn_bytes == size - HEADER_SIZE - sum(whole)
            assert segment_path(directory, 1).read_bytes() == content[:size]


@settings(max_examples=150)
@given(bit=st.integers(0, END * 8 - 1))
def test_every_byte_is_accounted_for(written: Path, bit: int) -> None:
    content = bytearray(segment_path(written, 1).read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    with damaged(written, bytes(content)) as directory:
        report = inspect(directory)
        records, _ = read_everything(directory)
    intact = sum(FRAME_OVERHEAD + len(encode(record)) for record in records)
    told = sum(damage.length for damage in report.damage) + report.torn_bytes
    header = 0 if bit // 8 < HEADER_SIZE else HEADER_SIZE  # a damaged header is told, too
    assert intact + told + header == END
    assert total(report) == len(records) >= len(RECORDS) - 1
    assert told > 0


@pytest.mark.parametrize("zeros", [1, 7, 8, 9, 4096])
def test_a_zero_filled_tail_is_torn(written: Path, zeros: int) -> None:
    with damaged(written, segment_path(written, 1).read_bytes() + bytes(zeros)) as directory:
        report = inspect(directory)
    assert (total(report), report.damage, report.torn_bytes) == (len(RECORDS), [], zeros)


def test_a_missing_segment_is_named_and_the_offsets_show_the_hole(written: Path) -> None:
    with damaged(written, segment_path(written, 1).read_bytes()) as directory:
        for first in (11, 21):
            journal = Journal.open(directory)
            journal.append(ticks(10, first=first))
            journal.close()
        before = inspect(directory)
        shutil.copy(segment_path(directory, 2), directory / "kept")
        segment_path(directory, 2).unlink()
        report = inspect(directory)
        (damage,) = report.damage
        assert (damage.segment, damage.reason) == (2, "missing up to 2")
        found = report.ranges["USDCOP", 1]
        assert (found.first, found.last, found.count) == (1, 30, 20)
        assert report.end == before.end
        shutil.copy(directory / "kept", segment_path(directory, 2))
        assert inspect(directory).as_dict() == before.as_dict()
        assert before.ranges["USDCOP", 1].count == 30


def test_what_is_counted_is_what_decodes(written: Path) -> None:
    report = inspect(written)
    (segment,) = report.segments
    assert segment.kinds == {"ticks": 10, "rejections": 1, "bars": 1}
    assert [decode(encode(record)) for record in RECORDS] == RECORDS
    assert report.end.record == len(RECORDS)
