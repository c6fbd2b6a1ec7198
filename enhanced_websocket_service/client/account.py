"""The client's own book-keeping: messages in, events out; every offset accounted for. Pure.

Trusts nobody: offsets are checked here, whatever the server claims. What came before does not come
again; where an offset is missing, a ``Gap`` stands in its place. Memory is bounded: a cursor for each
symbol, and the last few bars.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from .events import (
    Bar,
    Connected,
    Cursor,
    Epoch,
    Event,
    Gap,
    ServerError,
    Snapshot,
    Status,
    Tick,
)

BARS_REMEMBERED: Final = 512
NOT_RECEIVED: Final = "not_received"
HISTORY_LOST: Final = "history_lost"


class Account:
    """What one client has.

    :param every: the client wants every tick (mode ``every``): holes are told.
    :param symbols: events of others are left out; ``None``: all.
    """

    def __init__(
        self,
        *,
        every: bool,
        symbols: Collection[str] | None = None,
        cursors: Mapping[str, Cursor] | None = None,
    ) -> None:
        self.cursors: dict[str, Cursor] = dict(cursors or {})
        """By symbol, the last tick accounted for."""
        self.travelling = False
        """What comes next is the past: where the server is now says nothing about it."""
        self._every = every
        self._symbols = None if symbols is None else frozenset(symbols)
        self._told_open: set[str] = set()  # the rest of the cursor's epoch is known to be gone
        self._vague: set[str] = set()  # the cursor is the server's guess at where we began
        self._bars: OrderedDict[tuple[Any, ...], tuple[Any, ...]] = OrderedDict()

    def take(self, text: str | bytes) -> list[Event]:
        """The events of one message; none of a type that is not known here.

        :raises ValueError: the message is not what the protocol says.
        """
        message = msgspec.json.decode(text)
        if not isinstance(message, dict):
            raise ValueError("A message is a JSON object.")
        symbol = message.get("symbol")
        if symbol is not None and self._symbols is not None and symbol not in self._symbols:
            return []
        try:
            return list(self._events(message))
        except (KeyError, TypeError) as error:
            kind = message.get("type")
            raise ValueError(
                f"A message of type {kind!r} lacks what it should have: {error!r}."
            ) from error

    def _events(self, message: dict[str, Any]) -> Iterator[Event]:
        match message["type"]:
            case "market_data":
                yield from self._market_data(message)
            case "bar":
                yield from self._bar(message)
            case "skipped":
                yield from self._skipped(message)
            case "epoch":
                yield from self._epoch(message)
            case "status":
                yield Status(
                    server_status=message["server_status"],
                    reason=message["reason"],
                    feed_verdict=message["feed_verdict"],
                    evidence=message.get("evidence"),
                    verdicts=message.get("verdicts", {}),
                    timestamp=_time(message["timestamp"]),
                )
            case "welcome":
                yield from self._welcome(message)
            case "error":
                yield ServerError(code=message["code"], message=message["message"])

    def _welcome(self, message: dict[str, Any]) -> Iterable[Event]:
        epoch, offsets = message["epoch"], message["offsets"]
        symbols = [s for s in message["symbols"] if self._symbols is None or s in self._symbols]
        resumed = {symbol: self.cursors[symbol] for symbol in symbols if symbol in self.cursors}
        yield Connected(
            symbols=symbols,
            epoch=epoch,
            offsets=offsets,
            server_status=message["server_status"],
            resumed=resumed,
        )
        if epoch is None or self.travelling:
            return
        for symbol in symbols:
            head = Cursor(epoch, offsets[symbol])
            cursor = self.cursors.get(symbol)
            if cursor is not None and cursor > head and symbol not in self._vague:
                # The server has forgotten what it once sent; what comes next it numbers anew.
                yield _gap(symbol, cursor.epoch, cursor.offset + 1, None, HISTORY_LOST)
                self._told_open.discard(symbol)
                cursor = None
            if cursor is None:
                self.cursors[symbol] = head
                self._vague.add(symbol)

    def _market_data(self, message: dict[str, Any]) -> Iterable[Event]:
        symbol, place = message["symbol"], Cursor(message["epoch"], message["offset"])
        data = message["data"]
        snapshot = message.get("snapshot", False)
        make = Snapshot if snapshot else Tick
        event = make(
            symbol=symbol,
            epoch=place.epoch,
            offset=place.offset,
            price=data["price"],
            bid=data["bid"],
            ask=data["ask"],
            spread=data["spread"],
            volume=data["volume"],
            timestamp=_time(data["timestamp"]),
            received_at=_time(message["timestamp"]),
            source=data["source"],
            replayed=message.get("replayed", False),
        )
        if snapshot:
            if symbol in self._vague and place.epoch < self.cursors[symbol].epoch:
                # ``welcome`` knows one epoch for all symbols; this one's is older.
                self.cursors[symbol] = Cursor(place.epoch, self.cursors[symbol].offset)
            yield event
            return
        cursor = self.cursors.get(symbol)
        if cursor is not None and place <= cursor:
            return  # it came before
        yield from self._pass_to(symbol, place.epoch, place.offset - 1)
        self._settle(symbol, place)
        yield event

    def _skipped(self, message: dict[str, Any]) -> Iterable[Event]:
        symbol, epoch = message["symbol"], message["epoch"]
        first, last = message["from"], message["to"]
        cursor = self.cursors.get(symbol)
        if cursor is not None and epoch == cursor.epoch:
            first = max(first, cursor.offset + 1)
        if cursor is not None and (
            epoch < cursor.epoch or (epoch == cursor.epoch and last is not None and last < first)
        ):
            return  # accounted for before
        if (
            symbol in self._told_open
            and last is None
            and cursor is not None
            and epoch == cursor.epoch
        ):
            return
        yield from self._pass_to(symbol, epoch, first - 1)
        yield _gap(symbol, epoch, first, last, message["reason"])
        self._settle(symbol, Cursor(epoch, first - 1 if last is None else last))
        if last is None:
            self._told_open.add(symbol)

    def _epoch(self, message: dict[str, Any]) -> Iterable[Event]:
        symbol, epoch = message["symbol"], message["epoch"]
        cursor = self.cursors.get(symbol)
        if cursor is not None and epoch <= cursor.epoch:
            return
        previous, last = message["previous_epoch"], message["previous_last_offset"]
        if cursor is not None and self._every and symbol not in self._told_open:
            if previous == cursor.epoch:
                if last is not None and last > cursor.offset:
                    yield _gap(symbol, cursor.epoch, cursor.offset + 1, last, NOT_RECEIVED)
            elif symbol not in self._vague and (
                previous is None or previous > cursor.epoch or cursor.offset
            ):
                # Not so an epoch without a tick: nothing of it can be missing.
                yield _gap(symbol, cursor.epoch, cursor.offset + 1, None, NOT_RECEIVED)
        self._settle(symbol, Cursor(epoch, 0))
        yield Epoch(symbol=symbol, epoch=epoch, previous_epoch=previous, previous_last_offset=last)

    def _pass_to(self, symbol: str, epoch: int, offset: int) -> Iterable[Event]:
        """Something came that stands behind ``offset``: what is missing before it is a hole."""
        cursor = self.cursors.get(symbol)
        if cursor is None or not self._every:
            return
        if epoch > cursor.epoch:
            if symbol not in self._told_open | self._vague:
                yield _gap(symbol, cursor.epoch, cursor.offset + 1, None, NOT_RECEIVED)
            cursor = Cursor(epoch, 0)
        if offset > cursor.offset:
            yield _gap(symbol, epoch, cursor.offset + 1, offset, NOT_RECEIVED)

    def _settle(self, symbol: str, cursor: Cursor) -> None:
        self.cursors[symbol] = cursor
        self._told_open.discard(symbol)
        self._vague.discard(symbol)

    def _bar(self, message: dict[str, Any]) -> Iterable[Event]:
        data = message["data"]
        bar = Bar(
            symbol=message["symbol"],
            interval=message["interval"],
            opens_at=_time(data["datetime"]),
            open=data["open"],
            high=data["high"],
            low=data["low"],
            close=data["close"],
            volume=data["volume"],
            source=data["source"],
            revision=message["revision"],
            status=message["status"],
            certificate=data["certificate"],
            epoch=message["epoch"],
            offset=message["offset"],
            published_at=_time(message["timestamp"]),
            replayed=message.get("replayed", False),
        )
        identity = (bar.symbol, bar.interval, bar.opens_at, bar.revision)
        content = (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.source, bar.status)
        if self._bars.get(identity) == content:
            return  # it came before the connection was lost
        self._bars[identity] = content
        self._bars.move_to_end(identity)
        if len(self._bars) > BARS_REMEMBERED:
            self._bars.popitem(last=False)
        place, cursor = Cursor(bar.epoch, bar.offset), self.cursors.get(bar.symbol)
        if not self._every and (cursor is None or place > cursor):
            self._settle(bar.symbol, place)  # without ticks, bars tell how far we are
        yield bar


def _gap(symbol: str, epoch: int, first: int, last: int | None, reason: str) -> Gap:
    return Gap(symbol=symbol, epoch=epoch, first=first, last=last, reason=reason)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
