"""Our trading days against those of the Colombian stock exchange, as another project lists them."""

import warnings
from datetime import date, timedelta

import exchange_calendars

from enhanced_websocket_service.market.calendar import is_trading_day

FIRST, LAST = date(2020, 1, 1), date(2026, 7, 10)
"""On 2026-07-13 the other list lacks a holiday."""


def test_trading_days_agree_with_the_stock_exchange() -> None:
    with warnings.catch_warnings():
        # It uses a pandas attribute that a later pandas will change; not ours to mend.
        warnings.filterwarnings("ignore", module="pandas|exchange_calendars")
        warnings.filterwarnings("ignore", message=".*deprecated.*")
        exchange = exchange_calendars.get_calendar("XBOG", start=str(FIRST), end=str(LAST))
    sessions = {stamp.date() for stamp in exchange.sessions}
    days = [FIRST + timedelta(days=i) for i in range((LAST - FIRST).days + 1)]
    assert len(sessions) > 1_500
    assert [day for day in days if is_trading_day(day) != (day in sessions)] == []
