"""The learned silences: days, medians, decay, damage; and today's pace."""

import json
import random
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.market.liveness.baseline import (
    DAYS_KEPT,
    PRIOR,
    InactivityBaseline,
    Usual,
)
from enhanced_websocket_service.market.liveness.inter_arrival import (
    LATEST_S,
    SOONEST_S,
    InterArrivalTimes,
    MinuteStatistics,
)

DAYS = [f"2026-11-{day:02}" for day in range(2, 28)]
SYMBOL = "USDCOP"


def taught(*days: tuple[str, int, float]) -> InactivityBaseline:
    """Each day the same in every minute: ticks a minute and the longest silence."""
    profile = InactivityBaseline()
    for day, ticks, silence in days:
        for minute in range(20):
            profile.learn(SYMBOL, day, minute, ticks, silence)
    return profile


def test_before_anything_was_learned_a_tick_a_second_is_expected() -> None:
    assert InactivityBaseline().usual(SYMBOL, DAYS[0], 5) == PRIOR
    assert 8 <= InterArrivalTimes().suspect_after(PRIOR) <= 10


def test_earlier_days_count_and_today_does_not() -> None:
    profile = taught((DAYS[0], 3, 40.0))
    assert profile.usual(SYMBOL, DAYS[0], 5) == PRIOR
    assert profile.usual(SYMBOL, DAYS[1], 5) == Usual(silence_s=40.0, gap_s=20.0, days=1)
    assert profile.usual("EURUSD", DAYS[1], 5) == PRIOR
    assert profile.usual(SYMBOL, DAYS[1], 400) == PRIOR


def test_one_odd_day_changes_little() -> None:
    usual = [(day, 60, 6.0) for day in DAYS[:5]]
    for odd in ((DAYS[5], 1, 200.0), (DAYS[5], 6000, 1.0)):
        found = taught(*usual, odd).usual(SYMBOL, DAYS[6], 10)
        assert (found.silence_s, found.gap_s) == (6.0, 1.0)


def test_a_lasting_change_is_learned_within_days() -> None:
    before = [(day, 60, 6.0) for day in DAYS[:8]]
    after = [(day, 2, 90.0) for day in DAYS[8:13]]
    assert taught(*before, *after[:2]).usual(SYMBOL, DAYS[13], 10).silence_s == 6.0
    assert taught(*before, *after).usual(SYMBOL, DAYS[13], 10).silence_s == 90.0


def test_old_days_are_forgotten() -> None:
    profile = taught(*[(day, 60, 6.0) for day in DAYS])
    assert profile.usual(SYMBOL, "2026-12-01", 10).days == DAYS_KEPT


def test_minutes_around_count_and_unheard_ones_do_not() -> None:
    profile = InactivityBaseline()
    for minute, silence in ((4, 10.0), (6, 30.0)):
        profile.learn(SYMBOL, DAYS[0], minute, 10, silence)
    assert profile.usual(SYMBOL, DAYS[1], 5).silence_s == 30.0
    assert profile.usual(SYMBOL, DAYS[1], 3) == PRIOR, "one minute alone is too little"


def test_it_comes_back_from_json_as_it_was() -> None:
    profile = taught((DAYS[0], 3, 40.0), (DAYS[1], 60, 6.0))
    again = InactivityBaseline()
    again.restore(json.loads(json.dumps(profile.export())), DAYS[2])
    assert again.export() == profile.export()
    again.learn(SYMBOL, DAYS[1], 7, 50, 9.0)  # going on with the day


def test_days_of_another_timeline_are_left_out() -> None:
    profile = InactivityBaseline()
    profile.restore(taught((DAYS[0], 3, 40.0), (DAYS[9], 60, 6.0)).export(), DAYS[5])
    assert profile.usual(SYMBOL, DAYS[20], 5).days == 1


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        [],
        {"version": 1},
        {"version": 2, "symbols": {}},
        {"version": 1, "symbols": {"A": [{"day": "2026-11-02", "ticks": [1], "silence": []}]}},
        {"version": 1, "symbols": {"A": [{"day": "2026-11-02", "ticks": [-5], "silence": [1]}]}},
        {"version": 1, "symbols": {"A": [{"day": "2026-11-02"}, {"day": "2026-11-02"}]}},
        {"version": 1, "symbols": {"A": [{"day": 5}]}},
    ],
)
def test_what_is_damaged_is_refused_whole(damaged: object) -> None:
    profile = taught((DAYS[0], 3, 40.0))
    before = profile.export()
    with pytest.raises(ValueError, match=r"\w+"):
        profile.restore(damaged, DAYS[20])
    assert profile.export() == before


@given(
    st.lists(st.tuples(st.sampled_from(DAYS), st.integers(0, 500), st.floats(0, 400)), max_size=9)
)
def test_whatever_was_learned_the_limit_is_sane(days: list[tuple[str, int, float]]) -> None:
    usual = taught(*sorted(days)).usual(SYMBOL, "2026-12-01", 10)
    assert SOONEST_S <= InterArrivalTimes().suspect_after(usual) <= LATEST_S


def pace(gaps: list[float]) -> InterArrivalTimes:
    found, at = InterArrivalTimes(), 1e9
    found.price(at)
    for gap in gaps:
        at += gap
        found.price(at)
    return found


def test_a_thin_day_is_believed_after_three_silences() -> None:
    usual = Usual(silence_s=6.3, gap_s=1.0, days=5)
    brisk = [1.0] * 50
    assert pace(brisk).suspect_after(usual) < 10
    assert pace([*brisk, 60.0, 60.0]).suspect_after(usual) < 10
    assert pace([*brisk, 60.0, 60.0, 60.0]).suspect_after(usual) == LATEST_S
    assert pace([60.0] * 5 + brisk).suspect_after(usual) < 10


def test_a_brisk_day_is_believed_after_a_minute() -> None:
    usual = Usual(silence_s=100.0, gap_s=50.0, days=5)
    assert pace([1.0] * 59).suspect_after(usual) == LATEST_S
    assert pace([1.0] * 60).suspect_after(usual) == SOONEST_S


def test_prices_in_bursts_count_once() -> None:
    usual = Usual(silence_s=6.3, gap_s=1.0, days=5)
    assert pace([60.0, 0.1, 0.1, 0.0] * 4).suspect_after(usual) == LATEST_S


def test_the_pace_of_a_random_market_is_about_eight_to_ten_seconds() -> None:
    rng = random.Random(4)
    usual = Usual(silence_s=6.3, gap_s=1.0, days=5)
    limits = [
        pace([rng.expovariate(1.0) for _ in range(300)]).suspect_after(usual) for _ in range(99)
    ]
    assert 8 <= sorted(limits)[49] <= 10
    assert sorted(limits)[90] <= 12


def test_minutes_end_with_their_ticks_and_longest_silence() -> None:
    minute, day = MinuteStatistics(), date(2026, 11, 20)
    assert minute.advance(day, 3, 0.0) == []
    minute.tick(4.0)
    minute.tick(9.0)
    assert minute.advance(day, 3, 1.0) == []
    assert minute.advance(day, 6, 150.0) == [(3, 2, 9.0), (4, 0, 150.0), (5, 0, 150.0)]
    assert minute.advance(date(2026, 11, 23), 0, 0.0) == [], "the night is no silence"
