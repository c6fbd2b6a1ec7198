from datetime import date
from pathlib import Path
from typing import Any

import pytest

from enhanced_websocket_service.errors import ConfigurationError, L0Error, VendorError
from enhanced_websocket_service.l0.backfill import Backfill
from enhanced_websocket_service.l0.incremental import Incremental

from .fakes import (
    CALENDAR,
    SIMULATOR,
    FakeStore,
    FakeVendor,
    StillClock,
    absences,
    around_the_clock,
    at,
    bar,
    session_bars,
)

LATER = at("2025-07-01T20:00")
WEEK = ("2025-06-03", "2025-06-04", "2025-06-05", "2025-06-06", "2025-06-09", "2025-06-10")
START, END = date(2025, 6, 2), date(2025, 6, 10)  # June 2 is a holiday


def job(
    vendor: FakeVendor, store: FakeStore, directory: Path, now: float = LATER, **more: Any
) -> Backfill:
    return Backfill(
        vendor,
        store,
        CALENDAR,
        StillClock(now),
        provider=SIMULATOR,
        symbol="USDCOP",
        absences=absences(directory),
        **more,
    )


async def test_a_range_arrives_in_one_call(tmp_path: Path) -> None:
    vendor, store = FakeVendor(session_bars(*WEEK)), FakeStore()
    seen: list[tuple[int, int]] = []
    result = await job(vendor, store, tmp_path).run(START, END, lambda *days: seen.append(days))
    assert store.slots() == [one.open_time for one in session_bars(*WEEK)]
    assert (result.days, result.days_fetched, result.calls) == (6, 6, 1)
    assert (result.bars_written, result.dropped, result.missing) == (360, 0, ())
    assert seen == [(0, 6), (6, 6)]
    assert vendor.calls == [(at("2025-06-03T08:00"), at("2025-06-10T12:55"), "backfill")]


async def test_only_session_bars_are_kept_and_the_others_counted(tmp_path: Path) -> None:
    vendor, store = FakeVendor(around_the_clock("2025-06-01", "2025-06-11")), FakeStore()
    result = await job(vendor, store, tmp_path).run(START, END)
    assert store.slots() == [one.open_time for one in session_bars(*WEEK)]
    asked = (at("2025-06-10T12:55") - at("2025-06-03T08:00")) // 300 + 1
    assert result.dropped == asked - 360


