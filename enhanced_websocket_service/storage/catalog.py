"""The catalog of PostgreSQL, read for ``table_forms``: which tables our names mean, and what they are like.

Everything here takes an asyncpg connection, only reads, and raises what asyncpg raises.
"""

import re
from collections.abc import Collection, Iterable
from typing import Any, Final

import msgspec

from enhanced_websocket_service.errors import UnfitTables

from .sql import load
from .table_forms import BARS, NAMES, TICKS, Judgement, Refusal, Table, Taken, WritingForm, judge

SQL: Final = load("catalog.sql")

_WRITTEN: Final = [TICKS, BARS]
_MADE: Final = re.compile(
    r"^\s*CREATE (?:TABLE|VIEW|FUNCTION|INDEX|UNIQUE INDEX) (?!IF NOT EXISTS)(\w+)", re.MULTILINE
)
_tables: Final = msgspec.json.Decoder(Table)


async def read_tables(connection: Any, names: Iterable[str] = NAMES) -> dict[str, Table]:
    """The relations that ``names`` mean on the search path; absent ones are left out."""
    rows = await connection.fetch(SQL["tables"], list(names))
    return {row["name"]: _tables.decode(row["document"]) for row in rows}


async def look(
    connection: Any, *, to_come: Collection[int] = (), scripts: Iterable[str] = ()
) -> Judgement:
    """Judge the tables as they are.

    :param to_come: the numbers of the migrations that have not been applied.
    :param scripts: their SQL.
    """
    made = sorted({name for script in scripts for name in names_made(script)})
    place = await connection.fetchrow(SQL["place"])
    taken = await connection.fetch(SQL["taken"], made) if made else []
    return judge(
        await read_tables(connection),
        schema=place["schema"],
        to_come=to_come,
        taken=[Taken(**row) for row in taken],
    )


def names_made(script: str) -> list[str]:
    """The tables, views, indexes and functions that ``script`` makes and must not find."""
    return _MADE.findall(re.sub(r"--[^\n]*|\$\$.*?\$\$", "", script, flags=re.DOTALL))


async def refuse(connection: Any, refusals: Collection[Refusal]) -> None:
    """:raises UnfitTables: there are any."""
    if not refusals:
        return
    place = await connection.fetchrow(SQL["place"])
    told = [str(one) for one in refusals]
    if len(told) > 1:
        told = [f"({number}) {one}" for number, one in enumerate(told, 1)]
    raise UnfitTables(
        f"Database {place['database']} cannot hold what the service writes: {' '.join(told)}"
    )


async def writing_form(connection: Any) -> tuple[WritingForm, str]:
    """How to write into the tables as they are now, and the fingerprint of that state.

    :raises UnfitTables: they were altered so that they cannot hold what is written.
    """
    # The fingerprint first: what changes in between shows when it is asked again.
    fingerprint: str = await connection.fetchval(SQL["fingerprint"], _WRITTEN)
    judgement = await look(connection)
    await refuse(connection, judgement.refusals)
    return judgement.form, fingerprint


async def unaltered(connection: Any, fingerprint: str) -> bool:
    """Whether the tables are as they were; certain inside a transaction that has written to them."""
    return bool(await connection.fetchval(SQL["fingerprint"], _WRITTEN) == fingerprint)
