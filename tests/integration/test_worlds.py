"""A database and a Redis belong to real or to simulated prices, from the first row or key on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from enhanced_websocket_service.bus.names import SIMULATED_PREFIX, RedisNames
from enhanced_websocket_service.bus.redis import RedisBus
from enhanced_websocket_service.bus.world import RedisWorld
from enhanced_websocket_service.errors import StorageError, WrongWorld
from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.market.source import Provider, World
from enhanced_websocket_service.service.restoring import look_up_last_ticks
from enhanced_websocket_service.service.worlds import claim_private
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.journal_reader import recover
from enhanced_websocket_service.storage.migrate import migrate
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.world import (
    check_database,
    claim_world,
    set_world,
    world_of_database,
)
from tests.storage_samples import SYMBOL, bar, rejected, tick, ticks, update, writing
from tests.waiting import eventually

REAL, SIMULATED = Provider("twelvedata"), Provider("simulator")


@pytest.fixture
async def by_hand(database_dsn: str) -> AsyncIterator[Any]:
    """A connection of an administrator."""
    connection = await asyncpg.connect(database_dsn)
    yield connection
    await connection.close()


async def connected(dsn: str, provider: Provider) -> Database:
    database = Database(dsn, provider)
    try:
        await database.connect()
    except BaseException:  # whatever it was, its connections must not outlive the test
        await database.close()
        raise
    return database


# --- the database -------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", [REAL, SIMULATED])
async def test_the_first_row_gives_a_database_its_world(
    database_dsn: str, by_hand: Any, provider: Provider, tmp_path: Path
) -> None:
    database = await connected(database_dsn, provider)
    await database.highest_epoch()
    await database.ping()
    assert await world_of_database(by_hand) is None, "looking, migrating and asking mark nothing"
    await database.record_health("initializing", {})
    assert await world_of_database(by_hand) == provider.world
    assert await by_hand.fetchval("SELECT world FROM ews_world") == provider.world
    journal = Journal.open(tmp_path / "journal")
    journal.append([tick(1, source=provider.websocket)])
    async with writing(journal, database) as writer:
        assert await writer.drain(20)
    journal.close()
    await database.close()
    other = SIMULATED if provider is REAL else REAL
    with pytest.raises(WrongWorld) as caught:
        await connected(database_dsn, other)
    said = str(caught.value)
    for part in (
        "test_",
        f"holds {provider.world} prices",
        f"are {other.world}",
        f"db world --set {other.world}",
    ):
        assert part in said


async def test_what_a_failed_write_left_marks_nothing(database_dsn: str, by_hand: Any) -> None:
    database = await connected(database_dsn, SIMULATED)
    with pytest.raises(RuntimeError):
        async with database.transaction("testing"):
            raise RuntimeError("before the first row")
    assert await world_of_database(by_hand) is None
    await database.close()


@pytest.mark.parametrize(
    ("rows", "world"),
    [
        ([], None),
        (["simulator", "simulator_websocket"], "simulated"),
        (["simulator", "twelvedata"], "real"),
        (["somebody"], "real"),
        ([None], "real"),
    ],
)
async def test_a_database_from_before_is_real_unless_all_its_rows_are_simulated(
    database_dsn: str, by_hand: Any, rows: list[str | None], world: World | None
) -> None:
    await by_hand.execute(
        "CREATE TABLE market_data (symbol VARCHAR(10), datetime TIMESTAMPTZ, source VARCHAR(50))"
    )
    for number, source in enumerate(rows):
        await by_hand.execute(
            "INSERT INTO market_data VALUES ('USDCOP', to_timestamp($1), $2)", number, source
        )
    assert await world_of_database(by_hand) == world


async def test_a_database_of_the_other_world_is_not_even_migrated(
    database_dsn: str, by_hand: Any
) -> None:
    await by_hand.execute("CREATE TABLE market_data (source VARCHAR(50))")
    await by_hand.execute("INSERT INTO market_data VALUES ('twelvedata')")
    with pytest.raises(WrongWorld):
        await connected(database_dsn, SIMULATED)
    tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    assert [row[0] for row in await by_hand.fetch(tables)] == ["market_data"]


@pytest.mark.parametrize("provider", [REAL, SIMULATED])
async def test_a_table_of_another_program_with_our_name_is_told_by_what_it_lacks(
    database_dsn: str, by_hand: Any, provider: Provider
) -> None:
    await by_hand.execute("CREATE TABLE market_data (symbol TEXT)")
    with pytest.raises(StorageError, match=r"market_data lacks .*source"):
        await connected(database_dsn, provider)
    assert await world_of_database(by_hand) is None
    await by_hand.execute("INSERT INTO market_data VALUES ('USDCOP')")
    assert await world_of_database(by_hand) == "real"


async def test_only_rows_that_say_nothing_of_prices_count_as_real(
    database_dsn: str, by_hand: Any
) -> None:
    """Other services of the requester's write `system_health`, too."""
    await by_hand.execute("CREATE TABLE system_health (id SERIAL, service_name VARCHAR(100))")
    assert await world_of_database(by_hand) is None
    await by_hand.execute("INSERT INTO system_health (service_name) VALUES ('another service')")
    assert await world_of_database(by_hand) == "real"


