"""The market session as an answer: pure arithmetic over the calendar."""

import math

from enhanced_websocket_service.market.calendar import TradingCalendar

from .models import SessionView


def session_view(calendar: TradingCalendar, now: float) -> SessionView:
    """Where the market of ``calendar`` stands at ``now`` (unix seconds UTC)."""
    today = calendar.local_date(now)
    session = calendar.session_on(now)
    is_open = session is not None and session.opens <= now < session.closes
    current = session if is_open else None
    following = calendar.next_after(now)
    return SessionView(
        calendar=calendar.name,
        timezone=calendar.zone.key,
        status="open" if is_open else "closed",
        is_trading_day=calendar.is_trading_day(today),
        holiday=calendar.holiday(today),
        current_session_start=None if current is None else current.opens,
        current_session_end=None if current is None else current.closes,
        minutes_until_close=None if current is None else _minutes(current.closes - now),
        next_session_start=following.opens,
        next_session_end=following.closes,
        minutes_until_open=None if is_open else _minutes(following.opens - now),
    )


def _minutes(seconds: float) -> int:
    """Rounded up: "0 minutes" would say that it has happened."""
    return math.ceil(seconds / 60)
