"""Pings: who is dead, and who only reads slowly."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvloop
from websockets.asyncio.client import connect

from enhanced_websocket_service.serving import frames as frames_module
from enhanced_websocket_service.serving.limits import Limits
from enhanced_websocket_service.serving.tcp_state import limit_send_buffer, unread_and_acknowledged
from tests.unit.serving.fakes import running, tick, until

from .ws_peers import mute_client, next_message


async def test_pings_close_a_client_that_answers_none() -> None:
    async with running(ping_interval_s=0.05, ping_timeout_s=1.0) as api:
        async with mute_client(api):
            await until(lambda: api.hub.counts().connected == 1)
            await until(lambda: api.hub.counts().connected == 0)
        async with connect(f"{api.ws}/ws") as alive:
            await next_message(alive)
            pong = await alive.ping()
            await asyncio.wait_for(pong, 10)


async def test_one_that_takes_data_is_not_dead_because_its_pong_is_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its ping stands in the queue behind the data."""
    looks = [0]
    moving = True

    def told(_transport: asyncio.Transport) -> tuple[int, int]:
        looks[0] += moving
        return 1000, looks[0]

    monkeypatch.setattr(frames_module, "unread_and_acknowledged", told)
    async with running(ping_interval_s=0.02, ping_timeout_s=0.02) as api, mute_client(api):
        await until(lambda: looks[0] > 10)
        assert api.hub.counts().connected == 1
        moving = False
        await until(lambda: api.hub.counts().connected == 0)


async def test_one_with_nothing_to_read_must_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its host acknowledges what arrives, also when the program hangs."""
    looks = [0]

    def told(_transport: asyncio.Transport) -> tuple[int, int]:
        looks[0] += 1
        return 0, looks[0]

    monkeypatch.setattr(frames_module, "unread_and_acknowledged", told)
    async with running(ping_interval_s=0.02, ping_timeout_s=0.02) as api, mute_client(api):
        await until(lambda: api.hub.counts().connected == 1)
        await until(lambda: api.hub.counts().connected == 0)
        assert looks[0] == 2


async def test_one_that_was_slow_by_age_is_told_the_moment_it_has_taken_what_waited() -> None:
    async with running(limits=Limits(age_s=0.02)) as api, mute_client(api) as sock:
        await until(lambda: api.hub.counts().connected == 1)
        (client,) = api.hub._clients
        offset = 0
        while client.outlet.direct is not None:
            offset += 1
            api.hub.on_events([tick(offset)])
        await until(lambda: api.hub.counts().slow == 1)
        assert client.outlet.buffered() < api.hub.limits.high_water
        api.hub.on_events([tick(offset + 1), tick(offset + 2)])
        assert api.hub._ages._timer is not None
        api.hub._ages._timer.cancel()  # it looks no more: nobody but the outlet can tell
        data, loop = b"", asyncio.get_running_loop()
        while f'"offset":{offset + 2},'.encode() not in data:
            data += await asyncio.wait_for(loop.sock_recv(sock, 65536), 10)
        assert api.hub.counts().slow == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the operating system keeps more")
@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_one_that_wants_the_latest_finds_few_old_prices(loop_factory: Any) -> None:
    """However long it has read nothing: of several that wait only the newest is for it."""

    async def main() -> None:
        async with running() as api, mute_client(api, "/ws?mode=latest") as sock:
            await until(lambda: api.hub.counts().connected == 1)
            for offset in range(1, 3001):
                api.hub.on_events([tick(offset)])
            data, loop = b"", asyncio.get_running_loop()
            while b'"offset":3000,' not in data:
                data += await asyncio.wait_for(loop.sock_recv(sock, 65536), 10)
            assert data.count(b'"market_data"') < 200

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[asyncio.Transport, socket.socket]]:
    """A transport, and the socket at its other end."""
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0))
    other = socket.socket()
    other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    other.connect(listener.getsockname())
    accepted, _ = listener.accept()
    accepted.setblocking(False)
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=accepted)
    try:
        yield transport, other
    finally:
        transport.abort()
        other.close()
        listener.close()
        await asyncio.sleep(0)


async def test_what_the_operating_system_tells() -> None:
    async with pair() as (transport, other):
        limit_send_buffer(transport, 8192)
        assert unread_and_acknowledged(transport)[0] == 0
        transport.write(bytes(1_000_000))
        assert transport.get_write_buffer_size() > 900_000, "its own buffer is bounded"
        unread, acknowledged = unread_and_acknowledged(transport)
        assert unread >= transport.get_write_buffer_size()
        if sys.platform != "linux":
            return
        other.recv(65536)
        await until(lambda: unread_and_acknowledged(transport)[1] > acknowledged)
        assert unread_and_acknowledged(transport)[0] < 1_000_000


async def test_a_connection_that_is_gone_tells_zeros() -> None:
    async with pair() as (transport, _):
        transport.abort()
        await until(lambda: transport.get_extra_info("socket").fileno() == -1)
        limit_send_buffer(transport, 8192)
        assert unread_and_acknowledged(transport) == (0, 0)
