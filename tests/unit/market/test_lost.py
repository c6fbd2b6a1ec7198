"""Gaps of a feed, remembered until they are repaired."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.market.lost import LostSpans

SLOT = 1_750_856_400


def test_wishes_that_meet_are_one_and_known_ones_are_no_news() -> None:
    lost = LostSpans()
    assert not lost
    assert lost.add(10.0, 20.0)
    assert lost.add(30.0, 40.0)
    assert not lost.add(12.0, 20.0)
    assert not lost.add(20.0, 20.0)
    assert lost.spans == [(10.0, 20.0), (30.0, 40.0)]
    assert lost.add(20.0, 30.0)
    assert lost.spans == [(10.0, 40.0)]
    assert lost.add(5.0, 50.0)
    assert lost.spans == [(5.0, 50.0)]


def test_a_span_touches_the_bars_it_lies_in_and_no_neighbour() -> None:
    lost = LostSpans()
    lost.add(SLOT + 300.0, SLOT + 600.0)
    assert [lost.touches(SLOT + 300 * n) for n in range(3)] == [False, True, False]
    lost.add(SLOT + 299.0, SLOT + 301.0)
    assert lost.touches(SLOT)
    lost.keep([SLOT + 300])
    assert lost
    lost.keep([SLOT + 600])
    assert not lost


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=30))
def test_the_spans_are_apart_ordered_and_cover_exactly_what_was_added(
    added: list[tuple[int, int]],
) -> None:
    lost = LostSpans()
    covered: set[int] = set()
    for start, end in added:
        new = set(range(start, end))
        assert lost.add(start, end) == bool(new - covered)
        covered |= new
    spans = lost.spans
    assert spans == sorted(spans)
    assert all(one[1] < other[0] for one, other in pairwise(spans))
    assert {second for start, end in spans for second in range(int(start), int(end))} == covered
