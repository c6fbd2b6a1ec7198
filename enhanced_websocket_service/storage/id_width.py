"""Ids that do not run out: SERIAL ends at 2,147,483,647, after which no row can be added.

``id`` is INTEGER in the requirements. It is made BIGINT while the table is small, which takes a moment; in a
large one only when its owner asks, because PostgreSQL rewrites the table and nobody can read it meanwhile.
"""

from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import structlog

from .catalog import SQL
from .table_forms import BARS, REQUIRED

log = structlog.get_logger(__name__)

SMALL_BYTES: Final = 128 << 20
"""With its indexes; rewritten within seconds."""
REWRITTEN_BYTES_PER_S: Final = 30 << 20
"""Of table and indexes, on a slow disk."""
LAST_ID: Final = 2**31 - 1
_PATIENCE_S: Final = 24 * 3600.0
_BRIEFLY: Final = "SET LOCAL lock_timeout = '2s'"
_HELD: Final = (
    asyncpg.FeatureNotSupportedError,
    asyncpg.InvalidTableDefinitionError,
    asyncpg.LockNotAvailableError,
)


@dataclass(frozen=True, slots=True)
class IdColumn:
    """The id of one table: its type, that of its sequence, and how far it has come."""

    name: str
    shown: str
    type: str
    identity: bool
    owned: bool
    owner: str
    sequence: str | None
    sequence_type: str | None
    used: int
    bytes: int

    @property
    def narrow(self) -> bool:
        """Whether it, or its sequence, ends before 2^63."""
        return "integer" in (self.type, self.sequence_type)

    @property
    def quick(self) -> bool:
        """Whether it is widened in a moment: a sequence alone always is."""
        return self.type != "integer" or self.bytes <= SMALL_BYTES

    def statements(self) -> list[str]:
        made = []
        if self.type == "integer":
            made.append(_widening(self))
        if self.sequence is not None and self.sequence_type == "integer" and not self.identity:
            made.append(f"ALTER SEQUENCE {self.sequence} AS BIGINT;")
        return made

    def sentence(self) -> str:
        """What is left and what to do, for people."""
        used = 100 * self.used / LAST_ID
        seconds = max(1, round(self.bytes / REWRITTEN_BYTES_PER_S))
        return (
            f"The ids of {self.shown} end at {LAST_ID:,}, and {used:.1f} % of them are used. "
            f"`db migrate --rewrite` as {self.owner} makes them BIGINT: it rewrites the table, "
            f"{self.bytes >> 20:,} MiB with its indexes, which nobody can read or write meanwhile, for "
            f"about {_duration(seconds)}."
        )


async def narrow_ids(connection: Any) -> list[IdColumn]:
    """The ids that this role may widen in a moment."""
    return [one for one in await _ids(connection) if one.owned and one.quick]


async def widen_ids(connection: Any, *, rewrite: bool) -> None:
    """Inside a transaction: make ids BIGINT, those of large tables only with ``rewrite``.

    What a view of somebody else's holds fast, or another program uses just now, stays as it is, and is told.
    """
    if not rewrite:  # whoever waits for a table makes all others wait behind it
        await connection.execute(_BRIEFLY)
    for one in await _ids(connection):
        if not one.owned or not (one.quick or rewrite):
            log.warning("Ids will run out", why=one.sentence())
            continue
        try:
            async with connection.transaction():  # a savepoint
                for statement in one.statements():
                    await connection.execute(statement, timeout=_PATIENCE_S)
        except _HELD as error:
            said = " ".join(str(part) for part in (error, getattr(error, "detail", None)) if part)
            log.warning(
                "Ids stay INTEGER for now: something else uses them", table=one.shown, why=said
            )


async def widening_script(connection: Any) -> list[str]:
    """All statements that ``widen_ids`` would execute, with what they take as a comment."""
    lines = []
    present = {row["name"] for row in await connection.fetch(SQL["id_columns"], list(REQUIRED))}
    for name in REQUIRED.keys() - present:
        made = IdColumn(name, name, "integer", False, True, "", f"{name}_id_seq", "integer", 0, 0)
        lines += made.statements()
    for one in await _ids(connection):
        lines += [f"\n-- {one.sentence()}", *one.statements()]
    return lines


async def caveats(connection: Any) -> list[str]:
    """A sentence on each table whose ids end, and that only its owner can mend."""
    return [one.sentence() for one in await _ids(connection) if not (one.owned and one.quick)]


async def _ids(connection: Any) -> list[IdColumn]:
    rows = await connection.fetch(SQL["id_columns"], list(REQUIRED))
    return [one for one in (IdColumn(**row) for row in rows) if one.narrow]


def _widening(column: IdColumn) -> str:
    if column.name != BARS:
        return f"ALTER TABLE {column.shown} ALTER COLUMN id TYPE BIGINT;"
    statement = SQL["widen_id"].replace("a_table", column.shown)
    return statement.replace("its_view", "market_bars") + ";"


def _duration(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
