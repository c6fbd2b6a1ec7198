"""The vendor's socket as a feed, against a real socket on this machine and a clock that stands."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from structlog.testing import capture_logs

from enhanced_websocket_service.feeds.liveness_monitor import LivenessMonitor
from enhanced_websocket_service.feeds.stream import StreamEvent, StreamFeed
from enhanced_websocket_service.market.liveness.detector import always_open
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool, Lease

from .alone import Alone
from .clocks import ManualClock
from .vendor import STAMP, Vendor, granted, price, refused, running_vendor, until

SECRETS = ("s3cret-aaaa-0001", "s3cret-bbbb-0002", "s3cret-cccc-0003")


class Bench:
    """A feed, its vendor, and what the feed said."""

    def __init__(
        self, vendor: Vendor, keys: int = 3, symbols: tuple[str, ...] = ("USDCOP",)
    ) -> None:
        self.vendor = vendor
        self.clock = ManualClock()
        self.open = True
        self.rest: Callable[[float], float] = lambda _: 4000.0
        """The vendor's REST price at an instant."""
        self.asked: list[float] = []
        self.events: list[StreamEvent] = []
        self.metrics = Metrics()
        self.keys = KeyPool([ApiKey(f"G1_{i + 1}", SECRETS[i]) for i in range(keys)])
        stream = StreamFeed(
            vendor.url,
            self.keys,
            symbols,
            self.clock,
            Provider("simulator"),
            self.metrics,
            liveness=LivenessMonitor(
                symbols,
                self.clock,
                self.metrics,
                session_at=lambda _, at: always_open(at) if self.open else None,
                ask=self._ask,
            ),
            jitter=lambda: 1.0,
        )
        self.feed = Alone(stream, self.events)
        self.quotes: list[Quote] = []
        self._consumer: asyncio.Task[None] | None = None

    async def _ask(self, symbol: str) -> float:
        assert symbol in self.feed.symbols
        self.asked.append(self.clock.now())
        return self.rest(self.clock.now())

    async def passing(self, condition: Callable[[], object]) -> None:
        """Let time pass until ``condition`` holds: the closing handshake takes real time."""
        async with asyncio.timeout(10):
            while not condition():
                await self.clock.pass_time(0.25, step=0.25)

    @property
    def verdict(self) -> str:
        return self.feed.status().verdict

    async def start(self) -> None:
        self._consumer = asyncio.create_task(self._consume())
        await until(lambda: self.vendor.count("subscribe") or self.events)

    async def _consume(self) -> None:
        async for batch in self.feed:
            assert batch
            self.quotes += batch

    async def stop(self) -> None:
        await self.feed.aclose()
        if self._consumer is not None:
            await self._consumer

    async def received(self, count: int) -> list[Quote]:
        await until(lambda: len(self.quotes) >= count)
        return self.quotes

    def counted(self, kind: str) -> float:
        return (
            self.metrics.registry.get_sample_value("ews_vendor_frames_total", {"kind": kind}) or 0
        )


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    async with running_vendor() as one:
        yield one


@pytest.fixture
async def bench(vendor: Vendor) -> AsyncIterator[Bench]:
    one = Bench(vendor)
    yield one
    await one.stop()
    # Nothing may outlive the feed.
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("feed")] == []
    await until(lambda: vendor.open_sockets == 0)


async def test_it_subscribes_with_the_key_in_a_header(bench: Bench, vendor: Vendor) -> None:
    await bench.start()
    await until(lambda: bench.feed.status().subscribed)
    assert vendor.keys == [SECRETS[0]]
    assert vendor.messages == [{"action": "subscribe", "params": {"symbols": "USD/COP"}}]
    status = bench.feed.status()
    assert (status.websocket_connected, status.verdict, status.reconnects) == (True, "quiet", 0)
    assert (status.source, status.subscribed) == ("simulator_websocket", ("USDCOP",))


