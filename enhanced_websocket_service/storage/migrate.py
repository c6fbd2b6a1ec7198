"""Brings a database up to date: ordered, checksummed migrations under an advisory lock.

All that are missing run in one transaction, so a database is never left between two versions. Existing
tables of the requirements are kept; everything else is added beside them.
"""

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import structlog

from enhanced_websocket_service.errors import StorageError

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

_MAKE_LEDGER: Final = """
CREATE TABLE IF NOT EXISTS ews_schema_migrations (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    checksum TEXT NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
)
"""
_COLUMNS: Final = """
SELECT table_name, array_agg(column_name::text) AS columns FROM information_schema.columns
WHERE table_schema = current_schema() AND table_name = ANY ($1::text[]) GROUP BY table_name
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of ``migrations/``."""

    version: int
    name: str
    sql: str

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


async def migrate(connection: Any) -> list[int]:
    """Apply what is missing to the database behind an asyncpg ``connection``.

    Safe to run from several processes at once: the second waits and then finds nothing to do.

    :returns: the versions applied now.
    :raises StorageError: an applied migration differs from ours, or an existing table lacks a
        column of the requirements. The database is then as it was.
    """
    known = migrations()
    applied_now: list[int] = []
    async with connection.transaction():
        # Building an index over a large existing table may take its time.
        await connection.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
        await connection.execute("SELECT pg_advisory_xact_lock($1)", ADVISORY_LOCK)
        if await connection.fetchval("SELECT to_regclass('ews_schema_migrations')") is None:
            await connection.execute(_MAKE_LEDGER)
        rows = await connection.fetch("SELECT version, name, checksum FROM ews_schema_migrations")
        applied = {row["version"]: row for row in rows}
        for migration in known:
            row = applied.pop(migration.version, None)
            if row is not None:
                if row["checksum"] != migration.checksum:
                    raise StorageError(
                        f"Migration {migration.version:04} ({row['name']}) was applied with another "
                        "content than this program has: it was edited afterwards. Use the version of "
                        "the program that made this database, or a fresh database."
                    )
                continue
            await connection.execute(migration.sql)
            await connection.execute(
                "INSERT INTO ews_schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
                *(migration.version, migration.name, migration.checksum),
            )
            applied_now.append(migration.version)
            if migration.version == 1:
                await _check_columns(connection)
    if applied:
        log.warning("The database knows migrations of a newer version", versions=sorted(applied))
    if applied_now:
        log.info("Database schema brought up to date", migrations=applied_now)
    return applied_now


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
