"""``as_of`` and paging by offset, against a computation that shares no line with the queries."""

import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from enhanced_websocket_service.market.bar import Bar, BarUpdate
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.postgres import Database
from tests.storage_samples import CERTIFICATE, OPEN, SYMBOL, bar, tick, update, writing

SLOTS = 8
SOURCES = ("simulator", "simulator_websocket", "simulator_rest")
PARTIAL = msgspec.structs.replace(CERTIFICATE, partial=True)


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    database = Database(database_dsn, Provider("simulator"))
    await database.connect()
    yield database
    await database.close()


async def store(
    database: Database,
    folder: Path,
    batches: list[list[BarUpdate]] | list[list[object]],
    epoch: int,
) -> None:
    journal = Journal.open(folder)
    for batch in batches:
        journal.append(batch)  # type: ignore[arg-type]
    async with writing(journal, database, epoch=epoch, batch_records=7) as writer:
        assert await writer.drain(30)
    journal.close()


def history(chance: random.Random) -> list[BarUpdate]:
    """What three runs published: revisions of each source, each run's above those before."""
    published: list[BarUpdate] = []
    at = float(OPEN)
    for epoch in (1, 2, 3):
        revisions: dict[tuple[int, str], int] = {}
        for _ in range(60):
            at += chance.choice((0.0, 0.5, 40.0))
            slot, source = chance.randrange(SLOTS), chance.choice(SOURCES)
            revision = revisions[slot, source] = revisions.get((slot, source), -1) + 1
            certificate = None
            if source != "simulator":
                certificate = PARTIAL if chance.random() < 0.4 else CERTIFICATE
            one = bar(
                OPEN + slot * 300,
                4100.0 + len(published) / 100,
                source=source,
                revision=revision,
                status="revised" if revision else "closed",
                certificate=certificate,
            )
            published.append(update(one, at=at, epoch=epoch, offset=len(published)))
    return published


def seen_by(published: list[BarUpdate], instant: float, source: str | None) -> list[Bar]:
    """Of each slot and source the last version published by then; then whole before partial bars,
    the vendor's before the stream's before polled ones."""
    versions: dict[tuple[int, str], BarUpdate] = {}
    for one in published:
        if one.published_at <= instant and source in (None, one.bar.source):
            versions[one.bar.open_time, one.bar.source] = one  # in order: later ones win

    def rank(one: BarUpdate) -> tuple[bool, int]:
        certificate = one.bar.certificate
        return certificate is not None and certificate.partial, SOURCES.index(one.bar.source)

    best: dict[int, BarUpdate] = {}
    for (slot, _), one in versions.items():
        if slot not in best or rank(one) < rank(best[slot]):
            best[slot] = one
    return [best[slot].bar for slot in sorted(best)]


@pytest.mark.parametrize("seed", range(3))
async def test_what_a_consumer_saw_at_any_instant(
    database: Database, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    published = history(chance)
    for epoch in (1, 2, 3):
        batches = [[one] for one in published if one.epoch == epoch]
        await store(database, tmp_path / "journal", batches, epoch)
    last = published[-1].published_at
    instants = [one.published_at for one in chance.sample(published, 12)]
    instants += [instant - 0.25 for instant in instants] + [OPEN - 1.0, last + 1.0]
    for instant in instants:
        for source in (None, *SOURCES):
            expected = seen_by(published, instant, source)
            page = await database.bars(SYMBOL, start=OPEN, as_of=instant, source=source)
            assert page.bars == expected, (instant - OPEN, source)
            newest = await database.bars(SYMBOL, as_of=instant, source=source, limit=3)
            assert newest.bars == expected[-3:]
    # Now is the last instant there was, and every version is still on record.
    assert (await database.bars(SYMBOL, start=OPEN)).bars == seen_by(published, last, None)
    async with database.connection("testing") as connection:
        assert await connection.fetchval("SELECT count(*) FROM bar_revisions") == len(published)


@pytest.mark.parametrize("seed", range(2))
async def test_pages_of_ticks_miss_and_repeat_nothing(
    database: Database, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    ticks = [
        tick(
            offset,
            epoch=epoch,
            timestamp=OPEN + chance.randrange(200),  # out of order: offsets rule, not stamps
            received_at=OPEN + 200.0 * epoch + offset,
            source=chance.choice(SOURCES[1:]),
        )
        for epoch in (1, 2)
        for offset in range(1, 120)
    ]
    for epoch in (1, 2):
        batch: list[object] = [one for one in ticks if one.epoch == epoch]
        await store(database, tmp_path / "journal", [batch], epoch)
    for _ in range(25):
        start = chance.choice((None, OPEN + chance.randrange(200)))
        end = chance.choice((None, OPEN + chance.randrange(200)))
        source = chance.choice((None, *SOURCES[1:]))
        as_of = chance.choice((None, OPEN + chance.uniform(200, 700)))
        expected = [
            one
            for one in ticks
            if (start is None or one.timestamp >= start)
            and (end is None or one.timestamp <= end)
            and (source is None or one.source == source)
            and (as_of is None or one.received_at <= as_of)
        ]
        options = {"start": start, "end": end, "source": source, "as_of": as_of}
        found, after = [], (0, 0)
        while page := await database.ticks(SYMBOL, after=after, limit=17, **options):  # type: ignore[arg-type]
            found += page
            after = (page[-1].epoch, page[-1].offset)
        assert found == expected