async def test_prices_arrive_in_order_the_first_one_marked(bench: Bench, vendor: Vendor) -> None:
    await bench.start()
    await vendor.send(price(4000), price("4001", bid="4000.5"), price(4002, ask=4002.5))
    quotes = await bench.received(3)
    assert [one.price for one in quotes] == [4000, 4001, 4002]
    assert [one.first_after_subscribe for one in quotes] == [True, False, False]
    assert (quotes[1].bid, quotes[1].ask, quotes[2].ask) == (4000.5, None, 4002.5)
    assert bench.feed.status().last_quote_at == bench.clock.now()


async def test_what_came_together_is_one_batch(bench: Bench, vendor: Vendor) -> None:
    pull = asyncio.create_task(anext(bench.feed))
    await until(lambda: vendor.sockets and bench.feed.status().subscribed)
    await vendor.send([price(4000 + i) for i in range(50)])
    assert [one.price for one in await pull] == [4000 + i for i in range(50)]


async def test_bad_frames_cost_nothing_but_a_line_per_kind(bench: Bench, vendor: Vendor) -> None:
    await bench.start()
    with capture_logs() as logs:
        for _ in range(5):
            await vendor.send("garbage", b"\xff\xfe", {"event": "dividend"}, [1], "")
        await vendor.send({"status": "error", "code": 429, "message": "101 events"})
        await vendor.send(price(9, symbol="EUR/USD"), price(4000))
        await bench.received(1)
    assert [one.price for one in bench.quotes] == [4000]
    assert (bench.counted("malformed"), bench.counted("unknown")) == (20, 5)
    assert (bench.counted("status"), bench.counted("foreign_symbol")) == (2, 1)
    assert len(logs) <= 8
    assert len(vendor.sockets) == 1


async def test_an_unusable_price_passes_but_proves_nothing(bench: Bench, vendor: Vendor) -> None:
    await bench.start()
    await vendor.send(price("abc"), price(4000))
    first, second = await bench.received(2)
    assert first.raw
    assert not first.first_after_subscribe
    assert second.first_after_subscribe


async def test_a_refused_symbol_moves_on_to_the_next_key(bench: Bench, vendor: Vendor) -> None:
    vendor.greeting = [refused()]
    await bench.start()
    await until(lambda: bench.events)
    (event,) = bench.events
    assert (event.kind, event.symbols) == ("unentitled", ("USDCOP",))
    assert bench.feed.status().refused == ("USDCOP",)
    assert bench.feed.status().verdict == "dead"
    vendor.greeting = [granted()]
    await bench.passing(lambda: bench.feed.status().subscribed)
    assert vendor.keys == [SECRETS[0], SECRETS[1]]
    assert bench.feed.status().refused == ()


async def test_a_request_the_vendor_cannot_parse_is_a_refusal(bench: Bench, vendor: Vendor) -> None:
    vendor.greeting = [
        {"event": "subscribe-status", "status": "error", "messages": ["Cant parse message"]}
    ]
    await bench.start()
    await until(lambda: bench.events)
    assert "Cant parse message" in bench.events[0].message


async def test_a_partly_refused_subscription_keeps_the_rest(vendor: Vendor) -> None:
    bench = Bench(vendor, symbols=("USDCOP", "EURUSD"))
    vendor.greeting = [{**granted("EUR/USD"), "fails": [{"symbol": "USD/COP"}]}]
    await bench.start()
    await until(lambda: bench.events)
    assert (bench.events[0].kind, bench.events[0].symbols) == ("unentitled", ("USDCOP",))
    status = bench.feed.status()
    assert (status.subscribed, status.refused) == (("EURUSD",), ("USDCOP",))
    assert status.websocket_connected
    await bench.stop()


