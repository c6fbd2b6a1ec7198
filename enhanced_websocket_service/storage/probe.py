"""Whether PostgreSQL takes what the writer stores, asked while there is nothing to store.

The writer's own COPY of a marked row, rolled back to a savepoint, then one row of our own, committed: a lock,
a lacking right, a full disk or a server that takes no writes shows before the next price comes.
"""

from typing import Final
from uuid import UUID

import msgspec

from enhanced_websocket_service.errors import EwsError, StorageError
from enhanced_websocket_service.market.tick import Tick

from .catalog import writing_form
from .pool import QUERIES, WRITES
from .postgres import Database
from .record_store import UNSTORABLE, Batch, RecordStore, Witnesses

LOCK_PATIENCE_MS: Final = 3500
PATIENCE_MS: Final = 4500
MARK: Final = "probe"
"""The flag of the row that is copied and rolled back."""


async def probe_writes(database: Database, journal_id: UUID, row: Tick | None) -> str | None:
    """Do what the writer does.

    :param row: what is copied and rolled back, as offset 0, which no tick has; ``None``: nothing is.
    :returns: why the COPY was left out; ``None`` when it was made.
    :raises StorageError: PostgreSQL did not do it, in its own words.
    """
    note = None if row is not None else "No COPY was made: no price is known yet."
    async with database.transaction("probing whether rows can be stored") as connection:
        patience = (str(LOCK_PATIENCE_MS), str(PATIENCE_MS))
        await connection.execute(WRITES["probe_patience"], *patience)
        triggers = [one[0] for one in await connection.fetch(QUERIES["foreign_triggers"])]
        if triggers:
            note = f"No COPY was made: it would set off the triggers of others ({', '.join(triggers)})."
        elif row is not None:
            form, _ = await writing_form(connection)
            batch = Batch(database.zone)
            batch.add([msgspec.structs.replace(row, offset=0, flags=(MARK,))])
            savepoint = connection.transaction()
            await savepoint.start()
            try:
                store = RecordStore(connection, database.zone, form, Witnesses(row.symbol))
                await store.store(batch, careful=False)
            except UNSTORABLE as error:
                raise StorageError(
                    f"A row like {row.symbol}'s last tick does not fit into realtime_market_data: "
                    f"{type(error).__name__}: {error}"
                ) from error
            await savepoint.rollback()
        await connection.execute(WRITES["note_probe"], journal_id)
    return note


async def who_blocks(database: Database, backend: int) -> str | None:
    """What the server's process ``backend`` waits for and who has it; ``None``: it waits for nobody."""
    try:
        rows = await database.fetch("blockers", backend)
    except EwsError as error:
        return str(error)
    if not rows:
        return None
    who = "; ".join(
        # Of other roles PostgreSQL tells the name alone, unless ours may see all.
        f"process {row['pid']} ({', '.join(filter(None, (row['role'], row['program'], row['state'])))})"
        for row in rows
    )
    return f"PostgreSQL: a lock on {rows[0]['wanted'] or 'something'} is held by {who}."
