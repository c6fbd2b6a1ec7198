"""What the journal says happened, checked record by record against plain arithmetic. Pure.

The bars are folded here from the ticks anew, sharing nothing with the aggregator: every bar that was
published must equal the fold of the ticks journaled before it.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from enhanced_websocket_service.market.bar import Bar, BarUpdate
from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.market.tick import HELD, Rejection, Tick

from .tick_table import TickTable, counts_for_bar

SLOT_S = 300
MOST_EXAMPLES = 5

Record = Tick | Rejection | BarUpdate | EpochStarted
Prices = tuple[float, float, float, float]


@dataclass(slots=True)
class _Fold:
    first: int
    open: float
    high: float
    low: float
    last: int
    close: float
    count: int = 1
    told: int = 0  # how many of them the last published bar had

    def add(self, stamp: int, price: float) -> None:
        self.count += 1
        self.high, self.low = max(self.high, price), min(self.low, price)
        if stamp < self.first:
            self.first, self.open = stamp, price
        if stamp >= self.last:
            self.last, self.close = stamp, price

    @property
    def prices(self) -> Prices:
        return (self.open, self.high, self.low, self.close)


class Faults:
    """Broken invariants, with examples: the first ones of each kind, and how many there were."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, kind: str, example: str) -> None:
        self._counts[kind] += 1
        examples = self._found.setdefault(kind, [])
        if len(examples) < MOST_EXAMPLES:
            examples.append(example)

    def __len__(self) -> int:
        return sum(self._counts.values())

    def count(self, kind: str) -> int:
        return self._counts[kind]

    def shown(self) -> list[str]:
        return [
            f"{kind} ({self._counts[kind]}): {example}"
            for kind, examples in self._found.items()
            for example in examples
        ]


def prices_of(bar: Bar) -> Prices:
    return (bar.open, bar.high, bar.low, bar.close)


class JournalAccount:
    """Feed it the whole journal with ``see``, in order, then call ``close``.

    :param vendor_source: the source of the vendor's own bars.
    """

    def __init__(self, faults: Faults, vendor_source: str) -> None:
        self.faults = faults
        self.ticks = TickTable()
        self.rejected: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.flags: Counter[str] = Counter()
        self.epochs: list[int] = []
        self.records = 0
        self.live_bars: dict[int, Bar] = {}  # by slot: the last one published
        self.bar_updates: Counter[str] = Counter()  # by status
        self.published_bars: set[tuple[int, int, str, str, Prices]] = set()
        self._vendor_source = vendor_source
        self._folds: dict[int, _Fold] = {}

    def see_all(self, records: Iterable[Record]) -> None:
        for record in records:
            self.see(record)
        self.close()

    def see(self, record: Record) -> None:
        self.records += 1
        if isinstance(record, Tick):
            self._tick(record)
        elif isinstance(record, Rejection):
            if record.reason == HELD:
                return  # its fate is another record
            self.rejected[record.reason] += 1
        elif isinstance(record, BarUpdate):
            self._bar(record)
        else:
            self._epoch(record)

    def close(self) -> None:
        """The journal is over: what ought to have come did not."""
        for slot, fold in self._folds.items():
            if fold.told != fold.count:
                self.faults.add(
                    "bar_lacks_ticks",
                    f"slot {slot}: {fold.count} ticks were journaled, its last published bar had "
                    f"{fold.told}",
                )

    def _tick(self, tick: Tick) -> None:
        if not self.epochs or tick.epoch != self.epochs[-1]:
            self.faults.add("epoch_not_begun", f"epoch {tick.epoch} offset {tick.offset}")
        wrong = self.ticks.add(tick)
        if wrong is not None:
            self.faults.add("offsets", wrong)
            return
        self.sources[tick.source] += 1
        self.flags.update(tick.flags)
        if not counts_for_bar(tick.trading_session, tick.flags):
            return
        stamp, price = tick.timestamp, tick.price
        slot = stamp - stamp % SLOT_S
        fold = self._folds.get(slot)
        if fold is None:
            self._folds[slot] = _Fold(stamp, price, price, price, stamp, price)
        else:
            fold.add(stamp, price)

    def _bar(self, update: BarUpdate) -> None:
        bar = update.bar
        self.bar_updates[bar.status] += 1
        self.published_bars.add(bar_identity(bar))
        if bar.source == self._vendor_source:
            return
        self.live_bars[bar.open_time] = bar
        fold = self._folds.get(bar.open_time)
        if fold is None:
            self.faults.add("bar_of_nothing", f"slot {bar.open_time}: no tick was journaled")
            return
        fold.told = fold.count
        counted = sum(bar.certificate.ticks.values()) if bar.certificate else 0
        if prices_of(bar) != fold.prices or counted != fold.count:
            self.faults.add(
                "bar_differs",
                f"slot {bar.open_time} revision {bar.revision}: published {prices_of(bar)} of "
                f"{counted} ticks, the journal gives {fold.prices} of {fold.count}",
            )

    def _epoch(self, started: EpochStarted) -> None:
        epoch = started.epoch
        if self.epochs and epoch <= self.epochs[-1]:
            self.faults.add("epoch_repeated", f"epoch {epoch} after epoch {self.epochs[-1]}")
        known = self.ticks.epochs
        truth = (known[-1], self.ticks.last(known[-1])) if known else (None, None)
        told = (started.previous_epoch, started.previous_last_offset)
        if told != truth:
            self.faults.add("epoch_previous", f"epoch {epoch} says {told}, the journal {truth}")
        self.epochs.append(epoch)


def bar_identity(bar: Bar) -> tuple[int, int, str, str, Prices]:
    """What tells a published bar from every other."""
    return (bar.open_time, bar.revision, bar.status, bar.source, prices_of(bar))
