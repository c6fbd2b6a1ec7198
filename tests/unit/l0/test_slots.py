from datetime import date

from enhanced_websocket_service.l0.slots import (
    completed_days,
    settled_labels,
    slots_ended_since,
    window_slots,
)

from .fakes import CALENDAR, at

FRIDAY = date(2025, 6, 6)


def test_a_slot_is_settled_three_minutes_after_its_end() -> None:
    assert settled_labels(CALENDAR, FRIDAY, at("2025-06-06T08:07:59")) == []
    assert settled_labels(CALENDAR, FRIDAY, at("2025-06-06T08:08")) == [at("2025-06-06T08:00")]
    assert len(settled_labels(CALENDAR, FRIDAY, at("2025-06-06T13:02:59"))) == 59
    assert len(settled_labels(CALENDAR, FRIDAY, at("2025-06-06T13:03"))) == 60
    assert settled_labels(CALENDAR, date(2025, 6, 7), at("2025-06-09T00:00")) == []


def test_a_day_is_complete_three_minutes_after_its_last_bar() -> None:
    assert completed_days(CALENDAR, at("2025-06-06T13:02:59"), 2) == [
        date(2025, 6, 4),
        date(2025, 6, 5),
    ]
    assert completed_days(CALENDAR, at("2025-06-06T13:03"), 2) == [date(2025, 6, 5), FRIDAY]


def test_the_window_skips_weekends_and_holidays() -> None:
    # Monday 2025-06-02 is Ascension Day (observed) in Colombia.
    window = window_slots(CALENDAR, at("2025-06-06T09:00"), 7)
    days = sorted({CALENDAR.local_date(slot).isoformat() for slot in window})
    assert days == [
        "2025-05-27",
        "2025-05-28",
        "2025-05-29",
        "2025-05-30",
        "2025-06-03",
        "2025-06-04",
        "2025-06-05",
        "2025-06-06",
    ]
    # Of today: 08:00 .. 08:50; the 08:55 bar ended just now.
    assert len(window) == 7 * 60 + 11


def test_slots_ended_since_counts_sessions_only() -> None:
    friday_end = at("2025-06-06T13:00")
    assert slots_ended_since(CALENDAR, friday_end, at("2025-06-09T07:59")) == 0
    assert slots_ended_since(CALENDAR, friday_end, at("2025-06-09T08:05")) == 1
    assert slots_ended_since(CALENDAR, friday_end, at("2025-06-09T13:00")) == 60
    assert slots_ended_since(CALENDAR, at("2025-06-06T12:55"), friday_end) == 1
