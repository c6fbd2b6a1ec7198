"""One client's diary against the journal: nothing invented, and no silent hole, double or reorder. Pure.

What a client is owed is known from the journal, not from what the service told it: each published tick
of its symbol since it first connected, or a ``skipped`` that names it.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from .journal_account import Faults, Prices
from .tick_table import TickTable


@dataclass
class ClientAccount:
    """What became of one client."""

    name: str
    mode: str
    received: int = 0
    snapshots: int = 0
    bars: int = 0
    connections: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # offsets by reason
    unknown_ends: int = 0  # "skipped" without an end: an epoch the service knew nothing of
    largest_latency_ms: float = 0.0
    latencies: list[tuple[int, int, float, float, float]] = field(default_factory=list)
    ended: bool = False

    def shown(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "connections": self.connections,
            "received": self.received,
            "skipped": dict(self.skipped),
            "skipped_to_unknown_end": self.unknown_ends,
            "snapshots": self.snapshots,
            "bars": self.bars,
            "largest_latency_ms": self.largest_latency_ms,
        }


class Follower:
    """Reads a diary with ``line`` and judges it.

    :param bars: what was published, as ``journal_account.bar_identity`` tells it.
    """

    def __init__(
        self,
        name: str,
        mode: str,
        ticks: TickTable,
        bars: set[tuple[int, int, str, str, Prices]],
        faults: Faults,
    ) -> None:
        self.account = ClientAccount(name, mode)
        self._ticks = ticks
        self._bars = bars
        self._faults = faults
        self._cursor: tuple[int, int] | None = None
        self._told_open = False  # the rest of the cursor's epoch was skipped without an end
        self._fresh = False  # connected without a cursor: the welcome says where it begins

    def read(self, lines: Iterable[str]) -> ClientAccount:
        for line in lines:
            self._line(line)
        self._end()
        return self.account

    def _line(self, line: str) -> None:
        letter, _, rest = line.partition(" ")
        account = self.account
        if letter in ("T", "S"):
            self._tick(rest.split(" "), snapshot=letter == "S")
        elif letter == "M":
            self._message(msgspec.json.decode(rest))
        elif letter == "C":
            account.connections += 1
            self._fresh = rest == "-"
        elif letter == "L":
            second, count, median, high, largest = rest.split(" ")
            one = (int(second), int(count), float(median), float(high), float(largest))
            account.latencies.append(one)
            account.largest_latency_ms = max(account.largest_latency_ms, one[4])
        elif letter == "E":
            account.ended = True

    def _tick(self, fields: list[str], *, snapshot: bool) -> None:
        epoch, offset, stamp = map(int, fields[:3])
        price, bid, ask = (None if text == "None" else float(text) for text in fields[3:])
        row = self._ticks.find(epoch, offset)
        if row is None:
            self._fault("published_not_journaled", f"epoch {epoch} offset {offset}")
        elif self._ticks.quote(row) != (stamp, price, bid, ask):
            self._fault(
                "published_differs",
                f"epoch {epoch} offset {offset}: {(stamp, price, bid, ask)} received, "
                f"{self._ticks.quote(row)} journaled",
            )
        if snapshot:
            self.account.snapshots += 1
            return
        self.account.received += 1
        if self.account.mode == "every":
            self._advance(epoch, offset, offset, "tick")
        elif self.account.mode == "latest":
            if self._cursor is not None and (epoch, offset) <= self._cursor:
                self._fault("client_order", f"tick {(epoch, offset)} after {self._cursor}")
            self._cursor = (epoch, offset)
        else:
            self._fault("client_unwanted", f"a tick in mode {self.account.mode}")

    def _message(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "bar":
            self._bar(message)
        elif kind == "error":
            # In particular bad_cursor: the service would have forgotten what it published.
            self._fault("client_error", f"{message['code']}: {message['message']}")
        elif kind == "skipped":
            first, last = message["from"], message["to"]
            if self.account.mode != "every":
                self._fault("client_unwanted", f"skipped in mode {self.account.mode}")
            elif last is None:
                self.account.unknown_ends += 1
                self._advance(message["epoch"], first, first - 1, "skipped")
                self._told_open = True
            else:
                self.account.skipped[message["reason"]] += last - first + 1
                self._advance(message["epoch"], first, last, "skipped")
        elif kind == "epoch":
            self._epoch(message)
        elif kind == "welcome" and self._fresh and self.account.mode == "every":
            self._fresh = False
            epoch = message["epoch"]
            offset = next(iter(message["offsets"].values()))
            self._cursor = None if epoch is None else (epoch, offset)

    def _bar(self, message: dict[str, Any]) -> None:
        self.account.bars += 1
        data = message["data"]
        slot = int(datetime.fromisoformat(data["datetime"]).timestamp())
        prices = (data["open"], data["high"], data["low"], data["close"])
        if (slot, data["revision"], data["status"], data["source"], prices) not in self._bars:
            self._fault("bar_not_journaled", f"slot {slot}: {data}")

    def _epoch(self, message: dict[str, Any]) -> None:
        previous = message["previous_epoch"]
        if previous is not None and self._ticks.last(previous) != message["previous_last_offset"]:
            self._fault(
                "epoch_message",
                f"epoch {previous} ended at {self._ticks.last(previous)}, told was "
                f"{message['previous_last_offset']}",
            )
        if self.account.mode != "every":
            return
        if self._cursor is not None:
            if message["epoch"] <= self._cursor[0]:
                return  # the same epoch again after a reconnect
            self._leave(message["epoch"])
        self._cursor = (message["epoch"], 0)

    def _advance(self, epoch: int, first: int, last: int, what: str) -> None:
        """The client accounts for ``first .. last`` of ``epoch``, in order."""
        if self._cursor is not None:
            known, offset = self._cursor
            if epoch < known:
                self._fault("client_order", f"{what} {epoch}:{first} after {known}:{offset}")
                return
            if epoch > known:
                self._leave(epoch)
                offset = 0
            if first <= offset:
                self._fault("client_double", f"{what} {epoch}:{first} after {known}:{offset}")
            elif first > offset + 1:
                self._fault("client_hole", f"{what} {epoch}:{first} after {known}:{offset}")
        self._cursor = (epoch, max(last, first - 1))

    def _leave(self, epoch: int) -> None:
        """A newer epoch begins: nothing may be owed of those before."""
        assert self._cursor is not None
        told_open, self._told_open = self._told_open, False
        if told_open:
            return
        known, offset = self._cursor
        if offset < self._ticks.last_published(known):
            self._fault(
                "client_hole",
                f"{known} ends at {self._ticks.last_published(known)}, the client has {offset} "
                f"when {epoch} begins",
            )
        between = self._ticks.published_between(known, epoch)
        if between is not None:
            self._fault("client_hole", f"nothing was told of epoch {between}")

    def _end(self) -> None:
        account = self.account
        if not account.ended:
            self._fault("client_ended", "the diary has no end: the client died")
        epochs = [e for e in self._ticks.epochs if self._ticks.last_published(e)]
        if not epochs or account.mode == "bars":
            return
        final = (epochs[-1], self._ticks.last_published(epochs[-1]))
        if self._cursor is None or self._cursor < final:
            self._fault("client_hole", f"{final} was published last, the client has {self._cursor}")

    def _fault(self, kind: str, example: str) -> None:
        self._faults.add(kind, f"{self.account.name}: {example}")
