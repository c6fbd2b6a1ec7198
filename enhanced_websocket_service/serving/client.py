"""One client as the hub sees it, and the groups of clients that get the very same bytes."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from .deflate import deflated
from .direct import BorrowedSocket
from .history import BAR, EPOCH, GAP, Entry, Position, TickEntry, frames_of
from .limits import Budget
from .outlet import Outlet, Writer
from .wire import Channel

if TYPE_CHECKING:
    from .hub import Hub
    from .stored import Fetch


class Interest(NamedTuple):
    """What a client wants. Clients of equal interest share one group and one payload."""

    symbols: frozenset[str]
    channels: frozenset[Channel | Literal["probe"]]
    conflate: bool  # mode=latest: of several ticks only the newest, and no ``skipped``
    deflate: bool = False  # what all of its group get is compressed

    def wants(self, entry: Entry | TickEntry) -> bool:
        """Whether an entry of the history of one of ``symbols`` is for such a client."""
        if entry.kind == BAR:
            return "bars" in self.channels
        if entry.kind == EPOCH:
            return True
        return "ticks" in self.channels and not (self.conflate and entry.kind == GAP)

    @property
    def mode(self) -> Literal["every", "latest", "bars"]:
        if "ticks" not in self.channels:
            return "bars"
        return "latest" if self.conflate else "every"


class Staged(NamedTuple):
    """One encoded message of the batch being published, or the ``ticks`` of one symbol in a row.

    ``symbol`` is None for ``status`` and ``probe``.
    """

    symbol: str | None
    kind: Literal["ticks", "bar", "epoch", "gap", "status", "probe"]
    frame: bytes = b""
    ticks: Sequence[TickEntry] = ()


def compressed(one: Staged) -> Staged:
    """The same for clients that negotiated compression."""
    if one.kind != "ticks":
        return one._replace(frame=deflated(one.frame))
    made = zip(one.ticks, frames_of(one.ticks), strict=True)
    short = [TickEntry(tick.epoch, tick.offset, None, deflated(frame)) for tick, frame in made]
    return one._replace(ticks=short)


class Group:
    """The live clients of one interest, by the way in which they are written to."""

    def __init__(self, interest: Interest) -> None:
        self.interest = interest
        self.by_socket: dict[BorrowedSocket, Client] = {}
        self.by_writer: dict[Writer, Client] = {}
        self.written = 0  # bytes given to each member since the group began
        self._sockets: tuple[BorrowedSocket, ...] | None = None

    def __len__(self) -> int:
        return len(self.by_socket) + len(self.by_writer)

    def add(self, client: "Client") -> None:
        client.group, client.route = self, client.outlet.direct or client.outlet.write
        if isinstance(client.route, BorrowedSocket):
            self.by_socket[client.route] = client
            self._sockets = None
        else:
            self.by_writer[client.route] = client

    def remove(self, client: "Client") -> None:
        route, client.group, client.route = client.route, None, None
        if isinstance(route, BorrowedSocket):
            del self.by_socket[route]
            self._sockets = None
        elif route is not None:
            del self.by_writer[route]

    def sockets(self) -> tuple[BorrowedSocket, ...]:
        """Of the members that have one now. Kept until that changes."""
        if self._sockets is None:
            self._sockets = tuple(self.by_socket)
        return self._sockets

    def compose(self, staged: Sequence[Staged]) -> tuple[bytes, int]:
        """The bytes of this group for one batch, and how many messages they are."""
        symbols, channels, conflate, _ = self.interest
        frames: list[bytes] = []
        newest: dict[str, tuple[int, TickEntry]] = {}
        for symbol, kind, frame, ticks in staged:
            if symbol is None:
                if kind in channels:
                    frames.append(frame)
                continue
            if symbol not in symbols:
                continue
            if kind == "ticks":
                if "ticks" not in channels:
                    continue
                if conflate:
                    newest[symbol] = len(frames), ticks[-1]
                    frames.append(b"")
                else:
                    frames += frames_of(ticks)
            elif kind == "bar":
                if "bars" in channels:
                    frames.append(frame)
            elif kind == "epoch" or ("ticks" in channels and not conflate):
                frames.append(frame)
        for at, tick in newest.values():
            frames[at] = tick.frame
        return b"".join(frames), sum(map(bool, frames))


class Client:
    """State of one connection, changed by the hub alone; listens to its outlet."""

    __slots__ = (
        "_hub",
        "_loop",
        "_timer",
        "aged",
        "behind",
        "budget",
        "congested",
        "fetches",
        "group",
        "in_order",
        "interest",
        "mark",
        "number",
        "open",
        "outlet",
        "pumping",
        "route",
        "status_seen",
        "taken",
        "written",
    )

    def __init__(
        self,
        number: int,
        hub: "Hub",
        outlet: Outlet,
        interest: Interest,
        messages_per_s: float,
        message_burst: int,
    ) -> None:
        self.number = number
        self.outlet = outlet
        self.interest = interest
        self.open = True
        self.congested = False
        self.pumping = False  # a call of the hub's pump is scheduled
        self.group: Group | None = None  # set while live
        self.route: BorrowedSocket | Writer | None = None  # by which the group knows it, while live
        self.behind: dict[str, Position] = {}  # by symbol, while not live
        self.in_order = False  # it resumed: until it is live, it gets every tick
        self.fetches: dict[str, Fetch] = {}  # symbols that are read from the store
        self.written = 0  # bytes written to it; while it is live, less those of its group before it
        self.mark: tuple[float, int] | None = None  # when, and what had been written (aging.py)
        self.aged = False  # slow because something waits too long, not because it is too much
        self.taken = 0  # bytes that its side had taken when it was last found to be slow
        self.status_seen: bytes | None = None  # the last status frame before it became slow
        loop = asyncio.get_running_loop()
        self.budget = Budget(messages_per_s, message_burst, loop.time)
        self._hub = hub
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    @property
    def written_in_all(self) -> int:
        """Bytes written to it since it connected."""
        return self.written + (self.group.written if self.group is not None else 0)

    def start_timer(self, seconds: float, then: Callable[[], None]) -> None:
        self.stop_timer()
        self._timer = self._loop.call_later(seconds, then)

    def stop_fetches(self, keep: Collection[str] = ()) -> None:
        """Read no more from the store, but for the symbols in ``keep``."""
        for symbol in self.fetches.keys() - set(keep):
            self.fetches.pop(symbol).task.cancel()

    def stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_congested(self) -> None:
        self._hub.congested(self)

    def on_drained(self) -> None:
        self._hub.drained(self)

    def on_rerouted(self) -> None:
        if (group := self.group) is not None:
            group.remove(self)
            group.add(self)

    def on_closed(self) -> None:
        self._hub.drop(self)
