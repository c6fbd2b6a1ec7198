"""Who covers a slot, and why something lacks."""

from datetime import date

import pytest

from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.continuity import (
    Mark,
    Slot,
    Span,
    judge_slot,
    spans,
    summarise,
)
from enhanced_websocket_service.market.slot import SlotEvidence, SourceBar, VendorGap
from enhanced_websocket_service.market.source import Provider

from .test_reconciliation import LIVE, PARTIAL, SLOT, evidence, stored

CALENDAR = TradingCalendar()
VENDOR = Provider("twelvedata")
LATER = SLOT + 3600.0
LAST = CALENDAR.expected_labels(date(2025, 6, 25))[-1]
UP = [Span(SLOT - 600.0, SLOT + 900.0, "active")]


def judged(known: SlotEvidence, now: float = LATER, known_spans: list[Span] | None = None) -> Slot:
    return judge_slot(known, now, CALENDAR, VENDOR, [] if known_spans is None else known_spans)


def test_the_slot_is_the_open() -> None:
    assert CALENDAR.expected_labels(date(2025, 6, 25))[0] == SLOT


@pytest.mark.parametrize(
    ("bars", "status", "source", "final", "grade"),
    [
        ((stored(status="reconciled"), LIVE), "both", "twelvedata", True, "whole"),
        ((stored(), LIVE), "both", "twelvedata", False, "whole"),
        ((stored(),), "vendor", "twelvedata", False, "whole"),
        ((stored("bank_export"),), "vendor", "bank_export", False, "whole"),
        ((LIVE,), "live", "twelvedata_websocket", False, "whole"),
        ((PARTIAL,), "live", "twelvedata_websocket", False, "partial"),
    ],
)
def test_who_covers_it(
    bars: tuple[SourceBar, ...], status: str, source: str, final: bool, grade: str
) -> None:
    slot = judged(evidence(*bars))
    assert (slot.status, slot.source, slot.final, slot.grade) == (status, source, final, grade)


def test_nothing_is_missing_before_it_is_due() -> None:
    assert judged(evidence(), SLOT + 10.0).reason == "Not over yet."
    # a virtual clock was set back over rows of its future
    assert judged(evidence(stored(), LIVE), SLOT + 10.0).status == "pending"
    assert judged(evidence(), SLOT + 479.0).status == "pending"
    assert judged(evidence(), SLOT + 480.0).status == "unknown"


@pytest.mark.parametrize(
    ("known_spans", "said"),
    [
        ([], "The service was not running."),
        (UP, "The feed was silent"),
        ([Span(SLOT + 200.0, SLOT + 900.0, "active")], "for 100 s of it"),
        ([Span(SLOT - 9.0, SLOT + 900.0, "waiting_l0")], "not collecting: waiting_l0."),
        (
            [Span(SLOT - 9.0, SLOT + 900.0, "error", "The disk is full.")],
            "not collecting: error (The disk is full.).",
        ),
    ],
)
def test_why_there_is_no_live_bar(known_spans: list[Span], said: str) -> None:
    slot = judged(evidence(), known_spans=known_spans)
    assert slot.status == "unknown"
    assert said in (slot.reason or "")
    assert "was not asked yet" in (slot.reason or "")
    filled = judged(evidence(stored()), known_spans=known_spans)
    assert said in (filled.reason or "")


def test_why_there_is_no_vendor_bar() -> None:
    slot = judged(evidence(LIVE, gap=VendorGap(3, SLOT + 1800.0)))
    assert slot.reason == "The vendor was asked 3 times, last on 2025-06-25 08:30, and has no bar."
    once = judged(evidence(gap=VendorGap(1, SLOT + 1800.0)), known_spans=UP)
    assert "asked once" in (once.reason or "")


def test_live_collection_ends_before_the_last_slot() -> None:
    slot = judged(evidence(stored(), slot=LAST), LAST + 3600.0)
    assert slot.reason == "Live collection ends before it."


def test_nothing_is_known_between_two_processes() -> None:
    marks = [
        Mark(100.0, "checking_data", 1),
        Mark(110.0, "active", 1),
        Mark(170.0, "active", 1),
        Mark(500.0, "active", 2),
    ]
    assert spans(marks) == [
        Span(100.0, 110.0, "checking_data"),
        Span(110.0, 170.0, "active"),
        Span(170.0, 170.0, "active"),
        Span(500.0, 500.0, "active"),
    ]
    assert spans(marks, alive=(2, 620.0))[-1] == Span(500.0, 620.0, "active")


def test_a_day_in_numbers() -> None:
    slots = [judged(evidence(stored(status="reconciled"), LIVE)), judged(evidence())]
    day = summarise(date(2025, 6, 25), slots)
    assert (day.expected, day.covered, day.both, day.unknown, day.final) == (2, 1, 1, 1, 1)


def test_an_hour_in_which_the_feed_was_dead_is_not_called_silent() -> None:
    """F7: stream refused and REST down, the state ACTIVE all along."""
    why = "no price for 120 s, the vendor answered 503"
    marks = [
        Mark(SLOT - 600.0, "active", 7),
        Mark(SLOT - 60.0, "active", 7, dead={"USDCOP": why, "EURUSD": "another"}),
        Mark(SLOT, "active", 7),  # a row of something else says nothing of it
        Mark(SLOT + 400.0, "active", 7, dead={}),
    ]
    alive = (7, SLOT + 900.0)
    assert judged(evidence(), known_spans=spans(marks, alive, "USDCOP")).reason == (
        f"The feed was dead: {why}. The vendor was not asked yet."
    )
    following = judged(evidence(slot=SLOT + 300), known_spans=spans(marks, alive, "USDCOP"))
    assert following.reason == (
        f"The feed was dead for 100 s of it ({why}); no tick came. The vendor was not asked yet."
    )
    assert judged(evidence(), known_spans=spans(marks, alive, "BTCUSD")).reason == (
        "The feed was silent: the service collected, and no tick came. The vendor was not asked yet."
    )


def test_of_several_symbols_each_has_a_proof_of_its_own() -> None:
    """The state of the service is that of the furthest: it says nothing of one that is in ERROR."""
    marks = [
        Mark(
            SLOT - 60.0,
            "active",
            7,
            symbols={"USDCOP": ("error", "No history."), "BTCUSD": ("active", "Collecting.")},
        ),
    ]
    alive = (7, SLOT + 900.0)
    assert judged(evidence(), known_spans=spans(marks, alive, "USDCOP")).reason == (
        "The service was not collecting: error (No history.). The vendor was not asked yet."
    )
    silent = judged(evidence(), known_spans=spans(marks, alive, "BTCUSD")).reason
    assert silent is not None
    assert silent.startswith("The feed was silent")


def test_a_slot_that_two_processes_shared_is_not_said_to_have_no_tick() -> None:
    """One is ended in it, the other goes on in the next slot: the ticks are stored, and no bar is."""
    marks = [Mark(SLOT - 60.0, "active", 7), Mark(SLOT + 244.0, "shutdown", 7)]
    known = [*spans(marks), Span(SLOT + 301.0, SLOT + 900.0, "active")]
    assert judged(evidence(), known_spans=known).reason == (
        "The service is known to have collected for 244 s of it; no bar came of it. "
        "The vendor was not asked yet."
    )
