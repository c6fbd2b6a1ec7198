"""Whose time it is: the machine's while it is right, the vendor's where it is not."""

import asyncio
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.errors import VendorUnavailable
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.feeds.liveness_monitor import LivenessMonitor
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.tick import Quote, Tick
from enhanced_websocket_service.service.pipeline import Pipeline
from enhanced_websocket_service.service.vendor_clock import PART, VendorClock
from enhanced_websocket_service.telemetry import Metrics
from tests.unit.feeds.clocks import SetManualClock

NOON = 1_748_959_200.0  # 2025-06-03 14:00 UTC, 09:00 in Bogota


class World:
    """A machine whose clock is wrong by ``machine.error``, and a vendor whose clock is right."""

    def __init__(
        self, *, virtual: bool = False, real_time: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.machine = SetManualClock(NOON)
        self.failures = Failures(self.machine)
        self.metrics = Metrics()
        self.clock = VendorClock(
            self.machine, self.failures, self.metrics, virtual=virtual, real_time=real_time
        )
        self.told: list[tuple[float, float]] = []
        self.clock.on_set = lambda before, after: self.told.append((before, after))

    @property
    def right(self) -> float:
        return self.machine.now() - self.machine.error

    def answer(self, times: int = 1, pause: float = 5.0) -> None:
        for _ in range(times):
            self.machine.advance(pause)
            self.clock.http_date(float(math.floor(self.right - 0.1)), 0.2)

    @property
    def problem(self) -> str | None:
        failure = self.failures.of(PART)
        return None if failure is None else failure.reason

    @property
    def shown(self) -> float | None:
        return self.metrics.registry.get_sample_value("ews_clock_offset_seconds")


def test_a_clock_that_is_known_to_be_fast_makes_no_stamp_old() -> None:
    world = World()
    world.machine.error = 300.0
    liveness = LivenessMonitor(["USDCOP"], world.clock, world.metrics)
    liveness.tell(lambda detector, now: detector.connected(now))

    def proves(price: float) -> bool:
        quote = Quote("USDCOP", int(world.right), price, "simulator_websocket", world.clock.now())
        return liveness.price(quote, resent=False)

    assert not proves(4000.0)
    world.answer(3)
    assert proves(4001.0)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (-8.0, "8 s behind the vendor's"),
        (8.0, "8 s ahead of the vendor's"),
        (-1800.0, "30 min behind"),
        (86_400.0, "24.0 h ahead of"),
    ],
)
def test_a_clock_that_is_wrong_is_named_with_size_and_direction_and_not_gone_by(
    error: float, words: str
) -> None:
    world = World()
    world.machine.error = error
    world.clock.now()
    assert math.isnan(world.shown or 0.0)
    world.answer(3)
    assert words in (world.problem or "")
    assert world.shown == pytest.approx(-error, abs=1.0)
    assert world.clock.now() == pytest.approx(world.right, abs=1.0)
    world.machine.error = 0.0
    assert world.clock.now() == pytest.approx(world.right, abs=1.0)
    world.answer(1)
    assert world.problem is None
    assert world.clock.correction == 0.0


def test_a_clock_that_is_right_is_left_alone() -> None:
    world = World()
    world.answer(20)
    assert (world.problem, world.told, world.clock.correction) == (None, [], 0.0)
    assert world.clock.now() == world.machine.now()


@given(st.integers(0, 2**32))
def test_jumps_of_a_clock_that_is_known_reach_nobody(seed: int) -> None:
    """Whenever somebody looks, it is the vendor's time; and what is doubtful is told."""
    chance, world = random.Random(seed), World()
    world.answer(3)
    jumps = 0
    for _ in range(50):
        if chance.random() < 0.5:
            world.machine.error = chance.choice(
                [0.0, 2.0, 90.0, -90.0, 3600.0, -86_400.0, 86_400.0]
            )
            jumps += 1
        world.machine.advance(chance.uniform(0.0, 4.0))
        assert abs(world.clock.now() - world.right) <= 3.5
        if chance.random() < 0.4:
            world.answer()
    world.machine.error = 0.0
    world.answer(3)
    assert world.clock.now() == world.machine.now()
    assert world.problem is None


@given(st.floats(2.0, 86_400.0), st.booleans())
def test_what_drifts_or_jumps_is_told(size: float, back: bool) -> None:
    world = World()
    for _ in range(100):
        world.machine.error += (-size if back else size) / 100
        world.machine.advance(1.0)
        world.clock.now()
    assert sum(before != after for before, after in world.told) >= 1
    assert world.clock.now() == world.machine.now(), "nobody has said that it is wrong"


def test_a_machine_that_slept_goes_by_its_own_clock_once_the_vendor_says_so() -> None:
    world = World()
    world.answer(3)
    world.machine.error = 7200.0  # our span stood still: it looks like a clock set ahead
    assert world.clock.now() == pytest.approx(NOON + 15.0, abs=1.0)
    world.clock.http_date(world.machine.now() - 0.5, 0.2)
    assert world.clock.now() == world.machine.now()
    assert len(world.told) == 2


def test_without_any_witness_the_own_clock_is_believed_after_a_while() -> None:
    world = World()
    world.answer(3)
    world.machine.error = 7200.0
    world.clock.now()
    world.machine.advance(31.0)
    world.clock._decide(world.clock._wall())
    assert world.clock.now() == world.machine.now()


def test_real_time_says_nothing_about_an_invented_one() -> None:
    """VIRTUAL_CLOCK against a vendor of the real time: its headers and stamps are no witnesses."""
    real = NOON + 40_000_000.0
    world = World(virtual=True, real_time=lambda: real)
    for number in range(20):
        world.machine.advance(10.0)
        world.clock.http_date(real + number, 0.2)
        world.clock.stamp(real + number, world.clock.now())
    assert (world.problem, world.clock.correction) == (None, 0.0)
    world.machine.error = -100.0
    world.answer(3)  # a simulator shows the invented time
    assert "behind" in (world.problem or "")


async def test_the_vendor_is_asked_for_its_time_until_it_is_known_and_rarely_then() -> None:
    world, asked, vendor_ahead = World(), 0, 0.0

    async def ask() -> None:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise VendorUnavailable("away")
        world.clock.http_date(float(math.floor(world.right + vendor_ahead)), 0.1)

    watching = asyncio.create_task(world.clock.run(ask))
    await world.machine.pass_time(60.0)
    assert asked == 5
    await world.machine.pass_time(600.0)
    assert 14 <= asked <= 16
    vendor_ahead = 300.0
    await world.machine.pass_time(75.0)
    assert "5 min behind the vendor's" in (world.problem or "")
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


def test_prices_go_on_being_published_by_a_clock_that_is_slow() -> None:
    """Finding 5: eight seconds behind, every tick was from the future."""
    world = World()
    published: list[object] = []

    class Journal:
        def append(self, records: object) -> None: ...

    pipeline = Pipeline(
        {"USDCOP": TradingCalendar()},
        journal=Journal(),
        publish=published.extend,
        metrics=Metrics(),
        epoch=1,
        stamped=world.clock.stamp,
    )
    world.machine.error = -8.0
    world.clock.now()
    world.answer(3)
    for _ in range(600):
        world.machine.advance(1.0)
        now = world.clock.now()
        pipeline.on_quotes(
            [Quote("USDCOP", int(world.right), 4000.0, "twelvedata_websocket", now)], now
        )
        pipeline.on_time(world.clock.now(), 60.0)
    assert sum(isinstance(one, Tick) for one in published) == 600
    assert pipeline.counts.future == 0
    assert pipeline.counts.bars == 2
