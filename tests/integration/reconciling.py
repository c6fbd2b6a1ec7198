"""Everything between the vendor's answer and the tables, for tests: no process, no socket."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path

import msgspec

from enhanced_websocket_service.errors import VendorUnavailable
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.l0.reconcile import Reconciler
from enhanced_websocket_service.market.bar import Bar, BarUpdate
from enhanced_websocket_service.market.events import Event
from enhanced_websocket_service.market.reconciliation import Credits
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.service.pipeline import Pipeline
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.slot_store import SlotStore
from enhanced_websocket_service.storage.writer import JournalWriter
from enhanced_websocket_service.telemetry import Metrics
from tests.storage_samples import writing
from tests.unit.l0.fakes import CALENDAR, SIMULATOR, StillClock, at, bar

DAY = date(2025, 6, 25)
LABELS = CALENDAR.expected_labels(DAY)
LIVE = LABELS[:4]
HOLE = LABELS[4]


def first_seen(open_time: int, **changes: object) -> Bar:
    return msgspec.structs.replace(bar(open_time), status="closed", **changes)  # type: ignore[arg-type]


class PacedClock(StillClock):
    """Lets others run while it sleeps."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        await asyncio.sleep(0)


class Vendor:
    """Has a whole session; a test changes what it has."""

    def __init__(self, clock: StillClock | None = None) -> None:
        self._clock = clock
        self.bars = {label: first_seen(label) for label in LABELS}
        self.calls: list[tuple[int, int]] = []
        self.purposes: list[str] = []
        self.away = False
        self.shown_from: dict[int, float] = {}  # a candle that appears late: its label -> when

    async def time_series(
        self,
        symbol: str,
        *,
        start: int,
        end: int,
        interval_s: int = 300,
        outputsize: int = 5000,
        purpose: str,
    ) -> list[Bar]:
        assert (symbol, interval_s) == ("USDCOP", 300)
        self.calls.append((start, end))
        self.purposes.append(purpose)
        if self.away:
            raise VendorUnavailable("The vendor did not answer.")
        now = math.inf if self._clock is None else self._clock.now()
        return [
            one
            for label, one in self.bars.items()
            if start <= label <= end and now >= self.shown_from.get(label, 0.0)
        ]


class House:
    """Everything between the vendor's answer and the tables, but no process and no socket."""

    def __init__(
        self, database: Database, journal: Journal, writer: JournalWriter, clock: StillClock
    ) -> None:
        self.database, self.journal, self.writer, self.clock = database, journal, writer, clock
        self.vendor = Vendor(clock)
        self.events: list[Event] = []
        self.sets: list[str] = []
        self.store = SlotStore(database)
        self.failures = Failures(clock)
        self.credits = Credits(700, 80)
        self.may_repair = True
        self.pipeline = Pipeline(
            {"USDCOP": CALENDAR},
            journal=journal,
            publish=self.events.extend,
            metrics=Metrics(),
            epoch=1,
        )
        self.restart()

    def restart(self) -> None:
        """A reconciler that remembers nothing."""

        async def write_backup(symbol: str) -> None:
            self.sets.append(symbol)

        self.reconciler = Reconciler(
            rest=self.vendor,
            store=self.store,
            calendars={"USDCOP": CALENDAR},
            clock=self.clock,
            provider=SIMULATOR,
            publish=self.pipeline.on_vendor_bars,
            changeable=self.pipeline.changeable,
            stored=lambda timeout_s: self.writer.reached(self.journal.end.record, timeout_s),
            may_run=lambda _: True,
            credits=lambda _: self.credits,
            write_backup=write_backup,
            window_days=1,
            metrics=Metrics(),
            failures=self.failures,
            may_repair=lambda _: self.may_repair,
        )

    def collect(self, labels: Sequence[int]) -> None:
        """Two ticks a bar, its open and its close; so the vendor's high and low are beyond."""
        for label in labels:
            truth = bar(label)
            for second, price in ((1, truth.open), (290, truth.close)):
                quote = Quote(
                    "USDCOP", label + second, price, "simulator_websocket", label + second
                )
                self.pipeline.on_quotes([quote], label + second + 0.1)
            self.pipeline.on_time(label + 301.0, 60.0)
        self.pipeline.on_time(labels[-1] + 400.0, 60.0)

    async def look(self, local: str) -> list[BarUpdate]:
        """One round at that time of the day; what clients were told."""
        self.clock.instant = at(f"{DAY}T{local}")
        self.pipeline.on_time(self.clock.instant, 60.0)
        before = len(self.events)
        await self.reconciler.look("USDCOP")
        return [event for event in self.events[before:] if isinstance(event, BarUpdate)]

    async def settled(self) -> None:
        assert await self.writer.reached(self.journal.end.record, 10)


@asynccontextmanager
async def open_house(dsn: str, directory: Path) -> AsyncIterator[House]:
    clock = PacedClock(float(LABELS[0]))
    database = Database(dsn, SIMULATOR, clock=clock)
    journal = Journal.open(directory / "journal")
    syncing = asyncio.create_task(journal.run(), name="journal")
    try:
        await database.connect()
        # The session before is complete, so that only this one matters.
        past = [bar(label) for label in CALENDAR.expected_labels(date(2025, 6, 24))]
        await database.upsert_vendor_bars(past)
        async with writing(journal, database) as writer:
            yield House(database, journal, writer, clock)
    finally:
        syncing.cancel()
        await asyncio.gather(syncing, return_exceptions=True)
        journal.close()
        await database.close()


def told(updates: Sequence[BarUpdate]) -> dict[int, tuple[str, int]]:
    assert len({update.bar.open_time for update in updates}) == len(updates)
    return {update.bar.open_time: (update.bar.status, update.bar.revision) for update in updates}
