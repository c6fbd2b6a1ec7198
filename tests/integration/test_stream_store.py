"""The stored stream in a real PostgreSQL: what the writer stored is read as the model store has it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.records import Record
from enhanced_websocket_service.storage.stream_store import Key, StreamStore
from tests.storage_samples import writing
from tests.unit.serving.fakes import NOON, OPENS, bar_update, tick
from tests.unit.serving.model_store import ModelStore

RECORDS: list[Record] = [
    EpochStarted("USDCOP", 1, None, None),
    *(tick(n, epoch=1) for n in range(1, 6)),
    bar_update(0, 5, epoch=1),
    tick(6, epoch=1, trading_session=False),
    tick(7, epoch=1, flags=("future",)),
    bar_update(0, 7, epoch=1, revision=1, status="revised"),
    tick(1, epoch=1, symbol="EURUSD"),
    EpochStarted("USDCOP", 2, 1, 7),
    bar_update(1, 0, epoch=2),
    *(tick(n, epoch=2, timestamp=OPENS + 600 + n) for n in range(1, 5)),
    tick(5, epoch=2, timestamp=OPENS + 602),
    bar_update(0, 5, epoch=2, revision=2, source="simulator", certificate=None),
]


@pytest.fixture
async def store(database_dsn: str, tmp_path: Path) -> AsyncIterator[StreamStore]:
    database = Database(database_dsn, Provider("simulator"))
    journal = Journal.open(tmp_path / "journal")
    try:
        journal.append(RECORDS)
        async with writing(journal, database) as writer:
            assert await writer.drain(20)
        yield StreamStore(database)
    finally:
        journal.close()
        await database.close()


async def test_pages_are_what_was_journaled(store: StreamStore) -> None:
    model = ModelStore()
    model.journal(RECORDS)  # type: ignore[arg-type]
    places: list[Key] = [(0, 0), (1, 0), (1, 3), (1, 5), (1, 7), (2, 0), (2, 4), (2, 5), (3, 0)]
    for after in places:
        for limit in (1, 2, 3, 100):
            found = await store.read("USDCOP", after, limit, NOON)
            wanted = model.stretch("USDCOP", after, limit)
            assert list(found.ticks) == list(wanted.ticks)
            assert list(found.epochs) == list(wanted.epochs)
            assert list(found.updates) == list(wanted.updates)
            assert found.whole == wanted.whole
    early = await store.read("USDCOP", (0, 0), 100, OPENS + 3.5)
    received = [one.received_at for one in early.ticks]
    assert received, "some had happened"
    assert max(received) <= OPENS + 3.5, "later ones have not happened yet"
    assert not early.updates


async def test_a_time_is_found(store: StreamStore) -> None:
    assert await store.first_at("USDCOP", OPENS + 3, NOON) == (1, 3)
    assert await store.first_at("USDCOP", OPENS + 602, NOON) == (2, 2)
    assert await store.first_at("USDCOP", OPENS + 604, NOON) == (2, 4)
    assert await store.first_at("USDCOP", OPENS + 605, NOON) is None
    assert await store.first_at("USDCOP", OPENS + 602, OPENS) is None
