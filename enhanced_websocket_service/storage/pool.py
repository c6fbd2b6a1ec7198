"""The connections to PostgreSQL: opened lazily, watched by time-outs, errors made ours.

Nothing here or above ever shows the DSN: it contains the password.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import perf_counter
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

import asyncpg
import structlog

from enhanced_websocket_service.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    StorageError,
    WrongWorld,
)
from enhanced_websocket_service.market.source import World

from .migrate import migrate
from .sql import load
from .world import check_database, claim_world

log = structlog.get_logger(__name__)

QUERIES: Final = load("queries.sql")
WRITES: Final = load("writes.sql")

Result = TypeVar("Result")

# SQLSTATE classes and codes after which the same request may well succeed: connection, resources,
# operator intervention, locks, deadlocks, system; refused logins and absent databases, which people
# repair while we run; a standby that has not been promoted yet.
_RETRY_CLASSES: Final = frozenset({"08", "28", "3D", "40", "53", "55", "57", "58"})
_RETRY_CODES: Final = frozenset({"25006", "25P03"})

_CONNECTION_LOST: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.AdminShutdownError,
    asyncpg.InternalClientError,  # its answer when the farewell of the server is still unread
)

_BAD_DSN: Final = (
    "DATABASE_URL cannot be understood. It looks like postgresql://user:password@host:5432/database; "
    "special characters in the password are percent-encoded."
)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn what asyncpg raises into ``DatabaseUnavailable`` or, when retrying is useless,
    ``StorageError``. ``doing`` completes "PostgreSQL ... while ...".
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        state = error.sqlstate or ""
        said = f"{type(error).__name__}: {error}"
        if state[:2] in _RETRY_CLASSES or state in _RETRY_CODES:
            raise DatabaseUnavailable(f"PostgreSQL answered {said}, while {doing}.") from error
        raise StorageError(f"PostgreSQL refused with {said}, while {doing}.") from error
    except asyncpg.ClientConfigurationError:
        # Not chained: the parser's message may quote the part with the password.
        raise ConfigurationError(_BAD_DSN) from None
    except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        said = str(error) or type(error).__name__
        raise DatabaseUnavailable(
            f"PostgreSQL cannot be reached ({said}), while {doing}."
        ) from error


class Pool:
    """A pool of connections that is not there until ``connect`` has succeeded once.

    :param world: what is written is of this world, and a database of the other one is refused at
        every new connection, before anything is written; ``None``: any database will do.
    :param timeout_s: real seconds for a connection and for any one statement.
    """

    def __init__(
        self,
        dsn: str,
        *,
        world: World | None = None,
        max_size: int = 8,
        timeout_s: float = 30.0,
    ) -> None:
        self._dsn = dsn
        self._world = world
        self._place = _place(dsn)
        self.wrong_world: WrongWorld | None = None
        """Why the database may not be written to, as of the last time that it was looked at."""
        self.on_wrong_world: Callable[[WrongWorld], None] = lambda _error: None
        """Told each time that the database turns out to be of the other world."""
        self._max_size = max_size
        self._timeout_s = timeout_s
        self._pool: asyncpg.Pool[Any] | None = None
        self._ready = False
        self._connecting = asyncio.Lock()

    @property
    def connected(self) -> bool:
        """Whether ``connect`` has succeeded; ``ping`` tells how things are now."""
        return self._ready

    async def connect(self) -> None:
        """Reach the database once and bring its schema up to date; at once when done before.

        Does not retry: the caller knows how long to wait. Later losses of the connection heal by
        themselves.

        :raises DatabaseUnavailable: not reachable now.
        :raises StorageError: the schema cannot be brought up to date.
        :raises WrongWorld: the database belongs to the other world; it is left as it was.
        :raises ConfigurationError: the DSN cannot be understood.
        """
        async with self._connecting:
            if self._ready:
                return
            if self._pool is None:
                self._pool = await self._make_pool()
            try:
                async with self._acquired("connecting"):
                    pass
            except ValueError:
                raise ConfigurationError(_BAD_DSN) from None  # see above
            async with self._acquired("bringing the schema up to date") as connection:
                await migrate(connection)
            self._ready = True

    async def close(self, timeout_s: float = 5.0) -> None:
        """Close all connections, by force after ``timeout_s`` real seconds. Idempotent."""
        pool, self._pool, self._ready = self._pool, None, False
        if pool is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await pool.close()
        except TimeoutError:
            pool.terminate()

    def abort(self) -> None:
        """Break every connection: whatever waits for the server fails at once. ``connect`` begins anew."""
        pool, self._pool, self._ready = self._pool, None, False
        if pool is not None:
            pool.terminate()

    async def ping(self) -> float:
        """One round trip, in real milliseconds.

        :raises DatabaseUnavailable: not reachable now.
        """
        began = perf_counter()
        async with self.connection("answering a ping") as connection:
            await connection.fetchval("SELECT 1", timeout=min(5.0, self._timeout_s))
        return (perf_counter() - began) * 1000

    @asynccontextmanager
    async def connection(self, doing: str) -> AsyncIterator[Any]:
        """A connection of the pool; what it raises is translated.

        :raises DatabaseUnavailable: none can be had, or it was lost.
        """
        if not self._ready:
            raise DatabaseUnavailable(f"PostgreSQL has not been reached yet, while {doing}.")
        async with self._acquired(doing) as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self, doing: str) -> AsyncIterator[Any]:
        """A connection inside a transaction that writes rows of our world.

        :raises DatabaseUnavailable: none can be had, or it was lost.
        :raises WrongWorld: the database belongs to the other world.
        """
        async with self.connection(doing) as connection, connection.transaction():
            await self.claim(connection)
            yield connection

    async def claim(self, connection: Any) -> None:
        """Inside a transaction that writes: the first one gives the database its world.

        :raises WrongWorld: it has the other one.
        """
        if self._world is not None:
            with self._noted():
                await claim_world(connection, self._world, self._place)

    async def _meet(self, connection: Any) -> None:
        """Look at every new connection: since the last one the database may have been replaced."""
        if self._world is not None:
            with self._noted():
                await check_database(connection, self._world, self._place)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except WrongWorld as error:
            self.wrong_world = error
            self.on_wrong_world(error)
            raise
        self.wrong_world = None

    async def fetch(self, name: str, *arguments: Any) -> list[Any]:
        """The rows of the named query."""
        with translated(f"running the query {name}"):
            return await self._reading(
                lambda connection: connection.fetch(QUERIES[name], *arguments)
            )

    async def _reading(self, read: Callable[[Any], Awaitable[Result]]) -> Result:
        """Run ``read``; again while the pool hands out connections that have just died."""
        attempts = self._max_size + 1
        while True:
            attempts -= 1
            try:
                if self._pool is None or not self._ready:
                    raise DatabaseUnavailable("PostgreSQL has not been reached yet.")
                async with self._pool.acquire(timeout=self._timeout_s) as connection:
                    return await read(connection)
            except _CONNECTION_LOST:
                if not attempts:
                    raise

    @asynccontextmanager
    async def _acquired(self, doing: str) -> AsyncIterator[Any]:
        pool = self._pool
        if pool is None:
            raise DatabaseUnavailable(f"PostgreSQL is closed, while {doing}.")
        with translated(doing):
            async with pool.acquire(timeout=self._timeout_s) as connection:
                yield connection

    async def _make_pool(self) -> "asyncpg.Pool[Any]":
        milliseconds = str(int(self._timeout_s * 1000))
        return await asyncpg.create_pool(
            self._dsn,
            min_size=0,
            max_size=self._max_size,
            timeout=min(10.0, self._timeout_s),
            command_timeout=self._timeout_s + 5,
            init=self._meet,
            server_settings={
                "application_name": "enhanced_websocket_service",
                "statement_timeout": milliseconds,
                "lock_timeout": milliseconds,
                "idle_in_transaction_session_timeout": "60000",
                "timezone": "UTC",
            },
        )


def _place(dsn: str) -> str:
    try:
        parts = urlsplit(dsn)
        name = unquote(parts.path.lstrip("/"))
        return f"The database {name or '(default)'} at {parts.hostname or 'its socket'}"
    except ValueError:
        return "The database"
