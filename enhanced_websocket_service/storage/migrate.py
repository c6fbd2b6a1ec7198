"""Brings a database up to date: ordered, checksummed migrations under an advisory lock.

All that are missing run in one transaction, so a database is never left between two versions. Existing
tables of the requirements are kept; everything else is added beside them.
"""

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import asyncpg
import structlog

from enhanced_websocket_service.errors import StorageError, UnfitTables

from .catalog import look, read_tables, refuse
from .id_width import caveats as id_caveats
from .id_width import narrow_ids, widen_ids, widening_script
from .rights import RIGHTS, complaint, grants_command, needed, who_may_migrate
from .table_forms import (
    BARS,
    NAMES,
    TICKS,
    Judgement,
    arbiter_index,
    identity_index,
    lacks_arbiter,
    lacks_identity,
)

log = structlog.get_logger(__name__)

ADVISORY_LOCK: Final = 0x6577735F6D696772  # "ews_migr"
_FILE: Final = re.compile(r"^(\d{4})_(\w+)\.sql$")

_TICK_IDENTITY: Final = 2
"""The migration that gives ticks their place and its unique index."""
_UNIQUE_PLACE: Final = re.compile(
    r"CREATE UNIQUE INDEX IF NOT EXISTS \w+\s+ON realtime_market_data[^;]+;"
)
_PATIENCE_S: Final = 24 * 3600.0
"""Real seconds for one migration, or for another process that applies them; the pool's limit is for reads."""

# Not to_regclass alone: a server process that once looked in vain goes on finding nothing, in a
# transaction that has not opened a table since.
_HAS_LEDGER: Final = """
SELECT EXISTS (
    SELECT FROM pg_class WHERE relname = 'ews_schema_migrations' AND pg_table_is_visible(oid)
)
"""
_MAKE_LEDGER: Final = """
CREATE TABLE ews_schema_migrations (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    checksum TEXT NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
)
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of ``migrations/``."""

    version: int
    name: str
    sql: str

    @property
    def note(self) -> str:
        """The statement that remembers it as applied; nothing in it needs to be quoted."""
        return (
            "INSERT INTO ews_schema_migrations (version, name, checksum) "  # noqa: S608 ours
            f"VALUES ({self.version}, '{self.name}', '{self.checksum}')"
        )

    def __str__(self) -> str:
        return f"{self.version:04}_{self.name}"

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """What this version of the program knows, in order."""
    found = []
    for file in resources.files(__package__).joinpath("migrations").iterdir():
        match = _FILE.match(file.name)
        if match:
            found.append(Migration(int(match[1]), match[2], file.read_text("utf-8")))
    return sorted(found, key=lambda migration: migration.version)


async def migrate(
    connection: Any, *, by_owner: bool = False, rewrite: bool = False
) -> list[Migration]:
    """Apply what is missing to the database behind an asyncpg ``connection``.

    Where nothing is, it only reads: a role that owns no table and may make none can run the service.
    Safe to run from several processes at once: the second waits and then finds nothing to do.

    :param by_owner: somebody asked for it: tables and indexes of ours that were dropped are made anew, empty.
    :param rewrite: make the ids of large tables BIGINT, too, which takes its time; those of small ones are
        made so anyway.
    :returns: what was applied now.
    :raises UnfitTables: existing tables cannot hold what is written. The database is then as it was.
    :raises StorageError: an applied migration differs from ours, or the role may not apply what is
        missing. The database is then as it was.
    """
    missing = await pending(connection)
    judgement = await _judged(connection, missing, mend=by_owner)
    if not (missing or by_owner):
        await _widen_by_the_way(connection)
        _tell(judgement)
        return []
    try:
        async with connection.transaction():
            # Building an index over a large existing table may take its time.
            await connection.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
            await connection.execute(
                "SELECT pg_advisory_xact_lock($1)", ADVISORY_LOCK, timeout=_PATIENCE_S
            )
            missing = await pending(connection)  # what nobody else has applied meanwhile
            if missing and not await connection.fetchval(_HAS_LEDGER):
                await connection.execute(_MAKE_LEDGER)
            for migration in missing:
                await _apply(connection, migration)
            if by_owner:
                await _make_anew(connection)
            if missing or by_owner:
                for statement in await _indexes(connection):
                    await connection.execute(statement, timeout=_PATIENCE_S)
            await widen_ids(connection, rewrite=rewrite)
            judgement = await look(connection)
            await refuse(connection, judgement.refusals)
    except (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidSchemaNameError) as error:
        said = str(error).partition("\n")[0]
        raise StorageError(await _not_allowed(connection, missing, said)) from error
    if missing:
        log.info("Database schema brought up to date", migrations=[one.version for one in missing])
    _tell(judgement)
    return missing


