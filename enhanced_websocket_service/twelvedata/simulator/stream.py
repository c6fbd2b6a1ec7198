"""The price stream: from the market, at the pace of the clock, to every subscribed socket.

Invariants: there is one position on the time line; every tick stamped after it is still to come,
every other is past. Whoever subscribes does so between two moves of the position, so each client
gets every tick of its symbols from then on exactly once, in order, however late the loop wakes.
"""

import asyncio
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import merge
from typing import Any, Protocol

import structlog

from enhanced_websocket_service.clock import Clock

from .credits import Plan
from .faults import FaultBoard
from .ledger import SentLedger
from .model import MarketSource, SimTick, SymbolInfo, describe
from .wire import (
    CANT_PARSE,
    GARBAGE,
    PriceEncoder,
    parse_request,
    status,
    subscribe_status,
    text_frame,
    too_many_events,
)

log = structlog.get_logger(__name__)

POLICY_CLOSE = 1008
_LONGEST_MOVE_S = 300  # market seconds sent between two looks at slow sockets
_SHORTEST_PAUSE_REAL_S = 0.002  # several seconds of a fast clock go out together
_SLOW_CLIENT_REAL_S = 30.0


class Socket(Protocol):
    """What the stream needs of a client's connection. Nothing here blocks or raises."""

    def write(self, frames: bytes) -> None:
        """Queue whole frames; silently nothing once the connection is closing."""
        ...

    @property
    def writable(self) -> asyncio.Event:
        """Set unless the peer leaves more than the transport's high water mark untaken."""
        ...

    def start_close(self, code: int) -> None:
        """Send a close frame."""
        ...

    def reset(self) -> None:
        """End the TCP connection with RST."""
        ...


@dataclass(eq=False, slots=True)
class StreamClient:
    """One connection: whose it is and what it wants."""

    id: int
    key: str
    socket: Socket
    symbols: frozenset[str] = frozenset()
    minute: int = -1
    events: int = 0  # in ``minute``
    frames_sent: int = 0
    leaving: bool = False


@dataclass(slots=True)
class _Outgoing:
    """The prices of one move, merged over symbols in the order of their stamps."""

    frames: list[tuple[str, bytes]] = field(default_factory=list)
    packed: dict[frozenset[str], tuple[bytes, int]] = field(default_factory=dict)

    def of(self, symbols: frozenset[str]) -> tuple[bytes, int]:
        """The frames of ``symbols`` in one piece, and their number."""
        found = self.packed.get(symbols)
        if found is None:
            chosen = [frame for symbol, frame in self.frames if symbol in symbols]
            found = self.packed[symbols] = (b"".join(chosen), len(chosen))
        return found


