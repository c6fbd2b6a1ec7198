"""Migrations on empty, existing and half-known databases, by one process and by several at once."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from enhanced_websocket_service.errors import StorageError
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.storage import migrate as migrate_module
from enhanced_websocket_service.storage.migrate import migrate, migrations
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.table_forms import REQUIRED
from tests.storage_samples import OPEN, SYMBOL, bar

ALL = migrations()
LEGACY = {
    # a table as the requirements have it; as somebody made it by hand, without the constraint
    "as required": migrations()[0].sql,
    "without the constraint": migrations()[0].sql.replace(
        "DEFAULT NOW(),\n    UNIQUE(symbol, datetime, source)", "DEFAULT NOW()"
    ),
}
ROWS = f"""
INSERT INTO market_data (symbol, datetime, open, high, low, close, volume, source) VALUES
    ('USDCOP', to_timestamp({OPEN}), 1, 2, 0.5, 1.5, NULL, NULL),
    ('USDCOP', to_timestamp({OPEN}), 1, 2, 0.5, 1.6, 7, NULL),
    ('USDCOP', to_timestamp({OPEN}), 1, 2, 0.5, 1.7, 7, 'twelvedata_rest'),
    ('USDCOP', to_timestamp({OPEN} + 300), 1, 2, 0.5, NULL, 7, 'twelvedata');
INSERT INTO realtime_market_data (symbol, time, last, source) VALUES
    ('USDCOP', to_timestamp({OPEN}), 1.5, NULL), ('USDCOP', to_timestamp({OPEN}), 1.5, NULL);
