"""In-memory stand-ins for shape tests of the serving side; the real parts meet it in tests/e2e."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import Any

import msgspec

from enhanced_websocket_service.errors import DatabaseUnavailable
from enhanced_websocket_service.market.bar import INTERVALS, Bar, BarUpdate, Certificate
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.serving import models
from enhanced_websocket_service.serving.admission import Admission
from enhanced_websocket_service.serving.api import create_app
from enhanced_websocket_service.serving.direct import BorrowedSocket
from enhanced_websocket_service.serving.hub import Hub
from enhanced_websocket_service.serving.limits import Limits
from enhanced_websocket_service.serving.outlet import OutletListener, payloads
from enhanced_websocket_service.serving.server import ApiServer
from enhanced_websocket_service.serving.session import session_view
from enhanced_websocket_service.serving.views import BarQuery, HealthView, TickQuery
from enhanced_websocket_service.storage.stream_store import StoredStretch
from enhanced_websocket_service.telemetry import Metrics

from .model_store import ModelStore

NOON = datetime.fromisoformat("2025-06-04T10:30:15-05:00").timestamp()
"""A Wednesday in the middle of a session."""
OPENS = int(datetime.fromisoformat("2025-06-04T08:00:00-05:00").timestamp())
EPOCH = 1_750_000_000_000
UP = models.PartHealth(connected=True, response_time_ms=5)
LIVE = models.FeedHealth(connected=True, expected=True, verdict="live")


class ManualClock:
    """A clock that stands still until told otherwise."""

    def __init__(self, now: float = NOON) -> None:
        self.instant = self._made = now

    def now(self) -> float:
        return self.instant

    def elapsed(self) -> float:
        return self.instant - self._made

    async def sleep(self, seconds: float) -> None:
        self.instant += seconds

    async def sleep_until(self, instant: float) -> None:
        self.instant = max(self.instant, instant)

    def span(self, seconds: float, at_least_real: float = 0.0) -> float:
        return max(seconds, at_least_real)


def tick(offset: int, *, epoch: int = EPOCH, symbol: str = "USDCOP", **changes: Any) -> Tick:
    stamp = OPENS + offset
    made = Tick(
        symbol=symbol,
        epoch=epoch,
        offset=offset,
        timestamp=stamp,
        price=round(4100 + offset / 100, 6),
        bid=round(4100 + offset / 100 - 0.25, 6),
        ask=round(4100 + offset / 100 + 0.25, 6),
        volume=0,
        source="simulator_websocket",
        received_at=stamp + 0.25,
        trading_session=True,
    )
    return msgspec.structs.replace(made, **changes)


def bar(number: int = 0, *, symbol: str = "USDCOP", **changes: Any) -> Bar:
    made = Bar(
        symbol=symbol,
        interval_s=300,
        open_time=OPENS + 300 * number,
        open=4100.0,
        high=4110.5 + number,
        low=4095.25,
        close=4105.0 + number,
        volume=0,
        source="simulator_websocket",
        revision=0,
        status="closed",
        certificate=Certificate(
            ticks={"simulator_websocket": 12},
            first_tick=OPENS + 300 * number + 1,
            last_tick=OPENS + 300 * number + 299,
            longest_silence_s=40,
            partial=False,
        ),
    )
    return msgspec.structs.replace(made, **changes)


def bar_update(number: int, offset: int, *, epoch: int = EPOCH, **changes: Any) -> BarUpdate:
    made = bar(number, **changes)
    return BarUpdate(bar=made, epoch=epoch, offset=offset, published_at=made.close_time + 1.0)


@dataclass
class FakeService:
    """A service in memory; tests change its fields and see what clients then see."""

    clock: ManualClock = field(default_factory=ManualClock)
    symbols: Sequence[str] = ("USDCOP",)
    state: str = "active"
    reason: str = "The session is open."
    database: models.PartHealth = UP
    redis: models.PartHealth = UP
    feed: models.FeedHealth = LIVE
    last: dict[str, Tick] = field(default_factory=dict)
    stored_bars: list[Bar] = field(default_factory=list)
    stored_ticks: list[Tick] = field(default_factory=list)
    store: ModelStore = field(default_factory=ModelStore)
    database_down: bool = False
    broken: Callable[[], None] = lambda: None
    calendar: TradingCalendar = field(default_factory=TradingCalendar)

    def now(self) -> float:
        return self.clock.now()

    def service_state(self) -> str:
        return self.state

    def _state(self) -> models.StateInfo:
        return models.StateInfo(state=self.state, reason=self.reason, since=NOON - 60)

    def health(self) -> HealthView:
        return HealthView(self._state(), 1234, self.database, self.redis, self.feed)

    def status(self) -> models.StatusView:
        self.broken()
        return models.StatusView(
            is_running=True,
            uptime_seconds=1234,
            l0_integration=models.L0Status(
                ready_signal_exists=True,
                data_freshness_hours=2.5,
                completeness_percentage=98.7,
                is_fresh=True,
                is_complete=True,
                missing_slots=5,
                last_bar=NOON - 9000,
            ),
            api_key_usage=models.ApiKeyUsage(
                total_keys=16,
                current_key_index=3,
                total_calls=127,
                keys=[
                    models.KeyView(
                        name=f"G{1 + i // 8}_{1 + i % 8}",
                        state="disabled" if i == 11 else "ready",
                        calls_today=5 + (i * 7) % 13,
                    )
                    for i in range(16)
                ],
            ),
            realtime_collection=models.RealtimeCollection(
                active=self.state == "active",
                websocket_connected=True,
                source="simulator_websocket",
                verdict="live",
                evidence="12 ticks in the last minute, 10 to 30 are usual for 10:30.",
                ticks_accepted=len(self.stored_ticks),
            ),
            state=self._state(),
            storage=models.StorageStatus(
                database_connected=True, redis_connected=True, writer_lag_records=0
            ),
            components=[models.ComponentStatus(name="feed", running=True)],
            provider="simulator",
            world="simulated",
            simulated=True,
        )

    def latest(self, symbol: str) -> Tick | None:
        return self.last.get(symbol)

    def session(self, symbol: str) -> models.SessionView:
        return session_view(self.calendar, self.now())

    def today(self, symbol: str) -> date:
        return self.calendar.local_date(self.now())

    async def bars(self, query: BarQuery) -> Sequence[Bar]:
        self._ask()
        rows = [
            row
            for row in self.stored_bars
            if row.symbol == query.symbol
            and row.interval_s == INTERVALS[query.interval]
            and (query.start is None or row.open_time >= query.start)
            and (query.end is None or row.open_time < query.end)
            and (query.after is None or row.open_time > query.after)
            and query.source in (None, row.source)
        ]
        return rows[-query.limit :] if query.newest else rows[: query.limit]

    async def ticks(self, query: TickQuery) -> Sequence[Tick]:
        self._ask()
        rows = [
            row
            for row in self.stored_ticks
            if row.symbol == query.symbol
            and (query.start is None or row.timestamp >= query.start)
            and (query.end is None or row.timestamp < query.end)
            and (query.after is None or (row.epoch, row.offset) > query.after)
            and (query.as_of is None or row.received_at <= query.as_of)
            and query.source in (None, row.source)
        ]
        return rows[-query.limit :] if query.newest else rows[: query.limit]

    async def stream(self, symbol: str, after: tuple[int, int], limit: int) -> StoredStretch:
        self._ask()
        return self.store.stretch(symbol, after, limit)

    async def stream_start(self, symbol: str, instant: float) -> tuple[int, int] | None:
        self._ask()
        return self.store.first_at(symbol, instant)

    async def stored(self, timeout_s: float) -> bool:
        return self.store.catch_up()

    async def continuity(self, symbol: str, day: date) -> models.ContinuityView:
        self._ask()
        held = {row.open_time: row for row in self.stored_bars if row.symbol == symbol}
        slots = [
            models.SlotView(
                datetime=label,
                source=held[label].source if label in held else None,
                status="live" if label in held else "unknown",
                revision=held[label].revision if label in held else None,
            )
            for label in self.calendar.expected_labels(day)
        ]
        return models.ContinuityView(
            date=day.isoformat(),
            expected=len(slots),
            covered=sum(slot.status == "live" for slot in slots),
            slots=slots,
        )

    async def continuity_range(
        self, symbol: str, start: date, end: date
    ) -> models.ContinuityRangeView:
        days = [
            await self.continuity(symbol, day) for day in self.calendar.trading_days(start, end)
        ]
        return models.ContinuityRangeView(
            start=start.isoformat(),
            end=end.isoformat(),
            expected=sum(day.expected for day in days),
            covered=sum(day.covered for day in days),
            final=0,
            unknown=sum(day.expected - day.covered for day in days),
            days=[
                models.DayNumbers(date=day.date, expected=day.expected, covered=day.covered)
                for day in days
            ],
        )

    def _ask(self) -> None:
        if self.database_down:
            raise DatabaseUnavailable("connection refused by postgresql://user:secret@db")


class RecordingOutlet:
    """An outlet whose peer reads only when told: what was written, message by message."""

    deflates = False

    def __init__(self) -> None:
        self.listener: OutletListener | None = None
        self.frames: list[bytes] = []
        self.writes = 0
        self.unread = 0
        self.high = self.low = 0
        self.reading = True
        self.paused = False
        self.closed: tuple[int, str] | None = None
        self.broken = False
        self.direct: BorrowedSocket | None = None

    def bind(self, listener: OutletListener, high_water: int, low_water: int) -> None:
        self.listener, self.high, self.low = listener, high_water, low_water

    def write(self, frames: bytes, /) -> None:
        assert self.closed is None, "written to after close"
        if self.broken:
            raise RuntimeError("the transport is closed")
        self.frames.append(frames)
        self.writes += 1
        if self.reading:
            return
        self.unread += len(frames)
        if self.unread > self.high and not self.paused:
            self.paused = True
            assert self.listener is not None
            self.listener.on_congested()

    def buffered(self) -> int:
        return self.unread

    def untaken(self) -> int:
        return self.unread

    def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)

    def drain(self) -> None:
        """The peer reads everything that waits."""
        self.unread = 0
        if self.paused:
            self.paused = False
            assert self.listener is not None
            self.listener.on_drained()

    def messages(self, *kinds: str) -> list[dict[str, Any]]:
        """Everything written so far, in order; of ``kinds`` only, when given."""
        found = [msgspec.json.decode(p) for frames in self.frames for p in payloads(frames)]
        return [m for m in found if not kinds or m["type"] in kinds]

    def clear(self) -> None:
        self.frames.clear()


def make_hub(symbols: Sequence[str] = ("USDCOP",), **limits: Any) -> Hub:
    return Hub(symbols, ManualClock(), lambda: "active", Metrics(), replace(Limits(), **limits))


@dataclass
class Running:
    """A whole API on a real socket."""

    service: FakeService
    hub: Hub
    server: ApiServer
    metrics: Metrics

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def ws(self) -> str:
        return self.server.url.replace("http", "ws", 1)


@asynccontextmanager
async def running(
    service: FakeService | None = None,
    limits: Limits | None = None,
    cors_origins: Sequence[str] = (),
    trusted_proxies: Sequence[str] = (),
    **server: Any,
) -> AsyncIterator[Running]:
    service = service or FakeService()
    metrics = Metrics()
    hub = Hub(service.symbols, service.clock, service.service_state, metrics, limits)
    admission = Admission(hub.limits, metrics, cors_origins, trusted_proxies)
    app = create_app(service, hub, metrics.registry, cors_origins=cors_origins, admission=admission)
    server |= {"admission": admission, "trusted_proxies": trusted_proxies}
    api = ApiServer(app, "127.0.0.1", 0, **server)
    await api.start()
    try:
        yield Running(service, hub, api, metrics)
    finally:
        hub.close_all()
        await api.stop()


async def until(condition: Callable[[], bool], timeout: float = 40.0) -> None:
    """Let the loop turn until ``condition`` holds."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0)
