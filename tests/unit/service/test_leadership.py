"""What an instance does about the fence, on a PostgreSQL that says what the test wants."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.errors import (
    DatabaseUnavailable,
    EwsError,
    JournalError,
    NotAllowed,
    StorageError,
)
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.service.leadership import Leadership
from enhanced_websocket_service.storage.fence import FenceRow, Holder, others
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.tenure import Tenure
from tests.storage_samples import ticks
from tests.unit.storage.test_fence import OURS, THEIRS, row

FREE = row(epoch=0, owner=None, lease_epoch=None)
TURNS = 100


class Table:
    """Implements ``FenceInDatabase`` on one row."""

    def __init__(self) -> None:
        self.owner, self.name = OURS, "our host"
        self.row: FenceRow = FREE
        self.away: StorageError | None = None
        self.empty = False
        self.mute = False
        """Whether the answer to a claim gets lost."""

    async def look(self) -> list[FenceRow]:
        if self.away is not None:
            raise self.away
        return [] if self.empty else [self.row]

    async def claim(self, epoch: int, known: int) -> Holder | None:
        rows = await self.look()
        holder = others(rows, self.owner, known)
        if holder is None:
            assert epoch > self.row.epoch
            self.row = row(owner=OURS, name=self.name, epoch=epoch, lease_epoch=epoch)
            if self.mute:
                self.mute = False
                raise DatabaseUnavailable("PostgreSQL did not say who collects into it.")
        return holder

    async def renew(self, epoch: int) -> bool:
        there = bool(await self.look())
        ours = (self.row.owner, self.row.epoch, self.row.released) == (OURS, epoch, False)
        return there and ours

    async def release(self, epoch: int) -> None:
        await self.look()
        self.row = replace(self.row, released=True)


class Mark:
    def __init__(self) -> None:
        self.another: str | None = None
        self.shown: int | None = None

    async def other(self) -> str | None:
        return self.another

    async def show(self, epoch: int) -> None:
        self.shown = epoch

    async def clear(self) -> None:
        self.shown = None


class World:
    """A leadership with all around it; ``epochs`` are those that the stream went on under."""

    def __init__(self, folder: Path) -> None:
        self.failures = Failures(SystemClock())
        self.journal = Journal.open(folder / "journal")
        self.tenure = Tenure(folder, self.journal, self.failures)
        self.table, self.mark = Table(), Mark()
        self.reachable = True
        self.epochs: list[int] = []
        self.refusal: EwsError | None = None
        self.leadership = Leadership(
            fence=self.table,
            tenure=self.tenure,
            journal=self.journal,
            reachable=lambda: self.reachable,
            epoch=100,
            known=90,
            next_epoch=lambda highest: max(highest, 100) + 1,
            begin_epoch=self.begin,
            failures=self.failures,
            mark=self.mark,
        )

    async def begin(self, epoch: int) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.epochs.append(epoch)

    @property
    def problems(self) -> str:
        return " ".join(f"{one.part}: {one.reason}" for one in self.failures.present)

    async def settle(self) -> None:
        """Until it has asked again."""
        await self.leadership.asked()
        for _ in range(TURNS):
            await asyncio.sleep(0)


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    one = World(folder)
    running = asyncio.create_task(one.leadership.run())
    try:
        yield one
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        one.journal.close()


async def claimed(one: World) -> None:
    await asyncio.wait_for(one.leadership.claim(), 20)


async def test_a_free_fence_is_claimed_under_the_epoch_of_the_process(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.settle()
        assert one.table.row == FREE, "who does not want to collect claims nothing"
        await claimed(one)
        assert (one.table.row.owner, one.table.row.epoch) == (OURS, 100)
        assert one.epochs == []
        assert one.leadership.status.held
        assert one.leadership.reason == ""
        assert one.mark.shown == 100
        await one.leadership.release()
        assert one.table.row.released
        assert one.mark.shown is None


async def test_a_standby_waits_says_who_collects_and_goes_on_under_a_new_epoch(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as one:
        one.table.row = row(epoch=50, lease_epoch=50)
        told: list[str] = []
        claim = asyncio.create_task(one.leadership.claim(told.append))
        await one.settle()
        assert not claim.done()
        assert "their host collects USDCOP since" in told[-1]
        assert "collecting: This instance collects nothing: their host" in one.problems
        assert not one.leadership.may_work
        one.table.row = replace(one.table.row, released=True)
        await one.settle()
        await asyncio.wait_for(claim, 20)
        assert one.epochs == [101]
        assert one.table.row.epoch == 101
        assert one.problems == ""


@pytest.mark.parametrize("before", [0, 50])
async def test_a_claim_whose_answer_got_lost_does_not_keep_us_from_collecting(
    tmp_path: Path, before: int
) -> None:
    async with world(tmp_path) as one:
        if before:
            one.table.row = row(epoch=before, lease_epoch=before, released=True)
        one.table.mute = True
        claim = asyncio.create_task(one.leadership.claim())
        await one.settle()
        await one.settle()
        await asyncio.wait_for(claim, 20)
        assert one.leadership.status.held
        assert one.problems == ""
        assert one.epochs == [101]


async def test_a_higher_epoch_alone_wins_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.table.row = row(epoch=1, lease_epoch=1)
        claim = asyncio.create_task(one.leadership.claim())
        for _ in range(3):
            await one.settle()
        assert one.table.row.epoch == 1
        claim.cancel()


async def test_who_loses_it_is_told_stops_and_claims_anew_only_when_asked(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await claimed(one)
        lost = asyncio.create_task(one.leadership.lost())
        await one.settle()
        assert not lost.done()
        one.table.row = row(epoch=7_000, lease_epoch=7_000)
        await one.settle()
        await asyncio.wait_for(lost, 20)
        assert "their host" in str(one.leadership.fenced())
        one.table.row = replace(one.table.row, released=True)
        await one.settle()
        assert one.table.row.owner == THEIRS
        await claimed(one)
        assert one.epochs == [7_001]


def taken_over(one: World) -> None:
    one.table.row = row()


def still_ours(one: World) -> None:
    pass


def taken_and_given_back(one: World) -> None:
    one.table.row = row(released=True)


@pytest.mark.parametrize(
    ("meanwhile", "held", "kept"),
    [(still_ours, True, 0), (taken_over, False, 5), (taken_and_given_back, True, 5)],
)
async def test_without_postgresql_the_last_holder_collects_and_postgresql_decides_later(
    tmp_path: Path, meanwhile: Callable[[World], None], held: bool, kept: int
) -> None:
    async with world(tmp_path) as one:
        await claimed(one)
    async with world(tmp_path) as one:  # a restart; nobody but it has claimed the fence
        one.leadership._known = 100
        one.leadership._epoch = 200
        one.table.row = row(owner=OURS, epoch=100, lease_epoch=100)
        one.reachable = False
        await claimed(one)
        assert one.leadership.status.held
        one.journal.append(ticks(5, epoch=200))
        await one.settle()
        assert "Nobody can say whether another instance has begun" in one.problems
        one.reachable = True
        meanwhile(one)
        await one.settle()
        assert one.leadership.status.held == held
        assert ("5 records" in one.problems) == (kept > 0)
        assert one.epochs == ([201] if held and kept else [])


async def test_who_was_not_the_last_waits_for_postgresql(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.reachable = False
        told: list[str] = []
        claim = asyncio.create_task(one.leadership.claim(told.append))
        await one.settle()
        assert not claim.done()
        assert "it was not the last to collect" in told[-1]
        one.reachable = True
        await one.settle()
        await asyncio.wait_for(claim, 20)


async def test_redis_keeps_the_last_holder_from_collecting_without_postgresql(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as one:
        await claimed(one)
    async with world(tmp_path) as one:
        one.reachable, one.mark.another = False, "another host"
        claim = asyncio.create_task(one.leadership.claim())
        await one.settle()
        assert not claim.done()
        assert "Redis says that another host collects" in one.leadership.reason
        one.mark.another = None
        await one.settle()
        await asyncio.wait_for(claim, 20)


@pytest.mark.parametrize(
    "fault", [NotAllowed("Role ews lacks UPDATE."), StorageError("Column owner is not there.")]
)
async def test_what_waiting_does_not_mend_is_raised_and_tried_anew_by_the_next_claim(
    tmp_path: Path, fault: StorageError
) -> None:
    async with world(tmp_path) as one:
        one.table.away = fault
        with pytest.raises(StorageError, match=str(fault)):
            await claimed(one)
        one.table.away = None
        await claimed(one)


async def test_a_database_that_goes_away_while_it_collects_changes_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await claimed(one)
        lost = asyncio.create_task(one.leadership.lost())
        one.table.away = DatabaseUnavailable("PostgreSQL cannot be reached.")
        for _ in range(3):
            await one.settle()
        assert not lost.done()
        one.table.away = None
        await one.settle()
        assert not lost.done()
        assert one.problems == ""
        lost.cancel()


async def test_an_emptied_table_is_a_loss_and_is_claimed_anew(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await claimed(one)
        one.table.empty = True
        await one.settle()
        await asyncio.wait_for(one.leadership.lost(), 20)
        assert "epoch_fence" in str(one.leadership.fenced())
        one.table.empty, one.table.row = False, FREE
        await claimed(one)
        assert one.epochs == [101]


async def test_an_epoch_that_cannot_begin_gives_the_fence_back(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.table.row = row(epoch=150, lease_epoch=150, released=True)
        one.refusal = JournalError("No space left on device")
        with pytest.raises(JournalError):
            await claimed(one)
        assert one.table.row.released
        one.refusal = None
        await claimed(one)
        assert one.leadership.status.held


async def test_who_cannot_collect_lets_another_begin(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await claimed(one)
        one.leadership.stand_back()
        await one.settle()
        assert one.table.row.released
        assert not one.leadership.status.held
        assert one.leadership.may_work, "nobody else collects"
        one.table.row = row()
        await one.settle()
        assert not one.leadership.may_work
