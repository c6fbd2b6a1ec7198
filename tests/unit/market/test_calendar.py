"""The calendar against the list of closures that was checked against six years of bars."""

import csv
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.market.calendar import (
    BOGOTA,
    CALENDARS,
    MIDNIGHT,
    TradingCalendar,
    is_trading_day,
    iso_local,
    named_calendar,
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


NEW_YORK = ZoneInfo("America/New_York")
INSTANTS = st.integers(1_514_764_800, 2_051_222_400)  # 2018 to 2034


def utc_at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("opens", "closes"),
    [
        # A week each, in UTC by hand: New York is 5 hours behind in winter, 4 in summer.
        ("2025-01-12T22:00", "2025-01-17T22:00"),
        ("2025-03-02T22:00", "2025-03-07T22:00"),
        ("2025-03-09T21:00", "2025-03-14T21:00"),  # the clocks went ahead that morning
        ("2025-10-26T21:00", "2025-10-31T21:00"),
        ("2025-11-02T22:00", "2025-11-07T22:00"),  # and back on that one
        ("2025-12-21T22:00", "2025-12-26T22:00"),
    ],
)
def test_fx_is_open_from_sunday_to_friday_evening_in_new_york(opens: str, closes: str) -> None:
    fx = named_calendar("fx")
    first, last = utc_at(opens), utc_at(closes)
    assert not fx.is_open(first - 1)
    assert fx.is_open(first)
    assert fx.is_open(last - 1)
    assert not fx.is_open(last)
    assert fx.current_or_next(first - 86_400).opens == first
    sessions = []
    session = fx.current_or_next(first)
    while session.opens < last:
        sessions.append(session)
        session = fx.next_after(session.opens)
    # Days of 24 hours without a pause, named after the weekday on which they end.
    assert [one.day.weekday() for one in sessions] == [0, 1, 2, 3, 4]
    assert [one.closes - one.opens for one in sessions] == [86_400] * 5
    assert [one.opens for one in sessions[1:]] == [one.closes for one in sessions[:-1]]
    assert sessions[-1].closes == last


@given(INSTANTS)
def test_fx_agrees_with_the_wall_clock_of_new_york(instant: int) -> None:
    local = datetime.fromtimestamp(instant, NEW_YORK)
    evening = local.hour >= 17
    expected = {4: not evening, 5: False, 6: evening}.get(local.weekday(), True)
    fx = named_calendar("fx")
    assert fx.is_open(instant) is expected
    session = fx.open_session(instant)
    assert (session is not None) is expected
    if session is not None:
        assert session.opens <= instant < session.closes
        assert session.day == fx.local_date(instant) == (local + timedelta(hours=7)).date()
        labels = fx.expected_labels(session.day)
        assert (len(labels), labels[0], labels[-1]) == (288, session.opens, session.closes - 300)
        assert labels == fx.live_labels(session.day)
        assert fx.day_start(session.day) == session.opens


@given(INSTANTS)
def test_around_the_clock_there_is_always_a_session_of_a_utc_day(instant: int) -> None:
    day = datetime.fromtimestamp(instant, UTC).date()
    calendar = named_calendar("24x7")
    session = calendar.open_session(instant)
    assert session is not None
    assert (session.day, session.closes - session.opens) == (day, 86_400)
    assert calendar.next_after(instant).opens == session.closes
    assert len(calendar.expected_labels(session.day)) == 288
    assert calendar.holiday(session.day) is None


def test_a_close_at_midnight_is_the_end_of_the_day() -> None:
    """MARKET_OPEN=00:00, MARKET_CLOSE=24:00: no bar is missing, and none is in two days."""
    calendar = TradingCalendar(time(0), MIDNIGHT)
    tuesday, wednesday = date(2025, 6, 3), date(2025, 6, 4)
    session = calendar.session(tuesday)
    assert session is not None
    assert iso_local(session.opens) == "2025-06-03T00:00:00-05:00"
    assert iso_local(session.closes) == "2025-06-04T00:00:00-05:00"
    labels = calendar.expected_labels(tuesday)
    assert len(labels) == 288
    assert iso_local(labels[-1]) == "2025-06-03T23:55:00-05:00"
    assert not set(labels) & set(calendar.expected_labels(wednesday))
    assert calendar.is_open(session.closes - 1)
    assert calendar.open_session(session.closes) == calendar.session(wednesday)
    assert not calendar.is_open(datetime(2025, 6, 7, 12, tzinfo=BOGOTA).timestamp())  # Saturday


def test_an_unknown_name_is_no_calendar() -> None:
    with pytest.raises(KeyError):
        named_calendar("nyse")
    assert CALENDARS == ("default", "fx", "24x7")