@pytest.mark.parametrize("code", [401, 403])
async def test_a_refused_handshake_moves_on_but_disables_nothing(
    bench: Bench, vendor: Vendor, code: int
) -> None:
    vendor.handshake = lambda key: code if key == SECRETS[0] else None
    with capture_logs() as logs:
        await bench.start()
        assert bench.events[0].kind == "unentitled"
        bench.clock.advance(1.0)
        await until(lambda: bench.feed.status().subscribed)
    assert vendor.keys == [SECRETS[0], SECRETS[1]]
    answer = bench.keys.acquire(bench.clock.now())
    bench.keys.acquire(bench.clock.now())
    again = bench.keys.acquire(bench.clock.now())
    assert {one.key.label for one in (answer, again) if isinstance(one, Lease)} & {"G1_1", "G1_3"}
    assert not any(secret in f"{logs} {bench.events}" for secret in SECRETS)


async def test_a_key_that_the_vendor_repeats_is_shown_to_nobody(
    bench: Bench, vendor: Vendor
) -> None:
    said = f"the key {SECRETS[0]} may not stream"
    vendor.greeting = [{**refused(), "message": said}]
    await bench.start()
    await until(lambda: bench.events)
    vendor.greeting = [granted()]
    await bench.passing(lambda: bench.feed.status().subscribed)
    await vendor.sockets[-1].close(1008, said.replace(SECRETS[0], SECRETS[1]))
    await until(lambda: len(bench.events) == 2)
    told = [str(event) for event in bench.events]
    told += [str(bench.feed.status()), str(bench.keys.snapshot(bench.clock.now()))]
    assert all("the key [redacted] may not stream" in one for one in told)
    assert not any(secret in one for one in told for secret in SECRETS)


