"""The hours of several symbols together: who is collected now, and until when credits must last. Pure."""

from collections.abc import Mapping
from datetime import date
from typing import NamedTuple

from .calendar import DAY_S, Session, TradingCalendar


class Opening(NamedTuple):
    """From the open of the first symbol to the close of the last, unix seconds UTC."""

    opens: int
    closes: int


class MarketHours:
    """The calendars of the symbols that one feed collects."""

    def __init__(self, calendars: Mapping[str, TradingCalendar]) -> None:
        self._calendars = dict(calendars)

    def is_open(self, at: float) -> bool:
        """Whether any of the markets is open at ``at``."""
        return any(one.is_open(at) for one in self._calendars.values())

    def today(self, at: float) -> date:
        """The latest day that it is anywhere."""
        return max(one.local_date(at) for one in self._calendars.values())

    def opening(self, at: float) -> Opening:
        """What the credits of a day are spread over: from the sessions that are open at ``at``, or the
        next to open, to the last close of all that open before the end of that UTC day.
        """
        calendars = tuple(self._calendars.values())
        sessions = [one.current_or_next(at) for one in calendars]
        opens = min(one.opens for one in sessions)
        midnight = (int(max(at, opens)) // DAY_S + 1) * DAY_S
        return Opening(
            opens,
            max(
                _last(one, session, midnight).closes
                for one, session in zip(calendars, sessions, strict=True)
                if session.opens < midnight
            ),
        )


def _last(calendar: TradingCalendar, session: Session, before: int) -> Session:
    """The last session from ``session`` on that opens before ``before``."""
    while (following := calendar.next_after(session.opens)).opens < before:
        session = following
    return session
