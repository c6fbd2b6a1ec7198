"""To which world a database belongs: real prices, simulated ones, or nobody yet.

A database gets its world in the transaction that writes its first row, never by being looked at. A
database from before there was a mark is real, unless it has rows and all of them are simulated: prices
that somebody trades on must never be taken for a rehearsal, while the opposite costs one command.
Everything here takes an asyncpg connection and raises what asyncpg raises.
"""

from typing import Any, Final

from enhanced_websocket_service.market.source import World, check_world

from .sql import load

_SQL: Final = load("world.sql")

_WORLDS: Final[tuple[World, ...]] = ("real", "simulated")
_WITH_SOURCE: Final = ("market_data", "realtime_market_data", "bar_revisions")
"""Tables whose rows say where their prices come from."""
_WITHOUT_SOURCE: Final = (
    "system_health",
    "rejected_ticks",
    "epoch_fence",
    "tick_epochs",
    "journal_checkpoints",
    "bar_grades",
    "bar_drift",
    "vendor_gaps",
)
"""Tables whose rows only say that somebody was here."""
_MARK: Final = "ews_world"
_PATIENCE_S: Final = 600.0
"""Real seconds for a look through all rows: needed once, where a large database has no mark yet."""
_REMEDY: Final[dict[World, str]] = {
    "real": "Set DATABASE_URL to a database for real prices",
    "simulated": "Set DATABASE_URL to a database for simulated prices, or try `demo`, which brings one",
}


async def world_of_database(connection: Any) -> World | None:
    """The world of the database, by its mark or, without one, by its rows; ``None``: nobody's.

    Works on any database, whatever of the schema it has; changes nothing.
    """
    marked = await _marked_world(connection)
    if marked is not None:
        return marked
    async with connection.transaction(readonly=True):
        await connection.execute(_SQL["patience"])
        found = await _world_of_rows(connection)
    if found is None:
        return None
    # Again: a row that was committed after the first look has its mark, which is of more weight.
    return await _marked_world(connection) or found


async def check_database(connection: Any, world: World, place: str) -> None:
    """Whether an instance of ``world`` may write here; changes nothing.

    :param place: names the database for people, at the beginning of a sentence.
    :raises WrongWorld: it belongs to the other world.
    """
    _check(await world_of_database(connection), world, place)


async def claim_world(connection: Any, world: World, place: str) -> None:
    """Say that the rows of this transaction are of ``world``; the first one marks the database.

    :param place: as in ``check_database``.
    :raises WrongWorld: it belongs to the other world; nothing may be written.
    """
    marked = await connection.fetchval(_SQL["marked_world"])
    if marked is None:
        before = await world_of_database(connection)
        if before in (None, world):
            await connection.execute(_SQL["mark_world"], world)
            # Somebody else may have been first: then theirs counts.
            before = await connection.fetchval(_SQL["marked_world"])
        marked = before
    _check(marked, world, place)


async def set_world(connection: Any, world: World) -> None:
    """Make the database one of ``world``, whatever its rows are. The schema must be up to date."""
    await connection.execute(_SQL["set_world"], world)


async def rows_by_world(connection: Any) -> dict[World, dict[str, int]]:
    """How many rows with prices there are of each world, by table; tables without any are left out."""
    found: dict[World, dict[str, int]] = {"real": {}, "simulated": {}}
    tables = await _tables(connection)
    async with connection.transaction(readonly=True):
        await connection.execute(_SQL["patience"])
        for table in (one for one in _WITH_SOURCE if tables.get(one)):
            statement = _SQL["count_by_world"].replace("a_table", table)
            for simulated, count in await connection.fetch(statement, timeout=_PATIENCE_S):
                found["simulated" if simulated else "real"][table] = int(count)
    return found


async def is_marked(connection: Any) -> bool:
    """Whether the world of the database was written down, rather than read from its rows."""
    return await _marked_world(connection) is not None


def _check(found: World | None, ours: World, place: str) -> None:
    instead = f"or let it count as {ours} from here on by `db world --set {ours}`."
    check_world(found, ours, place, f"{_REMEDY[ours]}, {instead}")


async def _marked_world(connection: Any) -> World | None:
    if _MARK not in await _tables(connection):
        return None
    marked: World | None = await connection.fetchval(_SQL["marked_world"])
    return marked


async def _world_of_rows(connection: Any) -> World | None:
    tables = await _tables(connection)
    with_source = [table for table in _WITH_SOURCE if tables.get(table)]
    for world in _WORLDS:
        for table in with_source:
            statement = _SQL["has_rows_of_world"].replace("a_table", table)
            simulated = world == "simulated"
            if await connection.fetchval(statement, simulated, timeout=_PATIENCE_S):
                return world
    for table in tables.keys() - {*with_source, _MARK}:
        if await connection.fetchval(_SQL["has_rows"].replace("a_table", table)):
            return "real"
    return None


async def _tables(connection: Any) -> dict[str, bool]:
    """The tables that can be read, and whether their rows have a source."""
    names = [*_WITH_SOURCE, *_WITHOUT_SOURCE, _MARK]
    return dict(await connection.fetch(_SQL["readable_tables"], names))
