"""The Python client against the real server on real sockets, which is restarted under it."""

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.server import serve

from enhanced_websocket_service.client import (
    Bar,
    Connected,
    Cursor,
    Disconnected,
    Epoch,
    Event,
    Gap,
    MarketClient,
    RefusedByServer,
    Snapshot,
    SyncMarketClient,
    Tick,
)
from enhanced_websocket_service.client.account import BARS_REMEMBERED
from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.serving.api import create_app
from enhanced_websocket_service.serving.hub import Hub, Limits
from enhanced_websocket_service.serving.server import ApiServer
from enhanced_websocket_service.telemetry import Metrics
from tests.unit.serving.fakes import FakeService, bar_update, running, tick
from tests.unit.serving.model_store import Record

QUICK = {"first_backoff_s": 0.01, "longest_backoff_s": 0.05}


class Service:
    """A service on one port over a journal that outlives it."""

    def __init__(self, symbols: tuple[str, ...] = ("USDCOP",)) -> None:
        self.fake = FakeService(symbols=symbols)
        self.epoch = self.offset = 0
        self.port = 0
        self.every: list[tuple[int, int]] = []
        self.hub: Hub
        self.server: ApiServer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        metrics = Metrics()
        self.hub = Hub(self.fake.symbols, self.fake.clock, lambda: "active", metrics, Limits())
        if self.every:
            self.hub.seed(tick(self.every[-1][1], epoch=self.every[-1][0]))
        app = create_app(self.fake, self.hub, metrics.registry)
        self.server = ApiServer(app, "127.0.0.1", self.port, shutdown_timeout_s=1)
        self.port = await self.server.start()
        previous = self.every[-1] if self.every else (None, None)
        self.epoch, self.offset = self.epoch + 1, 0
        self.publish([EpochStarted("USDCOP", self.epoch, *previous)])

    async def stop(self) -> None:
        self.hub.close_all()
        await self.server.stop()

    def publish(self, records: list[Any]) -> None:
        journaled: list[Record] = records
        self.fake.store.journal(journaled)
        self.hub.on_events(journaled)

    def ticks(self, count: int) -> None:
        first, self.offset = self.offset + 1, self.offset + count
        numbers = range(first, self.offset + 1)
        self.every += [(self.epoch, n) for n in numbers]
        self.publish([tick(n, epoch=self.epoch) for n in numbers])
        self.publish([bar_update(0, self.offset, epoch=self.epoch, revision=len(self.every))])


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    await service.start()
    yield service
    await service.stop()


def ticks_of(events: list[Event]) -> list[tuple[int, int]]:
    return [(e.epoch, e.offset) for e in events if type(e) is Tick]


async def follow(client: MarketClient, events: list[Event], last: tuple[int, int]) -> None:
    """Read until the tick ``last`` has come."""
    async with asyncio.timeout(20):
        async for event in client:
            events.append(event)
            if type(event) is Tick and (event.epoch, event.offset) == last:
                return


async def test_restarts_in_between_lose_and_double_nothing(service: Service) -> None:
    events: list[Event] = []
    async with MarketClient(service.url, ["usd/cop"], **QUICK) as client:
        async for event in client:
            if isinstance(event, Connected):
                break
        for number in range(1, 6):
            service.ticks(300 * number)
            if number % 2:
                await follow(client, events, service.every[-1])
            await service.stop()
            await service.start()
        service.ticks(1)
        await follow(client, events, service.every[-1])
        assert client.cursors == {"USDCOP": Cursor(*service.every[-1])}
    assert ticks_of(events) == service.every
    assert not any(isinstance(event, Gap) for event in events)
    bars = [event.revision for event in events if isinstance(event, Bar)]
    assert len(bars) == len(set(bars)) >= 5
    assert [e.epoch for e in events if isinstance(e, Epoch)] == [2, 3, 4, 5, 6]
    codes = [e.code for e in events if isinstance(e, Disconnected)]
    assert 1012 in codes


async def test_connections_cut_at_random(service: Service) -> None:
    events: list[Event] = []
    chance = random.Random(7)
    client = MarketClient(service.url, since={"USDCOP": "1:0"}, random_part=chance, **QUICK)
    reading = asyncio.create_task(follow(client, events, (1, 2000)))
    for _ in range(40):
        service.ticks(50)
        await asyncio.sleep(0)
        if chance.random() < 0.5:
            for connection in list(service.server._server.server_state.connections):  # type: ignore[union-attr]
                connection.transport.abort()
    await reading
    await client.aclose()
    assert ticks_of(events) == service.every
    assert not any(isinstance(event, Gap) for event in events)


async def test_a_later_process_goes_on_where_the_cursor_says(service: Service) -> None:
    service.ticks(10)
    first: list[Event] = []
    async with MarketClient(service.url, since={"USDCOP": "USDCOP:1:0"}) as client:
        await follow(client, first, (1, 10))
        kept = {symbol: str(cursor) for symbol, cursor in client.cursors.items()}
    assert kept == {"USDCOP": "1:10"}
    service.ticks(5)
    second: list[Event] = []
    async with MarketClient(service.url, since=kept) as client:
        await follow(client, second, (1, 15))
    assert ticks_of(first + second) == service.every


