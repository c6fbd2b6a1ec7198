"""uvicorn as a component of our own event loop: started, watched and stopped like any other."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import structlog
import uvicorn
from starlette.types import ASGIApp

from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.telemetry import Metrics

from .admission import Admission
from .direct import SocketPool
from .frames import FrameProtocol
from .http_guard import GuardedHttp
from .limits import Limits
from .listening import BACKLOG, certificate_faults, listen
from .open_files import allow_files

log = structlog.get_logger(__name__)

_FILES_OF_OUR_OWN = 256
"""Databases, journal, logs, the vendor's connections."""


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: stopping is the service's decision.

    :param handshake_s: real seconds for a TLS handshake, for which uvicorn has no setting.
    """

    def __init__(self, config: uvicorn.Config, handshake_s: float) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self._handshake_s = handshake_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        loop, tls = asyncio.get_running_loop(), self.config.ssl
        for listener in sockets or []:
            server = await loop.create_server(
                self._make_protocol,
                sock=listener,
                ssl=tls,
                ssl_handshake_timeout=None if tls is None else self._handshake_s,
                backlog=BACKLOG,
            )
            self.servers.append(server)
        self.ready.set()

    def _make_protocol(self) -> asyncio.Protocol:
        make = cast(Any, self.config.http_protocol_class)
        protocol: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


class ApiServer:
    """Serves ``app`` on ``host:port``, with TLS when a certificate is given.

    :param port: 0 takes a free one; ``port`` tells which after ``start``.
    :param admission: who may connect, and the limits on what connections may cost.
    :param trusted_proxies: whose ``X-Forwarded-For`` names the client.
    :param compression: permessage-deflate for clients that offer it.
    :param ping_interval_s: real seconds between pings; a client that does not answer one within
        ``ping_timeout_s`` is closed. ``None`` sends none.
    :param shutdown_timeout_s: real seconds that requests and goodbyes may take in ``stop``.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        *,
        admission: Admission | None = None,
        trusted_proxies: Sequence[str] = (),
        compression: bool = True,
        ssl_cert: Path | None = None,
        ssl_key: Path | None = None,
        ping_interval_s: float | None = 20.0,
        ping_timeout_s: float | None = 20.0,
        shutdown_timeout_s: int = 5,
    ) -> None:
        self.host, self.port = host, port
        self._app = app
        self._cert, self._key = ssl_cert, ssl_key
        self.admission = admission or Admission(Limits(), Metrics())
        self._proxies = ",".join(trusted_proxies)
        self._deflate = compression
        self._pings = (ping_interval_s, ping_timeout_s)
        self._shutdown_timeout_s = shutdown_timeout_s
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where to reach the server from this machine."""
        scheme = "https" if self._cert is not None else "http"
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)  # noqa: S104
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def start(self) -> int:
        """Listen; returns the port once connections are accepted.

        :raises ConfigurationError: the address is taken or not ours, or the certificate is bad.
        """
        if faults := certificate_faults(self._cert, self._key):
            raise ConfigurationError(*faults)
        self._make_room()
        listener = listen(self.host, self.port)
        self.port = listener.getsockname()[1]
        try:
            server = _Server(self._config(), self.admission.limits.handshake_s)
        except (OSError, ValueError, ssl.SSLError):
            listener.close()
            raise
        task = asyncio.create_task(server.serve(sockets=[listener]), name="api server")
        ready = asyncio.create_task(server.ready.wait(), name="api server start")
        try:
            await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if not server.ready.is_set():
            listener.close()
            await task  # raises what prevented the start
            raise ConfigurationError(f"The server on {self.url} did not start.")
        self._server, self._task = server, task
        log.info("Serving clients", url=self.url)
        return self.port

    async def wait(self) -> None:
        """Return when the server has stopped; raises what killed it."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def stop(self) -> None:
        """Stop accepting, end the connections, and return when the port is free. Repeatable."""
        server, task = self._server, self._task
        if server is None or task is None:
            return
        self._server = self._task = None
        server.should_exit = True
        try:
            async with asyncio.timeout(self._shutdown_timeout_s + 2):
                await asyncio.shield(task)
        except TimeoutError:
            server.force_exit = True
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        # uvicorn gives up on a peer that never answers its goodbye, but leaves the socket open.
        for connection in list(server.server_state.connections):
            connection.transport.abort()

    def _config(self) -> uvicorn.Config:
        interval, timeout = self._pings
        return uvicorn.Config(
            self._app,
            host=self.host,
            port=self.port,
            loop="none",
            # uvicorn calls what it gets here; their own parameters are bound beforehand.
            http=cast(Any, partial(GuardedHttp, admission=self.admission)),
            ws=cast(
                Any,
                partial(
                    FrameProtocol,
                    sockets=SocketPool(),
                    admission=self.admission,
                    deflate=self._deflate,
                ),
            ),
            ws_max_size=self.admission.limits.message_bytes,
            ws_ping_interval=interval,
            ws_ping_timeout=timeout,
            # Ours keeps no context per client (deflate.py).
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=bool(self._proxies),
            forwarded_allow_ips=self._proxies or None,
            timeout_graceful_shutdown=self._shutdown_timeout_s,
            ssl_certfile=self._cert,
            ssl_keyfile=self._key,
        )

    def _make_room(self) -> None:
        """Ask the operating system for a file per connection, and be content with what it gives."""
        wanted = self.admission.connections_max + _FILES_OF_OUR_OWN
        granted = allow_files(wanted)
        if granted is None or granted >= wanted:
            return
        self.admission.connections_max = max(1, granted - _FILES_OF_OUR_OWN)
        # A little less than the default is no worry of anybody's who runs a demo.
        tell = log.warning if granted < wanted // 2 else log.info
        tell(
            "Fewer clients than MAX_CLIENTS can connect: the limit on open files is too low. "
            "Raise it (ulimit -n, LimitNOFILE, or ulimits in compose)",
            open_files=granted,
            connections=self.admission.connections_max,
        )
