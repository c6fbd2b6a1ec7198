"""`EmbeddedServers`: one owner at a time for the private servers of one state folder.

Invariants:

- One live owner per state folder: a lock on ``embedded/owner.lock``, held for life, dies with its holder.
- Whoever holds the lock answers for every server of the folder, also for those an owner killed by
  ``kill -9`` left behind: they are found at the start, used again, and stopped at the end.
- The servers live in sessions of their own, so Ctrl-C reaches the service, not them.

Not owned here: schemas, migrations, connections of the service.
"""

import asyncio
import contextlib
import fcntl
import functools
import json
import os
import shutil
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import structlog

from enhanced_websocket_service.errors import EmbeddedError

from .keeper import keep_running
from .places import Places, make_base, settle
from .postgres import PostgresServer
from .process import this_process
from .valkey import ValkeyServer

if TYPE_CHECKING:
    from enhanced_websocket_service.failures import Failures

log = structlog.get_logger(__name__)

_CANCEL_AGAIN_S = 0.25


class EmbeddedServers:
    """PostgreSQL and Valkey, private to ``state_dir``; nothing starts before it is asked for.

    :param state_dir: created if absent; the same folder gives the same data again.
    :param durable: ``False`` lets PostgreSQL forget on a machine crash what it said to have stored.
    :param start_timeout_s: real seconds a server may take until it answers (recovery included).
    :param stop_timeout_s: real seconds for an orderly end before SIGKILL.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        durable: bool = True,
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 15.0,
    ) -> None:
        self.state_dir = state_dir.expanduser().resolve()
        self._durable = durable
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._lock: int | None = None
        self._places: Places | None = None
        self._postgres: PostgresServer | None = None
        self._valkey: ValkeyServer | None = None
        self._database: str | None = None  # the one last asked for, once PostgreSQL was started
        self._has_valkey = False

    async def __aenter__(self) -> Self:
        """Take the state folder and find what runs in it.

        :raises EmbeddedError: the folder cannot be used, or another process has it.
        """
        self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start_postgres(self, database: str = "usdcop_trading") -> str:
        """Start or find PostgreSQL; the DSN works with asyncpg and psql, for this user's processes.

        :raises EmbeddedError: saying what failed, where, in the server's words.
        """
        self._open()
        assert self._postgres
        url = await self._guarded(
            self._postgres.start(database, self._start_timeout_s, self._stop_timeout_s)
        )
        self._database = database
        return url

    async def start_valkey(self) -> str:
        """Start or find Valkey; the URL (``unix://...``) is redis-py's.

        :raises EmbeddedError: saying what failed, where, in the server's words.
        """
        self._open()
        assert self._valkey
        url = await self._guarded(self._valkey.start(self._start_timeout_s, self._stop_timeout_s))
        self._has_valkey = True
        return url

    @contextlib.asynccontextmanager
    async def kept_running(self, failures: "Failures") -> AsyncIterator[None]:
        """Meanwhile each server started so far is started again, at the same address, when it dies.

        :param failures: told from its end until it answers again.
        """
        keepers = []
        if self._database is not None:
            assert self._postgres
            start = functools.partial(self.start_postgres, self._database)
            keepers.append(keep_running("PostgreSQL", self._postgres.process, start, failures))
        if self._has_valkey:
            assert self._valkey
            keepers.append(
                keep_running("Valkey", self._valkey.process, self.start_valkey, failures)
            )
        tasks = [asyncio.create_task(keeper, name="embedded-keeper") for keeper in keepers]
        try:
            yield
        finally:
            # Before the servers are stopped: a death at that moment must not begin another life.
            while any(not task.done() for task in tasks):
                for task in tasks:
                    task.cancel()  # again and again: a library may swallow one
                await asyncio.wait(tasks, timeout=_CANCEL_AGAIN_S)

    async def stop(self) -> None:
        """Stop every server of the folder, adopted ones too, and release the folder. Idempotent.

        Both are asked before either is awaited: cancelled midway, both still end.

        :raises EmbeddedError: a process survived even SIGKILL.
        """
        if self._lock is None:
            return
        assert self._places
        assert self._postgres
        assert self._valkey
        processes = [*self._postgres.processes, self._valkey.process]
        for process in processes:
            process.request_stop()
        faults: list[EmbeddedError] = []
        try:
            for process in processes:
                try:
                    await process.stop(self._stop_timeout_s)
                except EmbeddedError as error:
                    faults.append(error)
        finally:
            if not any(process.is_alive() for process in processes):
                self._places.drop_socket_dir()
            self._release()
        if faults:
            raise EmbeddedError(" ".join(map(str, faults)))

    async def erase(self) -> None:
        """Stop everything and delete all data of the embedded servers; irrevocable."""
        self._open()
        assert self._places
        folders = [*self._places.outside(), self._places.base]
        await self.stop()
        for folder in folders:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _guarded(self, starting: Coroutine[Any, Any, str]) -> str:
        try:
            return await starting
        except OSError as error:
            raise self._unusable(error) from error

    def _open(self) -> None:
        if self._lock is not None:
            return
        try:
            base, account = make_base(self.state_dir)
            self._take_lock(base / "owner.lock")
            self._places = settle(base, account)
            self._postgres = PostgresServer(self._places, durable=self._durable)
            self._valkey = ValkeyServer(self._places)
            self._postgres.find()
            self._valkey.find()
        except OSError as error:
            self._release()
            raise self._unusable(error) from error
        except EmbeddedError:
            self._release()
            raise

    def _take_lock(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.closing(os.fdopen(descriptor)) as file:
                holder = file.read()
            raise EmbeddedError(
                f"{self.state_dir} is in use by {_describe(holder)}. "
                "Stop that process, give this one another --state-dir (STATE_DIR), or set "
                "DATABASE_URL to the address that process printed."
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(this_process()).encode(), 0)
        self._lock = descriptor

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)  # the lock goes with the descriptor
            self._lock = None

    def _unusable(self, error: OSError) -> EmbeddedError:
        return EmbeddedError(
            f"The state folder {self.state_dir} cannot be used: {error.strerror or error} "
            f"({error.filename or self.state_dir}). Make it writable, or give another --state-dir."
        )


def _describe(holder: str) -> str:
    try:
        return f"process {int(json.loads(holder)['pid'])}"
    except (ValueError, KeyError, TypeError):
        return "another process"  # it has the lock, but has not written its name yet