@pytest.mark.parametrize("proxy", [None, "ftp://token-0123:key-4567@127.0.0.1:1"])
async def test_an_address_that_cannot_be_used_shows_no_secret(
    proxy: str | None, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor.url = "ws://token-0123@127.0.0.1:1/?apikey=key-4567"
    if proxy is not None:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        vendor.url = "wss://vendor.example.invalid"
    bench = Bench(vendor)
    await bench.start()
    assert "Invalid" in bench.events[0].message
    shown = f"{bench.events} {bench.feed.status()}"
    assert "token-0123" not in shown
    assert "key-4567" not in shown
    await bench.stop()


@pytest.mark.parametrize(("code", "kind"), [(404, "refused"), (500, "disconnected")])
async def test_faults_of_the_vendor_are_not_the_keys(
    bench: Bench, vendor: Vendor, code: int, kind: str
) -> None:
    vendor.handshake = lambda _: code
    await bench.start()
    assert bench.events[0].kind == kind
    bench.clock.advance(1.0)
    await until(lambda: len(vendor.keys) == 2)
    assert vendor.keys == [SECRETS[0]] * 2


@pytest.mark.parametrize(
    ("code", "next_key"), [(1000, 1), (1008, 1), (4000, 1), (1001, 0), (1011, 0), (None, 0)]
)
async def test_every_way_to_lose_the_connection(
    bench: Bench, vendor: Vendor, code: int | None, next_key: int
) -> None:
    await bench.start()
    await vendor.send(price(4000))
    await bench.received(1)
    if code is None:
        vendor.sockets[-1].transport.abort()
    else:
        await vendor.sockets[-1].close(code)
    await until(lambda: bench.events)
    assert bench.events[0].kind == "disconnected"
    assert bench.feed.status().verdict == "dead"
    await bench.passing(lambda: len(vendor.sockets) == 2)
    await until(lambda: bench.feed.status().subscribed)
    assert vendor.keys == [SECRETS[0], SECRETS[next_key]]
    await vendor.send(price(4000))
    assert (await bench.received(2))[1].first_after_subscribe
    assert bench.feed.status().reconnects == 1


async def test_backoff_grows_is_capped_and_resets_only_after_data(
    bench: Bench, vendor: Vendor
) -> None:
    vendor.handshake = lambda _: 500
    await bench.start()
    for attempt, delay in enumerate([1, 2, 4, 8, 16, 32, 60, 60], start=1):
        await until(lambda n=attempt: len(bench.events) == n)
        assert len(vendor.keys) == attempt
        await bench.clock.pass_time(delay - 0.5, step=delay - 0.5)
        assert len(vendor.keys) == attempt, "too early"
        bench.clock.advance(0.5)
        await until(lambda n=attempt: len(vendor.keys) == n + 1)
    vendor.handshake = lambda _: None
    await until(lambda: len(bench.events) == 9)
    bench.clock.advance(60)
    await until(lambda: bench.feed.status().subscribed)
    # The last price sent again is no data; the price after it is.
    await vendor.send(price(4000))
    await bench.received(1)
    assert bench.feed._backoff.failures == 9
    # Neither is one that comes before the connection has lasted.
    await vendor.send(price(4001))
    await bench.received(2)
    assert bench.feed._backoff.failures == 9
    bench.clock.advance(30)
    await vendor.send(price(4002))  # of long before the connection
    await bench.received(3)
    assert bench.feed._backoff.failures == 9
    await vendor.send(price(4003, int(bench.clock.now())))
    await bench.received(4)
    assert bench.feed._backoff.failures == 0


async def test_heartbeats_go_out_every_ten_seconds(bench: Bench, vendor: Vendor) -> None:
    await bench.start()
    await until(lambda: bench.feed.status().subscribed)
    for beats in range(1, 4):
        await bench.clock.pass_time(10)
        await until(lambda n=beats: vendor.count("heartbeat") == n)


async def test_a_slow_consumer_pauses_the_socket(vendor: Vendor) -> None:
    bench = Bench(vendor)
    bench.feed._batch_limit = 100
    pull = asyncio.create_task(anext(bench.feed))
    await until(lambda: vendor.sockets and bench.feed.status().subscribed)
    total = 20_000
    messages = [price(1 + i, STAMP + i, pad="x" * 1000) for i in range(total)]
    sending = asyncio.create_task(vendor.send(*messages))  # more than the kernel buffers
    quotes = await pull
    await until(lambda: bench.feed._held_up)
    for _ in range(500):
        await asyncio.sleep(0)
    assert not sending.done(), "the vendor could send everything: nothing held it back"
    assert len(bench.feed._batch) <= 101
    await bench.clock.pass_time(300)
    assert not bench.events, "our own slowness was taken for the vendor's silence"
    while len(quotes) < total:
        quotes += await anext(bench.feed)
    assert [one.price for one in quotes] == [1 + i for i in range(total)]
    await sending
    await bench.stop()


async def test_closing_in_every_phase_leaves_nothing(vendor: Vendor) -> None:
    vendor.handshake = lambda _: 500
    bench = Bench(vendor)
    await bench.start()  # waits for its next attempt now
    await bench.stop()
    vendor.handshake = lambda _: None
    bench = Bench(vendor)
    await bench.start()
    await bench.stop()  # connected
    hanging = asyncio.Event()
    bench = Bench(vendor)
    vendor.handshake = lambda _: hanging.set()
    consumer = asyncio.create_task(anext(bench.feed))
    await hanging.wait()
    await bench.stop()  # in mid-handshake
    with pytest.raises(StopAsyncIteration):
        await consumer
    await until(lambda: vendor.open_sockets == 0)
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("feed")] == []


async def test_without_a_usable_key_it_says_so(vendor: Vendor) -> None:
    bench = Bench(vendor, keys=1)
    answer = bench.keys.acquire(bench.clock.now())
    assert isinstance(answer, Lease)
    bench.keys.report(answer, "invalid_key", bench.clock.now())
    await bench.start()
    assert bench.events[0].kind == "refused"
    assert vendor.keys == []
    await bench.stop()


async def test_no_server_at_all(vendor: Vendor) -> None:
    vendor.url = "ws://127.0.0.1:9/v1/quotes/price"
    bench = Bench(vendor)
    await bench.start()
    assert bench.events[0].kind == "disconnected"
    await bench.stop()
