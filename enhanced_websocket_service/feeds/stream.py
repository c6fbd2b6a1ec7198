"""The vendor's socket as a feed: connect, subscribe, keep alive, notice silence, come back.

Owns: one connection at a time and the decision when to give it up. Does not own: what frames mean
(``twelvedata.protocol``), what happens meanwhile (``failover``). Rules:

- heartbeats and pongs are not data: only a usable price resets the watchdog;
- a socket mute from birth is silent from the moment it should have spoken, not after a first price;
- back-off is capped, jittered, and resets only after real data: a price that is not the first one
  after a subscription, since the vendor re-sends its last price there.
"""

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import NotEntitled
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.telemetry import REDACTED, Metrics
from enhanced_websocket_service.twelvedata import protocol
from enhanced_websocket_service.twelvedata.answers import classify_error
from enhanced_websocket_service.twelvedata.backoff import Backoff
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool
from enhanced_websocket_service.twelvedata.rest import is_loopback_url

from .base import BackgroundFeed, FeedStatus, Verdict

log = structlog.get_logger(__name__)

# Real seconds: what networks, this machine's scheduler and a busy event loop need.
OPEN_TIMEOUT_REAL_S = 10.0
CLOSE_TIMEOUT_REAL_S = 1.0
PING_INTERVAL_REAL_S = 15.0
PING_TIMEOUT_REAL_S = 10.0
SILENCE_AT_LEAST_REAL_S = 3.0
HEARTBEAT_AT_LEAST_REAL_S = 1.0
CHECK_AT_LEAST_REAL_S = 0.2
RETRY_AT_LEAST_REAL_S = 0.05

MAX_FRAME_BYTES = 1_048_576
QUEUED_FRAMES = (4096, 1024)
"""Frames read ahead before the socket is paused, and how few before it goes on."""
KINDS_REMEMBERED = 100
"""Unknown kinds of frames are logged once each; beyond this many they are only counted."""

EVICTION_CODES = frozenset({1000, 1008})
"""Closed on purpose: another process uses the key, or a policy forbids it. Try the next key."""

Failure = Literal["refused", "unentitled", "disconnected", "silent"]


class StreamEvent(msgspec.Struct, frozen=True):
    """Why some symbols cannot be had from the stream now."""

    kind: Failure
    symbols: tuple[str, ...]
    message: str
    at: float  # unix seconds UTC


class _Lost(Exception):
    """The connection is over."""

    def __init__(self, kind: Failure, message: str, *, rotate: bool = False) -> None:
        self.kind: Failure = kind
        self.rotate = rotate  # the fault may be the key's: try the next one
        super().__init__(message)


