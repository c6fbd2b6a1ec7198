"""Reads and vendor writes on a real PostgreSQL."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import msgspec
import pytest

from enhanced_websocket_service.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    DataError,
    StorageError,
)
from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.market.source import Provider, World
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.world import set_world
from tests.storage_samples import CERTIFICATE, OPEN, SYMBOL, bar, tick, ticks, update, writing

SLOT = 300


class SetClock:
    """A clock that the test sets."""

    def __init__(self, now: float) -> None:
        self.at = now

    def now(self) -> float:
        return self.at

    def elapsed(self) -> float:
        return self.at - OPEN

    async def sleep(self, seconds: float) -> None:
        self.at += seconds

    async def sleep_until(self, instant: float) -> None:
        self.at = instant

    def span(self, seconds: float, at_least_real: float = 0.0) -> float:
        return seconds


@pytest.fixture
def clock() -> SetClock:
    return SetClock(OPEN + 86_400.0)


@pytest.fixture
async def database(database_dsn: str, clock: SetClock) -> AsyncIterator[Database]:
    database = Database(database_dsn, Provider("simulator"), clock=clock)
    await database.connect()
    yield database
    await database.close()


async def execute(database: Database, sql: str, *arguments: Any) -> None:
    async with database.connection("testing") as connection:
        await connection.execute(sql, *arguments)


async def store(database: Database, tmp_path: Any, *batches: list[Any], epoch: int = 1) -> None:
    """Through the journal and the writer, like everything live."""
    journal = Journal.open(tmp_path / "journal")
    for batch in batches:
        journal.append(batch)
    async with writing(journal, database, epoch=epoch) as writer:
        assert await writer.drain(20)
    journal.close()


async def mark(dsn: str, world: World) -> None:
    connection = await asyncpg.connect(dsn)
    await set_world(connection, world)
    await connection.close()


# --- vendor bars ------------------------------------------------------------------------------


async def test_prices_go_in_and_come_out_unchanged(database: Database) -> None:
    chance = random.Random(7)
    bars = []
    for i in range(2000):
        low, high = sorted(round(chance.uniform(0.000001, 999_999.9), 6) for _ in range(2))
        middle = [round(chance.uniform(low, high), 6) for _ in range(2)]
        values = {"open": middle[0], "high": high, "low": low, "close": middle[1]}
        bars.append(msgspec.structs.replace(bar(OPEN + i * SLOT, volume=i), **values))
    assert await database.upsert_vendor_bars(bars) == 2000
    assert await database.vendor_bars(SYMBOL, OPEN, OPEN + 1999 * SLOT) == bars


async def test_the_same_again_changes_nothing(database: Database) -> None:
    bars = [bar(OPEN), bar(OPEN + SLOT)]
    assert await database.upsert_vendor_bars([*bars, bars[0]]) == 2
    assert await database.upsert_vendor_bars(bars) == 0
    assert await database.upsert_vendor_bars([]) == 0


async def test_becoming_final_is_not_a_new_version(database: Database, clock: SetClock) -> None:
    await database.upsert_vendor_bars([bar()])
    clock.at += 600
    assert await database.upsert_vendor_bars([bar(status="reconciled")]) == 1
    assert await database.vendor_bars(SYMBOL, OPEN, OPEN) == [bar(status="reconciled")]
    assert await database.upsert_vendor_bars([bar(status="closed")]) == 0
    async with database.connection("testing") as connection:
        assert await connection.fetchval("SELECT count(*) FROM bar_revisions") == 0


async def test_a_bar_that_does_not_fit_stores_nothing(database: Database) -> None:
    for broken in (
        bar(OPEN + SLOT, symbol="MUCHTOOLONGASYMBOL"),
        bar(OPEN + SLOT, volume=2**31),
        bar(OPEN + SLOT, close=1e7),
        bar(OPEN + SLOT, interval_s=60),
    ):
        with pytest.raises(DataError):
            await database.upsert_vendor_bars([bar(), broken])
    assert await database.vendor_bars(SYMBOL, OPEN, OPEN + SLOT) == []


async def test_two_upserts_at_once(database: Database) -> None:
    first = [bar(OPEN + i * SLOT) for i in range(500)]
    second = [msgspec.structs.replace(b, close=4100.75) for b in reversed(first)]
    await asyncio.gather(database.upsert_vendor_bars(first), database.upsert_vendor_bars(second))
    closes = {b.close for b in await database.vendor_bars(SYMBOL, OPEN, OPEN + 500 * SLOT)}
    assert closes <= {4100.5, 4100.75}


# --- bars -------------------------------------------------------------------------------------


async def test_pages_join_without_loss(database: Database) -> None:
    bars = [bar(OPEN + i * SLOT, 4100 + i / 100) for i in range(25)]
    await database.upsert_vendor_bars(bars)
    seen: list[Bar] = []
    cursor = None
    while True:
        page = await database.bars(SYMBOL, start=OPEN, limit=10, cursor=cursor)
        seen += page.bars
        if (cursor := page.next_cursor) is None:
            break
    assert seen == bars
    exact = await database.bars(SYMBOL, start=OPEN, limit=25)
    assert (len(exact.bars), exact.next_cursor) == (25, None)


async def test_ranges_include_both_ends_and_without_a_start_the_newest_come(
    database: Database,
) -> None:
    bars = [bar(OPEN + i * SLOT) for i in range(10)]
    await database.upsert_vendor_bars(bars)
    assert (await database.bars(SYMBOL, start=OPEN + SLOT, end=OPEN + 3 * SLOT)).bars == bars[1:4]
    assert (await database.bars(SYMBOL, limit=3)).bars == bars[-3:]
    assert (await database.bars(SYMBOL, end=OPEN + 4 * SLOT, limit=2)).bars == bars[3:5]
    assert await database.vendor_bars(SYMBOL, OPEN, OPEN + SLOT) == bars[:2]
    assert list(await database.slots_present(SYMBOL, OPEN, OPEN + SLOT)) == [OPEN, OPEN + SLOT]


async def test_worlds_do_not_mix(database: Database, database_dsn: str, tmp_path: Any) -> None:
    await database.upsert_vendor_bars([bar(close=1.0)])
    await store(database, tmp_path / "simulated", [tick(1)])
    await database.close()
    await mark(database_dsn, "real")
    real = Database(database_dsn, Provider("twelvedata"))
    await real.connect()
    await real.upsert_vendor_bars([bar(close=2.0, source="twelvedata")])
    await store(real, tmp_path / "real", [tick(2, source="twelvedata_rest")], epoch=2)
    await mark(database_dsn, "simulated")
    await database.connect()
    for here, close, source in ((database, 1.0, "simulator"), (real, 2.0, "twelvedata")):
        assert [b.close for b in (await here.bars(SYMBOL)).bars] == [close]
        assert [b.close for b in (await here.bars(SYMBOL, as_of=OPEN + 1e8)).bars][:1] == [close]
        assert await here.slots_present(SYMBOL, OPEN, OPEN) == {OPEN: [source]}
        assert [b.close for b in (await here.bars(SYMBOL, 900, as_of=OPEN + 1e9)).bars] == [close]
        last = await here.last_bar(SYMBOL)
        assert last is not None
        assert last.close == close
    assert (await database.bars(SYMBOL, source="twelvedata")).bars == []
    assert [t.offset for t in await database.ticks(SYMBOL)] == [1]
    assert [t.offset for t in await real.ticks(SYMBOL)] == [2]
    assert [b.source for b in (await database.bars(SYMBOL, 60)).bars] == ["simulator_websocket"]
    await real.close()


async def test_the_vendor_speaks_for_a_slot_and_others_can_be_asked_for(
    database: Database, tmp_path: Any
) -> None:
    live = bar(close=1.0, source="simulator_websocket", certificate=CERTIFICATE)
    await store(database, tmp_path, [update(live, at=OPEN + 301.0)])
    assert (await database.bars(SYMBOL)).bars == [live]
    assert await database.last_bar(SYMBOL) == live
    assert await database.last_bar(SYMBOL, vendor_only=True) is None
    await database.upsert_vendor_bars([bar(close=2.0)])
    vendor = bar(close=2.0, revision=1)  # above the live one that clients hold
    assert (await database.bars(SYMBOL)).bars == [vendor]
    assert (await database.bars(SYMBOL, source="simulator_websocket")).bars == [live]
    assert await database.slots_present(SYMBOL, OPEN, OPEN) == {
        OPEN: ["simulator", "simulator_websocket"]
    }
    assert await database.last_bar(SYMBOL, vendor_only=True) == vendor


@pytest.mark.parametrize("spoilt", ["grade = 'partial'", "grade = 'close_only'"])
async def test_a_slot_without_a_whole_bar_is_not_complete(
    database: Database, tmp_path: Any, spoilt: str
) -> None:
    lossy = bar(
        source="simulator_websocket", certificate=msgspec.structs.replace(CERTIFICATE, partial=True)
    )
    await store(database, tmp_path, [update(lossy, at=OPEN + 301.0)])
    await database.upsert_vendor_bars([bar(open_time=OPEN + SLOT), bar(open_time=OPEN + 2 * SLOT)])
    async with database.transaction("spoiling a bar") as connection:
        await connection.execute(
            f"UPDATE market_data SET {spoilt} WHERE datetime = to_timestamp({OPEN + SLOT})"
        )
    assert await database.slots_present(SYMBOL, OPEN, OPEN + 2 * SLOT) == {
        OPEN: [],
        OPEN + SLOT: [],
        OPEN + 2 * SLOT: ["simulator"],
    }


async def test_as_of_is_what_a_consumer_saw(
    database: Database, tmp_path: Any, clock: SetClock
) -> None:
    live = [
        bar(close=4100.0 + i, source="simulator_websocket", revision=i, status=status)
        for i, status in enumerate(("closed", "revised", "revised"))
    ]
    published = [OPEN + 301.0, OPEN + 310.0, OPEN + 320.5]
    records = [update(b, at=at) for b, at in zip(live, published, strict=True)]
    await store(database, tmp_path, records[:1], records[1:])
    clock.at = OPEN + 400.0
    await database.upsert_vendor_bars([bar(close=5000.0)])
    clock.at = OPEN + 700.0
    await database.upsert_vendor_bars([bar(close=5001.0)])

    async def close_at(instant: float) -> list[float]:
        seen = (await database.bars(SYMBOL, as_of=instant)).bars
        assert (await database.bars(SYMBOL, start=OPEN, as_of=instant)).bars == seen
        return [b.close for b in seen]

    assert await close_at(OPEN + 300.9) == []
    assert await close_at(OPEN + 301.0) == [4100.0]
    assert await close_at(OPEN + 319.0) == [4101.0]
    assert await close_at(OPEN + 321.0) == [4102.0]
    assert await close_at(OPEN + 399.0) == [4102.0]
    assert await close_at(OPEN + 400.0) == [5000.0]
    assert await close_at(OPEN + 699.0) == [5000.0]
    assert await close_at(OPEN + 700.0) == [5001.0]
    vendor = (await database.bars(SYMBOL, as_of=OPEN + 500.0, source="simulator")).bars
    assert [(b.close, b.revision) for b in vendor] == [(5000.0, 3)]
    assert [(b.close, b.revision) for b in (await database.bars(SYMBOL)).bars] == [(5001.0, 4)]
    # What was composed of it then.
    for instant, close in ((OPEN + 1000.0, [5001.0]), (OPEN + 899.0, [])):
        page = await database.bars(SYMBOL, 900, as_of=instant)
        assert [b.close for b in page.bars] == close


@pytest.mark.parametrize(("interval_s", "parts"), [(900, 3), (1800, 6), (3600, 12)])
async def test_longer_bars_are_composed(
    database: Database, clock: SetClock, interval_s: int, parts: int
) -> None:
    chance = random.Random(interval_s)
    bars = []
    for i in range(36):
        low, a, b, high = sorted(round(chance.uniform(4000, 4200), 6) for _ in range(4))
        values = {"open": a, "high": high, "low": low, "close": b, "volume": i}
        bars.append(msgspec.structs.replace(bar(OPEN + i * SLOT), **values))
    del bars[4]  # a hole does not shift anything
    await database.upsert_vendor_bars(bars)
    expected = []
    for label in range(OPEN, OPEN + 36 * SLOT, interval_s):
        inside = [b for b in bars if label <= b.open_time < label + interval_s]
        expected.append(
            bar(
                label,
                inside[-1].close,
                interval_s=interval_s,
                open=inside[0].open,
                high=max(b.high for b in inside),
                low=min(b.low for b in inside),
                volume=sum(b.volume for b in inside),
            )
        )
    assert (await database.bars(SYMBOL, interval_s, start=OPEN)).bars == expected
    assert (await database.bars(SYMBOL, interval_s, limit=2)).bars == expected[-2:]
    page = await database.bars(SYMBOL, interval_s, start=OPEN, limit=1)
    assert page.bars == expected[:1]
    again = await database.bars(SYMBOL, interval_s, cursor=page.next_cursor, limit=1)
    assert again.bars == expected[1:2]
    # Never a bar of which only a part was looked at, and none that has not ended.
    cut = await database.bars(SYMBOL, interval_s, start=OPEN + 1, end=expected[1].open_time)
    assert cut.bars == expected[1:2]
    clock.at = expected[1].open_time + interval_s - 1.0
    assert (await database.bars(SYMBOL, interval_s)).bars == expected[:1]


async def test_days_are_days_of_the_zone(database: Database) -> None:
    evening = OPEN - OPEN % 86_400 + 4 * 3600  # 23:00 of the day before in Bogota
    await database.upsert_vendor_bars([bar(evening, 1.0), bar(OPEN, 2.0), bar(OPEN + SLOT, 3.0)])
    days = (await database.bars(SYMBOL, 86_400)).bars
    midnight = OPEN - 8 * 3600
    assert [(b.open_time, b.close) for b in days] == [(midnight - 86_400, 1.0), (midnight, 3.0)]


async def test_a_composed_bar_names_its_sources_and_grows_its_revision(
    database: Database, tmp_path: Any
) -> None:
    live = bar(OPEN + SLOT, source="simulator_websocket", revision=2, status="revised")
    await store(database, tmp_path, [update(live, at=OPEN + 601.0)])
    await database.upsert_vendor_bars([bar(OPEN, status="reconciled")])
    (composed,) = (await database.bars(SYMBOL, 900)).bars
    assert composed.source == "simulator+simulator_websocket"
    assert (composed.revision, composed.status) == (2, "closed")


async def test_minutes_are_composed_of_the_ticks_that_made_the_bars(
    database: Database, tmp_path: Any, clock: SetClock
) -> None:
    await store(
        database,
        tmp_path,
        [
            tick(1, 10.0, timestamp=OPEN + 5),
            tick(2, 12.0, timestamp=OPEN + 59, volume=3),
            tick(3, 11.0, timestamp=OPEN + 59, volume=4),  # the same second: arrival decides
            tick(4, 9.0, timestamp=OPEN + 58),
            tick(5, 99.0, timestamp=OPEN + 30, flags=("late",)),
            tick(6, 98.0, timestamp=OPEN + 31, flags=("future",)),
            tick(7, 97.0, timestamp=OPEN + 32, trading_session=False),
            tick(8, 20.0, timestamp=OPEN + 60, source="simulator_rest"),
            tick(9, 21.0, timestamp=OPEN + 200, received_at=OPEN + 1000.0),
        ],
    )
    minutes = (await database.bars(SYMBOL, 60, start=OPEN)).bars
    assert [(b.open_time - OPEN, b.open, b.high, b.low, b.close) for b in minutes] == [
        (0, 10.0, 12.0, 9.0, 11.0),
        (60, 20.0, 20.0, 20.0, 20.0),
        (180, 21.0, 21.0, 21.0, 21.0),
    ]
    assert [b.volume for b in minutes] == [7, 0, 0]
    assert [b.source for b in minutes[:2]] == ["simulator_websocket", "simulator_rest"]
    assert (await database.bars(SYMBOL, 60, limit=1)).bars == minutes[-1:]
    assert (await database.bars(SYMBOL, 60, as_of=OPEN + 999.0)).bars == minutes[:2]
    clock.at = OPEN + 100.0
    assert (await database.bars(SYMBOL, 60, end=OPEN + 60)).bars == minutes[:1]


@pytest.mark.parametrize(
    "wrong", [{"interval_s": 7}, {"limit": 0}, {"limit": 10**9}, {"interval_s": 120}]
)
async def test_questions_without_an_answer(database: Database, wrong: dict[str, int]) -> None:
    with pytest.raises(DataError):
        await database.bars(SYMBOL, **wrong)  # type: ignore[arg-type]


async def test_absurd_instants_are_no_error(database: Database) -> None:
    for extreme in (-1e18, 1e18):
        assert (await database.bars(SYMBOL, start=extreme, end=extreme)).bars == []
        assert await database.ticks(SYMBOL, start=extreme, end=extreme) == []
        assert await database.slots_present(SYMBOL, extreme, extreme) == {}


# --- ticks, health, epochs --------------------------------------------------------------------


async def test_ticks_page_by_offset(database: Database, tmp_path: Any) -> None:
    stored = [*ticks(30, flags=("crossed",)), *ticks(5, epoch=2, bid=None, ask=None)]
    await store(database, tmp_path, stored, epoch=2)
    seen = await database.ticks(SYMBOL, after=(0, 0), limit=20)
    while page := await database.ticks(SYMBOL, after=(seen[-1].epoch, seen[-1].offset), limit=7):
        seen += page
    assert seen == stored
    assert await database.ticks(SYMBOL, limit=6) == stored[-6:]
    assert await database.ticks(SYMBOL, source="nobody") == []
    assert await database.ticks(SYMBOL, source=stored[0].source, limit=100) == stored
    known = [tick for tick in stored if tick.received_at <= stored[9].received_at]
    assert 0 < len(known) < len(stored)
    for after in (None, (0, 0)):
        as_of = await database.ticks(SYMBOL, after=after, as_of=stored[9].received_at, limit=100)
        assert as_of == known
    inside = await database.ticks(SYMBOL, start=OPEN + 10, end=OPEN + 12)
    assert inside == stored[9:12]
    assert await database.ticks("EURUSD", limit=1) == []
    assert await database.highest_epoch() == 2


async def test_health_rows(database: Database) -> None:
    details = {"state": "active", "odd": "\0", "clock": SetClock}
    await database.record_health("healthy", details, 4.6, None)
    await database.record_health("unhealthy", {}, None, "no database")
    async with database.connection("testing") as connection:
        rows = await connection.fetch("SELECT * FROM system_health ORDER BY id")
    assert [row["service_name"] for row in rows] == ["enhanced_websocket_service"] * 2
    assert (rows[0]["status"], rows[0]["response_time_ms"]) == ("healthy", 5)
    assert msgspec.json.decode(rows[0]["details"])["state"] == "active"
    assert rows[1]["error_message"] == "no database"


# --- connections ------------------------------------------------------------------------------


async def test_ping_measures(database: Database) -> None:
    assert 0 < await database.ping() < 5000


async def test_before_connecting_nothing_works_and_says_so(database_dsn: str) -> None:
    database = Database(database_dsn, Provider("simulator"))
    assert not database.connected
    for attempt in (database.ping(), database.bars(SYMBOL), database.record_health("x", {})):
        with pytest.raises(DatabaseUnavailable, match="not been reached yet"):
            await attempt
    await database.close()


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://user:s3cr3t-pw@127.0.0.1:1/nothing",
        "postgresql://user:s3cr3t-pw@/nothing?host=/nowhere",
    ],
)
async def test_an_unreachable_server_is_named_without_the_password(dsn: str) -> None:
    database = Database(dsn, Provider("simulator"))
    with pytest.raises(DatabaseUnavailable) as caught:
        await database.connect()
    assert "s3cr3t" not in str(caught.value)
    assert not database.connected
    await database.close()


@pytest.mark.parametrize("dsn", ["postgresql://user:s3cr3t/pw@host:5432/db", "http://s3cr3t@x"])
async def test_a_dsn_that_makes_no_sense(dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="DATABASE_URL cannot be understood") as caught:
        await Database(dsn, Provider("simulator")).connect()
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_wrong_password_and_a_missing_database_may_be_repaired_later(
    database_dsn: str,
) -> None:
    base, _, query = database_dsn.partition("?")
    missing = base.rpartition("/")[0] + "/no_such_database" + (f"?{query}" if query else "")
    with pytest.raises(DatabaseUnavailable, match="no_such_database"):
        await Database(missing, Provider("simulator")).connect()


async def test_killed_connections_are_replaced(database: Database, database_dsn: str) -> None:
    await asyncio.gather(*(database.ping() for _ in range(5)))
    killer = await asyncpg.connect(database_dsn)
    await killer.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await killer.close()
    assert (await database.bars(SYMBOL)).bars == []


async def test_a_schema_that_was_taken_away_is_not_called_unavailable(database: Database) -> None:
    await execute(database, "DROP TABLE market_data CASCADE")
    with pytest.raises(StorageError, match=r"refused.*market_data") as caught:
        await database.bars(SYMBOL)
    assert not isinstance(caught.value, DatabaseUnavailable)


async def test_a_held_lock_ends_in_unavailable(database_dsn: str) -> None:
    database = Database(database_dsn, Provider("simulator"), timeout_s=2.0)
    await database.connect()
    holder = await asyncpg.connect(database_dsn)
    async with holder.transaction():
        await holder.execute("LOCK TABLE market_data")
        with pytest.raises(DatabaseUnavailable):
            await database.upsert_vendor_bars([bar()])
    await holder.close()
    assert await database.upsert_vendor_bars([bar()]) == 1
    await database.close()


@pytest.mark.parametrize(
    ("closes", "largest"),
    [
        ([], None),
        ([4000.0], None),
        ([4000.0, 4100.0, 4059.0], 0.025),
        ([4000.0, 6000.0, 4000.0], 0.5),
        # Faults of the data: a bar in another unit is no move that the pair ever made.
        ([4000.0, 40.0, 4040.0, 404_000.0, 4040.0], None),
    ],
)
async def test_the_largest_move_of_the_history(
    database: Database, closes: list[float], largest: float | None
) -> None:
    bars = [
        Bar(SYMBOL, SLOT, OPEN + number * SLOT, *[close] * 4, 0, "simulator", 0, "closed")
        for number, close in enumerate(closes)
    ]
    await database.upsert_vendor_bars(bars)
    found = await database.largest_move(SYMBOL)
    assert found == (None if largest is None else pytest.approx(largest))
