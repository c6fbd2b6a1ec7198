"""REST prices as a feed: pace, change, freshness, errors."""

import asyncio
import json
import math
from collections.abc import AsyncIterator

import httpx
import pytest
from structlog.testing import capture_logs

from enhanced_websocket_service.feeds.polling import PollingFeed
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.twelvedata.backoff import Backoff
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool
from enhanced_websocket_service.twelvedata.protocol import our_symbol
from enhanced_websocket_service.twelvedata.rest import RestClient

from .alone import Alone
from .clocks import ManualClock
from .vendor import until


class Prices(httpx.AsyncBaseTransport):
    """``/price`` answers what stands in ``values``; a number is a price, bytes are the body."""

    def __init__(self) -> None:
        self.values: dict[str, float | bytes] = {"USDCOP": 4000.0, "EURUSD": 1.1}
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        symbol = our_symbol(request.url.params["symbol"])
        self.asked.append(symbol)
        value = self.values[symbol]
        await self.gate.wait()
        if isinstance(value, bytes):
            return httpx.Response(500, content=value)
        return httpx.Response(200, content=json.dumps({"price": str(value)}).encode())


class Bench:
    believing = True

    def __init__(self, symbols: tuple[str, ...] = ("USDCOP",)) -> None:
        self.clock = ManualClock(1_000_000_000.5)
        self.prices = Prices()
        self.pace = 2.0
        self.open = True
        pool = KeyPool([ApiKey("G1_1", "secret")], spacing_s=0.0, minute_limit=1000)
        provider = Provider("simulator")
        self.rest = RestClient(
            "http://vendor.test", pool, self.clock, provider, Metrics(), self.prices
        )
        polling = PollingFeed(
            self.rest,
            symbols,
            self.clock,
            provider,
            pace=lambda _: self.pace,
            is_open=lambda _: self.open,
            last_price=lambda symbol: self.accepted.get(symbol),
            witness=lambda *said: self.witnessed.append(said),
            backoff=Backoff(base=2.0, cap=60.0, jitter=lambda: 1.0),
        )
        self.feed = Alone(polling)
        self.quotes: list[Quote] = []
        self.accepted: dict[str, float] = {}  # as the pipeline would
        self.witnessed: list[tuple[str, float]] = []
        self._consumer = asyncio.create_task(self._consume())

    async def _consume(self) -> None:
        async for batch in self.feed:
            self.quotes += batch
            self.accepted |= {quote.symbol: quote.price for quote in batch if self.believing}

    @property
    def asked(self) -> int:
        return len(self.prices.asked)

    async def stop(self) -> None:
        await self.feed.aclose()
        await self._consumer
        await self.rest.aclose()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    one = Bench()
    yield one
    await one.stop()
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("feed")] == []


async def test_a_changed_price_is_a_quote_stamped_with_its_receipt(bench: Bench) -> None:
    await until(lambda: bench.quotes)
    assert bench.quotes == [
        Quote(
            symbol="USDCOP",
            timestamp=1_000_000_000,
            price=4000.0,
            source="simulator_rest",
            received_at=1_000_000_000.5,
            stamped=False,
        )
    ]


async def test_an_unchanged_price_is_freshness_not_a_quote(bench: Bench) -> None:
    await until(lambda: bench.quotes)
    await bench.clock.pass_time(20)
    assert bench.asked == 11
    assert len(bench.quotes) == 1
    assert bench.feed.status().last_quote_at == bench.clock.now()
    assert bench.feed.status().verdict == "live"
    bench.prices.values["USDCOP"] = 4001.0
    await bench.clock.pass_time(2)
    assert [one.price for one in bench.quotes] == [4000.0, 4001.0]


async def test_the_pace_is_the_planners(bench: Bench) -> None:
    await until(lambda: bench.asked == 1)
    bench.pace = 10.0
    await bench.clock.pass_time(2)  # planned before the change
    assert bench.asked == 2
    await bench.clock.pass_time(9)
    assert bench.asked == 2
    await bench.clock.pass_time(1)
    assert bench.asked == 3


