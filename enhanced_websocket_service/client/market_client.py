"""The asynchronous client: connects, reads, comes back, goes on where it was."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from typing import Any, Final, Literal, Self
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidStatus,
    WebSocketException,
)

from .account import Account
from .events import Connected, Cursor, Disconnected, Event, ServerError

Mode = Literal["every", "latest", "bars"]

BAD_REQUEST: Final = 4400
UNKNOWN_SYMBOL: Final = 4404
_HOPELESS: Final = frozenset({1008, BAD_REQUEST, UNKNOWN_SYMBOL})
"""Close codes after which the same request would fail again."""
_TRY_AGAIN: Final = frozenset({408, 425, 429})


class RefusedByServer(Exception):
    """The server refuses what this client asks for; trying again would not help."""


class MarketClient:
    """``async for event in MarketClient(url)``: see ``events``.

    Leaving the loop ends the connection; ``async with`` does so at a moment of your choosing. Iterate
    only once at a time. A consumer that is slower than the market is a slow client to the server,
    which then skips ticks and says so: they come as ``Gap``. Nothing piles up here.

    :param url: ``ws://`` or ``wss://`` (``http://``, ``https://``), with or without the path ``/ws``.
    :param symbols: all that the server has when ``None``.
    :param since: where to go on: by symbol a ``Cursor`` or ``"EPOCH:OFFSET"``, as ``cursors`` gave it.
    :param mode: ``every`` tick, only the ``latest`` of several waiting ones, or ``bars`` without ticks.
    :param start: replay from this ISO 8601 time on, then go on live; for one symbol. After a lost
        connection it goes on where it was, at full speed.
    :param speed: times real pace for the replay; 0: as fast as possible.
    :param first_backoff_s: the longest wait before the first new try, real seconds; doubles each time
    :param longest_backoff_s: up to here. Each wait is a random part of it, so that a thousand clients
        do not come back in one moment.
    :param reconnect: ``False`` ends the iteration with the first connection.
    :param ping_s: a server that does not answer a ping for so long is gone; real seconds.
    """

    def __init__(
        self,
        url: str,
        symbols: Iterable[str] | None = None,
        since: Mapping[str, Cursor | str] | None = None,
        mode: Mode = "every",
        *,
        start: str | None = None,
        speed: float = 0.0,
        first_backoff_s: float = 0.5,
        longest_backoff_s: float = 30.0,
        reconnect: bool = True,
        ping_s: float = 20.0,
        open_timeout_s: float = 10.0,
        random_part: random.Random | None = None,
    ) -> None:
        self._base = _base(url)
        self._symbols = None if symbols is None else list(dict.fromkeys(map(_symbol, symbols)))
        if self._symbols == []:
            raise ValueError("symbols is empty: name some, or None for all of them.")
        if mode not in ("every", "latest", "bars"):
            raise ValueError(f"mode={mode!r} is none of every, latest, bars.")
        if start is not None and (self._symbols is None or len(self._symbols) != 1 or since):
            raise ValueError("start replays exactly one symbol, and needs no since.")
        self._mode = mode
        self._start, self._speed = start, speed
        self._backoff = (first_backoff_s, longest_backoff_s)
        self._reconnect = reconnect
        self._ping_s, self._open_timeout_s = ping_s, open_timeout_s
        self._random = random_part or random.Random()  # noqa: S311 - spreads clients, hides nothing
        cursors = {_symbol(s): _cursor(value) for s, value in (since or {}).items()}
        self._account = Account(every=mode == "every", symbols=self._symbols, cursors=cursors)
        self._account.travelling = start is not None
        self._shown = cursors
        self._events: AsyncGenerator[Event, None] | None = None

    @property
    def cursors(self) -> dict[str, Cursor]:
        """By symbol, how far the events yielded so far go: keep it to resume with ``since``."""
        return dict(self._shown)

    def __aiter__(self) -> AsyncIterator[Event]:
        if self._events is None:
            self._events = self._run()
        return self._events

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the connection and the iteration."""
        events, self._events = self._events, None
        if events is not None:
            await events.aclose()

    async def _run(self) -> AsyncGenerator[Event, None]:
        failures = 0
        while True:
            code: int | None = None
            explained: ServerError | None = None
            try:
                async with self._connect() as connection:
                    async for text in connection:
                        events = self._account.take(text)
                        for event in events:
                            if isinstance(event, Connected):
                                failures = 0
                                await self._leave_others(connection, text)
                            elif isinstance(event, ServerError):
                                explained = event
                            elif self._account.cursors:
                                self._start = None  # from here on the cursor says where we are
                                self._account.travelling = False
                            if event is events[-1]:  # not before: it would promise the rest
                                self._shown = dict(self._account.cursors)
                            yield event
                code, reason = connection.close_code, connection.close_reason or "closed"
            except ConnectionClosed as error:
                code, reason = (error.rcvd.code, str(error)) if error.rcvd else (None, str(error))
            except InvalidStatus as error:
                status = error.response.status_code
                if 400 <= status < 500 and status not in _TRY_AGAIN:
                    raise RefusedByServer(f"{self._base} answers HTTP {status}.") from error
                reason = str(error)
            except (OSError, TimeoutError, InvalidHandshake, WebSocketException) as error:
                reason = str(error) or type(error).__name__
            except ValueError as error:
                reason = str(error)  # what speaks there is not this protocol; it may be replaced
            if code in _HOPELESS:
                said = f": {explained.message}" if explained else "."
                raise RefusedByServer(f"{self._base} closed with {code}{said}")
            failures += 1
            wait = self._wait(failures)
            yield Disconnected(code=code, reason=reason, retry_in_s=wait)
            if not self._reconnect:
                return
            await asyncio.sleep(wait)

    def _connect(self) -> connect:
        return connect(
            self._address(),
            open_timeout=self._open_timeout_s,
            ping_interval=self._ping_s,
            ping_timeout=self._ping_s,
            max_queue=16,  # frames; more would only hide from the server that we are slow
            max_size=1 << 20,
        )

    def _address(self) -> str:
        query: list[tuple[str, str]] = [("mode", self._mode)]
        path = ""
        if self._symbols is not None and len(self._symbols) == 1:
            path = "/" + quote(self._symbols[0])
        if self._start is not None:
            query += [("from", self._start), ("speed", repr(self._speed))]
        else:
            query += [("since", f"{s}:{cursor}") for s, cursor in self._account.cursors.items()]
        return f"{self._base}{path}?{urlencode(query)}"

    async def _leave_others(self, connection: ClientConnection, welcome: str | bytes) -> None:
        """Unsubscribe from symbols nobody here asked for."""
        if self._symbols is None:
            return
        offered: list[str] = msgspec.json.decode(welcome)["symbols"]
        missing = [symbol for symbol in self._symbols if symbol not in offered]
        if missing:
            raise RefusedByServer(f"{self._base} does not serve {', '.join(missing)}.")
        others = [symbol for symbol in offered if symbol not in self._symbols]
        if others:
            request: dict[str, Any] = {"type": "unsubscribe", "symbols": others}
            await connection.send(msgspec.json.encode(request).decode())

    def _wait(self, failures: int) -> float:
        first, longest = self._backoff
        cap = min(longest, first * 2.0 ** min(failures - 1, 30))
        return cap * self._random.uniform(0.5, 1.0)


def _base(url: str) -> str:
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in ("ws", "wss") or not parts.netloc:
        raise ValueError(f"url={url!r} is not like ws://localhost:8080.")
    path = parts.path.rstrip("/")
    if not path.endswith("/ws"):
        path += "/ws"
    return urlunsplit((scheme, parts.netloc, path, "", ""))


def _symbol(text: str) -> str:
    return text.strip().upper().replace("/", "")


def _cursor(value: Cursor | str) -> Cursor:
    if isinstance(value, Cursor):
        return value
    epoch, _, offset = value.rpartition(":")
    try:
        return Cursor(int(epoch.rpartition(":")[2]), int(offset))
    except ValueError:
        raise ValueError(f"{value!r} is not EPOCH:OFFSET.") from None
