"""Peers on real sockets, by hand: what they send, and how what a server sent them is read."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.unit.serving.fakes import Running


def handshake(path: str = "/ws") -> bytes:
    return (
        b"GET %s HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        % path.encode()
    )


@contextlib.asynccontextmanager
async def unread_socket(api: Running) -> AsyncIterator[socket.socket]:
    """A connection for which little is kept of what it does not read."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", api.server.port))
        yield sock


@contextlib.asynccontextmanager
async def mute_client(api: Running, path: str = "/ws") -> AsyncIterator[socket.socket]:
    """A client that does the handshake and then reads nothing."""
    async with unread_socket(api) as sock:
        await asyncio.get_running_loop().sock_sendall(sock, handshake(path))
        yield sock


async def next_message(client: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(40):
        message: dict[str, Any] = json.loads(await client.recv())
        return message


async def close_code(client: ClientConnection) -> int | None:
    """Read to the end; the code the server closed with."""
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(40):
            while True:
                await client.recv()
    return client.close_code


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Opcode and payload of what a server sent behind its 101."""
    at = data.index(b"\r\n\r\n") + 4
    found = []
    while at < len(data):
        size, head = data[at + 1], 2
        if size == 126:
            size, head = int.from_bytes(data[at + 2 : at + 4]), 4
        found.append((data[at] & 15, data[at + head : at + head + size]))
        at += head + size
    return found
