"""Journal to PostgreSQL on good days: what lands where, what is refused, who may write."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.market.tick import HELD, Tick
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.journal_reader import iterate
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.segment import Position
from tests.storage_samples import (
    CERTIFICATE,
    OPEN,
    SYMBOL,
    bar,
    rejected,
    rows,
    stored,
    tick,
    ticks,
    told,
    update,
    writing,
)


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    database = Database(database_dsn, Provider("simulator"))
    yield database
    await database.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal.open(tmp_path / "journal", segment_bytes=20_000)
    yield journal
    journal.close()


async def test_every_kind_lands_in_its_table(database: Database, journal: Journal) -> None:
    live = bar(source="simulator_websocket", certificate=CERTIFICATE)
    revised = bar(close=4100.75, source="simulator_websocket", revision=1, status="revised")
    other_interval = bar(interval_s=60, source="simulator_websocket")
    journal.append([EpochStarted(SYMBOL, 1, None, None), *ticks(3, flags=("crossed",))])
    journal.append([rejected(raw="a\0b"), tick(4, bid=None, trading_session=False)])
    journal.append(
        [update(live, at=OPEN + 301.0, offset=4), update(other_interval, at=OPEN + 61.0)]
    )
    journal.append([update(revised, at=OPEN + 310.0, offset=4)])
    async with writing(journal, database) as writer:
        assert await writer.drain(20)
        assert writer.lag_records == 0
        status = writer.status()
    assert (status["stored_records"], status["quarantined_records"]) == (9, 0)
    assert (status["lag_bytes"], status["last_error"]) == (0, None)
    assert await database.ticks(SYMBOL, after=(0, 0)) == [
        *ticks(3, flags=("crossed",)),
        tick(4, bid=None, trading_session=False),
    ]
    assert await rows(
        database,
        "SELECT extract(epoch FROM time)::int, session_date::text, last::text, bid::text, spread::text, "
        "volume, source FROM realtime_market_data ORDER BY tick_offset LIMIT 1",
    ) == [(OPEN + 1, "2025-06-03", "4100.001000", "4100.000000", "0.500000", 0, live.source)]
    assert await rows(database, "SELECT reason, price, raw FROM rejected_ticks") == [
        ("outlier", 9999.0, "a\N{REPLACEMENT CHARACTER}b")
    ]
    assert (await database.bars(SYMBOL)).bars == [revised]
    assert await rows(
        database,
        "SELECT revision, close::float8, interval_s, tick_offset FROM bar_revisions "
        "ORDER BY interval_s, revision",
    ) == [(0, 4100.5, 60, 0), (0, 4100.5, 300, 4), (1, 4100.75, 300, 4)]
    assert await rows(database, "SELECT symbol, epoch FROM tick_epochs") == [(SYMBOL, 1)]


async def test_a_writer_follows_the_live_journal(database: Database, journal: Journal) -> None:
    async with writing(journal, database) as writer:
        for first in range(1, 501, 50):
            journal.append(ticks(50, first=first))
            assert await writer.drain(20)
            assert len(await stored(database)) == first + 49


async def test_an_older_revision_never_replaces_a_newer(
    database: Database, journal: Journal
) -> None:
    def revision(number: int, close: float) -> Any:
        return bar(close=close, revision=number, source="simulator_websocket")

    journal.append([update(revision(2, 4102.0), at=OPEN + 303.0, epoch=5)])
    journal.append([update(revision(1, 4101.0), at=OPEN + 302.0, epoch=5)])
    journal.append([update(revision(9, 4109.0), at=OPEN + 309.0, epoch=4)])
    async with writing(journal, database, epoch=5) as writer:
        assert await writer.drain(20)
        assert (await database.bars(SYMBOL)).bars == [revision(2, 4102.0)]
        journal.append([update(revision(0, 4110.0), at=OPEN + 310.0, epoch=6)])
        assert await writer.drain(20)
        assert (await database.bars(SYMBOL)).bars == [revision(0, 4110.0)]


async def test_restarts_store_nothing_twice(database_dsn: str, tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        journal = Journal.open(tmp_path / "journal")
        database = Database(database_dsn, Provider("simulator"))
        journal.append([*ticks(20, epoch=epoch), rejected()])
        async with writing(journal, database, epoch=epoch, batch_records=7) as writer:
            assert await writer.drain(20)
        assert len(await stored(database)) == 20 * epoch
        assert await rows(database, "SELECT count(*) FROM rejected_ticks") == [(epoch,)]
        await database.close()
        journal.close()


async def test_who_waits_for_what_is_stored_already_is_told_at_once(
    database: Database, journal: Journal
) -> None:
    """A stop, and the reconciler, ask a writer that has not yet seen the database's checkpoint."""
    journal.append(ticks(20))
    async with writing(journal, database) as writer:
        assert await writer.drain(20)
    async with writing(journal, database) as writer:
        assert await asyncio.wait_for(writer.reached(20, timeout_s=3600), 20)


