"""A role that owns nothing: the printed rights are enough, none of them is too much, what lacks is named."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import polars as pl
import pytest

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.errors import StorageError
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.market.reconciliation import Drift
from enhanced_websocket_service.market.slot import SourceBar
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.storage.fence import Fence
from enhanced_websocket_service.storage.imports import ImportStore
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.migrate import pending
from enhanced_websocket_service.storage.pool import (
    POSTGRESQL,
    QUERIES,
    RIGHTS_LACKING,
    WRITES,
)
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.probe import probe_writes, who_blocks
from enhanced_websocket_service.storage.rights import RIGHTS, complaint, needed
from enhanced_websocket_service.storage.slot_store import SlotStore
from enhanced_websocket_service.storage.sql import load
from enhanced_websocket_service.storage.tenure import Tenure
from tests.foreign_owner import ForeignOwner, foreign_owner
from tests.storage_samples import OPEN, SYMBOL, bar, rejected, rows, stored, ticks, update, writing
from tests.waiting import eventually

SIMULATOR = Provider("simulator")


@pytest.fixture
async def place(database_dsn: str) -> AsyncIterator[ForeignOwner]:
    async with foreign_owner(database_dsn) as made:
        yield made


@pytest.fixture
def failures() -> Failures:
    return Failures(SystemClock())


@pytest.fixture
async def database(place: ForeignOwner, failures: Failures) -> AsyncIterator[Database]:
    """As the service sees it; not connected yet."""
    database = Database(place.service_dsn, SIMULATOR, failures=failures)
    yield database
    await database.close()


async def refused(connection: Any) -> list[str]:
    """Which of the program's statements the role of ``connection`` may not run."""
    copies = {"realtime_market_data": ["symbol", "time"], "market_data": ["symbol", "datetime"]}
    documented = {"market_bars": "SELECT * FROM market_bars LIMIT 3"}
    found = []
    async with connection.transaction():
        worlds = load("world.sql")
        marking = {name: worlds[name] for name in ("marked_world", "mark_world")}
        statements = {**WRITES, **QUERIES, **load("fence.sql"), **marking, **documented}
        made = ("make_imported_bars", "make_incoming_ticks")
        for name in (*made, *sorted(statements.keys() - set(made))):
            sql = statements[name]
            # What a statement needs is checked when it begins; nothing has to be there, and none runs.
            if not sql.startswith(("CREATE", "SET")):
                sql = f"EXPLAIN (GENERIC_PLAN) {sql}"
            try:
                async with connection.transaction():
                    await connection.execute(sql)
            except asyncpg.InsufficientPrivilegeError:
                found.append(name)
            except (asyncpg.PostgresSyntaxError, asyncpg.UndefinedColumnError):
                continue  # a part of other statements
            except (asyncpg.UndefinedTableError, asyncpg.DuplicateTableError):
                assert "incoming_" in sql
        for table, columns in copies.items():
            try:
                async with connection.transaction():
                    await connection.copy_to_table(table, source=_nothing(), columns=columns)
            except asyncpg.InsufficientPrivilegeError:
                found.append(f"copy to {table}")
    try:
        await pending(connection)
    except asyncpg.InsufficientPrivilegeError:
        found.append("pending")
    return found


async def _nothing() -> AsyncIterator[bytes]:
    yield b""


async def test_the_rights_are_enough_and_none_is_too_much(place: ForeignOwner) -> None:
    await place.migrated()
    connection = await asyncpg.connect(place.service_dsn)
    owner = await asyncpg.connect(place.owner_dsn)
    role = await owner.fetchval("SELECT quote_ident($1)", place.service)
    assert await refused(connection) == []
    assert complaint(await needed(connection)) is None
    for table, privileges in RIGHTS.items():
        for privilege in privileges:
            await owner.execute(f"REVOKE {privilege} ON {table} FROM {role}")
            assert await refused(connection), f"nothing needs {privilege} on {table}"
            said = complaint(await needed(connection))
            assert said is not None
            assert f"lacks {privilege} on table public.{table} in database" in said
            assert f"as {place.owner}, who owns it" in said
            await owner.execute(f"GRANT {privilege} ON {table} TO {role}")
    for function in ("ews_is_simulated(text)", "ews_bar_rank(text, text, jsonb)"):
        await owner.execute(f"REVOKE EXECUTE ON FUNCTION {function} FROM {role}")
        assert await refused(connection)
        assert f"EXECUTE on function public.{function}" in (
            complaint(await needed(connection)) or ""
        )
        await owner.execute(f"GRANT EXECUTE ON FUNCTION {function} TO {role}")
    assert await refused(connection) == []
    await connection.close()
    await owner.close()


