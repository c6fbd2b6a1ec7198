"""Commands of this program as processes of their own, which can be killed, stalled and started again."""

import asyncio
import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Final

import psutil

from enhanced_websocket_service.errors import EwsError

PACKAGE_PARENT: Final = Path(__file__).resolve().parents[2]
POLL_S: Final = 0.03
_INHERITED: Final = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH")


_PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """In the child: a storm that is killed itself must leave nothing that hammers on (Linux)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class ChaosError(EwsError):
    """The storm could not be staged or brought to its end; says nothing about the service's data."""


def clean_environ(settings: Mapping[str, str]) -> dict[str, str]:
    """An environment with ``settings`` and nothing of the caller's own configuration in it."""
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {**kept, "PYTHONPATH": str(PACKAGE_PARENT), "COLUMNS": "200", **settings}


async def until(look: Callable[[], object], within_s: float, what: Callable[[], str] | str) -> None:
    """Return once ``look()`` is true.

    :raises ChaosError: after ``within_s`` real seconds, naming ``what`` was waited for.
    """
    deadline = monotonic() + within_s
    while not look():
        if monotonic() > deadline:
            told = what if isinstance(what, str) else what()
            raise ChaosError(f"Within {within_s:g} s there was no {told}")
        await asyncio.sleep(POLL_S)


class Program:
    """``python -m ARGUMENTS`` with its output in ``log``; may be started again after its end."""

    def __init__(
        self, name: str, arguments: Sequence[str], environ: Mapping[str, str], folder: Path
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.starts = 0
        self._arguments = tuple(arguments)
        self._environ = dict(environ)
        self._folder = folder  # no .env of the caller's lies here
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.starts += 1
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *self._arguments,
                cwd=self._folder,
                env=clean_environ(self._environ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the storm, which then stops the rest
                preexec_fn=_end_with_parent,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.returncode

    async def kill(self) -> None:
        if self.running:
            assert self._process is not None
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    def stall(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    async def stop(self, within_s: float = 40.0) -> int:
        """SIGTERM; the exit code. Killed, with an error, when it does not end in time."""
        assert self._process is not None
        self.go_on()
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(within_s):
                return await self._process.wait()
        except TimeoutError:
            await self.kill()
            raise ChaosError(
                f"{self.name} did not end within {within_s:g} s of SIGTERM:\n{self.tail()}"
            ) from None

    async def finished(self, within_s: float) -> int:
        """The exit code of a program that ends by itself."""
        await until(
            lambda: not self.running, within_s, lambda: f"end of {self.name}:\n{self.tail()}"
        )
        assert self.exit_code is not None
        return self.exit_code

    async def said(self, text: str, within_s: float = 40.0) -> str:
        """The first line of its output that contains ``text``."""

        def line() -> str | None:
            found = next((one for one in self.text().splitlines() if text in one), None)
            if found is None and not self.running:
                raise ChaosError(f"{self.name} ended with {self.exit_code}:\n{self.tail()}")
            return found

        await until(line, within_s, lambda: f"{text!r} from {self.name}:\n{self.tail()}")
        found = line()
        assert found is not None
        return found

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def tail(self, characters: int = 3000) -> str:
        return self.text()[-characters:] if self.log.exists() else "(it wrote nothing)"

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            assert self._process is not None
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


def family(pid: int) -> Iterator[psutil.Process]:
    """The process and its descendants, parents first; nothing when it has ended."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        yield parent
        yield from parent.children(recursive=True)


def scratch_folder(prefix: str) -> Path:
    """A new temporary folder that servers started by root, as another user, can pass through."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    folder.chmod(0o711)
    return folder
