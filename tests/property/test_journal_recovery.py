"""Whatever happens to the journal's bytes: every intact record is kept, none is invented."""

import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.journal_reader import (
    JournalReader,
    segment_numbers,
    segment_path,
)
from enhanced_websocket_service.storage.records import Record, encode
from enhanced_websocket_service.storage.segment import FRAME_OVERHEAD, HEADER_SIZE
from tests.storage_samples import OPEN, bar, rejected, ticks, update

RECORDS: list[Record] = [
    *ticks(6),
    rejected("unparsable", raw='{"price": "\xec\xec"}'),
    update(bar(), at=OPEN + 301.0),
    *ticks(4, first=7),
]
NEW = ticks(2, first=100)


@pytest.fixture(scope="module", autouse=True)
def without_fsync() -> Iterator[None]:
    """Thousands of journals, none of which has to survive a loss of power."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.fsync", lambda _: None)
        yield


def bounds() -> list[tuple[int, int]]:
    """Where each of ``RECORDS`` stands in the first segment."""
    found, at = [], HEADER_SIZE
    for record in RECORDS:
        stop = at + FRAME_OVERHEAD + len(encode(record))
        found.append((at, stop))
        at = stop
    return found


BOUNDS = bounds()
END = BOUNDS[-1][1]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal with ``RECORDS`` in its first segment, as a killed process leaves it."""
    directory = tmp_path_factory.mktemp("written") / "journal"
    journal = Journal.open(directory)
    journal.append(RECORDS)
    journal.close()
    assert segment_path(directory, 1).stat().st_size == END
    return directory


@contextmanager
def damaged(original: Path, content: bytes | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "journal"
        shutil.copytree(original, copy)
        if content is None:
            segment_path(copy, 1).unlink()
        else:
            segment_path(copy, 1).write_bytes(content)
        yield copy


def read_everything(directory: Path) -> tuple[list[Record], int]:
    records: list[Record] = []
    with JournalReader(directory) as reader:
        while batch := reader.read(3):
            records += batch
        return records, reader.damages


def check_recovery(directory: Path, expected: list[Record]) -> None:
    """Before and after an owner took it over, and after it went on."""
    assert read_everything(directory)[0] == expected
    journal = Journal.open(directory)
    assert read_everything(directory)[0] == expected
    journal.append(NEW)
    reader = journal.reader()
    assert reader.read(1000) == [*expected, *NEW]
    assert reader.position == journal.end
    reader.close()
    journal.close()
    # A second restart finds nothing more to repair.
    again = Journal.open(directory)
    assert read_everything(directory)[0] == [*expected, *NEW]
    again.close()


def test_truncation_at_every_byte_of_the_last_records(written: Path) -> None:
    content = segment_path(written, 1).read_bytes()
    for size in range(BOUNDS[-3][0], END + 1):
        with damaged(written, content[:size]) as directory:
            check_recovery(
                directory, [r for r, (_, stop) in zip(RECORDS, BOUNDS, strict=True) if stop <= size]
            )


@settings(max_examples=60)
@given(size=st.integers(0, END))
def test_truncation_anywhere(written: Path, size: int) -> None:
    content = segment_path(written, 1).read_bytes()
    with damaged(written, content[:size]) as directory:
        check_recovery(
            directory, [r for r, (_, stop) in zip(RECORDS, BOUNDS, strict=True) if stop <= size]
        )


@settings(max_examples=250)
@given(bit=st.integers(0, END * 8 - 1))
def test_any_flipped_bit_costs_at_most_the_record_it_is_in(written: Path, bit: int) -> None:
    content = bytearray(segment_path(written, 1).read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    at = bit // 8
    hit = [not begin <= at < stop for begin, stop in BOUNDS]
    expected = [record for record, whole in zip(RECORDS, hit, strict=True) if whole]
    with damaged(written, bytes(content)) as directory:
        assert read_everything(directory)[1] >= 1, "damage is reported"
        check_recovery(directory, expected)


@settings(max_examples=60)
@given(
    zeros=st.integers(1, 5000),
    size=st.sampled_from([END, *(begin + 5 for begin, _ in BOUNDS[-3:])]),
)
def test_a_zero_filled_tail_is_not_a_row_of_records(written: Path, zeros: int, size: int) -> None:
    content = segment_path(written, 1).read_bytes()[:size] + bytes(zeros)
    with damaged(written, content) as directory:
        check_recovery(
            directory, [r for r, (_, stop) in zip(RECORDS, BOUNDS, strict=True) if stop <= size]
        )


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), first=st.integers(HEADER_SIZE, END), length=st.integers(1, 700))
def test_overwritten_bytes(written: Path, seed: int, first: int, length: int) -> None:
    """Garbage over a stretch: what lies outside it is kept, wherever it begins and ends."""
    content = bytearray(segment_path(written, 1).read_bytes())
    last = min(first + length, END)
    garbage = random.Random(seed).randbytes(last - first)
    assert len(garbage) == last - first
    touched = {i for i in range(first, last) if content[i] != garbage[i - first]}
    content[first:last] = garbage
    expected = [
        record
        for record, (begin, stop) in zip(RECORDS, BOUNDS, strict=True)
        if not touched.intersection(range(begin, stop))
    ]
    with damaged(written, bytes(content)) as directory:
        check_recovery(directory, expected)


def test_frames_moved_elsewhere_are_not_records(written: Path) -> None:
    """Stale blocks: intact frames at another offset, or in another segment, never happened."""
    content = segment_path(written, 1).read_bytes()
    begin, stop = BOUNDS[0]
    with damaged(written, content + content[begin:stop]) as directory:
        check_recovery(directory, RECORDS)
    with damaged(written, content) as directory:
        shutil.copy(segment_path(directory, 1), segment_path(directory, 2))
        assert read_everything(directory)[0] == RECORDS


def test_a_missing_segment_is_reported_and_the_others_kept(written: Path) -> None:
    with damaged(written, segment_path(written, 1).read_bytes()) as directory:
        for first in (100, 200):
            journal = Journal.open(directory)
            journal.append(ticks(2, first=first))
            journal.close()
        assert segment_numbers(directory) == [1, 2, 3]
        segment_path(directory, 2).unlink()
        records, damages = read_everything(directory)
        assert records == [*RECORDS, *ticks(2, first=200)]
        assert damages == 1


def test_a_sealed_segment_that_lost_its_end_is_reported(written: Path) -> None:
    content = segment_path(written, 1).read_bytes()
    with damaged(written, content) as directory:
        journal = Journal.open(directory)
        journal.append(NEW)
        journal.close()
        segment_path(directory, 1).write_bytes(content[: BOUNDS[-2][1]])
        records, damages = read_everything(directory)
        assert records == [*RECORDS[:-1], *NEW]
        assert damages == 1
