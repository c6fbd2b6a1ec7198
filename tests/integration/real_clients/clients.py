"""Clients that other people wrote, behind one small interface."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import picows
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

HERE = Path(__file__).parent
NODE_MODULES = os.pathsep.join(
    filter(None, (os.environ.get("NODE_PATH"), "/usr/lib/node_modules", "/usr/share/nodejs"))
)
_OLD_NODE = 22
"""From this version on WebSocket is there without being asked for."""


class Connected(Protocol):
    """One open connection. ``receive`` returns ``{"type": "closed", "code": ...}`` at its end."""

    async def send(self, text: str) -> None: ...
    async def receive(self) -> dict[str, Any]: ...
    async def close(self) -> None: ...


Open = Callable[[str], contextlib.AbstractAsyncContextManager[Connected]]


class _Websockets:
    def __init__(self, client: Any) -> None:
        self._client = client

    async def send(self, text: str) -> None:
        await self._client.send(text)

    async def receive(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(await self._client.recv())
        except ConnectionClosed:
            return {"type": "closed", "code": self._client.close_code}
        return found

    async def close(self) -> None:
        await self._client.close()


@contextlib.asynccontextmanager
async def websockets_client(url: str) -> AsyncIterator[Connected]:
    async with connect(url) as client:
        yield _Websockets(client)


class _Aiohttp:
    def __init__(self, client: aiohttp.ClientWebSocketResponse) -> None:
        self._client = client

    async def send(self, text: str) -> None:
        await self._client.send_str(text)

    async def receive(self) -> dict[str, Any]:
        message = await self._client.receive()
        if message.type is aiohttp.WSMsgType.TEXT:
            found: dict[str, Any] = json.loads(message.data)
            return found
        return {"type": "closed", "code": self._client.close_code}

    async def close(self) -> None:
        await self._client.close()


@contextlib.asynccontextmanager
async def aiohttp_client(url: str) -> AsyncIterator[Connected]:
    async with (
        aiohttp.ClientSession() as session,
        # 15: the window it offers; it inflates what the server compresses.
        session.ws_connect(url, compress=15) as client,
    ):
        yield _Aiohttp(client)


class _Picows(picows.WSListener):
    def __init__(self) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.transport: Any = None
        self._code: int | None = None

    def on_ws_connected(self, transport: Any) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        if frame.msg_type == picows.WSMsgType.TEXT:
            self.messages.put_nowait(json.loads(frame.get_payload_as_utf8_text()))
        elif frame.msg_type == picows.WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        elif frame.msg_type == picows.WSMsgType.CLOSE:
            self._code = int(frame.get_close_code())
            transport.send_close(frame.get_close_code())
            transport.disconnect()

    def on_ws_disconnected(self, transport: Any) -> None:
        self.messages.put_nowait({"type": "closed", "code": self._code})

    async def send(self, text: str) -> None:
        self.transport.send(picows.WSMsgType.TEXT, text.encode())

    async def receive(self) -> dict[str, Any]:
        return await self.messages.get()

    async def close(self) -> None:
        self.transport.send_close(picows.WSCloseCode.OK)
        await self.transport.wait_disconnected()


@contextlib.asynccontextmanager
async def picows_client(url: str) -> AsyncIterator[Connected]:
    transport, listener = await picows.ws_connect(_Picows, url)
    assert isinstance(listener, _Picows)
    try:
        yield listener
    finally:
        transport.disconnect()
        await transport.wait_disconnected()


class _Node:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout

    async def send(self, text: str) -> None:
        self._in.write(text.encode() + b"\n")
        await self._in.drain()

    async def receive(self) -> dict[str, Any]:
        line = await self._out.readline()
        found: dict[str, Any] = json.loads(line) if line else {"type": "closed", "code": None}
        return found

    async def close(self) -> None:
        await self.send(":close")


def node_command(*, library: bool) -> list[str]:
    """How to run node with a WebSocket; skips where there is none. ``library``: the package ``ws``."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, which is not on this machine")
    if library:
        known = subprocess.run(
            [node, "-e", "require.resolve('ws')"],
            env=os.environ | {"NODE_PATH": NODE_MODULES},
            capture_output=True,
            check=False,
        )
        if known.returncode:
            pytest.skip("needs the npm package ws; install it and name its folder in NODE_PATH")
        return [node]
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True)
    major = int(version.stdout[1:].split(".")[0])
    if major < 20:
        pytest.skip(f"needs a node with a WebSocket of its own; this is {version.stdout.strip()}")
    return [node] if major >= _OLD_NODE else [node, "--experimental-websocket", "--no-warnings"]


@contextlib.asynccontextmanager
async def running_node(
    *arguments: str, library: bool, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *node_command(library=library),
        *arguments,
        env=os.environ | {"NODE_PATH": NODE_MODULES} | environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        assert process.stdin is not None
        process.stdin.close()


@contextlib.asynccontextmanager
async def _node_client(url: str, *, library: bool) -> AsyncIterator[Connected]:
    arguments = [str(HERE / "client.js"), url, *(["ws"] if library else [])]
    async with running_node(*arguments, library=library) as process:
        client = _Node(process)
        opened = await client.receive()
        assert opened["type"] == "opened", opened
        yield client


def node_client(url: str) -> contextlib.AbstractAsyncContextManager[Connected]:
    return _node_client(url, library=False)


def node_ws_client(url: str) -> contextlib.AbstractAsyncContextManager[Connected]:
    return _node_client(url, library=True)


CLIENTS: dict[str, Open] = {
    "websockets": websockets_client,
    "aiohttp": aiohttp_client,
    "picows": picows_client,
    "node": node_client,
    "node ws": node_ws_client,
}
