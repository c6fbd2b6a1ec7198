"""All journaled ticks of one symbol in columns: millions of them, found by epoch and offset. Pure."""

from array import array
from collections.abc import Iterator
from math import isnan, nan
from typing import NamedTuple

from enhanced_websocket_service.market.tick import Flag, Tick


class TickRow(NamedTuple):
    """A tick as every place must have it. ``received_us`` are unix microseconds UTC."""

    epoch: int
    offset: int
    timestamp: int
    price: float
    bid: float | None
    ask: float | None
    volume: int
    source: str
    received_us: int
    trading_session: bool
    flags: tuple[str, ...]


class TickTable:
    """Ticks in the order of the journal; offsets of an epoch have no hole (``add`` says if not)."""

    def __init__(self) -> None:
        self.stamps = array("q")
        self.prices = array("d")
        self._bids = array("d")
        self._asks = array("d")
        self._volumes = array("q")
        self._received = array("q")
        self._kinds = array("h")
        self._known: dict[tuple[str, bool, tuple[str, ...]], int] = {}
        self._kind_list: list[tuple[str, bool, tuple[str, ...]]] = []
        self._epochs: dict[int, tuple[int, int]] = {}  # epoch -> first row, number of rows
        self._last_published: dict[int, int] = {}
        self._epoch = 0

    def __len__(self) -> int:
        return len(self.stamps)

    def add(self, tick: Tick) -> str | None:
        """Append ``tick``; what is wrong with its number, if anything (it is then not kept)."""
        where = f"epoch {tick.epoch} offset {tick.offset}"
        if tick.epoch < self._epoch or (tick.epoch != self._epoch and tick.epoch in self._epochs):
            return f"{where} was journaled after epoch {self._epoch} had begun"
        if tick.epoch != self._epoch:
            self._epochs[tick.epoch] = (len(self), 0)
            self._epoch = tick.epoch
        first, count = self._epochs[tick.epoch]
        if tick.offset != count + 1:
            return f"{where} was journaled after offset {count}"
        self._epochs[tick.epoch] = (first, count + 1)
        self.stamps.append(tick.timestamp)
        self.prices.append(tick.price)
        self._bids.append(nan if tick.bid is None else tick.bid)
        self._asks.append(nan if tick.ask is None else tick.ask)
        self._volumes.append(tick.volume)
        self._received.append(round(tick.received_at * 1_000_000))
        kind = (tick.source, tick.trading_session, tick.flags)
        number = self._known.get(kind)
        if number is None:
            number = self._known[kind] = len(self._kind_list)
            self._kind_list.append(kind)
        self._kinds.append(number)
        if published(tick.trading_session, tick.flags):
            self._last_published[tick.epoch] = tick.offset
        return None

    def find(self, epoch: int, offset: int) -> int | None:
        """The row of that tick; ``None`` when it was never journaled."""
        found = self._epochs.get(epoch)
        if found is None or not 1 <= offset <= found[1]:
            return None
        return found[0] + offset - 1

    def row(self, i: int) -> TickRow:
        epoch, first = self._epoch_of(i)
        return self._row(i, epoch, i - first + 1)

    def rows(self) -> Iterator[TickRow]:
        """All of them, in order."""
        for epoch, (first, count) in self._epochs.items():
            for i in range(first, first + count):
                yield self._row(i, epoch, i - first + 1)

    def _row(self, i: int, epoch: int, offset: int) -> TickRow:
        source, session, flags = self._kind_list[self._kinds[i]]
        return TickRow(
            epoch,
            offset,
            self.stamps[i],
            self.prices[i],
            _or_none(self._bids[i]),
            _or_none(self._asks[i]),
            self._volumes[i],
            source,
            self._received[i],
            session,
            flags,
        )

    def quote(self, i: int) -> tuple[int, float, float | None, float | None]:
        """Stamp, price, bid and ask: what the vendor sent and what clients are shown."""
        return (self.stamps[i], self.prices[i], _or_none(self._bids[i]), _or_none(self._asks[i]))

    def source(self, i: int) -> str:
        return self._kind_list[self._kinds[i]][0]

    def in_bar(self, i: int) -> bool:
        """Whether the tick counts for the bar of its stamp."""
        _, session, flags = self._kind_list[self._kinds[i]]
        return counts_for_bar(session, flags)

    @property
    def published(self) -> int:
        """How many are for clients."""
        kinds = [published(session, flags) for _, session, flags in self._kind_list]
        return sum(kinds[kind] for kind in self._kinds)

    @property
    def epochs(self) -> list[int]:
        """Those with ticks, ascending."""
        return list(self._epochs)

    def last(self, epoch: int) -> int:
        """The last offset of ``epoch``; 0 when it has none."""
        return self._epochs.get(epoch, (0, 0))[1]

    def last_published(self, epoch: int) -> int:
        """The last offset of ``epoch`` that clients are owed; 0 when there is none."""
        return self._last_published.get(epoch, 0)

    def published_between(self, behind: int, before: int) -> int | None:
        """The first epoch ``behind < epoch < before`` that has something for clients."""
        return next((e for e in self._last_published if behind < e < before), None)

    def _epoch_of(self, i: int) -> tuple[int, int]:
        for epoch, (first, count) in reversed(self._epochs.items()):
            if first <= i < first + count:
                return epoch, first
        raise IndexError(i)


def published(trading_session: bool, flags: tuple[str, ...]) -> bool:
    """Whether clients get such a tick (docs/reference/ticks.md)."""
    return trading_session and Flag.FUTURE not in flags


def counts_for_bar(trading_session: bool, flags: tuple[str, ...]) -> bool:
    return published(trading_session, flags) and Flag.LATE not in flags


def _or_none(value: float) -> float | None:
    return None if isnan(value) else value
