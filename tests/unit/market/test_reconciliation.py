"""What to ask the vendor when, and when its bar is final."""

import pytest

from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.market.reconciliation import (
    BATCH_S,
    CALL_SPACING_S,
    CONFIRM_AFTER_S,
    FINAL_AGE_S,
    FIRST_CANDLE_S,
    GIVE_UP_S,
    MAX_SPAN_S,
    RETRY_S,
    ROUTINE_RESERVE,
    Ask,
    Credits,
    answered,
    drift,
    judge,
    plan,
    to_publish,
    wish,
)
from enhanced_websocket_service.market.slot import SETTLE_S, SlotEvidence, SourceBar, VendorGap
from enhanced_websocket_service.market.source import Provider

VENDOR = Provider("twelvedata")
SLOT = 1_750_856_400  # 2025-06-25 08:00 COT
READY = SLOT + 300 + SETTLE_S
OVER = SLOT + 5 * 3600
PLENTY = Credits(left=700, reserve=80)


def vendor_bar(close: float = 4005.0, **changes: object) -> Bar:
    fields: dict[str, object] = {
        "symbol": "USDCOP",
        "interval_s": 300,
        "open_time": SLOT,
        "open": 4000.0,
        "high": 4010.0,
        "low": 3990.0,
        "close": close,
        "volume": 0,
        "source": "twelvedata",
        "revision": 0,
        "status": "closed",
    }
    return Bar(**{**fields, **changes})  # type: ignore[arg-type]


def stored(source: str = "twelvedata", **changes: object) -> SourceBar:
    fields: dict[str, object] = {
        "source": source,
        "open": 4000.0,
        "high": 4010.0,
        "low": 3990.0,
        "close": 4005.0,
        "volume": 0,
        "revision": 0,
        "status": "closed",
    }
    return SourceBar(**{**fields, **changes})  # type: ignore[arg-type]


def evidence(*bars: SourceBar, slot: int = SLOT, **fields: object) -> SlotEvidence:
    return SlotEvidence(slot, bars, **fields)  # type: ignore[arg-type]


LIVE = stored("twelvedata_websocket")
PARTIAL = stored("twelvedata_websocket", partial=True, grade="partial")


@pytest.mark.parametrize(
    ("known", "over", "due"),
    [
        (evidence(), OVER, READY),  # a hole is worth a credit at once
        (evidence(PARTIAL), OVER, READY),
        (evidence(LIVE), OVER, READY + BATCH_S),  # what ticks cover waits for company
        (evidence(LIVE), READY + 800, READY + 800),  # but not longer than the session
        (evidence(LIVE), SLOT, READY),  # the session was over long ago
        (evidence(stored(seen_at=READY)), SLOT, READY + CONFIRM_AFTER_S),
        (evidence(stored(seen_at=READY)), OVER, READY + BATCH_S),
        (evidence(stored(seen_at=SLOT + 301)), SLOT, SLOT + 300 + FINAL_AGE_S),
        (evidence(gap=VendorGap(1, READY)), OVER, READY + RETRY_S),
        (evidence(gap=VendorGap(3, READY)), OVER, READY + 4 * RETRY_S),
        # the last question comes when the answer is final
        (evidence(gap=VendorGap(20, SLOT + GIVE_UP_S)), SLOT, SLOT + 300 + GIVE_UP_S),
    ],
)
def test_when_a_slot_is_due(known: SlotEvidence, over: float, due: float) -> None:
    found = wish(known, over, READY + 700.0, VENDOR)
    assert found is not None
    assert found.due == due
    assert found.useful_from <= found.due


@pytest.mark.parametrize(
    "known",
    [
        evidence(stored(status="reconciled"), LIVE),
        evidence(LIVE, gap=VendorGap(9, SLOT + 300 + GIVE_UP_S)),
    ],
)
def test_final_and_given_up_slots_are_not_asked_for(known: SlotEvidence) -> None:
    assert wish(known, OVER, OVER + 10 * GIVE_UP_S, VENDOR) is None


def test_one_call_serves_everything_an_answer_could_teach() -> None:
    now = READY + 3600.0
    slots = [evidence(LIVE, slot=SLOT + 300 * n) for n in range(12)]
    wishes = [w for one in slots if (w := wish(one, OVER, now, VENDOR)) is not None]
    ask = plan(wishes, now, credits=PLENTY, last_call_at=None)
    assert ask == Ask(SLOT, SLOT + 3300, tuple(one.slot for one in slots), urgent=False)
    assert plan(wishes, now - 1, credits=PLENTY, last_call_at=None) is None
    assert plan(wishes, now, credits=PLENTY, last_call_at=now - CALL_SPACING_S + 1) is None
    assert plan(wishes, now, credits=PLENTY, last_call_at=now - CALL_SPACING_S) == ask


def test_a_routine_batch_leaves_the_reserve_and_a_hole_takes_the_last_credit() -> None:
    now = READY + 3600.0
    poor = Credits(left=1, reserve=ROUTINE_RESERVE - 1)
    covered = [w for w in [wish(evidence(LIVE), OVER, now, VENDOR)] if w]
    hole = [w for w in [wish(evidence(), OVER, now, VENDOR)] if w]
    assert plan(covered, now, credits=poor, last_call_at=None) is None
    assert plan(hole, now, credits=poor, last_call_at=None) is not None
    assert plan(hole, now, credits=Credits(0, 0), last_call_at=None) is None


def test_an_answer_says_nothing_of_slots_before_its_first_bar() -> None:
    ask = Ask(SLOT, SLOT + 900, (SLOT, SLOT + 300, SLOT + 600, SLOT + 900), urgent=True)
    assert answered(ask, [vendor_bar(open_time=SLOT + 600)]) == (SLOT + 600, SLOT + 900)
    assert answered(ask, []) == ask.slots


