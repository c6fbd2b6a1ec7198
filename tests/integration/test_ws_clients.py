"""Real WebSocket clients on real sockets, on both event loops and over the plain ASGI fallback."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
import uvloop
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.serving.limits import Limits
from tests.unit.serving.fakes import EPOCH, Running, bar_update, running, tick, until

from .ws_peers import close_code, frames, mute_client, next_message

Scenario = Callable[..., Awaitable[None]]


async def of_type(client: ClientConnection, kind: str) -> dict[str, Any]:
    while (message := await next_message(client))["type"] != kind:
        pass
    return message


async def the_requirements_snippet(api: Running) -> None:
    """What the requirements' JavaScript does, and what it expects."""
    api.hub.on_events([tick(1)])
    async with connect(f"{api.ws}/ws") as client:
        await client.send(json.dumps({"type": "heartbeat"}))
        assert (await next_message(client))["type"] == "welcome"
        snapshot = await next_message(client)
        assert (snapshot["type"], snapshot["snapshot"]) == ("market_data", True)
        answer = await of_type(client, "heartbeat_response")
        assert answer["server_status"] == "active"
        assert answer["timestamp"] == "2025-06-04T10:30:15-05:00"
        api.hub.on_events([tick(2)])
        update = await of_type(client, "market_data")
        assert update["data"]["price"] == 4100.02
        assert update["data"]["symbol"] == "USDCOP"
    await until(lambda: api.hub.counts().connected == 0)


async def one_symbol_and_unknown_ones(api: Running) -> None:
    async with connect(f"{api.ws}/ws/usdcop") as client:
        assert (await next_message(client))["symbols"] == ["USDCOP"]
    async with connect(f"{api.ws}/ws/USD/COP") as client:
        assert (await next_message(client))["symbols"] == ["USDCOP"]
    async with connect(f"{api.ws}/ws/EURUSD") as client:
        message = await next_message(client)
        assert (message["type"], message["code"]) == ("error", "unknown_symbol")
        assert "USDCOP" in message["message"]
        assert await close_code(client) == 4404
    for query, code in (
        ("mode=sometimes", 4400),
        ("since=USDCOP:1", 4400),
        ("since=EURUSD:1:1", 4404),
    ):
        async with connect(f"{api.ws}/ws?{query}") as client:
            assert (await next_message(client))["type"] == "error"
            assert await close_code(client) == code


async def bad_messages_do_not_end_the_connection(api: Running) -> None:
    async with connect(f"{api.ws}/ws") as client:
        await next_message(client)
        for text in ("{", '{"type":"dance"}', "[1]", b"\xff"):
            await client.send(text)
            assert (await next_message(client))["type"] == "error"
        await client.send(json.dumps({"type": "heartbeat"}))
        assert (await next_message(client))["type"] == "heartbeat_response"


async def oversize_and_flood(api: Running) -> None:
    async with connect(f"{api.ws}/ws") as client:
        await client.send("x" * (Limits().message_bytes + 1))
        assert await close_code(client) == 1009
    async with connect(f"{api.ws}/ws") as client:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(300):
                await client.send('{"type":"heartbeat"}')
        assert await close_code(client) == 1008


async def resume_after_a_cut(api: Running) -> None:
    got: list[int] = []
    cursor = ""
    last = 0
    for _ in range(4):
        async with connect(f"{api.ws}/ws/USDCOP{cursor}") as client:
            for _ in range(3):
                last += 1
                api.hub.on_events([tick(last), bar_update(0, last)])
                while len(got) < last:
                    message = await of_type(client, "market_data")
                    got.append(message["offset"])
            cursor = f"?since=USDCOP:{EPOCH}:{got[-1]}"
            client.transport.abort()
        last += 2
        api.hub.on_events([tick(last - 1), tick(last)])
    async with connect(f"{api.ws}/ws/USDCOP{cursor}") as client:
        while len(got) < last:
            got.append((await of_type(client, "market_data"))["offset"])
    assert got == list(range(1, last + 1))


async def goodbye(api: Running) -> None:
    async with connect(f"{api.ws}/ws") as first, connect(f"{api.ws}/ws") as second:
        await next_message(first)
        await next_message(second)
        api.hub.close_all()
        assert await close_code(first) == await close_code(second) == 1012