class _Connect(connect):
    """Redirects are refused: the key must not travel to wherever they point."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class StreamFeed(BackgroundFeed):
    """Quotes of ``symbols`` from the vendor's socket, reconnecting for ever.

    ``silence_s`` and ``heartbeat_s`` are seconds of the clock, stretched where real time needs it.

    :param is_open: whether prices are due at an instant; outside, silence is no fault.
    :param on_event: told of every failure at once, before the next attempt; must not block.
    """

    def __init__(
        self,
        ws_url: str,
        keys: KeyPool,
        symbols: Sequence[str],
        clock: Clock,
        provider: Provider,
        metrics: Metrics,
        *,
        heartbeat_s: float = 10.0,
        silence_s: float = 90.0,
        backoff_cap_s: float = 60.0,
        is_open: Callable[[float], bool] = lambda _: True,
        on_event: Callable[[StreamEvent], None] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__("feed-stream")
        self.symbols = tuple(symbols)
        self._wanted = frozenset(symbols)
        self.on_event = on_event
        self._url = ws_url
        self._keys = keys
        self._clock = clock
        self._source = provider.websocket
        self._metrics = metrics
        self._price_frames = metrics.vendor_frames.labels("price")
        self._heartbeat_s = heartbeat_s
        self._silence_s = silence_s
        self._is_open = is_open
        self._backoff = Backoff(cap=backoff_cap_s, jitter=jitter)
        self._kinds: set[str] = set()
        # The current connection.
        self.connected = False
        self._answered = False  # to our subscription
        self._delivered = False  # at least one usable price
        self._heard = 0.0  # the last usable price, or when the first one became due
        self._first: set[str] = set()  # symbols whose first price since the subscription is due
        self._subscribed: frozenset[str] = frozenset()
        self._refused: frozenset[str] = frozenset()
        # Since the start.
        self._attempts = 0
        self._last_error: str | None = None
        self._last_quote_at: float | None = None

    def status(self) -> FeedStatus:
        verdict, detail = self._verdict()
        return FeedStatus(
            source=self._source,
            websocket_connected=self.connected,
            verdict=verdict,
            detail=detail,
            reconnects=max(0, self._attempts - 1),
            last_error=self._last_error,
            last_quote_at=self._last_quote_at,
            subscribed=tuple(sorted(self._subscribed)),
            refused=tuple(sorted(self._refused)),
        )

    def _verdict(self) -> tuple[Verdict, str]:
        now = self._clock.now()
        if not self.running:
            return "closed", "the feed is not running"
        if not self._is_open(now):
            return "closed", "the market is closed"
        if not self.connected:
            if self._last_error is None:
                return "suspect", "connecting"
            return "dead", self._last_error
        silence = now - self._heard
        limit = self._silence_limit()
        if not self._delivered and silence <= limit:
            # Connecting proves nothing: after a failure only a price does.
            return "suspect" if self._last_error else "quiet", "connected, no price yet"
        detail = f"{max(0.0, silence):.0f} s since the last price"
        if silence > limit:
            return "dead", detail
        if silence > limit / 2:
            return "suspect", detail
        return ("quiet" if silence > limit / 6 else "live"), detail

    async def _run(self) -> None:
        rotate = False
        try:
            while True:
                key = self._keys.stream_key(rotate=rotate)
                if key is None:
                    lost = _Lost("refused", "every API key is disabled; check the settings")
                else:
                    self._attempts += 1
                    if self._attempts > 1:
                        self._metrics.feed_reconnects.inc()
                    lost = await self._connection(key)
                rotate = lost.rotate
                retry_s = self._backoff.next()
                self._report(lost, key, retry_s)
                await self._taken()
                await self._clock.sleep(self._clock.span(retry_s, RETRY_AT_LEAST_REAL_S))
        finally:
            self._disconnected()

    async def _connection(self, key: ApiKey) -> _Lost:
        """One connection from handshake to end; says why it ended."""
        try:
            async with _Connect(
                self._url,
                additional_headers={"X-TD-APIKEY": key.secret},
                compression=None,
                proxy=None if is_loopback_url(self._url) else True,
                open_timeout=OPEN_TIMEOUT_REAL_S,
                close_timeout=CLOSE_TIMEOUT_REAL_S,
                ping_interval=PING_INTERVAL_REAL_S,
                ping_timeout=PING_TIMEOUT_REAL_S,
                max_size=MAX_FRAME_BYTES,
                max_queue=QUEUED_FRAMES,
            ) as socket:
                lost = await self._converse(socket, key)
                # Before the closing handshake: nobody shall wait for a socket known to be dead.
                self._disconnected()
                return lost
        except InvalidStatus as error:
            return self._refused_handshake(error, key)
        except TimeoutError:
            return _Lost("disconnected", f"no connection within {OPEN_TIMEOUT_REAL_S:g} s")
        except ConnectionClosed as error:
            return _closed(error)
        except (OSError, WebSocketException) as error:
            return _Lost("disconnected", f"{type(error).__name__}: {error}")
        finally:
            self._disconnected()

    async def _converse(self, socket: ClientConnection, key: ApiKey) -> _Lost:
        lost: _Lost | None = None
        self.connected, self._answered, self._delivered = True, False, False
        self._heard = self._clock.now()
        self._metrics.feed_connected.set(1)
        log.info("Connected to the vendor's stream", key=key.label, symbols=self.symbols)
        try:
            async with asyncio.TaskGroup() as group:
                await socket.send(protocol.subscribe(self.symbols))
                group.create_task(self._send_heartbeats(socket), name="feed-stream-heartbeat")
                group.create_task(self._watch(), name="feed-stream-watchdog")
                await self._read(socket, key)
        except* _Lost as failures:
            lost = next(one for one in failures.exceptions if isinstance(one, _Lost))
        except* ConnectionClosed as failures:
            one = failures.exceptions[0]
            if lost is None and isinstance(one, ConnectionClosed):
                lost = _closed(one)
        return lost or _Lost("disconnected", "the connection ended")

    async def _send_heartbeats(self, socket: ClientConnection) -> None:
        clock = self._clock
        while True:
            await clock.sleep(clock.span(self._heartbeat_s, HEARTBEAT_AT_LEAST_REAL_S))
            try:
                await socket.send(protocol.heartbeat())
            except ConnectionClosed:
                return  # the reader says why

    async def _watch(self) -> None:
        """Raise ``_Lost`` when prices are due and none came for the limit."""
        clock, strikes = self._clock, 0
        began = clock.now()
        while True:
            await clock.sleep(clock.span(min(5.0, self._silence_s / 6), CHECK_AT_LEAST_REAL_S))
            now = clock.now()
            if self._held_up:
                self._heard = began = now  # we are not reading: the silence is ours
                continue
            limit = self._silence_limit()
            unanswered = not self._answered and now - began > limit
            if not self._is_open(now) and not unanswered:
                self._heard = max(self._heard, now)
            silence = now - self._heard
            # Twice in a row: after a stall of this process the reader gets its turn first.
            strikes = strikes + 1 if unanswered or silence > limit else 0
            if strikes >= 2:
                what = "answer to the subscription" if unanswered else "price"
                since = now - (began if unanswered else self._heard)
                raise _Lost("silent", f"no {what} for {since:.0f} s")

    async def _read(self, socket: ClientConnection, key: ApiKey) -> None:
        while True:
            # Bytes: text that is not UTF-8 shall be one bad frame, not the end of the connection.
            data = await socket.recv(decode=False)
            quotes: list[Quote] = []
            for frame in protocol.parse_frame(data, self._clock.now(), self._source):
                if isinstance(frame, Quote):
                    quotes += self._on_quote(frame)
                else:
                    self._on_other(frame, key)
            if quotes:
                await self._deliver(quotes)

    def _on_quote(self, quote: Quote) -> tuple[Quote, ...]:
        self._price_frames.inc()
        symbol = quote.symbol
        if symbol not in self._wanted:
            self._once("foreign_symbol", symbol, "Price of a symbol that was not subscribed")
            return ()
        if quote.raw or not (math.isfinite(quote.price) and quote.price > 0):
            return (quote,)  # validation stores it; it proves nothing
        self._answered = self._delivered = True
        self._heard = self._last_quote_at = quote.received_at
        if symbol in self._first:
            self._first.discard(symbol)
            return (msgspec.structs.replace(quote, first_after_subscribe=True),)
        self._backoff.reset()
        return (quote,)

    def _on_other(self, frame: protocol.Frame, key: ApiKey) -> None:
        count = self._metrics.vendor_frames.labels
        match frame:
            case protocol.SubscribeStatus():
                count("subscribe_status").inc()
                self._on_subscribed(frame, key)
            case protocol.Heartbeat():
                count("heartbeat").inc()
            case protocol.StatusMessage():
                count("status").inc()
                if frame.status != "ok":
                    kind = f"{frame.event}:{frame.status}:{frame.code}"
                    self._once("status", kind, "The vendor reports a fault", said=frame.message)
            case protocol.Malformed():
                self._once(
                    "malformed", frame.reason, "Unreadable vendor frame", raw=frame.raw[:200]
                )
            case protocol.Unknown():
                self._once("unknown", frame.kind, "Vendor frame of an unknown kind")
            case _:
                return

    def _on_subscribed(self, status: protocol.SubscribeStatus, key: ApiKey) -> None:
        self._answered = True
        refused = self._wanted & set(status.fails)
        granted = self._wanted & set(status.success)
        if status.ok and not refused and not granted:
            granted = self._wanted  # an "ok" with neither list
        self._subscribed = (self._subscribed | granted) - refused
        self._refused = (self._refused - granted) | refused
        self._first |= granted
        if granted:
            self._keys.accept_stream(key)
        if not self._subscribed:
            reason = (
                status.message or f"not permitted: {', '.join(sorted(refused or self._wanted))}"
            )
            self._keys.refuse_stream(key, reason)
            raise _Lost("unentitled", f"subscription refused: {reason}", rotate=True)
        log.info("Subscribed", granted=sorted(granted), refused=sorted(refused), key=key.label)
        if refused:
            self._emit("unentitled", tuple(sorted(refused)), "the vendor does not stream it to us")

    def _refused_handshake(self, error: InvalidStatus, key: ApiKey) -> _Lost:
        status = error.response.status_code
        said = classify_error(status, bytes(error.response.body or b""))
        message = f"handshake refused: {said}".replace(key.secret, REDACTED)
        if status in (401, 403) or isinstance(said, NotEntitled):
            # Not disabled: keys without a streaming plan are refused like this and are good for REST.
            self._keys.refuse_stream(key, message)
            return _Lost("unentitled", message, rotate=True)
        if status >= 500:
            return _Lost("disconnected", message)
        return _Lost("refused", message, rotate=status == 429)

    def _report(self, lost: _Lost, key: ApiKey | None, retry_s: float) -> None:
        self._last_error = str(lost)
        log.warning(
            "Vendor stream lost",
            kind=lost.kind,
            why=str(lost),
            key=key.label if key else None,
            failures=self._backoff.failures,
            retry_s=round(retry_s, 1),
        )
        self._emit(lost.kind, self.symbols, str(lost))

    def _emit(self, kind: Failure, symbols: tuple[str, ...], message: str) -> None:
        if self.on_event is not None:
            self.on_event(StreamEvent(kind, symbols, message, self._clock.now()))

    def _disconnected(self) -> None:
        self.connected = False
        self._subscribed = frozenset()
        self._first.clear()
        self._metrics.feed_connected.set(0)

    def _once(self, label: str, kind: str, event: str, **details: str) -> None:
        """Count a frame; log it the first time its kind is seen."""
        self._metrics.vendor_frames.labels(label).inc()
        name = f"{label}:{kind}"
        if name not in self._kinds and len(self._kinds) < KINDS_REMEMBERED:
            self._kinds.add(name)
            log.warning(event, kind=kind, **details)

    def _silence_limit(self) -> float:
        return self._clock.span(self._silence_s, SILENCE_AT_LEAST_REAL_S)


def _closed(error: ConnectionClosed) -> _Lost:
    frame = error.rcvd
    if frame is None:
        return _Lost("disconnected", f"the connection broke: {error}")
    rotate = frame.code in EVICTION_CODES or frame.code >= 3000
    said = f"{frame.code} {frame.reason}".strip()
    return _Lost("disconnected", f"the vendor closed the connection: {said}", rotate=rotate)
