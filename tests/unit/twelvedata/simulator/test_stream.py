"""The price stream with a clock moved by hand: every tick once, in order, to those who asked."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from websockets.protocol import CLIENT, Protocol

from enhanced_websocket_service.twelvedata.simulator.credits import PLANS
from enhanced_websocket_service.twelvedata.simulator.faults import FaultBoard
from enhanced_websocket_service.twelvedata.simulator.ledger import SentLedger, Shape
from enhanced_websocket_service.twelvedata.simulator.model import MarketSource, SimTick
from enhanced_websocket_service.twelvedata.simulator.stream import PriceStream, StreamClient

from .parts import OPEN, ManualClock, bar_market, candles, tick_source

TICKS = [
    SimTick(OPEN - 100, 1.0, None, None),
    SimTick(OPEN + 1, 2.0, 1.5, 2.5),
    SimTick(OPEN + 1, 3.0, None, None),
    SimTick(OPEN + 1, 2.0, 1.5, 2.5),
    SimTick(OPEN + 2, 4.0, None, None),
    SimTick(OPEN + 1000, 5.0, None, None),
]


class FakeSocket:
    """Remembers what was written."""

    def __init__(self) -> None:
        self.data = b""
        self.writes = 0
        self.closed: int | None = None
        self.was_reset = False
        self.finished = False
        self.frozen = False
        self.writable = asyncio.Event()
        self.writable.set()

    def write(self, frames: bytes) -> None:
        self.data += frames
        self.writes += 1

    def start_close(self, code: int) -> None:
        self.closed = code

    def reset(self) -> None:
        self.was_reset = True

    def finish(self) -> None:
        self.finished = True

    def freeze(self) -> None:
        self.frozen = True

    def texts(self) -> list[str]:
        """What was written since the last call."""
        reader = Protocol(CLIENT, max_size=None)
        reader.receive_data(self.data)
        self.data = b""
        return [bytes(getattr(event, "data", b"")).decode() for event in reader.events_received()]

    def messages(self) -> list[Any]:
        return [json.loads(text) for text in self.texts()]

    def prices(self, symbol: str = "USD/COP") -> list[float]:
        messages = self.messages()
        return [one["price"] for one in messages if one.get("symbol") == symbol]


class Bench:
    """A stream on a manual clock."""

    def __init__(self, market: MarketSource, plan: str = "pro", **options: Any) -> None:
        self.clock = ManualClock()
        self.faults = FaultBoard()
        self.stream = PriceStream(market, self.clock, PLANS[plan], self.faults, **options)
        self._pump = asyncio.create_task(self.stream.run(), name="stream")

    async def to(self, instant: float) -> None:
        """Move the clock and let the stream do all that is due."""
        await self.clock.move_to(instant)
        for _ in range(50):
            await asyncio.sleep(0)
        assert not self._pump.done()

    def client(self, symbols: str = "", key: str = "k") -> tuple[StreamClient, FakeSocket]:
        socket = FakeSocket()
        client = self.stream.join(key, socket)
        if symbols:
            self.say(client, "subscribe", symbols)
        return client, socket

    def say(self, client: StreamClient, action: str, symbols: str = "") -> None:
        message: dict[str, Any] = {"action": action}
        if symbols:
            message["params"] = {"symbols": symbols}
        self.stream.on_message(client, json.dumps(message))

    async def stop(self) -> None:
        self._pump.cancel()
        await asyncio.wait({self._pump})


def ticks_of(*symbols: str, ticks: Sequence[SimTick] = tuple(TICKS)) -> MarketSource:
    return MarketSource({symbol: tick_source(ticks) for symbol in symbols})


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench(ticks_of("USD/COP", "EUR/USD", "BTC/USD"))
    yield made
    await made.stop()


async def test_ticks_come_when_the_clock_reaches_their_second(bench: Bench) -> None:
    _, socket = bench.client("USD/COP")
    assert [one["event"] for one in socket.messages()] == ["subscribe-status", "price"]
    await bench.to(OPEN + 0.999)
    assert socket.prices() == []
    await bench.to(OPEN + 1)
    assert socket.prices() == [2.0, 3.0, 2.0]
    await bench.to(OPEN + 1.9)
    assert socket.prices() == []
    await bench.to(OPEN + 999.9)
    assert socket.prices() == [4.0]
    await bench.to(OPEN + 5000)
    assert socket.prices() == [5.0]


async def test_nothing_is_skipped_when_the_loop_wakes_late(bench: Bench) -> None:
    _, socket = bench.client("USD/COP")
    socket.texts()
    await bench.to(OPEN + 5000)
    assert socket.prices() == [2.0, 3.0, 2.0, 4.0, 5.0]


async def test_one_write_for_all_ticks_of_a_wake_up(bench: Bench) -> None:
    _, socket = bench.client("USD/COP")
    before = socket.writes
    await bench.to(OPEN + 2)
    assert socket.writes == before + 1


async def test_a_late_client_gets_ticks_from_now_on_and_the_last_price(bench: Bench) -> None:
    _, early = bench.client("USD/COP")
    # Late as well: the stream itself has not woken yet when the second client subscribes.
    bench.clock._now = OPEN + 1.5
    _, late = bench.client("USD/COP")
    status, last = late.messages()
    assert status["event"] == "subscribe-status"
    assert (last["price"], last["timestamp"]) == (2.0, OPEN + 1)
    await bench.to(OPEN + 1000)
    assert late.prices() == [4.0, 5.0]
    assert early.prices() == [1.0, 2.0, 3.0, 2.0, 4.0, 5.0]
    assert bench.stream.ledgers["USD/COP"].counts()["ticks"] == 5


async def test_a_new_symbol_with_an_earlier_tick_wakes_the_stream() -> None:
    market = MarketSource(
        {
            "USD/COP": tick_source([SimTick(OPEN + 1000, 1.0, None, None)]),
            "EUR/USD": tick_source([SimTick(OPEN + 10, 2.0, None, None)]),
        }
    )
    bench = Bench(market)
    client, socket = bench.client("USD/COP")
    await bench.to(OPEN + 5)
    bench.say(client, "subscribe", "EUR/USD")
    await bench.to(OPEN + 10)
    assert socket.prices("EUR/USD") == [2.0]
    await bench.stop()


async def test_symbols_are_merged_in_the_order_of_their_stamps() -> None:
    first = [SimTick(OPEN + i, float(i), None, None) for i in (1, 3, 5)]
    second = [SimTick(OPEN + i, float(i), None, None) for i in (2, 3, 4)]
    market = MarketSource({"USD/COP": tick_source(first), "EUR/USD": tick_source(second)})
    bench = Bench(market)
    _, both = bench.client("USD/COP,EUR/USD")
    _, one = bench.client("EUR/USD")
    await bench.to(OPEN + 10)
    stamps = [m["timestamp"] - OPEN for m in both.messages() if m["event"] == "price"]
    assert stamps == [1, 2, 3, 3, 4, 5]
    assert one.prices("EUR/USD") == [2, 3, 4]
    await bench.stop()


async def test_a_session_of_bars_is_sent_exactly() -> None:
    market = bar_market(candles(59))
    bench = Bench(market, resend_last=False)
    _, socket = bench.client("USD/COP")
    for step in range(0, 18_000, 97):
        await bench.to(OPEN + step)
    await bench.to(OPEN + 18_000)
    source = market.get("USD/COP")
    assert source is not None
    # The tick of the very second in which the client subscribed was past.
    expected = source.ticks(OPEN + 1, OPEN + 18_000)
    sent = [m for m in socket.messages() if m["event"] == "price"]
    assert [(m["timestamp"], m["price"], m.get("bid"), m.get("ask")) for m in sent] == expected
    ledger = list(bench.stream.ledgers["USD/COP"].entries(None, None))
    assert [(e["timestamp"], e["price"], e["bid"], e["ask"]) for e in ledger] == expected
    await bench.stop()


async def test_unsubscribe_reset_and_heartbeat(bench: Bench) -> None:
    client, socket = bench.client("USD/COP,EUR/USD")
    socket.texts()
    bench.say(client, "unsubscribe", "EUR/USD")
    bench.say(client, "heartbeat")
    assert socket.messages() == [
        {"event": "unsubscribe-status", "status": "ok"},
        {"event": "heartbeat", "status": "ok"},
    ]
    await bench.to(OPEN + 1)
    assert {m["symbol"] for m in socket.messages()} == {"USD/COP"}
    bench.say(client, "reset")
    assert socket.messages() == [{"event": "reset-status", "status": "ok"}]
    await bench.to(OPEN + 2)
    assert socket.texts() == []


async def test_unknown_symbols_fail_one_by_one(bench: Bench) -> None:
    client, socket = bench.client()
    bench.say(client, "subscribe", "USD/COP,USDCOP,XAU/USD")
    status = socket.messages()[0]
    assert status["status"] == "ok"
    assert [one["symbol"] for one in status["success"]] == ["USD/COP"]
    assert status["fails"] == [{"symbol": "USDCOP"}, {"symbol": "XAU/USD"}]


@pytest.mark.parametrize("plan", ["basic", "grow"])
async def test_free_plans_stream_trial_symbols_alone(plan: str) -> None:
    bench = Bench(ticks_of("USD/COP", "EUR/USD", "BTC/USD"), plan)
    _, socket = bench.client("USD/COP,EUR/USD,BTC/USD")
    status = socket.messages()[0]
    assert [one["symbol"] for one in status["success"]] == ["EUR/USD", "BTC/USD"]
    assert status["fails"] == [{"symbol": "USD/COP"}]
    await bench.to(OPEN + 1)
    assert socket.prices("USD/COP") == []
    await bench.stop()


async def test_credits_of_a_key_are_shared_by_its_connections() -> None:
    names = [f"{a}{b}/USD" for a in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" for b in "ABCDEFGHIJKLMNOPQRST"]
    bench = Bench(ticks_of(*names))  # 520 symbols, 500 credits
    first, socket = bench.client(",".join(names[:499]))
    assert socket.messages()[0]["fails"] == []
    _, other = bench.client(",".join(names[499:502]))
    assert [one["symbol"] for one in other.messages()[0]["fails"]] == names[500:502]
    bench.say(first, "reset")
    _, third = bench.client(",".join(names[500:502]))
    assert third.messages()[0]["fails"] == []
    await bench.stop()


async def test_a_subscription_repeated_costs_nothing_and_resends_the_last_price(
    bench: Bench,
) -> None:
    client, socket = bench.client("USD/COP")
    socket.texts()
    bench.say(client, "subscribe", "USD/COP")
    status, price = socket.messages()
    assert (status["status"], price["price"]) == ("ok", 1.0)
    await bench.to(OPEN + 1)
    assert socket.prices() == [2.0, 3.0, 2.0]
    assert bench.stream.ledgers["USD/COP"].counts() == {"ticks": 3, "resent": 2, "forgotten": 0}


async def test_no_resending_when_switched_off() -> None:
    bench = Bench(ticks_of("USD/COP"), resend_last=False)
    _, socket = bench.client("USD/COP")
    assert [one["event"] for one in socket.messages()] == ["subscribe-status"]
    await bench.stop()


async def test_what_cannot_be_parsed_is_said(bench: Bench) -> None:
    client, socket = bench.client()
    for text in ("nonsense", '{"action":"subscribe","params":"EUR/USD"}', None):
        bench.stream.on_message(client, text)
    cant = {"event": "subscribe-status", "status": "error", "messages": ["Cant parse message"]}
    assert socket.messages() == [cant] * 3


async def test_a_hundred_events_a_minute(bench: Bench) -> None:
    client, socket = bench.client()
    for _ in range(100):
        bench.say(client, "reset")
    bench.say(client, "heartbeat")  # does not count
    assert socket.messages()[-1]["event"] == "heartbeat"
    bench.say(client, "subscribe", "USD/COP")
    assert socket.messages() == [
        {
            "status": "error",
            "code": 429,
            "message": "The server received 101 events from you, which exceeds the limit of "
            "100 events per minute",
        }
    ]
    await bench.to(OPEN + 60)
    bench.say(client, "subscribe", "USD/COP")
    assert socket.messages()[0]["status"] == "ok"


@pytest.mark.parametrize(("plan", "limit"), [("basic", 1), ("pro", 3)])
async def test_the_oldest_connection_of_a_key_is_closed(plan: str, limit: int) -> None:
    bench = Bench(ticks_of("EUR/USD"), plan)
    sockets = [bench.client("EUR/USD")[1] for _ in range(limit)]
    _, stranger = bench.client("EUR/USD", key="another")
    assert [socket.closed for socket in sockets] == [None] * limit
    _, newest = bench.client("EUR/USD")
    assert [socket.closed for socket in sockets] == [1008] + [None] * (limit - 1)
    assert (stranger.closed, newest.closed) == (None, None)
    sockets[0].texts()
    await bench.to(OPEN + 1)
    assert sockets[0].texts() == []
    await bench.stop()


async def test_a_client_that_left_gets_nothing(bench: Bench) -> None:
    client, socket = bench.client("USD/COP")
    socket.texts()
    bench.stream.leave(client)
    bench.stream.leave(client)
    await bench.to(OPEN + 1)
    assert socket.texts() == []
    assert bench.stream.shown() == []


async def test_mute_swallows_prices_for_good(bench: Bench) -> None:
    client, socket = bench.client("USD/COP")
    socket.texts()
    bench.faults.apply({"mute": True})
    await bench.to(OPEN + 1)
    bench.say(client, "heartbeat")
    assert [one["event"] for one in socket.messages()] == ["heartbeat"]
    bench.faults.apply({"mute": False})
    await bench.to(OPEN + 2)
    assert socket.prices() == [4.0]
    assert bench.stream.ledgers["USD/COP"].counts()["ticks"] == 1


async def test_faults_of_prices_show_in_frames_and_ledger(bench: Bench) -> None:
    _, socket = bench.client("USD/COP")
    socket.texts()
    bench.faults.apply({"no_bid_ask": True, "string_prices": True})
    await bench.to(OPEN + 1)
    first = socket.messages()[0]
    assert first["price"] == "2.0"
    assert "bid" not in first
    entries = list(bench.stream.ledgers["USD/COP"].entries(OPEN, None))
    assert entries[0] == {
        "timestamp": OPEN + 1,
        "price": 2.0,
        "bid": None,
        "ask": None,
        "resent": False,
        "left": OPEN + 1,
        "faults": "",
    }


async def test_fails_refuses_symbols(bench: Bench) -> None:
    bench.faults.apply({"fails": ["usdcop"]})
    _, socket = bench.client("USD/COP")
    assert socket.messages() == [
        {
            "event": "subscribe-status",
            "status": "error",
            "success": None,
            "fails": [{"symbol": "USD/COP"}],
        }
    ]


async def test_actions_touch_the_sockets_that_are_open(bench: Bench) -> None:
    _, first = bench.client("USD/COP")
    first.texts()
    bench.stream.act("garbage_frames", 3)
    assert len(first.texts()) == 3
    bench.stream.act("close", 1011)
    _, second = bench.client("USD/COP")
    bench.stream.act("drop", True)
    assert (first.closed, first.was_reset) == (1011, False)
    assert (second.closed, second.was_reset) == (None, True)
    second.texts()
    await bench.to(OPEN + 1)
    assert first.texts() + second.texts() == []


async def test_keys_are_never_shown(bench: Bench) -> None:
    bench.client("USD/COP", key="a-very-secret-key")
    assert "secret" not in json.dumps(bench.stream.shown())


async def test_a_client_that_takes_nothing_for_too_long_is_reset(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "enhanced_websocket_service.twelvedata.simulator.stream._SLOW_CLIENT_REAL_S", 0.0
    )
    _, slow = bench.client("USD/COP")
    _, quick = bench.client("USD/COP")
    quick.texts()
    slow.writable.clear()
    await bench.to(OPEN + 2)
    assert slow.was_reset
    assert not quick.was_reset
    assert quick.prices() == [2.0, 3.0, 2.0, 4.0]


def test_the_ledger_is_bounded_and_says_what_it_forgot() -> None:
    ledger = SentLedger(limit=10)
    for i in range(95):
        ledger.add(SimTick(i, float(i + 1), None, None))
    entries = list(ledger.entries(None, None))
    assert 10 <= len(entries) < 20
    assert entries[-1]["timestamp"] == 94
    assert ledger.forgotten + len(entries) == 95


def test_the_ledger_is_cut_by_time_and_kind() -> None:
    ledger = SentLedger()
    for i in range(5):
        ledger.add(SimTick(i, 1.0, None, None), shape=Shape.RESENT * (i == 2))
    assert [e["timestamp"] for e in ledger.entries(1, 4)] == [1, 2, 3]
    assert [e["timestamp"] for e in ledger.entries(1, 4, resent=False)] == [1, 3]
