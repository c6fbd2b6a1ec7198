"""What PostgreSQL answered, or why it did not answer, as errors of ours with sentences for people."""

import re
from typing import Final

import asyncpg

from enhanced_websocket_service.addresses import PostgresAddress, unreachable
from enhanced_websocket_service.errors import DatabaseUnavailable, NotAllowed, StorageError

from .rights import grants_command

# SQLSTATE classes and codes after which the same request may well succeed: connection, resources,
# operator intervention, locks, deadlocks, system; refused logins and absent databases, which people
# repair while we run; a standby that has not been promoted yet.
_RETRY_CLASSES: Final = frozenset({"08", "28", "3D", "40", "53", "55", "57", "58"})
_RETRY_CODES: Final = frozenset({"25006", "25P03"})

_NOT_THERE: Final = frozenset({"08001", "08003", "08006"})
"""What asyncpg says by itself, of a connection that broke: nobody answered with it."""
_LOST: Final = re.compile("released back to the pool|connection is closed|connection was closed")
"""What asyncpg says when it is asked to use a connection that broke before; of no use to people."""
_NO_RIGHT: Final = "42501"
_REMEDIES: Final = {
    "28P01": "Check user and password in DATABASE_URL.",
    "28000": "Check the user in DATABASE_URL, and pg_hba.conf of the server.",
    "3D000": "Create the database, or name another in DATABASE_URL.",
    "53300": "Close other connections, or raise max_connections or the role's CONNECTION LIMIT.",
    "25006": "It takes no writes: it is a standby, or default_transaction_read_only is on.",
}
"""By SQLSTATE; what has none here is told in the server's own words alone."""

ANSWERS: Final = (
    asyncpg.PostgresError,
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""What asyncpg raises when the server or the way to it failed."""


def translated(
    error: Exception, address: PostgresAddress, doing: str, within_s: float | None = None
) -> StorageError:
    """One of ``ANSWERS`` as ``DatabaseUnavailable`` or, when retrying is useless, ``StorageError``.

    :param doing: completes "PostgreSQL ... while ...".
    :param within_s: the real seconds it had.
    """
    state = getattr(error, "sqlstate", None) or ""
    if not isinstance(error, asyncpg.PostgresError) or state in _NOT_THERE:
        lost = isinstance(error, asyncpg.InterfaceError) and _LOST.search(str(error))
        said = "the connection was lost" if lost else unreachable(error, within_s)
        return DatabaseUnavailable(
            f"PostgreSQL at {address} cannot be reached: {said} (while {doing})."
        )
    said = " ".join(str(error).split())
    remedy = _REMEDIES.get(state, "")
    code = f" [{state}]" if state else ""
    if state == _NO_RIGHT:
        remedy = f"Let its owner run {grants_command(address.user)} and the SQL that it prints."
        return NotAllowed(
            f"PostgreSQL at {address} refused: {said}{code} (while {doing}). {remedy}"
        )
    again = state[:2] in _RETRY_CLASSES or state in _RETRY_CODES
    verb, kind = ("answered", DatabaseUnavailable) if again else ("refused", StorageError)
    return kind(f"PostgreSQL at {address} {verb}: {said}{code} (while {doing}). {remedy}".strip())
