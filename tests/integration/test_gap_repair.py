"""What a feed lost is repaired from the vendor's bars in mid-session, on real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.reconciliation import Credits
from enhanced_websocket_service.market.tick import Quote
from tests.storage_samples import rows
from tests.unit.l0.fakes import at, bar

from .reconciling import DAY, LABELS, House, first_seen, open_house

BEFORE, GAP, AFTER = LABELS[:3], LABELS[3:5], LABELS[5]
"""The feed is mute from the middle of the fourth bar to the middle of the sixth."""
LOST = (GAP[0] + 100.0, AFTER + 100.0)
HANDED_BACK = AFTER + 100.0


@pytest.fixture
async def house(database_dsn: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(database_dsn, tmp_path) as made:
        yield made


def tick(house: House, label: int, second: int) -> None:
    quote = Quote("USDCOP", label + second, bar(label).open, "simulator_websocket", label + second)
    house.pipeline.on_quotes([quote], label + second + 0.1)


async def live_through_the_gap(house: House) -> None:
    """Until the feed is back; bars that closed meanwhile called themselves whole."""
    house.collect(BEFORE)
    tick(house, GAP[0], 50)
    house.pipeline.on_time(GAP[0] + 400.0, 60.0)
    tick(house, AFTER, 110)
    await house.settled()
    house.clock.instant = HANDED_BACK


def hand_back(house: House) -> None:
    """What the feed's report of the gap is wired to."""
    house.pipeline.interrupted(*LOST, "USDCOP")
    house.reconciler.repair("USDCOP", *LOST)


async def told_until(house: House, end: float) -> dict[int, list[tuple[float, str, int]]]:
    """Rounds whenever the reconciler wants one: when each slot was told how."""
    found: dict[int, list[tuple[float, str, int]]] = {}
    while house.clock.instant < end:
        house.pipeline.on_time(house.clock.instant, 60.0)
        before = len(house.events)
        wait = await house.reconciler.look("USDCOP")
        await house.settled()
        for event in house.events[before:]:
            if isinstance(event, BarUpdate):
                one = event.bar
                seen = (house.clock.instant, one.status, one.revision)
                found.setdefault(one.open_time, []).append(seen)
        house.clock.instant += max(1.0, wait)
    return found


async def test_the_whole_gap_is_repaired_as_soon_as_the_vendor_has_its_bars(house: House) -> None:
    await live_through_the_gap(house)
    hand_back(house)
    found = await told_until(house, AFTER + 900.0)
    # Two that have ended are there at once, the third when late ticks can no longer change it.
    for label in GAP:
        assert found[label][0][0] == HANDED_BACK
    assert AFTER + 360 <= found[AFTER][0][0] <= AFTER + 380
    for label in (*GAP, AFTER):
        assert found[label][-1][1] == "reconciled"
        assert found[label][-1][0] <= AFTER + 680
    assert set(house.vendor.purposes) == {"repair"}
    # The last one is for the bar behind the gap, which has no ticks here.
    assert len(house.vendor.calls) <= 4
    assert house.reconciler.status()["USDCOP"]["repairing"] == []
    stored = await rows(
        house.database,
        "SELECT extract(epoch FROM datetime)::bigint, close::float8, status FROM market_bars "
        f"WHERE datetime BETWEEN to_timestamp({GAP[0]}) AND to_timestamp({AFTER}) ORDER BY 1",
    )
    assert stored == [(label, bar(label).close, "reconciled") for label in (*GAP, AFTER)]


async def test_bars_the_gap_touched_say_partial_until_the_vendors_come(house: House) -> None:
    await live_through_the_gap(house)
    house.vendor.away = True
    house.pipeline.interrupted(*LOST, "USDCOP")
    house.pipeline.on_time(HANDED_BACK, 60.0)
    await house.settled()
    (evidence,) = await house.store.evidence("USDCOP", [GAP[0]])
    (live,) = evidence.bars
    assert (live.partial, live.grade, live.revision) == (True, "partial", 1)


async def test_a_candle_that_is_late_and_then_revised_is_asked_for_again(house: House) -> None:
    await live_through_the_gap(house)
    late = AFTER + 300 + 175.0
    house.vendor.shown_from = {AFTER: late}
    final = bar(GAP[1]).close + 0.5
    hand_back(house)
    first = await told_until(house, HANDED_BACK + 30)
    assert first[GAP[1]][0][1] == "closed"
    house.vendor.bars[GAP[1]] = first_seen(GAP[1], close=final)
    found = await told_until(house, AFTER + 1000.0)
    assert [status for _, status, _ in found[GAP[1]]] == ["revised", "reconciled"]
    assert late <= found[AFTER][0][0] <= late + 61
    assert found[AFTER][-1][1] == "reconciled"
    # Asked before it could be there: that it was absent is no evidence.
    assert await rows(house.database, "SELECT * FROM vendor_gaps") == []


