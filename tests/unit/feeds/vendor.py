"""A vendor's socket in a few lines: real TCP, every answer decided by the test."""

import asyncio
import http
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

STAMP = 1_000_000_000


def price(value: float, stamp: int = STAMP, **more: Any) -> dict[str, Any]:
    return {"event": "price", "symbol": "USD/COP", "timestamp": stamp, "price": value, **more}


def granted(*symbols: str) -> dict[str, Any]:
    items = [{"symbol": symbol} for symbol in symbols or ("USD/COP",)]
    return {"event": "subscribe-status", "status": "ok", "success": items, "fails": None}


def refused(*symbols: str) -> dict[str, Any]:
    items = [{"symbol": symbol} for symbol in symbols or ("USD/COP",)]
    return {"event": "subscribe-status", "status": "error", "success": None, "fails": items}


class Vendor:
    """``greeting`` answers a subscription; ``handshake`` may refuse one with a status."""

    def __init__(self) -> None:
        self.greeting: list[Any] = [granted()]
        self.handshake: Callable[[str], int | None] = lambda _: None
        self.on_subscribe: Callable[[ServerConnection], Awaitable[None]] | None = None
        self.keys: list[str] = []  # one for each handshake
        self.messages: list[dict[str, Any]] = []
        self.sockets: list[ServerConnection] = []  # all, in order
        self.url = ""

    @property
    def open_sockets(self) -> int:
        return sum(socket.state.name == "OPEN" for socket in self.sockets)

    async def send(self, *messages: Any) -> None:
        """To the newest socket, as one text frame each; ``bytes`` as they are."""
        for message in messages:
            frame = message if isinstance(message, str | bytes) else json.dumps(message)
            await self.sockets[-1].send(frame)

    def count(self, action: str) -> int:
        return sum(message["action"] == action for message in self.messages)

    def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        key = request.headers.get("X-TD-APIKEY", "")
        self.keys.append(key)
        status = self.handshake(key)
        if status is None:
            return None
        body = json.dumps({"code": status, "message": "no", "status": "error"})
        return connection.respond(http.HTTPStatus(status), body)

    async def _talk(self, socket: ServerConnection) -> None:
        self.sockets.append(socket)
        try:
            async for text in socket:
                message = json.loads(text)
                self.messages.append(message)
                if message["action"] == "subscribe":
                    await self.send(*self.greeting)
                    if self.on_subscribe is not None:
                        await self.on_subscribe(socket)
        except ConnectionClosed:
            return


@asynccontextmanager
async def running_vendor() -> AsyncIterator[Vendor]:
    vendor = Vendor()
    server: Server
    async with serve(vendor._talk, "127.0.0.1", 0, process_request=vendor._check) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        vendor.url = f"ws://127.0.0.1:{port}/v1/quotes/price"
        yield vendor


async def until(condition: Callable[[], Any], limit_s: float = 40.0) -> None:
    """Give everything its turn until ``condition`` holds."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0)
