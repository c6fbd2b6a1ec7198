"""The calendar against the list of closures that was checked against six years of bars."""

import csv
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.market.calendar import (
    BOGOTA,
    TradingCalendar,
    is_trading_day,
    iso_local,
)
from tests.shared_data import shared


def test_agrees_with_the_checked_list_on_every_day_of_2020_to_2030() -> None:
    path = shared("data/trading_calendar_2020_2030.csv")
    with path.open() as lines:
        closures = {date.fromisoformat(row["date"]) for row in csv.DictReader(lines)}
    day, wrong, days = date(2020, 1, 1), [], 0
    while day <= date(2030, 12, 31):
        if is_trading_day(day) != (day.weekday() < 5 and day not in closures):
            wrong.append(day)
        day += timedelta(days=1)
        days += 1
    assert days == 4018
    assert wrong == []


@pytest.mark.parametrize(
    ("day", "trades"),
    [
        (date(2025, 1, 6), False),  # Epiphany
        (date(2024, 5, 13), False),  # Ascension, moved to Monday
        (date(2025, 4, 17), False),  # Maundy Thursday
        (date(2024, 12, 24), True),  # a full session
        (date(2024, 12, 31), False),  # last weekday of the year
        (date(2026, 7, 13), False),  # missing in older versions of `holidays`
        (date(2024, 11, 28), True),  # Thanksgiving: thin, but open
        (date(2024, 5, 11), False),  # Saturday
    ],
)
def test_known_days(day: date, trades: bool) -> None:
    assert is_trading_day(day) is trades


def test_session_bounds_and_labels() -> None:
    calendar = TradingCalendar()
    session = calendar.session(date(2025, 1, 20))
    assert session is not None
    assert iso_local(session.opens) == "2025-01-20T08:00:00-05:00"
    assert iso_local(session.closes) == "2025-01-20T12:55:00-05:00"
    expected = calendar.expected_labels(date(2025, 1, 20))
    live = calendar.live_labels(date(2025, 1, 20))
    assert (len(expected), len(live)) == (60, 59)
    assert iso_local(expected[-1]) == "2025-01-20T12:55:00-05:00"
    assert iso_local(live[-1]) == "2025-01-20T12:50:00-05:00"
    assert calendar.expected_labels(date(2025, 1, 19)) == []


def test_open_is_inclusive_and_close_exclusive() -> None:
    calendar = TradingCalendar()
    opens = datetime(2025, 1, 20, 13, 0, tzinfo=UTC).timestamp()
    closes = datetime(2025, 1, 20, 17, 55, tzinfo=UTC).timestamp()
    assert not calendar.is_open(opens - 0.001)
    assert calendar.is_open(opens)
    assert calendar.is_open(closes - 0.001)
    assert not calendar.is_open(closes)
    assert not calendar.is_open(opens - 86400)  # the Sunday before


def test_next_session_skips_weekend_and_holiday() -> None:
    calendar = TradingCalendar()
    friday_noon = datetime(2024, 5, 10, 17, 0, tzinfo=UTC).timestamp()
    assert calendar.current_or_next(friday_noon).day == date(2024, 5, 10)
    assert calendar.next_after(friday_noon).day == date(2024, 5, 14)
    after_close = datetime(2024, 5, 10, 17, 55, tzinfo=UTC).timestamp()
    assert calendar.current_or_next(after_close).day == date(2024, 5, 14)


def test_extra_closures_and_openings_win_over_the_rule() -> None:
    monday, saturday = date(2025, 1, 20), date(2025, 1, 18)
    calendar = TradingCalendar(extra_closures=[monday], extra_openings=[saturday])
    assert calendar.closure(monday) == "Closed by setting"
    assert calendar.holiday(monday) == "Closed by setting"
    assert calendar.is_trading_day(saturday)
    assert TradingCalendar().holiday(saturday) is None
    assert TradingCalendar().holiday(date(2025, 1, 6)) == "Epiphany"


@given(
    st.integers(-(10**10), 10**11) | st.floats(-1e10, 1e11) | st.integers(0, 9).map(lambda i: i / 7)
)
def test_times_are_written_as_the_standard_library_writes_them(instant: float) -> None:
    """Their second comes from a cache; the rest is put together here."""
    assert iso_local(instant) == datetime.fromtimestamp(instant, BOGOTA).isoformat()


@pytest.mark.parametrize("instant", [1748955600.9999999, -0.5, 0.9999996, 1748955600.0000004])
def test_microseconds_are_rounded_into_the_next_second(instant: float) -> None:
    assert iso_local(instant) == datetime.fromtimestamp(instant, BOGOTA).isoformat()