async def test_a_candle_the_vendor_first_lacks_is_asked_for_again_soon(house: House) -> None:
    await live_through_the_gap(house)
    house.vendor.shown_from = {GAP[0]: HANDED_BACK + 150}
    hand_back(house)
    found = await told_until(house, HANDED_BACK + 400)
    assert HANDED_BACK + 150 <= found[GAP[0]][0][0] <= HANDED_BACK + 250


async def test_a_restart_in_the_gap_forgets_nothing_because_the_bars_tell(house: House) -> None:
    await live_through_the_gap(house)
    hand_back(house)
    house.pipeline.on_time(HANDED_BACK + 1.0, 60.0)
    await house.settled()
    house.restart()
    house.clock.instant = HANDED_BACK + 20
    found = await told_until(house, AFTER + 1200)
    assert all(found[label] for label in (*GAP, AFTER))
    assert "repair" in house.vendor.purposes


async def test_wishes_may_be_repeated_and_overlap_without_costing_more(house: House) -> None:
    await live_through_the_gap(house)
    for shift in range(50):
        house.reconciler.repair("USDCOP", LOST[0] + shift, LOST[1])
        house.reconciler.repair("USDCOP", *LOST)
    house.reconciler.repair("EURUSD", *LOST)
    house.reconciler.repair("USDCOP", LOST[1], LOST[0])
    assert len(house.reconciler.status()["USDCOP"]["repairing"]) == 1
    await told_until(house, AFTER + 900.0)
    calls = len(house.vendor.calls)
    assert calls <= 4
    # Once repaired it is no news, and costs nothing.
    house.credits = Credits(0, 0)
    house.reconciler.repair("USDCOP", *LOST)
    house.pipeline.on_time(house.clock.instant, 60.0)
    await house.reconciler.look("USDCOP")
    assert len(house.vendor.calls) == calls
    assert house.reconciler.status()["USDCOP"]["repairing"] == []


async def test_without_a_budget_a_gap_waits_for_its_turn_like_any_hole(house: House) -> None:
    await live_through_the_gap(house)
    house.may_repair = False
    house.credits = Credits(0, 0)
    hand_back(house)
    assert await told_until(house, HANDED_BACK + 60) == {}
    house.credits = Credits(10, 0)
    found = await told_until(house, AFTER + 700)
    assert found[GAP[0]]
    # 3 minutes after its end, and not sooner.
    assert found[AFTER][0][0] >= AFTER + 300 + 180


async def test_a_gap_that_is_told_ends_the_pause(house: House) -> None:
    await live_through_the_gap(house)
    await told_until(house, HANDED_BACK + 1)
    asleep = asyncio.Event()

    async def sleep(seconds: float) -> None:
        asleep.set()
        await asyncio.Event().wait()

    house.clock.sleep = sleep  # type: ignore[method-assign]
    running = asyncio.create_task(house.reconciler.run(), name="reconciliation")
    try:
        async with asyncio.timeout(20):
            await asleep.wait()
            calls = len(house.vendor.calls)
            house.clock.instant += 310
            hand_back(house)
            while len(house.vendor.calls) == calls:
                await asyncio.sleep(0)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert house.vendor.purposes[-1] == "repair"


async def test_a_bar_changed_after_it_was_final_is_noticed_and_told(house: House) -> None:
    house.collect(BEFORE)
    await house.look("13:06:00")
    await house.look("13:09:00")
    assert await house.look("13:20:00") == []
    assert house.reconciler.status()["USDCOP"]["final"] == 60
    house.vendor.bars[LABELS[1]] = first_seen(LABELS[1], close=bar(LABELS[1]).close + 0.25)
    calls = len(house.vendor.calls)
    # The next day's calls look at the whole window, at no extra cost.
    house.restart()
    assert await house.look("13:30:00") == []
    assert len(house.vendor.calls) == calls
    house.clock.instant = at(f"{DAY}T12:57:00") + 86_400
    house.pipeline.on_time(house.clock.instant, 60.0)
    before = len(house.events)
    await house.reconciler.look("USDCOP")
    news = [one for one in house.events[before:] if isinstance(one, BarUpdate)]
    corrected = {one.bar.open_time: one.bar for one in news}[LABELS[1]]
    assert (corrected.status, corrected.revision) == ("revised", 3)
    assert LABELS[2] not in {one.bar.open_time for one in news}
    assert house.reconciler.status()["USDCOP"]["corrected"] == 1
    await house.settled()
    drift = await rows(
        house.database,
        f"SELECT close::float8 FROM bar_drift WHERE datetime = to_timestamp({LABELS[1]})",
    )
    assert drift == [(-0.25,)]
    house.clock.instant += 200
    before = len(house.events)
    await house.reconciler.look("USDCOP")
    again = [one.bar for one in house.events[before:] if isinstance(one, BarUpdate)]
    final = {one.open_time: one for one in again}[LABELS[1]]
    assert (final.status, final.revision, final.close) == ("reconciled", 4, corrected.close)
