"""To which world the configured places belong: judged before a start, changed by ``db world``."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from redis.exceptions import RedisError

from enhanced_websocket_service.addresses import PostgresAddress, redis_address
from enhanced_websocket_service.bus.address import client_for
from enhanced_websocket_service.bus.answers import refusal
from enhanced_websocket_service.bus.names import SIMULATED_PREFIX, RedisNames
from enhanced_websocket_service.bus.world import RedisWorld
from enhanced_websocket_service.errors import BusUnavailable
from enhanced_websocket_service.l0.backup import BackupSet
from enhanced_websocket_service.l0.pipeline import check_history
from enhanced_websocket_service.l0.readiness import ReadyFlag
from enhanced_websocket_service.market.source import World, check_world, world_of
from enhanced_websocket_service.settings import Settings
from enhanced_websocket_service.storage import world as worlds
from enhanced_websocket_service.storage.journal_reader import recover
from enhanced_websocket_service.storage.migrate import migrate
from enhanced_websocket_service.storage.pool import Pool

from . import connections

ANSWER_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class DatabaseWorld:
    """The world of a database. ``marked``: it was written down, not read from the rows."""

    place: str
    world: World | None
    marked: bool
    rows: dict[World, dict[str, int]]

    def sentences(self) -> list[str]:
        """What a person wants to know of it, a sentence each."""
        if self.world is None:
            return [
                f"The database at {self.place} is nobody's: it is empty. Its first row gives it its world."
            ]
        how = "" if self.marked else ", by its rows (it has no mark yet)"
        told = [f"The database at {self.place} is for {self.world} prices{how}."]
        other: World = "real" if self.world == "simulated" else "simulated"
        if rows := self.rows[other]:
            listed = ", ".join(f"{count} in {table}" for table, count in rows.items())
            told.append(
                f"Rows with {other} prices remain: {listed}. No answer of the service mixes them with the "
                f"{self.world} ones; other programs that read the tables must look at the column source."
            )
        return told


@dataclass(frozen=True, slots=True)
class Worlds:
    """The worlds of the configured places; ``redis`` is ``None`` where none is configured."""

    database: DatabaseWorld
    redis_place: str | None = None
    redis: World | None = None

    def sentences(self) -> list[str]:
        """What a person wants to know, a sentence each."""
        told = self.database.sentences()
        if self.redis_place is not None:
            whose = "nobody's" if self.redis is None else f"for {self.redis} prices"
            told.append(f"The Redis at {self.redis_place} is {whose}.")
        return told

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def check_folders(settings: Settings) -> None:
    """Whether an instance with these settings may write into its folders; changes nothing.

    Simulated prices in a folder never stop a real instance: it leaves them out, or replaces them.

    :raises WrongWorld: real prices are there, and ours are simulated.
    """
    provider = settings.data_provider
    if not provider.simulated:
        return
    journal = settings.state_dir / "journal"
    for tick in recover(journal, settings.symbols).last.values():
        remedy = "Set STATE_DIR to a folder of its own."
        check_world(world_of(tick.source), provider.world, f"The journal in {journal}", remedy)
    check_history(
        provider.world,
        [
            BackupSet(settings.backup_dir, symbol, calendar)
            for symbol, calendar in settings.calendars().items()
        ],
        ReadyFlag(settings.ready_signals_dir, settings.clock()),
    )


async def look(settings: Settings) -> Worlds:
    """The worlds of the configured database and Redis; changes nothing.

    :raises EwsError: one of them cannot be asked.
    """
    return await _worlds(settings, None)


async def change(settings: Settings, world: World) -> Worlds:
    """Make the configured database, and Redis, places of ``world``; what they are then.

    :raises EwsError: one of them cannot be asked or changed; Redis comes first.
    """
    return await _worlds(settings, world)


async def claim_private(dsn: str) -> None:
    """Mark a private database of the demo whose rows have no price to tell its world by: an older release
    left it before the first price came. Raises ``StorageError``.
    """
    pool = Pool(dsn, max_size=1)
    try:
        async with pool.bare_connection("asking for its world") as connection:
            unclear = await worlds.world_of_database(connection) == "real"
            if not unclear or await worlds.is_marked(connection):
                return
            if not (await worlds.rows_by_world(connection))["real"]:
                await migrate(connection)
                await worlds.set_world(connection, "simulated")
    finally:
        await pool.close()


async def _worlds(settings: Settings, wanted: World | None) -> Worlds:
    redis_place, redis = None, None
    if settings.redis_url is not None:
        redis_place, redis = await _redis_world(settings.redis_url, settings.symbols, wanted)
    doing = "asking for its world" if wanted is None else "changing its world"
    async with connections.open_database(settings, doing) as connection:
        if wanted is not None:
            await migrate(connection)
            await worlds.set_world(connection, wanted)
        found = DatabaseWorld(
            place=_database_place(settings),
            world=await worlds.world_of_database(connection),
            marked=await worlds.is_marked(connection),
            rows=await worlds.rows_by_world(connection),
        )
    return Worlds(found, redis_place, redis)


async def _redis_world(
    url: str, symbols: Sequence[str], wanted: World | None
) -> tuple[str, World | None]:
    plain = RedisNames()
    client = client_for(url, name="db-world", timeout_s=ANSWER_WITHIN_S)
    options = client.connection_pool.connection_kwargs
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            if wanted is not None:
                await client.delete(RedisNames(SIMULATED_PREFIX).world)
                await client.set(plain.world, wanted)
            found = await RedisWorld("real", plain, symbols).world(client)
    except (RedisError, OSError, TimeoutError) as error:
        raise BusUnavailable(refusal(error, options)) from error
    finally:
        await client.aclose()
    return redis_address(options), found


def _database_place(settings: Settings) -> str:
    return (
        "its private server"
        if settings.database_url is None
        else str(PostgresAddress.of(settings.database_url))
    )
