"""The private Valkey: start it, find it again, say how to reach it."""

import asyncio
import contextlib
import signal

import structlog

from enhanced_websocket_service.errors import EmbeddedError

from .installation import valkey_program
from .places import VALKEY_SOCKET, Places
from .process import ServerProcess

log = structlog.get_logger(__name__)

_POLL_S = 0.01
_PING_TIMEOUT_S = 1.0


class ValkeyServer:
    """Valkey on a Unix socket, saved to ``dump.rdb`` every five minutes with changes and at its stop."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._socket = places.run / VALKEY_SOCKET
        self._pidfile = places.valkey / "valkey.pid"
        self.process = ServerProcess(
            "valkey-server",
            cwd=places.valkey,
            record=places.base / "valkey.json",
            log_path=places.base / "valkey.log",
            account=places.account,
            stop_signal=signal.SIGTERM,
        )

    def find(self) -> bool:
        """Adopt the server an earlier owner left running."""
        try:
            pid = int(self._pidfile.read_text())
        except (OSError, ValueError):
            return self.process.find()
        return self.process.find(pid)

    def url(self) -> str:
        """For redis-py: ``unix://`` and the path of the socket."""
        return f"unix://{self._socket}?db=0"

    async def start(self, timeout_s: float, stop_timeout_s: float) -> str:
        """Return the URL once the server answers.

        :raises EmbeddedError: with the server's own words.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        if self.process.is_alive():
            try:
                await self._until_ready(min(deadline, loop.time() + stop_timeout_s))
            except EmbeddedError as error:
                log.warning("The server found does not answer; starting anew", reason=str(error))
                await self.process.stop(stop_timeout_s)
            else:
                return self.url()
        self.process.spawn(
            [
                *(valkey_program(self._places), "--port", "0", "--daemonize", "no"),
                *("--unixsocket", self._socket, "--unixsocketperm", "700"),
                *("--dir", self._places.valkey, "--pidfile", self._pidfile, "--logfile", ""),
                *("--loglevel", "notice", "--appendonly", "no", "--save", "300", "1"),
                # The bus is a cache: a full disk must stop neither its writes nor its end.
                *("--stop-writes-on-bgsave-error", "no"),
                *("--shutdown-on-sigterm", "default", "force"),
            ]
        )
        await self._until_ready(deadline)
        return self.url()

    async def _until_ready(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while not await self._answers():
            alive = self.process.is_alive()
            if not alive or loop.time() >= deadline:
                what = (
                    f"(pid {self.process.pid}) does not answer"
                    if alive
                    else f"ended at its start (exit code {self.process.exit_code()})"
                )
                raise EmbeddedError(
                    f"Valkey {what}. If it cannot read {self._places.valkey / 'dump.rdb'}, move that file "
                    f"away. Its log, {self.process.log.path}, says:\n{self.process.log.tail()}"
                )
            await asyncio.sleep(_POLL_S)

    async def _answers(self) -> bool:
        """Whether a PING is answered; a server that still loads its data answers with an error."""
        try:
            async with asyncio.timeout(_PING_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(str(self._socket))
                try:
                    writer.write(b"PING\r\n")
                    return await reader.readline() == b"+PONG\r\n"
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except (OSError, TimeoutError):
            return False
