"""How others do it, each a process of its own: ``python -m benchmarks.fanout.peers NAME PORT RATE TEXT``.

Each sends ``TEXT`` to every client ``RATE`` times a second from the command ``feed`` on, in the way its
documentation shows. ``TEXT`` is a message of the service, so that all send the same number of bytes.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop


async def feed(rate: float, send: Callable[[], Any], port: int) -> None:
    """Call ``send`` at ``rate`` from the command on."""
    print("ready", port, flush=True)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.readline()
    due = time.monotonic()
    while True:
        due += 1 / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        done = send()
        if done is not None:
            await done


async def websockets_broadcast(port: int, rate: float, text: str) -> None:
    from websockets.asyncio.server import ServerConnection, broadcast, serve

    clients: set[ServerConnection] = set()

    async def serve_one(client: ServerConnection) -> None:
        clients.add(client)
        try:
            await client.wait_closed()
        finally:
            clients.discard(client)

    async with serve(serve_one, "127.0.0.1", port, ping_interval=None, compression=None):
        await feed(rate, lambda: broadcast(clients, text), port)


async def fastapi_send_text(port: int, rate: float, text: str) -> None:
    import uvicorn
    from fastapi import FastAPI, WebSocket, WebSocketDisconnect

    app = FastAPI()
    clients: list[WebSocket] = []

    @app.websocket("/ws")
    async def serve_one(client: WebSocket) -> None:
        await client.accept()
        clients.append(client)
        try:
            while True:
                await client.receive_text()
        except WebSocketDisconnect:
            clients.remove(client)

    async def send() -> None:
        for client in clients:
            await client.send_text(text)

    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=port,
        loop="none",
        log_level="warning",
        ws_ping_interval=None,
        ws_per_message_deflate=False,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(), name="server")
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    await feed(rate, send, port)


async def picows_transport(port: int, rate: float, text: str) -> None:
    from picows import WSListener, WSMsgType, WSTransport, ws_create_server

    clients: set[WSTransport] = set()
    payload = text.encode()

    class Client(WSListener):
        def on_ws_connected(self, transport: WSTransport) -> None:
            self.transport = transport
            clients.add(transport)

        def on_ws_disconnected(self, transport: WSTransport) -> None:
            clients.discard(transport)

    def send() -> None:
        for client in clients:
            client.send(WSMsgType.TEXT, payload)

    await ws_create_server(
        lambda _: Client(),
        "127.0.0.1",
        port,
        enable_auto_ping=False,
        websocket_handshake_timeout=30,
    )
    await feed(rate, send, port)


PEERS: dict[str, Callable[[int, float, str], Awaitable[None]]] = {
    "websockets.broadcast": websockets_broadcast,
    "fastapi send_text": fastapi_send_text,
    "picows": picows_transport,
}


def main() -> None:
    name, port, rate, text = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(PEERS[name](int(port), float(rate), text))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
