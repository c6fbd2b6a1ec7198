"""What was published, in the order of the stream, as PostgreSQL has it: for clients that resume.

A tick's place is ``(epoch, offset)``; a bar stands behind the tick that was the last when it was
published. The journal is stored in order, so that what is found never has a hole that fills later.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.calendar import utc
from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.market.tick import Tick

from .postgres import Database, bar_of_row

Key = tuple[int, int]
"""``(epoch, offset)``."""


@dataclass(frozen=True, slots=True)
class StoredStretch:
    """A piece of one symbol's stream. Each list is in order; ``updates`` ends where ``ticks`` does.

    ``whole``: the limit was reached, there is more behind it; bars behind the last tick are then left
    to the next stretch.
    """

    ticks: Sequence[Tick]
    updates: Sequence[BarUpdate]
    epochs: Sequence[EpochStarted]
    whole: bool


class StreamStore:
    """Reads for one service; sees the world of the database's provider alone."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, symbol: str, after: Key, limit: int, as_of: float) -> StoredStretch:
        """At most ``limit`` ticks behind ``after``, the bars at or behind it, the epochs that began.

        :param as_of: nothing received or published later; unix seconds UTC.
        :raises StorageError: PostgreSQL cannot be asked.
        """
        # The epochs first: one that begins meanwhile would claim ticks that were not stored then.
        epochs = await self._epochs(symbol, after[0])
        ticks = await self._database.ticks(symbol, after=after, limit=limit, as_of=as_of)
        if ticks and ticks[-1].epoch > max((one.epoch for one in epochs), default=after[0]):
            epochs = await self._epochs(symbol, after[0])
        whole = len(ticks) == limit
        last = (ticks[-1].epoch, ticks[-1].offset) if ticks else after
        if whole:
            epochs = [one for one in epochs if one.epoch <= last[0]]
        elif epochs:
            last = max(last, (epochs[-1].epoch, 0))
        rows = await self._database.fetch(
            *("published_bars", symbol, *after, *last, whole),
            *(self._database.provider.simulated, utc(as_of)),
        )
        updates = [
            BarUpdate(
                bar=bar_of_row(row, symbol, row["interval_s"]),
                epoch=row["epoch"],
                offset=row["tick_offset"],
                published_at=row["published_at"],
            )
            for row in rows
        ]
        return StoredStretch(ticks, updates, epochs, whole)

    async def first_at(self, symbol: str, instant: float, as_of: float) -> Key | None:
        """The place of the first tick stamped at or after ``instant``; ``None`` when there is none.

        :raises StorageError: PostgreSQL cannot be asked.
        """
        rows = await self._database.fetch(
            *("first_tick_at", symbol, utc(instant), self._database.provider.simulated),
            utc(as_of),
        )
        return (rows[0]["epoch"], rows[0]["tick_offset"]) if rows else None

    async def _epochs(self, symbol: str, after: int) -> list[EpochStarted]:
        rows = await self._database.fetch("epochs_after", symbol, after)
        return [EpochStarted(symbol, *row) for row in rows]
