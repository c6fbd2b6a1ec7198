"""How others do it, each a process of its own: ``python -m benchmarks.fanout.peers NAME PORT RATE TEXT``.

Each sends ``TEXT`` to every client ``RATE`` times a second from the command ``feed`` on, in the way its
documentation shows. ``TEXT`` is a message of the service, so that all send the same number of bytes. Prints
``ready PORT``, and behind it the process that serves when that is another.
"""

import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop


async def feed(rate: float, send: Callable[[], Any], port: int, *server: int) -> None:
    """Call ``send`` at ``rate`` from the command on."""
    print("ready", port, *server, flush=True)
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


NCHAN = """
daemon off; master_process off; worker_processes 1; error_log stderr crit; pid nginx.pid;
load_module {module};
events {{ worker_connections 30000; }}
http {{
  access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi; keepalive_requests 1000000; keepalive_timeout 1h;
  server {{
    listen 127.0.0.1:{port};
    location = /ws {{ nchan_subscriber websocket; nchan_channel_id ticks; }}
    location = /publish {{ nchan_publisher; nchan_channel_id ticks; }}
  }}
}}
"""


def nchan_module() -> Path | None:
    """Where nginx has nchan; ``None`` where either is missing."""
    if shutil.which("nginx") is None:
        return None
    told = subprocess.run(["nginx", "-V"], capture_output=True, text=True, check=False).stderr
    _, _, path = told.partition("--modules-path=")
    module = Path(path.split()[0] if path else "/usr/lib/nginx/modules") / "ngx_nchan_module.so"
    return module if module.exists() else None


async def nginx_nchan(port: int, rate: float, text: str) -> None:
    module = nchan_module()
    assert module is not None
    folder = Path(tempfile.mkdtemp(prefix="nchan-"))
    config = folder / "nginx.conf"
    config.write_text(NCHAN.format(module=module, port=port))
    # It ends with us, however we end: the benchmark kills what it started.
    command = ["setpriv", "--pdeathsig", "KILL", "nginx", "-p", str(folder), "-c", str(config)]
    nginx = await asyncio.create_subprocess_exec(*command)
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            break
        except ConnectionRefusedError:
            assert nginx.returncode is None, "nginx ended"
            await asyncio.sleep(0.01)
    head = f"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(text)}\r\n\r\n"
    message = (head + text).encode()

    async def answers() -> None:
        while await reader.read(65536):
            pass

    async with asyncio.TaskGroup() as group:
        group.create_task(answers(), name="answers")
        await feed(rate, lambda: writer.write(message), port, nginx.pid)


PEERS: dict[str, Callable[[int, float, str], Awaitable[None]]] = {
    "websockets.broadcast": websockets_broadcast,
    "fastapi send_text": fastapi_send_text,
    "picows": picows_transport,
    "nginx nchan": nginx_nchan,
}


def main() -> None:
    name, port, rate, text = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(PEERS[name](int(port), float(rate), text))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
