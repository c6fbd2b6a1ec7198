"""PostgreSQL and Valkey as the storm owns them: each alone, killed and stalled independently."""

import json
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

from enhanced_websocket_service.storage.embedded import EmbeddedServers

from .processes import ChaosError, family, until

GONE_WITHIN_S = 10.0


class Part:
    """One embedded server in a state folder of its own.

    Its owner is this process, not the service: either can die without the other.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.url = ""
        self._folder = folder
        self._servers = EmbeddedServers(folder)
        self._start: Callable[[], Awaitable[str]] = (
            self._servers.start_postgres if name == "postgres" else self._servers.start_valkey
        )
        self._stalled: list[psutil.Process] = []

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o711)
        await self._servers.__aenter__()
        try:
            await self.start()
        except BaseException:  # cancellation, too: without us nobody stops the servers
            await self._servers.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.go_on()
        await self._servers.stop()

    async def start(self) -> None:
        """Start it, again after a kill; returns once it answers."""
        self.url = await self._start()

    @property
    def pid(self) -> int:
        """Of the server, from the record its owner keeps."""
        try:
            record = json.loads((self._folder / "embedded" / f"{self.name}.json").read_text())
            return int(record["pid"])
        except (OSError, ValueError, KeyError) as error:
            raise ChaosError(f"Nothing tells the process of {self.name}: {error}") from error

    async def kill(self) -> None:
        """``kill -9`` to the server and its children, at once; returns when all are gone."""
        processes = list(family(self.pid))
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        await until(
            lambda: not any(_alive(one) for one in processes), GONE_WITHIN_S, f"end of {self.name}"
        )

    async def shut_down(self) -> None:
        """End it in order, as an administrator would (not waiting for clients to leave)."""
        process = psutil.Process(self.pid)
        process.send_signal(signal.SIGINT if self.name == "postgres" else signal.SIGTERM)
        await until(lambda: not _alive(process), GONE_WITHIN_S, f"end of {self.name}")

    def stall(self) -> None:
        # The children of PostgreSQL lead sessions of their own: each must be stopped by itself.
        for process in family(self.pid):
            with suppress(psutil.NoSuchProcess):
                process.suspend()
                self._stalled.append(process)

    def go_on(self) -> None:
        stalled, self._stalled = self._stalled, []
        for process in stalled:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
