"""The vendor's socket as a feed: connect, subscribe, keep alive, come back.

Owns: one connection at a time and the decision when to give it up. Does not own: what frames mean
(``twelvedata.protocol``), whether silence is death (``market.liveness``), what happens meanwhile
(``failover``). Rules:

- heartbeats and pongs are not data: only prices speak for a socket;
- a dead symbol among living ones is subscribed anew; the connection is replaced when none lives;
- back-off is capped, jittered, and resets only after data on a connection that has lasted: neither
  a re-sent price nor being connected counts, so that two processes cannot evict each other for ever;
- of several processes with one key only the holder of its lease streams; the others wait.
"""

import asyncio
import math
import random
from collections.abc import Callable, Collection, Sequence
from functools import partial
from time import monotonic
from typing import Protocol

import msgspec
import structlog
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import (
    ConnectionClosed,
    InvalidProxy,
    InvalidStatus,
    WebSocketException,
)

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.market.liveness.detector import LivenessDetector
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.redaction import Redactor, secrets_in_url
from enhanced_websocket_service.telemetry import Metrics, Rarely
from enhanced_websocket_service.twelvedata import protocol
from enhanced_websocket_service.twelvedata.backoff import Backoff
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool

from .base import FeedStatus, Intake, KeyLeases
from .connection import (
    OPEN_TIMEOUT_REAL_S,
    Failure,
    Lost,
    broken,
    open_stream,
    refused_handshake,
)
from .event_budget import EventBudget
from .liveness_monitor import LivenessMonitor, worst

log = structlog.get_logger(__name__)

STABLE_S, STABLE_AT_LEAST_REAL_S = 30.0, 0.5
"""A connection that has lasted this long and still brings prices ends the back-off."""
ANSWER_S, ANSWER_AT_LEAST_REAL_S = 15.0, 3.0
"""A subscription that is not answered within this is a fault."""
LEASE_RETRY_S = 2.0  # real seconds, or of the clock if that is longer
RESUBSCRIBE_S, LONGEST_RESUBSCRIBE_S = 10.0, 300.0
HEARTBEAT_AT_LEAST_REAL_S = 1.0
CHECK_AT_LEAST_REAL_S = 0.05
RETRY_AT_LEAST_REAL_S = 0.05

KINDS_REMEMBERED = 100
"""Unknown kinds of frames are logged once each; beyond this many they are only counted."""


class StreamEvent(msgspec.Struct, frozen=True):
    """Why some symbols cannot be had from the stream now."""

    kind: Failure
    symbols: tuple[str, ...]
    message: str
    at: float  # unix seconds UTC


class StreamReceiver(Intake, Protocol):
    """Whom the stream tells what happens, at once; nothing of it may block."""

    def on_streamed(self, quote: Quote, *, proves: bool) -> None:
        """A quote; ``proves``: a new price with a young stamp."""
        ...

    def on_granted(self, symbols: Collection[str], at: float) -> None:
        """These are subscribed since ``at``, unix seconds UTC."""
        ...

    def on_failure(self, event: StreamEvent) -> None:
        """Told of every failure before the next attempt."""
        ...


