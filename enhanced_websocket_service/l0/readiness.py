"""The ready flag: how the L0 system, ours or the requester's own, says that history is complete.

Counts as ready: a JSON object with ``"ready": true``; an empty file that has not changed for two real
seconds (people ``touch`` it; ``echo ... > file`` empties it first, so an empty file may be half a
message). Everything else does not, and says why. All waiting here is in real time: it is about
files and people, not about the market.
"""

import asyncio
import json
import os
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from watchfiles import awatch

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import L0Error
from enhanced_websocket_service.market.calendar import iso_local
from enhanced_websocket_service.storage.atomic_file import SHARED, fsync_path, replace_file

log = structlog.get_logger(__name__)

FILE_NAME = "l0_ready.flag"
EMPTY_COUNTS_AFTER_S = 2.0
POLL_S = 2.0
SETTLING_POLL_S = 0.25
MAX_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class FlagState:
    """What the flag says. ``problem`` is a sentence, ``None`` only when ready."""

    exists: bool
    ready: bool
    problem: str | None
    timestamp: str | None = None  # as its writer put it; not interpreted
    settling: bool = False  # empty, but not yet for long enough
    blind: bool = False  # the folder does not show whether there is a flag, or what it says
    details: Mapping[str, Any] = field(default_factory=dict, compare=False)


def parse_flag(content: bytes, unchanged_s: float) -> FlagState:
    """Judge the content of a flag that has not changed for ``unchanged_s`` real seconds."""
    if len(content) > MAX_BYTES:
        return _refused(f"is larger than {MAX_BYTES} bytes; it should be a small JSON object.")
    if not content.strip():
        if unchanged_s >= EMPTY_COUNTS_AFTER_S:
            return FlagState(exists=True, ready=True, problem=None)
        return FlagState(
            exists=True,
            ready=False,
            settling=True,
            problem=f"The ready flag is empty; it counts once unchanged for {EMPTY_COUNTS_AFTER_S:g} s.",
        )
    try:
        document = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return _refused(f'is not valid JSON ({error}). Write {{"ready": true}}, or an empty file.')
    if not isinstance(document, dict):
        return _refused('is JSON but not an object. Write {"ready": true}.')
    if "ready" not in document:
        return _refused('has no field "ready". Write {"ready": true}.')
    stamp = document.get("timestamp")
    timestamp = stamp if isinstance(stamp, str) else None
    if document["ready"] is not True:
        said = json.dumps(document["ready"])[:40]
        return _refused(f'says "ready": {said}; only true counts.', timestamp, document)
    return FlagState(exists=True, ready=True, problem=None, timestamp=timestamp, details=document)


def _refused(
    what: str, timestamp: str | None = None, details: Mapping[str, Any] | None = None
) -> FlagState:
    return FlagState(
        exists=True,
        ready=False,
        problem=f"The ready flag {what}",
        timestamp=timestamp,
        details=details or {},
    )


