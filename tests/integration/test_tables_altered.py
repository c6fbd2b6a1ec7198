"""Tables that somebody alters while the service runs, ids that end, and what ``db migrate`` makes anew."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.errors import RowsAltered, UnfitTables
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.storage import id_width
from enhanced_websocket_service.storage.address import answer_of
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.migrate import migrate, script
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.writer import QUARANTINE, STORING, WHOLE_BATCHES
from tests.foreign_owner import execute, foreign_owner
from tests.integration.test_existing_databases import BARS, REQUIRED, TICKS, TICKS_BY_MONTH, trigger
from tests.storage_samples import (
    OPEN,
    SYMBOL,
    bar,
    rows,
    stored,
    tick,
    ticks,
    told,
    update,
    writing,
)

DAY_S = 86_400


@pytest.fixture
def failures() -> Failures:
    return Failures(SystemClock())


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    database = Database(database_dsn, Provider("simulator"))
    yield database
    await database.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal.open(tmp_path / "journal")
    yield journal
    journal.close()


HELPED = {
    # what somebody does while we run: the service helps itself
    "volume becomes BIGINT": f"ALTER TABLE {TICKS} ALTER volume TYPE bigint",
    "prices become DOUBLE PRECISION": f"ALTER TABLE {TICKS} ALTER last TYPE float8",
    "a column of their own": f"ALTER TABLE {TICKS} ADD exchange TEXT",
    "an index": f"CREATE INDEX ON {TICKS} (last)",
    "a trigger that copies": "CREATE TABLE copies (last NUMERIC);"
    + trigger(TICKS, "INSERT INTO copies VALUES (NEW.last); RETURN NEW;"),
    "bars become DOUBLE PRECISION": "DROP VIEW market_bars; "
    f"ALTER TABLE {BARS} ALTER close TYPE float8, ALTER volume TYPE numeric",
}
HELD = {
    # what somebody does while we run, the words that tell it, and what mends it
    "a column is dropped": (
        f"ALTER TABLE {TICKS} DROP ask",
        "realtime_market_data lacks ask.",
        f"ALTER TABLE {TICKS} ADD ask NUMERIC(12,6)",
    ),
    "prices become REAL": (
        f"ALTER TABLE {TICKS} ALTER last TYPE real",
        "realtime_market_data.last is REAL",
        f"ALTER TABLE {TICKS} ALTER last TYPE float8",
    ),
    "time loses its zone": (
        f"ALTER TABLE {TICKS} ALTER time TYPE timestamp",
        "which does not say in which time zone",
        f"ALTER TABLE {TICKS} ALTER time TYPE timestamptz USING time AT TIME ZONE 'UTC'",
    ),
    "a NOT NULL column": (
        f"ALTER TABLE {TICKS} ADD exchange TEXT NOT NULL DEFAULT ''; "
        f"ALTER TABLE {TICKS} ALTER exchange DROP DEFAULT",
        "realtime_market_data.exchange is NOT NULL",
        f"ALTER TABLE {TICKS} DROP exchange",
    ),
    "a CHECK that nothing meets": (
        f"ALTER TABLE {TICKS} ADD CONSTRAINT theirs CHECK (last < 1) NOT VALID",
        'violates check constraint "theirs" [23514]',
        f"ALTER TABLE {TICKS} DROP CONSTRAINT theirs",
    ),
    "a trigger that keeps all out": (
        trigger(TICKS, "RETURN NULL;"),
        "is not there; its triggers: theirs",
        f"DROP TRIGGER theirs ON {TICKS}",
    ),
    "a trigger that rounds": (
        trigger(TICKS, "NEW.last := round(NEW.last); RETURN NEW;"),
        "has other values in last; its triggers: theirs",
        f"DROP TRIGGER theirs ON {TICKS}",
    ),
    "a trigger that changes afterwards": (
        trigger(
            TICKS,
            f"UPDATE {TICKS} SET source = 'me' WHERE id = NEW.id; RETURN NULL;",
            "AFTER INSERT",
        ),
        "has other values in source; its triggers: theirs",
        f"DROP TRIGGER theirs ON {TICKS}",
    ),
    "a trigger that raises": (
        trigger(TICKS, "RAISE 'closed for today';"),
        "closed for today",
        f"DROP TRIGGER theirs ON {TICKS}",
    ),
    "a deferred trigger that raises": (
        "CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'at the end'; END $$; "
        f"CREATE CONSTRAINT TRIGGER theirs AFTER INSERT ON {TICKS} DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION theirs()",
        "at the end",
        f"DROP TRIGGER theirs ON {TICKS}",
    ),
    "a foreign key": (
        f"CREATE TABLE pairs (symbol VARCHAR(10) PRIMARY KEY); ALTER TABLE {TICKS} ADD CONSTRAINT theirs "
        "FOREIGN KEY (symbol) REFERENCES pairs NOT VALID",
        'violates foreign key constraint "theirs"',
        "INSERT INTO pairs VALUES ('USDCOP')",
    ),
    "a rule": (
        f"CREATE RULE nothing AS ON INSERT TO {TICKS} DO INSTEAD NOTHING",
        "has the rule nothing",
        f"DROP RULE nothing ON {TICKS}",
    ),
    "the table is renamed": (
        f"ALTER TABLE {TICKS} RENAME TO away",
        "realtime_market_data is not there",
        f"ALTER TABLE away RENAME TO {TICKS}",
    ),
    "its index is dropped": (
        f"DROP INDEX {TICKS}_symbol_epoch_tick_offset_key; "
        f"ALTER TABLE {TICKS} ADD CONSTRAINT theirs CHECK (last < 1) NOT VALID",
        "has no unique index over a tick's place",
        f"ALTER TABLE {TICKS} DROP CONSTRAINT theirs; "
        f"CREATE UNIQUE INDEX ON {TICKS} (symbol, epoch, tick_offset)",
    ),
    "ids run out": (
        f"ALTER SEQUENCE {TICKS}_id_seq MAXVALUE 1000; SELECT setval('{TICKS}_id_seq', 1000)",
        "reached maximum value of sequence",
        f"ALTER SEQUENCE {TICKS}_id_seq NO MAXVALUE",
    ),
}


@pytest.mark.parametrize("name", list(HELPED))
async def test_what_can_be_lived_with_is_lived_with(
    database: Database, journal: Journal, failures: Failures, database_dsn: str, name: str
) -> None:
    live = bar(source="simulator_websocket", close=4100.123457)
    journal.append(ticks(100))
    async with writing(journal, database, failures=failures) as writer:
        assert await writer.drain(20)
        await execute(database_dsn, HELPED[name])
        journal.append([*ticks(100, first=101), update(live, at=OPEN + 301.0)])
        assert await writer.drain(20), writer.last_error
        assert writer.status()["quarantined_records"] == 0
    assert failures.present == ()
    assert await database.ticks(SYMBOL, after=(0, 0)) == ticks(200)
    assert (await database.bars(SYMBOL)).bars == [live]


@pytest.mark.parametrize("name", list(HELD))
async def test_what_cannot_is_named_and_nothing_is_lost(
    database: Database, journal: Journal, failures: Failures, database_dsn: str, name: str
) -> None:
    sql, words, cure = HELD[name]
    journal.append(ticks(100))
    async with writing(journal, database, failures=failures) as writer:
        assert await writer.drain(20)
        await execute(database_dsn, sql)
        for first in (101, 102):  # one tick, as in a quiet market, then many
            journal.append(ticks(1 if first == 101 else 99, first=first))
            await told(writer, words)
        failure = failures.of(STORING)
        assert failure is not None
        assert writer.lag_records == 100
        await execute(database_dsn, cure)
        assert await writer.drain(20), writer.last_error
        assert writer.status()["quarantined_records"] == 0
    assert failures.present == ()
    assert await stored(database) == [(1, i) for i in range(1, 201)]
    assert await rows(database, "SELECT count(*) FROM rejected_ticks") == [(0,)]


async def test_a_table_that_was_dropped_is_named_and_made_anew_by_its_owner(
    database: Database, journal: Journal, database_dsn: str
) -> None:
    """Its rows are gone with it; what came later is not."""
    async with writing(journal, database) as writer:
        journal.append(ticks(5))
        assert await writer.drain(20)
        await execute(database_dsn, f"DROP TABLE {TICKS}")
        journal.append(ticks(5, first=6))
        await told(writer, "realtime_market_data is not there, although")
        owner = await asyncpg.connect(database_dsn)
        assert "CREATE TABLE IF NOT EXISTS realtime_market_data" in await script(owner)
        await migrate(owner, by_owner=True)
        assert await script(owner) == "-- The schema is up to date."
        await owner.close()
        assert await writer.drain(20), writer.last_error
    assert await stored(database) == [(1, i) for i in range(6, 11)]


async def test_a_time_without_a_partition_is_named_and_a_wrong_stamp_waits_for_none(
    database: Database, journal: Journal, database_dsn: str
) -> None:
    await execute(database_dsn, TICKS_BY_MONTH)
    july = OPEN + 40 * DAY_S
    async with writing(journal, database) as writer:
        # A stamp of last year, received today: no partition is made for it, and nothing waits.
        journal.append([tick(1), tick(2, timestamp=OPEN - 400 * DAY_S), tick(3)])
        assert await writer.drain(20), writer.last_error
        assert writer.status()["quarantined_records"] == 1
        later = [tick(4), *[tick(i, timestamp=july, received_at=july + 0.5) for i in (5, 6)]]
        journal.append(later)
        said = await told(writer, "no partition of relation")
        cure = said.partition("To mend it, make the partition, or one for all that have none: ")[2]
        await execute(database_dsn, cure)
        assert await writer.drain(20), writer.last_error
    assert await stored(database) == [(1, i) for i in (1, 3, 4, 5, 6)]


async def test_a_row_that_the_owner_refuses_is_told_until_many_batches_were_stored_whole(
    database: Database, journal: Journal, failures: Failures, database_dsn: str
) -> None:
    async with writing(journal, database, failures=failures) as writer:
        journal.append(ticks(3))
        assert await writer.drain(20)
        await execute(
            database_dsn, f"ALTER TABLE {TICKS} ADD CONSTRAINT theirs CHECK (tick_offset <> 13)"
        )
        journal.append(ticks(10, first=10))
        assert await writer.drain(20)
        journal.append([tick(13)])  # alone: what the table takes otherwise tells who is at fault
        assert await writer.drain(20)
        failure = failures.of(QUARANTINE)
        assert failure is not None
        assert failure.reason.startswith("2 records since the start are not in their tables")
        assert (
            'tick USDCOP 1:13: new row for relation "realtime_market_data" violates'
            in failure.reason
        )
        assert "theirs" in failure.reason
        assert "[23514]" in failure.reason
        for first in range(100, 100 + WHOLE_BATCHES):
            assert failures.of(QUARANTINE) is not None
            journal.append([tick(first)])
            assert await writer.drain(20)
        assert failures.of(QUARANTINE) is None
        assert writer.status()["quarantined_records"] == 2
    assert await rows(
        database, "SELECT count(*) FROM rejected_ticks WHERE raw LIKE '%\"offset\":13,%'"
    ) == [(2,)]


@pytest.mark.parametrize("body", ["RETURN NULL;", "NEW.close := 1; RETURN NEW;"])
async def test_triggers_that_keep_out_or_change_bars_are_told(
    database: Database, journal: Journal, database_dsn: str, body: str
) -> None:
    await database.connect()
    await execute(database_dsn, trigger(BARS, body))
    live = bar(source="simulator_websocket")
    journal.append([update(live, at=OPEN + 301.0)])
    async with writing(journal, database) as writer:
        await told(writer, "is not in market_data as it was written; its triggers: theirs")
        with pytest.raises(RowsAltered, match="1 of 1 vendor bars are not in market_data"):
            await database.upsert_vendor_bars([bar(OPEN + 300)])
        await execute(database_dsn, f"DROP TRIGGER theirs ON {BARS}")
        assert await writer.drain(20), writer.last_error
    assert (await database.bars(SYMBOL)).bars == [live]


async def test_ids_are_wide_and_the_sequence_goes_beyond_2_to_the_31(
    database: Database, journal: Journal, database_dsn: str
) -> None:
    """The document's tables, almost used up; its own views and rights stay."""
    await execute(
        database_dsn,
        REQUIRED + "".join(f"SELECT setval('{one}_id_seq', 2147483646);" for one in (TICKS, BARS)),
    )
    async with writing(journal, database) as writer:
        live = bar(source="simulator_websocket")
        journal.append([*ticks(2000), update(live, at=OPEN + 301.0)])
        assert await writer.drain(20), writer.last_error
        assert writer.status()["quarantined_records"] == 0
    assert await rows(database, f"SELECT max(id) FROM {TICKS}") == [(2147483646 + 2000,)]
    assert await rows(database, "SELECT close::float8 FROM market_bars") == [(4100.5,)]
    assert (
        "id DESC" in (await rows(database, "SELECT pg_get_viewdef('market_bars'::regclass)"))[0][0]
    )


