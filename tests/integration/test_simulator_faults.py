"""Faults of the simulated stream as a raw client sees them, over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from enhanced_websocket_service.twelvedata.simulator import (
    MarketSource,
    SimTick,
    Simulator,
    SimulatorConfig,
)
from tests.unit.twelvedata.simulator.parts import OPEN, ManualClock, tick_source
from tests.unit.twelvedata.simulator.raw_client import RawClient

TICKS = [SimTick(OPEN + i, 4000.0 + i, 3999.5 + i, 4000.5 + i) for i in range(1, 101)]
MARKET = MarketSource({name: tick_source(TICKS) for name in ("USD/COP", "EUR/USD")})


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(OPEN)


@pytest.fixture
async def simulator(clock: ManualClock) -> AsyncIterator[Simulator]:
    made = Simulator(SimulatorConfig(MARKET), clock)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def http(simulator: Simulator) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=simulator.rest_url) as client:
        yield client


def raw(simulator: Simulator, key: str = "k") -> RawClient:
    return RawClient(f"{simulator.ws_url}?apikey={key}")


def prices(first: int, last: int) -> list[float]:
    return [4000.0 + i for i in range(first, last + 1)]


async def refusal(simulator: Simulator) -> tuple[int, str]:
    async with raw(simulator) as client:
        assert client.response is not None
        await client.until(lambda: client.ended == "fin", "the end")
        return client.response.status_code, (client.response.body or b"").decode()


async def accepted(simulator: Simulator) -> bool:
    async with raw(simulator) as client:
        assert client.response is not None
        return client.response.status_code == 101


async def test_mute_for_one_symbol(simulator: Simulator, clock: ManualClock) -> None:
    async with raw(simulator) as client:
        await client.subscribe("USD/COP,EUR/USD")
        simulator.inject({"mute": ["USDCOP"]})
        await clock.move_to(OPEN + 3)
        await client.until(lambda: len(client.prices("EUR/USD")) == 3, "the other symbol")
        await client.ping()
        await client.until(lambda: client.pongs == 1, "a pong")
        assert client.prices() == []
        simulator.inject({"mute": False})
        await clock.move_to(OPEN + 5)
        await client.until(lambda: len(client.prices()) == 2, "prices again")
        assert client.prices() == prices(4, 5)


async def test_mute_from_birth_is_for_life(simulator: Simulator, clock: ManualClock) -> None:
    await clock.move_to(OPEN + 1)  # there is a last price to send
    async with raw(simulator) as older:
        await older.subscribe()
        simulator.inject({"mute_from_birth": True})
        async with raw(simulator) as born_mute:
            assert (await born_mute.subscribe())["status"] == "ok"
            simulator.inject({"mute_from_birth": None})
            async with raw(simulator) as younger:
                await younger.subscribe()
                await clock.move_to(OPEN + 4)
                for client in (older, younger):
                    await client.until(lambda c=client: len(c.prices()) == 4, "prices")
                await born_mute.ping()
                await born_mute.until(lambda: born_mute.pongs == 1, "a pong")
                assert born_mute.prices() == []
    assert simulator.status()["sent"]["USD/COP"] == {"ticks": 3, "resent": 2, "forgotten": 0}


async def test_a_stalled_socket_stays_mute_and_a_new_one_works(
    simulator: Simulator, clock: ManualClock
) -> None:
    async with raw(simulator) as stalled:
        await stalled.subscribe()
        await clock.move_to(OPEN + 2)
        await stalled.until(lambda: len(stalled.prices()) == 2, "prices")
        simulator.inject({"stall": True})
        async with raw(simulator) as fresh:
            await fresh.subscribe()
            await clock.move_to(OPEN + 4)
            await fresh.until(lambda: len(fresh.prices()) == 3, "last price and two more")
            await stalled.ping()
            await stalled.until(lambda: stalled.pongs == 1, "a pong")
            assert stalled.prices() == prices(1, 2)


async def test_no_pong_but_prices(simulator: Simulator, clock: ManualClock) -> None:
    simulator.inject({"no_pong": True})
    async with raw(simulator) as client:
        await client.subscribe()
        await client.ping()
        await client.send("heartbeat")
        await client.until(lambda: client.messages()[-1]["event"] == "heartbeat", "heartbeat")
        await clock.move_to(OPEN + 1)
        await client.until(lambda: client.prices() == prices(1, 1), "a price")
        assert client.pongs == 0
        assert simulator.status()["pongs_withheld"] == 1
        simulator.inject({"no_pong": False})
        await client.ping()
        await client.until(lambda: client.pongs == 1, "a pong")


async def test_half_open_neither_speaks_nor_listens_nor_ends(
    simulator: Simulator, clock: ManualClock, http: httpx.AsyncClient
) -> None:
    async with raw(simulator) as client:
        await client.subscribe()
        simulator.inject({"half_open": True})
        seen = len(client.frames)
        await client.ping()
        await client.send("heartbeat")
        async with raw(simulator) as fresh:
            await fresh.subscribe()
            await clock.move_to(OPEN + 50)
            await fresh.until(lambda: len(fresh.prices()) == 50, "prices on a new connection")
        assert (len(client.frames), client.ended) == (seen, "")
        assert len(simulator.status()["clients"]) <= 1  # the fresh one, if it is still there
        await http.delete("/_sim/faults")
        await client.until(lambda: client.ended == "rst", "the reset")


async def test_half_open_ends_with_the_simulator(clock: ManualClock) -> None:
    simulator = Simulator(SimulatorConfig(MARKET), clock)
    await simulator.start()
    async with raw(simulator) as client:
        await client.subscribe()
        simulator.inject({"half_open": True})
        await simulator.stop()
        await client.until(lambda: client.ended == "rst", "the reset")


async def test_fin_without_a_close_frame(simulator: Simulator) -> None:
    async with raw(simulator) as client:
        await client.subscribe()
        simulator.inject({"fin": True})
        await client.send("heartbeat")  # unread by then; must not turn FIN into RST
        await client.until(lambda: client.ended != "", "the end")
        assert (client.ended, client.close_code) == ("fin", None)
    assert simulator.status()["clients"] == []


async def test_drop_is_a_reset(simulator: Simulator) -> None:
    async with raw(simulator) as client:
        await client.subscribe()
        simulator.inject({"drop": True})
        await client.until(lambda: client.ended == "rst", "the reset")


WORDS = [
    (400, 400, "Handshake refused"),
    (401, 401, "**apikey** parameter is incorrect"),
    (403, 403, "is available exclusively with pro or ultra"),
    (404, 404, "404 page not found"),
    ("404_plan", 404, "available starting with the Grow or Venture plan"),
    (429, 429, "You have run out of API credits for the current minute"),
    (500, 500, "Internal server error"),
    (503, 503, "error code: 503"),
    (520, 520, "error code: 520"),
]


@pytest.mark.parametrize(("value", "status", "words"), WORDS)
async def test_a_refused_handshake_has_the_vendors_words(
    simulator: Simulator, value: object, status: int, words: str
) -> None:
    simulator.inject({"refuse_handshake": value})
    code, body = await refusal(simulator)
    assert code == status
    assert words in body


async def test_a_limited_number_of_refusals(simulator: Simulator, clock: ManualClock) -> None:
    simulator.inject({"refuse_handshake": {"status": 503, "times": 2}})
    assert (await refusal(simulator))[0] == 503
    assert simulator.status()["faults"]["refuse_handshake"] == {"status": 503, "times": 1}
    await clock.move_to(OPEN + 7)
    assert (await refusal(simulator))[0] == 503
    assert await accepted(simulator)
    status = simulator.status()
    assert status["faults"]["refuse_handshake"] is None
    door = status["handshakes"]
    assert (door["accepted"], door["refused"]) == (1, 2)
    assert [(one["at"] - OPEN, one["status"]) for one in door["newest"]] == [
        (0, 503),
        (7, 503),
        (7, 101),
    ]


async def test_a_handshake_without_an_answer(simulator: Simulator, clock: ManualClock) -> None:
    simulator.inject({"hang_handshake": True})
    waiting = raw(simulator)
    await waiting.ask()
    await waiting.until(
        lambda: simulator.status()["handshakes"]["refused"] == 1, "the handshake on record"
    )
    simulator.inject({"hang_handshake": False})
    assert await accepted(simulator)
    assert (waiting.response, waiting.ended) == (None, "")
    await waiting.give_up()


async def test_client_events_are_counted_by_minute_and_key(
    simulator: Simulator, clock: ManualClock
) -> None:
    async with raw(simulator, "secret-key") as client:
        await client.subscribe()
        await client.send("heartbeat")
        await client.until(lambda: len(client.messages()) == 2, "the answer")
        await clock.move_to(OPEN + 60)
        await client.subscribe("EUR/USD")
        await client.subscribe("EUR/USD")
    events = simulator.status()["client_events"]
    assert [(one["minute"], one["events"], one["heartbeats"]) for one in events] == [
        ("2025-06-03T13:00:00+00:00", 1, 1),
        ("2025-06-03T13:01:00+00:00", 2, 0),
    ]
    assert "secret" not in json.dumps(simulator.status())


async def call(http: httpx.AsyncClient, path: str = "/price", key: str = "k") -> Any:
    return await http.get(path, params={"symbol": "USD/COP", "apikey": key})


async def test_rest_calls_that_are_never_answered(
    simulator: Simulator, clock: ManualClock, http: httpx.AsyncClient
) -> None:
    await clock.move_to(OPEN + 5)
    simulator.inject({"rest_timeout": {"times": 1, "paths": ["/price"]}})
    assert (await call(http, "/quote")).status_code == 200
    waiting = asyncio.create_task(call(http), name="waiting")
    while simulator.status()["answers"].get("none") != 1:
        await asyncio.sleep(0)
    assert (await call(http)).json() == {"price": "4005.00000"}
    assert not waiting.done()
    spent = simulator.status()["credits"]
    assert [one["used"] for one in spent.values()] == [3]
    waiting.cancel()
    await asyncio.wait({waiting})
    statuses = [one["status"] for one in (await http.get("/_sim/requests")).json()["requests"]]
    assert statuses == [200, 0, 200]


async def test_a_hanging_call_does_not_keep_the_simulator(clock: ManualClock) -> None:
    simulator = Simulator(SimulatorConfig(MARKET), clock)
    await simulator.start()
    simulator.inject({"rest_timeout": True})
    async with httpx.AsyncClient(base_url=simulator.rest_url) as http:
        waiting = asyncio.create_task(call(http), name="waiting")
        while simulator.status()["answers"].get("none") != 1:
            await asyncio.sleep(0)
        async with asyncio.timeout(40):
            await simulator.stop()
        assert (await waiting).status_code == 503


async def test_rest_answers_that_take_their_time(
    simulator: Simulator, clock: ManualClock, http: httpx.AsyncClient
) -> None:
    await clock.move_to(OPEN + 5)
    simulator.inject({"rest_delay_ms": [40, 60]})
    began = asyncio.get_running_loop().time()
    assert (await call(http)).status_code == 200
    assert asyncio.get_running_loop().time() - began >= 0.04
