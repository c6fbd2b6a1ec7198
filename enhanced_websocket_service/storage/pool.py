"""The connections to PostgreSQL: opened lazily, watched by time-outs, errors made ours.

Nothing here or above ever shows the DSN: it contains the password.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import perf_counter
from typing import Any, Final, TypeVar

import asyncpg

from enhanced_websocket_service.addresses import BAD_DATABASE_URL, PostgresAddress
from enhanced_websocket_service.clock import Clock, SystemClock
from enhanced_websocket_service.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    EwsError,
    NotAllowed,
    StorageError,
    WrongWorld,
)
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.calendar import iso_local
from enhanced_websocket_service.market.source import World

from .migrate import migrate, obstacle
from .reasons import ANSWERS, translated
from .rights import complaint, needed
from .sql import load
from .world import check_database, claim_world

QUERIES: Final = load("queries.sql")
WRITES: Final = load("writes.sql")

POSTGRESQL: Final = "PostgreSQL"
RIGHTS_LACKING: Final = "rights in PostgreSQL"
"""Parts of ``Failures``: the connection, and what the role may do there."""

Result = TypeVar("Result")

_CONNECTION_LOST: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.AdminShutdownError,
    asyncpg.InternalClientError,  # its answer when the farewell of the server is still unread
)


class Pool:
    """A pool of connections that is not there until ``connect`` has succeeded once.

    :param world: what is written is of this world, and a database of the other one is refused at
        every new connection, before anything is written; ``None``: any database will do.
    :param failures: told when the server cannot be reached or refuses, and when it works again.
    :param timeout_s: real seconds for a connection and for any one statement.
    """

    def __init__(
        self,
        dsn: str,
        *,
        world: World | None = None,
        clock: Clock | None = None,
        failures: Failures | None = None,
        max_size: int = 8,
        timeout_s: float = 30.0,
    ) -> None:
        """:raises ConfigurationError: the DSN cannot be understood."""
        self._address = PostgresAddress.of(dsn)
        self._clock = clock or SystemClock()
        self._failures = failures or Failures(self._clock)
        self._dsn = dsn
        self._world = world
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
            try:
                async with self.bare_connection(
                    "connecting and looking at the schema"
                ) as connection:
                    await migrate(connection)
            except StorageError as error:
                told = await self._explained(error) or error
                self._failures.failed(POSTGRESQL, str(told))
                if told is error:
                    raise
                raise told from error
            self._ready = True
            self._failures.succeeded(POSTGRESQL)

    async def look(self) -> None:
        """Reach the database as it is and change nothing.

        :raises StorageError: what a service that connects would wait for.
        :raises WrongWorld: the database belongs to the other world.
        """
        try:
            async with self.bare_connection("looking at schema and rights") as connection:
                lacking = await obstacle(connection)
        except StorageError as error:
            if (told := await self._explained(error)) is None:
                raise
            raise told from error
        if lacking is not None:
            raise StorageError(lacking)

    @asynccontextmanager
    async def bare_connection(self, doing: str) -> AsyncIterator[Any]:
        """A connection to the database as it is, whatever its schema; raises as ``connect``."""
        if self._pool is None:
            self._pool = await self._make_pool()
        try:
            async with self._acquired(doing, self._connect_s):
                pass
        except ValueError:
            # Not chained: the parser's message may quote the part with the password.
            raise ConfigurationError(BAD_DATABASE_URL) from None
        async with self._acquired(doing) as connection:
            yield connection

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
        """One round trip, in real milliseconds, which also asks what rights are lacking.

        :raises DatabaseUnavailable: not reachable now.
        """
        if not self._ready:
            raise self._not_reached()
        began = perf_counter()
        try:
            async with self._acquired("answering a ping") as connection:
                lacking = complaint(await needed(connection))
        except StorageError as error:
            self._failures.failed(POSTGRESQL, str(error))
            raise
        elapsed_ms = (perf_counter() - began) * 1000
        self._failures.succeeded(POSTGRESQL)
        if lacking is None:
            self._failures.succeeded(RIGHTS_LACKING)
        else:
            self._failures.failed(RIGHTS_LACKING, lacking)
        return elapsed_ms

    @asynccontextmanager
    async def connection(self, doing: str) -> AsyncIterator[Any]:
        """A connection of the pool; what it raises is translated.

        :raises DatabaseUnavailable: none can be had, or it was lost.
        """
        if not self._ready:
            raise self._not_reached()
        try:
            async with self._acquired(doing) as connection:
                yield connection
        except StorageError as error:
            if (told := await self._explained(error)) is None:
                raise
            raise told from error

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
                await claim_world(connection, self._world, f"The database at {self._address}")

    async def _meet(self, connection: Any) -> None:
        """Look at every new connection: since the last one the database may have been replaced."""
        if self._world is not None:
            with self._noted():
                await check_database(connection, self._world, f"The database at {self._address}")

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
        try:
            with self._translated(f"running the query {name}"):
                return await self._reading(
                    lambda connection: connection.fetch(QUERIES[name], *arguments)
                )
        except StorageError as error:
            if (told := await self._explained(error)) is None:
                raise
            raise told from error

    async def _reading(self, read: Callable[[Any], Awaitable[Result]]) -> Result:
        """Run ``read``; again while the pool hands out connections that have just died."""
        attempts = self._max_size + 1
        while True:
            attempts -= 1
            try:
                if self._pool is None or not self._ready:
                    raise self._not_reached()
                async with self._pool.acquire(timeout=self._timeout_s) as connection:
                    return await read(connection)
            except _CONNECTION_LOST:
                if not attempts:
                    raise

    def _not_reached(self) -> DatabaseUnavailable:
        """Why there is no connection yet: the answer to the last attempt, and when that was."""
        last = self._failures.of(POSTGRESQL)
        if last is None:
            return DatabaseUnavailable(f"PostgreSQL at {self._address} has not been reached yet.")
        return DatabaseUnavailable(f"{last.reason} Last tried {iso_local(int(last.last_at))}.")

    async def _explained(self, error: StorageError) -> StorageError | None:
        """``error`` with the name of the right that was lacking, which the server does not tell."""
        if not isinstance(error, NotAllowed):
            return None
        try:
            async with self._acquired("looking for the right that is lacking") as connection:
                lacking = complaint(await needed(connection))
        except EwsError:
            return None
        return None if lacking is None else StorageError(lacking)

    @contextmanager
    def _translated(self, doing: str, within_s: float | None = None) -> Iterator[None]:
        """Turn what asyncpg raises into errors of ours; ``doing`` completes "PostgreSQL ... while ..."."""
        try:
            yield
        except asyncpg.ClientConfigurationError:
            # Not chained: the parser's message may quote the part with the password.
            raise ConfigurationError(BAD_DATABASE_URL) from None
        except ANSWERS as error:
            raise translated(error, self._address, doing, within_s) from error

    @asynccontextmanager
    async def _acquired(self, doing: str, within_s: float | None = None) -> AsyncIterator[Any]:
        pool = self._pool
        if pool is None:
            raise DatabaseUnavailable(f"The connections to PostgreSQL are closed (while {doing}).")
        with self._translated(doing, within_s):
            async with pool.acquire(timeout=self._timeout_s) as connection:
                yield connection

    @property
    def _connect_s(self) -> float:
        return min(10.0, self._timeout_s)

    async def _make_pool(self) -> "asyncpg.Pool[Any]":
        milliseconds = str(int(self._timeout_s * 1000))
        return await asyncpg.create_pool(
            self._dsn,
            min_size=0,
            max_size=self._max_size,
            timeout=self._connect_s,
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
