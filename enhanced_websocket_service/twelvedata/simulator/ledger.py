"""What was asked for and put on the wire, so that a client can be compared with it. Pure."""

import contextlib
from array import array
from collections import deque
from collections.abc import Iterator
from hashlib import sha256
from math import isnan, nan
from typing import Any

import msgspec

from .answers import Answer, Request
from .model import SimTick

_DEFAULT_LIMIT = 2_000_000
_MOST_REQUESTS = 20_000


class RequestLedger:
    """The vendor's REST calls, the newest ``limit`` of them. Keys are told by a hash."""

    def __init__(self, limit: int = _MOST_REQUESTS) -> None:
        self._entries: deque[dict[str, Any]] = deque(maxlen=limit)

    def add(self, request: Request, answer: Answer, now: float) -> None:
        """Record a call and its answer; for rows also how many, the first and the last label."""
        rows: list[Any] = []
        if request.path == "/time_series" and answer.status == 200:
            with contextlib.suppress(msgspec.DecodeError):  # CSV is not looked into
                rows = msgspec.json.decode(answer.body).get("values", [])
        labels = sorted(row["datetime"] for row in rows)
        self._entries.append(
            {
                "at": now,
                "path": request.path,
                "key": sha256((request.key or "").encode()).hexdigest()[:8],
                "start_date": request.params.get("start_date"),
                "end_date": request.params.get("end_date"),
                "timezone": request.params.get("timezone"),
                "status": answer.status,
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
        self._resent = bytearray()
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._stamps)

    def add(self, tick: SimTick, *, quotes: bool = True, resent: bool = False) -> None:
        """Record ``tick``; ``quotes`` is whether its bid and ask were sent."""
        self._stamps.append(tick.timestamp)
        self._prices.append(tick.price)
        self._bids.append(tick.bid if quotes and tick.bid is not None else nan)
        self._asks.append(tick.ask if quotes and tick.ask is not None else nan)
        self._resent.append(resent)
        if len(self._stamps) >= 2 * self._limit:
            self._forget(len(self._stamps) - self._limit)

    def entries(
        self, start: float | None, end: float | None, *, resent: bool = True
    ) -> Iterator[dict[str, Any]]:
        """The entries stamped in ``[start, end)``, re-sent ones only where ``resent``."""
        for i, stamp in enumerate(self._stamps):
            if (start is not None and stamp < start) or (end is not None and stamp >= end):
                continue
            if self._resent[i] and not resent:
                continue
            bid, ask = self._bids[i], self._asks[i]
            yield {
                "timestamp": stamp,
                "price": self._prices[i],
                "bid": None if isnan(bid) else bid,
                "ask": None if isnan(ask) else ask,
                "resent": bool(self._resent[i]),
            }

    def counts(self) -> dict[str, int]:
        resent = sum(self._resent)
        return {
            "ticks": len(self._stamps) - resent,
            "resent": resent,
            "forgotten": self.forgotten,
        }

    def _forget(self, count: int) -> None:
        for column in (self._stamps, self._prices, self._bids, self._asks, self._resent):
            del column[:count]
        self.forgotten += count
