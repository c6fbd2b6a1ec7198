"""Faults that look like success: each is told by ``/health`` within 10 s of real time, with its cause.

The whole service on real servers. After the cure it is healthy again, and nothing is lost or doubled.
"""

import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis.asyncio

from enhanced_websocket_service.serving.hub import Hub
from enhanced_websocket_service.storage import journal as journal_module
from tests.foreign_owner import foreign_owner
from tests.waiting import eventually

from .watched_service import Watched, watched_service

KEY = "simulated:usdcop:latest_price"
CHANNEL = "simulated:market_data:realtime"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
async def it(tmp_path: Path, database_dsn: str, valkey_url: str) -> AsyncIterator[Watched]:
    async with watched_service(tmp_path, database_dsn, valkey_url) as made:
        yield made


@pytest.fixture
async def connection(database_dsn: str) -> AsyncIterator[Any]:
    made = await asyncpg.connect(database_dsn)
    yield made
    await made.close()


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Any]:
    made = redis.asyncio.Redis.from_url(valkey_url, decode_responses=True)
    yield made
    await made.config_set("maxmemory", "0")
    await made.aclose()


async def all_stored(it: Watched, connection: Any) -> None:
    """Every tick that was accepted is in its table, once."""

    async def stored() -> bool | None:
        accepted = it.service._pipeline.offsets["USDCOP"]
        rows = "SELECT count(*), count(DISTINCT tick_offset), max(tick_offset) FROM realtime_market_data"
        return tuple(await connection.fetchrow(rows)) == (accepted,) * 3 or None

    await eventually(stored, 20, "every tick once")


async def test_a_database_that_takes_no_writes(
    it: Watched, connection: Any, database_dsn: str
) -> None:
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    problem = await it.problem("committed:", "USDCOP", "read-only transaction")
    assert "records" in problem or "record" in problem
    # The ping is good all the while, and clients still get prices.
    assert (await it.health())["connectivity"]["database"]["connected"]
    await connection.execute("SET default_transaction_read_only = off")
    await connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = off')
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await it.healthy()
    await all_stored(it, connection)

    async def told() -> list[str] | None:
        rows = await connection.fetch(
            "SELECT details ->> 'health' AS health FROM system_health "
            "WHERE details ? 'health' ORDER BY id"
        )
        found = [row["health"] for row in rows][-2:]
        return found if found == ["degraded", "healthy"] else None

    await eventually(told, 10, "both turns in system_health")
    history = [one["status"] for one in (await it.status())["health_history"]]
    assert history[-2:] == ["degraded", "healthy"]


async def test_a_right_that_is_taken_away(
    tmp_path: Path, database_dsn: str, valkey_url: str, connection: Any
) -> None:
    async with foreign_owner(database_dsn, service="svc_") as place:
        await place.migrated()
        async with watched_service(tmp_path, place.service_dsn, valkey_url) as it:
            await place.as_owner(f"REVOKE INSERT ON realtime_market_data FROM {place.service}")
            await it.problem(
                "committed:", "USDCOP", "lacks INSERT on table public.realtime_market_data"
            )
            await place.as_owner(f"GRANT INSERT ON realtime_market_data TO {place.service}")
            await it.healthy()
            await all_stored(it, connection)


async def test_a_lock_that_somebody_holds(it: Watched, connection: Any) -> None:
    """Pings are answered, and the COPY waits: who is in the way is named."""
    async with connection.transaction():
        await connection.execute("LOCK TABLE realtime_market_data IN ACCESS EXCLUSIVE MODE")
        mine = await connection.fetchval("SELECT pg_backend_pid()")
        await it.problem(
            "committed:", "USDCOP", "a lock on realtime_market_data", f"process {mine}"
        )
        health = await it.health()
        assert health["connectivity"]["database"]["connected"]
        committed = health["work"]["committed"]
        assert committed["undone"] > 0
        assert committed["oldest_undone_s"] >= 5
        mark = (await it.status())["watermarks"]["USDCOP"]["committed"]
        assert mark["undone"] > 0
        metrics = (await it.client.get("/metrics")).text
        (line,) = [one for one in metrics.splitlines() if 'undone_seconds{hop="committed"}' in one]
        assert float(line.split()[-1]) >= 5
    await it.healthy()
    await all_stored(it, connection)


async def refusing(connection: Any, condition: str) -> None:
    """A trigger of somebody who does not like ticks for which ``condition`` holds."""
    await connection.execute(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN IF {condition} THEN RAISE EXCEPTION 'the auditors say no'; END IF; "
        "RETURN NEW; END $$"
    )
    await connection.execute(
        "CREATE TRIGGER audit BEFORE INSERT ON realtime_market_data "
        "FOR EACH ROW EXECUTE FUNCTION no()"
    )


async def test_a_table_that_takes_no_tick(it: Watched, connection: Any) -> None:
    await refusing(connection, "true")
    await it.problem("committed:", "USDCOP", "the auditors say no", "The journal keeps them")
    await connection.execute("DROP TRIGGER audit ON realtime_market_data")
    await it.healthy()
    await all_stored(it, connection)


async def test_a_quarantined_record_is_told_once(it: Watched, connection: Any) -> None:
    """It is in ``Failures`` too, as it is told for a while after the table takes its kind again."""
    offset = it.service._pipeline.offsets["USDCOP"]
    await refusing(connection, f"NEW.tick_offset BETWEEN {offset + 5} AND {offset + 9999}")
    await it.problem("records in rejected_ticks", "the auditors say no")
    await it.problem("committed:", "USDCOP", "in rejected_ticks instead", "the auditors say no")
    told = [one for one in (await it.health())["problems"] if "rejected_ticks" in one]
    assert len(told) == 1, told
    rows = "SELECT count(*) FROM rejected_ticks WHERE reason = 'unstorable'"
    assert await connection.fetchval(rows) > 0


