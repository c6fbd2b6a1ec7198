"""What a client that is behind is given next: pure functions over one symbol's history.

Two ways to catch up. ``replay`` gives everything in order, for clients that resumed. ``jump`` brings a slow
client to now at once: every bar and epoch, of the ticks only the last, the others named in ``skipped``.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from . import wire
from .client import Interest
from .history import BAR, EPOCH, GAP, TICK, History, Position, Skip
from .outlet import payloads, text_frame
from .weave import NOT_PUBLISHED, Stored, gap


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
            frame = entry.frame
            if entry.kind == GAP and entry.epoch == epoch and entry.first <= offset:
                # The store has told the beginning of it.
                rest = Skip(epoch, offset + 1, entry.offset, NOT_PUBLISHED)
                frame = gap(symbol, rest).entry.frame
            frames.append(frame)
        epoch, offset = entry.epoch, entry.offset
    return Stretch(frames, Position(stop, epoch, offset), skipped)


def from_store(
    symbol: str,
    history: History,
    position: Position,
    interest: Interest,
    messages: Sequence[Stored],
    *,
    to_the_end: bool = False,
) -> tuple[Stretch, int, bool]:
    """What the store has for a client at ``position``, until memory has everything behind it.

    A conflating client gets of the ticks only the newest that there is, if it is among them.

    :param to_the_end: go on where memory would do, up to what was published last.
    :returns: also how many of ``messages`` that took, and whether memory has the rest.
    """
    frames: list[bytes] = []
    skipped = 0
    seq, epoch, offset = position
    last = history.last_tick
    newest = None if last is None else (last.epoch, last.offset)

    def met() -> bool:
        return not to_the_end and history.holds_from(epoch, offset)

    for used, (entry, _, skip) in enumerate(messages):
        if met():
            return Stretch(frames, Position(seq, epoch, offset), skipped), used, True
        place = (entry.epoch, entry.offset)
        if entry.kind == BAR:
            if place >= (epoch, offset) and interest.wants(entry):
                frames.append(entry.frame)
            continue
        if history.epoch is not None and place > (history.epoch, history.head):
            return Stretch(frames, Position(seq, epoch, offset), skipped), used, True
        frame, first = entry.frame, entry.first
        if (
            skip is not None
            and (entry.epoch == epoch and first <= offset)
            and (skip.last is None or skip.last > offset)
        ):
            first = offset + 1  # a page begins where it pleases: the rest of the gap is news
            frame = gap(symbol, skip._replace(first=first)).entry.frame
            place = (epoch, max(first, entry.offset))
        if place <= (epoch, offset):
            continue  # the client has it already
        epoch, offset = place
        outdated = interest.conflate and entry.kind == TICK and place != newest
        if interest.wants(entry) and not outdated:
            frames.append(frame)
            if entry.kind == GAP and skip is not None and skip.last is not None:
                skipped += skip.last - first + 1
    return Stretch(frames, Position(seq, epoch, offset), skipped), len(messages), met()


def behind_given(history: History, position: Position, given: Iterable[bytes]) -> Position:
    """``position`` behind those bars that stand at it and were ``given`` already."""
    known = {_identity(frame) for frame in given}
    seq, epoch, offset = position
    while known and seq < history.next_seq:
        entry = history.at(seq)
        had = entry.kind != BAR or _identity(entry.frame) in known
        if (entry.epoch, entry.offset) > (epoch, offset) or not had:
            break
        seq += 1
    return Position(seq, epoch, offset)


def _identity(frame: bytes) -> tuple[Any, ...]:
    message = msgspec.json.decode(payloads(frame)[0])
    data = message["data"]
    return (
        data["datetime"],
        message["interval"],
        data["source"],
        message["revision"],
        message["status"],
    )


def jump(symbol: str, history: History, position: Position, interest: Interest) -> Stretch:
    """Everything but the ticks, of which the last comes where it stands."""
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
        if last is not None and (last.epoch, last.offset) <= (entry.epoch, entry.offset):
            give_last()  # nothing but bars and epochs without ticks came behind it
        enter(entry.epoch)
        if entry.kind == BAR and interest.wants(entry):
            skip_to(entry.offset)  # keeps the bar behind the ticks it was made of
        if interest.wants(entry):
            frames.append(entry.frame)
    give_last()
    enter(history.end.epoch)
    return Stretch(frames, history.end, skipped)
