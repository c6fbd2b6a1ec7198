"""A database whose tables belong to one role and whose service connects as another, as a DBA makes them."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote

import asyncpg

from enhanced_websocket_service.storage.migrate import migrate, migrations
from enhanced_websocket_service.storage.rights import grants_script, needed, quoted

REQUIRED = migrations()[0].sql
"""The three tables, word for word as the requirements have them."""


@dataclass(frozen=True)
class ForeignOwner:
    """``owner`` and ``service`` are roles, the DSNs theirs; ``admin_dsn`` is the superuser's."""

    admin_dsn: str
    owner: str
    service: str

    @property
    def owner_dsn(self) -> str:
        return self._dsn(self.owner)

    @property
    def service_dsn(self) -> str:
        return self._dsn(self.service)

    def _dsn(self, role: str) -> str:
        return self.admin_dsn.replace("//ews@", f"//{quote(role, safe='')}@")

    async def as_admin(self, sql: str) -> None:
        await execute(self.admin_dsn, sql)

    async def as_owner(self, sql: str) -> None:
        await execute(self.owner_dsn, sql)

    async def migrated(self, *, granted: bool = True) -> None:
        """What a DBA does: the tables, and the rights as they are printed."""
        connection = await asyncpg.connect(self.owner_dsn)
        try:
            await migrate(connection)
            if granted:
                await connection.execute(grants_script(await needed(connection, self.service)))
        finally:
            await connection.close()


@asynccontextmanager
async def foreign_owner(dsn: str, service: str = "svc-'\"x") -> AsyncIterator[ForeignOwner]:
    """In the new database behind ``dsn``: the owner has the required tables, nobody else any right."""
    suffix = uuid.uuid4().hex[:8]
    made = ForeignOwner(dsn, f"dba_{suffix}", f"{service}{suffix}")
    owner, role = (quoted(name) for name in (made.owner, made.service))
    admin = await asyncpg.connect(dsn)
    try:
        database = await admin.fetchval("SELECT quote_ident(current_database())")
        await admin.execute(
            f"CREATE ROLE {owner} LOGIN; CREATE ROLE {role} LOGIN;"
            f"ALTER DATABASE {database} OWNER TO {owner};"
            # Nothing comes by default: what PUBLIC has elsewhere has to be printed, too.
            f"REVOKE ALL ON DATABASE {database} FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC;"
            f"ALTER DEFAULT PRIVILEGES FOR ROLE {owner} REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;"
        )
        await made.as_owner(REQUIRED)
        try:
            yield made
        finally:
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await admin.execute(
                f"ALTER DATABASE {database} OWNER TO ews; DROP OWNED BY {owner}, {role} CASCADE;"
                f"DROP ROLE {owner}, {role};"
            )
    finally:
        await admin.close()


async def execute(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
