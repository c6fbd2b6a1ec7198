"""The least rights that ``run`` and the ``l0`` commands need in a database whose tables are another's.

``RIGHTS`` is the one place that says what is needed; ``db grants`` prints it, and what is lacking is told
from it. A test proves that each right is needed and that together they suffice.
"""

import shlex
from dataclasses import dataclass
from typing import Any, Final

from enhanced_websocket_service.errors import StorageError

from .sql import load

RIGHTS: Final[dict[str, tuple[str, ...]]] = {
    "ews_schema_migrations": ("SELECT",),
    "ews_world": ("SELECT", "INSERT"),
    "market_data": ("SELECT", "INSERT", "UPDATE"),
    "realtime_market_data": ("SELECT", "INSERT"),
    "system_health": ("SELECT", "INSERT"),
    "rejected_ticks": ("INSERT",),
    "journal_checkpoints": ("SELECT", "INSERT", "UPDATE"),
    "epoch_fence": ("SELECT", "INSERT", "UPDATE"),
    "tick_epochs": ("SELECT", "INSERT"),
    "bar_revisions": ("SELECT", "INSERT"),
    "vendor_gaps": ("SELECT", "INSERT", "UPDATE"),
    "bar_drift": ("SELECT", "INSERT", "UPDATE"),
    "health_probes": ("SELECT", "INSERT", "UPDATE"),
    # Not read by the service: for queries by hand, of what market_data tells anyway.
    "market_bars": ("SELECT",),
}
"""By table or view. The sequences behind the tables' defaults come with INSERT."""
FUNCTIONS: Final = (
    *("ews_is_simulated", "ews_source_rank", "ews_grade", "ews_grade_rank", "ews_bar_rank"),
)
_STATEMENTS: Final = load("rights.sql")
_SHOWN: Final = 4


@dataclass(frozen=True, slots=True)
class Right:
    """One right and whether ``role`` has it; ``None``: there is no such table."""

    kind: str
    object: str
    privilege: str
    held: bool | None
    owner: str | None
    role: str
    quoted_role: str
    database: str


async def needed(connection: Any, role: str | None = None) -> list[Right]:
    """Every right that ``role`` (the one that asks) needs in the database behind ``connection``."""
    pairs = [(table, privilege) for table, all_of_it in RIGHTS.items() for privilege in all_of_it]
    tables, privileges = zip(*pairs, strict=True)
    rows = await connection.fetch(
        *(_STATEMENTS["needed_rights"], role, list(tables), list(privileges), list(FUNCTIONS))
    )
    return [Right(**row) for row in rows]


async def role_exists(connection: Any, role: str) -> bool:
    return bool(await connection.fetchval(_STATEMENTS["role_exists"], role))


def grants_script(rights: list[Right]) -> str:
    """The statements that give all of ``rights``, held or not, for psql.

    :raises StorageError: tables are not there.
    """
    if any(one.held is None for one in rights):
        raise StorageError(complaint(rights))
    by_object: dict[tuple[str, str], list[str]] = {}
    for one in rights:
        by_object.setdefault((one.kind, one.object), []).append(one.privilege)
    lines = [
        f"GRANT {', '.join(privileges)} ON {kind} {name} TO {rights[0].quoted_role};"
        for (kind, name), privileges in by_object.items()
    ]
    schemas = [one.object for one in rights if one.kind == "SCHEMA"]
    if schemas != ["public"]:
        lines.insert(
            0,
            f"-- The tables are in {', '.join(schemas)}: end DATABASE_URL of the service with "
            f"?search_path={','.join(schemas)}",
        )
    return "\n".join(lines)


def complaint(rights: list[Right]) -> str | None:
    """A sentence on what of ``rights`` is lacking and what to do about it; ``None`` when nothing is."""
    lacking = [one for one in rights if not one.held]
    if not lacking:
        return None
    first = lacking[0]
    if any(one.held is None for one in lacking):
        tables = dict.fromkeys(one.object for one in lacking if one.held is None)
        return (
            f"Database {first.database} lacks {_listed([f'table {name}' for name in tables])}, as far as "
            f"role {first.role} can see. Run `db migrate` as the owner of the tables."
        )
    what = _listed([f"{one.privilege} on {one.kind.lower()} {one.object}" for one in lacking])
    where = "" if first.kind == "DATABASE" else f" in database {first.database}"
    return (
        f"Role {first.role} lacks {what}{where}. Run "
        f"{grants_command(first.role)} as {first.owner}, who owns it, and then the SQL that it prints."
    )


def quoted(name: str) -> str:
    """``name`` as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def grants_command(role: str) -> str:
    return f"`db grants --role {shlex.quote(role)}`"


async def who_may_migrate(connection: Any, tables: list[str]) -> Any:
    """``role``, ``database``, ``schemas``, ``database_owner``, ``may_create`` (in the first schema) and, of
    those of ``tables`` that the role that asks may not alter, ``foreign_tables`` and ``table_owners``.
    """
    return await connection.fetchrow(_STATEMENTS["owners"], tables)


def _listed(items: list[str]) -> str:
    shown = (
        items if len(items) <= _SHOWN else [*items[: _SHOWN - 1], f"{len(items) - _SHOWN + 1} more"]
    )
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