async def test_a_demo_of_an_older_release_that_never_had_a_price_goes_on(
    database_dsn: str, by_hand: Any
) -> None:
    await migrate(by_hand)
    await claim_private(database_dsn)
    assert await world_of_database(by_hand) is None, "an empty one is left alone"
    await by_hand.execute("INSERT INTO system_health (status) VALUES ('waiting_l0')")
    await claim_private(database_dsn)
    assert await world_of_database(by_hand) == "simulated"
    await by_hand.execute("DELETE FROM ews_world")
    await by_hand.execute(
        "INSERT INTO market_data (symbol, datetime, source) VALUES ('USDCOP', now(), 'twelvedata')"
    )
    await claim_private(database_dsn)
    assert await world_of_database(by_hand) == "real", "with real prices it is nobody's private one"


async def test_a_real_instance_asks_the_database_for_what_a_rehearsal_covered(
    database_dsn: str, tmp_path: Path
) -> None:
    """Without its own last price, which only the database has, the vendor's re-sent one would count twice."""
    database = await connected(database_dsn, REAL)
    journal = Journal.open(tmp_path / "journal")
    journal.append([tick(1, source="twelvedata_websocket")])
    async with writing(journal, database) as writer:
        assert await writer.drain(20)
    journal.append([tick(2)])
    recovery = recover(journal.directory, [SYMBOL])
    assert recovery.last[SYMBOL].offset == 2
    recovery.keep("real")
    await look_up_last_ticks(recovery, database, [SYMBOL])
    assert recovery.last[SYMBOL].offset == 1
    journal.close()
    await database.close()


async def test_a_running_writer_stops_at_the_next_transaction(
    database_dsn: str, by_hand: Any, tmp_path: Path
) -> None:
    database = await connected(database_dsn, SIMULATED)
    told: list[WrongWorld] = []
    database.on_wrong_world = told.append
    journal = Journal.open(tmp_path / "journal")
    journal.append(ticks(3))
    async with writing(journal, database) as writer:
        assert await writer.drain(20)
        await set_world(by_hand, "real")
        journal.append(ticks(3, first=4))
        assert not await writer.drain(0.5)
        assert told
        assert database.wrong_world is not None
        assert "holds real prices" in str(writer.last_error)
        assert await by_hand.fetchval("SELECT count(*) FROM realtime_market_data") == 3
        await set_world(by_hand, "simulated")
        assert await writer.drain(20), "set back, it goes on where it was"
        assert database.wrong_world is None
    journal.close()
    await database.close()
    assert await by_hand.fetchval("SELECT count(*) FROM realtime_market_data") == 6


