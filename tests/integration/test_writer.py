"""Journal to PostgreSQL: every journaled record lands exactly once, whatever dies."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from enhanced_websocket_service.errors import EpochFenced, JournalError
from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.journal_reader import iterate
from enhanced_websocket_service.storage.pool import WRITES
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.segment import Position
from enhanced_websocket_service.storage.writer import JournalWriter
from tests.storage_samples import (
    CERTIFICATE,
    OPEN,
    SYMBOL,
    bar,
    rejected,
    tick,
    ticks,
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


async def rows(database: Database, sql: str) -> list[tuple[Any, ...]]:
    async with database.connection("testing") as connection:
        return [tuple(row) for row in await connection.fetch(sql)]


async def stored(database: Database) -> list[tuple[int, int]]:
    return await rows(
        database, "SELECT epoch, tick_offset FROM realtime_market_data ORDER BY epoch, tick_offset"
    )


async def terminate_others(dsn: str) -> None:
    killer = await asyncpg.connect(dsn)
    await killer.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND application_name = 'enhanced_websocket_service'"
    )
    await killer.close()


class Proxy:
    """Stands between client and server; can refuse connections and swallow the answer to a COMMIT."""

    def __init__(self, dsn: str) -> None:
        self._target = urlsplit(dsn)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.swallow_commits = 0
        self.commits_swallowed = 0

    @property
    def dsn(self) -> str:
        user, path = self._target.username, self._target.path
        return f"postgresql://{user}@127.0.0.1:{self.port}{path}?sslmode=disable"

    async def up(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        assert self._server is not None
        self._server.close()
        self._hang_up()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _hang_up(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        host = parse_qs(self._target.query)["host"][0]
        port = parse_qs(self._target.query)["port"][0]
        back, forth = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        self._writers |= {writer, forth}
        lost = asyncio.Event()

        async def to_server() -> None:
            while data := await reader.read(65536):
                if self.swallow_commits and b"COMMIT;" in data:
                    self.swallow_commits -= 1
                    lost.set()
                forth.write(data)
                await forth.drain()

        async def to_client() -> None:
            while data := await back.read(65536):
                if lost.is_set():
                    self.commits_swallowed += 1
                    return
                writer.write(data)
                await writer.drain()

        pumps = [asyncio.create_task(to_server()), asyncio.create_task(to_client())]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for one in (writer, forth):
            one.transport.abort()
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        self._writers -= {writer, forth}
        self._tasks.discard(task)


@pytest.fixture
async def proxy(database_dsn: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(database_dsn)
    await proxy.up()
    yield proxy
    await proxy.down()


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


async def test_terminated_connections_lose_and_double_nothing(
    database: Database, journal: Journal, database_dsn: str
) -> None:
    await database.connect()
    async with writing(journal, database, batch_records=40) as writer:
        for first in range(1, 2001, 100):
            journal.append([*ticks(99, first=first), rejected(), tick(first + 99)])
            await terminate_others(database_dsn)
        assert await writer.drain(30)
    assert await stored(database) == [(1, i) for i in range(1, 2001)]
    assert await rows(database, "SELECT count(*) FROM rejected_ticks") == [(20,)]


async def test_a_commit_whose_answer_is_lost_happened_once(
    proxy: Proxy, database: Database, journal: Journal
) -> None:
    await database.connect()
    through = Database(proxy.dsn, Provider("simulator"))
    await through.connect()
    async with writing(journal, through, batch_records=10) as writer:
        for first in range(1, 401, 20):
            proxy.swallow_commits = 1
            journal.append([*ticks(20, first=first), rejected()])
            assert await writer.drain(20)
    assert proxy.commits_swallowed >= 20
    assert await stored(database) == [(1, i) for i in range(1, 401)]
    assert await rows(database, "SELECT count(*) FROM rejected_ticks") == [(20,)]
    await through.close()


async def test_a_commit_that_is_still_under_way_is_waited_for(
    database: Database, journal: Journal, database_dsn: str
) -> None:
    """The backend of a connection that died may commit after the writer has begun again."""
    backend = await asyncpg.connect(database_dsn)
    async with writing(journal, database) as writer:
        journal.append(ticks(3))
        assert await writer.drain(20)
        committing = backend.transaction()
        await committing.start()
        await backend.execute(WRITES["lock_checkpoint"], journal.journal_id)
        end = journal.append([rejected()])
        waiting = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        async with asyncio.timeout(20):
            while (await rows(database, waiting))[0][0] == 0:
                await asyncio.sleep(0)
        await backend.execute(
            "INSERT INTO rejected_ticks (reason) VALUES ('by the dead connection')"
        )
        await backend.execute(WRITES["move_checkpoint"], journal.journal_id, *end, 1)
        await committing.commit()
        journal.append(ticks(3, first=4))
        assert await writer.drain(20)
    await backend.close()
    assert len(await stored(database)) == 6
    assert await rows(database, "SELECT reason FROM rejected_ticks") == [
        ("by the dead connection",)
    ]


async def test_while_the_database_is_away_the_journal_keeps_everything(
    proxy: Proxy, database: Database, journal: Journal
) -> None:
    await database.connect()
    through = Database(proxy.dsn, Provider("simulator"))
    await proxy.down()
    journal.append(ticks(100))
    async with writing(journal, through, longest_backoff_s=0.2) as writer:
        assert not await writer.drain(0.3)
        status = writer.status()
        assert status["lag_records"] == 100
        assert status["lag_bytes"] > 100 * 50
        assert "cannot be reached" in status["last_error"]
        await proxy.up()
        assert await writer.drain(20)
        assert writer.status()["last_error"] is None
        await proxy.down()
        for first in range(101, 3101, 100):
            journal.append(ticks(100, first=first))
        assert not await writer.drain(0.3)
        assert writer.lag_records == 3000
        await proxy.up()
        assert await writer.drain(20)
    assert await stored(database) == [(1, i) for i in range(1, 3101)]
    await through.close()


POISON = [
    tick(50, symbol="MUCHTOOLONGASYMBOL"),
    tick(51, volume=2**40),
    tick(52, source="nul\0character"),
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


async def test_a_newer_instance_fences_the_older(
    database: Database, journal: Journal, tmp_path: Path
) -> None:
    old = JournalWriter(journal, database, epoch=1, symbols=[SYMBOL], batch_wait_ms=1)
    running = asyncio.create_task(old.run())
    journal.append(ticks(10))
    assert await old.drain(20)
    newer = Journal.open(tmp_path / "newer")
    newer.append(ticks(5, epoch=2))
    async with writing(newer, database, epoch=2) as writer:
        assert await writer.drain(20)
        journal.append(ticks(10, first=11))
        with pytest.raises(EpochFenced, match=r"epoch 2.*USDCOP"):
            await asyncio.wait_for(running, 20)
        assert "newer instance" in old.status()["last_error"]
    # Starting it again does not help it, and it does not move the fence back.
    again = JournalWriter(journal, database, epoch=1, symbols=[SYMBOL])
    with pytest.raises(EpochFenced):
        await asyncio.wait_for(again.run(), 20)
    assert len(await stored(database)) == 15
    assert await rows(database, "SELECT symbol, epoch FROM epoch_fence") == [(SYMBOL, 2)]
    newer.close()


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


PROGRAM = """
import asyncio, sys
from pathlib import Path
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.pool import WRITES
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.writer import JournalWriter
from tests.storage_samples import SYMBOL, rejected, ticks

