"""Limits on real sockets: what a client may not do, and what it is told."""

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import uvloop
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from enhanced_websocket_service.serving import frames as frames_module
from enhanced_websocket_service.serving.limits import Limits
from tests.unit.serving.fakes import FakeService, Running, running, tick, until

from .ws_peers import close_code, frames, handshake, next_message, unread_socket


@contextlib.asynccontextmanager
async def raw(api: Running) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def answer(reader: asyncio.StreamReader) -> bytes:
    """Everything until the server ends the connection."""
    async with asyncio.timeout(40):
        with contextlib.suppress(ConnectionError):
            return await reader.read()
    return b""


def refused(api: Running) -> dict[str, int]:
    return api.server.admission.refusals


async def nothing_is_left(api: Running) -> None:
    await until(lambda: api.server.admission.connections == 0)
    assert api.hub.counts().connected == 0


# --- Origin ---------------------------------------------------------------------------------------


async def test_pages_of_other_origins_are_refused_before_the_handshake(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(cors_origins=["https://dashboard.example"]) as api:
        with pytest.raises(InvalidStatus) as refusal:
            async with connect(f"{api.ws}/ws", origin="https://evil.example"):
                pass
        response = refusal.value.response
        assert response.status_code == 403
        said = json.loads(response.body or b"{}")
        assert said["error"] == "origin_not_allowed"
        assert "CORS_ORIGINS" in said["detail"]
        own = f"http://127.0.0.1:{api.server.port}"
        for origin in (None, own, "https://dashboard.example"):
            async with connect(f"{api.ws}/ws/USDCOP", origin=origin) as client:
                assert (await next_message(client))["type"] == "welcome"
        assert refused(api) == {"origin": 1}
        await nothing_is_left(api)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# --- places ---------------------------------------------------------------------------------------


async def test_one_address_has_only_so_many_clients() -> None:
    async with running(limits=Limits(clients_per_address=2)) as api:
        async with connect(f"{api.ws}/ws") as first, connect(f"{api.ws}/ws") as second:
            assert (
                (await next_message(first))["type"]
                == (await next_message(second))["type"]
                == "welcome"
            )
            async with connect(f"{api.ws}/ws") as third:
                told = await next_message(third)
                assert (told["type"], told["code"]) == ("error", "too_many_from_address")
                assert await close_code(third) == 1013
        await nothing_is_left(api)
        async with connect(f"{api.ws}/ws") as again:
            assert (await next_message(again))["type"] == "welcome"


async def test_a_trusted_proxy_names_the_client() -> None:
    limits = Limits(clients_per_address=1)
    async with running(limits=limits, trusted_proxies=["127.0.0.1"]) as api:
        one, other = ({"X-Forwarded-For": f"192.0.2.{n}"} for n in (1, 2))
        async with (
            connect(f"{api.ws}/ws", additional_headers=one) as first,
            connect(f"{api.ws}/ws", additional_headers=other) as second,
            connect(f"{api.ws}/ws", additional_headers=one) as third,
        ):
            assert (
                (await next_message(first))["type"]
                == (await next_message(second))["type"]
                == "welcome"
            )
            assert (await next_message(third))["code"] == "too_many_from_address"
    async with (
        running(limits=limits) as api,
        connect(f"{api.ws}/ws", additional_headers=one) as first,
        connect(f"{api.ws}/ws", additional_headers=other) as second,
    ):
        assert (await next_message(first))["type"] == "welcome"
        assert (await next_message(second))["code"] == "too_many_from_address", "anyone may say so"


async def test_connections_are_limited_before_they_say_anything() -> None:
    async with running() as api, contextlib.AsyncExitStack() as stack:
        api.server.admission.connections_max = 3
        silent = [await stack.enter_async_context(raw(api)) for _ in range(3)]
        await until(lambda: api.server.admission.connections == 3)
        reader, _ = await stack.enter_async_context(raw(api))
        assert (await answer(reader)).startswith(b"HTTP/1.1 503 ")
        assert refused(api) == {"too_many_connections": 1}
        silent[0][1].close()
        await until(lambda: api.server.admission.connections == 2)
        async with httpx.AsyncClient(base_url=api.url) as http:
            shown = (await http.get("/status")).json()["connections"]
            assert shown["open"] == 3
            assert shown["refused_total"] == {"too_many_connections": 1}
            text = (await http.get("/metrics")).text
            assert 'ews_connections_refused_total{reason="too_many_connections"} 1.0' in text


# --- requests that do not arrive ------------------------------------------------------------------

QUICK = replace(Limits(), handshake_s=0.05)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"\r\n", b"HTTP/1.1 408 "),
        (b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgr", b"HTTP/1.1 408 "),
        (b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n12", b"HTTP/1.1 405 "),
    ],
)
async def test_half_requests_end(sent: bytes, status: bytes) -> None:
    async with running(limits=QUICK) as api, raw(api) as (reader, writer):
        writer.write(sent)
        assert (await answer(reader)).startswith(status)
        await nothing_is_left(api)
        assert refused(api) == {"slow_request" if sent else "silent": 1}


async def test_a_connection_is_not_kept_by_bytes_between_requests() -> None:
    async with running(limits=QUICK) as api, raw(api) as (reader, writer):
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        await reader.readuntil(b'"}')
        writer.write(b"\r\n")
        assert b"HTTP/1.1 408 " in await answer(reader)
        await nothing_is_left(api)


