"""Mends what an older release may have left in a database: epochs that none can be.

Until the epoch was held below 2^53, one number that anybody wrote to Redis became the epoch of a process, of
its rows and of the fence, and no later one could write any more. The rows keep their order, under the
numbers that follow the highest epoch that is one.
"""

from typing import Any, Final

from .sql import load

_SQL: Final = load("mend.sql")
_TABLES: Final = {
    "realtime_market_data": ("mend_ticks",),
    "market_data": ("mend_bars",),
    "bar_revisions": ("mend_revisions",),
    "tick_epochs": ("mend_previous", "mend_epochs"),
    "epoch_fence": ("mend_fence",),
    "journal_checkpoints": ("mend_checkpoints",),
    "system_health": ("mend_health",),
}
_PATIENCE_S: Final = 24 * 3600.0


async def mend_epochs(connection: Any) -> list[str]:
    """Replace epochs of 2^53 and more in every table, in one transaction; a sentence for each thing done.

    The schema must be up to date, and the role may change every table.
    """
    async with connection.transaction():
        await connection.execute(_SQL["patience"])
        await connection.execute(_SQL["make_mended"], timeout=_PATIENCE_S)
        mended = await connection.fetch(_SQL["mended"])
        if not mended:
            return []
        told = [f"Epoch {before}, which none can be, is {after} now." for before, after in mended]
        for table, statements in _TABLES.items():
            count = 0
            for name in statements:
                status = await connection.execute(_SQL[name], timeout=_PATIENCE_S)
                count += int(status.rpartition(" ")[2])
            if count:
                told.append(f"{count} rows of {table} changed.")
        return told
