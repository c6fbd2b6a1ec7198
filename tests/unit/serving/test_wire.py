"""The client protocol: what goes out, and that nothing that comes in can do harm."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.market.events import StatusChanged
from enhanced_websocket_service.serving import wire

from .fakes import EPOCH, NOON, bar, bar_update, tick


def test_market_data_has_every_field_of_the_decisions() -> None:
    message = json.loads(wire.market_data(tick(5)))
    assert message == {
        "type": "market_data",
        "symbol": "USDCOP",
        "epoch": EPOCH,
        "offset": 5,
        "data": {
            "symbol": "USDCOP",
            "price": 4100.05,
            "bid": 4099.8,
            "ask": 4100.3,
            "spread": 0.5,
            "volume": 0,
            "timestamp": "2025-06-04T08:00:05-05:00",
            "source": "simulator_websocket",
        },
        "timestamp": "2025-06-04T08:00:05.250000-05:00",
    }
    assert json.loads(wire.market_data(tick(5), snapshot=True))["snapshot"] is True


def test_what_the_vendor_has_not_is_null() -> None:
    data = json.loads(wire.market_data(tick(1, bid=None, ask=None)))["data"]
    assert (data["bid"], data["ask"], data["spread"], data["volume"]) == (None, None, None, 0)


def test_type_comes_first_in_every_message() -> None:
    change = StatusChanged(state="ready", reason="r", feed_verdict="closed", at=NOON)
    for message in (
        wire.welcome(["USDCOP"], EPOCH, {"USDCOP": 3}, "active", NOON),
        wire.epoch_started("USDCOP", EPOCH, None, None),
        wire.market_data(tick(1)),
        wire.bar(bar_update(0, 9)),
        wire.status(change),
        wire.skipped("USDCOP", EPOCH, 1, 2, "slow_client"),
        wire.heartbeat_response("active", NOON),
        wire.error("code", "message"),
    ):
        assert message.startswith(b'{"type":"')


def test_bar_carries_its_birth_certificate() -> None:
    message = json.loads(wire.bar(bar_update(3, 42, revision=2, status="revised")))
    assert (message["interval"], message["revision"], message["status"]) == ("5min", 2, "revised")
    assert (message["epoch"], message["offset"]) == (EPOCH, 42)
    assert message["data"]["datetime"] == "2025-06-04T08:15:00-05:00"
    assert message["data"]["certificate"] == {
        "ticks": {"simulator_websocket": 12},
        "first_tick": "2025-06-04T08:15:01-05:00",
        "last_tick": "2025-06-04T08:19:59-05:00",
        "longest_silence_s": 40,
        "partial": False,
    }
    assert wire.bar_data(bar(certificate=None))["certificate"] is None


def test_requests_are_understood() -> None:
    assert wire.parse('{"type":"heartbeat","more":1}') == wire.Heartbeat()
    assert wire.parse(b'{"type":"subscribe","symbols":["A"]}') == wire.Subscribe(["A"], [])
    assert wire.parse('{"type":"unsubscribe","channels":["bars"]}') == wire.Unsubscribe(
        [], ["bars"]
    )
    assert wire.parse('{"type":"resume","symbol":"A","epoch":7,"offset":0}') == wire.Resume(
        "A", 7, 0
    )


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "bad_json"),
        ("{", "bad_json"),
        ("[" * 60_000, "bad_json"),
        (b"\xff\xfe", "bad_json"),
        ("[]", "bad_message"),
        ("null", "bad_message"),
        ('{"type":1}', "bad_message"),
        ('{"type":"dance"}', "unknown_type"),
        ('{"type":"resume","symbol":"A","epoch":-1,"offset":0}', "bad_message"),
        ('{"type":"resume","symbol":"A"}', "bad_message"),
        ('{"type":"resume","symbol":"A","epoch":7,"offset":1' + "0" * 18 + "}", "bad_message"),
        ('{"type":"resume","symbol":"A","epoch":1' + "0" * 30 + ',"offset":7}', "bad_message"),
        ('{"type":"subscribe","symbols":["A"' + ',"A"' * 1000 + "]}", "bad_message"),
        ('{"type":"subscribe","symbols":"A"}', "bad_message"),
        ('{"type":"subscribe","channels":["ticker"]}', "bad_message"),
    ],
)
def test_what_cannot_be_used_is_named(text: str | bytes, code: str) -> None:
    fault = wire.parse(text)
    assert isinstance(fault, wire.Fault)
    assert fault.code == code
    assert fault.message


@given(st.text() | st.binary())
def test_parse_never_raises(text: str | bytes) -> None:
    if isinstance(text, str) and not text.isascii():
        text = text.encode("utf-8", "surrogatepass")
    wire.parse(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.sampled_from(["heartbeat", "subscribe", "unsubscribe", "resume"]),
)
def test_parse_never_raises_on_json(value: object, kind: str) -> None:
    fields = ("symbols", "channels", "symbol", "epoch", "offset")
    message = json.dumps({"type": kind} | dict.fromkeys(fields, value))
    assert wire.parse(message.encode("utf-8", "replace")) is not None


def test_cursors() -> None:
    assert wire.parse_cursor("USDCOP:1750000000000:42") == wire.Resume("USDCOP", 1750000000000, 42)
    for bad in (
        "",
        "USDCOP",
        "USDCOP:1",
        ":1:2",
        "A:x:1",
        "A:-1:1",
        "A:1:2:3",
        "A:٣:1",
        "A:1:" + "9" * 30,
    ):
        fault = wire.parse_cursor(bad)
        assert isinstance(fault, wire.Fault), bad
        assert fault.code == "bad_cursor"


def test_messages_survive_another_decoder() -> None:
    text = wire.skipped("USDCOP", EPOCH, 1, None, "epoch_unknown")
    assert json.loads(text) == msgspec.json.decode(text)
