"""Reconciliation on real PostgreSQL and a real journal: two answers, drift, versions, restarts."""

import asyncio
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path
from typing import Any, cast

import pytest

from enhanced_websocket_service.l0.continuity import Continuity
from enhanced_websocket_service.l0.reconciliation_state import FIRST_BACKOFF_S
from enhanced_websocket_service.market.reconciliation import Credits
from enhanced_websocket_service.market.tick import Quote
from tests.storage_samples import rows
from tests.unit.l0.fakes import CALENDAR, SIMULATOR, at, bar

from .reconciling import DAY, HOLE, LABELS, LIVE, House, first_seen, open_house, told


@pytest.fixture
async def house(database_dsn: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(database_dsn, tmp_path) as made:
        yield made


async def test_two_answers_make_a_bar_final_and_each_version_is_told_once(house: House) -> None:
    house.collect(LIVE)
    # A hole is asked for at once, and everything else that has settled along with it.
    assert told(await house.look("08:28:00")) == {
        **dict.fromkeys(LIVE, ("revised", 1)),
        HOLE: ("closed", 0),
    }
    # The call begins at a bar the vendor has.
    assert house.vendor.calls == [(CALENDAR.expected_labels(date(2025, 6, 24))[-1], HOLE)]
    house.restart()
    assert await house.look("08:29:00") == []
    final = told(await house.look("13:06:00"))
    assert {label: final[label] for label in (*LIVE, HOLE)} == {
        **dict.fromkeys(LIVE, ("reconciled", 2)),
        HOLE: ("reconciled", 1),
    }
    assert final[LABELS[-1]] == ("closed", 0)  # the 12:55 bar arrives
    assert len(final) == 60
    house.restart()
    assert set(told(await house.look("13:09:00")).values()) == {("reconciled", 1)}
    calls = len(house.vendor.calls)
    house.restart()
    assert await house.look("13:20:00") == []
    assert len(house.vendor.calls) == calls
    assert house.sets == ["USDCOP"]
    await house.settled()
    stored = await rows(
        house.database, "SELECT source, status, count(*)::int FROM market_bars GROUP BY 1, 2"
    )
    assert stored == [("simulator", "reconciled", 120)]
    state = house.reconciler.status()["USDCOP"]
    assert (state["expected_slots"], state["final"], state["lacking"]) == (60, 60, 0)


async def test_slots_that_nobody_asks_for_are_overdue(house: House) -> None:
    house.collect(LIVE)
    await house.look("08:28:00")
    reconciler = house.reconciler
    due = reconciler._states["USDCOP"].next_due
    assert due is not None
    assert reconciler.overdue(due + 3600) == {}, "it has not begun"
    reconciler._running_since = {"USDCOP": house.clock.now()}
    assert reconciler.overdue(due) == {}
    assert reconciler.overdue(due + 3600) == {"USDCOP": 3600.0}
    # What was due while we were away is late from our start on.
    reconciler._running_since = {"USDCOP": due + 600}
    assert reconciler.overdue(due + 3600) == {"USDCOP": 3000.0}
    reconciler._states["USDCOP"].last_call_at = due + 3000  # it does what it can
    assert reconciler.overdue(due + 3600) == {"USDCOP": 600.0}


async def test_drift_is_recorded_by_field(house: House) -> None:
    house.collect(LIVE)
    await house.look("08:28:00")
    found = await house.store.drift("USDCOP", LABELS[0], LABELS[-1])
    assert (found["bars"], found["partial"], found["differing"]) == (4, 0, 4)
    # the ticks missed both extremes: 2.5 above the open, 1.25 below it
    assert found["max_abs"] == {"open": 0.0, "high": 2.376544, "low": 1.25, "close": 0.0}
    signs = await rows(house.database, "SELECT DISTINCT sign(high), sign(low) FROM bar_drift")
    assert signs == [(-1, 1)]
    assert house.reconciler.status()["USDCOP"]["drift"]["bars"] == 4


async def test_as_of_tells_what_a_consumer_saw(house: House) -> None:
    house.collect(LIVE)
    await house.look("08:28:00")
    await house.look("13:06:00")
    await house.settled()
    seen = {}
    for local in ("08:10:00", "12:00:00", "13:30:00"):
        page = await house.database.bars(
            "USDCOP", start=LIVE[0], end=LIVE[0], as_of=at(f"{DAY}T{local}")
        )
        seen[local] = [(one.source, one.status, one.revision) for one in page.bars]
    assert seen == {
        "08:10:00": [("simulator_websocket", "closed", 0)],
        "12:00:00": [("simulator", "revised", 1)],
        "13:30:00": [("simulator", "reconciled", 2)],
    }


async def test_bars_that_l0_stored_by_itself_stay_answerable(house: House) -> None:
    """A repair writes vendor bars without telling clients; the first news must not erase them."""
    house.collect(LIVE)
    await house.settled()
    house.clock.instant = at(f"{DAY}T08:25:00")
    await house.database.upsert_vendor_bars([first_seen(label) for label in LIVE])
    page = await house.database.bars("USDCOP", start=LIVE[0], end=LIVE[0])
    # Above the live bar that clients hold.
    assert [(one.source, one.revision) for one in page.bars] == [("simulator", 1)]
    assert told(await house.look("13:06:00"))[LIVE[0]] == ("reconciled", 2)
    await house.settled()
    page = await house.database.bars(
        "USDCOP", start=LIVE[0], end=LIVE[0], as_of=at(f"{DAY}T09:00:00")
    )
    assert [(one.source, one.status) for one in page.bars] == [("simulator", "closed")]


async def test_a_bar_the_vendor_revises_waits_for_another_answer(house: House) -> None:
    house.collect(LIVE)
    await house.look("08:28:00")
    house.vendor.bars[LIVE[1]] = first_seen(LIVE[1], close=bar(LIVE[1]).close + 0.5)
    assert told(await house.look("13:06:00"))[LIVE[1]] == ("revised", 2)
    assert told(await house.look("13:09:00"))[LIVE[1]] == ("reconciled", 3)
    await house.settled()
    drift = await rows(
        house.database,
        f"SELECT close::float8 FROM bar_drift WHERE datetime = to_timestamp({LIVE[1]})",
    )
    assert drift == [(-0.5,)]


async def test_what_the_vendor_lacks_stays_unknown_and_says_why(house: House) -> None:
    house.collect(LIVE)
    del house.vendor.bars[HOLE]
    await house.look("08:28:00")
    await house.look("08:33:00")
    await house.look("13:06:00")
    await house.settled()
    await house.database.record_health(
        "active", {"at": f"{DAY}T08:00:00-05:00", "epoch": 1, "reason": "Collecting."}
    )
    await house.database.record_health("active", {"at": f"{DAY}T08:23:00-05:00", "epoch": 1})
    proof = Continuity(house.store, {"USDCOP": CALENDAR}, house.clock, SIMULATOR)
    day = await proof.day("USDCOP", DAY)
    slot = day.slots[4]
    assert (slot.status, slot.source) == ("unknown", None)
    assert slot.reason is not None
    assert "collected for 180 s" in slot.reason
    assert "asked 3 times" in slot.reason
    assert (day.covered, len(day.slots)) == (59, 60)
    # It comes late, when nobody believed in it any more.
    house.vendor.bars[HOLE] = first_seen(HOLE)
    assert told(await house.look("15:00:00"))[HOLE] == ("closed", 0)


async def test_a_slot_that_ticks_can_still_change_is_refused(house: House) -> None:
    house.collect(LIVE)
    label = LABELS[6]
    quote = Quote("USDCOP", label + 5, 4000.0, "simulator_websocket", label + 5.0)
    house.pipeline.on_quotes([quote], label + 5.1)
    assert house.pipeline.on_vendor_bars([first_seen(label)], label + 400.0) == []
    house.pipeline.on_time(label + 301.0, 60.0)
    house.pipeline.on_time(label + 400.0, 60.0)
    # Nor one whose number the live bar has.
    assert house.pipeline.on_vendor_bars([first_seen(label)], label + 400.0) == []
    numbered = first_seen(label, revision=1)
    assert len(house.pipeline.on_vendor_bars([numbered], label + 400.0)) == 1


async def test_failures_are_backed_off_from_and_forgotten(house: House) -> None:
    house.vendor.away = True
    house.clock.instant = at(f"{DAY}T13:06:00")
    house.pipeline.on_time(house.clock.instant, 60.0)
    running = asyncio.create_task(house.reconciler.run(), name="reconciliation")
    try:
        async with asyncio.timeout(20):
            while len(house.vendor.calls) < 3:
                await asyncio.sleep(0)
            state = house.reconciler.status()["USDCOP"]
            assert "did not answer" in state["last_error"]
            (told,) = house.failures.present
            assert told.part == "reconciliation of USDCOP"
            assert "did not answer" in told.reason
            # The clock stands but for the back-off: 60, 120, ... seconds.
            assert house.clock.instant >= at(f"{DAY}T13:06:00") + 3 * FIRST_BACKOFF_S
            house.vendor.away = False
            while house.reconciler.status()["USDCOP"]["final"] < 60:
                await asyncio.sleep(0)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert house.reconciler.status()["USDCOP"]["last_error"] is None
    assert house.failures.present == ()


class Behind:
    """A writer that falls behind for good after the first look."""

    def __init__(self) -> None:
        self.asked = 0

    async def reached(self, record: int, timeout_s: float) -> bool:
        self.asked += 1
        return self.asked == 1


async def test_a_round_that_is_left_out_mends_nothing(house: House) -> None:
    house.clock.instant = at(f"{DAY}T13:06:00")
    house.pipeline.on_time(house.clock.instant, 60.0)
    house.writer = behind = cast(Any, Behind())
    running = asyncio.create_task(house.reconciler.run(), name="reconciliation")
    try:
        async with asyncio.timeout(20):
            while behind.asked < 5:
                await asyncio.sleep(0)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    (told,) = house.failures.present
    assert "behind the journal" in told.reason
    assert "behind the journal" in house.reconciler.status()["USDCOP"]["last_error"]


async def test_without_credits_nothing_is_asked(house: House) -> None:
    house.credits = Credits(0, 0)
    assert await house.look("13:06:00") == []
    assert house.vendor.calls == []
