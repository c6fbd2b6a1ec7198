"""Several questions at a time: over all keys, inside their limits, nothing lost by a fault."""

import asyncio
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from enhanced_websocket_service.errors import L0Error
from enhanced_websocket_service.l0.backfill import Backfill
from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool

from .fakes import (
    CALENDAR,
    SIMULATOR,
    FakeStore,
    FakeVendor,
    StillClock,
    absences,
    at,
    session_bars,
)

START, END = date(2025, 1, 2), date(2025, 6, 10)
DAYS = CALENDAR.trading_days(START, END)
BARS = session_bars(*map(str, DAYS))
KEYS = 8


class Slow(FakeVendor):
    """Answers when as many are waiting as can be; remembers how many that were."""

    def __init__(self, bars: list[Bar], cap: int, **more: Any) -> None:
        super().__init__(bars, cap, **more)
        self.under_way = 0
        self.together: Counter[int] = Counter()

    async def time_series(self, symbol: str, **question: Any) -> list[Bar]:
        self.under_way += 1
        try:
            answer = await super().time_series(symbol, **question)
            for _ in range(3):
                await asyncio.sleep(0)  # everybody who can begin has begun
            self.together[self.under_way] += 1
            return answer
        finally:
            self.under_way -= 1


def job(vendor: FakeVendor, store: FakeStore, directory: Path) -> Backfill:
    return Backfill(
        vendor,
        store,
        CALENDAR,
        StillClock(at("2025-07-01T20:00")),
        provider=SIMULATOR,
        symbol="USDCOP",
        absences=absences(directory),
        keys=KeyPool([ApiKey(f"G1_{i}", f"key-{i}") for i in range(KEYS)]),
    )


async def test_as_many_questions_are_under_way_as_there_are_keys(tmp_path: Path) -> None:
    vendor, store = Slow(BARS, 250), FakeStore()
    result = await job(vendor, store, tmp_path).run(START, END)
    assert max(vendor.together) == KEYS
    assert store.slots() == [bar.open_time for bar in BARS]
    written = [slot for write in store.writes for slot in write]
    assert len(written) == len(BARS)
    assert result.calls == -(-len(BARS) // 250)


async def test_a_fault_lets_the_others_finish_what_they_have_paid_for(tmp_path: Path) -> None:
    vendor, store = Slow(BARS, 250, fail_at=2 + KEYS), FakeStore()
    with pytest.raises(L0Error, match="out of order"):
        await job(vendor, store, tmp_path).run(START, END)
    # Two to learn the page, then eight at a time, of which one fails.
    assert len(vendor.calls) == 2 + KEYS
    assert len(store.rows) == (2 + KEYS - 1) * 250
    vendor.fail_at = None
    asked = len(vendor.calls)
    await job(vendor, store, tmp_path).run(START, END)
    assert store.slots() == [bar.open_time for bar in BARS]
    rows = -(-(len(BARS) - 9 * 250) // 250)
    assert rows <= len(vendor.calls) - asked <= rows + 2


async def test_before_the_history_begins_little_is_spent(tmp_path: Path) -> None:
    recent = [bar for bar in BARS if bar.open_time >= at("2025-05-27T00:00")]
    vendor, store = Slow(recent, 5000), FakeStore()
    result = await job(vendor, store, tmp_path).run(date(2015, 1, 2), END)
    assert store.slots() == [bar.open_time for bar in recent]
    assert result.calls == 2  # the bars, and everything before them


async def test_years_of_nothing_behind_full_pages_cost_a_round(tmp_path: Path) -> None:
    vendor, store = Slow(BARS, 250), FakeStore()
    result = await job(vendor, store, tmp_path).run(date(2015, 1, 2), END)
    assert store.slots() == [bar.open_time for bar in BARS]
    # One page of nothing for each key at most, then the rest in one question.
    assert result.calls <= -(-len(BARS) // 250) + KEYS + 2
    again = await job(vendor, store, tmp_path).run(date(2015, 1, 2), END)
    assert again.calls == 0


async def test_the_plan_says_calls_credits_and_time(tmp_path: Path) -> None:
    subject = job(FakeVendor(BARS), FakeStore(), tmp_path)
    plan = await subject.plan(START, END)
    assert plan.as_dict() == {
        "symbol": "USDCOP",
        "start": "2025-01-02",
        "end": "2025-06-10",
        "trading_days": len(DAYS),
        "expected_slots": len(BARS),
        "slots_wanted": len(BARS),
        "known_absent": 0,
        "calls": 2,
        "credits": 2,
        "credits_left_today": 6400,
        "keys": 8,
        "seconds": 0.0,
    }
    assert f"{len(BARS)} to fetch: 2 calls, 2 credits of 6400 left today" in plan.sentence()
    told = []
    await subject.run(START, END, announce=told.append)
    assert told == [plan]
    done = await subject.plan(START, END)
    assert (done.calls, done.wanted) == (0, ())
    assert "nothing to fetch" in done.sentence()


async def test_refetch_asks_for_everything(tmp_path: Path) -> None:
    store = FakeStore(BARS)
    changed = BARS[100].open_time
    store.rows[changed, "simulator"] = BARS[101]
    result = await job(FakeVendor(BARS), store, tmp_path).run(START, END, refetch=True)
    assert result.calls == 2
    assert store.rows[changed, "simulator"] == BARS[100]
