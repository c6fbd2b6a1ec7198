"""Compressed frames against zlib and the websockets library's own reading of RFC 7692."""

import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.serving import client as client_module
from enhanced_websocket_service.serving import wire
from enhanced_websocket_service.serving.deflate import deflated
from enhanced_websocket_service.serving.hub import Hub
from enhanced_websocket_service.serving.outlet import text_frame

from .fakes import EPOCH, RecordingOutlet, bar_update, make_hub, tick


def read(data: bytes, window_bits: int = 9) -> tuple[bytes, bool]:
    """The message in one frame, and whether it was compressed, by the websockets library."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    extension = PerMessageDeflate(True, True, window_bits, window_bits)
    parsing = Frame.parse(reader.read_exact, mask=False, extensions=[extension])
    try:
        while True:
            next(parsing)
    except StopIteration as done:
        frame: Frame = done.value
    assert (frame.opcode, frame.fin) == (Opcode.TEXT, True)
    return bytes(frame.data), data[0] == 0xC1


@given(st.text(max_size=3000), st.integers(1, 40), st.sampled_from([9, 12, 15]))
@example("x" * 100_000, 1, 9)
@example("", 1, 9)
def test_it_inflates_to_what_it_was(text: str, times: int, window_bits: int) -> None:
    payload = (text * times).encode()
    frame = deflated(text_frame(payload))
    assert read(frame, window_bits)[0] == payload
    assert len(frame) <= len(text_frame(payload))


def test_messages_become_shorter_and_noise_stays() -> None:
    for payload in (wire.market_data(tick(123_456)), wire.bar(bar_update(3, 99))):
        frame = deflated(text_frame(payload))
        assert read(frame) == (payload, True)
        assert len(frame) < 0.7 * len(payload)
    for payload in (b"{}", bytes(range(32, 127))):
        assert deflated(text_frame(payload)) == text_frame(payload)


class CompressingOutlet(RecordingOutlet):
    deflates = True


def connected(hub: Hub, outlet: RecordingOutlet) -> RecordingOutlet:
    hub.connect(outlet, hub.symbols)
    outlet.clear()
    return outlet


async def test_each_message_is_compressed_once_for_everybody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[bytes] = []

    def counted(frame: bytes) -> bytes:
        calls.append(frame)
        return deflated(frame)

    monkeypatch.setattr(client_module, "deflated", counted)
    hub = make_hub()
    plain = [connected(hub, RecordingOutlet()) for _ in range(3)]
    hub.on_events([EpochStarted("USDCOP", EPOCH, None, None), tick(1)])
    assert calls == [], "nobody asked for it"
    short = [connected(hub, CompressingOutlet()) for _ in range(5)]
    chosen = CompressingOutlet()
    hub.connect(chosen, hub.symbols, "latest")
    for outlet in plain:
        outlet.clear()
    hub.on_events([tick(2), tick(3)])
    assert len(calls) == 2
    expected = text_frame(wire.market_data(tick(2))) + text_frame(wire.market_data(tick(3)))
    assert {b"".join(outlet.frames) for outlet in plain} == {expected}
    compressed = b"".join(deflated(text_frame(wire.market_data(tick(n)))) for n in (2, 3))
    assert {b"".join(outlet.frames) for outlet in short} == {compressed}
    assert chosen.frames[-1] == deflated(text_frame(wire.market_data(tick(3))))


async def test_a_change_of_interest_keeps_the_compression() -> None:
    hub = make_hub()
    outlet = connected(hub, CompressingOutlet())
    (client,) = hub._clients
    hub.on_message(client, '{"type":"unsubscribe","channels":["bars"]}')
    hub.on_events([tick(1)])
    assert outlet.frames[-1][0] == 0xC1
    inflater = zlib.decompressobj(-9)
    body = outlet.frames[-1][4:] if outlet.frames[-1][1] == 126 else outlet.frames[-1][2:]
    assert b'"offset":1' in inflater.decompress(body + b"\0\0\xff\xff")
