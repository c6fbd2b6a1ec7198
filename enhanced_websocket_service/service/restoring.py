"""What a start takes over from the life before: the end of the journal, and the last prices."""

from collections.abc import Sequence

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
    """Add what the journal does not have any more: over a weekend it is pruned, into PostgreSQL.

    Without its last tick a symbol has no price, and the vendor's re-sent one would be taken again.
    """
    for symbol in symbols:
        if symbol not in recovery.last_in_session:
            for tick in await database.ticks(symbol, limit=LAST_TICKS):
                recovery.see(tick)