INSERT INTO system_health (service_name) VALUES ('another service');
"""


@pytest.fixture
async def connection(database_dsn: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(database_dsn)
    yield connection
    await connection.close()


async def columns(connection: Any, table: str) -> dict[str, tuple[str, str | None]]:
    rows = await connection.fetch(
        "SELECT column_name, data_type, is_nullable, column_default FROM information_schema.columns "
        "WHERE table_name = $1",
        table,
    )
    return {r["column_name"]: (r["is_nullable"], r["column_default"]) for r in rows}


async def test_twice_is_once(connection: Any) -> None:
    assert await migrate(connection) == ALL
    assert await migrate(connection) == []
    for table, required in REQUIRED.items():
        assert set(required) <= (await columns(connection, table)).keys()


async def test_what_is_added_to_the_required_tables_needs_no_value(connection: Any) -> None:
    """Programs that know only the requirements keep inserting as before."""
    await migrate(connection)
    for table, required in REQUIRED.items():
        for name, (nullable, default) in (await columns(connection, table)).items():
            assert name in required or nullable == "YES" or default is not None, f"{table}.{name}"
    await connection.execute(ROWS)


async def test_several_processes_at_once(database_dsn: str, connection: Any) -> None:
    program = (
        "import asyncio, asyncpg, sys\n"
        "from enhanced_websocket_service.storage.migrate import migrate\n"
        "async def main():\n"
        "    connection = await asyncpg.connect(sys.argv[1])\n"
        "    applied = await migrate(connection)\n"
        "    await connection.close()\n"
        "    print(len(applied))\n"
        "asyncio.run(main())\n"
    )
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, database_dsn),
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(2)
    ]
    answers = [(await process.communicate())[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    counts = sorted(int(answer.split()[-1]) for answer in answers)
    assert counts == [0, len(ALL)]
    assert await migrate(connection) == []


@pytest.mark.parametrize("legacy", list(LEGACY))
async def test_existing_tables_with_rows_keep_working(
    database_dsn: str, connection: Any, legacy: str
) -> None:
    await connection.execute(LEGACY[legacy])
    await connection.execute(ROWS)
    before = await connection.fetch("SELECT * FROM market_data ORDER BY id")
    assert await migrate(connection) == ALL
    after = await connection.fetch("SELECT * FROM market_data ORDER BY id")
    assert [tuple(row)[: len(before[0])] for row in after] == [tuple(row) for row in before]
    # Reads cope with NULL sources, NULL volumes and bars that are not whole.
    database = Database(database_dsn, Provider("twelvedata"))
    await database.connect()
    found = (await database.bars(SYMBOL, start=OPEN)).bars
    assert [(b.open_time, b.close, b.source) for b in found] == [(OPEN, 1.6, "unknown")]
    assert await database.slots_present(SYMBOL, OPEN, OPEN + 300) == {
        OPEN: ["twelvedata_rest", "unknown"]
    }
    assert await database.ticks(SYMBOL) == []
    # And so do writes, also over the rows that were there.
    vendor = [bar(close=9.0, source="twelvedata"), bar(close=9.5, source="twelvedata_rest")]
    assert await database.upsert_vendor_bars(vendor) == 2
    assert await database.upsert_vendor_bars(vendor) == 0
    assert (await database.bars(SYMBOL, start=OPEN)).bars[0].close == 9.0
    rest = (await database.bars(SYMBOL, start=OPEN, source="twelvedata_rest")).bars
    assert [b.close for b in rest] == [9.5]
    await database.close()


async def test_a_database_with_the_unique_constraint_on_ticks_gets_no_second_index(
    connection: Any,
) -> None:
    await connection.execute(migrations()[0].sql)
    await connection.execute(
        "ALTER TABLE realtime_market_data ADD epoch BIGINT, ADD tick_offset BIGINT, "
        "ADD UNIQUE (symbol, epoch, tick_offset)"
    )
    await migrate(connection)
    unique = await connection.fetchval(
        "SELECT count(*) FROM pg_indexes WHERE tablename = 'realtime_market_data' "
        "AND indexdef LIKE 'CREATE UNIQUE%tick_offset%'"
    )
    assert unique == 1


async def test_an_edited_migration_is_refused(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(connection)
    edited = [migrate_module.Migration(1, "requirements_tables", "SELECT 1"), *migrations()[1:]]
    monkeypatch.setattr(migrate_module, "migrations", lambda: edited)
    with pytest.raises(StorageError, match=r"0001 \(requirements_tables\).*another content"):
        await migrate(connection)


async def test_a_table_that_lacks_columns_is_named_and_left_alone(connection: Any) -> None:
    await connection.execute(
        "CREATE TABLE market_data (id SERIAL, symbol TEXT, datetime TIMESTAMPTZ)"
    )
    with pytest.raises(StorageError, match=r"market_data lacks open, high.*ADD COLUMN high"):
        await migrate(connection)
    tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert [row[0] for row in tables] == ["market_data"], "nothing happened"


async def test_one_row_a_slot_and_world(connection: Any) -> None:
    await migrate(connection)
    sources = ["twelvedata", None, "histdata", "twelvedata_websocket", "twelvedata_rest"]
    sources += ["simulator", "simulator_websocket", "simulator_rest"]
    await connection.executemany(
        "INSERT INTO market_data (symbol, datetime, open, high, low, close, source) "
        "VALUES ('USDCOP', '2025-06-03 13:00Z', 1, 1, 1, 1, $1)",
        [(source,) for source in reversed(sources)],
    )

    async def speaking() -> list[tuple[Any, Any]]:
        rows = await connection.fetch(
            "SELECT source, simulated FROM market_bars ORDER BY simulated"
        )
        return [tuple(row) for row in rows]

    for real, simulated in [
        ("twelvedata", "simulator"),
        # of two other imports, the one written last
        (None, "simulator_websocket"),
        ("histdata", "simulator_rest"),
        ("twelvedata_websocket", None),
        ("twelvedata_rest", None),
    ]:
        expected = [(real, False)] + ([(simulated, True)] if simulated else [])
        assert await speaking() == expected
        await connection.execute(
            "DELETE FROM market_data WHERE source IS NOT DISTINCT FROM $1 OR source = $2",
            *(real, simulated),
        )
    assert await speaking() == []
