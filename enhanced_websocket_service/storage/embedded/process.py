"""One server process: started by us, or found again after its owner died.

A process is *ours* when its name, its user and its working folder (the server's own data folder) fit;
a pid alone proves nothing, since pids are used again. Start time and owner stand on file beside the
pid, for people and for a quick check.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog

from enhanced_websocket_service.errors import EmbeddedError

log = structlog.get_logger(__name__)

_POLL_S = 0.01
_KILL_WAIT_S = 5.0
_START_TIME_TOLERANCE_S = 5.0  # psutil derives it from the boot time, which NTP may shift
_LOG_LIMIT_BYTES = 10_000_000


@dataclass(frozen=True)
class Account:
    """The unprivileged user the servers run as when we are root (PostgreSQL refuses root)."""

    uid: int
    gid: int


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path``; a reader sees the old or the new text, whatever dies in between."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def this_process() -> dict[str, float]:
    """Pid and start time (unix seconds) of this process, as they stand in the records."""
    return {"pid": os.getpid(), "created": psutil.Process().create_time()}


def find_process(pid: int, name: str, cwd: Path, uid: int) -> psutil.Process | None:
    """The process, if it is alive and named, owned and placed as expected; else ``None``."""
    try:
        process = psutil.Process(pid)
        fits = (
            process.status() != psutil.STATUS_ZOMBIE
            and process.name() == name
            and process.uids().effective == uid
            and process.cwd() == str(cwd)
        )
    except (psutil.Error, OSError, ValueError, OverflowError):
        return None
    return process if fits else None


def _runs(process: psutil.Process) -> bool:
    try:
        # Nobody may reap an adopted process (a container without init): a zombie is dead.
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


async def _frozen_family(parent: psutil.Process, deadline: float) -> list[psutil.Process]:
    """The process and its descendants, all stopped first: a running one could start another while
    the list is made (initdb does so all the time), and that one would live and write on."""
    family: list[psutil.Process] = []
    while asyncio.get_running_loop().time() < deadline:
        settled = all(_stopped(process) for process in family)
        found = [parent]
        with contextlib.suppress(psutil.NoSuchProcess):
            found += parent.children(recursive=True)
        new = [process for process in found if process not in family]
        if settled and not new:
            break
        for process in new:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        family += new
        await asyncio.sleep(_POLL_S)  # a signal takes a moment, a fork under way may still end
    return family


def _stopped(process: psutil.Process) -> bool:
    # In "disk sleep" is, too, who waits for its vfork child, stopped before that became a program.
    still = {psutil.STATUS_STOPPED, psutil.STATUS_DISK_SLEEP, psutil.STATUS_ZOMBIE}
    try:
        return process.status() in still
    except psutil.NoSuchProcess:
        return True


class LogFile:
    """A server's log. It lies in our own folder, never in the unprivileged user's: root appends to it,
    and a link planted there would make root write anywhere."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark = 0

    def open(self) -> int:
        """A descriptor to append to; ``tail`` then shows what comes after this moment."""
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_size > _LOG_LIMIT_BYTES:
                self.path.replace(self.path.with_suffix(".log.1"))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        descriptor = os.open(self.path, flags, 0o600)
        self._mark = os.fstat(descriptor).st_size
        return descriptor

    def tail(self, lines: int = 12) -> str:
        try:
            with self.path.open("rb") as file:
                file.seek(self._mark)
                text = file.read().decode(errors="replace")
        except OSError as error:
            return f"({self.path} cannot be read: {error.strerror})"
        return "\n".join(text.strip().splitlines()[-lines:])


