"""The stream store as it should behave, in a few lists: what is journaled, and how far it is stored."""

from collections.abc import Sequence

from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.events import EpochStarted, StatusChanged
from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.storage.stream_store import Key, StoredStretch

Record = Tick | BarUpdate | EpochStarted | StatusChanged


class ModelStore:
    """``journal`` takes records in order; those before ``stored`` can be read."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.stored = 0
        self.stuck = False
        self.lagging = False
        self.reads = 0

    def journal(self, records: Sequence[Record]) -> None:
        self.records += records
        if not self.lagging:
            self.stored = len(self.records)

    def catch_up(self) -> bool:
        if not self.stuck:
            self.stored = len(self.records)
        return not self.stuck

    def stretch(self, symbol: str, after: Key, limit: int) -> StoredStretch:
        self.reads += 1
        known = self.records[: self.stored]
        ticks = [
            one
            for one in known
            if isinstance(one, Tick) and one.symbol == symbol and (one.epoch, one.offset) > after
        ][:limit]
        whole = len(ticks) == limit
        epochs = [
            one
            for one in known
            if isinstance(one, EpochStarted) and one.symbol == symbol and one.epoch > after[0]
        ]
        last = (ticks[-1].epoch, ticks[-1].offset) if ticks else after
        if whole:
            epochs = [one for one in epochs if one.epoch <= last[0]]
        elif epochs:
            last = max(last, (epochs[-1].epoch, 0))
        updates = [
            one
            for one in known
            if isinstance(one, BarUpdate)
            and one.bar.symbol == symbol
            and after <= (one.epoch, one.offset) <= last
            and not (whole and (one.epoch, one.offset) == last)
        ]
        return StoredStretch(ticks, updates, epochs, whole)

    def first_at(self, symbol: str, instant: float) -> Key | None:
        known = self.records[: self.stored]
        return next(
            (
                (one.epoch, one.offset)
                for one in known
                if isinstance(one, Tick) and one.symbol == symbol and one.timestamp >= instant
            ),
            None,
        )
