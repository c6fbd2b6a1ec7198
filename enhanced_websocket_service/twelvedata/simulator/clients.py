"""Who is connected, who tried, and how much each key asked for. Pure bookkeeping."""

import asyncio
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from .fault_values import NOBODY, Which
from .ledger import key_label

_MOST_HANDSHAKES = 5000
_MOST_MINUTES = 5000


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

    def finish(self) -> None:
        """End the TCP connection with FIN, without a close frame."""
        ...

    def freeze(self) -> None:
        """From now on read nothing and write nothing, but stay open."""
        ...


@dataclass(eq=False, slots=True)
class StreamClient:
    """One connection: whose it is and what it wants."""

    id: int
    key: str
    socket: Socket
    since: float  # unix seconds of the clock
    symbols: frozenset[str] = frozenset()
    silent: Which = NOBODY  # of these it never gets a price
    minute: int = -1
    events: int = 0  # in ``minute``
    frames_sent: int = 0
    leaving: bool = False

    @property
    def heard(self) -> frozenset[str]:
        """The symbols whose prices it gets."""
        if not self.silent:
            return self.symbols
        return frozenset(one for one in self.symbols if one not in self.silent)

    def shown(self) -> dict[str, Any]:
        """For ``GET /_sim/status``. Keys are shown as a short hash."""
        return {
            "id": self.id,
            "key": key_label(self.key),
            "since": self.since,
            "symbols": sorted(self.symbols),
            "frames_sent": self.frames_sent,
        }


class Doorbook:
    """Handshakes and client events: the newest some thousands, and how many there were in all."""

    def __init__(self) -> None:
        self.accepted = 0
        self.refused = 0
        self.evicted = 0
        self.pongs_withheld = 0
        self._handshakes: deque[dict[str, Any]] = deque(maxlen=_MOST_HANDSHAKES)
        self._events: dict[tuple[int, str], list[int]] = {}

    def handshake(self, at: float, key: str | None, status: int) -> None:
        """Record a handshake that was answered with ``status`` (101: accepted; 0: never)."""
        if status == 101:
            self.accepted += 1
        else:
            self.refused += 1
        self._handshakes.append({"at": at, "key": key_label(key or ""), "status": status})

    def event(self, at: float, key: str, *, heartbeat: bool) -> None:
        """Record a message of a client."""
        place = (int(at // 60), key)
        counts = self._events.get(place)
        if counts is None:
            if len(self._events) >= _MOST_MINUTES:
                del self._events[next(iter(self._events))]
            counts = self._events[place] = [0, 0]
        counts[heartbeat] += 1

    def shown(self) -> dict[str, Any]:
        return {
            "handshakes": {
                "accepted": self.accepted,
                "refused": self.refused,
                "evicted": self.evicted,
                "newest": list(self._handshakes),
            },
            "client_events": [
                {
                    "minute": datetime.fromtimestamp(60 * minute, UTC).isoformat(),
                    "key": key_label(key),
                    "events": events,
                    "heartbeats": heartbeats,
                }
                for (minute, key), (events, heartbeats) in self._events.items()
            ],
            "pongs_withheld": self.pongs_withheld,
        }
