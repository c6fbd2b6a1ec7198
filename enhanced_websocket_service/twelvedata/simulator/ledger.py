"""What was asked for and put on the wire, so that a client can be compared with it. Pure."""

import contextlib
from array import array
from collections import deque
from collections.abc import Iterator
from enum import IntFlag
from hashlib import sha256
from math import isnan, nan
from typing import Any

import msgspec

from .answers import Answer, Request
from .model import SimTick

_DEFAULT_LIMIT = 2_000_000
_MOST_REQUESTS = 20_000


def key_label(key: str) -> str:
    """A short name for a key that does not tell the key."""
    return sha256(key.encode()).hexdigest()[:8]


class Shape(IntFlag):
    """What made a tick on the wire other than the market had it."""

    NONE = 0
    RESENT = 1  # the last price, after a subscription
    DOUBLE = 2  # the second of two equal frames
    DISORDER = 4  # left later than its place
    DELAYED = 8
    FUTURE = 16
    OUTLIER = 32  # a bad print: the market never had this tick
    BURST = 64  # neither this one
    CROSSED = 128
    NOISE = 256
    FROZEN = 512  # its price is an older one
    SCALED = 1024

    def names(self) -> str:
        return ",".join(str(one.name).lower() for one in Shape if one and one in self)


class RequestLedger:
    """The vendor's REST calls, the newest ``limit`` of them. Keys are told by a hash."""

    def __init__(self, limit: int = _MOST_REQUESTS) -> None:
        self._entries: deque[dict[str, Any]] = deque(maxlen=limit)

    def add(self, request: Request, answer: Answer, now: float, *, answered: bool = True) -> None:
        """Record a call and its answer; for rows also how many, the first and the last label.

        :param answered: whether the answer was sent; otherwise its status is shown as 0.
        """
        rows: list[Any] = []
        if answered and request.path == "/time_series" and answer.status == 200:
            with contextlib.suppress(msgspec.DecodeError):  # CSV is not looked into
                rows = msgspec.json.decode(answer.body).get("values", [])
        labels = sorted(row["datetime"] for row in rows)
        self._entries.append(
            {
                "at": now,
                "path": request.path,
                "key": key_label(request.key or ""),
                "start_date": request.params.get("start_date"),
                "end_date": request.params.get("end_date"),
                "timezone": request.params.get("timezone"),
                "status": answer.status if answered else 0,
                "rows": len(rows),
                "first": labels[0] if labels else None,
                "last": labels[-1] if labels else None,
            }
        )

    def entries(self) -> list[dict[str, Any]]:
        """Oldest first."""
        return list(self._entries)


class SentLedger:
    """The ticks of one symbol that left for at least one client, in the order of the wire.

    Holds the newest ``limit`` entries at least and twice as many at most; ``forgotten`` counts the
    older ones. A tick that was re-sent after a subscription is an entry of its own.
    """

    def __init__(self, limit: int = _DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._stamps = array("q")
        self._prices = array("d")
        self._bids = array("d")
        self._asks = array("d")
        self._left = array("d")
        self._shapes = array("H")
        self._resent = 0
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._stamps)

    def add(self, tick: SimTick, left: float = nan, shape: int = 0, *, quotes: bool = True) -> None:
        """Record ``tick``, which left at ``left`` (unix seconds of the clock).

        :param shape: the ``Shape`` of it.
        :param quotes: whether its bid and ask were sent.
        """
        stamp, price, bid, ask = tick
        self._stamps.append(stamp)
        self._prices.append(price)
        self._bids.append(bid if quotes and bid is not None else nan)
        self._asks.append(ask if quotes and ask is not None else nan)
        self._left.append(left)
        self._shapes.append(shape)
        self._resent += shape & 1
        if len(self._stamps) >= 2 * self._limit:
            self._forget(len(self._stamps) - self._limit)

    def entries(
        self, start: float | None, end: float | None, *, resent: bool = True
    ) -> Iterator[dict[str, Any]]:
        """The entries stamped in ``[start, end)``, re-sent ones only where ``resent``."""
        for i, stamp in enumerate(self._stamps):
            if (start is not None and stamp < start) or (end is not None and stamp >= end):
                continue
            again = bool(self._shapes[i] & 1)
            if again and not resent:
                continue
            bid, ask, left = self._bids[i], self._asks[i], self._left[i]
            shape = self._shapes[i]
            yield {
                "timestamp": stamp,
                "price": self._prices[i],
                "bid": None if isnan(bid) else bid,
                "ask": None if isnan(ask) else ask,
                "resent": again,
                "left": None if isnan(left) else left,
                # A text, not a list: table readers guess the type of a column by its first rows.
                "faults": Shape(shape).names() if shape else "",
            }

    def counts(self) -> dict[str, int]:
        return {
            "ticks": len(self._stamps) - self._resent,
            "resent": self._resent,
            "forgotten": self.forgotten,
        }

    def _forget(self, count: int) -> None:
        self._resent -= sum(shape & 1 for shape in self._shapes[:count])
        for column in (
            *(self._stamps, self._prices, self._bids, self._asks),
            *(self._left, self._shapes),
        ):
            del column[:count]
        self.forgotten += count
