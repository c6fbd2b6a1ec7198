"""Fan-out: every message is encoded once, and one write per client and batch hands it over.

Invariants. (1) Nothing here awaits: ``on_events`` runs inside the pipeline, so one client can never delay
another. (2) A client is either *live*, a member of exactly one group, and has everything published
so far; or it is *behind*, in no group, with a position per symbol. It becomes live again in the same
synchronous step that writes the last missing frame, so there is no hole, no double, no reorder.
(3) No queue per client: a slow one is a position in the shared history. (4) A tick that a client in
``every`` mode asked for is written, or named in ``skipped``.

Not owned here: sockets (outlet.py, frames.py), what messages look like (wire.py), who may connect.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal

import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.market.events import Event
from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.telemetry import Metrics, Rarely

from . import wire
from .aging import AgeWatch
from .board import Board
from .catchup import Stretch, announce, every_tick, jump, replay
from .census import count_clients
from .client import Client, Group, Interest, Staged, compressed
from .direct import CLOSED, send_to_all
from .history import Position
from .limits import Limits
from .models import ClientCounts, StreamPosition
from .outlet import Outlet, Writer, text_frame
from .stored import Fetch, Replay, StoredStream
from .turns import Turns

log = structlog.get_logger(__name__)

Mode = Literal["every", "latest", "bars"]

_TICKS: frozenset[wire.Channel] = frozenset({"ticks"})
_INSIDE: frozenset[Literal["ticks", "probe"]] = frozenset({"ticks", "probe"})
_INSIDE_S = 0.1
"""Real seconds for which what the client inside gets is gathered: a message for each batch would be made for
it alone."""
_CHUNK = 512  # history entries handed to one client before the others get their turn again


class Hub:
    """The clients and what they get. One event loop; every method is synchronous."""

    def __init__(
        self,
        symbols: Sequence[str],
        clock: Clock,
        server_status: Callable[[], str],
        metrics: Metrics,
        limits: Limits | None = None,
    ) -> None:
        self.symbols = tuple(symbols)
        self.limits = limits or Limits()
        self._clock = clock
        self._server_status = server_status
        self.metrics = metrics
        self._board = Board(self.symbols, self.limits.history)
        self._histories = self._board.histories
        self._groups: dict[Interest, Group] = {}
        self._clients: set[Client] = set()
        self._ages = AgeWatch(
            self.limits.age_s, lambda: self._clients, self.congested, self.drained
        )
        self.turns = Turns()
        self._ids = itertools.count(1)
        self._connected_total = self._slow_total = self._closed_slow_total = 0
        self._skipped_ticks = self._sent = 0
        self._told = Rarely()
        self._inside = Group(Interest(frozenset(symbols), _INSIDE, conflate=True))
        self._loopback: Writer | None = None
        self._for_inside: list[Staged] = []  # what it has not been handed yet
        self._inside_due = False
        self.stored: StoredStream | None = None
        """Where what memory no longer holds is read, once there is such a place."""

    # --- from the bus -------------------------------------------------------------------------

    def seed(self, tick: Tick) -> None:
        """``tick`` was published last before a restart: clients get it as their snapshot."""
        self._board.seed(tick)

    def on_events(self, events: Sequence[Event]) -> None:
        """Publish one batch, in order. Also fills the history when nobody is connected."""
        staged = self._board.stage(events)
        for group, messages in self._addressed(staged):
            payload, count = group.compose(messages)
            if not payload:
                continue
            due = count * len(group)
            group.written += len(payload)
            writers = list(group.by_writer.items())  # before any of the others becomes one of them
            for socket, taken in send_to_all(group.sockets(), payload):
                client = group.by_socket[socket]
                if taken == CLOSED:
                    self.drop(client)  # the socket closed under us; its protocol tells no more
                else:
                    # The peer reads slowly. The rest waits in the transport, before all else.
                    client.written -= len(payload) - taken  # or it would count twice
                    self._write(client, payload[taken:], 0)
            for write, client in writers:
                try:
                    write(payload)
                except (OSError, RuntimeError):
                    self.drop(client)
            self._count(due)  # nobody waits for it
        if self._loopback is not None:
            self._for_inside += staged
            if any(one.kind == "probe" for one in staged):
                self._hand_inside()
            elif not self._inside_due:
                self._inside_due = True
                asyncio.get_running_loop().call_later(_INSIDE_S, self._hand_inside)

    def listen_inside(self, write: Writer) -> None:
        """Hand the newest ticks to ``write``, too, which is no client: see ``loopback.Loopback``."""
        self._loopback = write

    def _hand_inside(self) -> None:
        self._inside_due = False
        staged, self._for_inside = self._for_inside, []
        payload, _ = self._inside.compose(staged)
        if payload and self._loopback is not None:
            self._loopback(payload)

    def _addressed(self, staged: list[Staged]) -> Iterator[tuple[Group, list[Staged]]]:
        """Each group with what it chooses from; compressed once, when the others have theirs."""
        groups = list(self._groups.values())
        for group in groups:
            if not group.interest.deflate:
                yield group, staged
        compressing = [group for group in groups if group.interest.deflate]
        if compressing:
            short = [compressed(one) for one in staged]
            for group in compressing:
                yield group, short

    # --- clients come and go ------------------------------------------------------------------

    def connect(
        self,
        outlet: Outlet,
        symbols: Iterable[str],
        mode: Mode = "every",
        since: Sequence[wire.Resume] = (),
        travel: Replay | None = None,
    ) -> Client:
        """Welcome a client whose handshake is done; it is live, or catching up, on return."""
        channels = wire.CHANNELS - _TICKS if mode == "bars" else wire.CHANNELS
        client = Client(
            next(self._ids),
            self,
            outlet,
            Interest(frozenset(symbols), channels, mode == "latest", outlet.deflates),
            self.limits.messages_per_s,
            self.limits.message_burst,
        )
        self._clients.add(client)
        self._ages.start()
        self._connected_total += 1
        self.metrics.clients.set(len(self._clients))
        outlet.bind(client, *self.limits.water(conflate=client.interest.conflate))
        now, status = self._clock.now(), self._server_status()
        self._send(client, self._board.welcome(client.interest.symbols, status, now))
        resumed = {cursor.symbol for cursor in since}
        if travel is not None and self.stored is not None:
            resumed = set(client.interest.symbols)
        for symbol in sorted(client.interest.symbols - resumed):
            self._send_snapshot(client, symbol)
        self._set_behind(client)
        if travel is not None and self.stored is not None:
            client.in_order = every_tick(client.interest)
            for symbol in client.behind:
                self._fetch(client, self.stored, symbol, travel)
        for cursor in since:
            self._place(client, cursor)
        self._pump(client)
        return client

    def drop(self, client: Client) -> None:
        """Forget a client whose connection has ended. Harmless when repeated."""
        if client not in self._clients:
            return
        self._clients.discard(client)
        client.open = False
        self._leave(client)
        client.stop_timer()
        client.stop_fetches()
        self.metrics.clients.set(len(self._clients))

    def close(self, client: Client, code: int, reason: str, error: bytes = b"") -> None:
        """Say goodbye with ``code``, explained by an ``error``; the client gets nothing after it."""
        if client.open:
            self._write(client, text_frame(error) if error else b"", 1)
            self.drop(client)
            client.outlet.close(code, reason)

    def close_all(self, code: int = 1012, reason: str = "the service is restarting") -> None:
        """Say goodbye to everyone, as at shutdown."""
        for client in list(self._clients):
            self.close(client, code, reason)

    # --- what clients ask ---------------------------------------------------------------------

    def on_message(self, client: Client, text: str | bytes) -> None:
        """Answer one message of a client; floods close it with 1008."""
        if not client.open:
            return
        if not client.budget.take():
            self.close(client, 1008, "too many messages")
            return
        match wire.parse(text):
            case wire.Heartbeat():
                reply = wire.heartbeat_response(self._server_status(), self._clock.now())
                self._send(client, reply)
            case wire.Subscribe(symbols, channels):
                self._change(client, symbols, frozenset(channels), add=True)
            case wire.Unsubscribe(symbols, channels):
                self._change(client, symbols, frozenset(channels), add=False)
            case wire.Resume() as cursor:
                self._resume(client, cursor)
            case wire.Fault(code, message):
                self._send(client, wire.error(code, message))

    def unknown_symbol(self, text: str) -> bytes:
        """The ``error`` message for a symbol that is not served here."""
        known = ", ".join(self.symbols)
        return wire.error("unknown_symbol", f"Unknown symbol {text[:40]!r}; known: {known}.")

    def _change(
        self, client: Client, names: Sequence[str], channels: frozenset[wire.Channel], *, add: bool
    ) -> None:
        symbols = {wire.normalise_symbol(name) for name in names}
        if unknown := symbols - self._histories.keys():
            self._send(client, self.unknown_symbol(", ".join(sorted(unknown))))
        symbols &= self._histories.keys()
        old = client.interest
        if add:
            new = old._replace(symbols=old.symbols | symbols, channels=old.channels | channels)
        else:
            new = old._replace(symbols=old.symbols - symbols, channels=old.channels - channels)
        if client.group is not None:
            self._set_behind(client)
        client.interest = new
        # Symbols that stay keep their place; new ones begin now, with the last known price.
        client.behind = {s: client.behind.get(s, self._histories[s].end) for s in new.symbols}
        client.stop_fetches(keep=new.symbols)
        fresh = new.symbols - old.symbols
        if "ticks" in new.channels - old.channels:
            fresh = new.symbols
        for symbol in sorted(fresh):
            self._send_snapshot(client, symbol)
        self._pump(client)

    def _resume(self, client: Client, cursor: wire.Resume) -> None:
        symbol = wire.normalise_symbol(cursor.symbol)
        if symbol not in client.interest.symbols:
            self._send(client, self.unknown_symbol(cursor.symbol))
            return
        if client.group is not None:
            self._set_behind(client)
        self._place(client, wire.Resume(symbol, cursor.epoch, cursor.offset))
        self._pump(client)

    def _place(self, client: Client, cursor: wire.Resume) -> None:
        """Put a client that is behind to where its cursor says, naming what is gone."""
        symbol = cursor.symbol
        client.stop_fetches(keep=client.interest.symbols - {symbol})
        history = self._histories[symbol]
        found = history.locate(cursor.epoch, cursor.offset)
        if found is None:
            message = (
                f"{symbol}:{cursor.epoch}:{cursor.offset} is ahead of what this service has "
                f"published ({history.epoch}:{history.head}); continuing with what comes next."
            )
            self._send(client, wire.error("bad_cursor", message))
            self._send_snapshot(client, symbol)
            client.behind[symbol] = history.end
            return
        if every_tick(client.interest):
            # The other symbols, too: while this one catches up, they must not miss a tick.
            client.in_order = True
        if self.stored is not None and not history.holds_from(cursor.epoch, cursor.offset):
            client.behind[symbol] = Position(0, cursor.epoch, cursor.offset)
            self._fetch(client, self.stored, symbol)
            return
        self._hand(client, symbol, announce(symbol, client.interest, *found))

    # --- from the store (stored.py) -----------------------------------------------------------

    def _fetch(
        self, client: Client, stored: StoredStream, symbol: str, travel: Replay | None = None
    ) -> None:
        if client.open:  # nobody would end the reading for one that left while it was welcomed
            history = self._histories[symbol]
            client.fetches[symbol] = Fetch(self, stored, client, history, symbol, travel)

    def hand_stored(self, fetch: Fetch, stretch: Stretch, *, last: bool = False) -> None:
        """Write what the store had; behind the ``last`` stretch memory goes on in this very step."""
        client, symbol = fetch.client, fetch.symbol
        if last:
            del client.fetches[symbol]
        self._hand(client, symbol, stretch)
        if last:
            client.in_order = client.in_order or every_tick(client.interest)
            self._pump(client)

    # --- catching up --------------------------------------------------------------------------

    def congested(self, client: Client) -> None:
        """The outlet is above its high-water mark: write no more ticks until it has drained."""
        if not client.open or client.congested:
            return
        client.congested = True
        self.metrics.clients_slowed.labels("age" if client.aged else "bytes").inc()
        self._expect_progress(client)
        if client.group is not None:
            # A live client: everything in the history has just been written to it.
            self._set_behind(client)
            self._slow_total += 1
            log.debug("Client is slow, gets only the latest", client=client.number)

    def drained(self, client: Client) -> None:
        """The outlet is empty enough again: catch up."""
        if client.open and client.congested:
            client.congested = client.aged = False
            client.stop_timer()
            self._pump(client)

    def _expect_progress(self, client: Client) -> None:
        client.taken = client.written_in_all - client.outlet.untaken()
        client.start_timer(self.limits.stall_s, lambda: self._look_for_progress(client))

    def _look_for_progress(self, client: Client) -> None:
        """One that takes what waits, however slowly, is told of the present once it has."""
        if client.written_in_all - client.outlet.untaken() > client.taken:
            self._expect_progress(client)
        else:
            self._stalled(client)

    def _stalled(self, client: Client) -> None:
        self._closed_slow_total += 1
        if times := self._told.due(asyncio.get_running_loop().time()):
            log.warning("Client reads too slowly, closed", client=client.number, times=times)
        self.close(client, 4008, "reading too slowly")

    def _set_behind(self, client: Client) -> None:
        """Take a live client out of its group; it has everything published so far."""
        self._leave(client)
        client.behind = {s: self._histories[s].end for s in client.interest.symbols}
        client.in_order = False
        client.status_seen = self._board.status

    def _pump(self, client: Client) -> None:
        """Write what a client that is behind still lacks; make it live when nothing is left."""
        client.pumping = False
        if client.group is not None:
            return
        for symbol in sorted(client.behind):
            if not client.open or client.congested:
                return
            if (fetch := client.fetches.get(symbol)) is not None:
                fetch.go_on()
                continue
            history, position = self._histories[symbol], client.behind[symbol]
            if not client.in_order:
                self._hand(client, symbol, jump(symbol, history, position, client.interest))
                continue
            if position.seq < history.first_seq and self.stored is not None:
                self._fetch(client, self.stored, symbol)
                continue
            self._hand(client, symbol, replay(symbol, history, position, client.interest, _CHUNK))
            if client.behind[symbol].seq < history.next_seq:
                self._pump_later(client)
                return
        if client.fetches:
            return
        status = self._board.status
        seen, client.status_seen = client.status_seen, status
        if "status" in client.interest.channels and status is not None and status is not seen:
            self._write(client, status, 1)
        if client.open and not client.congested:
            self._join(client)

    def _pump_later(self, client: Client) -> None:
        """Go on in a later turn of the loop, so that a long replay delays nobody."""
        if not client.pumping and client.open and not client.congested:
            client.pumping = True
            self.turns.take(partial(self._pump, client))

    def _hand(self, client: Client, symbol: str, stretch: Stretch) -> None:
        # The position first: the write may find the client congested and must leave it right.
        client.behind[symbol] = stretch.position
        self._skipped_ticks += stretch.skipped
        self._write(client, b"".join(stretch.frames), len(stretch.frames))

    # --- the last step to a client ------------------------------------------------------------

    def _join(self, client: Client) -> None:
        group = self._groups.get(client.interest)
        if group is None:
            group = self._groups[client.interest] = Group(client.interest)
        group.add(client)
        client.written -= group.written
        client.behind.clear()

    def _leave(self, client: Client) -> None:
        group = client.group
        if group is not None:
            group.remove(client)
            client.written += group.written
            if not group:
                del self._groups[group.interest]

    def _send_snapshot(self, client: Client, symbol: str) -> None:
        tick = self._board.snapshots.get(symbol)
        if tick is not None and "ticks" in client.interest.channels:
            self._send(client, wire.market_data(tick, snapshot=True))

    def _send(self, client: Client, payload: bytes) -> None:
        """A message for this client alone. It is sent to slow ones too, up to the hard limit."""
        if client.open and client.congested and client.outlet.buffered() > self.limits.hard:
            self._stalled(client)
            return
        self._write(client, text_frame(payload), 1)

    def _write(self, client: Client, frames: bytes, count: int) -> None:
        if not frames or not client.open:
            return
        client.written += len(frames)
        try:
            client.outlet.write(frames)
        except (OSError, RuntimeError):
            self.drop(client)
            return
        self._count(count)

    def _count(self, messages: int) -> None:
        self._sent += messages
        self.metrics.messages.inc(messages)

    def positions(self) -> dict[str, StreamPosition]:
        """The last tick given out per symbol."""
        return self._board.positions()

    def counts(self) -> ClientCounts:
        """The clients of this moment, for ``/status``."""
        return count_clients(
            self._clients,
            self.symbols,
            connections_total=self._connected_total,
            messages_sent_total=self._sent,
            skipped_ticks_total=self._skipped_ticks,
            slowed_total=self._slow_total,
            closed_slow_total=self._closed_slow_total,
        )