async def check(connection: Any) -> tuple[str, ...]:
    """Judge the tables as the start would, and only read; sentences on what works and yet should be known.

    :raises StorageError: as ``migrate``.
    """
    judgement = await _judged(connection, await pending(connection), mend=False)
    return judgement.caveats + tuple(await id_caveats(connection))


async def script(connection: Any) -> str:
    """What ``migrate`` would do for its owner and with ``rewrite``, as SQL for psql; changes nothing.

    Raises as ``migrate``.
    """
    missing = await pending(connection)
    await _judged(connection, missing, mend=True)
    widening = await widening_script(connection)
    lost = [] if missing else [*await _lost(connection), *await _indexes(connection)]
    if not (missing or widening or lost):
        return "-- The schema is up to date."
    parts = ["BEGIN;", f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK});"]
    if missing and not await connection.fetchval(_HAS_LEDGER):
        parts.append(f"{_MAKE_LEDGER.strip()};")
    for migration in missing:
        parts.append(f"\n-- Migration {migration}")
        parts += [(await _fitted(connection, migration)).strip(), f"{migration.note};"]
    parts += lost
    return "\n".join([*parts, *widening, "COMMIT;"])


async def _widen_by_the_way(connection: Any) -> None:
    """A start with nothing else to do. It never fails for it: the server may be a standby, or busy."""
    if not await narrow_ids(connection):
        return
    try:
        async with connection.transaction():
            await widen_ids(connection, rewrite=False)
    except asyncpg.PostgresError as error:
        log.warning("Ids stay INTEGER for now", why=str(error))


async def _judged(connection: Any, missing: list[Migration], *, mend: bool) -> Judgement:
    """What is there, before anything is changed. What ``mend`` will make is no reason to refuse."""
    judgement = await look(
        connection,
        to_come=[one.version for one in missing],
        scripts=[one.sql for one in missing],
    )
    await refuse(connection, [one for one in judgement.refusals if not (mend and one.lost)])
    return judgement


def _tell(judgement: Judgement) -> None:
    for caveat in judgement.caveats:
        log.info("About the tables", caveat=caveat)


async def _apply(connection: Any, migration: Migration) -> None:
    statements = await _fitted(connection, migration)
    try:
        await connection.execute(statements, timeout=_PATIENCE_S)
    except (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidSchemaNameError):
        raise
    except asyncpg.PostgresError as error:
        said = " ".join(str(error).split())
        raise UnfitTables(
            f"Migration {migration} cannot be applied, and nothing was changed: PostgreSQL says {said} "
            f"[{error.sqlstate}]."
        ) from error
    await connection.execute(migration.note)


async def _fitted(connection: Any, migration: Migration) -> str:
    """The SQL of ``migration`` as this database takes it: over a partitioned table PostgreSQL keeps nothing
    unique without the partition's key.
    """
    if migration.version != _TICK_IDENTITY:
        return migration.sql
    table = (await read_tables(connection, [TICKS])).get(TICKS)
    if table is None or not table.key:
        return migration.sql
    return _UNIQUE_PLACE.sub(lambda _: identity_index(table), migration.sql, count=1)