@pytest.mark.parametrize("cap", [1, 2, 59, 60, 61, 119, 250, 360, 5000])
async def test_no_cap_loses_or_doubles_a_bar(tmp_path: Path, cap: int) -> None:
    vendor, store = FakeVendor(session_bars(*WEEK), cap), FakeStore()
    result = await job(vendor, store, tmp_path).run(START, END)
    written = [slot for write in store.writes for slot in write]
    assert sorted(written) == [one.open_time for one in session_bars(*WEEK)]
    assert result.calls == -(-360 // cap)


@pytest.mark.parametrize("cap", [1, 59, 100, 110, 320, 359, 5000])
async def test_a_vendor_that_cuts_at_the_wrong_end_loses_no_bar(tmp_path: Path, cap: int) -> None:
    vendor, store = FakeVendor(session_bars(*WEEK), cap, from_start=True), FakeStore()
    result = await job(vendor, store, tmp_path).run(START, END)
    assert store.slots() == [one.open_time for one in session_bars(*WEEK)]
    assert result.missing == ()


async def test_a_complete_range_spends_no_credit(tmp_path: Path) -> None:
    vendor, store = FakeVendor(session_bars(*WEEK)), FakeStore(session_bars(*WEEK))
    result = await job(vendor, store, tmp_path).run(START, END)
    assert vendor.calls == []
    assert (result.calls, result.days_fetched, result.missing) == (0, 0, ())


async def test_live_bars_do_not_stand_in_for_the_vendors(tmp_path: Path) -> None:
    store = FakeStore(
        bar(at("2025-06-03T08:00") + 300 * i, "simulator_websocket") for i in range(59)
    )
    vendor = FakeVendor(session_bars("2025-06-03"))
    result = await job(vendor, store, tmp_path).run(START, date(2025, 6, 3))
    assert result.bars_written == 60


async def test_what_the_vendor_does_not_have_is_not_asked_for_again(tmp_path: Path) -> None:
    gone = {at("2025-06-03T08:00"), at("2025-06-05T10:15")}
    have = [one for one in session_bars(*WEEK[:4]) if one.open_time not in gone]
    vendor, store = FakeVendor(have), FakeStore()
    first = await job(vendor, store, tmp_path).run(START, END)
    expected_gone = gone | {one.open_time for one in session_bars(*WEEK[4:])}
    assert set(first.missing) == expected_gone

    again = await job(vendor, store, tmp_path).run(START, END)
    assert again.calls == 0
    assert set(again.missing) == expected_gone  # known, and still said

    vendor.bars = session_bars(*WEEK)
    refetched = await job(vendor, store, tmp_path).run(START, END, refetch=True)
    assert refetched.missing == ()
    assert absences(tmp_path).load() == set()


async def test_a_young_absence_is_asked_for_again(tmp_path: Path) -> None:
    """After an outage of its own the vendor fills in what it lacked."""
    now = at("2025-06-10T18:00")
    vendor, store = FakeVendor(session_bars(*WEEK[:-1])), FakeStore()
    first = await job(vendor, store, tmp_path, now).run(START, END)
    assert len(first.missing) == 60
    vendor.bars = session_bars(*WEEK)
    second = await job(vendor, store, tmp_path, now).run(START, END)
    assert (second.calls, second.bars_written, second.missing) == (1, 60, ())


async def test_today_is_fetched_up_to_the_settled_slots(tmp_path: Path) -> None:
    vendor, store = FakeVendor(session_bars(*WEEK)), FakeStore()
    result = await job(vendor, store, tmp_path, at("2025-06-10T09:07:59")).run(
        END, date(2025, 12, 31)
    )
    assert store.slots()[-1] == at("2025-06-10T08:55")
    assert (result.days, result.expected) == (1, 12)


async def test_a_fault_keeps_what_came_and_the_next_run_goes_on(tmp_path: Path) -> None:
    vendor, store = FakeVendor(session_bars(*WEEK), 100, fail_at=3), FakeStore()
    with pytest.raises(L0Error) as failure:
        await job(vendor, store, tmp_path).run(START, END)
    assert isinstance(failure.value.__cause__, VendorError)
    assert "3 of 6 trading days are done" in str(failure.value)
    assert "160 slots are missing, the first at 2025-06-03T08:00:00-05:00" in str(failure.value)
    assert len(store.rows) == 200

    vendor.fail_at = None
    result = await job(vendor, store, tmp_path).run(START, END)
    assert result.calls == 2
    written = [slot for write in store.writes for slot in write]
    assert sorted(written) == [one.open_time for one in session_bars(*WEEK)]  # none twice


async def test_an_empty_range_is_an_answer(tmp_path: Path) -> None:
    vendor, store = FakeVendor([]), FakeStore()
    weekend = await job(vendor, store, tmp_path).run(date(2025, 6, 7), date(2025, 6, 8))
    assert (weekend.days, weekend.calls) == (0, 0)
    future = await job(vendor, store, tmp_path).run(date(2026, 6, 8), date(2026, 6, 9))
    assert (future.days, future.calls) == (0, 0)
    nothing = await job(vendor, store, tmp_path).run(START, END)
    assert (nothing.calls, nothing.bars_written, len(nothing.missing)) == (1, 0, 360)


SPRING = CALENDAR.trading_days(date(2025, 3, 3), END)


async def holes_filled(directory: Path, days: list[date], **more: Any) -> list[tuple[int, int]]:
    """The questions asked when the database lacks one slot on each of ``days``."""
    every = session_bars(*(day.isoformat() for day in SPRING))
    holes = {at(f"{day}T09:00") for day in days}
    store = FakeStore(one for one in every if one.open_time not in holes)
    vendor = FakeVendor(every)
    result = await job(vendor, store, directory).run(SPRING[0], END, **more)
    assert result.missing == ()
    assert result.days_fetched == len(days)
    assert result.calls == result.plan.calls
    written = [slot for write in store.writes for slot in write]
    assert sorted(written) == sorted(holes)  # what was read again between them is not touched
    return [call[:2] for call in vendor.calls]


async def test_a_few_holes_do_not_make_complete_days_be_fetched_again(tmp_path: Path) -> None:
    days = [SPRING[1], SPRING[3], SPRING[60]]
    nine = [at(f"{day}T09:00") for day in days]
    assert await holes_filled(tmp_path, days) == [(slot, slot) for slot in reversed(nine)]
    assert await holes_filled(tmp_path, days, worthwhile=1) == [(nine[0], nine[2])]


async def test_many_holes_share_their_calls(tmp_path: Path) -> None:
    questions = await holes_filled(tmp_path, SPRING[::2])
    assert questions == [(at(f"{SPRING[0]}T09:00"), at(f"{SPRING[66]}T09:00"))]


async def test_a_vendor_that_answers_another_window_is_refused(tmp_path: Path) -> None:
    class Confused(FakeVendor):
        async def time_series(self, symbol: str, **question: Any) -> list[Any]:
            return session_bars("2024-01-03")

    store = FakeStore()
    with pytest.raises(L0Error, match="gave 60 others"):
        await job(Confused([]), store, tmp_path).run(START, END)
    assert store.rows == {}


async def test_a_range_that_ends_before_it_starts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="2025-06-10 is after the end 2025-06-02"):
        await job(FakeVendor([]), FakeStore(), tmp_path).run(END, START)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"source": "simulator"}', b"\xff\xfe", b'{"symbol": "USDCOP", '
     b'"source": "simulator", "absent": {"2025-06-03": ["25:00"]}}'],
)  # fmt: skip
async def test_an_unusable_record_of_absences_costs_a_call_and_nothing_else(
    tmp_path: Path, content: bytes
) -> None:
    record = absences(tmp_path)
    record.path.write_bytes(content)
    store = FakeStore()
    result = await job(FakeVendor(session_bars(*WEEK)), store, tmp_path).run(START, END)
    assert result.missing == ()


