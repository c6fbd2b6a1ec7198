"""The feeds against the vendor simulator: real sockets, virtual time, injected faults."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import date

import pytest

from enhanced_websocket_service.clock import VirtualClock
from enhanced_websocket_service.errors import CreditsExhausted, InvalidKey, VendorUnavailable
from enhanced_websocket_service.feeds.base import FeedGap
from enhanced_websocket_service.feeds.liveness_monitor import LivenessMonitor
from enhanced_websocket_service.feeds.polling import PollingFeed
from enhanced_websocket_service.feeds.router import FeedRouter
from enhanced_websocket_service.feeds.stream import StreamFeed
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool
from enhanced_websocket_service.twelvedata.planner import CreditPlanner
from enhanced_websocket_service.twelvedata.rest import RestClient
from enhanced_websocket_service.twelvedata.simulator import (
    Simulator,
    SimulatorConfig,
    market_from_options,
)
from enhanced_websocket_service.twelvedata.spending import LIVENESS
from tests.unit.feeds.vendor import until

CALENDAR = TradingCalendar()
SESSION = CALENDAR.session(date(2025, 6, 4))
assert SESSION is not None
OPENS, CLOSES = SESSION.opens, SESSION.closes


@dataclass
class Stage:
    """A simulator, a client with ``keys`` keys, and a running feed."""

    simulator: Simulator
    clock: VirtualClock
    rest: RestClient
    keys: KeyPool
    feed: FeedRouter
    metrics: Metrics
    gaps: list[FeedGap]
    quotes: list[Quote] = field(default_factory=list)

    def sources(self, since: int = 0) -> set[str]:
        return {quote.source for quote in self.quotes[since:]}

    async def consume(self) -> None:
        async with aclosing(self.feed) as batches:
            async for batch in batches:
                self.quotes += batch

    async def delivered(self, source: str, count: int = 3) -> None:
        """Wait for ``count`` more quotes, the last ones from ``source``."""
        since = len(self.quotes)
        await until(lambda: len(self.quotes) >= since + count and self.quotes[-1].source == source)


@asynccontextmanager
async def stage(
    *,
    keys: int = 2,
    plan: str = "pro",
    secrets: str = "key",
    begin: float = OPENS + 600,
    speed: float = 60.0,
    ticks_per_bar: int | None = None,
    faults: Mapping[str, object] | None = None,
    skew: Callable[[float], float | None] = lambda _: None,
    doubtful: Callable[[str, float], bool] = lambda *_: False,
    on_outage: Callable[[str, float], None] = lambda *_: None,
    on_closed: Callable[[FeedGap], None] = lambda _: None,
) -> AsyncIterator[Stage]:
    clock = VirtualClock(begin, speed, is_trading_day=CALENDAR.is_trading_day)
    market = market_from_options(seed=7, ticks_per_bar=ticks_per_bar)
    simulator = Simulator(SimulatorConfig(market, plan=plan), clock)
    await simulator.start("127.0.0.1", 0)
    simulator.inject(faults or {})
    pool = KeyPool([ApiKey(f"G1_{i + 1}", f"{secrets}-{i:04}-secret") for i in range(keys)])
    provider, metrics = Provider("simulator"), Metrics()
    rest = RestClient(simulator.rest_url, pool, clock, provider, metrics)
    planner = CreditPlanner(pool)
    liveness = LivenessMonitor(
        ["USDCOP"],
        clock,
        metrics,
        session_at=lambda _, at: CALENDAR.open_session(at),
        ask=lambda symbol: rest.price(symbol, LIVENESS, retries=0),
        spacing=lambda at: pool.budget(at).min_interval_s,
        skew=skew,
        doubtful=doubtful,
    )
    stream = StreamFeed(
        simulator.ws_url,
        pool,
        ["USDCOP"],
        clock,
        provider,
        metrics,
        liveness=liveness,
    )
    polling = PollingFeed(
        rest,
        ["USDCOP"],
        clock,
        provider,
        pace=lambda now: planner.poll_interval(now, CLOSES),
        is_open=CALENDAR.is_open,
    )
    gaps: list[FeedGap] = []

    def on_gap(gap: FeedGap) -> None:
        gaps.append(gap)
        on_closed(gap)

    feed = FeedRouter(stream, polling, metrics, on_gap=on_gap, on_outage=on_outage)
    one = Stage(simulator, clock, rest, pool, feed, metrics, gaps)
    consumer = asyncio.create_task(one.consume(), name="consumer")
    try:
        yield one
    finally:
        consumer.cancel()
        await asyncio.gather(consumer, return_exceptions=True)
        await rest.aclose()
        await until(lambda: not simulator.status()["clients"])  # it has seen the goodbye
        leftovers = [t.get_name() for t in asyncio.all_tasks() if t.get_name().startswith("feed")]
        await simulator.stop()
    assert leftovers == []


async def test_every_price_the_vendor_sends_arrives_once_and_in_order() -> None:
    async with stage(speed=600.0) as it:
        await until(lambda: len(it.quotes) >= 100)
        assert it.sources() == {"simulator_websocket"}
        assert all(quote.raw == "" and quote.symbol == "USDCOP" for quote in it.quotes)
        stamps = [quote.timestamp for quote in it.quotes[1:]]
        assert stamps == sorted(stamps)
        assert [q.first_after_subscribe for q in it.quotes].count(True) == 1
        assert it.feed.status().verdict == "live"
        source = market_from_options(seed=7).get("USD/COP")
        assert source is not None
        first, last = stamps[0], stamps[-1]
        expected = [t.price for t in source.ticks(first + 1, last) if t.timestamp < last]
        got = [q.price for q in it.quotes[1:] if first < q.timestamp < last]
        assert got == expected


@pytest.mark.parametrize("fault", [{"close": 1011}, {"close": 1000}, {"drop": True}])
async def test_a_lost_connection_is_replaced(fault: dict[str, object]) -> None:
    async with stage() as it:
        await it.delivered("simulator_websocket")
        it.simulator.inject(fault)
        await until(lambda: it.feed.status().reconnects >= 1)
        await it.delivered("simulator_websocket", 10)
        assert it.feed.status().websocket_connected


async def test_a_refused_handshake_means_rest_until_it_is_accepted() -> None:
    async with stage(keys=3) as it:
        await it.delivered("simulator_websocket")
        it.simulator.inject({"refuse_handshake": 403, "drop": True})
        await it.delivered("simulator_rest", 2)
        status = it.feed.status()
        assert (status.source, status.websocket_connected) == ("simulator_rest", False)
        assert all(quote.timestamp == int(quote.received_at) for quote in it.quotes[-2:])
        it.simulator.inject({"refuse_handshake": None})
        await it.delivered("simulator_websocket", 10)
        assert it.feed.on_rest == frozenset()


async def test_an_unentitled_plan_is_served_by_rest() -> None:
    async with stage(plan="basic", keys=4) as it:
        await it.delivered("simulator_rest", 2)
        assert it.sources() == {"simulator_rest"}
        assert it.feed.status().refused == ("USDCOP",)
        assert it.simulator.status()["answers"].get("429", 0) == 0


async def test_a_mute_socket_is_replaced_by_rest() -> None:
    async with stage() as it:
        await it.delivered("simulator_websocket")
        it.simulator.inject({"mute": True})
        await it.delivered("simulator_rest", 1)
        assert "the vendor moved" in (it.feed.status().last_error or "")
        it.simulator.inject({"mute": False})
        await it.delivered("simulator_websocket", 10)


async def test_strange_prices_pass() -> None:
    async with stage() as it:
        it.simulator.inject({"string_prices": True, "no_bid_ask": True, "garbage_frames": 20})
        await it.delivered("simulator_websocket", 20)
        assert (it.quotes[-1].bid, it.quotes[-1].ask) == (None, None)
        assert it.feed.status().reconnects == 0


async def test_rest_errors_by_the_vendors_own_words() -> None:
    async with stage(keys=3) as it:
        series = await it.rest.time_series(
            "USDCOP", start=OPENS - 86_400, end=OPENS + 3600, purpose="backfill"
        )
        assert [bar.open_time for bar in series] == sorted({bar.open_time for bar in series})
        assert all(bar.close_time <= it.clock.now() for bar in series)
        assert series[0].source == "simulator"
        weekend = OPENS - 3 * 86_400
        assert (
            await it.rest.time_series("USDCOP", start=weekend, end=weekend + 60, purpose="backfill")
            == []
        )
        assert (await it.rest.api_usage()).plan_limit > 0
        assert 3000 < await it.rest.price("USDCOP", "check") < 6000
        assert await it.rest.earliest_timestamp("USDCOP", 300) < OPENS
        assert (await it.rest.quote("USDCOP", "check")).price > 0
        for with_200 in (False, True):
            it.simulator.inject({"rest_status": "520", "status_200_errors": with_200})
            with pytest.raises(VendorUnavailable):
                await it.rest.price("USDCOP", "check", retries=0)
        it.simulator.inject({"rest_status": "429_day", "status_200_errors": False})
        with pytest.raises(CreditsExhausted) as refused:
            await it.rest.price("USDCOP", "check")
        assert refused.value.scope == "day"


async def test_unknown_keys_are_set_aside() -> None:
    async with stage(keys=2, secrets="invalid") as it:
        with pytest.raises(InvalidKey):
            await it.rest.price("USDCOP", "check")
        assert it.keys.snapshot(it.clock.now())["usable_keys"] == 0


async def test_before_the_open_it_connects_spends_nothing_and_finds_no_fault() -> None:
    async with stage(begin=OPENS - 60) as it:
        await until(lambda: it.feed.status().websocket_connected)
        await until(lambda: it.clock.now() > OPENS - 5)
        assert it.feed.status().verdict == "closed"
        assert it.simulator.status()["calls"] == {}
        await until(lambda: any(quote.timestamp >= OPENS for quote in it.quotes))
        assert it.feed.status().reconnects == 0