async def main():
    dsn, folder, epoch = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    journal = Journal.open(folder, segment_bytes=200_000)
    database = Database(dsn, Provider("simulator"))
    writer = JournalWriter(
        journal, database, epoch=epoch, symbols=[SYMBOL], batch_records=150, batch_wait_ms=1
    )
    tasks = [asyncio.create_task(writer.run()), asyncio.create_task(journal.run())]
    offset = 0
    while True:
        journal.append([*ticks(20, first=offset + 1, epoch=epoch), rejected()])
        offset += 20
        print(offset, writer.status()["stored_records"], flush=True)
        await asyncio.sleep(0.001)

asyncio.run(main())
"""


async def test_killed_processes_lose_and_double_nothing(database_dsn: str, tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    for epoch, kill_after in ((1, 300), (2, 900), (3, 1500)):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, database_dsn, str(folder), str(epoch)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdout is not None
        async for line in process.stdout:
            numbers = line.split()
            if len(numbers) == 2 and numbers[1].isdigit() and int(numbers[1]) >= kill_after:
                break
        process.send_signal(signal.SIGKILL)
        await process.stdout.read()
        assert await process.wait() == -signal.SIGKILL
    journaled = list(iterate(folder))
    expected = sorted((r.epoch, r.offset) for r in journaled if isinstance(r, Tick))
    assert len(expected) > 2000
    journal = Journal.open(folder)
    database = Database(database_dsn, Provider("simulator"))
    async with writing(journal, database, epoch=4) as writer:
        assert await writer.drain(30)
    assert await stored(database) == expected
    rejections = len(journaled) - len(expected)
    assert await rows(database, "SELECT count(*) FROM rejected_ticks") == [(rejections,)]
    await database.close()
    journal.close()


async def test_a_full_disk_under_the_journal_reaches_no_table(
    database: Database, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of which only a part reached the disk never shows up, not even that part."""
    real_write = os.write
    async with writing(journal, database) as writer:
        journal.append(ticks(5))
        assert await writer.drain(20)
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", lambda fd, data: real_write(fd, data[:-1]))
            patched.setattr(os, "ftruncate", _fails)
            with pytest.raises(JournalError):
                journal.append(ticks(5, first=100))
            await asyncio.sleep(0)
        journal.append(ticks(5, first=6))
        assert await writer.drain(20)
    assert await stored(database) == [(1, i) for i in range(1, 11)]


def _fails(*_: object) -> None:
    raise OSError("Input/output error")
