"""What has been published: per symbol its history and last price, and the last status. Pure.

Turns the events of the bus into messages, each encoded once at most, and keeps offsets honest: a tick that
repeats or goes back is dropped, a jump becomes a ``skipped`` message for everyone.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby

import structlog

from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.events import EpochStarted, Event, Probe, StatusChanged
from enhanced_websocket_service.market.tick import Tick

from . import wire
from .client import Staged
from .history import BAR, EPOCH, GAP, Entry, History, TickEntry
from .loopback import probe_frame
from .models import StreamPosition
from .outlet import text_frame

log = structlog.get_logger(__name__)


class Board:
    """``capacity``: entries of history kept per symbol."""

    def __init__(self, symbols: Sequence[str], capacity: int) -> None:
        self.histories = {symbol: History(capacity) for symbol in symbols}
        self.snapshots: dict[str, Tick] = {}
        self.status: bytes | None = None
        """The frame of the last ``status`` message."""

    def seed(self, tick: Tick) -> None:
        """Begin with the last tick that was published before a restart."""
        if (history := self.histories.get(tick.symbol)) is not None:
            history.seed(TickEntry(tick.epoch, tick.offset, tick))
            self.snapshots[tick.symbol] = tick

    def welcome(self, symbols: Iterable[str], server_status: str, now: float) -> bytes:
        """The first message to a client of ``symbols``: where their streams are."""
        chosen = sorted(symbols)
        epochs = [e for s in chosen if (e := self.histories[s].epoch) is not None]
        heads = {s: self.histories[s].head for s in chosen}
        return wire.welcome(chosen, max(epochs, default=None), heads, server_status, now)

    def positions(self) -> dict[str, StreamPosition]:
        """The last tick published per symbol; ``epoch`` is None before the first."""
        return {
            symbol: StreamPosition(epoch=history.epoch, offset=history.head)
            for symbol, history in self.histories.items()
        }

    def stage(self, events: Sequence[Event]) -> list[Staged]:
        """Append a batch to the histories; events of unknown symbols are ignored.

        Ticks are encoded when the first client wants them, everything else here.
        """
        staged: list[Staged] = []
        for kind, several in groupby(events, key=type):
            if kind is Tick:
                self._stage_ticks([one for one in several if isinstance(one, Tick)], staged)
            else:
                self._stage_others(several, staged)
        return staged

    def _stage_others(self, events: Iterable[Event], staged: list[Staged]) -> None:
        for event in events:
            match event:
                case BarUpdate():
                    self._stage_bar(event, staged)
                case EpochStarted():
                    self._stage_epoch(event, staged)
                case StatusChanged():
                    self.status = text_frame(wire.status(event))
                    staged.append(Staged(None, "status", self.status))
                case Probe():
                    staged.append(Staged(None, "probe", probe_frame(event.number)))

    def _stage_ticks(self, ticks: Sequence[Tick], staged: list[Staged]) -> None:
        at = 0
        while at < len(ticks):
            self._stage_tick(ticks[at], staged)
            at += 1
            at += self._stage_following(ticks, at, staged)

    def _stage_following(self, ticks: Sequence[Tick], first: int, staged: list[Staged]) -> int:
        """Stage what follows ``ticks[first - 1]`` without a hole; how many they are."""
        symbol = ticks[first - 1].symbol
        history = self.histories.get(symbol)
        if history is None:
            return 0
        epoch, head = history.epoch, history.head
        run: list[TickEntry] = []
        for at in range(first, len(ticks)):
            tick = ticks[at]
            if tick.offset != head + 1 or tick.symbol != symbol or tick.epoch != epoch:
                break
            head = tick.offset
            run.append(TickEntry(tick.epoch, head, tick))
        if run:
            history.extend(run)
            self.snapshots[symbol] = ticks[first + len(run) - 1]
            staged.append(Staged(symbol, "ticks", ticks=run))
        return len(run)

    def _stage_tick(self, tick: Tick, staged: list[Staged]) -> None:
        history = self.histories.get(tick.symbol)
        if history is None:
            return
        known = history.epoch
        if known is not None and (tick.epoch, tick.offset) <= (known, history.head):
            log.warning(
                "Tick published twice or out of order; ignored",
                symbol=tick.symbol,
                epoch=tick.epoch,
                offset=tick.offset,
                head=history.head,
            )
            return
        if known is not None and tick.epoch != known:
            self._stage_epoch(EpochStarted(tick.symbol, tick.epoch, known, history.head), staged)
        if known is not None:
            self._stage_gap(tick.symbol, history, tick.offset - 1, staged)
        entry = TickEntry(tick.epoch, tick.offset, tick)
        history.extend([entry])
        self.snapshots[tick.symbol] = tick
        staged.append(Staged(tick.symbol, "ticks", ticks=[entry]))

    def _stage_gap(self, symbol: str, history: History, last: int, staged: list[Staged]) -> None:
        """Account for offsets up to ``last``: stored but not published (stamped outside the session).

        Clients must not take the jump in offsets for a loss of their own.
        """
        first, epoch = history.head + 1, history.epoch
        if epoch is not None and last >= first:
            frame = text_frame(wire.skipped(symbol, epoch, first, last, "not_published"))
            history.append(Entry(GAP, epoch, last, first, frame))
            staged.append(Staged(symbol, "gap", frame))

    def _stage_bar(self, update: BarUpdate, staged: list[Staged]) -> None:
        symbol = update.bar.symbol
        history = self.histories.get(symbol)
        if history is None:
            return
        if update.epoch == history.epoch:
            # A bar's offset is a cursor, too: it must not be ahead of what clients were told.
            self._stage_gap(symbol, history, update.offset, staged)
        frame = text_frame(wire.bar(update))
        # Kept under the head of the history, which never goes back, whatever the message says.
        epoch = update.epoch if history.epoch is None else history.epoch
        head = update.offset if history.epoch is None else history.head
        history.append(Entry(BAR, epoch, head, head + 1, frame))
        staged.append(Staged(symbol, "bar", frame))

    def _stage_epoch(self, event: EpochStarted, staged: list[Staged]) -> None:
        history = self.histories.get(event.symbol)
        if history is None or (history.epoch is not None and event.epoch <= history.epoch):
            return
        if history.epoch is not None:
            if event.previous_epoch == history.epoch:
                # What was journaled behind the last published tick: not for clients, and no loss.
                self._stage_gap(event.symbol, history, event.previous_last_offset or 0, staged)
            history.close_epoch(history.epoch, history.head)
        if event.previous_epoch is not None and event.previous_last_offset is not None:
            history.close_epoch(
                event.previous_epoch, event.previous_last_offset, following=event.epoch
            )
        frame = text_frame(
            wire.epoch_started(
                event.symbol, event.epoch, event.previous_epoch, event.previous_last_offset
            )
        )
        history.append(Entry(EPOCH, event.epoch, 0, 1, frame))
        staged.append(Staged(event.symbol, "epoch", frame))
