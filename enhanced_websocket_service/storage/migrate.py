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

from enhanced_websocket_service.errors import StorageError

from .rights import RIGHTS, complaint, grants_command, needed, who_may_migrate

log = structlog.get_logger(__name__)

ADVISORY_LOCK: Final = 0x6577735F6D696772  # "ews_migr"
_FILE: Final = re.compile(r"^(\d{4})_(\w+)\.sql$")

REQUIRED_COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "market_data": (
        *("id", "symbol", "datetime", "open", "high", "low", "close"),
        *("volume", "source", "created_at", "updated_at"),
    ),
    "realtime_market_data": (
        *("id", "symbol", "time", "bid", "ask", "last", "volume"),
        *("spread", "session_date", "trading_session", "source", "created_at"),
    ),
    "system_health": (
        *(
            "id",
            "service_name",
            "status",
            "details",
            "response_time_ms",
            "error_message",
            "created_at",
        ),
    ),
}
"""What an existing database must have for ``CREATE TABLE IF NOT EXISTS`` to be enough."""

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
# Not from information_schema: that hides the columns of tables that the role has no right on.
_COLUMNS: Final = """
SELECT name AS table_name, array_agg(attname::text) AS columns
FROM unnest($1::text[]) AS name
JOIN pg_attribute ON attrelid = to_regclass(quote_ident(name)) AND attnum > 0 AND NOT attisdropped
GROUP BY name
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


async def migrate(connection: Any) -> list[Migration]:
    """Apply what is missing to the database behind an asyncpg ``connection``.

    Where nothing is, it only reads: a role that owns no table and may make none can run the service.
    Safe to run from several processes at once: the second waits and then finds nothing to do.

    :returns: what was applied now.
    :raises StorageError: an applied migration differs from ours, an existing table lacks a column of
        the requirements, or the role may not apply what is missing. The database is then as it was.
    """
    if not (missing := await pending(connection)):
        return []
    try:
        async with connection.transaction():
            # Building an index over a large existing table may take its time.
            await connection.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
            await connection.execute(
                "SELECT pg_advisory_xact_lock($1)", ADVISORY_LOCK, timeout=_PATIENCE_S
            )
            missing = await pending(connection)  # what nobody else has applied meanwhile
            if not await connection.fetchval(_HAS_LEDGER):
                await connection.execute(_MAKE_LEDGER)
            for migration in missing:
                await connection.execute(migration.sql, timeout=_PATIENCE_S)
                await connection.execute(migration.note)
                if migration.version == 1:
                    await _check_columns(connection)
    except (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidSchemaNameError) as error:
        said = str(error).partition("\n")[0]
        raise StorageError(await _not_allowed(connection, missing, said)) from error
    if missing:
        log.info("Database schema brought up to date", migrations=[one.version for one in missing])
    return missing


async def script(connection: Any) -> str:
    """What ``migrate`` would do, as SQL for psql; changes nothing. Raises as ``pending``."""
    missing = await pending(connection)
    if not missing:
        return "-- The schema is up to date."
    parts = ["BEGIN;", f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK});"]
    if not await connection.fetchval(_HAS_LEDGER):
        parts.append(f"{_MAKE_LEDGER.strip()};")
    for migration in missing:
        parts += [f"\n-- Migration {migration}\n{migration.sql.strip()}", f"{migration.note};"]
    return "\n".join([*parts, "COMMIT;"])


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


async def _check_columns(connection: Any) -> None:
    rows = await connection.fetch(_COLUMNS, list(REQUIRED_COLUMNS))
    present = {row["table_name"]: set(row["columns"]) for row in rows}
    faults = [
        f"{table} lacks {', '.join(sorted(missing))}"
        for table, columns in REQUIRED_COLUMNS.items()
        if (missing := set(columns) - present.get(table, set()))
    ]
    if faults:
        raise StorageError(
            f"Existing tables do not match the requirements: {'; '.join(faults)}. Add the columns, or "
            "point DATABASE_URL to another database."
        )
