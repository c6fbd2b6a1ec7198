"""Whatever the vendor's cap, holes and hours: every bar it has arrives, once, and no other."""

import asyncio
import tempfile
from datetime import date
from itertools import cycle
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.errors import L0Error
from enhanced_websocket_service.l0.backfill import Backfill
from enhanced_websocket_service.l0.run import BackfillResult
from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool

from .fakes import (
    CALENDAR,
    SIMULATOR,
    FakeStore,
    FakeVendor,
    StillClock,
    absences,
    around_the_clock,
    at,
)

START, END = date(2025, 5, 30), date(2025, 6, 4)  # a weekend and a holiday Monday inside
LABELS = [
    label for day in CALENDAR.trading_days(START, END) for label in CALENDAR.expected_labels(day)
]
EVERY = around_the_clock("2025-05-30", "2025-06-05")


def run(vendor: FakeVendor, store: FakeStore, directory: str, keys: int = 1) -> BackfillResult:
    backfill = Backfill(
        vendor,
        store,
        CALENDAR,
        StillClock(at("2025-06-20T00:00")),
        provider=SIMULATOR,
        symbol="USDCOP",
        absences=absences(Path(directory)),
        keys=KeyPool([ApiKey(f"G1_{i}", f"key-{i}") for i in range(keys)]),
    )
    return asyncio.run(backfill.run(START, END))


subsets = st.sets(st.sampled_from(LABELS))


@settings(max_examples=60)
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


@settings(max_examples=30)
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


class Moody(FakeVendor):
    """Cuts each answer at another number of rows."""

    def __init__(self, bars: list[Bar], caps: list[int]) -> None:
        super().__init__(bars)
        self._caps = cycle(caps)

    async def time_series(self, symbol: str, **question: Any) -> list[Bar]:
        self.cap = next(self._caps)
        return await super().time_series(symbol, **question)


@settings(max_examples=60)
@given(
    caps=st.lists(st.integers(2, 400), min_size=1, max_size=6),
    gone=subsets,
    nights=st.booleans(),
    keys=st.integers(1, 8),
)
def test_no_mood_of_the_vendor_loses_a_bar(
    caps: list[int], gone: set[int], nights: bool, keys: int
) -> None:
    labels = set(LABELS)
    bars = [b for b in EVERY if b.open_time not in gone and (nights or b.open_time in labels)]
    store = FakeStore()
    with tempfile.TemporaryDirectory() as directory:
        result = run(Moody(bars, caps), store, directory, keys)
        assert set(store.slots()) == labels - gone
        assert set(result.missing) == gone
        written = [slot for write in store.writes for slot in write]
        assert len(written) == len(set(written))


@settings(max_examples=40)
@given(cap=st.integers(2, 400), gone=subsets)
def test_a_vendor_that_keeps_the_oldest_loses_no_bar(cap: int, gone: set[int]) -> None:
    labels = set(LABELS)
    bars = [b for b in EVERY if b.open_time in labels and b.open_time not in gone]
    store = FakeStore()
    with tempfile.TemporaryDirectory() as directory:
        run(FakeVendor(bars, cap, from_start=True), store, directory, 3)
    assert set(store.slots()) == labels - gone


@settings(max_examples=40)
@given(cap=st.integers(240, 400), days=st.integers(4, 40), nights=st.booleans())
def test_credits_are_the_minimum_and_two(cap: int, days: int, nights: bool) -> None:
    """For a whole feed: the minimum is all its rows by rows a page."""
    trading = CALENDAR.trading_days(date(2025, 3, 3), date(2025, 6, 4))[-days:]
    every = around_the_clock(str(trading[0]), "2025-06-05")
    weekdays = [b for b in every if CALENDAR.local_date(b.open_time).weekday() < 5]
    first, last = (CALENDAR.expected_labels(trading[i])[i] for i in (0, -1))
    inside = [b for b in weekdays if first <= b.open_time <= last]
    labels = {slot for day in trading for slot in CALENDAR.expected_labels(day)}
    bars = inside if nights else [b for b in inside if b.open_time in labels]
    store, vendor = FakeStore(), FakeVendor(bars, cap)
    with tempfile.TemporaryDirectory() as directory:
        backfill = Backfill(
            vendor,
            store,
            CALENDAR,
            StillClock(at("2025-06-20T00:00")),
            provider=SIMULATOR,
            symbol="USDCOP",
            absences=absences(Path(directory)),
        )
        result = asyncio.run(backfill.run(trading[0], trading[-1]))
    assert set(store.slots()) == labels
    minimum = -(-len(bars) // cap)
    # Around the clock a page is an estimate, and a few more rows than it holds cost a call.
    assert result.calls <= minimum + 2 + (minimum // 5 if nights else 0)
