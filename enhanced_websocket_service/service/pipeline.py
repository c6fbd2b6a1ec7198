"""The whole hot path of a tick: validate, number, journal, aggregate, publish.

Invariants: ``on_quotes`` and ``on_time`` are synchronous, so they cannot interleave; what is
published was journaled before; an offset is used once and only for a journaled tick; a batch whose
journal write fails changes neither offsets nor bars and is not published. Does not own: fsync,
PostgreSQL, Redis and the sockets of clients, which all follow at their own pace.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from enhanced_websocket_service.errors import JournalError
from enhanced_websocket_service.market.aggregation import BarAggregator
from enhanced_websocket_service.market.bar import Bar, BarUpdate
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.events import EpochStarted, Event
from enhanced_websocket_service.market.tick import Flag, Quote, Rejection, Tick, quantise, rejection
from enhanced_websocket_service.market.validation import Accepted, QuoteValidator, ValidatorState
from enhanced_websocket_service.telemetry import Metrics

Record = Tick | Rejection | BarUpdate | EpochStarted

_KEEP_OUT_OF_BARS = frozenset({Flag.FUTURE, Flag.LATE})


class _Journal(Protocol):
    def append(self, records: Sequence[Record]) -> object: ...


@dataclass(slots=True)
class _Line:
    """Everything the pipeline keeps per symbol."""

    calendar: TradingCalendar
    validator: QuoteValidator
    aggregator: BarAggregator
    offset: int = 0


@dataclass(slots=True)
class PipelineCounts:
    """Totals since the start of the process."""

    quotes: int = 0
    ticks: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    resent: int = 0
    late: int = 0
    future: int = 0
    outside_session: int = 0
    bars: int = 0


class Pipeline:
    """Takes quotes, gives ticks and bars.

    :param calendars: the calendar of each symbol; quotes of other symbols are rejected.
    :param publish: hands events to the bus; must not block.
    :param future_tolerance_s: how far ahead of our clock a stamp may be.
    """

    def __init__(
        self,
        calendars: Mapping[str, TradingCalendar],
        *,
        journal: _Journal,
        publish: Callable[[Sequence[Event]], None],
        metrics: Metrics,
        epoch: int,
        price_band_pct: float = 5.0,
        bar_close_delay_s: float = 1.0,
        future_tolerance_s: float = 5.0,
    ) -> None:
        self.epoch = epoch
        self.counts = PipelineCounts()
        self._journal = journal
        self._publish = publish
        self._metrics = metrics
        self._future_tolerance_s = future_tolerance_s
        self._closed: list[BarUpdate] = []  # not journaled yet
        self._lines = {
            symbol: _Line(
                calendar,
                QuoteValidator(price_band_pct),
                BarAggregator(symbol, close_delay=bar_close_delay_s),
            )
            for symbol, calendar in calendars.items()
        }

    @property
    def offsets(self) -> dict[str, int]:
        """The last offset of each symbol in the current epoch; 0 before the first tick."""
        return {symbol: line.offset for symbol, line in self._lines.items()}

    def seed(self, ticks: Iterable[Tick]) -> None:
        """Measure new prices by the last journaled tick of each symbol."""
        for tick in ticks:
            if (line := self._lines.get(tick.symbol)) is not None:
                line.validator.seed(tick.timestamp, tick.price, tick.bid, tick.ask)

    def restore(self, records: Iterable[Record]) -> None:
        """Rebuild the open bars from what was journaled before the restart, oldest first."""
        for record in records:
            line = self._lines.get(
                record.bar.symbol if isinstance(record, BarUpdate) else record.symbol
            )
            if line is None:
                continue
            if isinstance(record, Tick):
                if record.trading_session and not _KEEP_OUT_OF_BARS.intersection(record.flags):
                    line.aggregator.add(record)
            elif isinstance(record, BarUpdate):
                line.aggregator.resume(record.bar.open_time, record.bar.revision)

    def begin_epoch(self, now: float, previous: Mapping[str, tuple[int, int]]) -> None:
        """Journal and announce the epoch of this process.

        :param previous: by symbol, the last epoch and its last offset, where known.
        """
        started = [
            EpochStarted(symbol, self.epoch, *previous.get(symbol, (None, None)))
            for symbol in self._lines
        ]
        self._journal.append(started)
        self._publish(started)

    def interrupted(self, start: float, end: float) -> None:
        """Nothing was collected in ``[start, end)``: bars touching it will say ``partial``."""
        for line in self._lines.values():
            line.aggregator.interrupted(start, end)

    def on_quotes(self, quotes: Sequence[Quote], now: float) -> None:
        """Take one batch in arrival order.

        :raises JournalError: nothing of the batch counts as accepted, and none was published.
        """
        self.counts.quotes += len(quotes)
        rejections: list[Rejection] = []
        ticks: list[Tick] = []
        numbered: dict[str, int] = {}
        before = [(line.validator, line.validator.state()) for line in self._lines.values()]
        for quote in quotes:
            line = self._lines.get(quote.symbol)
            if line is None:
                rejections.append(rejection(quote, "unknown_symbol"))
                continue
            if line.validator.is_resent(quote):
                self.counts.resent += 1
                self._metrics.resent.inc()
                continue
            accepted, refused = line.validator.check(quote)
            rejections += refused
            for one in accepted:
                offset = numbered.get(quote.symbol, line.offset) + 1
                numbered[quote.symbol] = offset
                ticks.append(self._tick(line, one, offset, now))
        if not ticks and not rejections:
            return
        self._append([*rejections, *ticks], before)
        self._count_rejections(rejections)
        published: list[Event] = []
        for tick in ticks:
            line = self._lines[tick.symbol]
            line.offset = tick.offset
            if self._aggregate(line, tick):
                published.append(tick)
        if published:
            self._publish(published)

    def on_time(self, now: float, grace: float) -> None:
        """Close the bars that are due. ``grace``: seconds for which a late tick revises a bar.

        :raises JournalError: the bars stay pending and are tried again by the next call.
        """
        self._closed += [
            BarUpdate(bar, self.epoch, line.offset, now)
            for line in self._lines.values()
            for bar in line.aggregator.advance(now, grace)
        ]
        if not self._closed:
            return
        self._publish_bars(self._closed)
        self._closed = []

    def changeable(self, symbol: str, slot: int) -> bool:
        """Whether a tick could still enter the bar of ``slot`` and revise it."""
        return self._lines[symbol].aggregator.accepts(slot)

    def on_vendor_bars(self, bars: Sequence[Bar], now: float) -> list[Bar]:
        """Journal and publish new versions of slots that the vendor's bars settle, oldest first.

        Refused are those that ticks can still change: a live revision after the vendor's would claim
        to be better. The caller numbers the revisions and comes again with what was refused.

        :returns: those published.
        :raises JournalError: none was.
        """
        taken = [
            bar
            for bar in bars
            if bar.symbol in self._lines and not self.changeable(bar.symbol, bar.open_time)
        ]
        if taken:
            self._publish_bars(
                [
                    BarUpdate(bar, self.epoch, self._lines[bar.symbol].offset, now)
                    for bar in sorted(taken, key=lambda bar: bar.open_time)
                ]
            )
        return taken

    def next_close(self) -> float | None:
        """When ``on_time`` next has a bar to publish; ``None`` while there is none."""
        instants = (line.aggregator.next_close() for line in self._lines.values())
        return min((at for at in instants if at is not None), default=None)

    def flush_held(self) -> None:
        """The session is over: quotes still held outside the price band were never confirmed."""
        before = [(line.validator, line.validator.state()) for line in self._lines.values()]
        rejections = [one for line in self._lines.values() for one in line.validator.flush()]
        if rejections:
            self._append(rejections, before)
            self._count_rejections(rejections)

    def _publish_bars(self, updates: list[BarUpdate]) -> None:
        self._journal.append(updates)
        for update in updates:
            self.counts.bars += 1
            self._metrics.bars.labels(update.bar.status).inc()
        self._publish(updates)

    def _tick(self, line: _Line, accepted: Accepted, offset: int, now: float) -> Tick:
        quote, flags = accepted.quote, accepted.flags
        stamp = quote.timestamp
        session = line.calendar.session_on(stamp)
        inside = session is not None and session.opens <= stamp < session.closes
        if stamp > now + self._future_tolerance_s:
            flags = (*flags, Flag.FUTURE)
        elif inside and not line.aggregator.accepts(stamp):
            flags = (*flags, Flag.LATE)
        return Tick(
            symbol=quote.symbol,
            epoch=self.epoch,
            offset=offset,
            timestamp=stamp,
            price=quantise(quote.price),
            bid=None if quote.bid is None else quantise(quote.bid),
            ask=None if quote.ask is None else quantise(quote.ask),
            volume=quote.volume,
            source=quote.source,
            received_at=quote.received_at,
            trading_session=inside,
            flags=flags,
        )

    def _aggregate(self, line: _Line, tick: Tick) -> bool:
        """Count ``tick`` and add it to its bar; whether it is to be published."""
        counts = self.counts
        counts.ticks += 1
        self._metrics.ticks.labels(tick.symbol, tick.source).inc()
        if Flag.FUTURE in tick.flags:
            counts.future += 1
            return False
        if not tick.trading_session:
            counts.outside_session += 1
            return False
        if Flag.LATE in tick.flags:
            counts.late += 1
            self._metrics.late.inc()
        else:
            line.aggregator.add(tick)
        self._metrics.tick_price.labels(tick.symbol).set(tick.price)
        return True

    def _append(
        self, records: Sequence[Record], before: Sequence[tuple[QuoteValidator, ValidatorState]]
    ) -> None:
        """Journal ``records``; when that fails, the validators never saw them."""
        try:
            self._journal.append(records)
        except JournalError:
            # Else the vendor's re-sent price would equal one that is nowhere, and be dropped.
            for validator, state in before:
                validator.go_back(state)
            raise

    def _count_rejections(self, rejections: Sequence[Rejection]) -> None:
        for one in rejections:
            self.counts.rejected[one.reason] = self.counts.rejected.get(one.reason, 0) + 1
            self._metrics.rejected.labels(one.reason).inc()