async def test_a_redis_whose_memory_is_full(it: Watched, client: Any) -> None:
    """The key cannot be written; listeners go on hearing each price as it comes."""
    await client.config_set("maxmemory", "1")
    await it.problem("cached:", "USDCOP", "maxmemory")
    await it.problem("streams in Redis", "maxmemory")
    async with client.pubsub() as channel:
        await channel.subscribe(CHANNEL)
        heard = 0
        while heard < 5:
            message = await channel.get_message(ignore_subscribe_messages=True, timeout=10)
            heard += message is not None
    assert (await it.health())["connectivity"]["redis"]["connected"]
    await client.config_set("maxmemory", "0")
    await it.healthy()

    async def fresh() -> bool | None:
        return str(it.service.bus.latest("USDCOP").price) in (await client.get(KEY) or "") or None

    await eventually(fresh, 5, "the newest price in its key")


async def test_a_redis_that_takes_a_price_and_does_not_answer(it: Watched, client: Any) -> None:
    await client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
    try:
        await it.problem("cached:", "USDCOP")
    finally:
        await client.execute_command("CLIENT", "UNPAUSE")
    await it.healthy()


async def test_an_account_that_may_not_publish(it: Watched, client: Any) -> None:
    await client.execute_command("ACL", "SETUSER", "default", "-publish")
    try:
        await it.problem("publishing prices in Redis", "NOPERM")
        await it.problem("cached:", "USDCOP", "no permissions to run the 'publish'")
        told = [one for one in (await it.health())["problems"] if "NOPERM" in one]
        assert len(told) == 1, told
    finally:
        await client.execute_command("ACL", "SETUSER", "default", "+publish")
    await it.healthy()


async def test_a_hub_whose_clients_get_nothing(
    it: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "on_events", lambda _self, _events: None)
    # The bus holds the bound method: what it calls does nothing from here on.
    monkeypatch.setattr(it.service._hub._board, "stage", lambda _events: [])
    await it.problem("published:", "USDCOP")
    monkeypatch.undo()
    await it.healthy()


async def test_a_hub_that_raises(it: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_events: object) -> None:
        raise RuntimeError("the hub is out of order")

    monkeypatch.setattr(it.service._hub._board, "stage", fail)
    await it.problem("published:", "USDCOP", "the hub is out of order")
    monkeypatch.undo()
    await it.healthy()


async def test_a_disk_that_does_not_finish_an_fsync(
    it: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    real = os.fsync

    class Slow:
        """``os`` as the journal sees it."""

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        @staticmethod
        def fsync(fd: int) -> None:
            released.wait(60)
            real(fd)

    monkeypatch.setattr(journal_module, "os", Slow())
    try:
        await it.problem("journaled:", "USDCOP", "an fsync in", "has not returned")
    finally:
        released.set()
    await it.healthy()


async def test_a_component_that_crashes_again_and_again(
    it: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crash() -> None:
        raise RuntimeError("out of order")

    await it.service._supervisor.stop("silences")
    it.service._supervisor.start("silences", crash)
    await it.problem("component silences", "out of order")


async def test_bars_that_should_have_closed(it: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of bars stands still; every tick is taken, and no bar comes of them."""
    monkeypatch.setattr(it.service._pipeline, "on_time", lambda _now, _grace: None)
    await it.problem("bar_closed:", "USDCOP", within_s=40)
    monkeypatch.undo()
    await it.healthy()


async def test_quiet_times_are_probed(
    tmp_path: Path, database_dsn: str, valkey_url: str, connection: Any, client: Any
) -> None:
    """The vendor is silent: each hop still proves that it works, and who does not is told."""
    more = {"HEALTH_PROBE_S": "0.5", "FEED_MODE": "websocket"}
    async with watched_service(tmp_path, database_dsn, valkey_url, **more) as it:
        it.simulator.inject({"mute": True})

        async def probed() -> dict[str, Any] | None:
            work = (await it.health())["work"]
            hops = ("journaled", "published", "cached", "committed")
            return work if all(work[hop]["latency_ms"] is not None for hop in hops) else None

        work = await eventually(probed, 20, "every hop probed")
        assert [
            work[hop]["probe"] for hop in ("journaled", "published", "cached", "committed")
        ] == ([None] * 4)
        assert await connection.fetchval("SELECT sum(probes) FROM health_probes") >= 1
        rows = "SELECT count(*) FROM realtime_market_data WHERE tick_offset = 0 OR 'probe' = ANY(flags)"
        assert await connection.fetchval(rows) == 0
        assert (await it.status())["clients"]["connected"] == 0
        async with connection.transaction():
            await connection.execute("LOCK TABLE realtime_market_data IN ACCESS EXCLUSIVE MODE")
            await it.problem("probe of PostgreSQL", "lock timeout")
        await client.config_set("maxmemory", "1")
        await it.problem("probe of Redis", "maxmemory")
        await client.config_set("maxmemory", "0")

        async def no_probe_fails() -> bool | None:
            problems = (await it.health())["problems"]
            return not any("probe of" in one for one in problems) or None

        await eventually(no_probe_fails, 10, "probes that succeed")
        await connection.execute(
            "CREATE FUNCTION log_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$"
        )
        await connection.execute(
            "CREATE TRIGGER audit BEFORE INSERT ON realtime_market_data FOR EACH ROW "
            "EXECUTE FUNCTION log_it()"
        )

        async def says_so() -> bool | None:
            told = (await it.health())["work"]["committed"]["probe"]
            return (told is not None and "triggers of others (audit)" in told) or None

        await eventually(says_so, 10, "that no COPY was made")
