"""PostgreSQL is there but slow, full, or a standby: the writer waits and then stores everything once."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest

from enhanced_websocket_service.errors import DatabaseUnavailable
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.writer import JournalWriter
from tests.storage_samples import rejected, rows, stored, ticks, writing
from tests.waiting import eventually

FULL = """
    CREATE FUNCTION disk_is_full() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
    CREATE TRIGGER full_disk BEFORE INSERT ON realtime_market_data EXECUTE FUNCTION disk_is_full();
"""
SLOW = """
    CREATE FUNCTION take_long() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN IF NEW.tick_offset % 10 = 0 THEN PERFORM pg_sleep(0.012); END IF; RETURN NEW; END $$;
    CREATE TRIGGER slow_row BEFORE INSERT ON realtime_market_data FOR EACH ROW EXECUTE FUNCTION take_long();
"""
READ_ONLY = """
    DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database());
        PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid();
    END $$;
"""
WRITABLE = """
    SET default_transaction_read_only = off;
    DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I RESET default_transaction_read_only', current_database());
        PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid();
    END $$;
"""


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal.open(tmp_path / "journal", segment_bytes=20_000)
    yield journal
    journal.close()


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    """Short of patience, so that a lock is noticed within the test."""
    database = Database(database_dsn, Provider("simulator"), timeout_s=1.0)
    await database.connect()
    yield database
    await database.close()


@pytest.fixture
async def administrator(database_dsn: str, database: Database) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_dsn)
    yield connection
    with suppress(asyncpg.PostgresError, asyncpg.InterfaceError):
        await connection.close()


async def failed(writer: JournalWriter, words: str) -> None:
    """Wait until the writer says that it cannot store, and why."""

    async def said() -> bool | None:
        return words in (writer.last_error or "") or None

    await eventually(said, 20.0, lambda: f"{words!r}; it says {writer.last_error!r}")


async def test_a_lock_somebody_holds_is_waited_for(
    database: Database, journal: Journal, administrator: asyncpg.Connection
) -> None:
    async with writing(journal, database, longest_backoff_s=0.2) as writer:
        journal.append(ticks(10))
        assert await writer.drain(20)
        holding = administrator.transaction()
        await holding.start()
        await administrator.execute("LOCK TABLE realtime_market_data IN ACCESS EXCLUSIVE MODE")
        for first in range(11, 2011, 100):
            journal.append([*ticks(100, first=first), rejected()])
        await failed(writer, "while storing the journal")
        assert writer.lag_records == 2020
        await holding.rollback()
        assert await writer.drain(20)
        assert writer.last_error is None
    assert await stored(database) == [(1, i) for i in range(1, 2011)]
    assert await rows(database, "SELECT count(*) FROM rejected_ticks") == [(20,)]


async def test_a_server_too_slow_for_a_whole_batch_gets_smaller_ones(
    database: Database, journal: Journal, administrator: asyncpg.Connection
) -> None:
    """Else the same batch would run into the same time-out for ever."""
    await administrator.execute(SLOW)
    journal.append(ticks(1000))
    async with writing(journal, database, batch_records=1000, longest_backoff_s=0.2) as writer:
        assert await writer.drain(30)
    assert await stored(database) == [(1, i) for i in range(1, 1001)]


async def test_a_full_disk_of_the_database_is_waited_for(
    database: Database, journal: Journal, administrator: asyncpg.Connection
) -> None:
    """And no tick is taken for unstorable because of it."""
    await administrator.execute(FULL)
    journal.append([*ticks(500), rejected()])
    async with writing(journal, database, longest_backoff_s=0.2) as writer:
        await failed(writer, "No space left on device")
        assert writer.lag_records == 501
        assert writer.status()["quarantined_records"] == 0
        await administrator.execute("DROP TRIGGER full_disk ON realtime_market_data")
        assert await writer.drain(20)
    assert await stored(database) == [(1, i) for i in range(1, 501)]
    assert await rows(database, "SELECT reason FROM rejected_ticks") == [("outlier",)]


async def test_a_server_that_has_failed_over_and_takes_no_writes_yet_is_waited_for(
    database: Database, journal: Journal, administrator: asyncpg.Connection, database_dsn: str
) -> None:
    async with writing(journal, database, longest_backoff_s=0.2) as writer:
        journal.append(ticks(10))
        assert await writer.drain(20)
        await administrator.execute(READ_ONLY)
        journal.append([*ticks(300, first=11), rejected()])
        await failed(writer, "read-only transaction")
        assert writer.lag_records == 301
        await administrator.execute(WRITABLE)
        assert await writer.drain(20)
    assert await stored(database) == [(1, i) for i in range(1, 311)]
    assert await rows(database, "SELECT count(*) FROM rejected_ticks") == [(1,)]


async def test_broken_connections_are_given_up_at_once(
    database: Database, administrator: asyncpg.Connection
) -> None:
    """A stop need not wait for a server that hangs."""
    asking = asyncio.create_task(rows(database, "SELECT pg_sleep(0.9)"))
    waiting = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event = 'PgSleep'"
    )

    async def asked() -> bool | None:
        return await administrator.fetchval(waiting) == 1 or None

    await eventually(asked, 20.0, "the question")
    database.abort()
    with pytest.raises(DatabaseUnavailable):
        await asking
    assert not database.connected
    database.abort()
    await database.close()
