"""Vendor frames in every shape seen in the wild, and in some that were not."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.market.validation import QuoteValidator
from enhanced_websocket_service.twelvedata import protocol
from enhanced_websocket_service.twelvedata.protocol import (
    Heartbeat,
    Malformed,
    StatusMessage,
    SubscribeStatus,
    Unknown,
    our_symbol,
    parse_frame,
    vendor_symbol,
)

RECEIVED = 1_749_000_000.75
FULL: dict[str, Any] = {
    "event": "price",
    "symbol": "USD/COP",
    "currency_base": "US Dollar",
    "currency_quote": "Colombian Peso",
    "type": "Physical Currency",
    "timestamp": 1_749_000_000,
    "price": 4275.45,
    "bid": 4275.2,
    "ask": 4275.7,
}


def one(message: object) -> protocol.Frame:
    (frame,) = parse_frame(json.dumps(message), RECEIVED, "simulator_websocket")
    return frame


def price(**changes: object) -> Quote:
    frame = one({**FULL, **changes})
    assert isinstance(frame, Quote)
    return frame


def test_symbols_go_both_ways() -> None:
    assert vendor_symbol("USDCOP") == "USD/COP"
    assert our_symbol("USD/COP") == "USDCOP"
    assert vendor_symbol("AAPL") == "AAPL"
    assert our_symbol(vendor_symbol("BTCUSD")) == "BTCUSD"


def test_requests_are_the_documented_text() -> None:
    assert json.loads(protocol.subscribe(["USDCOP", "EURUSD"])) == {
        "action": "subscribe",
        "params": {"symbols": "USD/COP,EUR/USD"},
    }
    assert json.loads(protocol.unsubscribe(["USDCOP"]))["action"] == "unsubscribe"
    assert json.loads(protocol.heartbeat()) == {"action": "heartbeat"}
    assert json.loads(protocol.reset()) == {"action": "reset"}


def test_a_full_price() -> None:
    assert price() == Quote(
        symbol="USDCOP",
        timestamp=1_749_000_000,
        price=4275.45,
        source="simulator_websocket",
        received_at=RECEIVED,
        bid=4275.2,
        ask=4275.7,
    )


def test_strings_for_numbers_and_absent_sides() -> None:
    quote = price(price="4275.45", bid="4275.2", ask=None, timestamp="1749000000")
    assert (quote.price, quote.bid, quote.ask, quote.raw) == (4275.45, 4275.2, None, "")
    bare = {key: value for key, value in FULL.items() if key not in ("bid", "ask")}
    frame = one(bare)
    assert isinstance(frame, Quote)
    assert (frame.bid, frame.ask, frame.raw) == (None, None, "")
    assert price(bid="").bid is None


@pytest.mark.parametrize(
    "changes",
    [
        {"price": None},
        {"price": "abc"},
        {"price": True},
        {"price": [4275.45]},
        {"timestamp": None},
        {"timestamp": -5},
        {"timestamp": 1_749_000_000_000},  # milliseconds
        {"timestamp": "noon"},
        {"bid": "abc"},
        {"ask": {}},
    ],
)
def test_an_unusable_price_reaches_validation_with_its_text(changes: dict[str, object]) -> None:
    quote = price(**changes)
    assert "USD/COP" in quote.raw
    accepted, (rejected,) = QuoteValidator().check(quote)
    assert (accepted, rejected.reason, rejected.raw) == ([], "unparsable", quote.raw)


def test_an_unusable_stamp_is_replaced_by_the_receipt() -> None:
    assert price(timestamp=None).timestamp == int(RECEIVED)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", '"NaN"', "1e999"])
def test_not_a_number_is_a_price_that_validation_refuses(literal: str) -> None:
    text = json.dumps(FULL).replace("4275.45", literal)
    (quote,) = parse_frame(text, RECEIVED, "s")
    assert isinstance(quote, Quote)
    assert not math.isfinite(quote.price)
    assert QuoteValidator().check(quote)[1][0].reason == "not_a_number"


def test_day_volume_is_not_the_volume_of_a_tick() -> None:
    assert price(day_volume=28306).volume == 0


def test_a_price_without_a_symbol_is_malformed() -> None:
    for symbol in (None, "", "  ", 7):
        frame = one({**FULL, "symbol": symbol})
        assert isinstance(frame, Malformed)
        assert "4275.45" in frame.raw


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            {
                "event": "subscribe-status",
                "status": "ok",
                "success": [
                    {"symbol": "USD/COP", "exchange": "FOREX", "type": "Physical Currency"}
                ],
                "fails": None,
            },
            SubscribeStatus(("USDCOP",), (), True),
        ),
        (
            {
                "event": "subscribe-status",
                "status": "error",
                "success": None,
                "fails": [{"symbol": "USD/COP"}, "EUR/USD"],
            },
            SubscribeStatus((), ("USDCOP", "EURUSD"), False),
        ),
        (
            {"event": "subscribe-status", "status": "error", "messages": ["Cant parse message"]},
            SubscribeStatus((), (), False, "Cant parse message"),
        ),
        ({"event": "heartbeat", "status": "ok"}, Heartbeat()),
        ({"event": "reset-status", "status": "ok"}, StatusMessage("reset-status", "ok")),
        (
            {"status": "error", "code": 401, "message": "no"},
            StatusMessage("", "error", 401, "no"),
        ),
        ({"event": "dividend", "status": "ok"}, Unknown("dividend")),
        ({"event": "x" * 500}, Unknown("x" * 40)),
        ({"event": {"a": 1}}, Unknown("{'a': 1}")),
        ({}, Unknown("no event")),
    ],
)
def test_other_frames(message: object, expected: protocol.Frame) -> None:
    assert one(message) == expected


def test_an_array_gives_its_members_in_order() -> None:
    text = json.dumps([FULL, {"event": "heartbeat"}, 7, {**FULL, "price": 4276.0}])
    first, second, third, fourth = parse_frame(text, RECEIVED, "s")
    assert isinstance(first, Quote)
    assert second == Heartbeat()
    assert isinstance(third, Malformed)
    assert isinstance(fourth, Quote)
    assert fourth.price == 4276.0


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe\x00", "error code: 520", "7", '"price"', "null", "[" * 100_000, "{", "[]"],
)
def test_what_is_no_object_is_malformed_or_nothing(data: str | bytes) -> None:
    assert all(isinstance(frame, Malformed) for frame in parse_frame(data, RECEIVED, "s"))


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_no_bytes_raise(data: str | bytes) -> None:
    for frame in parse_frame(data, RECEIVED, "s"):
        str(frame).encode()


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)
_KEYS = (
    "event",
    "symbol",
    "price",
    "bid",
    "ask",
    "timestamp",
    "status",
    "success",
    "fails",
    "code",
)


@given(
    st.sampled_from(["price", "subscribe-status", "heartbeat", "x-status", None]),
    st.dictionaries(st.sampled_from(_KEYS), _VALUES),
)
def test_no_message_raises_and_every_quote_can_be_decided(
    event: str | None, fields: dict[str, object]
) -> None:
    message = {"event": event, "symbol": "USD/COP", **fields}
    for frame in parse_frame(json.dumps(message), RECEIVED, "s"):
        str(frame).encode()  # no lone surrogates: this text is logged and stored
        if isinstance(frame, Quote):
            assert 0 < frame.timestamp <= protocol.LATEST_STAMP
            QuoteValidator().check(frame)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.floats(0.1, 1e6).map(str),
    st.lists(st.integers(), max_size=2),
)


@given(
    changes=st.dictionaries(st.sampled_from([*FULL, "day_volume", "mic_code"]), ODD, max_size=4),
    absent=st.sets(st.sampled_from(list(FULL)), max_size=2),
)
def test_the_short_way_of_usual_prices_says_what_the_long_one_does(
    changes: dict[str, object], absent: set[str]
) -> None:
    message = {name: v for name, v in {**FULL, **changes}.items() if name not in absent}
    data = json.dumps(message)
    short = parse_frame(data, RECEIVED, "simulator_websocket")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(protocol, "parse_price", lambda *_: None)
        long = parse_frame(data, RECEIVED, "simulator_websocket")
    assert repr(short) == repr(long)  # NaN is not equal to itself


def test_a_usual_price_goes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = price()
    monkeypatch.setattr(protocol, "_frame", None)
    assert price() == expected
