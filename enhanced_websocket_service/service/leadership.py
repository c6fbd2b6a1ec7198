"""Whether this instance is the one that collects: it holds the fence, waits for it, or has lost it.

One task asks PostgreSQL every few seconds: it renews what we hold, claims what is free when we want to
collect, and looks who has it otherwise. Who waits disturbs nobody. Without PostgreSQL the instance that was
the last to collect, by STATE_DIR, collects on, unless Redis shows another; what PostgreSQL says when it is
back decides. Owns the decision to collect; the rules are ``storage.fence``'s, and what may be stored is
``storage.tenure``'s. All times are real.
"""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Final, Protocol

import structlog

from enhanced_websocket_service.errors import (
    DatabaseUnavailable,
    EpochFenced,
    EwsError,
    StorageError,
    sentences,
)
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.calendar import iso_local
from enhanced_websocket_service.market.events import EPOCH_LIMIT
from enhanced_websocket_service.storage.epochs import EPOCH_IN_DATABASE, MEND
from enhanced_websocket_service.storage.fence import (
    LEASE_S,
    RENEW_S,
    FenceRow,
    Holder,
    is_ours,
    others,
)
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.tenure import Tenure

log = structlog.get_logger(__name__)

COLLECTING: Final = "collecting"
UNCONFIRMED: Final = "fence in PostgreSQL"
"""Parts of ``Failures``: another instance collects; nobody can say who does."""


class FenceInDatabase(Protocol):
    """``storage.fence.Fence``."""

    owner: str
    name: str

    async def look(self) -> list[FenceRow]: ...

    async def claim(self, epoch: int, known: int) -> Holder | None: ...

    async def renew(self, epoch: int) -> bool: ...

    async def release(self, epoch: int) -> None: ...


class CollectorMark(Protocol):
    """Who collects, as Redis shows it: ``bus.collector.RedisCollector``."""

    async def other(self) -> str | None:
        """Another instance that collects; ``None``: none is shown."""
        ...

    async def show(self, epoch: int) -> None:
        """We collect. Never raises."""
        ...

    async def clear(self) -> None:
        """We do not any more. Never raises."""
        ...


@dataclass(frozen=True, slots=True)
class LeadershipStatus:
    """``held``: we may collect. Else ``waiting_for`` says who does, where that is known."""

    held: bool
    owner: str
    since: float | None  # of the one that holds it, unix seconds UTC by the database's clock
    waiting_for: str | None