async def everything(database: Database, directory: Path) -> None:
    """Each kind of write once, by the parts that do it."""
    await database.connect()
    journal = Journal.open(directory)
    tenure = Tenure(directory.parent, journal, Failures(SystemClock()))
    fence = Fence(database._dsn, [SYMBOL], owner=journal.journal_id, name="test", world="simulated")
    assert await fence.claim(1, 0) is None
    tenure.began(1, 0.0, kept_back=False)
    live = bar(source="simulator_websocket")
    async with writing(journal, database, tenure=tenure) as writer:
        journal.append(
            [
                *ticks(10),
                rejected(),
                EpochStarted(SYMBOL, 1, None, None),
                update(live, at=OPEN + 301),
                update(bar(source="simulator_websocket", revision=1), at=OPEN + 302),
            ]
        )
        assert await writer.drain(20), writer.last_error
    assert await fence.renew(1)
    await fence.release(1)
    await fence.close()
    journal.close()
    for close in (4100.5, 4100.75):
        await database.upsert_vendor_bars([bar(close=close)])
        frame = pl.DataFrame(
            {"slot": [OPEN], "open": [1.0], "high": [9.0], "low": [1.0], "close": [close / 1000]}
        ).with_columns(volume=pl.lit(0), grade=pl.lit("whole"))
        await ImportStore(database).store(frame, SYMBOL, "simulator_import", OPEN + 900.0)
    await database.record_health("active", {"at": "2025-06-03T08:00:00-05:00"})
    seen = SourceBar("simulator_websocket", 1, 2, 1, 2, 0, 0, "closed", True, 0.0, False, False)
    drift = Drift(OPEN, seen, 0.0, 0.0, 0.0, 0.5)
    noted = {"gaps": [OPEN + 300], "drifts": [drift], "replaced": [OPEN], "confirmed": [OPEN]}
    await SlotStore(database).note(SYMBOL, OPEN + 900.0, **noted)  # type: ignore[arg-type]
    await SlotStore(database).note(SYMBOL, OPEN + 960.0, **noted)  # type: ignore[arg-type]


async def test_every_write_works_with_them(
    place: ForeignOwner, database: Database, failures: Failures, tmp_path: Path
) -> None:
    await place.migrated()
    await everything(database, tmp_path / "journal")
    assert await database.ping() > 0
    assert failures.present == ()
    assert len(await stored(database)) == 10
    assert await rows(database, "SELECT count(*) FROM bar_drift") == [(1,)]


async def test_tables_of_another_owner_without_migrations_name_who_has_to_do_what(
    place: ForeignOwner, database: Database
) -> None:
    role = await place_role(place)
    with pytest.raises(StorageError, match=r"CONNECT privilege.*`db grants --role"):
        await database.connect()
    await place.as_admin(f"GRANT CONNECT ON DATABASE {await database_name(place)} TO {role}")
    # Whatever is in a schema without USAGE is out of its sight.
    with pytest.raises(StorageError, match="lacks USAGE on schema public"):
        await database.connect()
    await place.as_owner(f"GRANT USAGE, CREATE ON SCHEMA public TO {role}")
    with pytest.raises(StorageError) as caught:
        await database.connect()
    said = str(caught.value)
    with pytest.raises(StorageError) as looked:  # without trying, for `config check`
        await database.look()
    assert said.partition(": ")[0] == str(looked.value).partition(": ")[0]
    assert "it does not own market_data, realtime_market_data, system_health. " in str(looked.value)
    assert "lacks the migrations 0001_requirements_tables, 0002_ticks, " in said
    assert "must be owner of table realtime_market_data" in said
    assert (
        f"Run `db migrate` as {place.owner}, who owns the tables, then `db grants --role " in said
    )
    # Health asks by a ping: it hears the same, and when.
    with pytest.raises(StorageError) as asked:
        await database.ping()
    assert str(asked.value).startswith(said)
    assert "Last tried 2" in str(asked.value)
    await place.migrated(granted=False)
    with pytest.raises(StorageError, match=r"lacks TEMPORARY .*ews_schema_migrations.*`db grants"):
        await database.connect()
    with pytest.raises(StorageError, match=r"lacks TEMPORARY .*ews_schema_migrations.*`db grants"):
        await database.look()
    await place.migrated()
    await database.connect()
    await database.look()


