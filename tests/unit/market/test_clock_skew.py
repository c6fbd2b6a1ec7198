"""How far the vendor's clock is from ours: headers in whole seconds, stamps that are late or aligned."""

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.market.clock_skew import LIMIT_S, UNCONFIRMED_S, ClockSkew

NOON = 1_748_952_000.0
_OFFSETS = st.floats(-86_400.0, 86_400.0)


def answer(
    skew: ClockSkew, offset: float, at: float, took: float = 0.2, share: float = 0.5
) -> None:
    """The vendor answers what we asked ``took`` seconds before ``at``, in between."""
    read_at = at - took * (1.0 - share)
    skew.http_date(float(math.floor(read_at + offset)), at - took, at)


def stream(skew: ClockSkew, offset: float, at: float, late: float = 0.1, grid: int = 1) -> None:
    """Two minutes of prices, one every two seconds."""
    for step in range(60):
        received = at - 120.0 + 2.0 * step
        stamp = math.floor((received + offset - late) / grid) * grid
        skew.stamp(float(stamp), received)


@given(
    _OFFSETS, st.lists(st.tuples(st.floats(0.01, 5.0), st.floats(0, 1)), min_size=3, max_size=12)
)
def test_the_offset_lies_within_what_the_answers_allow(
    offset: float, travels: list[tuple[float, float]]
) -> None:
    skew, at = ClockSkew(), NOON
    for took, share in travels:
        at += 22.3
        answer(skew, offset, at, took, share)
    found = skew.offset(at)
    assert found is not None
    # A header is right within a second, its journey, and what a clock is allowed to drift in between.
    assert abs(found - offset) <= max(2.0 + 1.0, 2.0 + max(took for took, _ in travels))


def test_nothing_is_known_before_three_headers_agree() -> None:
    skew = ClockSkew()
    for number in range(3):
        assert skew.offset(NOON) is None
        answer(skew, 100.0, NOON + number)
    found = skew.offset(NOON + 3)
    assert found is not None
    assert abs(found - 100.0) < 1.5
    assert skew.offset(NOON + 3600.0) is None, "an hour old"


def test_slow_answers_claim_nothing() -> None:
    skew = ClockSkew()
    for number in range(8):
        answer(skew, 0.0, NOON + 30.0 * number, took=20.0, share=0.05)
    assert skew.offset(NOON + 300.0) == 0.0


def test_one_header_that_is_wrong_is_an_accident() -> None:
    skew = ClockSkew()
    for number in range(5):
        answer(skew, 0.0, NOON + number)
    for _ in range(2):
        answer(skew, -7000.0, NOON + 6)
    found = skew.offset(NOON + 6)
    assert found is not None
    assert abs(found) < 1.5


def test_a_late_stream_is_no_clock_that_runs_fast() -> None:
    late, fast, alone = ClockSkew(), ClockSkew(), ClockSkew()
    stream(late, 0.0, NOON, late=300.0)
    stream(fast, -300.0, NOON)
    stream(alone, 0.0, NOON, late=300.0)
    for number in range(3):
        answer(late, 0.0, NOON + number)
        answer(fast, -300.0, NOON + number)
    found = late.offset(NOON + 3), fast.offset(NOON + 3), alone.offset(NOON + 3)
    assert found[0] is not None
    assert found[1] is not None
    assert abs(found[0]) < 1.5
    assert abs(found[1] + 300.0) < 1.5
    assert found[2] is None, "the stamps alone cannot tell"


@given(st.floats(-59.0, 59.0), st.floats(0.0, 60.0))
def test_stamps_that_are_aligned_to_minutes_prove_nothing(offset: float, rounded_up: float) -> None:
    skew = ClockSkew()
    stream(skew, offset + rounded_up, NOON, grid=60)
    assert skew.offset(NOON) is None
    for number in range(3):
        answer(skew, offset, NOON + number)
    found = skew.offset(NOON + 3)
    assert found is not None
    assert abs(found - offset) < 1.5


def test_stamps_from_our_future_are_by_a_clock_that_is_ahead_of_ours() -> None:
    skew = ClockSkew()
    stream(skew, 8.0, NOON)
    found = skew.offset(NOON)
    assert found is not None
    assert abs(found - 8.0) < 1.0


def test_when_stamps_agree_with_us_the_headers_are_not_believed() -> None:
    skew = ClockSkew()
    stream(skew, 0.0, NOON)
    for number in range(4):
        answer(skew, -900.0, NOON + number)
    assert skew.offset(NOON + 4) is None
    assert skew.disagreement


@given(st.integers(0, 2**32), st.integers(1, 50))
def test_a_clock_that_is_set_and_set_again_stays_known(seed: int, jumps: int) -> None:
    chance, skew = random.Random(seed), ClockSkew()
    right, error = NOON, 0.0
    for _ in range(3):
        right += 5.0
        answer(skew, -error, right + error)
    for _ in range(jumps):
        right += chance.uniform(0.0, 20.0)
        by = chance.choice([-1, 1]) * chance.choice([1.5, 30.0, 3600.0, 86_400.0])
        error += by
        skew.set(by, right + error)
        found = skew.offset(right + error)
        assert found is not None
        assert abs(found + error) < 2.0
        right += chance.uniform(0.0, UNCONFIRMED_S - 1)
        answer(skew, -error, right + error, took=chance.uniform(0.01, 1.0))
        assert skew.settled(right + error)
        found = skew.offset(right + error)
        assert found is not None
        assert abs(found + error) < 2.0


def test_a_machine_that_slept_is_not_set_back() -> None:
    """It looks like a clock that was set ahead, until the vendor tells its time."""
    for witness in ("date", "stamp", "none"):
        skew = ClockSkew()
        for number in range(5):
            answer(skew, 0.0, NOON + number)
        woken = NOON + 7200.0
        skew.set(7190.0, woken)
        found = skew.offset(woken)
        assert found is not None
        assert abs(found + 7190.0) < 2.0
        if witness == "date":
            answer(skew, 0.0, woken + 1)
        elif witness == "stamp":
            skew.stamp(woken, woken + 1)
        at = woken + (2.0 if witness != "none" else UNCONFIRMED_S + 1.0)
        assert skew.offset(at) is None


@given(st.lists(st.floats(-LIMIT_S, LIMIT_S), min_size=3, max_size=3))
def test_a_clock_that_is_right_is_no_news(jitter: list[float]) -> None:
    skew = ClockSkew()
    for number, one in enumerate(jitter):
        answer(skew, one / 3, NOON + number)
    found = skew.offset(NOON + 3)
    assert found is None or abs(found) <= LIMIT_S