async def test_time_travel(service: Service) -> None:
    service.ticks(700)
    events: list[Event] = []
    start = "2025-06-04T08:00:00-05:00"
    async with MarketClient(service.url, ["USDCOP"], start=start, **QUICK) as client:
        await follow(client, events, (1, 700))
        await service.stop()
        await service.start()
        service.ticks(2)
        await follow(client, events, (2, 2))
    assert ticks_of(events) == service.every
    assert [e.replayed for e in events if type(e) is Tick] == [True] * 700 + [False] * 2


async def test_time_travel_without_ticks_goes_on_where_it_was(service: Service) -> None:
    for _ in range(BARS_REMEMBERED + 50):
        service.ticks(1)
    found: list[int] = []
    start = "2025-06-04T08:00:00-05:00"
    client = MarketClient(service.url, ["USDCOP"], mode="bars", start=start, **QUICK)
    async with client, asyncio.timeout(20):
        async for event in client:
            if isinstance(event, Bar):
                found.append(event.revision)
                if len(found) == len(service.every):
                    break
        await service.stop()
        await service.start()
        service.ticks(1)
        async for event in client:
            if isinstance(event, Bar):
                found.append(event.revision)
                if event.epoch == 2:
                    break
    assert found == list(range(1, len(service.every) + 1))


async def test_one_symbol_of_several_and_the_snapshot() -> None:
    service = Service(("USDCOP", "EURUSD", "GBPUSD"))
    await service.start()
    try:
        service.ticks(1)
        events: list[Event] = []
        async with MarketClient(f"{service.url}/ws", ["USDCOP", "EURUSD"]) as client:
            async for event in client:
                events.append(event)
                if isinstance(event, Snapshot):
                    break
            service.publish([tick(1, symbol="GBPUSD"), tick(1, symbol="EURUSD", epoch=2)])
            service.ticks(1)
            await follow(client, events, (1, 2))
    finally:
        await service.stop()
    connected = events[0]
    assert isinstance(connected, Connected)
    assert connected.symbols == ["EURUSD", "USDCOP"]
    assert {e.symbol for e in events if isinstance(e, Tick)} == {"USDCOP", "EURUSD"}


async def test_what_cannot_succeed_is_not_tried_again(service: Service) -> None:
    for client, said in (
        (MarketClient(service.url, ["XXXYYY"], **QUICK), "4404: "),
        (MarketClient(service.url, ["USDCOP"], start="yesterday", **QUICK), "4400: "),
        (MarketClient(service.url, ["USDCOP", "XXXYYY"], **QUICK), "XXXYYY"),
        (MarketClient(f"{service.url}/nowhere", **QUICK), "HTTP 4"),
    ):
        events: list[Event] = []
        with pytest.raises(RefusedByServer, match=said):
            await follow(client, events, (9, 9))
        assert not any(isinstance(event, Disconnected) for event in events)


async def test_a_server_of_another_kind_is_tried_with_growing_patience() -> None:
    async def babble(connection: Any) -> None:
        await connection.send("hello")
        await connection.wait_closed()

    waits = []
    async with serve(babble, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = MarketClient(f"ws://127.0.0.1:{port}", random_part=random.Random(1), **QUICK)
        async with client, asyncio.timeout(10):
            async for event in client:
                assert isinstance(event, Disconnected)
                waits.append(event.retry_in_s)
                if len(waits) == 5:
                    break
    assert all(
        0.5 * cap <= wait <= cap
        for wait, cap in zip(waits, (0.01, 0.02, 0.04, 0.05, 0.05), strict=True)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"url": "localhost:8080"},
        {"url": "ftp://localhost"},
        {"url": "ws://x", "symbols": []},
        {"url": "ws://x", "mode": "some"},
        {"url": "ws://x", "since": {"USDCOP": "seven"}},
        {"url": "ws://x", "start": "2025-01-20"},
    ],
)
def test_wrong_parameters_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        MarketClient(**options)


async def test_the_synchronous_variant(service: Service) -> None:
    service.ticks(100)
    events: list[Event] = []

    def read() -> dict[str, Cursor]:
        with SyncMarketClient(service.url, since={"USDCOP": "1:0"}, waiting=4, **QUICK) as client:
            for event in client:
                events.append(event)
                if type(event) is Tick and event.offset == 100:
                    return client.cursors
        raise AssertionError("it ended early")

    assert await asyncio.to_thread(read) == {"USDCOP": Cursor(1, 100)}
    assert ticks_of(events) == service.every
    quiet = SyncMarketClient(service.url, since={"USDCOP": "1:100"})
    assert isinstance(await asyncio.to_thread(quiet.get, 10), Connected)
    await asyncio.to_thread(quiet.close)
    assert quiet.get(0) is None
    with pytest.raises(RefusedByServer):
        await asyncio.to_thread(list, SyncMarketClient(service.url, ["XXXYYY"]))
    assert not any(thread.name == "market client" for thread in threading.enumerate())


async def test_leaving_the_loop_ends_the_connection() -> None:
    async with running() as api:
        client = MarketClient(api.url)
        async with contextlib.aclosing(aiter(client)) as events:  # type: ignore[type-var]
            assert isinstance(await anext(events), Connected)
            assert api.hub.counts().connected == 1
        async with asyncio.timeout(10):
            while api.hub.counts().connected:
                await asyncio.sleep(0)
