"""The WebSocket endpoints: admission, then messages to the hub until the client has gone."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog
from fastapi import FastAPI, WebSocket
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocketDisconnect

from . import wire
from .admission import Admission
from .client import Client
from .frames import OUTLET_EXTENSION
from .hub import Hub, Mode
from .outlet import AsgiOutlet, Outlet
from .problems import Problem, problem_response
from .stored import Replay, StoredStream
from .travel import parse_travel
from .views import ServiceView

log = structlog.get_logger(__name__)

UNKNOWN_SYMBOL = 4404
BAD_REQUEST = 4400
TRY_LATER = 1013

_MODES: dict[str, Mode] = {"every": "every", "latest": "latest", "bars": "bars"}


class _Refused(Exception):
    def __init__(self, message: bytes, code: int) -> None:
        super().__init__(message)
        self.message, self.code = message, code


def add_websockets(app: FastAPI, view: ServiceView, hub: Hub, admission: Admission) -> None:
    """Add ``/ws`` and ``/ws/{symbol}``."""
    hub.stored = StoredStream(view)

    async def serve(websocket: WebSocket, name: str | None) -> None:
        address = websocket.client.host if websocket.client is not None else None
        headers = websocket.headers
        fault = admission.origin_fault(headers.getlist("origin"), headers.get("host", ""))
        if fault is not None:
            # Before the handshake (RFC 6455, 4.2.2): its page must not get a connection at all.
            admission.refused("origin", address, fault)
            await _deny(websocket, problem_response(view, 403, fault, "origin_not_allowed"))
            return
        await websocket.accept()
        refusal = admission.enter(address)
        if refusal is not None:
            admission.refused(refusal.code, address, refusal.message)
            await _refuse(websocket, _Refused(wire.error(*refusal), TRY_LATER))
            return
        leave, stays = partial(admission.leave, address), False
        try:
            stays = await _serve(websocket, hub, view, name, leave)
        finally:
            if not stays:
                leave()

    @app.get("/ws", include_in_schema=False)
    @app.get("/ws/{symbol:path}", include_in_schema=False)
    async def without_upgrade(request: Request) -> Response:
        # The answer must name the protocol, and say that this is for this connection (RFC 9110, 15.5.22).
        raise Problem(
            426,
            "upgrade_required",
            f"{request.url.path} speaks WebSocket: connect with a WebSocket client (ws:// or wss://). "
            "The protocol is in docs/reference/client-protocol.md, REST at /docs.",
            {"Upgrade": "websocket", "Connection": "Upgrade"},
        )

    @app.websocket("/ws")
    async def every_symbol(websocket: WebSocket) -> None:
        await serve(websocket, None)

    @app.websocket("/ws/{symbol:path}")
    async def one_symbol(websocket: WebSocket, symbol: str) -> None:
        await serve(websocket, symbol)


async def _deny(websocket: WebSocket, answer: Response) -> None:
    try:
        await websocket.send_denial_response(answer)
    except RuntimeError:  # a server without that extension: it answers with a bare 403
        await websocket.close()


async def _refuse(websocket: WebSocket, refusal: _Refused) -> None:
    """A browser shows no reason for a refused handshake: once accepted, explain, close."""
    with suppress(WebSocketDisconnect, RuntimeError):
        await websocket.send_text(refusal.message.decode())
        await websocket.close(refusal.code)


async def _serve(
    websocket: WebSocket,
    hub: Hub,
    view: ServiceView,
    name: str | None,
    when_lost: Callable[[], None],
) -> bool:
    """:returns: whether the connection outlives this task; ``when_lost`` is then called at its end."""
    try:
        wish = _admit(websocket, hub, view, name)
    except _Refused as refusal:
        await _refuse(websocket, refusal)
        return False
    outlet = websocket.scope.get("extensions", {}).get(OUTLET_EXTENSION)
    if outlet is not None:
        # No task waits for a client's messages: they go to the hub, and the outlet tells of the end.
        client = hub.connect(outlet, wish.symbols, wish.mode, wish.since, wish.travel)
        outlet.take_over(partial(hub.on_message, client), when_lost)
        return True
    await _converse_plainly(websocket, hub, wish)
    return False


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a client asked for by path and query."""

    symbols: list[str]
    mode: Mode
    since: list[wire.Resume]
    travel: Replay | None


def _admit(websocket: WebSocket, hub: Hub, view: ServiceView, name: str | None) -> _Wish:
    """What the client asked for; :raises _Refused: when it cannot be had.

    :param name: the symbol in the path; ``None``: all of them.
    """
    symbols = list(view.symbols) if name is None else [wire.normalise_symbol(name)]
    if name is not None and symbols[0] not in hub.symbols:
        raise _Refused(hub.unknown_symbol(name), UNKNOWN_SYMBOL)
    query = websocket.query_params
    mode = _MODES.get(query.get("mode", "every"))
    if mode is None:
        message = f"mode={query['mode'][:40]!r} is none of {', '.join(_MODES)}."
        raise _Refused(wire.error("bad_mode", message), BAD_REQUEST)
    since: dict[str, wire.Resume] = {}
    for text in query.getlist("since"):
        cursor = wire.parse_cursor(text, None if name is None else symbols[0])
        if isinstance(cursor, wire.Fault):
            raise _Refused(wire.error(cursor.code, cursor.message), BAD_REQUEST)
        symbol = wire.normalise_symbol(cursor.symbol)
        if symbol not in symbols:
            raise _Refused(hub.unknown_symbol(cursor.symbol), UNKNOWN_SYMBOL)
        since[symbol] = wire.Resume(symbol, cursor.epoch, cursor.offset)
    travel = parse_travel(query, view.now(), one_symbol=name is not None)
    if isinstance(travel, wire.Fault):
        raise _Refused(wire.error(travel.code, travel.message), BAD_REQUEST)
    return _Wish(symbols, mode, list(since.values()), travel)


async def _converse(websocket: WebSocket, hub: Hub, outlet: Outlet, wish: _Wish) -> None:
    client = hub.connect(outlet, wish.symbols, wish.mode, wish.since, wish.travel)
    try:
        await _listen(websocket, hub, client)
    finally:
        hub.drop(client)


async def _listen(websocket: WebSocket, hub: Hub, client: Client) -> None:
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        text = message.get("text")
        hub.on_message(client, message.get("bytes") or b"" if text is None else text)


async def _converse_plainly(websocket: WebSocket, hub: Hub, wish: _Wish) -> None:
    """The same over any ASGI server: a task sends what the hub writes."""
    outlet = AsgiOutlet(websocket.send)
    sender = asyncio.create_task(outlet.run(), name="websocket sender")
    listener = asyncio.create_task(
        _converse(websocket, hub, outlet, wish), name="websocket listener"
    )
    tasks = {sender, listener}
    try:
        # Whichever ends first ends the other: the sender by a close of ours, the listener by theirs.
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
