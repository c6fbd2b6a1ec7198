"""The virtual clock against hand-computed mappings."""

import asyncio
import time
from datetime import date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.clock import SystemClock, VirtualClock, parse_virtual_clock
from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.market.calendar import is_trading_day


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def clock(
    start: str, speed: float, closed: float | None = None
) -> tuple[VirtualClock, list[float]]:
    real = [1000.0]
    made = VirtualClock(
        at(start),
        speed,
        is_trading_day=is_trading_day,
        anchor=1000.0,
        closed_speed=closed,
        real_time=lambda: real[0],
        monotonic=lambda: real[0] + 77.0,
    )
    return made, real


def test_one_speed() -> None:
    virtual, real = clock("2024-05-10T07:55:00-05:00", 60)
    assert virtual.now() == at("2024-05-10T07:55:00-05:00")
    real[0] += 5
    assert virtual.now() == at("2024-05-10T08:00:00-05:00")
    real[0] = 990.0
    assert virtual.now() == at("2024-05-10T07:45:00-05:00")


def test_closed_hours_run_at_their_own_speed() -> None:
    # Friday 13:00 at 120x: ten minutes to 13:10 take 5 s; then 20,000x until Tuesday 07:50
    # (Monday 13 May is a holiday): 90 h 40 min take 16.32 s; then 120x again.
    virtual, real = clock("2024-05-10T13:00:00-05:00", 120, 20_000)
    real[0] += 5
    assert virtual.now() == pytest.approx(at("2024-05-10T13:10:00-05:00"), abs=1e-3)
    real[0] += 16.32
    assert virtual.now() == pytest.approx(at("2024-05-14T07:50:00-05:00"), abs=1e-2)
    real[0] += 10
    assert virtual.now() == pytest.approx(at("2024-05-14T08:10:00-05:00"), abs=1e-1)


@given(st.lists(st.floats(0, 100_000), min_size=2, max_size=20))
def test_the_mapping_increases_and_inverts(offsets: list[float]) -> None:
    virtual, real = clock("2024-05-09T12:00:00-05:00", 60, 5000)
    seen = []
    for offset in sorted(offsets):
        real[0] = 1000.0 + offset
        now = virtual.now()
        seen.append(now)
        assert virtual._to_real(now) == pytest.approx(real[0], abs=1e-4)
    assert seen == sorted(seen)


def test_two_clocks_of_one_specification_agree() -> None:
    first = parse_virtual_clock("2024-05-10T12:00:00-05:00,120,1700000000,9000", is_trading_day)
    second = parse_virtual_clock(first.specification(), is_trading_day)
    for real in (1_700_000_000.0, 1_700_000_031.5, 1_700_050_000.25):
        assert first._to_virtual(real) == second._to_virtual(real)


def test_span_never_shrinks_below_real_seconds() -> None:
    virtual, _ = clock("2024-05-10T09:00:00-05:00", 120)
    assert virtual.span(60) == 60
    assert virtual.span(60, at_least_real=2) == pytest.approx(240)
    assert SystemClock().span(60, at_least_real=2) == 60


async def test_sleep_until_wakes_when_virtual_time_has_come() -> None:
    virtual = VirtualClock(0.0, 100_000.0, is_trading_day=lambda _day: True)
    await virtual.sleep_until(2_000.0)
    assert virtual.now() >= 2_000.0
    await virtual.sleep_until(1.0)  # long past: at once
    await SystemClock().sleep(0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2024-05-10",
        "soon,5",
        "2024-05-10,0",
        "2024-05-10,1,x",
        "2024-05-10,1,2,3,4",
        "2024-05-10,1,2,-1",
    ],
)
def test_bad_specifications_are_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match="VIRTUAL_CLOCK"):
        parse_virtual_clock(text, is_trading_day)


def test_naive_start_is_bogota_time() -> None:
    made = parse_virtual_clock("2024-05-10T08:00:00,1", is_trading_day)
    assert made.start == at("2024-05-10T08:00:00-05:00")
    assert isinstance(date.fromtimestamp(made.start), date)  # noqa: DTZ012 - any zone will do


@pytest.mark.parametrize("virtual", [False, True])
async def test_a_clock_that_is_set_forward_wakes_who_sleeps_until_then(
    virtual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that starts with a wrong clock must not open the session an hour late."""
    step = [0.0]
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + step[0])
    made: SystemClock | VirtualClock = SystemClock()
    if virtual:
        made = VirtualClock(
            0.0, 1.0, is_trading_day=is_trading_day, real_time=lambda: real() + step[0]
        )
    sleeper = asyncio.create_task(made.sleep_until(made.now() + 3600.0))
    await asyncio.sleep(0)
    step[0] = 3600.0
    async with asyncio.timeout(20):
        await sleeper


async def test_durations_do_not_follow_a_clock_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600.0)
    async with asyncio.timeout(20):
        await SystemClock().sleep(0.01)


@given(
    st.floats(1, 20_000),
    st.lists(
        st.tuples(st.floats(0.001, 3_000), st.floats(-86_400, 86_400)), min_size=1, max_size=10
    ),
)
def test_elapsed_is_the_span_of_an_unset_clock_however_often_it_is_set(
    closed: float, moves: list[tuple[float, float]]
) -> None:
    real, step = 1_000_000.0, 0.0
    shared = {"anchor": 1_000_000.0, "closed_speed": closed, "is_trading_day": is_trading_day}
    start = at("2024-05-10T12:50:00-05:00")
    never_set = VirtualClock(start, 60, real_time=lambda: real, **shared)  # type: ignore[arg-type] - as written above
    made = VirtualClock(
        start,
        60,
        real_time=lambda: real + step,
        monotonic=lambda: real - 12.5,
        **shared,  # type: ignore[arg-type] - as written above
    )
    before = 0.0
    for passed, jump in moves:
        real += passed
        step += jump
        assert made.elapsed() == pytest.approx(never_set.now() - start, abs=1e-3)
        assert made.elapsed() > before
        before = made.elapsed()


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
async def test_a_virtual_sleep_does_not_follow_a_machine_that_is_set(jump: float) -> None:
    step = [0.0]
    made = VirtualClock(
        0.0, 10.0, is_trading_day=is_trading_day, real_time=lambda: time.time() + step[0]
    )
    sleeper = asyncio.create_task(made.sleep(1.0))
    await asyncio.sleep(0)
    step[0] = jump
    began = time.monotonic()
    async with asyncio.timeout(20):
        await sleeper
    assert time.monotonic() - began > 0.05
    assert made.elapsed() >= 1.0


def test_elapsed_of_the_machine_does_not_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SystemClock()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86_400.0)
    assert 0.0 <= made.elapsed() < 600.0
    assert made.elapsed() <= made.elapsed()