class StreamFeed:
    """Quotes of ``symbols`` from the vendor's socket, reconnecting for ever.

    ``heartbeat_s`` and ``backoff_cap_s`` are seconds of the clock, stretched where real time needs it.

    :param liveness: detectors the silence of the symbols; by default without hours and without REST.
    :param leases: who may stream with a key; ``None``: nobody else does.
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
        liveness: LivenessMonitor | None = None,
        leases: KeyLeases | None = None,
        heartbeat_s: float = 10.0,
        backoff_cap_s: float = 60.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.symbols = tuple(symbols)
        self.liveness = liveness or LivenessMonitor(symbols, clock, metrics)
        self._wanted = frozenset(symbols)
        self._receiver: StreamReceiver | None = None  # while it runs
        self._url = ws_url
        self._keys = keys
        self._clock = clock
        self._source = provider.websocket
        self._metrics = metrics
        self._price_frames = metrics.vendor_frames.labels("price")
        self._leases = leases
        self._heartbeat_s = heartbeat_s
        self._jitter = jitter
        self._backoff = Backoff(cap=backoff_cap_s, jitter=jitter)
        self._events = EventBudget()
        self._kinds: set[str] = set()
        self._redact = Redactor({*secrets_in_url(ws_url), *(one.secret for one in keys.keys)})
        self._rarely = Rarely()  # real time: the log is read by people
        # The current connection.
        self.connected = False
        self._connected_at = 0.0  # Clock.elapsed
        self._answered = False  # to our subscription
        self._first: set[str] = set()  # symbols whose first price since the subscription is due
        self._subscribed: frozenset[str] = frozenset()
        self._refused: frozenset[str] = frozenset()
        self._asked: frozenset[str] = frozenset()  # what we asked for on it
        # When to subscribe dead symbols anew; Clock.elapsed.
        self._revive_at: dict[str, float] = {}
        # Since the start.
        self._revivals = {one: self._revival() for one in symbols}
        self._attempts = 0
        self._last_error: str | None = None
        self._lost: tuple[Failure, str] | None = None  # why there is no connection
        self._last_quote_at: float | None = None

    def now(self) -> float:
        """The feed's clock."""
        return self._clock.now()

    def status(self) -> FeedStatus:
        verdicts = self.liveness.shown()
        verdict = worst([one.verdict for one in verdicts])
        detail = next((one.evidence for one in verdicts if one.verdict == verdict), "")
        if self._backoff.failures and verdict != "live" and self._last_error not in (None, detail):
            # A new attempt that has brought nothing yet: the cause of the failure is still the news.
            detail = f"{detail}; the last attempt failed: {self._last_error}"
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
            verdicts=verdicts,
            sources=dict.fromkeys(self.symbols, self._source),
        )

    def collect(self, symbols: Collection[str]) -> None:
        """Stream exactly these from now on; the open connection is told within a second of the clock."""
        for symbol in self._wanted - set(symbols):
            self._revive_at.pop(symbol, None)
            self.liveness.detectors[symbol].stopped(self.liveness.now())
        self.symbols, self._wanted = tuple(symbols), frozenset(symbols)
        self.liveness.follow(symbols)
        for symbol in symbols:
            self._revivals.setdefault(symbol, self._revival())

    def tell_failure(self, symbols: Collection[str]) -> None:
        """While a connection that failed is not made anew, ``symbols`` that were added since lack it, too."""
        if self._lost is None or not symbols:
            return
        kind, why = self._lost
        now = self.liveness.now()
        for symbol in symbols:
            self.liveness.detectors[symbol].lost(why, now)
        self._emit(kind, tuple(symbols), why)

    async def run(self, receiver: StreamReceiver) -> None:
        """Stream into ``receiver`` until cancelled. One run at a time, and one in the life of the object."""
        self._receiver = receiver
        rotate = False
        try:
            self._tell(lambda detector, now: detector.connecting("connecting", now))
            while True:
                key = await self._key(rotate=rotate)
                if key is None:
                    lost = Lost("refused", "every API key is disabled; check the settings")
                    retry_s = self._lose(lost, None)
                else:
                    try:
                        lost, retry_s = await self._connection(key)
                    finally:
                        if self._leases is not None:
                            await self._leases.release(key.fingerprint)
                if _is_over(receiver):
                    raise asyncio.CancelledError  # it met a task group that was ending already
                rotate = lost.rotate
                await receiver.taken()
                clock = self._clock
                await clock.sleep(clock.span(retry_s, RETRY_AT_LEAST_REAL_S))
                await clock.sleep(self._events.wait_s(clock.elapsed()))
        finally:
            self._disconnected()
            self._tell(lambda detector, now: detector.stopped(now))
            self._receiver = None

    async def _key(self, *, rotate: bool) -> ApiKey | None:
        """The key to connect with, its lease taken; waits while other processes hold every lease."""
        key = self._keys.stream_key(rotate=rotate)
        if self._leases is None:
            return key
        tried: set[str] = set()
        while key is not None and not await self._leases.acquire(key.fingerprint):
            why = f"another process streams with key {key.label}; waiting for its lease"
            if self._last_error != why:
                log.info("The lease of the key is taken", key=key.label)
            self._last_error = why
            self._tell(partial(_waits, why))
            tried.add(key.label)
            key = self._keys.stream_key(rotate=True)
            if key is not None and key.label in tried:
                tried.clear()
                await self._clock.sleep(self._clock.span(LEASE_RETRY_S, LEASE_RETRY_S))
        return key

    async def _connection(self, key: ApiKey) -> tuple[Lost, float]:
        """One connection from handshake to end; why it ended, and how long to wait now."""
        self._attempts += 1
        if self._attempts > 1:
            self._metrics.feed_reconnects.inc()
        told: tuple[Lost, float] | None = None
        try:
            async with open_stream(self._url, key) as socket:
                lost = await self._converse(socket, key)
                # Before the closing handshake: nobody shall wait for a socket known to be dead.
                told = lost, self._lose(lost, key)
        except InvalidStatus as error:
            lost = refused_handshake(error)
            if lost.kind == "unentitled":
                # Not disabled: keys without a streaming plan are refused like this, too, and are
                # good for REST.
                self._keys.refuse_stream(key, self._redact.text(str(lost)), self._clock.now())
        except TimeoutError:
            lost = Lost("disconnected", f"no connection within {OPEN_TIMEOUT_REAL_S:g} s")
        except ConnectionClosed as error:
            lost = broken(error)
        except InvalidProxy as error:  # its text quotes the proxy's address, password included
            lost = Lost("disconnected", f"{type(error).__name__}: {error.msg}")
        except (OSError, WebSocketException, ImportError) as error:  # SOCKS needs a library
            lost = Lost("disconnected", f"{type(error).__name__}: {error}")
        finally:
            self._disconnected()
        return told or (lost, self._lose(lost, key))

    async def _converse(self, socket: ClientConnection, key: ApiKey) -> Lost:
        lost: Lost | None = None
        self.connected, self._answered = True, False
        self._connected_at = self._clock.elapsed()
        self._revive_at.clear()
        self._metrics.feed_connected.set(1)
        if times := self._rarely.due(monotonic(), "connected"):
            log.info(
                "Connected to the vendor's stream", key=key.label, symbols=self.symbols, times=times
            )
        try:
            async with asyncio.TaskGroup() as group:
                self._events.spend(self._connected_at)
                self._asked, self._lost = self._wanted, None
                await socket.send(protocol.subscribe(self.symbols))
                self._tell(lambda detector, now: detector.connected(now))
                group.create_task(self._send_heartbeats(socket), name="feed-stream-heartbeat")
                group.create_task(self._await_answer(), name="feed-stream-answer")
                group.create_task(self._revive(socket), name="feed-stream-revive")
                group.create_task(
                    self.liveness.watch(lambda: self._wanted - self._refused, self._on_dead),
                    name="feed-stream-watch",
                )
                if self._leases is not None:
                    group.create_task(
                        _until_lost(self._leases, key.fingerprint), name="feed-stream-lease"
                    )
                await self._read(socket, key)
        except* Lost as failures:
            lost = next(one for one in failures.exceptions if isinstance(one, Lost))
        except* ConnectionClosed as failures:
            one = failures.exceptions[0]
            if lost is None and isinstance(one, ConnectionClosed):
                lost = broken(one)
        return lost or Lost("disconnected", "the connection ended")

    async def _send_heartbeats(self, socket: ClientConnection) -> None:
        clock = self._clock
        while True:
            await clock.sleep(clock.span(self._heartbeat_s, HEARTBEAT_AT_LEAST_REAL_S))
            try:
                await socket.send(protocol.heartbeat())
            except ConnectionClosed:
                return  # the reader says why

    async def _await_answer(self) -> None:
        clock = self._clock
        await clock.sleep(clock.span(ANSWER_S, ANSWER_AT_LEAST_REAL_S))
        if not self._answered:
            raise Lost("silent", f"no answer to the subscription within {ANSWER_S:g} s")

    def _on_dead(self, symbol: str, evidence: str) -> None:
        """The detector found ``symbol`` dead on a connection that is open."""
        detectors = self.liveness.detectors
        if not any(detectors[one].proved for one in self._wanted - self._refused):
            raise Lost("silent", evidence)
        if symbol not in self._revive_at:
            self._revive_at[symbol] = self._clock.elapsed() + self._revivals[symbol].next()
            if self._rarely.due(monotonic(), f"dead {symbol}"):
                log.warning("A symbol is dead among living ones", symbol=symbol, evidence=evidence)
            self._emit("silent", (symbol,), evidence)

    async def _revive(self, socket: ClientConnection) -> None:
        """Subscribe dead symbols anew, at growing intervals."""
        clock = self._clock
        while True:
            await clock.sleep(clock.span(1.0, CHECK_AT_LEAST_REAL_S))
            elapsed = clock.elapsed()
            if self._receiver is not None and self._receiver.held_up:
                self.liveness.excuse()  # we are not reading: the silence is ours
            if self._asked != self._wanted and not await self._ask_for_others(socket):
                return
            due = [one for one, at in self._revive_at.items() if at <= elapsed]
            if due and self._events.wait_s(elapsed, 2) == 0:
                log.debug("Subscribing dead symbols anew", symbols=due)
                self._events.spend(elapsed, 2)
                try:
                    await socket.send(protocol.unsubscribe(due))
                    await socket.send(protocol.subscribe(due))
                except ConnectionClosed:
                    return  # the reader says why
                for symbol in due:
                    self._revive_at.pop(symbol, None)
                    self.liveness.detectors[symbol].connected(self.liveness.now())

    async def _ask_for_others(self, socket: ClientConnection) -> bool:
        """The wanted symbols have changed: tell the vendor; ``False``: the connection is over."""
        gone, new = sorted(self._asked - self._wanted), sorted(self._wanted - self._asked)
        events = bool(gone) + bool(new)
        elapsed = self._clock.elapsed()
        if self._events.wait_s(elapsed, events) > 0:
            return True  # the next look tries again
        self._events.spend(elapsed, events)
        self._asked = self._wanted
        self._subscribed, self._refused = self._subscribed - set(gone), self._refused - set(gone)
        try:
            if gone:
                await socket.send(protocol.unsubscribe(gone))
            if new:
                await socket.send(protocol.subscribe(new))
        except ConnectionClosed:
            return False  # the reader says why
        for symbol in new:
            self.liveness.detectors[symbol].connected(self.liveness.now())
        return True

    async def _read(self, socket: ClientConnection, key: ApiKey) -> None:
        receiver = self._receiver
        assert receiver is not None
        while True:
            # Bytes: text that is not UTF-8 shall be one bad frame, not the end of the connection.
            data = await socket.recv(decode=False)
            now = self._clock.now()
            price = protocol.parse_price(data, now, self._source)
            if price is not None:
                self._on_quote(price, receiver)
            else:
                for frame in protocol.parse_frame(data, now, self._source):
                    if isinstance(frame, Quote):
                        self._on_quote(frame, receiver)
                    else:
                        self._on_other(frame, key)
            await receiver.room()

    def _on_quote(self, quote: Quote, receiver: StreamReceiver) -> None:
        self._price_frames.inc()
        symbol = quote.symbol
        if symbol not in self._wanted:
            self._once("foreign_symbol", symbol, "Price of a symbol that was not subscribed")
            return
        if quote.raw or not (math.isfinite(quote.price) and quote.price > 0):
            receiver.on_streamed(quote, proves=False)  # validation stores it
            return
        self._answered = True
        self._last_quote_at = quote.received_at
        first = symbol in self._first
        # The vendor answers a subscription with its last price. It may come from elsewhere than the stream:
        # however new it is, it says nothing about what follows.
        proves = self.liveness.price(quote, resent=first)
        if first:
            self._first.discard(symbol)
            quote = msgspec.structs.replace(quote, first_after_subscribe=True)
        elif proves:
            self._revive_at.pop(symbol, None)
            if self._backoff.failures or self._revivals[symbol].failures:
                self._calm_down(symbol)
        receiver.on_streamed(quote, proves=proves)

    def _calm_down(self, symbol: str) -> None:
        stable_s = self._clock.span(STABLE_S, STABLE_AT_LEAST_REAL_S)
        if self._clock.elapsed() - self._connected_at >= stable_s:
            self._backoff.reset()
            self._revivals[symbol].reset()

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
            granted = self._asked & self._wanted  # an "ok" with neither list
        self._subscribed = (self._subscribed | granted) - refused
        self._refused = (self._refused - granted) | refused
        self._first |= granted
        if granted:
            self._keys.accept_stream(key, self._clock.now())
            if self._receiver is not None:
                self._receiver.on_granted(granted, self._clock.now())
        if not self._subscribed:
            reason = self._redact.text(status.message) or (
                f"not permitted: {', '.join(sorted(refused or self._wanted))}"
            )
            self._keys.refuse_stream(key, reason, self._clock.now())
            raise Lost("unentitled", f"subscription refused: {reason}", rotate=True)
        if times := self._rarely.due(monotonic(), "subscribed"):
            log.info(
                "Subscribed",
                granted=sorted(granted),
                refused=sorted(refused),
                key=key.label,
                times=times,
            )
        if refused:
            why = "the vendor does not stream it to us"
            for symbol in refused:
                self.liveness.detectors[symbol].lost(why, self.liveness.now())
            self._emit("unentitled", tuple(sorted(refused)), why)

    def _lose(self, lost: Lost, key: ApiKey | None) -> float:
        """Tell everybody that there is no connection; how long to wait before the next attempt."""
        self._disconnected()
        # What the vendor and libraries say may repeat what they were given.
        why = self._last_error = self._redact.text(str(lost))
        self._lost = lost.kind, why
        retry_s = self._backoff.next()
        if times := self._rarely.due(monotonic(), lost.kind):
            log.warning(
                "Vendor stream lost",
                kind=lost.kind,
                why=why,
                key=key.label if key else None,
                failures=self._backoff.failures,
                retry_s=round(retry_s, 1),
                times=times,
            )
        self._tell(lambda detector, now: detector.lost(why, now))
        self._emit(lost.kind, self.symbols, why)
        return retry_s

    def _tell(self, what: Callable[[LivenessDetector, float], None]) -> None:
        """Tell the detectors of what is collected: of other symbols nothing is expected."""
        now = self.liveness.now()
        for symbol in self._wanted:
            what(self.liveness.detectors[symbol], now)

    def _emit(self, kind: Failure, symbols: tuple[str, ...], message: str) -> None:
        if self._receiver is not None:
            self._receiver.on_failure(StreamEvent(kind, symbols, message, self._clock.now()))

    def _disconnected(self) -> None:
        self.connected = False
        self._subscribed = self._asked = frozenset()
        self._first.clear()
        self._metrics.feed_connected.set(0)

    def _revival(self) -> Backoff:
        return Backoff(base=RESUBSCRIBE_S, cap=LONGEST_RESUBSCRIBE_S, jitter=self._jitter)

    def _once(self, label: str, kind: str, event: str, **details: str) -> None:
        """Count a frame; log it the first time its kind is seen."""
        self._metrics.vendor_frames.labels(label).inc()
        name = f"{label}:{kind}"
        if name not in self._kinds and len(self._kinds) < KINDS_REMEMBERED:
            self._kinds.add(name)
            log.warning(event, kind=kind, **details)


def _waits(why: str, detector: LivenessDetector, now: float) -> None:
    detector.connecting(why, now, waiting=True)


def _is_over(receiver: Intake) -> bool:
    """Whether somebody has asked us to end, even if a task group of 3.11 swallowed the cancellation."""
    task = asyncio.current_task()
    return receiver.closed or (task is not None and task.cancelling() > 0)


async def _until_lost(leases: KeyLeases, fingerprint: str) -> None:
    await leases.lost(fingerprint)
    raise Lost("leased", "another process took the lease of the key", rotate=True)
