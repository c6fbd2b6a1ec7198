"""Prices that need a witness, seen from outside: latest price, clients, rejected_ticks, health, a kill."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest
from websockets.asyncio.client import connect

from enhanced_websocket_service.market.tick import Flag, Rejection, Tick
from enhanced_websocket_service.storage.journal_reader import iterate
from tests.waiting import eventually

from .rig import WITHIN_S, Rig

PART = "price of USDCOP"
EVERYWHERE = ["stream", "price", "bars"]


@asynccontextmanager
async def published(rig: Rig) -> AsyncIterator[list[float]]:
    """The prices that a client gets while the block runs."""
    prices: list[float] = []

    async def read() -> None:
        async with connect(f"ws://127.0.0.1:{rig.port}/ws") as client:
            async for text in client:
                message = json.loads(text)
                if message["type"] == "market_data":
                    prices.append(message["data"]["price"])

    reader = asyncio.create_task(read())
    try:
        yield prices
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


async def problem(rig: Rig, *, present: bool, saying: str = PART) -> str:
    """Wait until ``/health`` names the price so, or not at all any more; what it says."""
    async with rig.client() as http:

        async def said() -> str | None:
            try:
                health = (await http.get("/health")).json()
            except httpx.TransportError:
                return None
            found = [one for one in health["problems"] if PART in one]
            if found:
                assert health["status"] == "degraded"
            if present:
                return next((one for one in found if saying in one), None)
            return None if found else "nothing"

        return await eventually(
            said, WITHIN_S, lambda: f"present={present}\n{rig.processes[-1].text()[-3000:]}"
        )


async def latest(rig: Rig, low: float, high: float) -> dict[str, Any]:
    """Wait for a price between ``low`` and ``high`` in ``/market/latest``."""
    async with rig.client() as http:

        async def there() -> dict[str, Any] | None:
            answer = await http.get("/market/latest")
            if answer.status_code != 200:
                return None
            found: dict[str, Any] = answer.json()
            return found if low < found["price"] < high else None

        return await eventually(
            there, WITHIN_S, lambda: f"{low} .. {high}\n{rig.processes[-1].text()[-3000:]}"
        )


async def stored(rig: Rig, query: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(rig.environ["DATABASE_URL"])
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


def ready(rig: Rig) -> None:
    (rig.signals / "l0_ready.flag").write_text('{"ready": true}')


@pytest.mark.timeout(180)
async def test_a_change_of_scale_on_the_stream_alone_reaches_nobody(rig: Rig) -> None:
    ready(rig)
    process = await rig.run()
    before = (await rig.price())["price"]
    async with published(rig) as prices:
        rig.simulator.inject({"scale": {"factor": 0.01, "at": ["stream"]}})
        told = await problem(rig, present=True)
        assert "power of ten" in told
        assert f"from {int(before / 10)}" in told, told
        await eventually(refused(rig), WITHIN_S, "a refuted quote")
        # REST goes on telling the price, and takes over.
        async with rig.client() as http:

            async def by_rest() -> bool | None:
                found = (await http.get("/market/latest")).json()
                return found["source"] == "simulator_rest" or None

            await eventually(by_rest, WITHIN_S, lambda: process.text()[-3000:])
        rig.simulator.inject({"scale": None})
        await problem(rig, present=False)
        await latest(rig, before * 0.9, before * 1.1)
    assert prices
    assert min(prices) > before * 0.9
    assert await process.stop() == 0
    rows = await stored(rig, "SELECT reason, price FROM rejected_ticks")
    assert {reason for reason, _ in rows} <= {"outlier", "unwitnessed"}
    assert all(price < 100 for _, price in rows)
    ((low,),) = await stored(rig, "SELECT min(last)::float8 FROM realtime_market_data")
    assert low > before * 0.9


def refused(rig: Rig) -> Any:
    async def look() -> bool | None:
        return bool(await stored(rig, "SELECT 1 FROM rejected_ticks LIMIT 1")) or None

    return look


@pytest.mark.timeout(180)
async def test_a_change_of_scale_on_rest_alone_reaches_nobody(rig: Rig) -> None:
    ready(rig)
    process = await rig.run(FEED_MODE="rest")
    before = (await rig.price())["price"]
    async with published(rig) as prices:
        rig.simulator.inject({"scale": {"factor": 100, "at": ["price"]}})
        told = await problem(rig, present=True)
        assert "power of ten" in told
        assert "5-minute bar" in told
        # Nobody vouches for it, so it is given up in the end; the vendor's bars never had it.
        await eventually(refused(rig), WITHIN_S, lambda: process.text()[-3000:])
        rig.simulator.inject({"scale": None})
        await problem(rig, present=False)
        await latest(rig, before * 0.9, before * 1.1)
    assert prices
    assert max(prices) < before * 1.1
    assert await process.stop() == 0
    ((high,),) = await stored(rig, "SELECT max(last)::float8 FROM realtime_market_data")
    assert high < before * 1.1


@pytest.mark.timeout(180)
async def test_a_change_of_scale_that_stream_and_rest_agree_on_is_believed(rig: Rig) -> None:
    ready(rig)
    process = await rig.run()
    before = (await rig.price())["price"]
    rig.simulator.inject({"scale": {"factor": 0.01, "at": EVERYWHERE}})
    await latest(rig, before * 0.009, before * 0.011)
    await problem(rig, present=False)
    assert await process.stop() == 0
    ((flags,),) = await stored(
        rig,
        "SELECT flags FROM realtime_market_data WHERE last < 100 ORDER BY tick_offset LIMIT 1",
    )
    assert Flag.HELD in flags


@pytest.mark.parametrize("mode", ["rest", "auto"])
@pytest.mark.timeout(180)
async def test_a_move_beyond_the_band_that_stands_is_published(rig: Rig, mode: str) -> None:
    ready(rig)
    process = await rig.run(FEED_MODE=mode)
    before = (await rig.price())["price"]
    rig.simulator.inject({"scale": {"factor": 1.07, "at": EVERYWHERE}})
    await latest(rig, before * 1.06, before * 1.08)
    await problem(rig, present=False)
    assert await process.stop() == 0
    assert await stored(rig, "SELECT price FROM rejected_ticks") == []


@pytest.mark.timeout(180)
async def test_a_wrong_first_price_of_an_installation_reaches_nobody(rig: Rig) -> None:
    """No bars of L0, no tick before: only REST can tell that the stream is wrong."""
    ready(rig)
    rig.simulator.inject({"empty_windows": True, "scale": {"factor": 0.01, "at": ["stream"]}})
    process = await rig.run(L0_POLICY="degraded")
    told = await problem(rig, present=True)
    assert "is the first price" in told
    async with rig.client() as http:
        assert (await http.get("/market/latest")).status_code == 404
    rig.simulator.inject({"scale": None})
    await latest(rig, 1000, 10_000)
    await problem(rig, present=False)
    assert await process.stop() == 0
    ((low,),) = await stored(rig, "SELECT min(last)::float8 FROM realtime_market_data")
    assert low > 1000


@pytest.mark.timeout(180)
async def test_a_wrong_first_price_is_told_by_the_last_bar_of_l0(rig: Rig) -> None:
    ready(rig)
    rig.simulator.inject({"scale": {"factor": 0.01, "at": ["stream"]}})
    process = await rig.run()
    # It is measured by L0's last close as soon as PostgreSQL has told it.
    await problem(rig, present=True, saying="power of ten")
    rig.simulator.inject({"scale": None})
    await latest(rig, 1000, 10_000)
    await problem(rig, present=False)
    assert await process.stop() == 0
    ((low,),) = await stored(rig, "SELECT min(last)::float8 FROM realtime_market_data")
    assert low > 1000


@pytest.mark.timeout(240)
async def test_quotes_that_are_held_survive_a_kill(rig: Rig) -> None:
    ready(rig)
    first = await rig.run()
    await rig.price()
    journal = rig.folder / "state" / "journal"
    # Nobody can be asked: they are held for as long as it takes.
    rig.simulator.inject(
        {
            "rest_status": "503",
            "scale": {"factor": 0.01, "at": ["stream"]},
        }
    )
    await problem(rig, present=True)

    async def some_held() -> bool | None:
        held = [one for one in iterate(journal) if isinstance(one, Rejection)]
        return len(held) >= 3 or None

    await eventually(some_held, WITHIN_S, "held quotes in the journal")
    assert await first.stop(signal.SIGKILL) == -signal.SIGKILL
    fates = Counter(one.reason for one in iterate(journal) if isinstance(one, Rejection))
    assert fates["held"] >= 3
    second = await rig.run()
    rig.simulator.inject({"rest_status": None, "scale": None})
    await rig.price()
    await problem(rig, present=False)
    assert await second.stop() == 0
    records = list(iterate(journal))
    fates = Counter(one.reason for one in records if isinstance(one, Rejection))
    confirmed = sum(isinstance(one, Tick) and Flag.HELD in one.flags for one in records)
    # A quote that is refused in the batch that brought it was never held: it has the last word alone.
    assert fates["outlier"] + fates["unwitnessed"] + confirmed >= fates["held"]
    held = Counter(
        (one.timestamp, one.price, one.received_at)
        for one in records
        if isinstance(one, Rejection) and one.reason == "held"
    )
    decided = Counter(
        (one.timestamp, one.price, one.received_at)
        for one in records
        if (isinstance(one, Rejection) and one.reason != "held")
        or (isinstance(one, Tick) and Flag.HELD in one.flags)
    )
    assert not held - decided, "each has a fate"
    rows = await stored(
        rig,
        "SELECT extract(epoch FROM time)::bigint, price, count(*) FROM rejected_ticks "
        "WHERE reason = 'outlier' OR reason = 'unwitnessed' GROUP BY 1, 2",
    )
    in_table = Counter({(stamp, price): count for stamp, price, count in rows})
    wanted: Counter[tuple[int, float | None]] = Counter(
        (one.timestamp, one.price)
        for one in records
        if isinstance(one, Rejection) and one.reason != "held"
    )
    assert in_table == wanted, "and one row, where it was refused"
    assert await stored(rig, "SELECT 1 FROM rejected_ticks WHERE reason = 'held'") == []
