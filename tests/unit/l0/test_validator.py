"""Hand-computed cases. In 2025: Jun 2 and Jun 23 are holiday Mondays; Jun 9 is a plain Monday."""

import pytest

from enhanced_websocket_service.l0.validator import Assessment, assess, worst

from .fakes import CALENDAR, at, session_bars

WEEK = ("2025-05-28", "2025-05-29", "2025-05-30", "2025-06-03", "2025-06-04", "2025-06-05")
SEVEN = (*WEEK, "2025-06-06")


def slots(*days: str) -> list[int]:
    return [one.open_time for one in session_bars(*days)]


def judge(have: list[int], now: str, **more: object) -> Assessment:
    last = more.get("last_open", max(have, default=None))
    assert last is None or isinstance(last, int)
    return assess(have, last_open=last, calendar=CALENDAR, now=at(now))


def test_monday_morning_after_a_complete_friday_is_fresh_and_complete() -> None:
    verdict = judge(slots(*SEVEN), "2025-06-09T07:45")
    assert verdict.data_freshness_hours == pytest.approx(66.75)  # Friday 13:00 .. Monday 07:45
    assert (verdict.missing_slots, verdict.is_fresh) == (0, True)
    assert (verdict.expected, verdict.present) == (420, 420)
    assert verdict.completeness_percentage == 100.0
    assert verdict.ok
    assert verdict.reasons == ()
    assert verdict.last_bar_end == at("2025-06-06T13:00")


def test_a_partial_bar_is_fresh_but_not_complete() -> None:
    have = slots(*SEVEN)
    whole, partial = have[:360], have[360:]
    verdict = assess(
        whole, partial=partial, last_open=have[-1], calendar=CALENDAR, now=at("2025-06-09T07:45")
    )
    assert (verdict.is_fresh, verdict.is_complete) == (True, False)
    assert (verdict.present, verdict.gaps, verdict.partial) == (360, tuple(partial), tuple(partial))
    assert verdict.lacks_whole_bars_only
    assert "60 more have only partial or close-only bars" in verdict.reasons[0]
    verdict = assess(
        whole, partial=partial[:20], last_open=None, calendar=CALENDAR, now=at("2025-06-09T07:45")
    )
    assert not verdict.lacks_whole_bars_only


def test_a_holiday_monday_ages_nothing() -> None:
    # Friday 2025-05-30 complete, Monday Jun 2 is a holiday, now Tuesday before the open.
    days = ("2025-05-22", "2025-05-23", "2025-05-26", "2025-05-27", *WEEK[:3])
    verdict = judge(slots(*days), "2025-06-03T07:30")
    assert verdict.data_freshness_hours == pytest.approx(90.5)
    assert verdict.missing_slots == 0
    assert verdict.ok


def test_a_whole_session_behind_is_stale() -> None:
    have = slots(*SEVEN)
    # At 12:59:59 on Monday 59 slots have ended since Friday's last bar; at 13:00 all 60 have.
    assert judge(have, "2025-06-09T12:59:59").missing_slots == 59
    assert judge(have, "2025-06-09T12:59:59").is_fresh
    verdict = judge(have, "2025-06-09T13:00")
    assert verdict.missing_slots == 60
    assert not verdict.is_fresh
    assert "60 expected slots" in verdict.reasons[0]
    assert "2025-06-06T13:00:00-05:00" in verdict.reasons[0]


def test_the_1255_bar_is_missed_only_once_it_could_be_there() -> None:
    have = slots("2025-05-27", *SEVEN)[:-1]  # Friday's 12:55 bar is not there
    assert judge(have, "2025-06-06T13:02:59").gaps == ()
    verdict = judge(have, "2025-06-06T13:03")
    assert verdict.gaps == (at("2025-06-06T12:55"),)
    assert verdict.expected == 420
    assert verdict.missing_slots == 1


def test_todays_slots_count_after_three_minutes() -> None:
    have = slots(*SEVEN)
    assert judge(have, "2025-06-09T08:07:59").expected == 420
    verdict = judge(have, "2025-06-09T08:08")
    assert (verdict.expected, verdict.present) == (421, 420)


def test_exactly_95_percent_is_not_complete() -> None:
    have = slots(*SEVEN)
    last = have[-1]
    exactly = judge([*have[:398], last], "2025-06-07T10:00")  # 399 of 420
    assert exactly.completeness_percentage == 95.0
    assert not exactly.is_complete
    assert exactly.is_fresh
    assert "399 of 420" in exactly.reasons[0]
    above = judge([*have[:399], last], "2025-06-07T10:00")
    assert above.is_complete
    assert above.ok


def test_day_one_is_fresh_but_far_from_complete() -> None:
    verdict = judge(slots("2025-06-06"), "2025-06-06T18:00")
    assert verdict.is_fresh
    assert not verdict.is_complete
    assert (verdict.present, verdict.expected) == (60, 420)
    assert verdict.completeness_percentage == pytest.approx(100 / 7)
    assert verdict.gaps[0] == at("2025-05-28T08:00")


def test_no_data_at_all() -> None:
    verdict = judge([], "2025-06-09T07:45")
    assert verdict.data_freshness_hours is None
    assert verdict.last_bar_end is None
    assert not verdict.is_fresh
    assert not verdict.is_complete
    assert verdict.missing_slots == 420
    assert verdict.completeness_percentage == 0.0
    assert "no bar at all" in verdict.reasons[0]


def test_a_bar_older_than_the_window_still_tells_the_age() -> None:
    verdict = judge([], "2025-06-09T07:45", last_open=at("2025-05-09T12:55"))
    assert verdict.data_freshness_hours == pytest.approx((31 * 24) - 5.25)
    assert verdict.missing_slots == 19 * 60
    assert not verdict.is_fresh


def test_bars_of_the_future_and_forming_bars_prove_nothing() -> None:
    have = [*slots(*SEVEN), at("2025-06-09T08:00"), at("2025-06-10T08:00")]
    verdict = judge(have, "2025-06-09T08:04:59")
    assert verdict.last_bar_end == at("2025-06-06T13:00")
    assert judge(have, "2025-06-09T08:05").last_bar_end == at("2025-06-09T08:05")


def test_the_worst_of_several_symbols_decides() -> None:
    good = judge(slots(*SEVEN), "2025-06-09T07:45")
    bad = judge(slots(*SEVEN[:-1]), "2025-06-09T07:45")
    none = judge([], "2025-06-09T07:45")
    assert worst([good]) is good
    both = worst([good, bad])
    assert not both.is_fresh
    assert not both.is_complete
    assert both.data_freshness_hours == bad.data_freshness_hours
    assert both.reasons == bad.reasons
    assert worst([bad, none]).data_freshness_hours is None
