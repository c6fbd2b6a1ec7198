"""The simulator as a server: the vendor's REST and WebSocket and the control paths on one port."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import Any

import structlog
import uvicorn

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import ConfigurationError

from .agenda import Agenda, Step
from .answers import Answer, Request, json_answer
from .control import PREFIX, Control
from .credits import plan_named
from .faults import FaultBoard
from .model import MarketSource
from .refusals import NOT_FOUND, handshake_refusal
from .rest import KeyRing, RestVendor, lower_params
from .sockets import EXTENSION, SimulatorSocket
from .stream import PriceStream
from .time_series import Limits

log = structlog.get_logger(__name__)

WS_PATH = "/v1/quotes/price"
_MOST_BODY_BYTES = 1_000_000

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True)
class SimulatorConfig:
    """What to simulate.

    :ivar market: the prices (``market_from_options``).
    :ivar plan: basic, grow, pro or ultra; on basic and grow only trial symbols stream.
    :ivar keys: the API keys that exist; ``None``: all but those that begin with ``invalid``.
    :ivar error_status_200: REST errors come with HTTP status 200.
    :ivar resend_last: the last price is sent again after a subscription.
    :ivar limits: row cap, latency of finished rows, zone of the exchange.
    :ivar seed: of everything random about the faults.
    :ivar faults: switched on from the start.
    :ivar script: faults that begin and end at instants of the clock.
    """

    market: MarketSource
    plan: str = "pro"
    keys: frozenset[str] | None = None
    error_status_200: bool = False
    resend_last: bool = True
    batch_limit: int = 120
    events_per_minute: int = 100
    limits: Limits = field(default_factory=Limits)
    seed: int = 0
    faults: Mapping[str, Any] = field(default_factory=dict)
    script: Sequence[Step] = ()


class Simulator:
    """A vendor on this machine, in this process. Time comes from ``clock`` alone.

    ``start``, then ``wait`` (or whatever else), then ``stop``. It installs no signal handlers.

    :raises BadFault: the configuration asks for a fault that does not exist, or in a wrong way.
    """

    def __init__(self, config: SimulatorConfig, clock: Clock) -> None:
        self._clock = clock
        self._faults = FaultBoard(config.seed)
        self._keys = KeyRing(config.keys)
        self._plan = plan = plan_named(config.plan)
        self._rest = RestVendor(
            config.market,
            plan,
            self._keys,
            self._faults,
            config.limits,
            error_status_200=config.error_status_200,
            batch_limit=config.batch_limit,
        )
        self._stream = PriceStream(
            config.market,
            clock,
            plan,
            self._faults,
            resend_last=config.resend_last,
            events_per_minute=config.events_per_minute,
            agenda=Agenda(config.script),
        )
        self._stream.inject(dict(config.faults))
        self._control = Control(self._stream, self._rest, self._faults, clock.now)
        self._stopping = asyncio.Event()
        self._host, self._port = "", 0
        self._server: uvicorn.Server | None = None
        self._pump: asyncio.Task[None] | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; port 0 takes a free one.

        :returns: the port.
        :raises ConfigurationError: when the address cannot be used.
        """
        listener = _bind(host, port)
        self._host, self._port = host, listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            proxy_headers=False,
            ws=SimulatorSocket,
            ws_max_size=_MOST_BODY_BYTES,
            ws_per_message_deflate=False,
            ws_ping_interval=None,
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=5,
        )
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listener])
        self._server = server
        self._pump = asyncio.create_task(self._stream.run(), name="simulator-stream")
        self._pump.add_done_callback(_report)
        log.info("The vendor simulator listens.", rest=self.rest_url, websocket=self.ws_url)
        return self._port

    async def wait(self) -> None:
        """Return after ``stop``; raise what ended the price stream, should that ever fail."""
        pump = self._pump
        if pump is None:
            return
        await asyncio.wait({pump})
        if not pump.cancelled():
            pump.result()

    async def stop(self) -> None:
        """Close every connection (1012 on sockets) and the port; twice is no harm."""
        self._stopping.set()
        pump, self._pump = self._pump, None
        if pump is not None:
            pump.cancel()
            await asyncio.wait({pump})
        server, self._server = self._server, None
        if server is not None:
            await server.shutdown()

    @property
    def rest_url(self) -> str:
        return f"http://{self._authority}"

    @property
    def ws_url(self) -> str:
        return f"ws://{self._authority}{WS_PATH}"

    def inject(self, faults: dict[str, Any]) -> None:
        """Set faults, like ``POST /_sim/faults``.

        :raises BadFault: unknown fault or bad value; the message lists the known ones.
        """
        self._stream.inject(faults)

    def status(self) -> dict[str, Any]:
        """The same as ``GET /_sim/status``."""
        return self._control.status()

    @property
    def _authority(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self._host, self._host)  # noqa: S104
        return f"[{host}]:{self._port}" if ":" in host else f"{host}:{self._port}"

    async def _app(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self._websocket(scope, receive, send)

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if body is None:
            await _respond(send, json_answer({"detail": "The body is too large."}, 413))
            return
        params = lower_params(scope["query_string"].decode("latin-1"))
        headers = _headers(scope)
        request = Request(scope["method"], scope["path"], params, _rest_key(params, headers), body)
        self._stream.advance(self._clock.now())
        if request.path.startswith(PREFIX):
            answer = self._control.answer(request)
        else:
            answer = await self._vendor(request, receive)
            answer = replace(answer, headers=(*answer.headers, ("date", self._date())))
        await _respond(send, answer)

    def _date(self) -> str:
        """The ``Date`` header, by the vendor's clock."""
        return formatdate(int(self._clock.now() + self._faults.clock_skew_s), usegmt=True)

    async def _vendor(self, request: Request, receive: Receive) -> Answer:
        """The vendor's REST answer, after all the delay that faults put before it."""
        if request.path == "/":
            return NOT_FOUND  # asked for its Date header only; no call of the API
        now = self._clock.now()
        known = request.path in self._rest.paths
        answer = self._rest.answer(request, now + self._faults.clock_skew_s)
        hangs = known and self._hangs(request.path)
        self._control.requests.add(request, answer, now, answered=not hangs)
        self._control.calls[request.path if known else "unknown"] += 1
        self._control.answers["none" if hangs else str(answer.status)] += 1
        if hangs:
            await self._until_gone(receive)
            return json_answer({"detail": "The simulator stops."}, 503)
        delay = self._faults.rest_delay_ms
        if delay is not None:
            ms = delay.drawn(self._faults.seed, "rest_delay_ms", sum(self._control.calls.values()))
            await asyncio.sleep(ms / 1000)
        return answer

    def _hangs(self, path: str) -> bool:
        fault = self._faults.rest_timeout
        if fault is None or (fault.paths is not None and path not in fault.paths):
            return False
        self._faults.spend("rest_timeout")
        return True

    async def _until_gone(self, receive: Receive) -> None:
        """Wait until the client gives up, or the simulator stops."""
        waits = {
            asyncio.create_task(_disconnected(receive), name="simulator-hanging-call"),
            asyncio.create_task(self._stopping.wait(), name="simulator-stopping"),
        }
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)

    async def _websocket(self, scope: Message, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        params = lower_params(scope["query_string"].decode("latin-1"))
        key = params.get("apikey") or _headers(scope).get("x-td-apikey")
        now = self._clock.now()
        self._stream.advance(now)
        if self._faults.hang_handshake:
            self._stream.door.handshake(now, key, 0)
            await _disconnected(receive)
            return
        refusal = self._handshake_refusal(scope["path"], key)
        if refusal is not None:
            self._stream.door.handshake(now, key, refusal.status)
            await _respond(send, refusal, "websocket.http.response")
            return
        assert key is not None
        await send({"type": "websocket.accept"})
        connection: SimulatorSocket = scope["extensions"][EXTENSION]
        connection.withhold_pong = self._stream.withhold_pong
        connection.dribbling = lambda: self._faults.slow_frames
        client = self._stream.join(key, connection)
        try:
            while (message := await receive())["type"] == "websocket.receive":
                self._stream.on_message(client, message.get("text"))
        finally:
            self._stream.leave(client)

    def _handshake_refusal(self, path: str, key: str | None) -> Answer | None:
        if path != WS_PATH:
            return NOT_FOUND
        fault = self._faults.refuse_handshake
        if fault is not None:
            self._faults.spend("refuse_handshake")
            return handshake_refusal(fault.status, self._plan, path)
        if not self._keys.knows(key):
            return handshake_refusal(401, self._plan, path)
        return None


async def _disconnected(receive: Receive) -> None:
    while not (await receive())["type"].endswith(".disconnect"):
        pass


def _report(pump: asyncio.Task[None]) -> None:
    if not pump.cancelled() and (error := pump.exception()) is not None:
        log.error("The simulated price stream failed; no more prices.", exc_info=error)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family, backlog=512)
        # asyncio sets this only on sockets that name their protocol; without it an answer waits
        # for the client's delayed ACK, 40 real ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"The simulator cannot listen on {host}:{port}: {error}. Choose another --port "
            "(0 takes a free one) or --host."
        ) from error


def _headers(scope: Message) -> dict[str, str]:
    return {
        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
    }


def _rest_key(params: dict[str, str], headers: dict[str, str]) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "apikey" and key.strip():
        return key.strip()
    return params.get("apikey")


async def _body(receive: Receive) -> bytes | None:
    """The request's body; ``None`` when it is too large."""
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > _MOST_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return body


async def _respond(send: Send, answer: Answer, kind: str = "http.response") -> None:
    headers = [
        (b"content-type", answer.content_type.encode()),
        (b"content-length", str(len(answer.body)).encode()),
        *((name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers),
    ]
    await send({"type": f"{kind}.start", "status": answer.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": answer.body})