async def _indexes(connection: Any) -> list[str]:
    """The statements that make the unique indexes that are lacking."""
    tables = await read_tables(connection, [TICKS, BARS])
    statements = []
    if TICKS in tables and lacks_identity(tables[TICKS]):
        statements.append(identity_index(tables[TICKS]))
    if BARS in tables and lacks_arbiter(tables[BARS]):
        statements.append(arbiter_index(tables[BARS]))
    return statements


async def _lost_tables(connection: Any) -> list[tuple[str, list[str]]]:
    """Tables of applied migrations that somebody has dropped, with the statements that make them."""
    if await pending(connection):
        return []
    present = await read_tables(connection)
    return [(name, _making(name)) for name in NAMES if name not in present]


async def _lost(connection: Any) -> list[str]:
    return [statement for _, making in await _lost_tables(connection) for statement in making]


async def _make_anew(connection: Any) -> None:
    for name, statements in await _lost_tables(connection):
        for statement in statements:
            await connection.execute(statement, timeout=_PATIENCE_S)
        log.warning("A table that was dropped is there again, and empty", table=name)


def _making(table: str) -> list[str]:
    """The statements of all migrations that make ``table``, its columns and its indexes."""
    about = re.compile(
        rf"^(?:CREATE TABLE (?:IF NOT EXISTS )?{table}\b|ALTER TABLE {table}\b"
        rf"|CREATE (?:UNIQUE )?INDEX (?:IF NOT EXISTS )?\w+\s+ON {table}\b)"
    )
    text = "\n".join(one.sql for one in migrations())
    bare = re.sub(r"--[^\n]*|DO \$\$.*?\$\$;|\$\$.*?\$\$", "", text, flags=re.DOTALL)
    return [f"{one.strip()};" for one in bare.split(";") if about.match(one.strip())]


async def pending(connection: Any) -> list[Migration]:
    """What the database lacks of the migrations this program knows, in order; only reads.

    :raises StorageError: an applied migration differs from ours.
    """
    known = migrations()
    if not await connection.fetchval(_HAS_LEDGER):
        return known
    rows = await connection.fetch("SELECT version, name, checksum FROM ews_schema_migrations")
    applied = {row["version"]: row for row in rows}
    missing = []
    for migration in known:
        row = applied.pop(migration.version, None)
        if row is None:
            missing.append(migration)
        elif row["checksum"] != migration.checksum:
            raise StorageError(
                f"Migration {migration.version:04} ({row['name']}) was applied with another "
                "content than this program has: it was edited afterwards. Use the version of "
                "the program that made this database, or a fresh database."
            )
    if applied:
        log.warning("The database knows migrations of a newer version", versions=sorted(applied))
    return missing


async def obstacle(connection: Any) -> str | None:
    """What a service that connects as this role waits for: whoever must bring the schema up to date or give
    it a right; ``None``: nothing. Only reads, so it knows of rights as far as the catalog tells.
    """
    if not (missing := await pending(connection)):
        return complaint(await needed(connection))
    found = await who_may_migrate(connection, list(RIGHTS))
    if not found["may_create"]:
        return await _not_allowed(connection, missing, "it may create no table there")
    if found["foreign_tables"]:
        said = f"it does not own {', '.join(found['foreign_tables'])}"
        return await _not_allowed(connection, missing, said)
    return None


async def _not_allowed(connection: Any, missing: list[Migration], said: str) -> str:
    """Who has to do what, for a role that may not apply ``missing``."""
    schemas = [one for one in await needed(connection) if one.kind == "SCHEMA"]
    if hidden := complaint(schemas):
        return hidden  # it may all be there, out of sight
    found = await who_may_migrate(connection, list(RIGHTS))
    owners = found["table_owners"]
    who = (
        f"{' and '.join(owners)}, who own{'s' if len(owners) == 1 else ''} the tables,"
        if owners
        else f"{found['database_owner']}, who owns the database,"
    )
    names = ", ".join(str(one) for one in missing)
    return (
        f"Database {found['database']} lacks the migrations {names}, and role {found['role']} may not "
        f"apply them in schema {found['schemas'] or '(none)'}: {said}. Run `db migrate` as {who} then "
        f"{grants_command(found['role'])} and the SQL that it prints."
    )