POISON = [
    tick(50, symbol="MUCHTOOLONGASYMBOL"),
    tick(51, volume=2**40),
    tick(52, source="simulator_nul\0character"),
    tick(53, timestamp=10**15),
    tick(54, price=5e6),
    rejected(timestamp=10**15, symbol="\0"),  # storable, for all its oddness
    update(bar(volume=2**40, source="simulator_websocket"), at=OPEN + 301.0),
    update(bar(close=1e9, source="simulator_websocket"), at=OPEN + 301.0),
    EpochStarted("\0", 1, None, None),
]


async def test_poisoned_records_do_not_hold_back_their_batch(
    database: Database, journal: Journal
) -> None:
    good = update(bar(OPEN + 300, source="simulator_websocket"), at=OPEN + 601.0)
    journal.append([*ticks(49), *POISON, *ticks(40, first=60), good, rejected()])
    async with writing(journal, database) as writer:
        assert await writer.drain(20)
        status = writer.status()
        journal.append(ticks(5, first=200))
        assert await writer.drain(20)
    assert status["quarantined_records"] == len(POISON) - 1
    kept = [*range(1, 50), *range(60, 100), *range(200, 205)]
    assert await stored(database) == [(1, i) for i in kept]
    assert [b.open_time for b in (await database.bars(SYMBOL)).bars] == [OPEN + 300]
    reasons = await rows(
        database, "SELECT reason, count(*) FROM rejected_ticks GROUP BY reason ORDER BY reason"
    )
    assert reasons == [("outlier", 2), ("unstorable", len(POISON) - 1)]
    quarantined = await rows(
        database, "SELECT detail, raw FROM rejected_ticks WHERE reason = 'unstorable' ORDER BY id"
    )
    assert all(detail and raw for detail, raw in quarantined)
    assert '"symbol":"MUCHTOOLONGASYMBOL"' in quarantined[0][1]
    assert '"volume":1099511627776' in quarantined[1][1]


async def test_a_trigger_of_the_owner_poisons_one_row_only(
    database: Database, journal: Journal
) -> None:
    await database.connect()
    async with database.connection("testing") as connection:
        await connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF NEW.tick_offset = 13 THEN RAISE 'unlucky'; END IF; RETURN NEW; END $$; "
            "CREATE TRIGGER refuse BEFORE INSERT ON realtime_market_data "
            "FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    journal.append(ticks(100))
    async with writing(journal, database) as writer:
        assert await writer.drain(20)
    assert await stored(database) == [(1, i) for i in range(1, 101) if i != 13]
    ((detail,),) = await rows(database, "SELECT detail FROM rejected_ticks")
    assert "unlucky" in detail