async def place_role(place: ForeignOwner) -> str:
    connection = await asyncpg.connect(place.admin_dsn)
    try:
        return str(await connection.fetchval("SELECT quote_ident($1)", place.service))
    finally:
        await connection.close()


async def test_a_right_that_is_taken_away_is_named_until_it_is_back(
    place: ForeignOwner, database: Database, failures: Failures, tmp_path: Path
) -> None:
    await place.migrated()
    await database.connect()
    role = await place_role(place)
    taken = {
        "INSERT ON rejected_ticks": "INSERT on table public.rejected_ticks",
        "USAGE ON SEQUENCE rejected_ticks_id_seq": "USAGE on sequence public.rejected_ticks_id_seq",
        "UPDATE ON journal_checkpoints": "UPDATE on table public.journal_checkpoints",
    }
    journal = Journal.open(tmp_path / "journal")
    async with writing(journal, database, longest_backoff_s=0.1, failures=failures) as writer:

        async def failing() -> str | None:
            return writer.last_error

        for right, named in taken.items():
            await place.as_owner(f"REVOKE {right} FROM {role}")
            journal.append([*ticks(3), rejected()])
            said = await eventually(failing, 20.0, "a refusal")
            assert f"lacks {named} in database" in said
            assert "Run `db grants --role" in said
            await database.ping()
            told = {one.part: one.reason for one in failures.present}
            assert told == {RIGHTS_LACKING: said, "storing ticks and bars": said}
            await place.as_owner(f"GRANT {right} TO {role}")
            assert await writer.drain(20)
            await database.ping()
            assert failures.present == ()
    journal.close()


async def test_reads_name_the_right_too(place: ForeignOwner, database: Database) -> None:
    await place.migrated()
    await database.connect()
    await place.as_owner(f"REVOKE SELECT ON market_data FROM {await place_role(place)}")
    with pytest.raises(StorageError, match=r"lacks SELECT on table public\.market_data"):
        await database.bars(SYMBOL)
    await place.as_admin(
        f"REVOKE TEMPORARY ON DATABASE {await database_name(place)} FROM {await place_role(place)}"
    )
    with pytest.raises(StorageError, match="lacks TEMPORARY on database") as caught:
        await database.upsert_vendor_bars([bar()])
    assert " in database" not in str(caught.value), "the right itself names the database"


async def database_name(place: ForeignOwner) -> str:
    connection = await asyncpg.connect(place.admin_dsn)
    try:
        return str(await connection.fetchval("SELECT quote_ident(current_database())"))
    finally:
        await connection.close()


async def test_a_database_that_is_up_to_date_is_only_read(
    place: ForeignOwner, database: Database, failures: Failures
) -> None:
    await place.migrated()
    await place.as_admin(
        f"ALTER ROLE {await place_role(place)} SET default_transaction_read_only = on"
    )
    await asyncio.gather(database.connect(), database.connect())
    assert database.connected
    assert failures.of(POSTGRESQL) is None


async def test_who_holds_a_lock_is_named_without_the_right_to_see_what_he_does(
    place: ForeignOwner, database: Database
) -> None:
    """PostgreSQL shows the program and the state of other roles to nobody but them."""
    await place.migrated()
    await database.connect()
    assert await probe_writes(database, uuid4(), ticks(1)[0]) is None, "it needs no other right"
    owner = await asyncpg.connect(place.owner_dsn)
    try:
        await owner.execute("BEGIN; LOCK TABLE realtime_market_data")
        async with database.connection("waiting") as connection:
            backend = await connection.fetchval("SELECT pg_backend_pid()")
            waiting = asyncio.create_task(
                connection.execute("SELECT FROM realtime_market_data LIMIT 1")
            )
            told = None
            while told is None:
                told = await who_blocks(database, backend)
            await owner.execute("ROLLBACK")
            await waiting
        pid = owner.get_server_pid()
        assert told == (
            f"PostgreSQL: a lock on realtime_market_data is held by process {pid} ({place.owner})."
        )
    finally:
        await owner.close()
