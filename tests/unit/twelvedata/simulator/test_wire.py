"""Client messages and price frames."""

import json

import msgspec
import pytest
from websockets.frames import Opcode
from websockets.protocol import CLIENT, Protocol

from enhanced_websocket_service.twelvedata.simulator.model import SimTick, describe
from enhanced_websocket_service.twelvedata.simulator.wire import (
    GARBAGE,
    ClientRequest,
    PriceEncoder,
    parse_request,
    subscribe_status,
    text_frame,
)

TICK = SimTick(1_748_955_600, 4100.5, 4100.25, 4100.75)


@pytest.mark.parametrize(
    ("message", "request_"),
    [
        (
            {"action": "subscribe", "params": {"symbols": "usd/cop, EUR/USD,USD/COP"}},
            ClientRequest("subscribe", ("USD/COP", "EUR/USD")),
        ),
        (
            {
                "action": "subscribe",
                "params": {"symbols": [{"symbol": "EUR/USD", "type": "Forex"}, "BTC/USD"]},
            },
            ClientRequest("subscribe", ("EUR/USD", "BTC/USD")),
        ),
        (
            {"action": "unsubscribe", "params": {"symbols": "A"}},
            ClientRequest("unsubscribe", ("A",)),
        ),
        ({"action": "reset"}, ClientRequest("reset")),
        ({"action": "heartbeat", "extra": 1}, ClientRequest("heartbeat")),
    ],
)
def test_requests(message: object, request_: ClientRequest) -> None:
    assert parse_request(json.dumps(message)) == request_


@pytest.mark.parametrize(
    "text",
    [
        None,
        b'{"action":"reset"}',
        "",
        "{",
        "[]",
        "1",
        "{}",
        '{"action":"dance"}',
        '{"action":["subscribe"]}',
        '{"action":"subscribe"}',
        '{"action":"subscribe","params":"USD/COP"}',
        '{"action":"subscribe","params":{"symbols":""}}',
        '{"action":"subscribe","params":{"symbols":7}}',
        '{"action":"subscribe","params":{"symbols":[{"exchange":"X"}]}}',
        "[" * 100_000,
    ],
)
def test_what_cannot_be_parsed(text: str | bytes | None) -> None:
    assert parse_request(text) is None


def test_subscribe_status() -> None:
    eur = describe("EUR/USD")
    item = {"symbol": "EUR/USD", "exchange": "FOREX", "country": "", "type": "Physical Currency"}
    assert json.loads(subscribe_status([eur], [])) == {
        "event": "subscribe-status",
        "status": "ok",
        "success": [item],
        "fails": [],
    }
    assert json.loads(subscribe_status([eur], ["BTC"]))["status"] == "ok"
    assert json.loads(subscribe_status([], ["BTC"])) == {
        "event": "subscribe-status",
        "status": "error",
        "success": None,
        "fails": [{"symbol": "BTC"}],
    }


def payloads(frames: bytes) -> list[bytes]:
    """The text messages in ``frames``, read by the library ``websockets``."""
    reader = Protocol(CLIENT, max_size=None)
    reader.receive_data(frames)
    events = reader.events_received()
    assert reader.parser_exc is None
    assert all(getattr(event, "opcode", None) is Opcode.TEXT for event in events)
    return [bytes(getattr(event, "data", b"")) for event in events]


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536, 100_000])
def test_frames_of_every_length(length: int) -> None:
    payload = b"x" * length
    assert payloads(text_frame(payload) * 2) == [payload, payload]


def test_price_frames() -> None:
    encoder = PriceEncoder(describe("USD/COP"))
    plain = {
        "event": "price",
        "symbol": "USD/COP",
        "currency_base": "US Dollar",
        "currency_quote": "Colombian Peso",
        "type": "Physical Currency",
        "timestamp": 1_748_955_600,
        "price": 4100.5,
        "bid": 4100.25,
        "ask": 4100.75,
    }
    without = {name: value for name, value in plain.items() if name not in ("bid", "ask")}

    def decoded(frame: bytes) -> object:
        (payload,) = payloads(frame)
        return msgspec.json.decode(payload)

    assert decoded(encoder.frame(TICK)) == plain
    assert decoded(encoder.frame(TICK, quotes=False)) == without
    assert decoded(encoder.frame(TICK._replace(bid=None))) == without
    assert decoded(encoder.frame(TICK, strings=True)) == {
        **plain,
        "price": "4100.5",
        "bid": "4100.25",
        "ask": "4100.75",
    }


@pytest.mark.parametrize("price", [1e-06, 0.1 + 0.2, 4100.0, 4170.123456, 999_999.999999])
def test_prices_survive_the_wire_bit_by_bit(price: float) -> None:
    tick = SimTick(1, price, price, price)
    (payload,) = payloads(PriceEncoder(describe("USD/COP")).frame(tick))
    assert json.loads(payload)["price"] == price


def test_garbage_is_never_a_valid_price() -> None:
    for frame in GARBAGE:
        try:
            message = json.loads(frame)
        except ValueError:
            continue
        assert not (isinstance(message, dict) and isinstance(message.get("price"), float))