async def test_large_tables_are_only_rewritten_when_asked_for(
    database: Database, database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(id_width, "SMALL_BYTES", 0)
    await execute(database_dsn, REQUIRED)
    await database.connect()
    ids = (
        "SELECT format_type(atttypid, NULL) FROM pg_attribute "
        "WHERE attrelid = '{}'::regclass AND attname = 'id'"
    )
    assert await rows(database, ids.format(TICKS)) == [("integer",)]
    caveats = await answer_of(database_dsn, 10, "simulated")
    assert any(
        "The ids of public.realtime_market_data end at 2,147,483,647" in one for one in caveats
    )
    assert any(
        "`db migrate --rewrite` as ews makes them BIGINT: it rewrites" in one for one in caveats
    )
    owner = await asyncpg.connect(database_dsn)
    await migrate(owner, by_owner=True)
    assert await rows(database, ids.format(TICKS)) == [("integer",)]
    assert "ALTER COLUMN id TYPE BIGINT" in await script(owner)
    await migrate(owner, by_owner=True, rewrite=True)
    await owner.close()
    for table in (TICKS, BARS, "system_health"):
        assert await rows(database, ids.format(table)) == [("bigint",)]
    assert await answer_of(database_dsn, 10, "simulated") == ()


async def test_what_holds_an_id_fast_keeps_nobody_from_starting(
    database: Database, database_dsn: str
) -> None:
    await execute(database_dsn, REQUIRED + f"CREATE VIEW theirs AS SELECT id, last FROM {TICKS};")
    holder = await asyncpg.connect(database_dsn)
    reading = holder.transaction()
    await reading.start()
    await holder.fetch("SELECT count(*) FROM system_health")  # its lock lasts to the end
    await database.connect()
    await reading.rollback()
    await holder.close()
    ids = await rows(
        database,
        "SELECT attrelid::regclass::text, format_type(atttypid, NULL) FROM pg_attribute "
        "WHERE attname = 'id' AND attrelid::regclass::text IN "
        "('market_data', 'realtime_market_data', 'system_health') ORDER BY 1",
    )
    assert ids == [(BARS, "bigint"), (TICKS, "integer"), ("system_health", "integer")]


async def test_row_level_security_is_refused_for_the_role_that_it_applies_to(
    database_dsn: str,
) -> None:
    async with foreign_owner(database_dsn) as place:
        await place.migrated()
        await place.as_owner(
            f"ALTER TABLE {TICKS} ENABLE ROW LEVEL SECURITY; "
            f"CREATE POLICY theirs ON {TICKS} USING (symbol = 'EURUSD')"
        )
        database = Database(place.service_dsn, Provider("simulator"))
        with pytest.raises(
            UnfitTables, match="realtime_market_data has row-level security that applies"
        ):
            await database.connect()
        await place.as_owner(f"ALTER TABLE {TICKS} DISABLE ROW LEVEL SECURITY")
        await database.connect()
        await database.close()


async def test_tables_in_a_schema_behind_the_first_are_not_hidden_by_new_ones(
    database_dsn: str,
) -> None:
    await execute(database_dsn, REQUIRED + "CREATE SCHEMA trading;")
    database = Database(f"{database_dsn}&search_path=trading,public", Provider("simulator"))
    with pytest.raises(UnfitTables, match=r"end DATABASE_URL with \?search_path=public"):
        await database.connect()
    await database.close()
    elsewhere = Database(f"{database_dsn}&search_path=trading", Provider("simulator"))
    await elsewhere.connect()
    assert await rows(elsewhere, "SELECT to_regclass('trading.bar_grades')::text") == [
        ("bar_grades",)
    ]
    await elsewhere.close()


async def test_a_database_that_is_refused_is_judged_before_anything_starts(
    database_dsn: str,
) -> None:
    """What ``config check`` asks: it changes nothing, and says all of it."""
    await execute(database_dsn, REQUIRED + f"ALTER TABLE {BARS} ALTER datetime TYPE timestamp;")
    with pytest.raises(UnfitTables, match=r"market_data\.datetime is TIMESTAMP WITHOUT TIME ZONE"):
        await answer_of(database_dsn, 10, "simulated")
    connection: Any = await asyncpg.connect(database_dsn)
    assert await connection.fetchval("SELECT to_regclass('ews_schema_migrations')") is None
    await connection.close()


async def test_the_last_good_tick_tells_who_is_at_fault(
    database: Database, journal: Journal
) -> None:
    """A tick that fits nowhere, alone, and the first of all: nothing waits for it."""
    async with writing(journal, database) as writer:
        journal.append([msgspec.structs.replace(tick(1), symbol="MUCHTOOLONG")])
        assert await writer.drain(20), writer.last_error
        journal.append([tick(2, price=5e6)])
        assert await writer.drain(20), writer.last_error
        assert writer.status()["quarantined_records"] == 2
