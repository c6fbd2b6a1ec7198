"""Where a client's frames go: the contract between the hub and a connection, and the plain-ASGI kind.

An outlet takes bytes that are whole, unmasked WebSocket frames. It never blocks: when the peer reads too
slowly it says ``on_congested`` and the hub stops writing until ``on_drained``. While nothing waits in it,
an outlet may have a shorter way, ``direct``.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Protocol

from .direct import BorrowedSocket

CLOSE_GRACE_S: Final = 5.0
"""Real seconds a peer has to answer our close frame before its connection is cut."""

_CLOSED_BY_PEER = (OSError, RuntimeError)

Writer = Callable[[bytes], None]


class OutletListener(Protocol):
    """What an outlet tells its owner. All calls are synchronous and may come from within ``write``."""

    def on_congested(self) -> None:
        """More than the high-water mark waits to be sent."""
        ...

    def on_drained(self) -> None:
        """What waited has gone down to the low-water mark."""
        ...

    def on_rerouted(self) -> None:
        """``direct`` is another one from now on."""
        ...

    def on_closed(self) -> None:
        """No frame may be written any more: the peer left, or the closing handshake began."""
        ...


class Outlet(Protocol):
    """One client's connection, seen from the hub."""

    @property
    def deflates(self) -> bool:
        """Whether the peer takes frames as ``deflate.deflated`` makes them, among others."""
        ...

    def bind(self, listener: OutletListener, high_water: int, low_water: int) -> None:
        """Name the owner; marks in bytes. Called once, after the handshake, before any write."""
        ...

    def write(self, frames: bytes, /) -> None:
        """Hand over whole frames; returns at once. Only between ``bind`` and ``on_closed``."""
        ...

    @property
    def direct(self) -> BorrowedSocket | None:
        """A shorter way than ``write``, while there is one. It may take less than it is given: the
        rest goes to ``write`` before anything else does."""
        ...

    def buffered(self) -> int:
        """Bytes handed over that the operating system has not taken yet."""
        ...

    def untaken(self) -> int:
        """Bytes handed over that the peer's side has not taken, as far as that can be known."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake; the connection is cut when the peer does not answer it."""
        ...


_HEADS = tuple(b"\x81\x7e" + size.to_bytes(2) for size in range(126, 512))
"""Of the frames that prices and bars take."""


def text_frame(payload: bytes) -> bytes:
    """``payload`` (UTF-8) as one final, unmasked text frame (RFC 6455, 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2) + payload
    return b"\x81\x7f" + size.to_bytes(8) + payload


def text_frames(payloads: Iterable[bytes]) -> list[bytes]:
    """``text_frame`` of each."""
    heads = _HEADS
    return [
        heads[size - 126] + payload if 126 <= (size := len(payload)) < 512 else text_frame(payload)
        for payload in payloads
    ]


def payloads(frames: bytes) -> list[bytes]:
    """The inverse of ``text_frame`` for any number of frames in a row."""
    found: list[bytes] = []
    at = 0
    while at < len(frames):
        size, header = frames[at + 1], 2
        if size == 126:
            size, header = int.from_bytes(frames[at + 2 : at + 4]), 4
        elif size == 127:
            size, header = int.from_bytes(frames[at + 2 : at + 10]), 10
        found.append(frames[at + header : at + header + size])
        at += header + size
    return found


class AsgiOutlet:
    """An outlet for any ASGI server: a bounded backlog that ``run`` sends message by message.

    The hub keeps the backlog bounded: it stops at ``on_congested``, and closes past its hard limit.
    """

    deflates = False  # the server between may compress or not, as it likes
    direct: BorrowedSocket | None = None

    def __init__(self, send: Callable[[Any], Awaitable[None]]) -> None:
        self._send = send
        self._listener: OutletListener | None = None
        self._backlog: deque[bytes] = deque()
        self._bytes = 0
        self._high = self._low = 0
        self._congested = False
        self._closing: tuple[int, str] | None = None
        self._wake = asyncio.Event()
        self._patience: asyncio.Timeout | None = None  # of ``run``: without an end until ``close``

    def bind(self, listener: OutletListener, high_water: int, low_water: int) -> None:
        self._listener, self._high, self._low = listener, high_water, low_water

    def write(self, frames: bytes, /) -> None:
        if self._closing is not None:
            return
        self._backlog.append(frames)
        self._bytes += len(frames)
        self._wake.set()
        if self._bytes > self._high and not self._congested:
            self._congested = True
            if self._listener is not None:
                self._listener.on_congested()

    def buffered(self) -> int:
        return self._bytes

    def untaken(self) -> int:
        return self._bytes

    def close(self, code: int, reason: str) -> None:
        if self._closing is None:
            self._closing = (code, reason)
            self._wake.set()
            if self._patience is not None:
                self._patience.reschedule(asyncio.get_running_loop().time() + CLOSE_GRACE_S)
            self._closed()

    async def run(self) -> None:
        """Send until the client is gone or ``close`` was called; cancelling loses what waits."""
        try:
            async with asyncio.timeout(None) as self._patience:
                while True:
                    await self._wake.wait()
                    self._wake.clear()
                    await self._send_all()
                    if self._closing is not None:
                        break
                code, reason = self._closing
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except _CLOSED_BY_PEER:
            self._closed()  # how ASGI servers say that the peer has gone
        finally:
            self._patience = None

    async def _send_all(self) -> None:
        while self._backlog:
            frames = self._backlog.popleft()
            for payload in payloads(frames):
                await self._send({"type": "websocket.send", "text": payload.decode()})
            self._bytes -= len(frames)
            if self._congested and self._bytes <= self._low:
                self._congested = False
                if self._listener is not None:
                    self._listener.on_drained()

    def _closed(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.on_closed()
