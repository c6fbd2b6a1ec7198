"""Whatever the vendor's cap, holes and hours: every bar it has arrives, once, and no other."""

import asyncio
import tempfile
from datetime import date
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.errors import L0Error
from enhanced_websocket_service.l0.absences import Absences
from enhanced_websocket_service.l0.backfill import Backfill, BackfillResult

from .fakes import CALENDAR, SIMULATOR, FakeStore, FakeVendor, StillClock, around_the_clock, at

START, END = date(2025, 5, 30), date(2025, 6, 4)  # a weekend and a holiday Monday inside
LABELS = [
    label for day in CALENDAR.trading_days(START, END) for label in CALENDAR.expected_labels(day)
]
EVERY = around_the_clock("2025-05-30", "2025-06-05")


def run(vendor: FakeVendor, store: FakeStore, directory: str) -> BackfillResult:
    backfill = Backfill(
        vendor,
        store,
        CALENDAR,
        StillClock(at("2025-06-20T00:00")),
        provider=SIMULATOR,
        symbol="USDCOP",
        absences=Absences(Path(directory), "USDCOP", "simulator", CALENDAR),
    )
    return asyncio.run(backfill.run(START, END))


subsets = st.sets(st.sampled_from(LABELS))


@settings(deadline=None, max_examples=60)
@given(cap=st.integers(2, 400), gone=subsets, present=subsets, nights=st.booleans())
def test_every_bar_arrives_once(cap: int, gone: set[int], present: set[int], nights: bool) -> None:
    labels = set(LABELS)
    bars = [b for b in EVERY if b.open_time not in gone and (nights or b.open_time in labels)]
    have = [b for b in bars if b.open_time in present]
    store, vendor = FakeStore(have), FakeVendor(bars, cap)
    with tempfile.TemporaryDirectory() as directory:
        result = run(vendor, store, directory)
        assert set(store.slots()) == labels - gone
        assert set(result.missing) == gone
        written = [slot for write in store.writes for slot in write]
        assert len(written) == len(set(written)) == result.bars_written
        calls = len(vendor.calls)
        again = run(vendor, store, directory)
        assert (again.calls, again.bars_written, set(again.missing)) == (0, 0, gone)
        assert len(vendor.calls) == calls


@settings(deadline=None, max_examples=30)
@given(cap=st.integers(2, 120), gone=subsets, faults=st.lists(st.integers(1, 4), max_size=8))
def test_faults_cost_no_page_twice(cap: int, gone: set[int], faults: list[int]) -> None:
    labels = set(LABELS)
    bars = [b for b in EVERY if b.open_time in labels and b.open_time not in gone]
    store, vendor = FakeStore(), FakeVendor(bars, cap)
    with tempfile.TemporaryDirectory() as directory:
        for fault in faults:
            vendor.fail_at = len(vendor.calls) + fault
            try:
                run(vendor, store, directory)
            except L0Error:
                continue
        vendor.fail_at = None
        result = run(vendor, store, directory)
    assert set(store.slots()) == labels - gone
    assert set(result.missing) == gone
    written = [slot for write in store.writes for slot in write]
    assert len(written) == len(set(written))
