"""Servers that answer pings and do nothing: what is done to PostgreSQL and Valkey, and taken back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import asyncpg
from redis.asyncio import Redis

from .world import World

_DATABASE: Final = "SELECT quote_ident(current_database())"
_CUT: Final = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
_RAISING: Final = """
    CREATE FUNCTION chaos_refuses() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'no rows while the storm lasts'; END $$;
    CREATE TRIGGER chaos_refuses BEFORE INSERT ON realtime_market_data
        FOR EACH ROW EXECUTE FUNCTION chaos_refuses();
"""
_NO_MORE: Final = """
    DROP TRIGGER chaos_refuses ON realtime_market_data;
    DROP FUNCTION chaos_refuses();
"""
PATIENCE_S: Final = 15.0
"""Real seconds for a statement that may have to wait for the service's own."""


@asynccontextmanager
async def _read_only(world: World) -> AsyncIterator[None]:
    """As after a fail-over to a standby."""
    async with _connected(world) as connection:
        database = await connection.fetchval(_DATABASE)
        await connection.execute("SET default_transaction_read_only = off")
        await connection.execute(
            f"ALTER DATABASE {database} SET default_transaction_read_only = on"
        )
        try:
            await connection.execute(_CUT)
            yield
        finally:
            await connection.execute(
                f"ALTER DATABASE {database} RESET default_transaction_read_only"
            )
            await connection.execute(_CUT)


@asynccontextmanager
async def _lock(world: World) -> AsyncIterator[None]:
    """As somebody's forgotten transaction: whoever reads the ticks may, nobody writes any."""
    async with _connected(world) as connection, connection.transaction():
        await connection.execute("LOCK TABLE realtime_market_data IN EXCLUSIVE MODE")
        yield


@asynccontextmanager
async def _trigger(world: World) -> AsyncIterator[None]:
    """As a check that somebody added."""
    async with _connected(world) as connection:
        await connection.execute(_RAISING)
        try:
            yield
        finally:
            await connection.execute(_NO_MORE)


@asynccontextmanager
async def _oom(world: World) -> AsyncIterator[None]:
    """Full, and nothing may be evicted."""
    async with _client(world) as client:
        kept = await client.config_get("maxmemory*")
        await client.config_set("maxmemory-policy", "noeviction")
        await client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            await client.config_set("maxmemory", kept["maxmemory"])
            await client.config_set("maxmemory-policy", kept["maxmemory-policy"])


@asynccontextmanager
async def _pause_write(world: World) -> AsyncIterator[None]:
    """Reads and pings are answered, writes wait."""
    async with _client(world) as client:
        await client.execute_command("CLIENT", "PAUSE", 3_600_000, "WRITE")
        try:
            yield
        finally:
            await client.execute_command("CLIENT", "UNPAUSE")


_LIES: Final[dict[str, Callable[[World], AbstractAsyncContextManager[None]]]] = {
    "read_only": _read_only,
    "lock": _lock,
    "trigger": _trigger,
    "oom": _oom,
    "pause_write": _pause_write,
}


def lying(world: World, name: str) -> AbstractAsyncContextManager[None]:
    """As long as it is entered, the server lies in the way ``name`` of ``schedule``."""
    return _LIES[name](world)


@asynccontextmanager
async def _connected(world: World) -> AsyncIterator[Any]:
    async with asyncio.timeout(PATIENCE_S):
        connection = await asyncpg.connect(world.postgres.url, command_timeout=PATIENCE_S)
    try:
        yield connection
    finally:
        await connection.close()


def _client(world: World) -> Any:
    return Redis.from_url(world.valkey.url, decode_responses=True)
