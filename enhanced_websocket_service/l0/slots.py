"""Slots: the 5-minute labels history is expected to have, by when. Pure.

A slot is the open time of a bar, unix seconds UTC. It is *settled* once its bar ended more than three
minutes ago: until then the vendor may not have published it, and its absence says nothing.
"""

from datetime import date, timedelta

from enhanced_websocket_service.market.calendar import BAR_SECONDS, TradingCalendar
from enhanced_websocket_service.market.slot import SETTLE_S


def settled_labels(calendar: TradingCalendar, day: date, now: float) -> list[int]:
    """The slots of ``day`` that history must have at ``now``."""
    return [
        label for label in calendar.expected_labels(day) if label + BAR_SECONDS + SETTLE_S <= now
    ]


def completed_days(calendar: TradingCalendar, now: float, count: int) -> list[date]:
    """The last ``count`` trading days whose every slot is settled, oldest first."""
    days: list[date] = []
    day = calendar.local_date(now)
    while len(days) < count:
        labels = calendar.expected_labels(day)
        if labels and labels[-1] + BAR_SECONDS + SETTLE_S <= now:
            days.append(day)
        day -= timedelta(days=1)
    return days[::-1]


def window_slots(calendar: TradingCalendar, now: float, window_days: int) -> list[int]:
    """The settled slots of the last ``window_days`` completed trading days and of today."""
    days = completed_days(calendar, now, window_days)
    today = calendar.local_date(now)
    if today not in days:
        days.append(today)
    return [label for day in days for label in settled_labels(calendar, day, now)]


def slots_ended_since(calendar: TradingCalendar, since: float, now: float) -> int:
    """How many expected slots ended after ``since`` and not later than ``now``."""
    return sum(
        since < label + BAR_SECONDS <= now
        for day in calendar.trading_days(calendar.local_date(since), calendar.local_date(now))
        for label in calendar.expected_labels(day)
    )