class ServerProcess:
    """At most one live process of one server, and its record on disk.

    :param name: what the operating system calls the process, such as ``postgres``.
    :param cwd: its working folder, the mark by which it is found again.
    :param record: JSON file with pid, start time and owner.
    """

    def __init__(
        self,
        name: str,
        *,
        cwd: Path,
        record: Path,
        log_path: Path,
        account: Account | None,
        stop_signal: signal.Signals,
    ) -> None:
        self.name = name
        self.cwd = cwd
        self.log = LogFile(log_path)
        self._record = record
        self._account = account
        self._stop_signal = stop_signal
        self._process: psutil.Process | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._asked_to_stop = False

    @property
    def uid(self) -> int:
        return self._account.uid if self._account else os.geteuid()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self.is_alive() else None

    def find(self, *candidates: int | None) -> bool:
        """Adopt the server an earlier owner left: by our record, else by the server's own pid file.

        The pid file covers an owner that died between the start and the writing of the record.
        """
        if self.is_alive():
            return True
        recorded = self._recorded_pid()
        for pid in (recorded, *candidates):
            if pid is not None and (process := find_process(pid, self.name, self.cwd, self.uid)):
                self._process, self._child, self._asked_to_stop = process, None, False
                self._write_record(adopted=True)
                log.info("Found a server of an earlier owner", server=self.name, pid=pid)
                return True
        self._record.unlink(missing_ok=True)
        return False

    def spawn(self, argv: Sequence[str | Path]) -> None:
        """Start the server in a session of its own: Ctrl-C in the terminal must not stop it before
        the service has drained into it. Its environment holds none of our secrets."""
        identity = (
            {"user": self._account.uid, "group": self._account.gid, "extra_groups": []}
            if self._account
            else {}
        )
        output = self.log.open()
        try:
            self._child = subprocess.Popen(  # noqa: S603 a fixed program, no shell
                [str(argument) for argument in argv],
                cwd=self.cwd,
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                umask=0o077,
                **identity,  # type: ignore[call-overload]
            )
        except OSError as error:
            whom = f" as user {self._account.uid}" if self._account else ""
            raise EmbeddedError(
                f"{argv[0]} cannot be started{whom}: {error.strerror}. "
                "Set DATABASE_URL and REDIS_URL to use servers of your own."
            ) from error
        finally:
            os.close(output)
        self._process, self._asked_to_stop = psutil.Process(self._child.pid), False
        self._write_record(adopted=False)

    def is_alive(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None  # also reaps it
        if self._process is None:
            return False
        return _runs(self._process)

    def exit_code(self) -> int | None:
        return self._child.poll() if self._child else None

    async def wait_ended(self, timeout_s: float) -> bool:
        """Whether the process ended within ``timeout_s``. Cancellation leaves it as it is."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self.is_alive():
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def request_stop(self) -> None:
        """Ask once for an orderly stop; returns at once."""
        if self._process is not None and not self._asked_to_stop and self.is_alive():
            self._asked_to_stop = True
            with contextlib.suppress(psutil.NoSuchProcess):
                self._process.send_signal(self._stop_signal)

    async def stop(self, timeout_s: float) -> None:
        """Stop in order, by force after ``timeout_s``; the record goes with the process.

        :raises EmbeddedError: the process survives SIGKILL.
        """
        self.request_stop()
        if not await self.wait_ended(timeout_s):
            log.error(
                "A server did not stop in time and is killed",
                server=self.name,
                pid=self.pid,
                waited_s=timeout_s,
            )
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL to what is left of the process and its children, which have sessions of their own.

        Returns when the last of them is gone: what is deleted afterwards stays deleted.

        :raises EmbeddedError: one of them survives it.
        """
        if self._process is not None and self.is_alive():
            deadline = asyncio.get_running_loop().time() + _KILL_WAIT_S
            family = await _frozen_family(self._process, deadline)
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            while self.is_alive() or any(_runs(process) for process in family):
                if asyncio.get_running_loop().time() >= deadline:
                    raise EmbeddedError(f"{self.name} (pid {self._process.pid}) survives SIGKILL.")
                await asyncio.sleep(_POLL_S)
        self._process = self._child = None
        self._record.unlink(missing_ok=True)

    def _recorded_pid(self) -> int | None:
        try:
            record = json.loads(self._record.read_text())
            pid, created = int(record["pid"]), float(record["created"])
            if abs(psutil.Process(pid).create_time() - created) <= _START_TIME_TOLERANCE_S:
                return pid
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            pass  # no record, a broken one, or a pid that is gone or used again: not our server
        return None

    def _write_record(self, *, adopted: bool) -> None:
        assert self._process is not None
        try:
            created = self._process.create_time()
        except psutil.NoSuchProcess:
            return  # it ended already; whoever waits for it reports why
        record = {
            "server": self.name,
            "pid": self._process.pid,
            "created": created,
            "adopted": adopted,
            "owner": this_process(),
        }
        write_atomically(self._record, json.dumps(record))
