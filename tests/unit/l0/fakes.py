"""A vendor and a store in memory, as small as the interfaces L0 asks for, and a clock that stands."""

from collections.abc import Iterable, Sequence
from datetime import date, datetime, time
from pathlib import Path

from enhanced_websocket_service.errors import NotEntitled, VendorError
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.l0.absences import Absences
from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.market.calendar import BOGOTA, TradingCalendar
from enhanced_websocket_service.market.source import Provider

CALENDAR = TradingCalendar()
SIMULATOR = Provider("simulator")


def at(text: str) -> int:
    """Unix seconds of an ISO time; without an offset it is Bogota's."""
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=BOGOTA)).timestamp())


def bar(open_time: int, source: str = "simulator", price: float = 4000.0) -> Bar:
    price += open_time // 300 % 97
    return Bar(
        symbol="USDCOP",
        interval_s=300,
        open_time=open_time,
        open=price,
        high=price + 2.5,
        low=price - 1.25,
        close=price + 0.123456,
        volume=0,
        source=source,
        revision=0,
        status="reconciled",
    )


def session_bars(*days: str) -> list[Bar]:
    """The 60 bars of each day."""
    return [
        bar(label) for day in days for label in CALENDAR.expected_labels(date.fromisoformat(day))
    ]


def around_the_clock(start: str, end: str) -> list[Bar]:
    """Bars of every 5 minutes from midnight of ``start`` to midnight of ``end``."""
    first, last = (
        int(datetime.combine(date.fromisoformat(day), time(0), BOGOTA).timestamp())
        for day in (start, end)
    )
    return [bar(slot) for slot in range(first, last, 300)]


class StillClock:
    """Shows the instant it was given."""

    def __init__(self, instant: float) -> None:
        self.instant = self._made = instant

    def now(self) -> float:
        return self.instant

    def elapsed(self) -> float:
        return self.instant - self._made

    async def sleep(self, seconds: float) -> None:
        self.instant += seconds

    async def sleep_until(self, instant: float) -> None:
        self.instant = max(self.instant, instant)

    def span(self, seconds: float, at_least_real: float = 0.0) -> float:
        return seconds


class FakeVendor:
    """Gives at most ``cap`` bars of a window: those nearest its end, as the vendor is believed to.

    ``from_start`` cuts at the wrong end; ``fail_at`` raises on that call, counted from 1; ``excluded`` is a
    symbol that no plan includes.
    """

    def __init__(
        self,
        bars: Iterable[Bar],
        cap: int = 5000,
        *,
        from_start: bool = False,
        fail_at: int | None = None,
        excluded: str | None = None,
    ) -> None:
        self.excluded = excluded
        self.bars = sorted(bars, key=lambda one: one.open_time)
        self.cap, self.from_start, self.fail_at = cap, from_start, fail_at
        self.calls: list[tuple[int, int, str]] = []

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
        assert interval_s == 300
        assert start <= end
        if symbol == self.excluded:
            raise NotEntitled(f"{symbol} is available starting with the Grow plan.")
        assert symbol == "USDCOP"
        self.calls.append((start, end, purpose))
        if self.fail_at == len(self.calls):
            raise VendorError("The vendor is out of order.")
        inside = [one for one in self.bars if start <= one.open_time <= end]
        rows = min(self.cap, outputsize)
        return inside[:rows] if self.from_start else inside[-rows:]


class FakeStore:
    """``market_data`` as a dictionary by slot and source; remembers every write."""

    def __init__(self, bars: Iterable[Bar] = ()) -> None:
        self.rows = {(one.open_time, one.source): one for one in bars}
        self.writes: list[list[int]] = []

    async def upsert_vendor_bars(self, bars: Sequence[Bar]) -> int:
        self.writes.append([one.open_time for one in bars])
        self.rows.update({(one.open_time, one.source): one for one in bars})
        return len(bars)

    async def slots_present(self, symbol: str, start: int, end: int) -> dict[int, list[str]]:
        present: dict[int, list[str]] = {}
        for (slot, source), one in sorted(self.rows.items()):
            if start <= slot < end and one.symbol == symbol:
                present.setdefault(slot, []).append(source)
        return present

    async def vendor_bars(self, symbol: str, start: int, end: int) -> list[Bar]:
        return [
            one
            for (slot, source), one in sorted(self.rows.items())
            if start <= slot <= end and source in ("simulator", "twelvedata")
        ]

    async def last_bar(self, symbol: str, vendor_only: bool = False) -> Bar | None:
        keys = [
            key for key in self.rows if not vendor_only or key[1] in ("simulator", "twelvedata")
        ]
        return self.rows[max(keys)] if keys else None

    def slots(self) -> list[int]:
        return sorted(slot for slot, _ in self.rows)


def absences(
    directory: Path, source: str = "simulator", failures: Failures | None = None
) -> Absences:
    """The record of what the vendor does not have, in ``directory``."""
    failures = failures or Failures(StillClock(0.0))
    return Absences(directory, "USDCOP", source, CALENDAR, failures)