async def epochs_and_bars(api: Running) -> None:
    async with connect(f"{api.ws}/ws?mode=bars") as client:
        await next_message(client)
        api.hub.on_events([EpochStarted("USDCOP", EPOCH, None, None), tick(1), bar_update(0, 1)])
        assert (await next_message(client))["type"] == "epoch"
        message = await next_message(client)
        assert (message["type"], message["data"]["close"]) == ("bar", 4105.0)


SCENARIOS = [
    the_requirements_snippet,
    one_symbol_and_unknown_ones,
    bad_messages_do_not_end_the_connection,
    oversize_and_flood,
    resume_after_a_cut,
    goodbye,
    epochs_and_bars,
]


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_on_asyncio(scenario: Scenario) -> None:
    async with running() as api:
        await scenario(api)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_on_uvloop(scenario: Scenario) -> None:
    async def main() -> None:
        async with running() as api:
            await scenario(api)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_over_plain_asgi(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any ASGI server will do: uvicorn's own protocol, without our outlet in the scope."""
    plain: Any = uvicorn.Config

    def without_outlet(*args: Any, **kwargs: Any) -> uvicorn.Config:
        config: uvicorn.Config = plain(*args, **kwargs | {"ws": WebSocketsSansIOProtocol})
        return config

    monkeypatch.setattr(uvicorn, "Config", without_outlet)
    async with running() as api:
        await scenario(api)


# --- slow, vanished and rude clients ----------------------------------------------------------------


async def slow_beside_quick(api: Running) -> None:
    async with mute_client(api), connect(f"{api.ws}/ws") as quick:
        await next_message(quick)
        await until(lambda: api.hub.counts().connected == 2)
        offset = 0
        while api.hub.counts().closed_slow_total == 0:
            offset += 1
            api.hub.on_events([tick(offset)])
            message = await of_type(quick, "market_data")
            assert message["offset"] == offset, "the quick client misses nothing"
        assert api.hub.counts().slowed_total == 1
        await until(lambda: api.hub.counts().connected == 1)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_mute_client_is_closed_and_delays_nobody(loop_factory: Any) -> None:
    async def main() -> None:
        limits = Limits(high_water=8192, low_water=1024, stall_s=0.2)
        async with running(limits=limits) as api:
            await slow_beside_quick(api)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


async def test_a_slow_client_that_reads_again_is_told_exactly_what_it_missed() -> None:
    limits = Limits(high_water=8192, low_water=1024)
    async with running(limits=limits) as api, mute_client(api) as sock:
        await until(lambda: api.hub.counts().connected == 1)
        offset = 0
        while api.hub.counts().slow == 0:
            offset += 1
            api.hub.on_events([tick(offset)])
            await asyncio.sleep(0)
        api.hub.on_events([tick(offset + n) for n in range(1, 101)])
        last = offset + 100
        data = b""
        loop = asyncio.get_running_loop()
        while f'"offset":{last},'.encode() not in data:
            data += await asyncio.wait_for(loop.sock_recv(sock, 65536), 10)
        messages = [json.loads(text) for opcode, text in frames(data) if opcode == 1]
        account: list[int] = []
        for message in messages:
            if message["type"] == "market_data":
                account.append(message["offset"])
            elif message["type"] == "skipped":
                assert message["reason"] == "slow_client"
                account += range(message["from"], message["to"] + 1)
        assert account == list(range(1, last + 1))
        assert any(message["type"] == "skipped" for message in messages)
        api.hub.on_events([tick(last + 1)])
        data = await asyncio.wait_for(loop.sock_recv(sock, 65536), 10)
        assert f'"offset":{last + 1},'.encode() in data


async def test_a_client_that_reads_is_seen_to_before_anything_leaves_the_transport() -> None:
    limits = Limits(high_water=8192, low_water=1024)
    async with running(limits=limits) as api, mute_client(api) as sock:
        await until(lambda: api.hub.counts().connected == 1)
        offset = 0
        while api.hub.counts().slow == 0:
            offset += 1
            api.hub.on_events([tick(offset)])
            await asyncio.sleep(0)
        (client,) = api.hub._clients
        held, before = client.outlet.buffered(), client.outlet.untaken()
        assert before > held > 8192
        loop = asyncio.get_running_loop()
        while client.outlet.untaken() == before:
            await asyncio.wait_for(loop.sock_recv(sock, 1024), 10)
        assert client.outlet.untaken() < before


async def ticks_and_pings(api: Running) -> None:
    """Pongs are uvicorn's, ticks the hub's, the socket is small: each frame stays whole, in its order."""
    loop = asyncio.get_running_loop()
    async with mute_client(api) as sock:
        await until(lambda: api.hub.counts().connected == 1)
        offset, pings, data = 0, 40, b""

        def publish(ticks: int) -> None:
            nonlocal offset
            for _ in range(ticks):
                offset += 1
                api.hub.on_events([tick(offset)])

        for number in range(pings):
            publish(500)
            await loop.sock_sendall(sock, b"\x89\x84\0\0\0\0" + number.to_bytes(4))
            for _ in range(3):
                await asyncio.sleep(0)
            # Now there is room in the socket, and the transport has not noticed yet.
            data += sock.recv(65536)
            publish(5)
        while api.hub.counts().slow:
            data += await asyncio.wait_for(loop.sock_recv(sock, 65536), 10)
        publish(1)
        while f'"offset":{offset},'.encode() not in data or data.count(b"\x8a\x04") < pings:
            data += await asyncio.wait_for(loop.sock_recv(sock, 65536), 10)
    frames = list(_whole_frames(data[data.index(b"\r\n\r\n") + 4 :]))
    assert [int.from_bytes(p) for op, p in frames if op == 0x8A] == list(range(pings))
    account: list[int] = []
    for message in (json.loads(payload) for op, payload in frames if op == 0x81):
        if message["type"] == "market_data":
            account.append(message["offset"])
        elif message["type"] == "skipped":
            account += range(message["from"], message["to"] + 1)
    assert account == list(range(1, offset + 1))


def _whole_frames(stream: bytes) -> Iterator[tuple[int, bytes]]:
    while stream:
        op, size = stream[0], stream[1]
        assert op in (0x81, 0x8A), "a frame in the middle of another"
        start = 2
        if size == 126:
            start, size = 4, int.from_bytes(stream[2:4])
        assert size < 65536
        yield op, stream[start : start + size]
        stream = stream[start + size :]


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_pongs_stand_between_whole_frames_when_the_socket_is_full(loop_factory: Any) -> None:
    async def main() -> None:
        async with running(limits=Limits(high_water=8192, low_water=1024)) as api:
            await ticks_and_pings(api)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


async def vanishing(api: Running) -> None:
    clients = [await connect(f"{api.ws}/ws") for _ in range(20)]
    for client in clients:
        await next_message(client)
    for offset, client in enumerate(clients, 1):
        client.transport.abort()
        api.hub.on_events([tick(offset)])
        await asyncio.sleep(0)
        api.hub.on_events([bar_update(0, offset)])
    await until(lambda: api.hub.counts().connected == 0)
    async with httpx.AsyncClient(base_url=api.url) as http:
        assert (await http.get("/health")).status_code == 200


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_clients_that_vanish_mid_send_are_harmless(
    loop_factory: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        async with running() as api:
            await vanishing(api)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    assert "Traceback" not in "".join(capfd.readouterr())


async def test_invalid_utf8_is_closed_with_1007_without_a_traceback(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with running() as api, mute_client(api) as sock:
        loop = asyncio.get_running_loop()
        await until(lambda: api.hub.counts().connected == 1)
        await loop.sock_sendall(sock, bytes([0x81, 0x82, 0, 0, 0, 0, 0xFF, 0xFE]))
        await until(lambda: api.hub.counts().connected == 0)
        data = b""
        while chunk := await asyncio.wait_for(loop.sock_recv(sock, 65536), 10):
            data += chunk
        assert b"\x88" in data
        assert (1007).to_bytes(2) in data
    assert "Traceback" not in "".join(capfd.readouterr())


async def test_a_full_house_is_told() -> None:
    async with running(limits=Limits(clients=1)) as api, connect(f"{api.ws}/ws") as first:
        await next_message(first)
        async with connect(f"{api.ws}/ws") as second:
            assert (await next_message(second))["code"] == "too_many_clients"
            assert await close_code(second) == 1013


async def test_stopping_says_goodbye_even_when_nobody_reads() -> None:
    async with (
        running(shutdown_timeout_s=1) as api,
        mute_client(api),
        connect(f"{api.ws}/ws") as client,
    ):
        await next_message(client)
        await until(lambda: api.hub.counts().connected == 2)
        for offset in range(1, 20_000):
            api.hub.on_events([tick(offset)])
            if api.hub.counts().slow:
                break
            await asyncio.sleep(0)
        reader = asyncio.create_task(close_code(client))
        async with asyncio.timeout(10):
            await api.server.stop()
        assert await reader == 1012