async def test_an_endless_head_is_cut() -> None:
    async with running() as api, raw(api) as (reader, writer):
        writer.write(b"GET /ws HTTP/1.1\r\nHost: x\r\n" + b"X-Pad: 0123456789\r\n" * 4000)
        assert (await answer(reader)).startswith(b"HTTP/1.1 431 ")
        await nothing_is_left(api)


async def test_a_handshake_with_a_line_too_long_is_answered() -> None:
    async with running() as api, raw(api) as (reader, writer):
        writer.write(handshake()[:-2] + b"X-Pad: " + b"x" * 10_000 + b"\r\n\r\n")
        assert (await answer(reader)).startswith(b"HTTP/1.1 431 ")
        assert refused(api) == {"bad_handshake": 1}
        await nothing_is_left(api)


# --- answers that are not taken -------------------------------------------------------------------


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_one_that_takes_nothing_of_its_answer_is_cut(loop_factory: Any) -> None:
    """Closing would wait for it, with a place and megabytes, for as long as it likes."""
    service = FakeService(stored_ticks=[tick(n) for n in range(1, 2001)])

    async def main() -> None:
        async with running(service, replace(Limits(), stall_s=0.05)) as api:
            keep_little_to_send(api)
            async with unread_socket(api) as sock:
                request = b"GET /market/ticks?limit=2000 HTTP/1.1\r\nHost: x\r\n\r\n"
                await asyncio.get_running_loop().sock_sendall(sock, request)
                await until(lambda: refused(api) == {"unread_answer": 1})
                await nothing_is_left(api)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def keep_little_to_send(api: Running) -> None:
    """The operating system, for connections to come: it would take the whole answer."""
    assert api.server._server is not None
    (server,) = api.server._server.servers
    with socket.socket(fileno=os.dup(server.sockets[0].fileno())) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


# --- frames ---------------------------------------------------------------------------------------


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A client's frame with the mask 0."""
    assert len(payload) < 126
    return bytes((opcode | fin << 7, 128 | len(payload), 0, 0, 0, 0)) + payload


@pytest.mark.parametrize(
    "flood",
    [
        masked(9, b"x") * 20_000,
        masked(10) * 20_000,
        masked(1, fin=False) + masked(0, fin=False) * 20_000,
        masked(1, b"{}") * 20_000,
    ],
    ids=["pings", "pongs", "empty fragments", "messages"],
)
async def test_floods_of_any_frame_end_with_1008(flood: bytes) -> None:
    async with running() as api, raw(api) as (reader, writer):
        writer.write(handshake())
        await until(lambda: api.hub.counts().connected == 1)
        writer.write(flood)
        got = frames(await answer(reader))
        assert got[-1] == (8, (1008).to_bytes(2) + b"too many frames")
        assert sum(opcode == 10 for opcode, _ in got) <= 2 * Limits().message_burst + 100
        writer.close()
        await nothing_is_left(api)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_huge_message_still_hears_why(loop_factory: Any) -> None:
    """A socket closed over unread bytes resets, and the reset would overtake the close frame."""

    async def main() -> None:
        async with running() as api, connect(f"{api.ws}/ws") as client:
            with contextlib.suppress(ConnectionClosed):
                await client.send("x" * 8_000_000)
            assert await close_code(client) == 1009
            await nothing_is_left(api)
            async with httpx.AsyncClient(base_url=api.url) as http:
                text = (await http.get("/metrics")).text
                assert 'ews_clients_closed_total{code="1009"} 1.0' in text

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


async def test_frames_sent_before_the_answer_are_read_after_it() -> None:
    async with running() as api, raw(api) as (reader, writer):
        writer.write(handshake() + masked(9, b"early") + masked(8, (1000).to_bytes(2)))
        data = await answer(reader)
        assert data.startswith(b"HTTP/1.1 101 ")
        found = frames(data)
        assert (10, b"early") in found
        assert found[-1] == (8, (1000).to_bytes(2))
        writer.close()
        await nothing_is_left(api)


async def test_everything_in_one_read_is_answered_in_its_order() -> None:
    async with running() as api, raw(api) as (reader, writer):
        writer.write(handshake())
        await until(lambda: api.hub.counts().connected == 1)
        writer.write(masked(9, b"1") + masked(1, b"{") + masked(9, b"2") + masked(8))
        answers = frames(await answer(reader))[1:]
        assert answers[-1] == (8, b"")
        pongs = [payload for opcode, payload in answers if opcode == 10]
        assert pongs == [b"1", b"2"]
        assert len(answers) <= 4


@pytest.mark.parametrize("last_word", [masked(8, (1000).to_bytes(2)), None], ids=["close", "eof"])
async def test_a_peer_that_takes_nothing_is_cut_after_its_goodbye(
    last_word: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames_module, "CLOSE_GRACE_S", 0.1)
    async with (
        running(limits=Limits(high_water=8192, low_water=1024)) as api,
        raw(api) as (_, writer),
    ):
        writer.write(handshake())
        await until(lambda: api.hub.counts().connected == 1)
        offset = 0
        while api.hub.counts().slow == 0:
            offset += 1
            api.hub.on_events([tick(offset)])
            await asyncio.sleep(0)
        if last_word is None:
            writer.write_eof()
        else:
            writer.write(last_word)
        await nothing_is_left(api)
