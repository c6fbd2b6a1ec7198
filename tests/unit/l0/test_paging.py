"""What the answers show about a page, and how slots are cut into calls accordingly."""

from datetime import date
from itertools import pairwise

import pytest

from enhanced_websocket_service.l0.paging import Chunk, Paging

from .fakes import CALENDAR, at

DAYS = CALENDAR.trading_days(date(2025, 3, 3), date(2025, 6, 10))
EXPECTED = {slot: i for i, day in enumerate(DAYS) for slot in CALENDAR.expected_labels(day)}
SLOTS = tuple(EXPECTED)


def paging(page_rows: int = 5000) -> Paging:
    return Paging(EXPECTED, page_rows)


def knowing(cap: int) -> Paging:
    """One that has seen an answer cut to ``cap`` rows, and rows behind it."""
    subject = paging()
    left = len(SLOTS) - cap
    subject.learn(SLOTS, SLOTS[left:], outside=0, left=left, right=0)
    subject.learn(SLOTS[:left], SLOTS[left - cap : left], outside=0, left=left - cap, right=0)
    assert (subject.cap, subject.keeps_newest) == (cap, True)
    return subject


def slots_of(chunks: list[Chunk]) -> list[int]:
    return sorted(slot for chunk in chunks for slot in chunk.slots)


def test_until_a_page_is_known_a_stretch_is_one_question() -> None:
    (chunk,) = paging().chunks(SLOTS, anchors=True)
    assert (chunk.slots, chunk.start) == (SLOTS, SLOTS[0])


@pytest.mark.parametrize("cap", [1, 60, 61, 250, 999])
def test_pages_are_full_and_have_each_slot_once(cap: int) -> None:
    chunks = knowing(cap).chunks(SLOTS, anchors=True)
    assert slots_of(chunks) == list(SLOTS)
    assert len(chunks) == -(-len(SLOTS) // cap)
    assert all(len(chunk.slots) <= cap for chunk in chunks)
    newest_first = [chunk.slots[0] for chunk in chunks]
    assert newest_first == sorted(newest_first, reverse=True)


def test_a_question_begins_at_the_slot_before_its_own() -> None:
    chunks = knowing(250).chunks(SLOTS, anchors=True)
    for newer, older in pairwise(chunks):
        assert newer.start == older.slots[-1]
    assert [c.start for c in knowing(250).chunks(SLOTS, anchors=False)] == [
        c.slots[0] for c in chunks
    ]


def test_an_anchor_does_not_reach_into_a_complete_day() -> None:
    day = CALENDAR.expected_labels(DAYS[10])
    (chunk,) = knowing(250).chunks(day, anchors=True)
    assert chunk.start == day[0] - 300


def test_an_answer_before_the_vendors_history_is_no_cut() -> None:
    subject = paging()
    subject.learn(SLOTS, SLOTS[-180:], outside=0, left=len(SLOTS) - 180, right=0)
    subject.learn(SLOTS[:-180], (), outside=0, left=0, right=0)
    assert (subject.cap, subject.keeps_newest) == (5000, False)
    assert len(subject.chunks(SLOTS, anchors=True)) == 1


def test_a_full_page_is_a_cut_at_once() -> None:
    subject = paging(page_rows=500)
    subject.learn(SLOTS, SLOTS[-500:], outside=0, left=len(SLOTS) - 500, right=0)
    assert subject.keeps_newest
    assert len(subject.chunks(SLOTS[:1000], anchors=False)) == 2


def test_a_feed_around_the_clock_gets_shorter_pages() -> None:
    subject = paging(page_rows=2880)
    last = at("2025-06-10T12:55")
    rows = [slot for slot in range(last - 20 * 86_400, last + 1, 300) if _weekday(slot)][-2880:]
    left = sum(slot < rows[0] for slot in SLOTS)
    outside = sum(row not in EXPECTED for row in rows)
    subject.learn(SLOTS, rows, outside=outside, left=left, right=0)
    chunks = subject.chunks(SLOTS[:left], anchors=True)
    assert slots_of(chunks) == list(SLOTS[:left])
    for chunk in chunks:
        span = [s for s in range(chunk.slots[0], chunk.slots[-1] + 1, 300) if _weekday(s)]
        assert len(span) <= 2880
    # Ten weekdays of 288 rows a page; a little room is left.
    assert len(chunks) <= -(-(len(DAYS) - 10) // 9) + 1


def _weekday(slot: int) -> bool:
    return (slot // 86_400 + 3) % 7 < 5


def test_complete_days_are_reached_over_for_small_holes_only() -> None:
    holes = [CALENDAR.expected_labels(DAYS[i])[5] for i in (0, 4, 8, 40)]
    far = paging().chunks(holes, anchors=False, worthwhile=4)
    assert [chunk.slots for chunk in far] == [(slot,) for slot in reversed(holes)]
    (one,) = paging().chunks(holes, anchors=False, worthwhile=3)
    assert one.slots == tuple(holes)
    days = [slot for i in (0, 4, 8, 40) for slot in CALENDAR.expected_labels(DAYS[i])]
    assert len(paging().chunks(days, anchors=False, worthwhile=1)) == 4
