"""Feeds PostgreSQL from the journal, off the tick path: each journaled record lands exactly once.

The checkpoint (how far the journal is stored) moves in the transaction that stores the records, so
they share one fate, whatever dies. After any failure the writer begins again at the checkpoint it finds
in the database. It keeps nothing in memory but the batch PostgreSQL is busy with and the next one: the
backlog is the journal itself. A batch is read and encoded in slices, between which live ticks get their
turn. Does not own: the journal's fsync, the records' meaning.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Final

import asyncpg
import structlog

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.errors import (
    DatabaseUnavailable,
    EpochFenced,
    JournalError,
    StorageError,
)
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.events import EPOCH_LIMIT
from enhanced_websocket_service.market.source import world_of
from enhanced_websocket_service.market.tick import Rejection, Tick
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.watermarks import Hop, Watermarks

from .catalog import unaltered, writing_form
from .fence import check
from .journal import Journal
from .pool import WRITES
from .postgres import Database
from .record_store import UNSTORABLE, Batch, RecordStore, Stored, Witnesses
from .records import Record, source_of
from .segment import START, Position
from .table_forms import WritingForm
from .tenure import Tenure

log = structlog.get_logger(__name__)

STORING: Final = "storing ticks and bars"
"""The part of ``Failures``. The journal keeps what is not stored."""
QUARANTINE: Final = "records in rejected_ticks"
"""The part of ``Failures`` for records that their own table cannot hold."""
IN_REJECTED: Final = "in rejected_ticks instead"
"""What the watermarks say of them, with their cause, while the table does not take their kind."""
WHOLE_BATCHES: Final = 100
WHOLE_S: Final = 60.0
"""After so many batches, or real seconds, without one the last quarantined record is no present problem any
more."""
FIRST_BACKOFF_S: Final = 0.1
SLICE_RECORDS: Final = 256
"""Read and encoded at a stretch: about a millisecond during which nothing else runs."""
BATCH_RECORDS: Final = 16_000
"""In one transaction at most. Its half a dozen round trips each wait for the event loop: with few records
PostgreSQL would have nothing to do for half of the time."""
BATCH_BYTES: Final = 8 * 1024 * 1024
"""Of journal in one transaction at most, give or take a slice: bounds the memory a batch takes."""
DAY_S: Final = 86_400.0
GIGABYTE: Final = 1 << 30


class JournalWriter:
    """Run ``run`` as one task; ``drain`` before shutting down.

    :param epoch: this process's, noted beside the checkpoint.
    :param symbols: what this process collects: their fence is checked in every transaction.
    :param tenure: which records may be stored; ``None``: all, as in a database that is this writer's alone.
    :param batch_records: at most so many records a transaction.
    :param batch_wait_ms: how long the first record of a batch waits for company; real milliseconds.
    :param keep_s: journal segments behind the checkpoint stay for so many real seconds,
    :param keep_bytes: unless the journal is larger than this.
    :param failures: told when storing fails, and when it works again.
    :param watermarks: told of what is committed, and of what had to be quarantined.
    """

    def __init__(
        self,
        journal: Journal,
        database: Database,
        *,
        epoch: int,
        symbols: Sequence[str],
        tenure: Tenure | None = None,
        batch_records: int = BATCH_RECORDS,
        batch_wait_ms: float = 100.0,
        longest_backoff_s: float = 5.0,
        keep_s: float = DAY_S,
        keep_bytes: int = GIGABYTE,
        metrics: Metrics | None = None,
        failures: Failures | None = None,
        watermarks: Watermarks | None = None,
    ) -> None:
        self._journal = journal
        self._database = database
        self._reader = journal.reader()
        self._inherited = journal.end.record  # records of earlier processes
        self._epoch = epoch
        self._symbols = list(symbols)
        self._tenure = tenure
        self._batch_records = self._most = batch_records
        self._batch_wait_s = batch_wait_ms / 1000
        self._longest_backoff_s = longest_backoff_s
        self._keep_s = keep_s
        self._keep_bytes = keep_bytes
        self._metrics = metrics
        self._failures = failures or Failures(SystemClock())
        self._watermarks = watermarks or Watermarks(symbols, monotonic)
        self._refused: set[tuple[str, type]] = set()  # kinds of records, quarantined the last time
        self._storing_since: float | None = None  # monotonic
        self._backend: int | None = None  # the server's process that we talk to
        self._checkpoint = START  # as the database has it
        self._done: Position | None = None  # everything before is stored; None: not known yet
        self._backoff_s = FIRST_BACKOFF_S
        self._hurry = asyncio.Event()
        self._progress = asyncio.Event()
        self._failing_since: float | None = None  # monotonic
        self._last_commit: float | None = None  # monotonic
        self._last_error: str | None = None
        self._stored_records = 0
        self._quarantined = 0
        self._whole_batches = WHOLE_BATCHES  # since the last quarantined record, which came
        self._quarantined_at = 0.0  # monotonic
        self._form = WritingForm()
        self._fingerprint = ""  # of the tables for which that is the form
        self._witnesses = Witnesses(self._symbols[0] if self._symbols else "")
        self._duplicates = 0
        self._left_out = 0
        self._worlds: dict[str | None, bool] = {}  # sources seen, and whether they are of our world

    async def run(self) -> None:
        """Store what is journaled, until cancelled. Failures are retried with back-off."""
        try:
            while True:
                try:
                    await self._follow()
                except EpochFenced:
                    # What was journaled before is stored all the same, beginning at the checkpoint.
                    if self._tenure is not None:
                        self._tenure.refused()
                except StorageError as error:
                    await self._back_off(error)
        finally:
            self._reader.close()

    async def drain(self, timeout_s: float) -> bool:
        """Store everything journaled so far, without waiting for company; ``run`` must be running.

        :param timeout_s: give up after so many real seconds; the rest stays in the journal.
        :returns: whether everything is stored.
        """
        self._hurry.set()
        await self._journal.sync()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.caught_up:
                    self._progress.clear()
                    await self._progress.wait()
        self._hurry.clear()
        return self.caught_up

    async def reached(self, record: int, timeout_s: float) -> bool:
        """Wait until the journal is stored up to ``record``, at most ``timeout_s`` real seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.stored_up_to(record):
                    self._progress.clear()
                    await self._progress.wait()
        return self.stored_up_to(record)

    def stored_up_to(self, record: int) -> bool:
        """Whether everything before journal record number ``record`` is in the database."""
        return self._done is not None and self._done.record >= min(record, self._due.record)

    @property
    def _due(self) -> Position:
        """Behind the last record that may be stored now."""
        limit = None if self._tenure is None else self._tenure.limit
        return self._journal.end if limit is None else min(limit, self._journal.end)

    @property
    def caught_up(self) -> bool:
        """Whether everything that may be stored is."""
        if self._done is None:
            return False
        due = self._due
        return self._done[:2] >= due[:2] or (
            due != self._journal.end and self._done.record >= due.record
        )

    @property
    def lag_records(self) -> int:
        """Records that may be stored and are not; before the first contact, all of them."""
        return max(0, self._due.record - (self._done or START).record)

    @property
    def last_error(self) -> str | None:
        """Why storing is interrupted; ``None`` while it is not."""
        return self._last_error

    @property
    def waits_for(self) -> tuple[int, float] | None:
        """The server's process that has not answered to a batch yet, and for how many real seconds."""
        if self._storing_since is None or self._backend is None:
            return None
        return self._backend, monotonic() - self._storing_since

    @property
    def committed_s(self) -> float | None:
        """Real seconds since the last commit; ``None`` before the first."""
        return None if self._last_commit is None else monotonic() - self._last_commit

    def status(self) -> dict[str, Any]:
        """For ``/status`` and ``system_health``."""
        now = monotonic()
        return {
            "lag_records": self.lag_records,
            "lag_bytes": self._journal.bytes_behind(self._done or START),
            "caught_up": self.caught_up,
            "stored_records": self._stored_records,
            "quarantined_records": self._quarantined,
            "duplicates_skipped": self._duplicates,
            "records_of_the_other_world": self._left_out,
            "damaged_places": self._reader.damages,
            "seconds_since_commit": self.committed_s,
            "failing_for_s": None if self._failing_since is None else now - self._failing_since,
            "last_error": self._last_error,
        }

    async def _follow(self) -> None:
        await self._database.connect()
        async with self._database.connection("storing the journal") as connection:
            self._form, self._fingerprint = await writing_form(connection)
            self._backend = connection.get_server_pid()
            await self._begin(connection)
            batch = Batch(self._database.zone)
            while True:
                self._tell_lag()
                if self.caught_up:
                    self._recovered()
                if not batch:
                    await self._wait_for_work()
                    if self.lag_records < self._batch_records:
                        with suppress(TimeoutError):
                            await asyncio.wait_for(self._hurry.wait(), self._batch_wait_s)
                    while self._room_in(batch):
                        self._read_into(batch)
                        await asyncio.sleep(0)
                batch = await self._store_and_prepare(connection, batch)
                self._progress.set()

    async def _wait_for_work(self) -> None:
        """Return once there is a record that may be stored. What is kept back is passed over."""
        while True:
            await self._journal.wait_past(self._reader.position)
            if self._room():
                return
            self._done = self._reader.position
            self._watermarks.done(Hop.COMMITTED, self._done.record)
            self._progress.set()
            if self._tenure is not None:
                self._watermarks.excuse(Hop.COMMITTED)
                try:
                    await self._tenure.wait()
                finally:
                    self._watermarks.expect(Hop.COMMITTED)

    def _room(self) -> int:
        """How many records may be read; what is kept back here is passed over first."""
        if self._tenure is None:
            return SLICE_RECORDS
        while (gap := self._tenure.gap_at(self._reader.position)) is not None:
            assert gap.end is not None
            self._reader.seek(gap.end)
        return self._tenure.room(self._reader.position)

    def _room_in(self, batch: Batch) -> bool:
        """Whether there is something to read, and ``batch`` can take it."""
        return (
            len(batch) < self._most
            and batch.size < BATCH_BYTES
            and self._reader.position[:2] < self._journal.end[:2]
            and self._room() > 0
        )

    def _read_into(self, batch: Batch) -> None:
        before = self._reader.position
        records = self._reader.read(min(SLICE_RECORDS, self._room(), self._most - len(batch)))
        records = self._of_our_world(self._possible(records, before))
        after = self._reader.position
        start = before.offset if before.segment == after.segment else 0
        batch.add(records, size=after.offset - start)

    def _possible(self, records: list[Record], before: Position) -> list[Record]:
        """Without what an older release numbered under an epoch that none can be; it stays there."""
        if before.record >= self._inherited:
            return records
        return [one for one in records if isinstance(one, Rejection) or one.epoch < EPOCH_LIMIT]

    def _of_our_world(self, records: list[Record]) -> list[Record]:
        """Without what an instance of the other world left in this journal; it stays there."""
        world = self._database.provider.world
        known = self._worlds
        sources = {
            r.source if type(r) is Tick else source_of(r) for r in records
        }  # ticks: the hot path
        for source in sources.difference(known):
            known[source] = source is None or world_of(source) == world
        if all(known.values()):
            return records
        ours = [record for record in records if known[source_of(record)]]
        if len(ours) < len(records):
            if not self._left_out:
                log.warning(
                    "The journal holds records of the other world; they are not stored here",
                    ours=world,
                )
            self._left_out += len(records) - len(ours)
        return ours

    async def _store_and_prepare(self, connection: Any, batch: Batch) -> Batch:
        """Store ``batch`` and, where there is a backlog, prepare the next one while PostgreSQL works.

        :returns: that next one, possibly empty.
        """
        position = self._reader.position
        following = Batch(self._database.zone)
        storing = asyncio.create_task(self._store(connection, batch, position), name="writer-store")
        self._storing_since = monotonic()
        try:
            while (
                not storing.done()
                and self._journal.end.record - self._reader.position.record >= SLICE_RECORDS
                and self._room_in(following)
            ):
                self._read_into(following)
                await asyncio.sleep(0)
            await storing
        finally:
            self._storing_since = None
            if not storing.done():
                storing.cancel()
                await asyncio.wait({storing})
        self._done = position
        self._watermarks.done(Hop.COMMITTED, position.record)
        return following

    async def _begin(self, connection: Any) -> None:
        """Go to where the database says the journal is stored up to."""
        journal_id = self._journal.journal_id
        async with connection.transaction():
            await self._database.claim(connection)
            await connection.execute(WRITES["make_checkpoint"], journal_id, self._epoch)
            row = await connection.fetchrow(WRITES["checkpoint"], journal_id)
        self._checkpoint = self._done = Position(*row)
        self._watermarks.done(Hop.COMMITTED, self._checkpoint.record)
        self._reader.seek(self._checkpoint)
        if self._checkpoint[:2] > self._journal.end[:2]:
            # An older copy of the journal was put back: its new segments reuse positions that the
            # database has seen. Reading all of it again is safe, ticks have an identity.
            log.error(
                "The database has stored more of this journal than there is; reading it again",
                checkpoint=self._checkpoint,
                journal_end=self._journal.end,
            )
            self._done = START
            self._reader.seek(START)
        self._progress.set()  # all of it may be stored already

    async def _store(self, connection: Any, batch: Batch, position: Position) -> None:
        """Store ``batch``, which ends at ``position``, if there is anything in it."""
        if not batch:
            return
        try:
            stored = await self._transaction(connection, batch, position, careful=False)
        except UNSTORABLE as error:
            if self._failing_since is None:
                log.warning(
                    "A batch holds a record that cannot be stored; isolating it", reason=str(error)
                )
            try:
                stored = await self._transaction(connection, batch, position, careful=True)
            except UNSTORABLE as again:
                raise StorageError(f"A batch cannot be stored even piecemeal: {again}") from again
        except (asyncpg.QueryCanceledError, TimeoutError):
            # Too much for a server that is so slow: the same again would fail again, for ever.
            self._most = max(len(batch) // 2, min(SLICE_RECORDS, self._batch_records))
            raise
        before, self._checkpoint = self._checkpoint, position
        self._stored_records += len(batch) - stored.quarantined - stored.duplicates
        self._note_quarantine(batch, stored)
        self._duplicates += stored.duplicates
        self._tell_refused(batch, stored)
        self._last_commit = monotonic()
        self._most = min(self._most + SLICE_RECORDS, self._batch_records)
        if self._metrics is not None:
            self._metrics.writer_batch.observe(len(batch))
        self._recovered()
        if before.segment != position.segment:
            self._prune()

    async def _transaction(
        self, connection: Any, batch: Batch, position: Position, *, careful: bool
    ) -> Stored:
        journal_id = self._journal.journal_id
        async with connection.transaction():
            await self._database.claim(connection)
            epoch = await self._check_fence(connection, position)
            row = await connection.fetchrow(WRITES["lock_checkpoint"], journal_id)
            if row is None or Position(*row) != self._checkpoint:
                # A commit whose answer got lost did happen after all.
                raise DatabaseUnavailable("The checkpoint moved meanwhile; beginning again at it.")
            store = RecordStore(connection, self._database.zone, self._form, self._witnesses)
            stored = await store.store(batch, careful=careful)
            if not await unaltered(connection, self._fingerprint):
                # What was written may have gone through a trigger that nobody has judged.
                raise DatabaseUnavailable(
                    "The tables were altered meanwhile; looking at them again."
                )
            await connection.execute(WRITES["move_checkpoint"], journal_id, *position, epoch)
        return stored

    def _note_quarantine(self, batch: Batch, stored: Stored) -> None:
        if stored.quarantined:
            self._quarantined += stored.quarantined
            self._whole_batches, self._quarantined_at = 0, monotonic()
            self._failures.failed(
                QUARANTINE,
                f"{self._quarantined} records since the start are not in their tables but in rejected_ticks "
                f"(reason 'unstorable', whole in raw), the last: {stored.why}",
            )
            return
        self._witnesses.remember(batch)
        if self._whole_batches < WHOLE_BATCHES:
            self._whole_batches += 1
            if monotonic() - self._quarantined_at >= WHOLE_S:
                self._whole_batches = WHOLE_BATCHES
            if self._whole_batches == WHOLE_BATCHES:
                self._failures.forgotten(QUARANTINE)

    def _tell_refused(self, batch: Batch, stored: Stored) -> None:
        """What is in ``rejected_ticks`` instead of its table is not done, until the table takes its kind."""
        if not stored.refused and not self._refused:
            return
        for (symbol, kind), count in stored.refused.items():
            why = f"{IN_REJECTED}, {kind.__name__}: {stored.why}"
            self._watermarks.refused(symbol, Hop.COMMITTED, count, why)
        mended = (self._refused & batch.kinds()) - stored.refused.keys()
        self._refused = (self._refused - mended) | stored.refused.keys()
        for symbol in {symbol for symbol, _ in mended} - {symbol for symbol, _ in self._refused}:
            self._watermarks.worked(symbol, Hop.COMMITTED)

    async def _check_fence(self, connection: Any, end: Position) -> int:
        """The epoch to note. Raises ``EpochFenced``: what ends at ``end`` may not be stored now."""
        if self._tenure is None:
            return self._epoch
        epoch = self._tenure.epoch
        if self._tenure.needs_fence(end):
            if epoch is None:
                raise EpochFenced("The fence was lost while this batch was prepared.")
            await check(connection, self._symbols, self._tenure.owner, epoch)
        return self._epoch if epoch is None else epoch

    def _prune(self) -> None:
        try:
            deleted = self._journal.prune(
                self._checkpoint, keep_s=self._keep_s, keep_bytes=self._keep_bytes
            )
        except JournalError as error:
            log.warning("Old journal segments stay", reason=str(error))
            return
        if deleted:
            log.info("Deleted journal segments that are stored", segments=deleted)

    def _tell_lag(self) -> None:
        if self._metrics is not None:
            self._metrics.writer_lag.set(self.lag_records)

    def _recovered(self) -> None:
        self._backoff_s = FIRST_BACKOFF_S
        self._last_error = None
        self._failing_since = None
        self._failures.succeeded(STORING)

    async def _back_off(self, error: StorageError) -> None:
        self._last_error = str(error)
        self._tell_lag()
        if self._failing_since is None:
            self._failing_since = monotonic()
        self._failures.failed(STORING, str(error))
        if self._hurry.is_set():
            await asyncio.sleep(FIRST_BACKOFF_S)
        else:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), self._backoff_s)
        self._backoff_s = min(2 * self._backoff_s, self._longest_backoff_s)