class PriceStream:
    """All WebSocket clients of the simulated vendor.

    :param resend_last: send the last known price after a subscription, as the vendor does.
    """

    def __init__(
        self,
        market: MarketSource,
        clock: Clock,
        plan: Plan,
        faults: FaultBoard,
        *,
        resend_last: bool = True,
        events_per_minute: int = 100,
    ) -> None:
        self._market = market
        self._clock = clock
        self._plan = plan
        self._faults = faults
        self._resend_last = resend_last
        self._events_per_minute = events_per_minute
        self._infos = {symbol: describe(symbol) for symbol in market.symbols}
        self._encoders = {symbol: PriceEncoder(info) for symbol, info in self._infos.items()}
        self._clients: list[StreamClient] = []  # oldest first
        self._next_id = 1
        self._position = _whole_second(clock.now()) - 1
        self._changed = asyncio.Event()
        self._sleeper: asyncio.Task[None] | None = None
        self.ledgers = {symbol: SentLedger() for symbol in market.symbols}

    async def run(self) -> None:
        """Send prices until cancelled."""
        pause = self._clock.now()
        while True:
            self._changed.clear()
            stamp = self._next_stamp()
            if stamp is None:
                await self._changed.wait()
                continue
            await self._sleep_until(max(float(stamp), pause))
            now = self._clock.now()
            while self._position < int(now):
                self._move(min(int(now), self._position + _LONGEST_MOVE_S))
                await self._let_drain()
            pause = now + self._clock.span(0.0, _SHORTEST_PAUSE_REAL_S)

    def join(self, key: str, socket: Socket) -> StreamClient:
        """Take a new connection; past the plan's limit the key's oldest ones are closed."""
        client = StreamClient(self._next_id, key, socket)
        self._next_id += 1
        own = [one for one in self._clients if one.key == key and not one.leaving]
        surplus = len(own) + 1 - self._plan.ws_connections
        for oldest in own[: max(0, surplus)]:
            log.info("Closing the oldest connection of a key.", client=oldest.id)
            self._part(oldest)
            oldest.socket.start_close(POLICY_CLOSE)
        self._clients.append(client)
        return client

    def leave(self, client: StreamClient) -> None:
        """The connection is gone."""
        self._part(client)
        if client in self._clients:
            self._clients.remove(client)
        self._wake()

    def on_message(self, client: StreamClient, text: str | bytes | None) -> None:
        """Answer one client message. Heartbeats do not count as events."""
        if client.leaving:
            return
        now = self._clock.now()
        request = parse_request(text)
        if request is None or request.action != "heartbeat":
            minute = int(now // 60)
            if client.minute != minute:
                client.minute, client.events = minute, 0
            client.events += 1
            if client.events > self._events_per_minute:
                refusal = too_many_events(client.events, self._events_per_minute)
                client.socket.write(text_frame(refusal))
                return
        if request is None:
            client.socket.write(text_frame(CANT_PARSE))
        elif request.action == "heartbeat":
            client.socket.write(text_frame(status("heartbeat")))
        elif request.action == "subscribe":
            self._subscribe(client, request.symbols, now)
        else:
            gone = frozenset(request.symbols)
            client.symbols = frozenset() if request.action == "reset" else client.symbols - gone
            client.socket.write(text_frame(status(f"{request.action}-status")))
            self._wake()

    def act(self, name: str, value: Any) -> None:
        """Carry out a fault that happens once, on the sockets that are open now."""
        for client in [one for one in self._clients if not one.leaving]:
            match name:
                case "close":
                    self._part(client)
                    client.socket.start_close(value)
                case "drop":
                    self._part(client)
                    client.socket.reset()
                case "garbage_frames":
                    for i in range(value):
                        client.socket.write(text_frame(GARBAGE[i % len(GARBAGE)]))
                case _:
                    raise ValueError(f"{name} is not an action of the stream")

    def shown(self) -> list[dict[str, Any]]:
        """The connections, for ``GET /_sim/status``. Keys are shown as a short hash."""
        return [
            {
                "id": client.id,
                "key": key_label(client.key),
                "symbols": sorted(client.symbols),
                "frames_sent": client.frames_sent,
            }
            for client in self._clients
            if not client.leaving
        ]

    def _subscribe(self, client: StreamClient, symbols: Iterable[str], now: float) -> None:
        # What is due belongs to those who were subscribed before.
        self._move(int(now))
        success: list[SymbolInfo] = []
        fails: list[str] = []
        for symbol in symbols:
            info = self._infos.get(symbol)
            if info is not None and self._may_stream(client, info):
                client.symbols |= {symbol}
                success.append(info)
            else:
                fails.append(symbol)
        client.socket.write(text_frame(subscribe_status(success, fails)))
        if self._resend_last and not self._faults.mute:
            for info in success:
                source = self._market.get(info.symbol)
                tick = source.last_tick(self._position) if source is not None else None
                if tick is not None:
                    client.socket.write(self._encoded(info.symbol, tick, resent=True))
                    client.frames_sent += 1
        self._wake()

    def _may_stream(self, client: StreamClient, info: SymbolInfo) -> bool:
        if info.symbol in self._faults.fails:
            return False
        if self._plan.trial_only and not info.trial:
            return False
        if info.symbol in client.symbols:
            return True
        used = sum(len(one.symbols) for one in self._clients if one.key == client.key)
        return used < self._plan.ws_credits

    def _move(self, until: int) -> None:
        """Send every tick stamped after the position up to ``until``, which becomes the position."""
        start, self._position = self._position, max(self._position, until)
        if until <= start or self._faults.mute:
            return
        listening = [one for one in self._clients if one.symbols and not one.leaving]
        outgoing = _Outgoing()
        due = merge(
            *(self._due(symbol, start + 1, until + 1) for symbol in _union(listening)),
            key=lambda item: item[1].timestamp,
        )
        for symbol, tick in due:
            outgoing.frames.append((symbol, self._encoded(symbol, tick)))
        if not outgoing.frames:
            return
        for client in listening:
            data, count = outgoing.of(client.symbols)
            if count:
                client.socket.write(data)
                client.frames_sent += count

    def _due(self, symbol: str, start: int, end: int) -> list[tuple[str, SimTick]]:
        source = self._market.get(symbol)
        return [(symbol, tick) for tick in source.ticks(start, end)] if source is not None else []

    def _encoded(self, symbol: str, tick: SimTick, *, resent: bool = False) -> bytes:
        quotes = not self._faults.no_bid_ask
        self.ledgers[symbol].add(tick, quotes=quotes, resent=resent)
        return self._encoders[symbol].frame(tick, strings=self._faults.string_prices, quotes=quotes)

    def _next_stamp(self) -> int | None:
        stamps = []
        for symbol in _union(self._clients):
            source = self._market.get(symbol)
            stamp = source.next_stamp(self._position + 1) if source is not None else None
            if stamp is not None:
                stamps.append(stamp)
        return min(stamps, default=None)

    async def _sleep_until(self, instant: float) -> None:
        """Sleep, but not past a change of subscriptions: its next tick may come earlier."""
        sleeper = asyncio.create_task(self._clock.sleep_until(instant), name="simulator-next-tick")
        self._sleeper = sleeper
        try:
            await asyncio.wait({sleeper})
        finally:
            self._sleeper = None
            sleeper.cancel()
            await asyncio.wait({sleeper})
        if not sleeper.cancelled():
            sleeper.result()

    def _wake(self) -> None:
        self._changed.set()
        if self._sleeper is not None:
            self._sleeper.cancel()

    async def _let_drain(self) -> None:
        """Give the loop to the sockets; end those that take nothing for a long real time."""
        await asyncio.sleep(0)
        for client in [one for one in self._clients if not one.socket.writable.is_set()]:
            try:
                await asyncio.wait_for(client.socket.writable.wait(), _SLOW_CLIENT_REAL_S)
            except TimeoutError:
                log.warning("Resetting a client that takes no data.", client=client.id)
                self._part(client)
                client.socket.reset()

    def _part(self, client: StreamClient) -> None:
        client.leaving = True
        client.symbols = frozenset()


def _union(clients: Iterable[StreamClient]) -> list[str]:
    return sorted(frozenset().union(*(client.symbols for client in clients)))


def _whole_second(instant: float) -> int:
    """The first whole second at or after ``instant``."""
    return -int(-instant // 1)


def key_label(key: str) -> str:
    """A short name for a key that does not tell the key."""
    return hashlib.sha256(key.encode()).hexdigest()[:8]
