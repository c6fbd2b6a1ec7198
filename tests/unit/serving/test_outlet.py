"""Frames against the websockets library's own parser, and the outlet for plain ASGI servers."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame
from websockets.streams import StreamReader

from enhanced_websocket_service.serving import outlet as outlet_module
from enhanced_websocket_service.serving.outlet import AsgiOutlet, payloads, text_frame

from .fakes import until


def _parse(data: bytes) -> Frame:
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    parsing = Frame.parse(reader.read_exact, mask=False)
    try:
        while True:
            next(parsing)
    except StopIteration as done:
        frame: Frame = done.value
        return frame


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_a_frame_is_what_websockets_would_write(size: int) -> None:
    payload = b"x" * size
    frame = _parse(text_frame(payload))
    assert (frame.opcode, frame.fin, frame.data) == (1, True, payload)
    assert text_frame(payload) == Frame(1, payload).serialize(mask=False)


@given(st.lists(st.binary(max_size=300)))
def test_frames_come_apart_again(messages: list[bytes]) -> None:
    assert payloads(b"".join(map(text_frame, messages))) == messages


class _Listener:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_congested(self) -> None:
        self.heard.append("congested")

    def on_drained(self) -> None:
        self.heard.append("drained")

    def on_closed(self) -> None:
        self.heard.append("closed")


class _Peer:
    """The send of an ASGI server whose peer reads while ``reading`` is set."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.reading = asyncio.Event()
        self.gone = False

    async def send(self, message: Any) -> None:
        await self.reading.wait()
        if self.gone:
            raise RuntimeError("gone")
        self.got.append(message)


async def test_the_plain_outlet_tells_of_a_slow_peer() -> None:
    peer, listener = _Peer(), _Listener()
    outlet = AsgiOutlet(peer.send)
    outlet.bind(listener, high_water=100, low_water=10)
    task = asyncio.create_task(outlet.run(), name="sender")
    frame = text_frame(b"a" * 40)
    for _ in range(3):
        outlet.write(frame)
    assert listener.heard == ["congested"]
    assert outlet.buffered() == 3 * len(frame)
    peer.reading.set()
    await until(lambda: len(peer.got) == 3)
    await until(lambda: listener.heard == ["congested", "drained"])
    outlet.close(4008, "slow")
    await task
    assert peer.got[-1] == {"type": "websocket.close", "code": 4008, "reason": "slow"}
    assert listener.heard == ["congested", "drained", "closed"]


async def test_a_peer_that_takes_nothing_does_not_hold_up_its_goodbye(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outlet_module, "CLOSE_GRACE_S", 0.02)
    peer, listener = _Peer(), _Listener()
    outlet = AsgiOutlet(peer.send)
    outlet.bind(listener, 100, 10)
    outlet.write(text_frame(b"a"))
    sender = asyncio.create_task(outlet.run(), name="sender")
    await until(lambda: not outlet._backlog)
    outlet.close(4008, "slow")
    await asyncio.wait_for(sender, 10)
    assert listener.heard == ["closed"]


async def test_a_peer_that_left_ends_the_plain_outlet() -> None:
    peer, listener = _Peer(), _Listener()
    peer.gone = True
    peer.reading.set()
    outlet = AsgiOutlet(peer.send)
    outlet.bind(listener, 100, 10)
    outlet.write(text_frame(b"a") + text_frame(b"b"))
    await outlet.run()
    assert listener.heard == ["closed"]
    assert peer.got == []
