"""The hours of several symbols together."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.market.calendar import TradingCalendar, named_calendar
from enhanced_websocket_service.market.hours import MarketHours

INSTANTS = st.integers(1_577_836_800, 1_893_456_000)  # 2020 to 2030


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@given(INSTANTS)
def test_of_one_market_they_are_its_own(instant: int) -> None:
    calendar = TradingCalendar()
    hours = MarketHours({"USDCOP": calendar})
    session = calendar.current_or_next(instant)
    assert hours.opening(instant) == (session.opens, session.closes)
    assert hours.is_open(instant) is calendar.is_open(instant)
    assert hours.today(instant) == calendar.local_date(instant)


@given(INSTANTS)
def test_credits_last_to_the_last_close_of_the_utc_day(instant: int) -> None:
    calendars = {
        "USDCOP": TradingCalendar(),
        "EURUSD": named_calendar("fx"),
        "BTCUSD": named_calendar("24x7"),
    }
    opens, closes = MarketHours(calendars).opening(instant)
    assert opens <= instant < closes
    assert closes >= instant // 86_400 * 86_400 + 86_400


def test_before_the_first_open_it_is_the_next_one() -> None:
    hours = MarketHours({"USDCOP": TradingCalendar(), "EURUSD": named_calendar("fx")})
    saturday = at("2025-06-07T12:00")
    assert not hours.is_open(saturday)
    # Sunday evening in New York; the Colombian session is on Monday, another UTC day.
    assert hours.opening(saturday) == (at("2025-06-08T21:00"), at("2025-06-09T21:00"))
