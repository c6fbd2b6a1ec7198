"""The price stream: from the market, at the pace of the clock, to every subscribed socket.

Invariants: there is one position on the time line; every tick stamped after it is still to come,
every other is past. Whoever subscribes does so between two moves of the position, so each client
gets every tick of its symbols from then on exactly once, in order, however late the loop wakes.
Faults, from the script or from outside, change between two moves too: what was due before them
leaves as it would have without them.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import structlog

from enhanced_websocket_service.clock import Clock

from .agenda import Agenda
from .clients import Doorbook, Socket, StreamClient
from .credits import Plan
from .distortion import noisy, scaled, streamed_scale
from .fault_table import FAULTS
from .faults import FaultBoard
from .ledger import SentLedger, Shape
from .model import MarketSource, SimTick, SymbolInfo, describe
from .schedule import Schedule
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
_LONGEST_MOVE_IN_A_BURST_S = 1
_SHORTEST_PAUSE_REAL_S = 0.002  # several seconds of a fast clock go out together
_SLOW_CLIENT_REAL_S = 30.0


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
    :param agenda: the script of faults; it is carried out here, exactly between two moves.
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
        agenda: Agenda | None = None,
    ) -> None:
        self._market = market
        self._clock = clock
        self._plan = plan
        self._faults = faults
        self._resend_last = resend_last
        self._events_per_minute = events_per_minute
        self.agenda = agenda or Agenda()
        self._schedule = Schedule(market, faults)
        self._infos = {symbol: describe(symbol) for symbol in market.symbols}
        self._encoders = {symbol: PriceEncoder(info) for symbol, info in self._infos.items()}
        self._clients: list[StreamClient] = []  # oldest first
        self._frozen: list[Socket] = []
        self._sent: dict[str, SimTick] = {}  # by symbol, the last one that was not frozen
        self._still: dict[str, SimTick] = {}  # by symbol, the one whose price is repeated
        self._next_id = 1
        self._position = _whole_second(clock.now()) - 1
        self._reached = float(self._position)
        self._changed = asyncio.Event()
        self._sleeper: asyncio.Task[None] | None = None
        self.ledgers = {symbol: SentLedger() for symbol in market.symbols}
        self.door = Doorbook()

    async def run(self) -> None:
        """Send prices until cancelled."""
        pause = self._clock.now()
        while True:
            self._changed.clear()
            wake = self._next_instant()
            if wake is None:
                await self._changed.wait()
                continue
            await self._sleep_until(max(wake, pause))
            now = self._clock.now()
            while self._reached < now:
                bursting = self._schedule.bursting
                step = _LONGEST_MOVE_IN_A_BURST_S if bursting else _LONGEST_MOVE_S
                self.advance(min(now, self._reached + step))
                await self._let_drain()
            pause = now + self._clock.span(0.0, _SHORTEST_PAUSE_REAL_S)

    def advance(self, now: float) -> None:
        """Send all that is due by ``now``, and carry out the script up to there."""
        while (at := self.agenda.next_instant()) is not None and at <= now:
            self._depart(at)
            step = self.agenda.take()
            log.info("A step of the fault script.", clear=list(step.clear), set=dict(step.set))
            self.clear(step.clear)
            self._apply(step.set)
        self._depart(now)

    def inject(self, faults: object) -> None:
        """Set faults now.

        :raises BadFault: naming what is wrong and what is known.
        """
        self.advance(self._clock.now())
        self._apply(faults)

    def clear(self, names: Iterable[str] | None = None) -> None:
        """End these faults, or all; bursts stop, sockets that were half open are reset."""
        chosen = tuple(FAULTS if names is None else names)
        self._faults.clear(chosen)
        if "burst" in chosen:
            self._schedule.stop_bursts()
        if "half_open" in chosen:
            frozen, self._frozen = self._frozen, []
            for socket in frozen:
                socket.reset()
        self._wake()

    def join(self, key: str, socket: Socket) -> StreamClient:
        """Take a new connection; past the plan's limit the key's oldest ones are closed."""
        now = self._clock.now()
        client = StreamClient(self._next_id, key, socket, now, silent=self._faults.mute_from_birth)
        self._next_id += 1
        self._clients.append(client)
        self.door.handshake(now, key, 101)
        mine = [one for one in self._clients if one.key == key and not one.leaving]
        for oldest in mine[: -(self._faults.max_connections or self._plan.ws_connections)]:
            self._evict(oldest)
        return client

    def leave(self, client: StreamClient) -> None:
        """Forget a connection that has ended."""
        self._part(client)
        if client in self._clients:
            self._clients.remove(client)

    def on_message(self, client: StreamClient, text: str | bytes | None) -> None:
        """Answer one client message. Heartbeats do not count as events."""
        if client.leaving:
            return
        now = self._clock.now()
        request = parse_request(text)
        heartbeat = request is not None and request.action == "heartbeat"
        self.door.event(now, client.key, heartbeat=heartbeat)
        if not heartbeat:
            minute = int((now + self._faults.clock_skew_s) // 60)
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
        clients = [one for one in self._clients if not one.leaving]
        match name:
            case "burst":
                self._schedule.start_burst(self._reached + self._faults.clock_skew_s, value)
            case "evict":
                # The last one that is written is the first, the oldest, of its key.
                for oldest in {one.key: one for one in reversed(clients)}.values():
                    self._evict(oldest)
            case _:
                for client in clients:
                    self._act_on(client, name, value)

    def withhold_pong(self) -> bool:
        """Asked at each ping of a client."""
        if self._faults.no_pong:
            self.door.pongs_withheld += 1
        return self._faults.no_pong

    def shown(self) -> list[dict[str, Any]]:
        """The connections, for ``GET /_sim/status``."""
        return [client.shown() for client in self._clients if not client.leaving]

    def _apply(self, faults: object) -> None:
        for name, value in self._faults.apply(faults):
            self.act(name, value)
        self._wake()

    def _act_on(self, client: StreamClient, name: str, value: Any) -> None:
        match name:
            case "close":
                self._part(client)
                client.socket.start_close(value)
            case "drop":
                self._part(client)
                client.socket.reset()
            case "fin":
                self._part(client)
                client.socket.finish()
            case "half_open":
                self._part(client)
                client.socket.freeze()
                self._frozen.append(client.socket)
            case "stall":
                client.silent |= value
            case "garbage_frames":
                for i in range(value):
                    client.socket.write(text_frame(GARBAGE[i % len(GARBAGE)]))
            case _:
                raise ValueError(f"{name} is not an action of the stream")

    def _subscribe(self, client: StreamClient, symbols: Iterable[str], now: float) -> None:
        # What is due belongs to those who were subscribed before.
        self.advance(now)
        if client.leaving:  # the script closed it just now
            return
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
        if self._resend_last:
            self._send_last(client, (info.symbol for info in success))
        self._wake()

    def _send_last(self, client: StreamClient, symbols: Iterable[str]) -> None:
        for symbol in symbols:
            source = self._market.get(symbol)
            tick = source.last_tick(self._position) if source is not None else None
            if tick is None or symbol in self._faults.mute or symbol in client.silent:
                continue
            shape = Shape.RESENT
            if (factor := streamed_scale(self._faults)) is not None:
                tick, shape = scaled(tick, factor), shape | Shape.SCALED
            if self._faults.float32_noise:
                tick, shape = noisy(tick), shape | Shape.NOISE
            client.socket.write(self._encoded(symbol, tick, self._clock.now(), shape))
            client.frames_sent += 1

    def _may_stream(self, client: StreamClient, info: SymbolInfo) -> bool:
        if info.symbol in self._faults.fails:
            return False
        if self._plan.trial_only and not info.trial:
            return False
        if info.symbol in client.symbols:
            return True
        used = sum(len(one.symbols) for one in self._clients if one.key == client.key)
        return used < self._plan.ws_credits

    def _depart(self, now: float) -> None:
        """Send what is due by ``now`` (of our clock), up to where the position moves."""
        self._reached = max(self._reached, now)
        vendor_now = now + self._faults.clock_skew_s
        audience = self._audience()
        due = self._schedule.due(self._position, vendor_now, _union(audience))
        self._position = max(self._position, int(vendor_now))
        if not due:
            return
        outgoing = _Outgoing()
        left = self._clock.now()
        for one in due:
            frame = self._encoded(one.symbol, one.tick, left, one.shape)
            outgoing.frames.append((one.symbol, frame))
        for client, symbols in audience:
            data, count = outgoing.of(symbols)
            if count:
                client.socket.write(data)
                client.frames_sent += count

    def _audience(self) -> list[tuple[StreamClient, frozenset[str]]]:
        pairs = [(client, client.heard) for client in self._clients if not client.leaving]
        return [(client, symbols) for client, symbols in pairs if symbols]

    def _encoded(self, symbol: str, tick: SimTick, left: float, shape: int = 0) -> bytes:
        if symbol in self._faults.frozen:
            still = self._still.setdefault(symbol, self._sent.get(symbol, tick))
            tick, shape = still._replace(timestamp=tick.timestamp), shape | Shape.FROZEN
        else:
            self._still.pop(symbol, None)
            self._sent[symbol] = tick
        quotes = not self._faults.no_bid_ask
        self.ledgers[symbol].add(tick, left, shape, quotes=quotes)
        return self._encoders[symbol].frame(tick, strings=self._faults.string_prices, quotes=quotes)

    def _next_instant(self) -> float | None:
        """When there is something to do next, by our clock."""
        leaves = self._schedule.next_instant(self._position, _union(self._audience()))
        scripted = self.agenda.next_instant()
        if leaves is None:
            return scripted
        leaves -= self._faults.clock_skew_s
        return leaves if scripted is None else min(leaves, scripted)

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
        waiting = [one for one in self._clients if not one.leaving]
        for client in [one for one in waiting if not one.socket.writable.is_set()]:
            try:
                await asyncio.wait_for(client.socket.writable.wait(), _SLOW_CLIENT_REAL_S)
            except TimeoutError:
                log.warning("Resetting a client that takes no data.", client=client.id)
                self._part(client)
                client.socket.reset()

    def _evict(self, client: StreamClient) -> None:
        log.info("Closing the oldest connection of a key.", client=client.id)
        self.door.evicted += 1
        self._part(client)
        client.socket.start_close(POLICY_CLOSE)

    def _part(self, client: StreamClient) -> None:
        client.leaving = True
        client.symbols = frozenset()


def _union(audience: Iterable[tuple[StreamClient, frozenset[str]]]) -> list[str]:
    return sorted(frozenset().union(*(symbols for _, symbols in audience)))


def _whole_second(instant: float) -> int:
    """The first whole second at or after ``instant``."""
    return -int(-instant // 1)
