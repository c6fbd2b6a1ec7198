"""The tick journal: what is published is on disk first. Append-only segments in one directory.

Invariants: one batch is one OS write, and all of it is in the journal or none of it; positions only
grow and are never used twice, not even after a crash (each start begins a new segment); whatever an
append that failed left behind is cut off, or declared void by the next segment's header. Does not
own: PostgreSQL and the checkpoint (``writer.py``), the meaning of records.

The directory holds ``journal_id``, ``LOCK`` (held by the one process that appends) and the segments,
whose bytes ``segment.py`` describes.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Self

import structlog

from enhanced_websocket_service.errors import JournalError
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.watermarks import Hop, Watermarks

from .atomic_file import fsync_path
from .journal_reader import JournalReader, segment_numbers, segment_path
from .journal_repair import identity, lock, repair
from .records import Record, encode, encode_all
from .segment import HEADER_SIZE, MAX_PAYLOAD, START, Header, Position, frames, seed
from .tail import Tail

log = structlog.get_logger(__name__)

DEFAULT_SEGMENT_BYTES: Final = 16 * 1024 * 1024
DEFAULT_SEGMENT_S: Final = 3600.0
_PROBE: Final = bytes(64 * 1024)
"""Room for a good batch. Zeros are never taken for records, should we die before they are cut off."""
_FIRST_RETRY_S: Final = 0.1
_LONGEST_RETRY_S: Final = 5.0


class Journal:
    """The one appender of a journal directory. Make it with ``Journal.open``.

    Everything but ``run``, ``sync`` and ``wait_past`` is synchronous. Not safe for threads.
    """

    def __init__(
        self,
        directory: Path,
        lock_fd: int,
        *,
        fsync_ms: float,
        segment_bytes: int,
        segment_s: float,
        on_failure: Callable[[JournalError], None] | None,
        metrics: Metrics | None,
        watermarks: Watermarks | None,
    ) -> None:
        self.directory = directory
        self.journal_id = identity(directory)
        remains = repair(directory, self.journal_id)
        self.damage = remains.damage
        """What was found broken in the newest segment, beside a torn tail."""
        self._write_failure: JournalError | None = None
        self._fsync_failure: JournalError | None = None
        self._lock_fd = lock_fd
        self._fsync_s = fsync_ms / 1000
        self._segment_bytes = segment_bytes
        self._segment_s = segment_s
        self._begun = 0.0  # the open segment, monotonic
        self._on_failure = on_failure
        self._metrics = metrics
        self._watermarks = watermarks or Watermarks((), time.monotonic)
        self._syncing: dict[int, float] = {}  # fsyncs under way, since when (monotonic)
        self._fd = -1
        self._torn = False  # bytes behind ``end`` could not be cut off yet
        self._unsynced: list[int] = []  # sealed segments, waiting for their last fsync
        self._dirty = asyncio.Event()
        self._new_names = True  # segments were created since the directory was fsynced
        self._tail = Tail()
        self._uncounted = 0  # bytes: the metrics get to know of them with the next fsync
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._end = Position(remains.highest, 0, remains.records)
        if (
            remains.records
        ):  # of earlier runs: read from the disk; how much of it PostgreSQL has, it tells
            self._watermarks.appended(remains.records, remains.records)
            self._watermarks.done(Hop.JOURNALED, remains.records)
        self._seed = 0
        self._begin_segment(remains.previous)
        for path in remains.void:
            # Only now: until a higher number exists, theirs would be used again.
            path.unlink()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        fsync_ms: float = 50,
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
        segment_s: float = DEFAULT_SEGMENT_S,
        on_failure: Callable[[JournalError], None] | None = None,
        metrics: Metrics | None = None,
        watermarks: Watermarks | None = None,
    ) -> Self:
        """Take the directory over, repair the newest segment and begin another.

        :param fsync_ms: how long an appended record may wait for its fsync; real milliseconds.
        :param segment_bytes: an append begins a new segment when the open one is larger than this,
        :param segment_s: or older, real seconds: only whole segments can be deleted.
        :param on_failure: told of every failed write and fsync, from the event loop's thread.
        :param watermarks: told of what was appended, and of what is on disk for good.
        :raises JournalError: the directory cannot be used, or another process owns it.
        """
        try:
            # Prices that may not be passed on: nobody else's to read.
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            lock_fd = lock(directory)
        except OSError as error:
            raise JournalError(f"The journal directory {directory} is unusable: {error}") from error
        try:
            return cls(
                directory,
                lock_fd,
                fsync_ms=fsync_ms,
                segment_bytes=segment_bytes,
                segment_s=segment_s,
                on_failure=on_failure,
                metrics=metrics,
                watermarks=watermarks,
            )
        except OSError as error:
            os.close(lock_fd)
            raise JournalError(f"The journal in {directory} cannot be opened: {error}") from error
        except JournalError:
            os.close(lock_fd)
            raise

    @property
    def failure(self) -> JournalError | None:
        """Why the journal is not doing its work; ``None`` again once a write and an fsync succeed."""
        return self._write_failure or self._fsync_failure

    @property
    def hangs_for_s(self) -> float | None:
        """How long, in real seconds, the oldest fsync under way has lasted; ``None`` without one."""
        if not self._syncing:
            return None
        return time.monotonic() - min(self._syncing.values())

    @property
    def end(self) -> Position:
        """Behind the last record appended; everything before it may be read."""
        return self._end

    def append(self, records: Sequence[Record]) -> Position:
        """Write ``records`` in one OS write; on disk for good after the next group fsync.

        :returns: the new end.
        :raises JournalError: nothing of ``records`` is in the journal.
        """
        if self._lock_fd < 0:
            raise JournalError(f"The journal in {self.directory} is closed.")
        if not records:
            return self._end
        try:
            if self._torn or self._full():
                self._begin_segment()
            payloads = encode_all(records)
            if (largest := max(map(len, payloads))) > MAX_PAYLOAD:
                record = next(r for r in records if len(encode(r)) == largest)
                raise JournalError(f"A record of {largest} bytes is too large: {record!r:.300}")
            buffer, ends = frames(payloads, self._end.offset, self._seed)
            written = os.write(self._fd, buffer)
        except OSError as error:
            self._cut()
            self._write_failure = self._unwritable(error)
            raise self._told(self._write_failure) from error
        if written != len(buffer):
            self._cut()
            self._write_failure = JournalError(
                f"The journal in {self.directory} took {written} of {len(buffer)} bytes: "
                "is the disk full?"
            )
            raise self._told(self._write_failure)
        segment, offset, record_count = self._end
        self._tail.add(self._end, records, ends)
        self._end = Position(segment, offset + written, record_count + len(records))
        self._watermarks.appended(len(records), self._end.record)
        self._write_failure = None
        self._dirty.set()
        self._uncounted += written
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
        return self._end

    def check(self) -> None:
        """After a failure: whether the journal could do its work again. No record comes of it.

        :raises JournalError: it still could not.
        """
        if self._write_failure is not None:
            try:
                if self._torn:
                    self._begin_segment()
                written = os.write(self._fd, _PROBE)
            except OSError as error:
                self._cut()
                raise self._unwritable(error) from error
            self._cut()
            if written != len(_PROBE):
                raise JournalError(str(self._write_failure))
            self._write_failure = None
        if self._fsync_failure is not None:
            self._dirty.set()  # only the next fsync can tell
            raise JournalError(str(self._fsync_failure))

    async def wait_past(self, position: Position) -> None:
        """Return once there is something to read behind ``position``."""
        while self._end[:2] <= position[:2]:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    def reader(self, position: Position = START) -> JournalReader:
        """A reader that follows this journal and never sees an append that failed."""
        return JournalReader(self.directory, position, end=lambda: self._end, tail=self._tail)

    async def run(self) -> None:
        """Fsync what was appended, in groups, until cancelled. Failures go to ``on_failure``."""
        pause_s = self._fsync_s
        while True:
            await self._dirty.wait()
            await asyncio.sleep(pause_s)
            if await self.sync():
                pause_s = self._fsync_s
            else:  # each failure begins a segment: a disk that stays broken must not get 20 a second
                pause_s = min(2 * pause_s + _FIRST_RETRY_S, _LONGEST_RETRY_S)

    async def sync(self) -> bool:
        """Bring everything appended so far to the disk, in a thread; whether it worked.

        After a failure the records stay readable, but they may be lost with the machine's power.
        """
        self._dirty.clear()
        if self._metrics is not None:
            self._metrics.journal_bytes.inc(self._uncounted)
            self._uncounted = 0
        try:
            # A copy: the segment may be sealed and closed while the thread still syncs it.
            copy = os.dup(self._fd)
        except OSError as error:  # too many open files: another segment would need one more
            self._fsync_failure = self._told(self._fsync_error(error))
            self._dirty.set()
            return False
        descriptors, self._unsynced = [*self._unsynced, copy], []
        names, self._new_names = self._new_names, False
        written, record, began = self._end.offset, self._end.record, time.monotonic()
        self._syncing[copy] = began
        try:
            await asyncio.to_thread(
                _fsync_and_close, descriptors, self.directory if names else None, written
            )
            if not (path := segment_path(self.directory, self._end.segment)).exists():
                raise OSError(f"{path.name} was deleted")
        except OSError as error:
            self._new_names = True
            self._fsync_failed(error)
            return False
        finally:
            self._syncing.pop(copy, None)
        self._fsync_failure = None
        self._watermarks.done(Hop.JOURNALED, record)
        return True

    def prune(self, checkpoint: Position, *, keep_s: float, keep_bytes: int) -> int:
        """Delete whole segments behind ``checkpoint``: those last written more than ``keep_s`` real
        seconds ago and, oldest first, those that make the journal larger than ``keep_bytes``.

        :returns: how many were deleted.
        :raises JournalError: a file cannot be examined or deleted.
        """
        now = time.time()  # real time: it is compared with the times of files
        deleted = 0
        try:
            files = [segment_path(self.directory, n) for n in segment_numbers(self.directory)]
            stats = [(path, path.stat()) for path in files]
            total = sum(stat.st_size for _, stat in stats)
            for path, stat in stats:
                if int(path.stem) >= min(checkpoint.segment, self._end.segment):
                    break
                if now - stat.st_mtime <= keep_s and total <= keep_bytes:
                    break
                path.unlink()
                total -= stat.st_size
                deleted += 1
        except OSError as error:
            raise JournalError(f"{self.directory} cannot be pruned: {error}") from error
        return deleted

    def bytes_behind(self, position: Position) -> int:
        """How many bytes of segments lie behind ``position``."""
        if position.segment == self._end.segment:
            return self._end.offset - position.offset
        total = self._end.offset
        for number in segment_numbers(self.directory):
            if position.segment <= number < self._end.segment:
                total += segment_path(self.directory, number).stat().st_size
                total -= position.offset if number == position.segment else 0
        return total

    def close(self) -> None:
        """Fsync and let go of the directory. Idempotent.

        :raises JournalError: the last fsync failed; the directory is free all the same.
        """
        if self._lock_fd < 0:
            return
        try:
            _fsync_and_close([*self._unsynced, self._fd], self.directory)
        except OSError as error:
            raise self._told(self._fsync_error(error)) from error
        finally:
            os.close(self._lock_fd)
            self._unsynced, self._fd, self._lock_fd = [], -1, -1

    def _begin_segment(self, previous: tuple[int, int] | None = None) -> None:
        """Seal the open segment, which is ``previous``, and go on in a new one; raises ``OSError``."""
        number = self._end.segment + 1
        before, end = self._end[:2] if previous is None else previous
        now = time.time()  # real time: for people who inspect the directory
        header = Header(self.journal_id, number, self._end.record, before, end, now).encode()
        path = segment_path(self.directory, number)
        # A start of this segment that failed for want of space may have left a file behind.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(path, flags, 0o640)
        try:
            if os.write(fd, header) != len(header):
                raise OSError(f"no room for the header of {path.name}")
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        if self._fd >= 0:
            self._unsynced.append(self._fd)
        self._fd, self._torn, self._new_names = fd, False, True
        self._begun = time.monotonic()
        self._end = Position(number, HEADER_SIZE, self._end.record)
        self._seed = seed(self.journal_id, number)
        self._dirty.set()

    def _full(self) -> bool:
        old = time.monotonic() - self._begun > self._segment_s and self._end.offset > HEADER_SIZE
        return old or self._end.offset >= self._segment_bytes

    def _cut(self) -> None:
        """Remove what a failed append left behind the end, or see to it that it never counts."""
        try:
            os.ftruncate(self._fd, self._end.offset)
        except OSError:
            self._torn = True

    def _told(self, failure: JournalError) -> JournalError:
        if self._on_failure is not None:
            self._on_failure(failure)
        return failure

    def _unwritable(self, error: OSError) -> JournalError:
        return JournalError(f"The journal in {self.directory} cannot be written: {error}")

    def _fsync_error(self, error: OSError) -> JournalError:
        return JournalError(f"The journal in {self.directory} could not be fsynced: {error}")

    def _fsync_failed(self, error: OSError) -> None:
        # The kernel forgets what it could not write: this file cannot be trusted to sync later.
        self._fsync_failure = self._told(self._fsync_error(error))
        log.error("Journal fsync failed; going on in a new segment", reason=str(error))
        self._dirty.set()
        try:
            self._begin_segment()
        except OSError as again:
            self._torn = True
            log.error("No new journal segment either", reason=str(again))


def _fsync_and_close(descriptors: Sequence[int], directory: Path | None, written: int = 0) -> None:
    """:param written: the last of them has at least so many bytes, by what was answered to the writes."""
    failure: OSError | None = None
    for fd in descriptors:
        try:
            os.fsync(fd)
            if fd == descriptors[-1] and (size := os.fstat(fd).st_size) < written:
                raise OSError(f"{size} bytes are in the file of {written} that were written")
        except OSError as error:
            failure = error
        os.close(fd)
    if directory is not None:
        fsync_path(directory)
    if failure is not None:
        raise failure
