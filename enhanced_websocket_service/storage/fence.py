"""The fence in PostgreSQL: a lease, per symbol, on being the one instance that collects.

It has an owner (the journal of a STATE_DIR) and a heartbeat by the database's clock. It may be claimed when
it is free, our own, released, or not renewed for ``LEASE_S``; a higher epoch alone claims nothing. Owns the
rules and the statements; what an instance does with them is ``service.leadership``'s, and what of its
journal may be stored is ``tenure``'s. All times are real seconds.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import UUID

from enhanced_websocket_service.errors import DatabaseUnavailable, EpochFenced, StorageError
from enhanced_websocket_service.market.calendar import iso_local
from enhanced_websocket_service.market.events import EPOCH_LIMIT
from enhanced_websocket_service.market.source import World

from .pool import Pool
from .sql import load

LEASE_S: Final = 15.0
"""Without a heartbeat for so long, by the database's clock, the fence is free."""
RENEW_S: Final = 3.0
PATIENCE_S: Final = 4.0
"""For one statement about the fence. Two in a row that hang still leave time for a third."""
COLLECTING: Final = frozenset({"active", "ready"})
"""States in which an older release, which keeps no heartbeat, collects or is about to."""
_SQL: Final = load("fence.sql")

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class FenceRow:
    """The fence of one symbol; instants in unix seconds UTC by the database's clock."""

    symbol: str
    epoch: int
    owner: str | None
    name: str | None
    lease_epoch: int | None
    claimed_at: float | None
    heartbeat_at: float | None
    released: bool
    updated_at: float
    now: float
    stored_here: bool  # our journal was last stored under this epoch
    last_state: str | None  # of an older release with this epoch, in the last minutes
    stores: bool  # an older release stored something with this epoch in the last half minute

    @property
    def leased(self) -> bool:
        """Whether the owner's columns belong to the epoch: an older release raises that alone."""
        return self.owner is not None and self.lease_epoch == self.epoch


@dataclass(frozen=True, slots=True)
class Holder:
    """Who else collects: a name for people, its epoch, and since when (unix seconds UTC)."""

    symbol: str
    name: str
    epoch: int
    since: float

    def __str__(self) -> str:
        return (
            f"{self.name} collects {self.symbol} since {iso_local(int(self.since))} "
            f"(epoch {self.epoch})"
        )


def is_ours(row: FenceRow, owner: str, known: int) -> bool:
    """Whether nobody but this STATE_DIR has claimed the fence since it last did.

    :param owner: our journal.
    :param known: the highest epoch that this STATE_DIR knew before it was told any by others. A copy of
        the STATE_DIR that runs elsewhere has the same journal, and epochs that are higher.
    """
    if row.leased:
        return row.owner == owner and row.epoch <= known
    return row.epoch == 0 or row.epoch == known or row.stored_here


def holder_of(row: FenceRow, owner: str, known: int) -> Holder | None:
    """Who holds the fence against us; ``None``: we may claim it. Parameters as for ``is_ours``."""
    if is_ours(row, owner, known):
        return None
    if not row.leased:
        collects = row.last_state in COLLECTING or (row.last_state is None and row.stores)
        name = "An instance of an older release"
        return Holder(row.symbol, name, row.epoch, row.updated_at) if collects else None
    # A heartbeat far ahead is of a clock that was set back; its owner would have renewed it since.
    fresh = row.heartbeat_at is not None and abs(row.now - row.heartbeat_at) < LEASE_S
    if row.released or not fresh:
        return None
    since = row.updated_at if row.claimed_at is None else row.claimed_at
    return Holder(row.symbol, row.name or "Another instance", row.epoch, since)


def others(rows: Sequence[FenceRow], owner: str, known: int) -> Holder | None:
    """The first who holds any of ``rows`` against us."""
    held = (holder_of(row, owner, known) for row in rows)
    return next((one for one in held if one is not None), None)


