"""Connections, databases, processes and disks fail: still every journaled record lands exactly once."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from enhanced_websocket_service.errors import JournalError
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.journal_reader import iterate
from enhanced_websocket_service.storage.pool import WRITES
from enhanced_websocket_service.storage.postgres import Database
from tests.postgres_proxy import Proxy
from tests.storage_samples import (
    rejected,
    rows,
    stored,
    tick,
    ticks,
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


async def terminate_others(dsn: str) -> None:
    killer = await asyncpg.connect(dsn)
    await killer.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND application_name = 'enhanced_websocket_service'"
    )
    await killer.close()


@pytest.fixture
async def proxy(database_dsn: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(database_dsn)
    await proxy.up()
    yield proxy
    await proxy.down()


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
        await asyncio.sleep(0)

asyncio.run(main())
"""


async def test_killed_processes_lose_and_double_nothing(database_dsn: str, tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    for epoch, kill_after in ((1, 300), (2, 900), (3, 1500)):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, database_dsn, str(folder), str(epoch)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
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
