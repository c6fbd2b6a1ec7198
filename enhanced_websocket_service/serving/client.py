"""One client as the hub sees it, and the groups of clients that get the very same bytes."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from .history import BAR, EPOCH, GAP, Entry, Position, TickEntry, frames_of
from .outlet import Outlet
from .wire import Channel

if TYPE_CHECKING:
    from .hub import Hub


class Interest(NamedTuple):
    """What a client wants. Clients of equal interest share one group and one payload."""

    symbols: frozenset[str]
    channels: frozenset[Channel]
    conflate: bool  # mode=latest: of several ticks only the newest, and no ``skipped``

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

    ``symbol`` is None for ``status``.
    """

    symbol: str | None
    kind: Literal["ticks", "bar", "epoch", "gap", "status"]
    frame: bytes = b""
    ticks: Sequence[TickEntry] = ()


class Group:
    """The live clients of one interest, each with the function that writes to it."""

    def __init__(self, interest: Interest) -> None:
        self.interest = interest
        self.members: dict[Client, Callable[[bytes], None]] = {}

    def compose(self, staged: Sequence[Staged]) -> tuple[bytes, int]:
        """The bytes of this group for one batch, and how many messages they are."""
        symbols, channels, conflate = self.interest
        frames: list[bytes] = []
        newest: dict[str, tuple[int, TickEntry]] = {}
        for symbol, kind, frame, ticks in staged:
            if symbol is None:
                if "status" in channels:
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


class Budget:
    """A token bucket: ``burst`` messages at once, ``rate`` a real second on average."""

    def __init__(self, rate: float, burst: int, real_time: Callable[[], float]) -> None:
        self._rate, self._burst, self._real_time = rate, burst, real_time
        self._tokens = float(burst)
        self._at = real_time()

    def take(self) -> bool:
        """Spend one; False when there is none left."""
        now = self._real_time()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Client:
    """State of one connection, changed by the hub alone; listens to its outlet."""

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
        self.behind: dict[str, Position] = {}  # by symbol, while not live
        self.replaying: set[str] = set()  # symbols behind because the client resumed
        self.status_seen: bytes | None = None  # the last status frame before it became slow
        loop = asyncio.get_running_loop()
        self.budget = Budget(messages_per_s, message_burst, loop.time)
        self._hub = hub
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def start_timer(self, seconds: float, then: Callable[[], None]) -> None:
        self.stop_timer()
        self._timer = self._loop.call_later(seconds, then)

    def stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_congested(self) -> None:
        self._hub.congested(self)

    def on_drained(self) -> None:
        self._hub.drained(self)

    def on_closed(self) -> None:
        self._hub.drop(self)
