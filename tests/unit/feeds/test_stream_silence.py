"""The vendor's socket falls silent: what the feed makes of it, against a real socket."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from enhanced_websocket_service.feeds.stream import StreamEvent

from .test_stream import Bench
from .vendor import STAMP, Vendor, granted, price, running_vendor, until


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    async with running_vendor() as one:
        yield one


@pytest.fixture
async def bench(vendor: Vendor) -> AsyncIterator[Bench]:
    one = Bench(vendor)
    yield one
    await one.stop()
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("feed")] == []
    await until(lambda: vendor.open_sockets == 0)


async def streamed(bench: Bench, count: int = 30) -> None:
    """A price a second, 4000, 4000.1 ..."""
    before = len(bench.quotes)
    for number in range(count):
        await bench.vendor.send(price(4000 + number / 10, STAMP + number))
        await bench.received(before + number + 1)
        await bench.clock.pass_time(1)


async def test_a_mute_socket_is_dead_when_the_vendor_moved_twice(
    bench: Bench, vendor: Vendor
) -> None:
    await bench.start()
    await streamed(bench)
    last = bench.clock.now() - 1
    bench.rest = lambda now: round(4002.9 + (now - last) * 0.1, 2)
    verdicts = []
    while not bench.events:
        await vendor.send({"event": "heartbeat", "status": "ok"})  # is not data
        await bench.clock.pass_time(1)
        verdicts.append(bench.verdict)
        assert bench.clock.now() < last + 30
    assert list(dict.fromkeys(verdicts)) == ["live", "suspect", "dead"]
    assert len(bench.asked) == 2
    assert bench.events[0].kind == "silent"
    assert "the vendor moved from" in bench.events[0].message
    (shown,) = bench.feed.status().verdicts
    assert [change.verdict for change in shown.history][-2:] == ["suspect", "dead"]
    assert shown.samples["differs"] == 2
    await bench.passing(lambda: bench.feed.status().subscribed)
    assert bench.verdict == "suspect", "connecting is no sign of life"


async def test_a_quiet_market_is_left_alone(bench: Bench) -> None:
    await bench.start()
    await streamed(bench)
    bench.rest = lambda _: 4002.9
    await bench.clock.pass_time(1200)
    assert not bench.events
    assert bench.verdict == "quiet"
    assert "4002.9 is one the socket brought" in bench.feed.status().detail
    assert len(bench.asked) < 15, "the longer it lasts, the rarer"


@pytest.mark.parametrize("greeting", [[granted()], [granted(), price(4000)]])
async def test_mute_from_birth_is_dead_within_half_a_minute(
    bench: Bench, vendor: Vendor, greeting: list[dict[str, Any]]
) -> None:
    vendor.greeting = greeting
    start = bench.clock.now()
    bench.rest = lambda now: 4000 + (now - start) * 0.1
    await bench.start()
    await bench.clock.pass_time(20)
    assert not bench.events
    await bench.clock.pass_time(9)
    await until(lambda: bench.events)
    assert bench.events[0].kind == "silent"


async def test_without_rest_silence_decides_late(bench: Bench) -> None:
    def unreachable(_: float) -> float:
        raise TimeoutError

    await bench.start()
    await streamed(bench)
    bench.rest = unreachable
    await bench.clock.pass_time(85)
    assert not bench.events
    assert bench.verdict == "suspect"
    await bench.clock.pass_time(15)
    await until(lambda: bench.events)
    assert "no REST price to compare with" in bench.events[0].message


async def test_a_closed_market_is_allowed_to_be_silent(bench: Bench) -> None:
    bench.open = False
    await bench.start()
    await until(lambda: bench.feed.status().subscribed)
    bench.rest = lambda now: now % 100
    await bench.clock.pass_time(900, step=5)
    assert (bench.events, bench.asked) == ([], [])
    assert bench.verdict == "closed"


async def test_no_answer_to_the_subscription_is_a_fault_even_when_closed(
    bench: Bench, vendor: Vendor
) -> None:
    bench.open, vendor.greeting = False, []
    await bench.start()
    await bench.clock.pass_time(20)
    await until(lambda: bench.events)
    assert "no answer to the subscription" in bench.events[0].message


@pytest.mark.parametrize("turns", range(8))
async def test_closing_in_the_turn_in_which_it_dies_ends_it(vendor: Vendor, turns: int) -> None:
    """A task group that is ending because of a fault swallows a cancellation from outside."""
    bench = Bench(vendor)
    await bench.start()
    await streamed(bench, 3)
    start = bench.clock.now()
    bench.rest = lambda now: round(4001.11 + (now - start) * 0.17, 2)
    closing: list[asyncio.Task[None]] = []

    async def close() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await bench.feed.aclose()

    def on_news() -> None:
        if not closing and bench.feed.liveness.detectors["USDCOP"].verdict == "dead":
            closing.append(asyncio.create_task(close()))

    bench.feed.liveness.subscribe(on_news)
    while not closing:
        await bench.clock.pass_time(1)
    async with asyncio.timeout(40):
        await closing[0]
    assert not bench.feed.running
    await bench.stop()
    await until(lambda: vendor.open_sockets == 0)


class TestOneOfTwo:
    """USDCOP falls silent while EURUSD goes on."""

    @pytest.fixture
    async def two(self, vendor: Vendor) -> AsyncIterator[Bench]:
        vendor.greeting = [granted("USD/COP", "EUR/USD")]
        bench = Bench(vendor, symbols=("USDCOP", "EURUSD"))
        await bench.start()
        await until(lambda: len(bench.feed.status().subscribed) == 2)
        yield bench
        await bench.stop()

    async def test_only_the_dead_symbol_is_given_up_and_subscribed_anew(
        self, two: Bench, vendor: Vendor
    ) -> None:
        start = two.clock.now()
        two.rest = lambda now: round(4000 + (now - start) * 0.1, 2)

        async def second(number: int) -> None:
            await vendor.send(price(1 + number / 1e4, STAMP + number, symbol="EUR/USD"))
            await two.received(len(two.quotes) + 1)
            await two.clock.pass_time(1)

        number = 0
        while not two.events:
            number += 1
            assert number < 30
            await second(number)
        assert [(event.kind, event.symbols) for event in two.events] == [("silent", ("USDCOP",))]
        assert two.feed.connected
        while vendor.count("unsubscribe") == 0:
            number += 1
            await second(number)
        again = vendor.messages[-1]
        assert (again["action"], again["params"]) == ("subscribe", {"symbols": "USD/COP"})
        for _ in range(300):
            number += 1
            await second(number)
        assert len(vendor.sockets) == 1
        assert 3 <= vendor.count("subscribe") <= 7, "at growing intervals"
        now = int(two.clock.now())
        await vendor.send(price(4100, now - 1), price(4101, now))
        await until(lambda: two.feed.status().verdict == "live")

    async def test_when_all_are_dead_the_connection_is_replaced(
        self, two: Bench, vendor: Vendor
    ) -> None:
        start = two.clock.now()
        two.rest = lambda now: round(4000 + (now - start) * 0.1, 2)

        def whole(event: StreamEvent) -> bool:
            return len(event.symbols) == 2

        for _ in range(30):
            await two.clock.pass_time(1)
        await until(lambda: any(whole(event) for event in two.events))


async def test_events_stay_below_the_vendors_limit_however_it_flaps(
    bench: Bench, vendor: Vendor
) -> None:
    """A vendor that takes every subscription, sends prices and hangs up."""
    bench.feed._backoff._cap = 0.1
    with capture_logs():
        await bench.start()
        begin = bench.clock.now()
        for _ in range(600):
            if vendor.open_sockets and bench.feed.connected:
                await vendor.sockets[-1].close(1011)
            await bench.clock.pass_time(0.2, step=0.1)
        minutes = (bench.clock.now() - begin) / 60
    assert 30 < vendor.count("subscribe") <= 60 * (minutes + 1)
