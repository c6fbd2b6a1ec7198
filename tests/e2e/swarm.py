"""Many WebSocket clients in one process, on bare asyncio protocols: cheap enough not to be the limit.

Each keeps its own account, by rules of its own: of every tick it wants, exactly one copy or one mention in
``skipped``, in order, across all its connections. Faults are collected as sentences.
"""

import asyncio
import base64
import json
import os
import random
import re
import socket
from collections import Counter
from collections.abc import Callable
from typing import Final, cast

_PLACE: Final = re.compile(rb'"epoch":(\d+),"offset":(\d+)')
_TICK: Final = b'{"type":"market_data"'
_SNAPSHOT: Final = b'"snapshot":true'
_NO_STATUS, _ABNORMAL = 1005, 1006
"""What RFC 6455 calls a close frame without a code, and an end without a close frame."""
MOST_FAULTS: Final = 20


class Member:
    """One client: its account, and the connection it has at the moment."""

    def __init__(self, name: str, faults: list[str]) -> None:
        self.name = name
        self.cursor: tuple[int, int] | None = None
        self.began_at: tuple[int, int] | None = None
        self.received = 0
        self.connections = 0
        self.skipped: Counter[str] = Counter()
        self.skips: list[tuple[int, int, int, str]] = []
        self.closes: Counter[int] = Counter()  # by the other side
        self.connection: Connection | None = None
        self._told_open = False
        self._faults = faults

    def fault(self, text: str) -> None:
        if len(self._faults) < MOST_FAULTS:
            self._faults.append(f"{self.name}: {text}")

    def tick(self, place: tuple[int, int]) -> None:
        self.received += 1
        self._advance(place[0], place[1], place[1], "tick")

    def other(self, payload: bytes) -> None:
        """Any message but a tick."""
        message = json.loads(payload)
        match message["type"]:
            case "welcome":
                if self.cursor is None and message["epoch"] is not None:
                    self.cursor = (message["epoch"], next(iter(message["offsets"].values())))
                    self.began_at = self.cursor
            case "skipped":
                epoch, first, last = message["epoch"], message["from"], message["to"]
                if last is None:
                    self.skipped["without end"] += 1
                    self._advance(epoch, first, first - 1, "skipped")
                    self._told_open = True
                    return
                self.skipped[message["reason"]] += last - first + 1
                self.skips.append((epoch, first, last, message["reason"]))
                self._advance(epoch, first, last, "skipped")
            case "epoch":
                self._epoch(message)
            case "error":
                self.fault(f"{message['code']}: {message['message']}")

    def _epoch(self, message: dict[str, int | None]) -> None:
        epoch, previous = message["epoch"], message["previous_epoch"]
        last = message["previous_last_offset"]
        assert epoch is not None
        if self.cursor is not None:
            if epoch <= self.cursor[0]:
                self.fault(f"epoch {epoch} after {self.cursor}")
                return
            known = previous == self.cursor[0] and last == self.cursor[1]
            if not known and not self._told_open and (self.cursor[1] or previous == self.cursor[0]):
                self.fault(f"epoch {epoch} begins behind {previous}:{last}, it has {self.cursor}")
        self._told_open = False
        self.cursor = (epoch, 0)

    def _advance(self, epoch: int, first: int, last: int, what: str) -> None:
        if self.cursor is not None:
            known, offset = self.cursor
            if epoch != known:
                self.fault(f"{what} {epoch}:{first} after {known}:{offset} without an epoch")
            elif first <= offset:
                self.fault(f"double: {what} {epoch}:{first}-{last} after {known}:{offset}")
            elif first > offset + 1:
                self.fault(f"hole: {what} {epoch}:{first} after {known}:{offset}")
        self.cursor = (epoch, max(last, first - 1))


