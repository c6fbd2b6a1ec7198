"""What a client that is behind is given next: pure functions over one symbol's history.

Two ways to catch up. ``replay`` gives everything in order, for clients that resumed. ``jump`` brings a slow
client to now at once: every bar and epoch, of the ticks only the last, the others named in ``skipped``.
"""

from collections.abc import Iterable
from typing import NamedTuple

from . import wire
from .client import Interest
from .history import BAR, EPOCH, History, Position, Skip
from .outlet import text_frame


class Stretch(NamedTuple):
    """Frames to write now, and where the client stands after them."""

    frames: list[bytes]
    position: Position
    skipped: int = 0  # ticks named in ``skipped`` messages among the frames


def every_tick(interest: Interest) -> bool:
    """Whether such a client is owed each tick, or the word that it did not get it."""
    return "ticks" in interest.channels and not interest.conflate


def announce(symbol: str, interest: Interest, position: Position, skips: Iterable[Skip]) -> Stretch:
    """Name what is gone. The position then lies behind it, so that it is named once."""
    seq, epoch, offset = position
    frames: list[bytes] = []
    skipped = 0
    for skip in skips:
        if every_tick(interest):
            frames.append(text_frame(wire.skipped(symbol, *skip)))
            skipped += 0 if skip.last is None else skip.last - skip.first + 1
        if skip.last is not None:
            epoch, offset = skip.epoch, skip.last
    return Stretch(frames, Position(seq, epoch, offset), skipped)


def replay(
    symbol: str, history: History, position: Position, interest: Interest, limit: int
) -> Stretch:
    """The next ``limit`` entries of the history at most; whole when ``position.seq`` is its end."""
    frames: list[bytes] = []
    skipped = 0
    if position.seq < history.first_seq:  # the ring moved on while the client was reading
        found = history.locate(position.epoch, position.offset)
        assert found is not None, "a position of ours cannot be ahead of the history"
        frames, position, skipped = announce(symbol, interest, *found)
    stop = min(position.seq + limit, history.next_seq)
    _, epoch, offset = position
    for seq in range(position.seq, stop):
        entry = history.at(seq)
        if entry.kind != BAR and (entry.epoch, entry.offset) <= (epoch, offset):
            continue  # the client has it already
        if interest.wants(entry):
            frames.append(entry.frame)
        epoch, offset = entry.epoch, entry.offset
    return Stretch(frames, Position(stop, epoch, offset), skipped)


def jump(symbol: str, history: History, position: Position, interest: Interest) -> Stretch:
    """Everything but the ticks, the last of which comes at the end."""
    frames: list[bytes] = []
    skipped = 0
    seq, epoch, offset = position

    def skip_to(last: int) -> None:
        nonlocal offset, skipped
        if last > offset and every_tick(interest):
            message = wire.skipped(symbol, epoch, offset + 1, last, "slow_client")
            frames.append(text_frame(message))
            skipped += last - offset
        offset = max(offset, last)

    def enter(new: int) -> None:
        """Leave the epochs before ``new``, whose own marks may be forgotten by now."""
        nonlocal epoch, offset
        for passed in history.epochs_between(epoch, new):
            if passed != epoch:
                epoch, offset = passed, 0
            skip_to(history.final(passed) or 0)
        if new > epoch:
            epoch, offset = new, 0

    last = history.last_tick

    def give_last() -> None:
        nonlocal offset
        if last is not None and (last.epoch, last.offset) > (epoch, offset):
            enter(last.epoch)
            skip_to(last.offset - 1)
            if "ticks" in interest.channels:
                frames.append(last.frame)
                offset = last.offset

    if seq == history.next_seq:
        return Stretch(frames, position)
    for entry in history.marks_from(seq):
        if entry.kind == EPOCH and (entry.epoch, 0) <= (epoch, offset):
            continue  # the client knows it already
        if entry.kind == EPOCH and last is not None and last.epoch < entry.epoch:
            give_last()  # a new epoch without ticks yet: it is still the last price
        enter(entry.epoch)
        if entry.kind == BAR and interest.wants(entry):
            skip_to(entry.offset)  # keeps the bar behind the ticks it was made of
        if interest.wants(entry):
            frames.append(entry.frame)
    give_last()
    enter(history.end.epoch)
    return Stretch(frames, history.end, skipped)
