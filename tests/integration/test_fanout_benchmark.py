"""The fan-out benchmark itself: its C programs and the service agree on what a message is."""

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from benchmarks.fanout.running import FLIGHT, Bench, Plan, bench
from enhanced_websocket_service.serving import wire
from enhanced_websocket_service.serving.outlet import text_frame
from tests.unit.serving.fakes import EPOCH, NOON, tick

PING = b"\x89\x02hi"
PONG = b"\x8a\x82\x00\x00\x00\x00hi"


@pytest.fixture(scope="module")
def made() -> Iterator[Bench]:
    try:
        with bench() as ready:
            yield ready
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["floor", "service", "whole path"])
def test_what_is_sent_is_counted_and_timed(made: Bench, name: str) -> None:
    plan = Plan(clients=5, rate=40, seconds=2.0, settle=1.0, burst=2, stamps=True)
    figures = made.run(name, plan)
    assert figures["connected"] == 5
    assert figures["lost"] == 0
    assert figures["messages"] >= 5
    assert figures["latencies"] > 0
    assert 0 < figures["p50_us"] <= figures["p99_us"] <= figures["max_us"]


async def test_the_load_client_checks_what_a_client_of_one_symbol_gets(made: Bench) -> None:
    messages = [
        wire.welcome(["USDCOP"], EPOCH, {"USDCOP": 10}, "active", NOON),
        wire.market_data(tick(10), snapshot=True),
        wire.market_data(tick(11)),
        wire.market_data(tick(12)),
        wire.market_data(tick(12)),
        wire.skipped("USDCOP", EPOCH, 13, 14, "slow_client"),
        wire.market_data(tick(15)),
        wire.epoch_started("USDCOP", EPOCH + 1, EPOCH, 15),
        wire.market_data(tick(1, epoch=EPOCH + 1)),
        wire.market_data(tick(3, epoch=EPOCH + 1)),
    ]
    answered = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
            writer.write(b"".join(map(text_frame, messages)) + PING)
            assert await reader.readexactly(len(PONG)) == PONG
            answered.set()
            await reader.read()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        load = await asyncio.create_subprocess_exec(
            *(made.scratch / "load", str(port), "/ws/USDCOP", "1", "0", "0", str(FLIGHT)),
            *(str(os.getpid()), "-"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert load.stdin is not None
        assert load.stdout is not None
        assert json.loads(await load.stdout.readline())["connected"] == 1
        await answered.wait()
        load.stdin.write(b"\n")
        figures = json.loads(await load.stdout.readline())
        load.stdin.close()
        assert await load.wait() == 0
    found = {key: figures[key] for key in ("ticks", "missed", "doubled", "skipped", "head")}
    assert found == {"ticks": 5, "missed": 3, "doubled": 1, "skipped": 1, "head": 3}
