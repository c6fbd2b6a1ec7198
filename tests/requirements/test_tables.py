"""The document's tables, its monitoring queries and commands, on real servers."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from redis.asyncio import Redis

from . import facts

MIGRATIONS = (
    Path(__file__).resolve().parents[2] / "enhanced_websocket_service" / "storage" / "migrations"
)

COLUMNS = """
    SELECT table_name, column_name, data_type, character_maximum_length, numeric_precision,
           numeric_scale, is_nullable,
           -- a sequence is named after its table; elsewhere defaults compare as written
           column_default
    FROM information_schema.columns
    WHERE table_schema = 'public' AND table_name = ANY($1)
    ORDER BY table_name, ordinal_position
"""
CONSTRAINTS = """
    SELECT conrelid::regclass::text, contype::text, pg_get_constraintdef(oid)
    FROM pg_constraint
    WHERE conrelid::regclass::text = ANY($1) AND contype IN ('p', 'u')
"""


async def _empty_database(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    name = f"ews_requirements_{uuid4().hex[:12]}"
    admin = await asyncpg.connect(dsn)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        connection = await asyncpg.connect(dsn, database=name)
        try:
            yield connection
        finally:
            await connection.close()
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest.fixture
async def documented(database_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A database with exactly the tables of the document."""
    async for connection in _empty_database(database_dsn):
        await connection.execute(facts.SQL)
        yield connection


@pytest.fixture
async def migrated(database_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A database with the tables as the service makes them."""
    async for connection in _empty_database(database_dsn):
        await _migrate(connection)
        yield connection


async def _migrate(connection: asyncpg.Connection) -> None:
    for script in sorted(MIGRATIONS.glob("*.sql")):
        await connection.execute(script.read_text())


async def _columns(connection: asyncpg.Connection) -> dict[tuple[str, str], tuple[object, ...]]:
    rows = await connection.fetch(COLUMNS, list(facts.TABLES))
    return {(row[0], row[1]): tuple(row)[2:] for row in rows}


async def _constraints(connection: asyncpg.Connection) -> set[tuple[object, ...]]:
    return {tuple(row) for row in await connection.fetch(CONSTRAINTS, list(facts.TABLES))}


async def test_first_migration_is_the_document(
    documented: asyncpg.Connection, database_dsn: str
) -> None:
    first = min(MIGRATIONS.glob("*.sql"))
    assert first.name == "0001_requirements_tables.sql"
    async for connection in _empty_database(database_dsn):
        await connection.execute(first.read_text())
        assert await _columns(connection) == await _columns(documented)
        assert await _constraints(connection) == await _constraints(documented)


async def test_migrated_tables_keep_every_column(
    documented: asyncpg.Connection, migrated: asyncpg.Connection
) -> None:
    """Name, type, length, precision, nullability, default, keys: what came later only adds."""
    wanted, found = await _columns(documented), await _columns(migrated)
    assert len(wanted) == 30
    assert {key: found.get(key) for key in wanted} == wanted
    assert await _constraints(documented) <= await _constraints(migrated)
    for key in found.keys() - wanted.keys():
        nullable, default = found[key][4:6]
        assert nullable == "YES" or default is not None, f"{key} breaks existing INSERTs"


async def test_existing_databases_keep_working(
    documented: asyncpg.Connection, migrated: asyncpg.Connection
) -> None:
    """Rows that another system wrote into the document's tables survive the migrations."""
    await documented.execute(
        """
        INSERT INTO market_data (symbol, datetime, open, high, low, close, source)
        VALUES ('USDCOP', '2025-01-20 13:00+00', 4275.45, 4276, 4275, 4275.5, 'other');
        INSERT INTO realtime_market_data (symbol, time, last) VALUES ('USDCOP', NOW(), 4275.45);
        INSERT INTO realtime_market_data (symbol, time, last) VALUES ('USDCOP', NOW(), 4275.45);
        INSERT INTO system_health (service_name, status) VALUES ('other', 'fine');
        """
    )
    await _migrate(documented)
    assert await _columns(documented) == await _columns(migrated)
    counts = [await documented.fetchval(f"SELECT count(*) FROM {t}") for t in facts.TABLES]
    assert counts == [1, 2, 1]
    bar = await documented.fetchrow("SELECT close::text, source FROM market_data")
    assert tuple(bar) == ("4275.500000", "other")


async def test_monitoring_queries_run(migrated: asyncpg.Connection) -> None:
    activity, sizes = facts.DATABASE_QUERIES
    await migrated.fetch(activity)
    tables = {row["tablename"]: row["pg_size_pretty"] for row in await migrated.fetch(sizes)}
    assert set(facts.TABLES) <= tables.keys()


async def test_redis_answers_the_monitoring_commands(valkey_url: str) -> None:
    async with Redis.from_url(valkey_url) as redis:
        assert await redis.ping()
        assert "used_memory" in await redis.info("memory")
        assert "total_commands_processed" in await redis.info("stats")