class ReadyFlag:
    """``l0_ready.flag`` in ``directory`` (READY_SIGNALS_DIR)."""

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        *,
        real_time: Callable[[], float] = time.time,  # real time: compared with file stamps
        poll_s: float = POLL_S,
    ) -> None:
        self.directory = directory
        self.path = directory / FILE_NAME
        self._clock, self._real_time = clock, real_time
        self._poll_s = poll_s
        self._seen: tuple[tuple[int, int, int], float] | None = None
        self._told: tuple[int, int, int] | None = None  # the flag that the log knows of

    def read(self) -> FlagState:
        """The flag as it is now. Never raises for anything the file system holds."""
        try:
            content, unchanged_s = self._content()
        except FileNotFoundError:
            self._told = None  # the next one is another
            if not _is_folder(self.directory):
                return FlagState(
                    exists=False,
                    ready=False,
                    blind=True,
                    problem=f"READY_SIGNALS_DIR {self.directory} does not exist (or is no directory).",
                )
            return FlagState(
                exists=False,
                ready=False,
                problem=f"There is no ready flag at {self.path}; `l0 backfill` writes it.",
            )
        except OSError as error:
            return FlagState(
                exists=os.path.lexists(self.path),
                ready=False,
                blind=True,
                problem=f"The ready flag {self.path} cannot be read: {error.strerror or error}.",
            )
        return parse_flag(content, unchanged_s)

    def write(self, details: Mapping[str, Any] | None = None) -> None:
        """Say ready, atomically. Raises ``L0Error`` when the file cannot be written."""
        document = {
            "ready": True,
            "timestamp": iso_local(int(self._clock.now())),
            **(details or {}),
        }
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, json.dumps(document).encode() + b"\n", SHARED)
        except OSError as error:
            raise L0Error(self._unwritable("write", error)) from error

    def withdraw(self) -> bool:
        """Remove the flag; whether there was one. Raises ``L0Error`` when it cannot be removed."""
        try:
            self.path.unlink()
            fsync_path(self.directory)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise L0Error(self._unwritable("remove", error)) from error
        return True

    async def wait(self, on_change: Callable[[FlagState], None]) -> FlagState:
        """Return once the flag says ready; ``on_change`` hears the first state and every new one.

        File events wake it at once; a poll every two real seconds covers network file systems and
        directories that come later. Cancellation ends the watching thread before it propagates.
        """
        stop, changed = asyncio.Event(), asyncio.Event()
        watcher = asyncio.create_task(self._watch(stop, changed), name="l0-flag-watch")
        previous: FlagState | None = None
        try:
            while True:
                changed.clear()
                state = self.read()
                if state != previous:
                    on_change(state)
                    previous = state
                if state.ready:
                    self._tell()
                    return state
                pause = min(self._poll_s, SETTLING_POLL_S) if state.settling else self._poll_s
                await _wait(changed, pause)
        finally:
            # The event, not cancel(): the watching thread looks at it every 50 ms, while a
            # cancelled awatch keeps its thread for up to five seconds.
            stop.set()
            await asyncio.shield(watcher)

    def _tell(self) -> None:
        """Log the flag that was just read: once, however often it is waited for."""
        assert self._seen is not None
        if self._seen[0] != self._told:
            log.info("L0 ready signal detected", path=str(self.path))
            self._told = self._seen[0]

    async def _watch(self, stop: asyncio.Event, changed: asyncio.Event) -> None:
        complained = False
        while not stop.is_set():
            if _is_folder(self.directory):
                try:
                    async with aclosing(
                        awatch(self.directory, stop_event=stop, debounce=50, recursive=False)
                    ) as changes:
                        async for _ in changes:
                            changed.set()
                # RuntimeError: what the watcher raises for the kernel's refusals. The poll covers.
                except (OSError, RuntimeError) as error:
                    if not complained:
                        complained = True
                        log.warning("file events are unavailable, polling", error=str(error))
            await _wait(stop, self._poll_s)

    def _content(self) -> tuple[bytes, float]:
        # O_NONBLOCK: opening a FIFO that somebody put there must not hang the service.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError("it is not a regular file")
            content = b""
            while chunk := os.read(descriptor, MAX_BYTES + 1 - len(content)):
                content += chunk
        finally:
            os.close(descriptor)
        return content, self._unchanged(status)

    def _unchanged(self, status: os.stat_result) -> float:
        """Real seconds since the last change: by its stamp or, for stamps ahead of us, by watching."""
        identity = (status.st_mtime_ns, status.st_size, status.st_ino)
        now = time.monotonic()
        if self._seen is None or self._seen[0] != identity:
            self._seen = (identity, now)
        return max(self._real_time() - status.st_mtime, now - self._seen[1])

    def _unwritable(self, verb: str, error: OSError) -> str:
        return (
            f"READY_SIGNALS_DIR: cannot {verb} {self.path}: {error.strerror or error}. "
            "Make the directory writable, or set READY_SIGNALS_DIR."
        )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # no right to look, or a file system that is gone
        return False


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Return when ``event`` is set or ``seconds`` of real time have passed."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
