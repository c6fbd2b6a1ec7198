"""A backlog is drained in bounded pieces: live ticks get their turn, memory stays where it is."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.storage import writer as writer_module
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.journal_reader import JournalReader
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.record_store import Batch
from enhanced_websocket_service.storage.records import Record
from enhanced_websocket_service.storage.writer import SLICE_RECORDS, JournalWriter
from tests.storage_samples import rejected, rows, stored, tick, ticks, writing
from tests.waiting import eventually

BACKLOG = 6000
BATCH = 1000


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    database = Database(database_dsn, Provider("simulator"))
    await database.connect()
    yield database
    await database.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal.open(tmp_path / "journal", segment_bytes=200_000)
    journal.append(ticks(BACKLOG))
    yield journal
    journal.close()


async def blocked(connection: asyncpg.Connection) -> bool | None:
    """Whether somebody waits for a lock; ``None`` while nobody does."""
    waiting = await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return True if waiting else None


async def prepared(writer: JournalWriter) -> None:
    """Return once the writer has read as far ahead as it does."""

    async def settled() -> bool | None:
        return True if writer._reader.position.record == 2 * BATCH else None

    await eventually(settled, 20, lambda: f"reading stands at {writer._reader.position}")


async def test_others_get_their_turn_between_any_two_slices(
    database: Database, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, seen, most = 0, -1, 0
    real_read = JournalReader.read

    def read(self: JournalReader, limit: int = 1000) -> list[Record]:
        nonlocal seen, most
        assert turns > seen, "two slices without a turn for anybody else"
        seen = turns
        found = real_read(self, limit)
        most = max(most, len(found))
        return found

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(JournalReader, "read", read)
    task = asyncio.create_task(others())
    async with writing(journal, database, batch_records=BATCH) as writer:
        assert await writer.drain(30)
    task.cancel()
    assert most == SLICE_RECORDS
    assert len(await stored(database)) == BACKLOG


async def test_at_most_two_batches_are_in_memory(
    database: Database, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: set[int] = set()
    most = 0

    class Counted(Batch):
        def add(self, records: object, size: int = 0) -> None:
            nonlocal most
            super().add(records, size)  # type: ignore[arg-type]
            assert len(self) <= BATCH
            alive.add(id(self))
            most = max(most, len(alive))

        def __del__(self) -> None:
            alive.discard(id(self))

    monkeypatch.setattr(writer_module, "Batch", Counted)
    async with writing(journal, database, batch_records=BATCH) as writer:
        assert await writer.drain(30)
    assert most == 2
    assert len(await stored(database)) == BACKLOG


async def test_a_batch_is_bounded_in_bytes_too(
    database: Database, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "BATCH_BYTES", 40_000)
    sizes = []
    real_store = JournalWriter._store

    async def store(
        self: JournalWriter, connection: object, batch: Batch, position: object
    ) -> None:
        sizes.append(batch.size)
        await real_store(self, connection, batch, position)  # type: ignore[arg-type]

    monkeypatch.setattr(JournalWriter, "_store", store)
    async with writing(journal, database) as writer:
        assert await writer.drain(30)
    assert 40_000 <= max(sizes) < 40_000 + SLICE_RECORDS * 200
    assert len(await stored(database)) == BACKLOG


@pytest.mark.parametrize("connection_dies", [False, True])
async def test_while_the_database_is_busy_one_batch_is_made_ready_and_no_more(
    database: Database, database_dsn: str, journal: Journal, connection_dies: bool
) -> None:
    await database.record_health("active", {})  # marks it: nobody has to look for rows in the table
    holder = await asyncpg.connect(database_dsn)
    holding = holder.transaction()
    await holding.start()
    await holder.execute("LOCK TABLE realtime_market_data IN ACCESS EXCLUSIVE MODE")
    async with writing(journal, database, batch_records=BATCH) as writer:
        await eventually(lambda: blocked(holder), 20, "the writer never came to the table")
        await prepared(writer)
        journal.append([rejected(), *ticks(10, first=BACKLOG + 1)])
        await asyncio.sleep(0)
        assert writer._reader.position.record == 2 * BATCH
        assert writer.lag_records == BACKLOG + 11
        if connection_dies:
            await holder.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = "
                "current_database() AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'"
            )
        await holding.rollback()
        assert await writer.drain(30)
    await holder.close()
    assert await stored(database) == [(1, i) for i in range(1, BACKLOG + 11)]
    assert await rows(database, "SELECT count(*) FROM rejected_ticks") == [(1,)]


async def test_a_poisoned_row_of_a_prepared_batch_holds_nothing_back(
    database: Database, tmp_path: Path
) -> None:
    """Its fault shows while it is encoded, long before its batch is stored."""
    journal = Journal.open(tmp_path / "poisoned")
    good = ticks(3 * BATCH)
    journal.append([*good[: BATCH + 10], tick(0, volume=2**40), *good[BATCH + 10 :]])
    async with writing(journal, database, batch_records=BATCH) as writer:
        assert await writer.drain(30)
        assert writer.status()["quarantined_records"] == 1
    assert await stored(database) == [(1, i) for i in range(1, 3 * BATCH + 1)]
    assert await rows(database, "SELECT reason FROM rejected_ticks") == [("unstorable",)]
    journal.close()
