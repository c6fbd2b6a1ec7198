"""The key ledgers on file: what was spent today is still spent after a restart, and in other processes.

All processes with the same STATE_DIR share ``keys.json``. Every change of the ledgers happens between
reading the file and writing it, under a lock (``keys.lock``), before the call it is for is sent: a
service and an ``l0`` command that run at once spend one set of credits. What is counted is exchanged as
differences, so that nothing is lost when the lock or the file cannot be had for a while. Cost: some 0.2
ms a change; only the saves of ``keep`` wait for the disk.
"""

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.storage.atomic_file import PRIVATE, fsync_path
from enhanced_websocket_service.twelvedata.keys import KeyPool
from enhanced_websocket_service.twelvedata.spending import SavedPool

log = structlog.get_logger(__name__)

SAVE_EVERY_S = 10.0  # real seconds
LOCK_WITHIN_S = 0.25
"""Real seconds. A holder needs less than a millisecond; one that was stopped must not stop us too."""
LOCK_RETRY_S = 0.001
PART = "key ledgers"
"""As ``Failures`` calls them."""
FOREIGN = "file of the key ledgers"
"""As ``Failures`` calls what stood in the file and is no ledger."""
LOCK_AGAIN_S = 5.0
"""Real seconds for which nobody waits again for a lock that could not be had."""
_json = msgspec.json.Encoder()


class KeyLedgers:
    """``STATE_DIR/keys.json``. A file that cannot be used is reported and costs only knowledge.

    :param simulated: what a simulated vendor counts, or refuses, has a file of its own: it must not cost
        the same keys their credits with the real one.
    :param lock_within_s: how long this thread may stand still for the lock, real seconds.
    """

    def __init__(
        self,
        keys: KeyPool,
        state_dir: Path,
        clock: Clock,
        failures: Failures,
        *,
        simulated: bool = False,
        lock_within_s: float = LOCK_WITHIN_S,
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._simulated = simulated
        self._written = False
        name = "keys-simulated" if simulated else "keys"
        self._path = state_dir / f"{name}.json"
        self._lock = state_dir / f"{name}.lock"
        self._lock_within_s = lock_within_s
        self._impatient_until = 0.0  # monotonic
        self._failures = failures

    def sync(self) -> None:
        """Take over what others saved and save what is new here."""
        with self.shared():
            pass

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Changes of the pool inside are made on what all processes know, and known to all after."""
        with self._locked() as locked:
            readable = locked and self._read()
            yield
            if readable:
                self._write()

    async def keep(self) -> None:
        """Save durably now and then, with the waiting for the disk in a thread, until cancelled."""
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            self.sync()
            with contextlib.suppress(OSError):  # the sync has said what is wrong
                await asyncio.to_thread(fsync_path, self._path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bool]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
        except OSError as error:
            self._report(f"{self._lock}: {error}")
            yield False
            return
        try:
            # real time: another process's hold on the lock is no matter of the market's clock
            began = time.monotonic()
            deadline = began + self._lock_within_s if began >= self._impatient_until else began
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    locked = True
                    break
                except OSError as error:
                    if time.monotonic() > deadline:
                        self._impatient_until = time.monotonic() + LOCK_AGAIN_S
                        self._report(f"{self._lock} is held by another process ({error})")
                        locked = False
                        break
                    time.sleep(LOCK_RETRY_S)
            yield locked
        finally:
            os.close(descriptor)

    def _read(self) -> bool:
        """Whether the file was read, or may be written anew."""
        try:
            saved = msgspec.json.decode(self._path.read_bytes())
        except FileNotFoundError:
            return True
        except OSError as error:
            self._report(f"{self._path}: {error}")
            return False
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._foreign(str(error))
            return True
        # A simulated clock may be started anew at an earlier instant; once we have written it, the file
        # can only be ahead because the clock was set back.
        same = self._written or not self._simulated
        if not self._keys.import_state(saved, self._clock.now(), same_timeline=same):
            try:  # one of another (virtual) timeline is none of ours, and no fault
                msgspec.convert(saved, SavedPool)
            except msgspec.ValidationError as error:
                self._foreign(str(error))
        return True

    def _foreign(self, why: str) -> None:
        """Told as long as this process lives: the file itself is replaced at once."""
        self._failures.failed(
            FOREIGN,
            f"{self._path} was not used ({why}); it is written anew. What was spent before is not known: the "
            "vendor's refusals will tell.",
        )

    def _write(self) -> None:
        state = self._keys.export_state(self._clock.now())
        staged = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            # Not replace_file: no call shall wait for the disk. Readers see the old file or the new.
            descriptor = os.open(
                staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, PRIVATE
            )
            with os.fdopen(descriptor, "wb") as file:
                file.write(_json.encode(state))
            staged.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                staged.unlink(missing_ok=True)
            self._report(f"{self._path}: {error}")
            return
        self._keys.exported(state)
        self._written = True
        self._failures.succeeded(PART)

    def _report(self, problem: str) -> None:
        self._failures.failed(
            PART,
            f"{problem}. Credits are counted in this process alone: neither a restart nor an `l0` command "
            "would know of them. Make the files in STATE_DIR writable.",
        )