async def test_records_of_the_other_world_stay_in_the_journal(
    database_dsn: str, by_hand: Any, tmp_path: Path
) -> None:
    """What a rehearsal left in STATE_DIR does not get into the real database."""
    database = await connected(database_dsn, REAL)
    journal = Journal.open(tmp_path / "journal")
    real = {"source": "twelvedata_websocket"}
    journal.append([*ticks(5), rejected(), update(bar(source="simulator_websocket"), at=1.0)])
    journal.append([tick(9, **real), tick(10), tick(11, **real)])
    async with writing(journal, database) as writer:
        assert await writer.drain(20)
        assert writer.status()["records_of_the_other_world"] == 8
    journal.close()
    await database.close()
    found = await by_hand.fetch("SELECT tick_offset, source FROM realtime_market_data ORDER BY 1")
    assert [tuple(row) for row in found] == [(9, real["source"]), (11, real["source"])]
    for table in ("market_data", "rejected_ticks", "bar_revisions"):
        assert await by_hand.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_two_first_writers_agree_on_one_world(database_dsn: str, by_hand: Any) -> None:
    await migrate(by_hand)
    real, simulated = await connected(database_dsn, REAL), await connected(database_dsn, SIMULATED)
    async with real.transaction("being first"):
        pass
    with pytest.raises(WrongWorld):
        await simulated.record_health("initializing", {})
    assert await by_hand.fetchval("SELECT world FROM ews_world") == "real"
    assert await by_hand.fetchval("SELECT count(*) FROM system_health") == 0
    await real.close()
    await simulated.close()


class InTheMeantime:
    """A connection; right after its first look for the mark something else happens."""

    def __init__(self, connection: Any, happens: Callable[[], Awaitable[None]]) -> None:
        self._connection = connection
        self._happens: Callable[[], Awaitable[None]] | None = happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def fetchval(self, statement: str, *arguments: Any, **options: Any) -> Any:
        found = await self._connection.fetchval(statement, *arguments, **options)
        if "FROM ews_world" in statement and self._happens is not None:
            happens, self._happens = self._happens, None
            await happens()
        return found


@pytest.mark.parametrize("claims", [True, False])
async def test_a_mark_and_a_row_that_come_between_two_looks_belong_together(
    database_dsn: str, by_hand: Any, claims: bool
) -> None:
    """The demo's service and its own backfill once took each other's first row for a real one."""
    await migrate(by_hand)
    first = await connected(database_dsn, SIMULATED)
    second = InTheMeantime(by_hand, lambda: first.record_health("initializing", {}))
    if claims:
        async with by_hand.transaction():
            await claim_world(second, "simulated", "The database")
    else:
        await check_database(second, "simulated", "The database")
    await first.close()


# --- Redis --------------------------------------------------------------------------------------

PRICE = "usdcop:latest_price"


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Any]:
    client: Any = Redis.from_url(valkey_url, decode_responses=True)
    yield client
    await client.aclose()


def bus_of(url: str, world: World) -> RedisBus:
    names = RedisNames(SIMULATED_PREFIX if world == "simulated" else "")
    return RedisBus(url, names=names, world=RedisWorld(world, names, [SYMBOL]))


async def published(bus: RedisBus, source: str) -> bool:
    """Whether an epoch and a tick got to the server."""
    bus.publish([EpochStarted(SYMBOL, 7, None, None), tick(1, source=source)])
    running = asyncio.create_task(bus.run())
    try:
        return await bus.drain(5.0 if bus.wrong_world is None else 0.2)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await bus.close()


async def test_looking_marks_nothing_and_the_first_key_does(valkey_url: str, client: Any) -> None:
    bus = bus_of(valkey_url, "real")
    await bus.check_world()
    assert await client.keys("*") == []
    assert await published(bus, "twelvedata_websocket")
    assert await client.get("ews:world") == "real"
    assert await client.exists(PRICE)


async def test_a_simulated_instance_keeps_to_names_of_its_own(valkey_url: str, client: Any) -> None:
    async with client.pubsub() as channel:
        await channel.subscribe("market_data:realtime", "simulated:market_data:realtime")
        assert await published(bus_of(valkey_url, "simulated"), "simulator_websocket")
        names = await client.keys("*")
        assert names
        assert [name for name in names if not name.startswith("simulated:")] == []
        heard = set()
        async for message in channel.listen():
            if message["type"] == "message":
                heard.add(message["channel"])
                break
        assert heard == {"simulated:market_data:realtime"}


