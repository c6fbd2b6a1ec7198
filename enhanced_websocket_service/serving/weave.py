"""Stored rows made into the messages that were once published, in their order. Pure.

What the rows do not account for is named: ticks that were stored but not for clients
(``not_published``), ticks that are gone (``no_longer_held``), an epoch whose end nobody knows
(``epoch_unknown``).
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.market.tick import Flag, Tick
from enhanced_websocket_service.storage.stream_store import StoredStretch

from . import wire
from .history import BAR, EPOCH, GAP, TICK, Entry, Skip
from .outlet import text_frame

NOT_PUBLISHED: Final = "not_published"
NO_LONGER_HELD: Final = "no_longer_held"
EPOCH_UNKNOWN: Final = "epoch_unknown"


class Stored(NamedTuple):
    """One message out of the store."""

    entry: Entry
    at: float | None  # when it was received or published, unix seconds UTC; None: with the next one
    skip: Skip | None = None  # what a ``GAP`` names


def gap(symbol: str, skip: Skip) -> Stored:
    """The ``skipped`` message for ``skip``. Without an end it accounts for its first offset."""
    frame = text_frame(wire.skipped(symbol, *skip))
    last = skip.first if skip.last is None else skip.last
    return Stored(Entry(GAP, skip.epoch, last, skip.first, frame), None, skip)


def weave(
    symbol: str, after: tuple[int, int], rows: StoredStretch, *, replayed: bool = False
) -> Iterator[Stored]:
    """The messages behind ``after``, with the bars that stand at it.

    A generator, so that its caller may pause: a stretch costs milliseconds to encode.

    :param replayed: say so in every tick and bar.
    """
    return _Weaver(symbol, after, replayed).weave(rows)


class _Weaver:
    def __init__(self, symbol: str, after: tuple[int, int], replayed: bool) -> None:
        self._symbol = symbol
        self._epoch, self._offset = after
        self._replayed = replayed
        self._held_back: Skip | None = None  # unpublished ticks, told as one

    def weave(self, rows: StoredStretch) -> Iterator[Stored]:
        epochs, updates = iter(rows.epochs), iter(rows.updates)
        epoch, update = next(epochs, None), next(updates, None)
        for tick in rows.ticks:
            place = (tick.epoch, tick.offset)
            while True:
                # A bar stands behind its tick, but before the epoch that follows.
                due = (
                    update is not None
                    and (update.epoch, update.offset) < place
                    and (epoch is None or update.epoch < epoch.epoch)
                )
                if due and update is not None:
                    yield from self._bar(update)
                    update = next(updates, None)
                elif epoch is not None and epoch.epoch <= tick.epoch:
                    yield from self._begin(epoch)
                    epoch = next(epochs, None)
                else:
                    break
            yield from self._tick(tick)
        while update is not None or epoch is not None:
            if update is not None and (epoch is None or update.epoch < epoch.epoch):
                yield from self._bar(update)
                update = next(updates, None)
            elif epoch is not None:
                yield from self._begin(epoch)
                epoch = next(epochs, None)
        yield from self._tell_held_back()

    def _tick(self, tick: Tick) -> Iterator[Stored]:
        if tick.epoch > self._epoch:  # nothing on record announces it
            yield from self._begin(EpochStarted(self._symbol, tick.epoch, None, None))
        yield from self._pass_to(tick.offset - 1)
        self._offset = tick.offset
        if not tick.trading_session or Flag.FUTURE in tick.flags:
            begun = self._held_back
            first = tick.offset if begun is None else begun.first
            self._held_back = Skip(tick.epoch, first, tick.offset, NOT_PUBLISHED)
            return
        yield from self._tell_held_back()
        frame = text_frame(wire.market_data(tick, replayed=self._replayed))
        entry = Entry(TICK, tick.epoch, tick.offset, tick.offset, frame)
        yield Stored(entry, tick.received_at)

    def _bar(self, update: BarUpdate) -> Iterator[Stored]:
        if update.epoch == self._epoch:
            yield from self._pass_to(update.offset)
        yield from self._tell_held_back()
        frame = text_frame(wire.bar(update, replayed=self._replayed))
        entry = Entry(BAR, update.epoch, update.offset, update.offset + 1, frame)
        yield Stored(entry, update.published_at)

    def _begin(self, started: EpochStarted) -> Iterator[Stored]:
        previous = started.previous_epoch
        if previous == self._epoch and started.previous_last_offset is not None:
            yield from self._pass_to(started.previous_last_offset)
        elif previous is None or previous > self._epoch or self._offset:
            # Not so an epoch without a tick, which the next one does not name as its previous.
            yield from self._tell_held_back()
            skip = Skip(self._epoch, self._offset + 1, None, EPOCH_UNKNOWN)
            yield gap(self._symbol, skip)
        yield from self._tell_held_back()
        self._epoch, self._offset = started.epoch, 0
        message = wire.epoch_started(
            started.symbol, started.epoch, started.previous_epoch, started.previous_last_offset
        )
        yield Stored(Entry(EPOCH, started.epoch, 0, 1, text_frame(message)), None)

    def _pass_to(self, last: int) -> Iterator[Stored]:
        """Everything up to ``last`` is accounted for: what has no row is gone."""
        if last > self._offset:
            yield from self._tell_held_back()
            skip = Skip(self._epoch, self._offset + 1, last, NO_LONGER_HELD)
            self._offset = last
            yield gap(self._symbol, skip)

    def _tell_held_back(self) -> Iterator[Stored]:
        skip, self._held_back = self._held_back, None
        if skip is not None:
            yield gap(self._symbol, skip)