class Connection(asyncio.Protocol):
    """One WebSocket connection of a member; reads at ``bytes_per_s`` where that is given."""

    def __init__(self, member: Member, path: str, bytes_per_s: float | None) -> None:
        self.member = member
        self.ended = asyncio.get_running_loop().create_future()
        self.opened = False
        self._path = path
        self._bytes_per_s = bytes_per_s
        self._data = b""
        self._left = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is one without being derived from it.
        made = self._transport = cast(asyncio.Transport, transport)
        key = base64.b64encode(os.urandom(16)).decode()
        made.write(
            f"GET {self._path} HTTP/1.1\r\nHost: swarm\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        come = len(data)
        data = self._data + data if self._data else data
        at = 0
        if not self.opened:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._data = data
                return
            if not data.startswith(b"HTTP/1.1 101"):
                self.abort()
                return
            self.opened, at = True, end + 4
            self.member.connections += 1
        size = len(data)
        while size - at >= 2:
            length, header = data[at + 1], 2
            if length == 126:
                header = 4
                if size - at < 4:
                    break
                length = int.from_bytes(data[at + 2 : at + 4])
            elif length == 127:
                header = 10
                if size - at < 10:
                    break
                length = int.from_bytes(data[at + 2 : at + 10])
            if size - at < header + length:
                break
            self._frame(data[at] & 15, data[at + header : at + header + length])
            at += header + length
        self._data = data[at:]
        if self._bytes_per_s is not None:
            self._rest(come)

    def _frame(self, opcode: int, payload: bytes) -> None:
        member = self.member
        if opcode == 1:
            if not payload.startswith(_TICK):
                member.other(payload)
                return
            if _SNAPSHOT in payload:
                return
            found = _PLACE.search(payload)
            assert found is not None
            member.tick((int(found[1]), int(found[2])))
        elif opcode == 9:
            self._send(10, payload)
        elif opcode == 8:
            member.closes[int.from_bytes(payload[:2]) if payload else _NO_STATUS] += 1
            self._send(8, payload[:2])
            self.abort()

    def _send(self, opcode: int, payload: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            mask = b"\0\0\0\0"  # allowed, and spares the XOR
            self._transport.write(bytes((0x80 | opcode, 0x80 | len(payload))) + mask + payload)

    def _rest(self, size: int) -> None:
        """Read no more until so many bytes are due."""
        transport = self._transport
        assert transport is not None
        assert self._bytes_per_s is not None
        if transport.is_closing():
            return
        transport.pause_reading()
        if self._bytes_per_s > 0:
            asyncio.get_running_loop().call_later(size / self._bytes_per_s, self._read_on)

    def _read_on(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def read_at(self, bytes_per_s: float | None) -> None:
        """From now on at that pace; ``None``: as fast as possible."""
        self._bytes_per_s = bytes_per_s
        if bytes_per_s is None:
            self._read_on()

    def abort(self) -> None:
        self._left = True
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if not self._left:
            self.member.closes[_ABNORMAL] += 1
        if not self.ended.done():
            self.ended.set_result(None)


async def visit(
    member: Member,
    port: int,
    symbol: str,
    *,
    bytes_per_s: float | None = None,
    receive_buffer: int = 0,
    leave: Callable[[], float] | None = None,
) -> None:
    """One connection of ``member``, resumed where it was; returns when it has ended.

    :param leave: after how many real seconds the member cuts it.
    """
    path = f"/ws/{symbol}"
    if member.cursor is not None:
        path += f"?since={member.cursor[0]}:{member.cursor[1]}"
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await loop.sock_connect(sock, ("127.0.0.1", port))
    except OSError:
        sock.close()
        return
    _, connection = await loop.create_connection(
        lambda: Connection(member, path, bytes_per_s), sock=sock
    )
    member.connection = connection
    cut = None if leave is None else loop.call_later(leave(), connection.abort)
    try:
        await connection.ended
    finally:
        member.connection = None
        connection.abort()
        if cut is not None:
            cut.cancel()


async def keep_visiting(
    member: Member, stop: asyncio.Event, chance: random.Random, pause_s: float, **visiting: object
) -> None:
    """Visit again and again until ``stop``; the last connection is left as it is."""
    while not stop.is_set():
        await visit(member, **visiting)  # type: ignore[arg-type]
        await asyncio.sleep(chance.uniform(0.02, pause_s))