def test_the_record_of_absences_belongs_to_one_source(tmp_path: Path) -> None:
    slot = at("2025-06-03T08:00")
    absences(tmp_path).save([slot])
    assert absences(tmp_path).load() == {slot}
    assert absences(tmp_path, "twelvedata").load() == set()


def catch_up(vendor: FakeVendor, store: FakeStore, directory: Path, now: float) -> Incremental:
    return Incremental(
        job(vendor, store, directory, now),
        store,
        CALENDAR,
        StillClock(now),
        provider=SIMULATOR,
        symbol="USDCOP",
        window_days=2,
    )


async def test_incremental_goes_on_from_the_last_bar(tmp_path: Path) -> None:
    store = FakeStore(session_bars("2025-06-03", "2025-06-04")[:70])
    vendor = FakeVendor(session_bars(*WEEK))
    now = at("2025-06-10T10:00")
    result = await catch_up(vendor, store, tmp_path, now).run()
    assert [call[:2] for call in vendor.calls] == [(at("2025-06-04T08:50"), at("2025-06-10T09:50"))]
    assert vendor.calls[0][2] == "incremental"
    assert result.missing == ()
    assert store.slots()[-1] == at("2025-06-10T09:50")
    nothing = await catch_up(vendor, store, tmp_path, now).run()
    assert nothing.calls == 0


async def test_incremental_fills_holes_of_the_window(tmp_path: Path) -> None:
    store = FakeStore(session_bars(*WEEK[:5]))
    hole = at("2025-06-06T10:00")
    del store.rows[hole, "simulator"]
    vendor = FakeVendor(session_bars(*WEEK))
    result = await catch_up(vendor, store, tmp_path, at("2025-06-10T07:00")).run()
    assert vendor.calls[0][:2] == (hole, hole)
    assert result.missing == ()


async def test_incremental_on_an_empty_or_foreign_database_fetches_the_window(
    tmp_path: Path,
) -> None:
    store = FakeStore([bar(at("2024-01-03T08:00"), "twelvedata")])
    vendor = FakeVendor(session_bars(*WEEK))
    result = await catch_up(vendor, store, tmp_path, at("2025-06-10T07:00")).run()
    assert (result.start, result.bars_written) == (date(2025, 6, 6), 120)


async def test_incremental_from_an_explicit_start(tmp_path: Path) -> None:
    vendor, store = FakeVendor(session_bars(*WEEK)), FakeStore()
    result = await catch_up(vendor, store, tmp_path, LATER).run(start=date(2025, 6, 3))
    assert result.start == date(2025, 6, 3)
    assert result.bars_written == 360
