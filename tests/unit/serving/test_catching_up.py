"""Clients that catch up: each ends with the newest price, and none is told of a loss that is none."""

import asyncio
import json
from typing import Any

import pytest

from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.serving import wire
from enhanced_websocket_service.serving.hub import Hub, Mode
from enhanced_websocket_service.serving.outlet import OutletListener
from enhanced_websocket_service.serving.stored import Replay, StoredStream
from enhanced_websocket_service.serving.turns import Turns

from .fakes import EPOCH, OPENS, FakeService, RecordingOutlet, bar_update, make_hub, tick, until


def since(offset: int, *, epoch: int = EPOCH, symbol: str = "USDCOP") -> wire.Resume:
    return wire.Resume(symbol, epoch, offset)


def told(outlet: RecordingOutlet) -> list[tuple[str, Any]]:
    """What came behind ``welcome``: the type of each message, and its offset or range."""
    return [
        (m["type"], (m["from"], m["to"]) if m["type"] == "skipped" else m.get("offset"))
        for m in outlet.messages()[1:]
    ]


# --- the last price, when a bar came behind it -----------------------------------------------------


async def test_the_last_price_comes_also_when_a_bar_came_behind_it() -> None:
    """As at the end of a session: the next tick may be a day away."""
    hub = make_hub(high_water=300, low_water=100)
    slow, chosen = RecordingOutlet(), RecordingOutlet()
    hub.connect(slow, hub.symbols)
    hub.connect(chosen, hub.symbols, "latest")
    slow.reading = chosen.reading = False
    hub.on_events([tick(1)])
    hub.on_events([tick(2)])
    assert hub.counts().slow == 2
    hub.on_events([tick(3), tick(4), tick(5), bar_update(0, 5)])
    slow.drain()
    chosen.drain()
    assert told(slow)[2:] == [("skipped", (3, 4)), ("market_data", 5), ("bar", 5)]
    assert told(chosen)[2:] == [("market_data", 5), ("bar", 5)]


async def test_resuming_in_latest_mode_gives_the_price_in_front_of_a_bar() -> None:
    hub = make_hub()
    hub.on_events([tick(1), bar_update(0, 1), tick(2), tick(3), bar_update(1, 3)])
    outlet = RecordingOutlet()
    hub.connect(outlet, hub.symbols, "latest", [since(1)])
    assert told(outlet) == [("bar", 1), ("market_data", 3), ("bar", 3)]


async def test_resuming_in_latest_mode_through_the_store_gives_the_last_price() -> None:
    """After a restart memory has that price, but no place behind which it stands."""
    service = FakeService()
    before = [tick(n) for n in range(1, 10)]
    started = EpochStarted("USDCOP", EPOCH + 1, EPOCH, 9)
    service.store.journal([EpochStarted("USDCOP", EPOCH, None, None), *before, started])
    hub = make_hub()
    hub.stored = StoredStream(service)
    hub.seed(before[-1])
    hub.on_events([started])
    outlet, known = RecordingOutlet(), RecordingOutlet()
    client = hub.connect(outlet, hub.symbols, "latest", [since(5)])
    await until(lambda: client.group is not None)
    assert told(outlet) == [("market_data", 9), ("epoch", None)]
    client = hub.connect(known, hub.symbols, "latest", [since(9)])
    await until(lambda: client.group is not None)
    assert told(known) == [("epoch", None)]
    hub.close_all()


# --- several symbols -------------------------------------------------------------------------------


def offsets(outlet: RecordingOutlet, symbol: str) -> list[int]:
    return [
        m["offset"]
        for m in outlet.messages("market_data")
        if m["symbol"] == symbol and "snapshot" not in m
    ]


def two_symbols() -> Hub:
    hub = make_hub(("EURUSD", "USDCOP"))
    hub.on_events([tick(1, symbol="EURUSD"), *(tick(n) for n in range(1, 2001))])
    return hub


async def test_one_that_has_caught_up_misses_nothing_while_another_catches_up() -> None:
    hub = two_symbols()
    outlet = RecordingOutlet()
    client = hub.connect(outlet, hub.symbols, since=[since(1, symbol="EURUSD"), since(0)])
    assert client.group is None
    hub.on_events([tick(n, symbol="EURUSD") for n in (2, 3, 4)])
    await until(lambda: client.group is not None)
    assert offsets(outlet, "EURUSD") == [2, 3, 4]
    assert offsets(outlet, "USDCOP") == list(range(1, 2001))
    assert outlet.messages("skipped") == []


async def test_one_that_is_added_misses_nothing_while_another_catches_up() -> None:
    hub = two_symbols()
    outlet = RecordingOutlet()
    client = hub.connect(outlet, ["USDCOP"], since=[since(0)])
    hub.on_message(client, json.dumps({"type": "subscribe", "symbols": ["EURUSD"]}))
    assert client.group is None
    hub.on_events([tick(n, symbol="EURUSD") for n in (2, 3, 4)])
    await until(lambda: client.group is not None)
    assert offsets(outlet, "EURUSD") == [2, 3, 4]
    assert outlet.messages("skipped") == []


# --- many clients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [False, True], ids=["from memory", "from the store"])
async def test_however_many_catch_up_there_is_one_piece_in_a_turn(stored: bool) -> None:
    """What is live comes between any two of them."""
    service = FakeService()
    past = [tick(n) for n in range(1, 2001)]
    service.store.journal(past)
    hub = make_hub()
    if stored:
        hub.stored = StoredStream(service)
        hub.on_events([EpochStarted("USDCOP", EPOCH + 1, EPOCH, 2000)])
    else:
        hub.on_events(past)
    outlets = [RecordingOutlet() for _ in range(20)]
    clients = [hub.connect(outlet, hub.symbols, since=[since(0)]) for outlet in outlets]
    pieces = []
    while any(client.group is None for client in clients):
        before = hub.counts().messages_sent_total
        await asyncio.sleep(0)
        pieces.append(hub.counts().messages_sent_total - before)
    assert max(pieces) <= 512
    assert [offsets(outlet, "USDCOP") for outlet in outlets] == [list(range(1, 2001))] * 20
    hub.close_all()


async def test_a_turn_that_nobody_wants_any_more_is_passed_on() -> None:
    turns, taken = Turns(), []
    waiting = asyncio.create_task(turns.mine(), name="left meanwhile")
    await asyncio.sleep(0)
    turns.take(lambda: taken.append("next"))
    waiting.cancel()
    await until(lambda: taken == ["next"])
    turns.take(lambda: taken.append("later"))
    await until(lambda: taken == ["next", "later"])


# --- clients that have gone ------------------------------------------------------------------------


class GoneOutlet(RecordingOutlet):
    """Its peer left between the handshake and now."""

    def bind(self, listener: OutletListener, high_water: int, low_water: int) -> None:
        listener.on_closed()


@pytest.mark.parametrize("mode", ["every", "latest"])
async def test_nothing_is_read_for_one_that_has_gone(mode: Mode) -> None:
    """It would be read to the end of the stream: at a slow pace, for days."""
    service = FakeService()
    service.store.journal([tick(n) for n in range(1, 10)])
    hub = make_hub()
    hub.stored = StoredStream(service)
    hub.on_events([EpochStarted("USDCOP", EPOCH + 1, EPOCH, 9)])
    hub.connect(GoneOutlet(), hub.symbols, mode, [since(1)])
    hub.connect(GoneOutlet(), hub.symbols, mode, travel=Replay(OPENS, 0.001))
    assert not hub.stored.fetching
    assert hub.counts().connected == 0