async def test_symbols_take_turns_and_share_the_pace() -> None:
    bench = Bench(("USDCOP", "EURUSD"))
    await until(lambda: bench.asked == 1)
    await bench.clock.pass_time(6)
    assert bench.asked == 4
    assert set(bench.prices.asked[:2]) == set(bench.prices.asked[2:]) == {"USDCOP", "EURUSD"}
    await bench.stop()


async def test_no_credit_is_spent_on_a_closed_market(bench: Bench) -> None:
    await until(lambda: bench.asked == 1)
    bench.open = False
    await bench.clock.pass_time(100)
    assert bench.asked == 1
    assert bench.feed.status().verdict == "closed"
    bench.open = True
    await bench.clock.pass_time(2)
    assert bench.asked == 2


async def test_no_credits_left_means_no_polls(bench: Bench) -> None:
    await until(lambda: bench.asked == 1)
    bench.pace = math.inf
    await bench.clock.pass_time(200)
    assert bench.asked == 1
    assert bench.feed.status().verdict == "dead"
    assert "no API credits" in bench.feed.status().detail
    bench.pace = 2.0
    await bench.clock.pass_time(60)
    assert bench.asked > 1


async def test_failures_back_off_and_are_said_once(bench: Bench) -> None:
    await until(lambda: bench.quotes)
    bench.prices.values["USDCOP"] = b"error code: 520"
    with capture_logs() as logs:
        await bench.clock.pass_time(2 + 2 + 4 + 8)
        assert bench.asked == 5
        await bench.clock.pass_time(60)
    assert len([line for line in logs if line["event"] == "Price poll failed"]) == 1
    status = bench.feed.status()
    assert status.verdict == "dead"
    assert status.last_error is not None
    assert "520" in status.last_error
    bench.prices.values["USDCOP"] = 4002.0
    await bench.clock.pass_time(64)
    assert bench.quotes[-1].price == 4002.0
    assert bench.feed.status().verdict == "live"


async def test_symbols_can_be_taken_away_and_given_back(bench: Bench) -> None:
    await until(lambda: bench.quotes)
    bench.feed.set_symbols(())
    await bench.clock.pass_time(100)
    assert bench.asked == 1
    bench.accepted["USDCOP"] = 4005.0
    bench.prices.values["USDCOP"] = 4005.0
    bench.feed.set_symbols(("USDCOP",))
    await until(lambda: bench.asked == 2)  # at once
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(bench.quotes) == 1, "another feed already brought this price"


async def test_an_answer_for_a_symbol_taken_away_is_dropped(bench: Bench) -> None:
    await until(lambda: bench.quotes)
    bench.prices.values["USDCOP"] = 4001.0
    bench.prices.gate.clear()
    await bench.clock.pass_time(2)
    assert bench.asked == 2
    bench.feed.set_symbols(())
    bench.prices.gate.set()
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(bench.quotes) == 1


async def test_every_answer_is_a_witness_also_one_that_changed_nothing(bench: Bench) -> None:
    await until(lambda: bench.quotes)
    await bench.clock.pass_time(20)
    assert bench.asked == 11
    assert bench.witnessed == [("USDCOP", 4000.0)] * 11
    assert len(bench.quotes) == 1


async def test_a_price_that_was_not_accepted_stays_a_change(bench: Bench) -> None:
    await until(lambda: bench.quotes)
    bench.believing = False
    bench.prices.values["USDCOP"] = 4300.0
    await bench.clock.pass_time(2)
    bench.prices.values["USDCOP"] = 4000.0
    await bench.clock.pass_time(2)
    assert [quote.price for quote in bench.quotes] == [4000.0, 4300.0], "it was back at the known"
    bench.prices.values["USDCOP"] = 4300.0
    await bench.clock.pass_time(4)
    assert [quote.price for quote in bench.quotes[2:]] == [4300.0, 4300.0]
