"""``healthy`` while nothing was done is found, however it came about; and nothing else is."""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.chaos.honesty import LONGEST_S, Honesty, Idle, Seen, judged

EVERY_S = 0.5


def looks(
    seconds: float,
    *,
    healthy: Callable[[float], bool] = lambda _: True,
    sent: Callable[[float], int | None] = lambda at: int(at * 2000),
    done: Callable[[float], object] = lambda at: at,
) -> Iterator[Seen]:
    """A look each half second; ``done`` is the position of the hop that is watched, another one works."""
    for step in range(int(seconds / EVERY_S) + 1):
        at = step * EVERY_S
        yield Seen(at, healthy(at), sent(at), {"hop": done(at), "other": at})


def stopped(begins: float, ends: float) -> Callable[[float], object]:
    return lambda at: begins if begins <= at < ends else at


def broken(found: Honesty) -> list[tuple[str, float]]:
    return [(one.hop, one.lasted) for one in found.broken]


def test_work_all_along_is_honest() -> None:
    found = judged(looks(120))
    assert (found.looks, found.healthy, found.broken) == (241, 241, [])
    assert found.longest == {}


def test_thirty_seconds_healthy_without_work_are_a_lie_told_once_with_its_length() -> None:
    found = judged(looks(120, done=stopped(40, 75)))
    (lie,) = found.broken
    assert lie == Idle("hop", 40.0, 74.5, 69_000)
    assert found.longest == {"hop": lie}


def test_less_is_not_but_it_is_remembered() -> None:
    found = judged(looks(120, done=stopped(40, 40 + LONGEST_S)))
    assert found.broken == []
    assert found.longest["hop"].lasted == LONGEST_S - EVERY_S


@pytest.mark.parametrize("length", [31, 200])
def test_who_says_so_may_do_nothing(length: float) -> None:
    """Ten seconds are allowed until it is said."""
    found = judged(
        looks(300, done=stopped(40, 40 + length), healthy=lambda at: not 50 <= at < 40 + length)
    )
    assert found.broken == []


def test_a_lie_between_two_confessions_counts_by_itself() -> None:
    confessed = (60.0, 100.0)
    found = judged(looks(200, done=stopped(40, 150), healthy=lambda at: at not in confessed))
    assert broken(found) == [("hop", 39.0), ("hop", 49.0)]


def test_a_vendor_that_sends_nothing_leaves_nothing_to_do() -> None:
    assert judged(looks(120, sent=lambda _: 5, done=lambda _: 1)).broken == []
    silent = judged(looks(120, sent=lambda at: min(int(at * 10), 300), done=stopped(30, 120)))
    assert silent.broken == []
    assert broken(
        judged(looks(120, sent=lambda at: None if at > 50 else int(at), done=stopped(45, 90)))
    )


def test_what_cannot_be_looked_at_shows_no_work() -> None:
    found = judged(looks(120, done=lambda at: None if 40 <= at < 75 else at))
    assert broken(found) == [("hop", 35.0)]


def test_nothing_is_concluded_from_the_time_without_looks() -> None:
    seen = [one for one in looks(120, done=stopped(40, 80)) if not 45 <= one.at < 60]
    assert judged(seen).broken == []


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=200
    )
)
def test_it_agrees_with_the_plain_definition(steps: list[tuple[bool, int, int]]) -> None:
    """Against a quadratic search for two looks of one healthy run with the same position at all between."""
    seen, position, sent = [], 0, 0
    for number, (healthy, work, prices) in enumerate(steps):
        position += work == 3
        sent += prices > 3
        seen.append(Seen(float(number), healthy, sent, {"hop": position}))
    longest = max(
        (
            last.at - first.at
            for i, first in enumerate(seen)
            for j, last in enumerate(seen[i:], i)
            if all(one.healthy and one.done == first.done for one in seen[i : j + 1])
            and last.sent != first.sent
        ),
        default=None,
    )
    found = judged(seen).longest.get("hop")
    assert (found.lasted if found else None) == longest