async def test_a_constraint_of_the_owner_makes_no_tick_a_duplicate(
    database: Database, journal: Journal
) -> None:
    """Equal prices are normal: nothing is given up for an index that allows one of each."""
    await database.connect()
    first = ticks(3)
    async with writing(journal, database) as writer:
        journal.append(first)
        assert await writer.drain(20)
        async with database.connection("testing") as connection:
            await connection.execute("CREATE UNIQUE INDEX theirs ON realtime_market_data (last)")
        journal.append([msgspec.structs.replace(first[0], offset=4)])
        await told(writer, "DROP INDEX public.theirs;")
        assert writer.lag_records == 1
        async with database.connection("testing") as connection:
            await connection.execute("DROP INDEX theirs")
        assert await writer.drain(20)
        status = writer.status()
    assert (status["duplicates_skipped"], status["quarantined_records"]) == (0, 0)
    assert await stored(database) == [(1, i) for i in range(1, 5)]


async def test_instances_for_different_symbols_share_a_database(
    database: Database, journal: Journal, tmp_path: Path
) -> None:
    other = Journal.open(tmp_path / "other")
    other.append(ticks(5, epoch=2, symbol="EURUSD"))
    async with (
        writing(journal, database) as writer,
        writing(other, database, epoch=2, symbols=["EURUSD"]) as another,
    ):
        assert await another.drain(20)
        journal.append(ticks(5))
        assert await writer.drain(20)
    assert len(await stored(database)) == 10
    other.close()


async def test_an_older_copy_of_the_journal_put_back_loses_no_new_tick(
    database: Database, tmp_path: Path
) -> None:
    """Its new segments stand where the checkpoint says all is stored already."""
    journal = Journal.open(tmp_path / "journal")
    journal.append(ticks(10))
    async with writing(journal, database) as writer:
        assert await writer.drain(20)
    ahead = Position(99, 5000, 10_000)
    async with database.connection("testing") as connection:
        await connection.execute(
            "UPDATE journal_checkpoints SET segment = $1, byte_offset = $2, record = $3", *ahead
        )
    journal.append(ticks(10, first=11))
    async with writing(journal, database) as writer:
        assert await writer.drain(20)
        assert writer.status()["duplicates_skipped"] == 10
    assert await stored(database) == [(1, i) for i in range(1, 21)]
    journal.close()


async def test_postgresql_may_refuse_the_first_row_while_the_rest_is_under_way(
    database: Database, journal: Journal
) -> None:
    journal.append([tick(1, symbol="MUCHTOOLONG"), *ticks(6000, first=2)])
    async with writing(journal, database) as writer:
        assert await writer.drain(20)
        assert writer.status()["quarantined_records"] == 1
    assert await stored(database) == [(1, i) for i in range(2, 6002)]


async def test_another_database_gets_all_that_the_journal_still_has(
    database: Database, journal: Journal
) -> None:
    journal.append(ticks(30))
    async with writing(journal, database) as writer:
        assert await writer.drain(20)
    async with database.connection("testing") as connection:
        await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    fresh = Database(database._dsn, Provider("simulator"))
    async with writing(journal, fresh) as writer:
        assert await writer.drain(20)
    assert len(await stored(fresh)) == 30
    await fresh.close()


async def test_stored_segments_are_pruned_and_unstored_ones_never(
    database: Database, journal: Journal
) -> None:
    for first in range(1, 1001, 50):
        journal.append(ticks(50, first=first))
    before = len(list(journal.directory.glob("*.journal")))
    assert before > 3
    async with writing(journal, database, batch_records=100, keep_bytes=0) as writer:
        assert await writer.drain(20)
    assert len(list(journal.directory.glob("*.journal"))) < before
    assert len(await stored(database)) == 1000
    assert [r.offset for r in iterate(journal.directory) if isinstance(r, Tick)][-1] == 1000


async def test_a_held_quote_has_no_row_before_its_fate(
    journal: Journal, database: Database
) -> None:
    journal.append([tick(1), rejected(HELD), rejected(HELD, price=41.0)])
    async with writing(journal, database) as writer:
        assert await writer.drain(20)
        assert await rows(database, "SELECT reason FROM rejected_ticks") == []
        journal.append([rejected(HELD, price=42.0)])
        assert await writer.drain(20), "a batch of nothing else is no backlog"
        journal.append([rejected("outlier"), tick(2, flags=("held",))])
        assert await writer.drain(20)
    assert await rows(database, "SELECT reason FROM rejected_ticks") == [("outlier",)]
