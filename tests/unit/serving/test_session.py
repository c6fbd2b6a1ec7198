"""The session answer against times worked out by hand."""

from datetime import datetime

import pytest

from enhanced_websocket_service.market.calendar import TradingCalendar, named_calendar
from enhanced_websocket_service.serving.session import session_view


@pytest.mark.parametrize(
    ("at", "status", "until_close", "until_open", "next_start"),
    [
        ("2025-01-20T10:30:00", "open", 145, None, "2025-01-21T08:00:00"),
        ("2025-01-20T12:54:01", "open", 1, None, "2025-01-21T08:00:00"),
        ("2025-01-20T12:55:00", "closed", None, 1145, "2025-01-21T08:00:00"),
        ("2025-01-20T07:59:59", "closed", None, 1, "2025-01-20T08:00:00"),
        ("2025-01-20T08:00:00", "open", 295, None, "2025-01-21T08:00:00"),
        ("2025-01-18T12:00:00", "closed", None, 2640, "2025-01-20T08:00:00"),  # Saturday
        ("2025-03-21T13:00:00", "closed", None, 5460, "2025-03-25T08:00:00"),  # a long weekend
    ],
)
def test_sessions(
    at: str, status: str, until_close: int | None, until_open: int | None, next_start: str
) -> None:
    now = datetime.fromisoformat(f"{at}-05:00").timestamp()
    answer = session_view(TradingCalendar(), now).model_dump(mode="json")
    assert answer["status"] == status
    assert answer["minutes_until_close"] == until_close
    assert answer["minutes_until_open"] == until_open
    assert answer["next_session_start"] == f"{next_start}-05:00"
    assert (answer["current_session_end"] is None) == (status == "closed")


def test_holidays_are_named() -> None:
    now = datetime.fromisoformat("2025-03-24T10:00:00-05:00").timestamp()
    view = session_view(TradingCalendar(), now)
    assert not view.is_trading_day
    assert view.holiday
    weekend = session_view(TradingCalendar(), now - 86400)
    assert (weekend.is_trading_day, weekend.holiday) == (False, None)


def test_each_market_in_its_own_zone() -> None:
    now = datetime.fromisoformat("2025-07-02T10:30:00-05:00").timestamp()
    fx = session_view(named_calendar("fx"), now).model_dump(mode="json")
    assert (fx["calendar"], fx["timezone"], fx["status"]) == ("fx", "America/New_York", "open")
    assert fx["current_session_start"] == "2025-07-01T17:00:00-04:00"
    assert fx["current_session_end"] == fx["next_session_start"] == "2025-07-02T17:00:00-04:00"
    assert fx["minutes_until_close"] == 330
    saturday = session_view(named_calendar("fx"), now + 3 * 86_400).model_dump(mode="json")
    assert (saturday["status"], saturday["holiday"]) == ("closed", None)
    assert saturday["next_session_start"] == "2025-07-06T17:00:00-04:00"
    always = session_view(named_calendar("24x7"), now).model_dump(mode="json")
    assert always["current_session_end"] == "2025-07-03T00:00:00+00:00"
