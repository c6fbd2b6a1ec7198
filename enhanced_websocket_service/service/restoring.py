"""What a start takes over from the life before: the end of the journal, and the last prices."""

from collections.abc import Mapping, Sequence

from enhanced_websocket_service.market.calendar import BAR_SECONDS
from enhanced_websocket_service.market.source import is_simulated
from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.journal_reader import Recovery, records_since
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.records import source_of

from .pipeline import Pipeline

RESTORE_S = 1200
"""How far back the journal is replayed at a start: more than a bar and its grace."""
LAST_TICKS = 1000
"""Among the last so many of a symbol one is looked for that was published."""


def has_happened(tick: Tick, now: float) -> bool:
    """Whether ``tick`` is not later than ``now``: a virtual clock may have been set back. Its stamp alone
    tells nothing: the vendor's clock may be seconds ahead of ours, its last price would be taken twice.
    """
    return min(tick.timestamp, tick.received_at) <= now


def restore(
    pipeline: Pipeline,
    journal: Journal,
    now: float,
    published: Sequence[Tick] = (),
    *,
    simulated: bool = True,
) -> None:
    """Replay the end of the journal into ``pipeline``.

    :param now: nothing that happened later counts; unix seconds UTC.
    :param published: the last tick of each symbol, where known.
    :param simulated: whose records count, the simulator's or the real ones.
    """
    # Before the last tick, not before now: its bar is due however long we were away. Without any tick,
    # from the beginning: the first price of all may be among what was held.
    since = dict.fromkeys(pipeline.offsets, 0)
    since |= {tick.symbol: _replayed_from(tick.timestamp) for tick in published}
    newest = max((one for one in since.values() if one), default=_replayed_from(now))
    pipeline.restore(
        record
        for record in records_since(journal.directory, newest, until=now, earlier=since)
        if is_simulated(source_of(record)) is simulated
    )


def _replayed_from(instant: float) -> int:
    """From a bar's open on: half a bar would be published over the whole one."""
    return int(instant - RESTORE_S) // BAR_SECONDS * BAR_SECONDS


async def look_up_last_ticks(
    recovery: Recovery, database: Database, symbols: Sequence[str]
) -> None:
    """Add what PostgreSQL knows: over a weekend the journal is pruned, and another instance may have
    collected since.

    Without its last tick a symbol has no price, and the vendor's re-sent one would be taken again.
    """
    for symbol in symbols:
        for tick in await database.ticks(symbol, limit=LAST_TICKS):
            recovery.see(tick)


def until_when(published: Sequence[Tick], own: Mapping[str, Tick]) -> dict[str, float]:
    """By symbol, until when this STATE_DIR collected it, unix seconds UTC: what another instance did since
    is in none of our bars.

    :param published: the last tick of each symbol, whoever collected it; ``own`` the last of our journal.
    """
    return {t.symbol: min(t.received_at, own.get(t.symbol, t).received_at) for t in published}


def go_on(pipeline: Pipeline, recovery: Recovery, epoch: int, now: float) -> list[Tick]:
    """Let the stream go on under ``epoch``, behind what ``recovery`` knows of another instance.

    :param now: nothing that happened later counts; unix seconds UTC.
    :returns: the last published tick of each symbol that another instance has collected since.
    :raises JournalError: the epoch before goes on.
    """
    places = {s: (pipeline.epoch, offset) for s, offset in pipeline.offsets.items() if offset}
    theirs = set()
    for symbol, tick in recovery.last.items():
        if symbol not in places or (tick.epoch, tick.offset) > places[symbol]:
            places[symbol] = (tick.epoch, tick.offset)
            theirs.add(symbol)
    pipeline.begin_epoch(epoch, places)
    newer = [recovery.last[symbol] for symbol in theirs]
    pipeline.seed(tick for tick in newer if has_happened(tick, now))
    published = recovery.last_in_session
    return [t for s in theirs if (t := published.get(s)) is not None and has_happened(t, now)]