class Leadership:
    """Run ``run`` as one task; ``claim`` before collecting, ``release`` at the end.

    :param reachable: whether PostgreSQL was reached and its schema is up to date.
    :param epoch: of this process; ``known`` the highest that STATE_DIR knew before.
    :param next_epoch: begins a durable epoch above the given one.
    :param begin_epoch: told that the stream goes on under a new epoch; what it raises ends the claim.
    """

    def __init__(
        self,
        *,
        fence: FenceInDatabase,
        tenure: Tenure,
        journal: Journal,
        reachable: Callable[[], bool],
        epoch: int,
        known: int,
        next_epoch: Callable[[int], int],
        begin_epoch: Callable[[int], Awaitable[None]],
        failures: Failures,
        mark: CollectorMark | None = None,
    ) -> None:
        self._fence = fence
        self._tenure = tenure
        self._journal = journal
        self._reachable = reachable
        self._epoch = epoch
        self._known = known
        self._next_epoch = next_epoch
        self._begin_epoch = begin_epoch
        self._failures = failures
        self._mark = mark
        self._tried = 0  # the epoch of a claim whose answer got lost, perhaps
        self._wanted = False
        self._leading = False
        self._looked = False  # PostgreSQL has answered, and what it said still counts
        self._turned = asyncio.Event()
        self._used_up = False  # another may have collected since the epoch began
        self._presumed = False  # we collect, and PostgreSQL cannot be asked
        self._holder: Holder | None = None
        self._told_by_redis: str | None = None
        self._fault: EwsError | None = None  # what waiting does not mend
        self._reason = ""
        self._since: float | None = None
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._expiry: asyncio.TimerHandle | None = None
        tenure.on_refused = self._refused

    @property
    def status(self) -> LeadershipStatus:
        """As of the last answer."""
        waiting_for = None if self._holder is None else str(self._holder)
        return LeadershipStatus(
            held=self._leading,
            owner=self._fence.owner,
            since=self._since if self._holder is None else self._holder.since,
            waiting_for=None if self._leading else waiting_for or self._told_by_redis,
        )

    @property
    def reason(self) -> str:
        """Why this instance does not collect, in a sentence; empty when nothing keeps it from it."""
        return "" if self._leading else self._reason

    @property
    def may_work(self) -> bool:
        """Whether to ask the vendor and to write history: the work of the instance that collects, or of
        any while none does, as PostgreSQL said last.
        """
        return self._leading or (self._looked and self.status.waiting_for is None)

    async def asked(self) -> bool:
        """``may_work``, once PostgreSQL has been asked anew, or could not be."""
        turned = self._turned
        self._wake.set()
        await turned.wait()
        return self.may_work

    async def claim(self, told: Callable[[str], None] = lambda _: None) -> None:
        """Return once this instance holds the fence and may collect; until then it waits as a standby.

        :param told: why it waits, each time that this changes.
        :raises EwsError: what waiting does not mend.
        """
        self._fault = None
        self.want()
        while not self._leading:
            changed = self._changed
            if self._fault is not None:
                raise self._fault
            if self._reason:
                told(self._reason)
            await changed.wait()

    def want(self) -> None:
        """Claim the fence as soon as it is free, without waiting for it here."""
        if not self._wanted:
            self._wanted = True
            self._wake.set()

    def stand_back(self) -> None:
        """We cannot collect for now: somebody else may."""
        if self._wanted:
            self._wanted = self._leading = self._presumed = False
            self._wake.set()

    async def lost(self) -> None:
        """Return once the fence is lost; at once when we do not hold it."""
        while self._leading:
            await self._changed.wait()

    async def run(self) -> None:
        """Ask, until cancelled."""
        try:
            while True:
                self._wake.clear()
                turned, self._turned = self._turned, asyncio.Event()
                try:
                    await self._turn()
                finally:
                    turned.set()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), RENEW_S)
        finally:
            self._disarm()

    async def release(self) -> None:
        """Let others collect at once. ``run`` must have ended. Never raises ``EwsError``."""
        self._wanted = False
        self._disarm()
        try:
            await self._give_back()
        except EwsError as error:
            log.warning("The fence was not released; it runs out", reason=str(error))

    async def _turn(self) -> None:
        try:
            if not self._reachable():
                raise DatabaseUnavailable("PostgreSQL has not been reached.")
            if self._tenure.epoch is not None and not self._wanted:
                await self._give_back()
            elif self._tenure.epoch is not None:
                await self._renew(self._tenure.epoch)
            else:
                await self._look()
        except StorageError as error:
            self._looked = False
            if self._leading or isinstance(error, DatabaseUnavailable):
                await self._without_database(str(error))
            elif self._wanted:
                self._fail(error)
        else:
            self._looked = True
            self._failures.succeeded(UNCONFIRMED)

    async def _renew(self, epoch: int) -> None:
        end, sent_at = self._journal.end, monotonic()
        if await self._fence.renew(epoch):
            if self._tenure.epoch == epoch:
                self._tenure.confirmed(end, sent_at)
                self._arm(sent_at)
                if not self._leading:
                    self._leading = True
                    self._tell("")
                await self._show(epoch)
            return
        rows = await self._fence.look()
        self._lose(others(rows, self._fence.owner, self._known) or _claimer(rows))

    async def _look(self) -> None:
        """We do not hold the fence, as far as PostgreSQL knows: who does, and may we?"""
        rows = await self._fence.look()
        if any(
            one.leased and one.owner == self._fence.owner
            for one in rows
            if one.epoch == self._tried
        ):
            self._known = self._tried  # it was made all the same: no need to wait for its end
        holder = others(rows, self._fence.owner, self._known)
        highest = max((row.epoch for row in rows), default=0)
        if highest >= EPOCH_LIMIT:
            self._fail(StorageError(f"Table epoch_fence holds the epoch {highest}. {MEND}"))
        else:
            self._failures.succeeded(EPOCH_IN_DATABASE)
        if highest >= EPOCH_LIMIT:
            return
        if holder is not None:
            self._wait_for(holder)
        elif self._wanted:
            await self._claim(rows, highest)
        else:
            self._nobody()

    async def _claim(self, rows: Sequence[FenceRow], highest: int) -> None:
        strangers = [row for row in rows if not is_ours(row, self._fence.owner, self._known)]
        # What we journaled without the fence while another had it is not stored.
        blind = self._presumed or self._tenure.undecided is not None
        kept_back = bool(strangers) and (self._used_up or blind)
        epoch = self._epoch
        if self._used_up or kept_back or epoch <= highest:
            epoch = self._next_epoch(highest)
        self._tried, sent_at = epoch, monotonic()
        holder = await self._fence.claim(epoch, self._known)
        if holder is not None:
            self._wait_for(holder)
            return
        claimer = _claimer(strangers).name if strangers else "another instance"
        winner = claimer if self._holder is None else self._holder.name
        self._tenure.began(epoch, sent_at, kept_back=kept_back, winner=winner)
        self._known = epoch
        self._arm(sent_at)
        if epoch != self._epoch:
            try:
                await self._begin_epoch(epoch)
            except EwsError as error:
                await self._give_back()
                self._fail(error)
                return
        self._epoch = epoch
        self._used_up = self._presumed = False
        self._since = rows[0].now if rows else time.time()  # real time: for people
        self._holder = self._fault = self._told_by_redis = None
        self._leading = True
        self._failures.succeeded(COLLECTING)
        log.info("This instance holds the fence: it collects", epoch=epoch, owner=self._fence.name)
        self._tell("")
        await self._show(epoch)

    async def _give_back(self) -> None:
        epoch = self._tenure.epoch
        if epoch is None:
            return
        await self._fence.release(epoch)
        self._tenure.released()
        self._leading = False
        self._used_up = True
        self._disarm()
        if self._mark is not None:
            await self._mark.clear()
        self._tell("")

    async def _without_database(self, reason: str) -> None:
        """PostgreSQL does not say who collects: who did last goes on, and nobody else begins."""
        if self._leading or not self._wanted:
            if self._leading:
                self._failures.failed(
                    UNCONFIRMED,
                    sentences(
                        reason,
                        "Nobody can say whether another instance has begun to collect; this one goes on, "
                        "and PostgreSQL decides when it is back",
                    ),
                )
                await self._show(self._epoch)
            return
        other = None if self._mark is None else await self._mark.other()
        if not self._tenure.held_last:
            self._told_by_redis = other
            self._tell(
                sentences(
                    reason,
                    "This instance collects nothing until PostgreSQL says that no other does: it was not "
                    "the last to collect, by STATE_DIR",
                )
            )
        elif other is not None:
            self._told_by_redis = other
            self._tell(sentences(reason, f"Redis says that {other} collects"))
            self._failures.failed(COLLECTING, self._reason)
        else:
            self._tenure.presume()
            self._presumed = self._leading = True
            self._told_by_redis = None
            log.warning("Collecting without PostgreSQL: this instance was the last", reason=reason)
            self._tell("")
            await self._show(self._epoch)

    def _lose(self, winner: Holder) -> None:
        self._tenure.lost(winner.name)
        self._disarm()
        self._wait_for(winner)

    def _refused(self) -> None:
        """The writer's transaction found the fence another's, before we asked."""
        self._used_up = True
        self._wanted = self._leading = False
        self._disarm()
        self._tell("Another instance has claimed the fence in PostgreSQL.")
        self._wake.set()

    def _wait_for(self, holder: Holder) -> None:
        self._tenure.lost(holder.name)
        if self._leading:  # whoever collects has to stop, and to claim anew
            self._wanted = self._leading = self._presumed = False
        self._used_up = True
        news = self._holder != holder
        self._holder = holder
        reason = sentences(f"This instance collects nothing: {holder}")
        if news:
            log.warning("Another instance collects", name=holder.name, epoch=holder.epoch)
            self._failures.failed(COLLECTING, reason)
        self._tell(reason)

    def _nobody(self) -> None:
        self._holder = self._told_by_redis = None
        self._failures.succeeded(COLLECTING)
        if self._reason:
            self._tell("")

    def _fail(self, fault: EwsError) -> None:
        self._fault = fault
        self._wanted = False
        self._failures.failed(COLLECTING, str(fault))
        self._tell(str(fault))

    def _tell(self, reason: str) -> None:
        self._reason = reason
        self._changed.set()
        self._changed = asyncio.Event()

    def _arm(self, sent_at: float) -> None:
        """From when on the fence may be another's, unless it is renewed before."""
        self._disarm()
        left = max(0.0, sent_at + LEASE_S - monotonic())
        self._expiry = asyncio.get_running_loop().call_later(left, self._tenure.expire)

    def _disarm(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    async def _show(self, epoch: int) -> None:
        if self._mark is not None:
            await self._mark.show(epoch)

    def fenced(self) -> EpochFenced:
        """The error of an instance that has lost the fence."""
        return EpochFenced(self._reason or "Another instance has claimed the fence.")


def _claimer(rows: Sequence[FenceRow]) -> Holder:
    """Who claimed last, alive or not."""
    if not rows:
        # real time: for people
        return Holder("everything", "Whoever emptied table epoch_fence", 0, time.time())
    row = max(rows, key=lambda one: one.epoch)
    name = (row.name if row.leased else None) or "An instance of an older release"
    return Holder(row.symbol, name, row.epoch, row.claimed_at or row.updated_at)


def instance_name() -> str:
    """What people call this process: on two machines there may be two of the same number."""
    started = iso_local(int(time.time()))  # real time: it is compared with what the machine tells
    return f"{socket.gethostname()} (process {os.getpid()}, started {started})"
