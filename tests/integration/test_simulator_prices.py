"""What faults do to prices on the wire, and that the ledger tells a client exactly what came."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from enhanced_websocket_service.twelvedata.simulator import (
    MarketSource,
    SimTick,
    Simulator,
    SimulatorConfig,
    Step,
)
from enhanced_websocket_service.twelvedata.simulator.bursts import SLICES
from tests.unit.twelvedata.simulator.parts import OPEN, ManualClock, tick_source
from tests.unit.twelvedata.simulator.raw_client import RawClient

TICKS = [SimTick(OPEN + i, 4000.0 + i, 3999.5 + i, 4000.5 + i) for i in range(1, 401)]
MARKET = MarketSource({name: tick_source(TICKS) for name in ("USD/COP", "EUR/USD")})


@asynccontextmanager
async def simulated(
    clock: ManualClock, market: MarketSource = MARKET, **options: Any
) -> AsyncIterator[Simulator]:
    made = Simulator(SimulatorConfig(market, **options), clock)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


def raw(simulator: Simulator, key: str = "k") -> RawClient:
    return RawClient(f"{simulator.ws_url}?apikey={key}")


async def sent(simulator: Simulator, **params: Any) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=simulator.rest_url) as http:
        answer = await http.get("/_sim/sent", params={"symbol": "USD/COP", **params})
    entries: list[dict[str, Any]] = answer.json()
    return entries


async def test_the_ledger_is_what_a_client_got_under_every_fault_at_once() -> None:
    clock = ManualClock()
    faults = {
        "double": 0.2,
        "disorder": {"within_s": 3, "share": 0.3},
        "future_s": {"seconds": 16, "share": 0.1},
        "outlier": {"pct": 8, "share": 0.05},
        "crossed": 0.1,
        "float32_noise": True,
    }
    async with simulated(clock, faults=faults) as simulator, raw(simulator) as client:
        await client.subscribe()
        for i in range(1, 420):
            await clock.move_to(OPEN + i)
        simulator.inject({"burst": {"seconds": 2, "rate": 100, "symbols": ["USDCOP"]}})
        await clock.move_to(OPEN + 425)
        ledger = await sent(simulator)
        await client.until(lambda: len(client.prices()) == len(ledger), "all of the ledger")
        got = [one for one in client.messages() if one["event"] == "price"]
    fields = ("timestamp", "price", "bid", "ask")
    assert [[one[name] for name in fields] for one in got] == [
        [one[name] for name in fields] for one in ledger
    ]
    seen = {name for one in ledger for name in one["faults"].split(",")}
    assert seen == {"noise", "double", "disorder", "future", "outlier", "crossed", "burst"}
    market = [
        one for one in ledger if not {"double", "outlier", "burst"} & {*one["faults"].split(",")}
    ]
    assert len(market) == len(TICKS)
    assert sum("burst" in one["faults"] for one in ledger) == 200
    assert all(one["timestamp"] - 16 <= one["left"] for one in ledger)


async def test_a_script_cuts_exactly_however_late_the_loop_wakes() -> None:
    script = [
        Step(OPEN + 10.5, {"mute": True}),
        Step(OPEN + 20, clear=("mute",)),
        Step(OPEN + 30, {"clock_skew_s": 5}),
        Step(OPEN + 40, {"drop": True}),
    ]
    clock = ManualClock()
    async with simulated(clock, script=script) as simulator:
        async with raw(simulator) as client:
            await client.subscribe()
            await clock.move_to(OPEN + 100)
            await client.until(lambda: client.ended == "rst", "the reset")
            stamps = [round(price - 4000) for price in client.prices()]
        assert stamps == [*range(1, 11), *range(21, 46)]
        async with httpx.AsyncClient(base_url=simulator.rest_url) as http:
            shown = (await http.get("/_sim/faults")).json()
            assert [one["done"] for one in shown["script"]] == [True] * 4
            assert shown["faults"]["clock_skew_s"] == 5


async def test_what_was_due_before_a_fault_leaves_without_it() -> None:
    clock = ManualClock()
    async with simulated(clock) as simulator, raw(simulator) as client:
        await client.subscribe()
        clock._now = OPEN + 3  # the stream has not woken yet
        simulator.inject({"mute": True})
        await clock.move_to(OPEN + 10)
        await client.until(lambda: len(client.prices()) == 3, "three prices")
        simulator.inject({"mute": None})
        await clock.move_to(OPEN + 11)
        await client.until(lambda: len(client.prices()) == 4, "one more")
        assert client.prices() == [4001, 4002, 4003, 4011]


async def test_a_skewed_clock_shifts_prices_and_the_minute_of_credits() -> None:
    clock = ManualClock()
    async with simulated(clock, plan="basic") as simulator:
        async with raw(simulator) as client:
            simulator.inject({"clock_skew_s": 16})
            await client.subscribe("EUR/USD")
            last = client.messages()[-1]
            await client.until(lambda: len(client.prices("EUR/USD")) == 1, "the last price")
            await clock.move_to(OPEN + 1)
            await client.until(lambda: len(client.prices("EUR/USD")) == 2, "a price")
            last = client.messages()[-1]
            assert last["timestamp"] == OPEN + 17
        async with httpx.AsyncClient(base_url=simulator.rest_url) as http:

            async def call() -> httpx.Response:
                return await http.get("/price", params={"symbol": "USD/COP", "apikey": "k"})

            assert (await call()).json() == {"price": "4017.00000"}
            await clock.move_to(OPEN + 43)
            assert (await call()).headers["api-credits-used"] == "2"
            await clock.move_to(OPEN + 44)  # 60 s by the vendor's clock
            assert (await call()).headers["api-credits-used"] == "1"
            simulator.inject({"clock_skew_s": 0})
            assert (await call()).json() == {"price": "4044.00000"}


async def test_a_clock_put_back_is_silent_until_it_has_caught_up() -> None:
    clock = ManualClock()
    async with simulated(clock) as simulator, raw(simulator) as client:
        await client.subscribe()
        await clock.move_to(OPEN + 10)
        simulator.inject({"clock_skew_s": -5})
        await clock.move_to(OPEN + 15)
        await clock.move_to(OPEN + 17)
        await client.until(lambda: len(client.prices()) == 12, "twelve prices")
        ledger = await sent(simulator)
        assert [one["timestamp"] - OPEN for one in ledger] == list(range(1, 13))
        assert ledger[10]["left"] >= OPEN + 16


async def test_frames_in_pieces() -> None:
    clock = ManualClock()
    async with simulated(clock) as simulator, raw(simulator) as client:
        await client.subscribe()
        before = len(client.chunks)
        simulator.inject({"slow_frames": {"ms": 1, "size": 8}})
        await clock.move_to(OPEN + 1)
        await client.until(lambda: len(client.chunks) > before, "the first piece")
        await client.ping()
        await client.until(lambda: client.pongs == 1, "the pong behind the price")
        pieces = client.chunks[before:]
        assert client.prices() == [4001.0]
        assert len(pieces) > 5
        simulator.inject({"slow_frames": None})
        await clock.move_to(OPEN + 2)
        await client.until(lambda: len(client.prices()) == 2, "a whole frame")


async def test_an_eviction_to_order_and_a_limit_to_order() -> None:
    clock = ManualClock()
    async with (
        simulated(clock) as simulator,
        raw(simulator) as first,
        raw(simulator) as second,
        raw(simulator, "other") as other,
    ):
        simulator.inject({"evict": True})
        for client in (first, other):
            await client.until(lambda c=client: c.close_code == 1008, "the close")
        assert second.close_code is None
        simulator.inject({"max_connections": 1})
        async with raw(simulator) as third:
            await second.until(lambda: second.close_code == 1008, "the close")
            assert third.close_code is None
        assert simulator.status()["handshakes"]["evicted"] == 3


async def test_ten_thousand_ticks_a_second_are_light_work() -> None:
    clock = ManualClock(OPEN + 10)
    async with simulated(clock) as simulator, raw(simulator) as client:
        await client.subscribe()
        simulator.inject({"burst": 1})
        began = time.process_time()
        for i in range(SLICES):
            simulator._stream.advance(OPEN + 11 + i / SLICES)
        spent = time.process_time() - began
        await client.until(lambda: len(client.frames) >= 10_003, "all of them")
        ledger = await sent(simulator, start=OPEN + 11)
        assert sum(one["faults"] == "burst" for one in ledger) == 10_000
        assert client.prices()[1:] == [one["price"] for one in ledger]
    # About a twentieth of a second on a slow machine; the bound leaves room for a busy one.
    assert spent < 0.5