async def check(connection: Any, symbols: Sequence[str], owner: str, epoch: int) -> None:
    """Inside a transaction that stores: nobody may claim the fence before it is committed.

    :raises EpochFenced: it is not ours under ``epoch``; names who has it.
    """
    rows = await connection.fetch(_SQL["check_fence"], list(symbols))
    for row in rows:
        if (row["epoch"], row["lease_epoch"], row["owner"]) != (epoch, epoch, owner):
            leased = row["lease_epoch"] == row["epoch"]
            name = (row["name"] if leased else None) or "An instance of an older release"
            raise EpochFenced(
                f"{name} has claimed {row['symbol']} in this database with epoch {row['epoch']}; this "
                f"instance, which had it with epoch {epoch}, stores nothing more that is new."
            )
    if len(rows) < len(set(symbols)):
        raise EpochFenced("The rows of this instance in table epoch_fence are gone.")


class Fence:
    """The statements, on a connection of their own: the heartbeat waits for no batch of the writer.

    :param owner: the journal of our STATE_DIR.
    :param name: of this instance, for people.
    """

    def __init__(
        self, dsn: str, symbols: Sequence[str], *, owner: UUID, name: str, world: World
    ) -> None:
        """:raises ConfigurationError: the DSN cannot be understood."""
        self._pool = Pool(dsn, world=world, max_size=1, timeout_s=PATIENCE_S / 2)
        self._symbols = sorted(set(symbols))
        self._journal = owner
        self.owner = str(owner)
        self.name = name

    async def look(self) -> list[FenceRow]:
        """The fence of each symbol that was ever collected. Raises ``StorageError``."""
        return await self._bounded(self._look())

    async def claim(self, epoch: int, known: int) -> Holder | None:
        """Take the fence of all symbols, or none.

        :param epoch: higher than any that claimed before.
        :param known: as for ``is_ours``.
        :returns: who holds it; ``None``: it is ours.
        :raises StorageError: PostgreSQL cannot be asked, or an epoch there is not below ``epoch``.
        """
        return await self._bounded(self._claim(epoch, known))

    async def renew(self, epoch: int) -> bool:
        """The heartbeat; ``False``: the fence is not ours any more. Raises ``StorageError``."""
        return await self._bounded(self._change("renew_fence", epoch)) == len(self._symbols)

    async def release(self, epoch: int) -> None:
        """Let others claim it at once. Raises ``StorageError``."""
        await self._bounded(self._change("release_fence", epoch))

    async def close(self, timeout_s: float = 1.0) -> None:
        """Close the connection, by force after ``timeout_s``. Idempotent."""
        await self._pool.close(timeout_s)

    async def _look(self) -> list[FenceRow]:
        async with self._pool.bare_connection("asking who collects") as connection:
            return await self._rows(connection)

    async def _rows(self, connection: Any) -> list[FenceRow]:
        rows = await connection.fetch(_SQL["fence_rows"], self._symbols, self._journal)
        return [FenceRow(**row) for row in rows]

    async def _claim(self, epoch: int, known: int) -> Holder | None:
        async with (
            self._pool.bare_connection("claiming the fence") as connection,
            connection.transaction(),
        ):
            await self._pool.claim(connection)
            await connection.execute(_SQL["make_fence"], self._symbols)
            await connection.fetch(_SQL["lock_fence"], self._symbols)
            rows = await self._rows(connection)
            if (holder := others(rows, self.owner, known)) is not None:
                return holder
            highest = max(row.epoch for row in rows)
            if not highest < epoch < EPOCH_LIMIT:
                raise StorageError(f"Epoch {epoch} cannot claim a fence with epoch {highest}.")
            await connection.execute(
                *(_SQL["claim_fence"], self._symbols, epoch, self.owner, self.name)
            )
        return None

    async def _change(self, name: str, epoch: int) -> int:
        async with self._pool.bare_connection("renewing the fence") as connection:
            status = await connection.execute(_SQL[name], self._symbols, epoch, self.owner)
        return int(status.rpartition(" ")[2])

    async def _bounded(self, work: Awaitable[Answer]) -> Answer:
        """``work``, for ``PATIENCE_S`` at most. Not cancelled: asyncpg would wait for a server that hangs."""
        asked = asyncio.ensure_future(work)
        try:
            await asyncio.wait({asked}, timeout=PATIENCE_S)
        finally:
            if not asked.done():
                self._pool.abort()
                asked.add_done_callback(lambda one: one.cancelled() or one.exception())
        if not asked.done():
            raise DatabaseUnavailable(
                f"PostgreSQL did not say within {PATIENCE_S:g} s who collects into it."
            )
        return asked.result()
