"""A WebSocket client that hides nothing: it sees each byte, each FIN and each RST."""

import asyncio
import json
import socket
from typing import Any
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from tests.waiting import eventually

WITHIN_S = 5.0


class RawClient:
    """One TCP connection that has asked for the upgrade.

    :ivar chunks: the bytes of each read after the handshake.
    :ivar ended: ``fin`` or ``rst`` once the server's side has ended.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._protocol = ClientProtocol(parse_uri(url))
        self._socket = socket.socket()
        self._reader: asyncio.Task[None] | None = None
        self.response: Response | None = None
        self.frames: list[Frame] = []
        self.chunks: list[bytes] = []
        self.ended = ""

    async def __aenter__(self) -> "RawClient":
        await self.ask()
        await self.until(lambda: self.response is not None, "an answer to the handshake")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.give_up()

    async def ask(self) -> None:
        """Connect and ask for the upgrade, without waiting for the answer."""
        split = urlsplit(self._url)
        self._socket.setblocking(False)
        await asyncio.get_running_loop().sock_connect(
            self._socket, (split.hostname or "", split.port or 0)
        )
        self._protocol.send_request(self._protocol.connect())
        await self._flush()
        self._reader = asyncio.create_task(self._read(), name="raw-client")

    async def give_up(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait({self._reader})
        self._socket.close()

    async def send(self, action: str, symbols: str = "") -> None:
        message: dict[str, Any] = {"action": action}
        if symbols:
            message["params"] = {"symbols": symbols}
        self._protocol.send_text(json.dumps(message).encode())
        await self._flush()

    async def subscribe(self, symbols: str = "USD/COP") -> dict[str, Any]:
        """Subscribe and wait for the status."""
        before = len(self.messages())
        await self.send("subscribe", symbols)
        await self.until(lambda: len(self.messages()) > before, "subscribe-status")
        status: dict[str, Any] = self.messages()[before]
        return status

    async def ping(self) -> None:
        self._protocol.send_ping(b"ping")
        await self._flush()

    def messages(self) -> list[Any]:
        """The text frames so far."""
        return [json.loads(one.data) for one in self.frames if one.opcode is Opcode.TEXT]

    def prices(self, symbol: str = "USD/COP") -> list[Any]:
        return [one["price"] for one in self.messages() if one.get("symbol") == symbol]

    @property
    def pongs(self) -> int:
        return sum(frame.opcode is Opcode.PONG for frame in self.frames)

    @property
    def close_code(self) -> int | None:
        received = self._protocol.close_rcvd
        return None if received is None else received.code

    async def until(self, condition: Any, what: str) -> None:
        async def look() -> bool | None:
            return condition() or None

        await eventually(look, WITHIN_S, lambda: f"{what}; {self.messages()} {self.ended}")

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(self._socket, 65_536):
                self._protocol.receive_data(data)
                if self.response is not None:
                    self.chunks.append(data)
                for event in self._protocol.events_received():
                    if isinstance(event, Response):
                        self.response = event
                    elif isinstance(event, Frame):
                        self.frames.append(event)
            self.ended = "fin"
            self._protocol.receive_eof()  # a refusal's body ends with the connection
            for event in self._protocol.events_received():
                if isinstance(event, Response):
                    self.response = event
        except ConnectionResetError:
            self.ended = "rst"

    async def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                await asyncio.get_running_loop().sock_sendall(self._socket, data)
