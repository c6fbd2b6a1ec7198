"""Clients that other people wrote, against a real server: each must see what the protocol promises."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from enhanced_websocket_service.serving.limits import Limits
from tests.requirements.facts import JAVASCRIPT
from tests.unit.serving.fakes import EPOCH, Running, bar_update, running, tick, until

from .real_clients.clients import CLIENTS, HERE, Connected, Open, running_node

clients = pytest.mark.parametrize("name", CLIENTS)


async def of_type(client: Connected, *kinds: str) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while (message := await client.receive())["type"] not in kinds:
            assert message["type"] != "closed", f"closed with {message['code']}, before {kinds}"
    return message


async def a_working_day(api: Running, opened: Open) -> None:
    """Welcome, heartbeat, ticks, bars, a resume without a hole, and both kinds of goodbye."""
    api.hub.on_events([tick(1)])
    async with opened(f"{api.ws}/ws") as client:
        assert (await of_type(client, "welcome"))["symbols"] == ["USDCOP"]
        assert (await of_type(client, "market_data"))["snapshot"] is True
        await client.send(json.dumps({"type": "heartbeat"}))
        assert (await of_type(client, "heartbeat_response"))["server_status"] == "active"
        api.hub.on_events([tick(2), bar_update(0, 2)])
        assert (await of_type(client, "market_data"))["data"]["price"] == 4100.02
        assert (await of_type(client, "bar"))["data"]["close"] == 4105.0
        await client.send("{")
        assert (await of_type(client, "error"))["code"] == "bad_json"
        await client.close()
        await until(lambda: api.hub.counts().connected == 0)
    api.hub.on_events([tick(n) for n in range(3, 101)])
    async with opened(f"{api.ws}/ws/USDCOP?since=USDCOP:{EPOCH}:2") as client:
        offsets = [(await of_type(client, "market_data"))["offset"] for _ in range(98)]
        assert offsets == list(range(3, 101))
        api.hub.close_all()
        assert await of_type(client, "closed") == {"type": "closed", "code": 1012}
    async with opened(f"{api.ws}/ws/EURUSD") as client:
        assert (await of_type(client, "error"))["code"] == "unknown_symbol"
        assert (await of_type(client, "closed"))["code"] == 4404


@clients
async def test_a_working_day(name: str) -> None:
    async with running() as api:
        await a_working_day(api, CLIENTS[name])


@clients
async def test_pings_are_answered(name: str) -> None:
    """A client that answers none would be cut after 50 ms, again and again."""
    limits = Limits(history=100)
    async with (
        running(limits=limits, ping_interval_s=0.02, ping_timeout_s=10) as api,
        CLIENTS[name](f"{api.ws}/ws") as client,
    ):
        await of_type(client, "welcome")
        for offset in range(1, 20):
            api.hub.on_events([tick(offset)])
            assert (await of_type(client, "market_data"))["offset"] == offset
            await client.send('{"type":"heartbeat"}')
            await of_type(client, "heartbeat_response")
        assert api.hub.counts().connected == 1


@clients
async def test_rude_ones_hear_why(name: str) -> None:
    async with running(limits=Limits(message_burst=5)) as api:
        async with CLIENTS[name](f"{api.ws}/ws") as client:
            await of_type(client, "welcome")
            await client.send("x" * 70_000)
            assert (await of_type(client, "closed"))["code"] == 1009
        async with CLIENTS[name](f"{api.ws}/ws") as client:
            await of_type(client, "welcome")
            for _ in range(30):
                try:
                    await client.send('{"type":"heartbeat"}')
                except Exception:  # each library says in its own way that it was closed meanwhile
                    break
            assert (await of_type(client, "closed"))["code"] == 1008


@pytest.mark.parametrize("library", [False, True], ids=["node", "node ws"])
async def test_the_requirements_javascript_as_it_is_written(library: bool, tmp_path: Path) -> None:
    snippet = tmp_path / "snippet.js"
    snippet.write_text(JAVASCRIPT)
    async with running() as api:
        api.hub.on_events([tick(1)])
        target = f"127.0.0.1:{api.server.port}" + (" ws" if library else "")
        async with running_node(
            *("--require", str(HERE / "requirements_shim.js"), str(snippet)),
            library=library,
            EWS_SHIM=target,
        ) as process:
            await said_by_the_snippet(api, process)


async def said_by_the_snippet(api: Running, process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    said: list[list[Any]] = []

    async def hear(about: str) -> list[Any]:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            while not [line for line in said if line[0] == about]:
                said.append(json.loads(await process.stdout.readline()))
        return next(line for line in said if line[0] == about)

    assert (await hear("connecting"))[1] == "ws://localhost:8080/ws"
    await hear("Connected to Enhanced WebSocket Service")
    assert (await hear("Price update:"))[1]["price"] == 4100.01
    assert (await hear("Server status:"))[1] == "active"
    await until(lambda: api.hub.counts().connected == 2)
    said.clear()
    api.hub.on_events([tick(2)])
    assert (await hear("Price update:"))[1]["price"] == 4100.02