@pytest.mark.parametrize("mark", ["simulated", "garbage", "", None])
async def test_no_mark_stops_a_real_instance(
    valkey_url: str, client: Any, mark: str | None
) -> None:
    if mark is None:
        await client.lpush("ews:world", "a list")
    else:
        await client.set("ews:world", mark)
    await client.set("simulated:ews:world", "simulated")
    await client.set(PRICE, '{"symbol": "USDCOP", "price": 1.0, "source": "simulator_websocket"}')
    bus = bus_of(valkey_url, "real")
    await bus.check_world()
    assert await published(bus, "twelvedata_websocket")
    assert await client.get("ews:world") == "real"
    assert await client.get("simulated:ews:world") is None
    assert '"twelvedata_websocket"' in await client.get(PRICE)


@asynccontextmanager
async def account(url: str, client: Any, rights: str) -> AsyncIterator[str]:
    """The address for a user with ``rights`` and all commands that they do not take away."""
    await client.execute_command(
        "ACL", "SETUSER", "own", "on", "nopass", "&*", "+@all", *rights.split()
    )
    try:
        yield url.replace("unix://", "unix://own:any@")
    finally:
        await client.acl_deluser("own")


async def test_a_real_instance_with_rights_on_its_own_names_alone_replaces_a_mark(
    valkey_url: str, client: Any
) -> None:
    await client.set("ews:world", "simulated")
    async with account(valkey_url, client, "~usdcop:* ~ews:*") as url:
        assert await published(bus_of(url, "real"), "twelvedata_websocket")
    assert await client.get("ews:world") == "real"


BEFORE_MARKS = "~usdcop:* ~ews:ticks:* ~ews:bars:* ~ews:epoch"


@pytest.mark.parametrize(
    "rights", [BEFORE_MARKS, f"{BEFORE_MARKS} %R~*", "~* -del", "~* -get", "~* -info"]
)
async def test_a_real_instance_without_a_right_on_the_mark_publishes_all_the_same(
    valkey_url: str, client: Any, rights: str
) -> None:
    async with account(valkey_url, client, rights) as url:
        assert await published(bus_of(url, "real"), "twelvedata_websocket")
    assert await client.exists(PRICE)


async def test_a_real_instance_that_has_nothing_to_write_replaces_a_mark_once(
    valkey_url: str, client: Any
) -> None:
    """Over a weekend no price comes, and it looks every five seconds."""
    await client.set("ews:world", "simulated")
    bus = bus_of(valkey_url, "real")

    async def looked() -> bool | None:
        return bus.connected or None

    with capture_logs() as logs:
        running = asyncio.create_task(bus.run())
        try:
            await eventually(looked, 20, "a look at the server")
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await bus.close()
    assert await client.get("ews:world") == "real"
    assert [line["mark"] for line in logs if "mark" in line] == ["simulated"]


@pytest.mark.parametrize(
    "before",
    [
        {"ews:world": "real"},
        {"ews:world": "garbage"},
        {PRICE: '{"price": 4000.0, "source": "twelvedata_rest"}'},
        {PRICE: "4000.0"},
    ],
)
async def test_real_prices_stop_a_simulated_instance(
    valkey_url: str, client: Any, before: dict[str, str]
) -> None:
    await client.mset(before)
    bus = bus_of(valkey_url, "simulated")
    with pytest.raises(WrongWorld, match="holds real prices"):
        await bus.check_world()
    assert not await published(bus, "simulator_websocket")
    assert sorted(await client.keys("*")) == sorted(before)


async def test_keys_of_other_programs_belong_to_nobody(valkey_url: str, client: Any) -> None:
    await client.set("session:42", "a shop's")
    assert await published(bus_of(valkey_url, "simulated"), "simulator_websocket")


async def test_a_redis_from_before_with_simulated_prices_is_simulated(
    valkey_url: str, client: Any
) -> None:
    await client.set(PRICE, '{"price": 1.0, "source": "simulator_rest"}')
    await client.set("ews:epoch", "1750000000000")
    bus = bus_of(valkey_url, "simulated")
    await bus.check_world()
    assert await published(bus, "simulator_websocket")
