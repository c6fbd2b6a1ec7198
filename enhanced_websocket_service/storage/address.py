"""Whether an address of PostgreSQL can be understood, and whether somebody answers there."""

import asyncio
from typing import Any

import asyncpg

from enhanced_websocket_service.addresses import BAD_DATABASE_URL
from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.market.source import World
from enhanced_websocket_service.redaction import redact_url

from .migrate import check
from .pool import Pool


class _Understood(Exception):
    """asyncpg has read the address, and its files, and is about to connect."""


class _Nowhere:
    """The event loop that asyncpg is given: one on which nothing can be connected to."""

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.get_running_loop().create_future()

    async def create_connection(self, *_: Any, **__: Any) -> Any:
        raise _Understood

    create_unix_connection = create_connection


async def understand(dsn: str) -> None:
    """Read ``dsn`` as a connection would, without any connection.

    :raises ConfigurationError: it cannot be understood; no waiting mends it.
    :raises OSError: a file that it names cannot be read now.
    """
    try:
        await asyncpg.connect(dsn, loop=_Nowhere())
    except _Understood:
        return
    except asyncpg.ClientConfigurationError as error:
        # Its words may quote any part of the address, but not one that a parameter names.
        if "certificate file" not in str(error):
            raise ConfigurationError(BAD_DATABASE_URL) from None
        why = str(error).partition("\n")[0]
        raise ConfigurationError(f"DATABASE_URL={redact_url(dsn)} cannot be used: {why}.") from None
    except (ValueError, KeyError, asyncpg.InterfaceError):
        raise ConfigurationError(BAD_DATABASE_URL) from None


async def answer_of(dsn: str, timeout_s: float, world: World) -> tuple[str, ...]:
    """Log in, and look whether prices of ``world`` may go there and the tables hold them; nothing is changed.

    :param timeout_s: real seconds for the connection and for the answer.
    :returns: sentences on what works and yet should be known.
    :raises UnfitTables: tables cannot hold what is written.
    :raises StorageError: what PostgreSQL, or the way to it, answered instead; the right that is lacking.
    :raises WrongWorld: the database belongs to the other world.
    """
    pool = Pool(dsn, world=world, max_size=1, timeout_s=timeout_s)
    try:
        await pool.look()
        async with pool.bare_connection("connecting") as connection:
            return await check(connection)
    finally:
        await pool.close(timeout_s)
