"""A session begins while PostgreSQL is away: by who was the last to collect, on data that was found good."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from enhanced_websocket_service.market.calendar import iso_local
from tests.waiting import eventually

from .two_instances import BOGOTA, Instance, Pair, pair

EVE = datetime(2025, 6, 3, 7, 40, tzinfo=BOGOTA).timestamp()
OPEN = datetime(2025, 6, 3, 8, 0, tzinfo=BOGOTA).timestamp()
SPEED = 60.0
OTHER = {"owner": "11111111-0000-4000-8000-000000000000", "name": "another host", "epoch": 1}


async def held(one: Pair) -> None:
    async def look() -> bool | None:
        return (one.a.service is not None and one.a.service._leadership.status.held) or None

    await eventually(look, 10, "A holds the fence")


async def problems(instance: Instance) -> str:
    return " ".join((await instance.get("/health"))["problems"])


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
async def test_the_session_is_collected_from_the_open_on_and_stored_exactly_once(
    database_dsn: str, tmp_path: Path, restarted: bool
) -> None:
    async with pair(database_dsn, tmp_path, start=EVE, speed=SPEED) as one:
        await one.a.start()
        await one.a.until("market_closed")
        await held(one)
        await one.a.proxy.down()
        if restarted:
            await one.a.die()
            await one.a.start()
        await one.a.until("ready", reason="PostgreSQL cannot be reached")
        assert "the data was found good at 2025-06-03T07:4" in one.a.reason
        await one.a.until("active", within_s=25)
        assert one.a.service is not None
        change = one.a.service.lifecycle.current
        assert OPEN <= change.at < OPEN + SPEED, iso_local(change.at)  # one real second
        assert "PostgreSQL cannot be reached" in change.reason
        assert "L0 measurement" in await problems(one.a)
        pipeline: Any = one.a.service._pipeline

        async def collected() -> bool | None:
            return pipeline.offsets["USDCOP"] >= 5 or None

        await eventually(collected, 15, "ticks are journaled")
        assert await one.stored() == {}
        await one.a.proxy.up()

        async def stored() -> list[int] | None:
            return (await one.stored()).get(one.a.epoch)

        await eventually(stored, 30, "what was journaled is stored")

        async def mended() -> bool | None:
            return "PostgreSQL cannot" not in one.a.reason or None

        await eventually(mended, 30, lambda: one.a.reason)
        assert one.a.state == "active"
        assert "error" not in one.a.states
        assert "L0 measurement" not in await problems(one.a)
        writer: Any = one.a.service._writer

        async def caught_up() -> bool | None:
            return writer.caught_up or None

        await eventually(caught_up, 20, "all is stored")
        offsets = (await one.stored())[one.a.epoch]
        assert offsets == list(range(1, len(offsets) + 1))
        ((first,),) = await one.rows(
            "SELECT extract(epoch FROM min(time))::float8 FROM realtime_market_data WHERE trading_session"
        )
        assert OPEN <= first < OPEN + 60


async def test_who_was_not_the_last_to_collect_waits_for_postgresql(
    database_dsn: str, tmp_path: Path
) -> None:
    async with pair(database_dsn, tmp_path, start=EVE, speed=SPEED) as one:
        for instance in (one.a, one.b):
            instance.raise_flag()
        await one.a.start()
        await one.a.until("market_closed")
        await held(one)
        await one.b.start()
        await one.b.until("market_closed")
        await one.b.proxy.down()
        await one.b.until("ready", within_s=25, reason="This instance collects nothing")
        await one.a.until("active", within_s=25)
        assert one.b.state == "ready"
        await one.b.die()
        await one.b.start()
        await one.b.until("ready", reason="it was not the last to collect")
        await one.b.proxy.up()
        await one.b.until("ready", reason="collects USDCOP since")


async def test_another_holder_in_redis_keeps_a_start_without_postgresql_waiting(
    database_dsn: str, valkey_url: str, tmp_path: Path
) -> None:
    start = OPEN + 3600
    async with (
        pair(database_dsn, tmp_path, start=start, redis_url=valkey_url) as one,
        redis.asyncio.Redis.from_url(valkey_url, decode_responses=True) as client,
    ):
        await one.a.start()
        await one.a.until("active")
        name = "simulated:ews:collector"

        async def shown() -> str | None:
            return await client.get(name)

        mark = json.loads(await eventually(shown, 10, "A shows itself in Redis"))
        assert mark["epoch"] == one.a.epoch
        assert 0 < await client.pttl(name) <= 15_000
        await one.a.die()
        await one.a.proxy.down()
        await client.set(name, json.dumps(OTHER), px=14_000)
        await one.a.start()
        await one.a.until("ready", reason="Redis says that another host collects")
        assert one.a.service is not None
        assert one.a.service._pipeline.offsets["USDCOP"] == 0
        # It runs out: whoever it was does not collect any more.
        await one.a.until("active", within_s=30)
        # What nobody of ours writes is believed by nobody, and is told.
        await one.a.die()
        await client.set(name, json.dumps(OTHER))
        await one.a.start()
        await one.a.until("active")
        assert "collector in Redis" not in await problems(one.a)  # replaced by ours
        await one.a.proxy.up()

        async def stored() -> list[int] | None:
            return (await one.stored()).get(one.a.epoch)

        await eventually(stored, 30, "what was journaled is stored")