def test_a_call_begins_at_a_bar_the_vendor_has() -> None:
    now = READY + 3600.0
    absent = evidence(slot=SLOT + 300)
    wishes = [w for w in [wish(absent, OVER, now, VENDOR)] if w]
    anchors = [SLOT - 300, SLOT, SLOT + 600]
    ask = plan(wishes, now, credits=PLENTY, last_call_at=None, anchors=anchors)
    assert ask == Ask(SLOT, SLOT + 300, (SLOT + 300,), urgent=True, repair=True)
    assert answered(ask, [vendor_bar(open_time=SLOT)]) == (SLOT + 300,)


MIXED = stored("twelvedata_websocket", mixed=True)


@pytest.mark.parametrize(
    ("known", "lost", "due"),
    [
        (evidence(MIXED), False, READY),  # two feeds in one bar: one of them failed
        (evidence(LIVE), True, SLOT + 300 + FIRST_CANDLE_S),
        (evidence(), True, SLOT + 300 + FIRST_CANDLE_S),
        (evidence(stored(seen_at=READY)), True, READY + RETRY_S),
        (evidence(stored(seen_at=SLOT + 350)), True, SLOT + 350 + RETRY_S),
        (evidence(gap=VendorGap(1, READY)), True, READY + CALL_SPACING_S),
        (evidence(gap=VendorGap(3, READY)), True, READY + 4 * CALL_SPACING_S),
    ],
)
def test_what_a_feed_lost_is_asked_for_as_soon_as_it_can_help(
    known: SlotEvidence, lost: bool, due: float
) -> None:
    found = wish(known, OVER, READY + 700.0, VENDOR, lost=lost)
    assert found is not None
    assert (found.due, found.urgent, found.repair) == (due, True, True)
    assert found.useful_from <= found.due
    ask = plan([found], due, credits=Credits(1, 0), last_call_at=None)
    assert ask is not None
    assert ask.repair


def test_a_call_looks_back_at_what_is_final_without_giving_up_what_it_is_for() -> None:
    now = READY + 3600.0
    wishes = [w for w in [wish(evidence(slot=SLOT + 300), SLOT, now, VENDOR)] if w]
    ask = plan(wishes, now, credits=PLENTY, last_call_at=None, look_back_to=SLOT - 86_400)
    assert ask == Ask(SLOT - 86_400, SLOT + 300, (SLOT + 300,), urgent=True)
    ask = plan(wishes, now, credits=PLENTY, last_call_at=None, look_back_to=0)
    assert ask is not None
    assert ask.end - ask.start == MAX_SPAN_S


OLD = float(SLOT + 300 + FINAL_AGE_S)


@pytest.mark.parametrize(
    ("known", "now", "finding"),
    [
        (evidence(LIVE), READY, "first"),
        (evidence(stored(seen_at=READY), LIVE), OLD + 300, "final"),
        (evidence(stored(seen_at=READY), LIVE), READY + CONFIRM_AFTER_S - 1.0, "same"),
        (evidence(stored(seen_at=SLOT + 301.0)), OLD - 1, "same"),  # too young
        (evidence(stored(seen_at=READY, close=4004.0)), OLD + 300, "changed"),
        (evidence(stored(seen_at=READY, close=4004.0, status="reconciled")), OLD, "corrected"),
        (evidence(stored(seen_at=READY, high=4010.0002), LIVE), OLD + 300, "changed"),
        (evidence(stored(seen_at=READY, status="reconciled")), OLD + 300, "same"),
    ],
)
def test_a_bar_is_final_when_it_is_old_and_two_answers_agree(
    known: SlotEvidence, now: float, finding: str
) -> None:
    assert judge(known, vendor_bar(), now, VENDOR) == finding
    assert judge(known, None, now, VENDOR) == "absent"


def test_a_new_version_is_above_every_revision_the_slot_ever_had() -> None:
    live = stored("twelvedata_websocket", revision=2, published=True)
    first = to_publish(evidence(live, highest_revision=4), vendor_bar(), "first", today=True)
    assert first is not None
    assert (first.revision, first.status, first.source) == (5, "revised", "twelvedata")
    hole = to_publish(evidence(), vendor_bar(), "first", today=False)
    assert hole is not None
    assert (hole.revision, hole.status) == (0, "closed")
    final = to_publish(evidence(stored(revision=5), live), vendor_bar(), "final", today=False)
    assert final is not None
    assert (final.revision, final.status) == (6, "reconciled")


def test_a_price_that_went_through_a_32_bit_float_is_no_other_price() -> None:
    known = evidence(stored(seen_at=READY, close=4005.30005), LIVE)
    assert judge(known, vendor_bar(close=4005.3), OLD + 300, VENDOR) == "final"


def test_history_that_is_only_confirmed_is_no_news() -> None:
    known = evidence(stored(seen_at=READY))
    assert to_publish(known, vendor_bar(), "final", today=False) is None
    assert to_publish(known, vendor_bar(), "final", today=True) is not None
    assert to_publish(known, vendor_bar(), "same", today=True) is None


def test_drift_is_live_minus_vendor() -> None:
    live = stored("twelvedata_rest", open=4000.5, high=4009.0, low=3990.25, close=4005.0)
    found = drift(evidence(live), vendor_bar(), VENDOR)
    assert found is not None
    assert found.by_field() == {"open": 0.5, "high": -1.0, "low": 0.25, "close": 0.0}
    assert drift(evidence(stored()), vendor_bar(), VENDOR) is None
    noisy = stored("twelvedata_websocket", close=4005.30005)  # 4005.3 through a 32-bit float
    found = drift(evidence(noisy), vendor_bar(close=4005.3), VENDOR)
    assert found is not None
    assert found.close == 0.0
