"""Who owns a symbol when: the stream, or REST while the stream fails."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise

import msgspec
import pytest
from structlog.testing import capture_logs

from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.feeds.base import FeedGap
from enhanced_websocket_service.feeds.polling import PollingFeed
from enhanced_websocket_service.feeds.router import FeedMode, FeedRouter
from enhanced_websocket_service.feeds.stream import StreamFeed
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool
from enhanced_websocket_service.twelvedata.rest import RestClient

from .clocks import SetManualClock
from .test_polling import Prices
from .vendor import STAMP, Vendor, granted, price, refused, running_vendor, until

SYMBOLS = ("USDCOP", "EURUSD")


class Bench:
    """Both feeds of one vendor; every REST price is new."""

    def __init__(
        self, vendor: Vendor, mode: FeedMode = "auto", symbols: tuple[str, ...] = ("USDCOP",)
    ) -> None:
        self.vendor = vendor
        vendor.greeting = [granted("USD/COP", "EUR/USD")]
        self.clock = SetManualClock()
        self.prices = Prices()
        self.metrics = Metrics()
        keys = KeyPool([ApiKey("G1_1", "secret")], spacing_s=0.0, minute_limit=1000)
        provider = Provider("simulator")
        self.rest = RestClient(
            "http://vendor.test", keys, self.clock, provider, self.metrics, self.prices
        )
        self.stream = StreamFeed(
            vendor.url, keys, symbols, self.clock, provider, self.metrics, jitter=lambda: 1.0
        )
        self.polling = PollingFeed(self.rest, symbols, self.clock, provider, pace=lambda _: 2.0)
        self.gaps: list[FeedGap] = []
        self.outages: list[tuple[str, float]] = []
        self.feed = FeedRouter(
            self.stream,
            self.polling,
            self.metrics,
            mode,
            on_gap=self.gaps.append,
            on_outage=lambda symbol, start: self.outages.append((symbol, start)),
        )
        self.quotes: list[Quote] = []
        self._consumer = asyncio.create_task(self._consume())

    async def _consume(self) -> None:
        async for batch in self.feed:
            self.quotes += batch

    async def connected(self) -> None:
        await until(lambda: self.stream.status().subscribed)

    async def streamed(self, value: float, stamp: int | None = None) -> None:
        """A price with a stamp of now."""
        await self.vendor.send(price(value, int(self.clock.now()) if stamp is None else stamp))
        await until(lambda: self.quotes and self.quotes[-1].price == value)

    async def returned(self, value: float) -> None:
        """The answer to a new subscription, which proves nothing, and a new price."""
        await self.vendor.send(price(value - 0.5, int(self.clock.now())))
        await self.streamed(value)

    async def polled(self, value: float) -> None:
        self.prices.values["USDCOP"] = value
        await self.clock.pass_time(2)
        await until(lambda: self.quotes and self.quotes[-1].price == value)

    async def stop(self) -> None:
        await self.feed.aclose()
        await self._consumer
        await self.rest.aclose()

    @property
    def withheld(self) -> float:
        return (
            self.metrics.registry.get_sample_value(
                "ews_quotes_withheld_total", {"symbol": "USDCOP"}
            )
            or 0
        )

    @property
    def sources(self) -> list[str]:
        return [quote.source.removeprefix("simulator_") for quote in self.quotes]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with running_vendor() as vendor:
        one = Bench(vendor)
        yield one
        await one.stop()
        assert [task for task in asyncio.all_tasks() if task.get_name().startswith("feed")] == []
        await until(lambda: vendor.open_sockets == 0)


async def test_a_healthy_stream_costs_no_credits(bench: Bench) -> None:
    await bench.connected()
    await bench.streamed(4000)
    await bench.clock.pass_time(60)
    assert bench.prices.asked == []
    status = bench.feed.status()
    assert (status.source, status.verdict) == ("simulator_websocket", "suspect")
    assert bench.feed.on_rest == frozenset()


async def test_rest_takes_over_at_once_and_the_stream_comes_back(bench: Bench) -> None:
    await bench.connected()
    await bench.streamed(4000)
    bench.prices.values["USDCOP"] = 4009.5
    await bench.vendor.sockets[-1].close(1011)
    await until(lambda: bench.sources == ["websocket", "rest"])  # without any time passing
    status = bench.feed.status()
    assert (status.source, status.verdict, status.websocket_connected) == (
        "simulator_rest",
        "live",
        False,
    )
    assert status.last_error is not None
    assert "1011" in status.last_error
    await bench.polled(4010.5)
    await until(lambda: bench.vendor.count("subscribe") == 2)
    await bench.polled(4011.5)  # connected is not enough
    await bench.returned(4012)
    assert bench.feed.on_rest == frozenset()
    asked = len(bench.prices.asked)
    await bench.clock.pass_time(20)
    assert len(bench.prices.asked) == asked
    assert bench.sources == ["websocket", "rest", "rest", "rest", "websocket", "websocket"]
    assert [quote.price for quote in bench.quotes[-2:]] == [4011.5, 4012], "nothing is lost"
    assert bench.feed.status().source == "simulator_websocket"


async def test_a_stream_that_failed_is_told_until_a_price_proves_it(bench: Bench) -> None:
    """Also while it connects anew, and streams what proves nothing."""
    await bench.connected()
    await bench.streamed(4000)
    bench.prices.values["USDCOP"] = 4009.5
    await bench.vendor.sockets[-1].close(1011)
    await until(lambda: bench.sources == ["websocket", "rest"])
    assert "1011" in bench.feed.status().on_fallback()["USDCOP"]
    await bench.polled(4010.5)
    await until(lambda: bench.vendor.count("subscribe") == 2)
    await bench.vendor.send(price(4000, int(bench.clock.now())))
    await bench.polled(4011.5)
    (one,) = bench.feed.status().verdicts
    assert one.verdict != "dead"
    assert "1011" in bench.feed.status().on_fallback()["USDCOP"]
    await bench.streamed(4012)
    assert bench.feed.status().on_fallback() == {}


async def test_a_resent_last_price_does_not_take_the_symbol_back(bench: Bench) -> None:
    await bench.connected()
    await bench.streamed(4000)
    await bench.vendor.sockets[-1].close(1011)
    await until(lambda: bench.feed.on_rest)
    await bench.clock.pass_time(1)
    await until(lambda: bench.vendor.count("subscribe") == 2)
    await bench.connected()
    await bench.vendor.send(price(4000))  # the same stamp, price, bid and ask
    await until(lambda: bench.stream.status().last_quote_at == bench.clock.now())
    assert bench.stream.status().verdict == "suspect"
    for _ in range(50):
        await asyncio.sleep(0)
    assert bench.feed.on_rest == {"USDCOP"}
    assert bench.sources.count("websocket") == 1
    await bench.vendor.send(price(4000, STAMP + 5))  # a fresh stamp, and nothing new
    await bench.vendor.send(price(4003, STAMP - 121))  # a new price of long ago
    await until(lambda: bench.withheld == 2)
    assert bench.feed.on_rest == {"USDCOP"}
    await bench.vendor.send(price(4001, STAMP + 6))
    await until(lambda: bench.sources.count("websocket") == 2)
    assert bench.feed.on_rest == frozenset()
    assert bench.quotes[-1].price == 4001


async def test_what_was_read_before_the_break_still_passes(bench: Bench) -> None:
    await bench.connected()
    await bench.vendor.send([price(4000), price(4001), price(4002)])
    await bench.vendor.sockets[-1].close(1011)
    await until(lambda: bench.feed.on_rest and len(bench.quotes) >= 3)
    assert [quote.price for quote in bench.quotes if "websocket" in quote.source] == [
        4000,
        4001,
        4002,
    ]


@pytest.mark.parametrize("fault", ["unentitled", "handshake", "mute"])
async def test_every_failure_of_the_stream_leads_to_rest(fault: str) -> None:
    async with running_vendor() as vendor:
        bench = Bench(vendor)
        if fault == "unentitled":
            vendor.greeting = [refused()]
        elif fault == "handshake":
            vendor.handshake = lambda _: 403
        else:
            await bench.connected()
            await bench.clock.pass_time(105, step=1)
        await until(lambda: bench.quotes)
        assert set(bench.sources) == {"rest"}
        await bench.stop()


async def test_rest_covers_exactly_the_symbols_the_stream_lacks() -> None:
    async with running_vendor() as vendor:
        bench = Bench(vendor, symbols=SYMBOLS)
        vendor.greeting = [{**granted("EUR/USD"), "fails": [{"symbol": "USD/COP"}]}]
        await until(lambda: bench.quotes)
        assert bench.feed.on_rest == {"USDCOP"}
        await vendor.send(price(1.1, symbol="EUR/USD"))
        await until(lambda: len(bench.quotes) == 2)
        await bench.clock.pass_time(20)
        assert set(bench.prices.asked) == {"USDCOP"}
        assert bench.feed.status().refused == ("USDCOP",)
        await bench.stop()


async def test_never_both_at_once(bench: Bench) -> None:
    """Sources change only at a switch, and a late REST answer after the hand-back is dropped."""
    await bench.connected()
    value = 4000.0
    for _ in range(5):
        await bench.clock.pass_time(30, step=10)  # or the back-off would grow
        value += 1
        await bench.streamed(value)
        bench.prices.values["USDCOP"] = value + 0.25
        await bench.vendor.sockets[-1].close(1011)
        await until(lambda: bench.feed.on_rest)
        await bench.clock.pass_time(2)  # one credit per pace, however the stream flaps
        await until(lambda: bench.sources[-1] == "rest")
        await until(lambda: bench.stream.status().subscribed)
        bench.prices.values["USDCOP"] = value + 0.5
        bench.prices.gate.clear()
        asked = len(bench.prices.asked)
        await bench.clock.pass_time(2)
        await until(lambda n=asked: len(bench.prices.asked) > n)
        value += 1
        now = int(bench.clock.now())
        await bench.vendor.send(price(value - 0.5, now), price(value, now))  # a poll is under way
        await until(lambda v=value: bench.quotes[-1].price == v)
        bench.prices.gate.set()
        await bench.streamed(value + 1)
        value += 1
    switched = sum(a != b for a, b in pairwise(bench.sources))
    assert switched == bench.feed.switches == 10
    assert bench.sources.count("rest") == 5


async def test_mode_rest_never_connects_and_mode_websocket_never_polls() -> None:
    async with running_vendor() as vendor:
        bench = Bench(vendor, mode="rest")
        await until(lambda: bench.quotes)
        assert bench.feed.status().source == "simulator_rest"
        assert vendor.keys == []
        await bench.stop()
        bench = Bench(vendor, mode="websocket")
        await bench.connected()
        await vendor.sockets[-1].close(1011)
        await until(lambda: not bench.stream.connected)
        await bench.clock.pass_time(20)
        assert bench.prices.asked == []
        assert bench.feed.status().source == "simulator_websocket"
        await bench.stop()


async def test_a_mode_without_its_feed_is_refused() -> None:
    for mode in ("auto", "websocket", "rest"):
        with pytest.raises(ConfigurationError, match=mode):
            FeedRouter(None, None, Metrics(), mode)  # type: ignore[arg-type]


async def test_a_defect_in_one_feed_reaches_the_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_vendor() as vendor:
        bench = Bench(vendor)
        await bench.connected()
        monkeypatch.setattr(bench.stream, "_on_quote", lambda _: 1 / 0)
        await vendor.send(price(4000))
        with pytest.raises(BaseExceptionGroup):
            await bench._consumer
        await bench.feed.aclose()
        await bench.rest.aclose()
        await until(lambda: vendor.open_sockets == 0)


async def test_what_the_stream_did_not_bring_is_reported_at_the_hand_back(bench: Bench) -> None:
    await bench.connected()
    await bench.streamed(4000)
    last = bench.clock.now()
    await bench.clock.pass_time(3)
    await bench.vendor.sockets[-1].close(1011)
    await until(lambda: bench.feed.on_rest)
    await bench.clock.pass_time(5)
    await until(lambda: bench.stream.status().subscribed)
    assert bench.gaps[1:] == []
    assert bench.outages[1:] == [("USDCOP", last)], "told at once: bars that close meanwhile say so"
    await bench.returned(4012)
    assert bench.gaps[1:] == [FeedGap("USDCOP", last, bench.clock.now(), "disconnected")]
    await bench.streamed(4013)
    assert len(bench.gaps) == 2
    counted = bench.metrics.registry.get_sample_value(
        "ews_feed_gaps_total", {"symbol": "USDCOP", "cause": "disconnected"}
    )
    assert counted == 1


async def test_a_clock_that_is_set_back_shortens_no_gap(bench: Bench) -> None:
    await bench.connected()
    await bench.streamed(4000)
    await bench.clock.pass_time(3)
    await bench.vendor.sockets[-1].close(1011)
    await until(lambda: bench.feed.on_rest)
    bench.clock.error = -3600.0
    await bench.clock.pass_time(9)
    await until(lambda: bench.stream.status().subscribed)
    await bench.returned(4012)
    gap = bench.gaps[-1]
    assert gap.end == bench.clock.now()
    assert gap.end - gap.start == pytest.approx(12)


async def test_a_gap_still_open_at_the_end_of_the_session_is_reported() -> None:
    async with running_vendor() as vendor:
        bench = Bench(vendor)
        await bench.connected()
        await bench.streamed(4000)
        last = bench.clock.now()
        vendor.handshake = lambda _: 500
        await vendor.sockets[-1].close(1011)
        await until(lambda: bench.feed.on_rest)
        await bench.clock.pass_time(7)
        await bench.stop()
        assert bench.gaps[1:] == [FeedGap("USDCOP", last, last + 7, "disconnected")]


async def test_a_symbol_that_was_never_streamed_has_a_gap_until_the_first_rest_price() -> None:
    async with running_vendor() as vendor:
        bench = Bench(vendor)
        began = bench.clock.now()
        vendor.greeting = [refused()]
        bench.prices.gate.clear()
        await until(lambda: bench.feed.on_rest)
        assert bench.gaps == []
        await bench.clock.pass_time(3)
        bench.prices.gate.set()
        await until(lambda: bench.quotes)
        await bench.clock.pass_time(30)
        await bench.stop()
        (gap,) = bench.gaps
        assert (gap.symbol, gap.start, gap.cause) == ("USDCOP", began, "connecting")
        assert began <= gap.end <= began + 3


@pytest.mark.parametrize("first", ["unentitled", "disconnected"])
async def test_no_gap_lasts_for_what_rest_alone_can_bring(first: str) -> None:
    """The key does not stream the symbol; some attempts to find out fail for another reason."""
    async with running_vendor() as vendor:
        bench = Bench(vendor)
        vendor.greeting = [refused()]
        vendor.handshake = lambda _: None if first == "unentitled" else 500
        await until(lambda: bench.feed.on_rest)
        vendor.handshake = lambda _: 500 if first == "unentitled" else None
        await bench.clock.pass_time(70, step=1)
        vendor.handshake = lambda _: 500
        await bench.clock.pass_time(130, step=1)
        assert len(bench.gaps) == len(bench.outages) == 1, "bars of REST alone are not partial"
        await bench.stop()
        assert len(bench.gaps) == 1


async def test_the_time_until_the_first_subscription_is_a_gap() -> None:
    """Also while another process holds the lease; ended by the grant, not by the first price."""
    async with running_vendor() as vendor:
        bench = Bench(vendor)
        vendor.greeting = []
        began = bench.clock.now()
        await until(lambda: vendor.count("subscribe"))
        await bench.clock.pass_time(8)
        assert (bench.gaps, bench.outages) == ([], [("USDCOP", began)])
        await vendor.send(granted())
        await until(lambda: bench.gaps)
        assert bench.gaps == [FeedGap("USDCOP", began, began + 8, "connecting")]
        assert bench.metrics.registry.get_sample_value("ews_feed_gaps_total") is None
        await bench.stop()
        assert len(bench.gaps) == 1


async def test_a_first_attempt_that_fails_ends_with_a_proof_only() -> None:
    async with running_vendor() as vendor:
        vendor.handshake = lambda _: 500
        bench = Bench(vendor)
        began = bench.clock.now()
        await until(lambda: bench.feed.on_rest)
        vendor.handshake = lambda _: None
        await bench.clock.pass_time(3)
        await until(lambda: bench.stream.status().subscribed)
        await vendor.send(price(4000.25))  # maybe the last one of before, sent again
        await until(lambda: bench.withheld == 1)
        assert bench.gaps == []
        await bench.streamed(4001)
        assert bench.gaps == [FeedGap("USDCOP", began, bench.clock.now(), "disconnected")]
        await bench.stop()


async def test_symbols_come_and_go_while_it_runs() -> None:
    async with running_vendor() as vendor:
        bench = Bench(vendor)
        await bench.connected()
        await bench.streamed(4000)
        vendor.greeting = [granted("EUR/USD")]
        added = bench.clock.now()
        bench.feed.set_symbols(["USDCOP", "EURUSD"])
        assert bench.outages[-1] == ("EURUSD", added)
        await bench.clock.pass_time(2)
        await until(lambda: len(bench.stream.status().subscribed) == 2)
        assert vendor.messages[-1] == {"action": "subscribe", "params": {"symbols": "EUR/USD"}}
        assert (bench.gaps[-1].symbol, bench.gaps[-1].start) == ("EURUSD", added)
        await vendor.send(price(1.1, symbol="EUR/USD"))
        await until(lambda: bench.quotes[-1].symbol == "EURUSD")
        bench.feed.set_symbols(["EURUSD"])
        await bench.clock.pass_time(2)
        await until(lambda: vendor.count("unsubscribe"))
        taken = len(bench.quotes)
        await vendor.send(price(4001), price(1.2, symbol="EUR/USD"))
        await until(lambda: len(bench.quotes) > taken)
        assert bench.quotes[-1].symbol == "EURUSD"
        assert len(vendor.sockets) == 1
        await vendor.sockets[-1].close(1011)
        await until(lambda: bench.feed.on_rest)
        assert bench.feed.on_rest == {"EURUSD"}
        await bench.stop()


@pytest.mark.parametrize("kind", ["disconnected", "unentitled"])
async def test_a_symbol_that_is_added_while_the_stream_is_down_goes_to_rest_at_once(
    kind: str,
) -> None:
    async with running_vendor() as vendor:
        bench = Bench(vendor)
        bench.prices.values["EURUSD"] = 1.1
        vendor.handshake = lambda _: 500 if kind == "disconnected" else 403
        await until(lambda: bench.feed.on_rest)
        await bench.clock.pass_time(4, step=1)  # the next attempt is seconds away
        began = bench.clock.now()
        bench.feed.set_symbols(["USDCOP", "EURUSD"])
        assert bench.outages[-1] == ("EURUSD", began)
        assert bench.feed.on_rest == {"USDCOP", "EURUSD"}
        await bench.clock.pass_time(4, step=1)
        assert "EURUSD" in {quote.symbol for quote in bench.quotes}
        ended = [gap for gap in bench.gaps if gap.symbol == "EURUSD"]
        assert len(ended) == (kind == "unentitled"), "REST alone can bring it, or the stream may"
        vendor.handshake = lambda _: None
        await bench.stop()


async def test_without_rest_gaps_are_reported_too() -> None:
    async with running_vendor() as vendor:
        bench = Bench(vendor, mode="websocket")
        await bench.connected()
        await bench.streamed(4000)
        await vendor.sockets[-1].close(1011)
        await until(lambda: not bench.stream.connected)
        await bench.clock.pass_time(5)
        await until(lambda: bench.stream.status().subscribed)
        await bench.returned(4001)
        assert [gap.cause for gap in bench.gaps] == ["connecting", "disconnected"]
        await bench.stop()


@pytest.mark.parametrize("turns", range(5))
async def test_closing_loses_no_quote_that_was_read(turns: int) -> None:
    """Read by the stream while the feed is being closed, in whichever turn of the loop."""
    async with running_vendor() as vendor:
        bench = Bench(vendor)
        await bench.connected()
        await bench.streamed(4000)
        bench._consumer.cancel()
        await asyncio.gather(bench._consumer, return_exceptions=True)
        late = msgspec.structs.replace(bench.quotes[0], price=4003.0, first_after_subscribe=False)
        closing = asyncio.create_task(bench.feed.aclose())
        for _ in range(turns):
            await asyncio.sleep(0)
        bench.feed.on_streamed(late, proves=True)
        await closing
        left = [quote.price async for batch in _rest(bench) for quote in batch]
        assert left == [4003.0]
        await bench.rest.aclose()
        await until(lambda: vendor.open_sockets == 0)


async def _rest(bench: Bench):  # type: ignore[no-untyped-def]
    while True:
        try:
            yield await anext(bench.feed)
        except StopAsyncIteration:
            return


async def test_polled_prices_are_compared_for_free(bench: Bench) -> None:
    """A socket that is mute again after a reconnect is found out by what is polled anyway."""
    await bench.connected()
    await bench.streamed(4000)
    await bench.vendor.sockets[-1].close(1011)
    await until(lambda: bench.feed.on_rest)
    for second in range(60):
        bench.prices.values["USDCOP"] = 4001.37 + second
        await bench.clock.pass_time(1)
    await until(lambda: "the vendor moved" in (bench.stream.status().last_error or ""))
    assert bench.feed.status().verdict == "live", "REST delivers"
    assert bench.feed.status().source == "simulator_rest"
    (shown,) = bench.feed.status().verdicts
    assert "dead" in [change.verdict for change in shown.history]


@pytest.mark.parametrize("fault", ["subscription", "handshake", "closing"])
async def test_a_stream_that_is_refused_again_and_again_is_one_line_a_minute(fault: str) -> None:
    """Of each kind; what is counted goes on counting, and the cause stays in the status."""
    began = time.monotonic()  # real time, as the log counts it
    async with running_vendor() as vendor:
        with capture_logs() as logs:
            bench = Bench(vendor)
            if fault == "subscription":
                vendor.greeting = [refused("USD/COP")]
            elif fault == "handshake":
                vendor.handshake = lambda _: 503
            else:
                vendor.greeting = []
                vendor.on_subscribe = lambda socket: socket.close(4000, "goodbye")
            while bench.feed.status().reconnects < 12:
                await bench.clock.pass_time(1)
                status = bench.feed.status()
                assert {"subscription": "refused", "handshake": "503", "closing": "goodbye"}[
                    fault
                ] in (status.detail + str(status.last_error)) or not status.reconnects
            await bench.stop()
    minutes = 1 + (time.monotonic() - began) // 60
    counts = Counter(
        (entry["event"], entry.get("verdict"), entry.get("kind"))
        for entry in logs
        if entry["log_level"] != "debug" and entry.get("verdict") != "closed"
    )
    assert counts[("Vendor stream lost", None, _KINDS[fault])] >= 1
    assert {what: count for what, count in counts.items() if count > minutes} == {}
    assert bench.metrics.registry.get_sample_value("ews_feed_reconnects_total") == 12
    told = " ".join(entry["event"] for entry in logs)
    assert "the fallback" in told
    assert ("The plan of this key does not stream USDCOP" in told) == (fault == "subscription")


_KINDS = {"subscription": "unentitled", "handshake": "disconnected", "closing": "disconnected"}
