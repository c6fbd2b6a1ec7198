"""The whole hot path of a tick: validate, number, journal, aggregate, publish.

Invariants: ``on_quotes`` and ``on_time`` are synchronous, so they cannot interleave; what is
published was journaled before; an offset is used once and only for a journaled tick; a batch whose
journal write fails changes neither offsets nor bars and is not published. Does not own: fsync,
PostgreSQL, Redis and the sockets of clients, which all follow at their own pace.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from time import monotonic
from typing import Any, Protocol

from enhanced_websocket_service.errors import JournalError
from enhanced_websocket_service.market.aggregation import BarAggregator
from enhanced_websocket_service.market.bar import Bar, BarUpdate
from enhanced_websocket_service.market.calendar import BAR_SECONDS, TradingCalendar
from enhanced_websocket_service.market.events import EpochStarted, Event
from enhanced_websocket_service.market.plausibility import Doubt
from enhanced_websocket_service.market.tick import (
    UNWITNESSED,
    Flag,
    Quote,
    Rejection,
    Tick,
    rejection,
)
from enhanced_websocket_service.market.validation import Decision, QuoteValidator, ValidatorState
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.watermarks import Hop, Watermarks

from .line import Line
from .tick_meter import TickMeter
from .undecided import Undecided, newly_held

Record = Tick | Rejection | BarUpdate | EpochStarted

_Before = Sequence[tuple[QuoteValidator, ValidatorState]]

_KEEP_OUT_OF_BARS = frozenset({Flag.FUTURE, Flag.LATE})
_SYMBOL = attrgetter("symbol")
STRETCH = 256
"""Quotes that are looked at together at most: after an odd one the rest is looked at anew."""


class _Journal(Protocol):
    def append(self, records: Sequence[Record]) -> object: ...


@dataclass(frozen=True, slots=True)
class PipelineCounts:
    """Totals of all symbols since the start of the process."""

    quotes: int = 0
    ticks: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    resent: int = 0
    unchanged: int = 0
    late: int = 0
    future: int = 0
    outside_session: int = 0
    bars: int = 0


class Pipeline:
    """Takes quotes, gives ticks and bars.

    :param calendars: the calendar of each symbol; quotes of other symbols are rejected.
    :param publish: hands events to the bus; must not block.
    :param future_tolerance_s: how far ahead of our clock a stamp may be.
    :param incomplete: told ``symbol, start, end`` of a slot whose live bar lacks a tick that came too
        late, or a price that nobody could vouch for: the vendor's bar is wanted soon. Must not block.
    :param stamped: told the vendor's stamp of a price now and then, and when it was received.
    :param reached: the stamp up to which the feed of a symbol has told everything; infinite where nothing is
        known to be late.
    :param doubted: told the symbol when its doubted price is another one than before, or none any more:
        somebody may look for a witness (``doubt``, ``settle``). Without it the first price of all is
        believed. Must not block.
    :param watermarks: told of what came, was accepted, refused and closed.
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
        incomplete: Callable[[str, float, float], None] = lambda *_: None,
        stamped: Callable[[float, float], None] = lambda *_: None,
        reached: Callable[[str], float] = lambda _: math.inf,
        doubted: Callable[[str], None] | None = None,
        watermarks: Watermarks | None = None,
    ) -> None:
        self.epoch = epoch
        self._strangers = 0  # quotes of symbols that are not ours
        self._bars_published = 0
        self._incomplete = incomplete
        self._stamped = stamped
        self._reached = reached
        self._doubted = doubted
        self._waiting = True  # somebody was told of a doubt, or may have to be
        self._meter = TickMeter(metrics)
        self._journal = journal
        self._publish = publish
        self._metrics = metrics
        self._future_tolerance_s = future_tolerance_s
        self._watermarks = watermarks or Watermarks(calendars, monotonic)
        self._closed: list[BarUpdate] = []  # not journaled yet
        self._lines = {
            symbol: Line(
                symbol,
                calendar,
                QuoteValidator(price_band_pct, believe_first=doubted is None),
                BarAggregator(symbol, close_delay=bar_close_delay_s),
            )
            for symbol, calendar in calendars.items()
        }

    @property
    def counts(self) -> PipelineCounts:
        """Totals since the start of the process."""
        kept = [line.hygiene for line in self._lines.values()]
        rejected = {"unknown_symbol": self._strangers} if self._strangers else {}
        for one in kept:
            for reason, count in one.rejected.items():
                rejected[reason] = rejected.get(reason, 0) + count
        return PipelineCounts(
            quotes=sum(one.quotes for one in kept) + self._strangers,
            ticks=sum(one.ticks for one in kept),
            rejected=rejected,
            resent=sum(one.resent for one in kept),
            unchanged=sum(one.unchanged for one in kept),
            late=sum(one.late for one in kept),
            future=sum(one.future for one in kept),
            outside_session=sum(one.outside_session for one in kept),
            bars=self._bars_published,
        )

    def hygiene(self) -> dict[str, dict[str, Any]]:
        """By symbol, what was odd about its quotes, as plain JSON values."""
        return {
            symbol: {**line.hygiene.shown(), "held_now": line.validator.held}
            for symbol, line in self._lines.items()
        }

    def held(self) -> dict[str, int]:
        """By symbol, how many quotes wait for a witness; only symbols that have some."""
        return {s: held for s, line in self._lines.items() if (held := line.validator.held)}

    def closes(self) -> dict[str, float]:
        """By symbol, when the next bar is due to be published; only symbols that have one."""
        found = {symbol: line.aggregator.next_close() for symbol, line in self._lines.items()}
        return {symbol: at for symbol, at in found.items() if at is not None}

    @property
    def offsets(self) -> dict[str, int]:
        """The last offset of each symbol in the current epoch; 0 before the first tick."""
        return {symbol: line.offset for symbol, line in self._lines.items()}

    def seed(self, ticks: Iterable[Tick]) -> None:
        """Measure new prices by the last journaled tick of each symbol."""
        for tick in ticks:
            if (line := self._lines.get(tick.symbol)) is not None:
                line.validator.seed(
                    tick.timestamp,
                    tick.price,
                    tick.bid,
                    tick.ask,
                    timely=Flag.FUTURE not in tick.flags,
                )

    def restore(self, records: Iterable[Record]) -> None:
        """Rebuild the open bars from what was journaled before the restart, oldest first; quotes that were
        held then are held again.
        """
        before: dict[str, Tick] = {}  # by symbol
        undecided = Undecided()
        for record in records:
            line = self._lines.get(
                record.bar.symbol if isinstance(record, BarUpdate) else record.symbol
            )
            if line is None:
                continue
            undecided.see(record)
            if isinstance(record, Tick):
                last = before.get(record.symbol, record)
                if last.epoch != record.epoch:
                    # An earlier restart: who saw that gap may not have lived to publish the bar.
                    line.aggregator.interrupted(last.received_at, record.received_at)
                before[record.symbol] = record
                if _KEEP_OUT_OF_BARS.intersection(record.flags):
                    continue
                line.validator.remember(record.timestamp, record.price)
                if record.trading_session:
                    line.aggregator.add(record)
            elif isinstance(record, BarUpdate):
                line.aggregator.resume(record.bar)
        for symbol, quotes in undecided.quotes().items():
            held_by = self._lines[symbol]
            held_by.validator.hold_again(quotes)
            held_by.hygiene.quotes += len(quotes)

    def begin_epoch(self, epoch: int, previous: Mapping[str, tuple[int, int]]) -> None:
        """Journal and announce an epoch: offsets begin again at 1.

        :param previous: by symbol, the last epoch and its last offset, where known.
        :raises JournalError: the epoch before goes on.
        """
        started = [
            EpochStarted(symbol, epoch, *previous.get(symbol, (None, None)))
            for symbol in self._lines
        ]
        self._journal.append(started)
        self.epoch = epoch
        for line in self._lines.values():
            line.offset = 0
        self._watermarks.begin_epoch()
        self._publish(started)

    def interrupted(
        self, start: float, end: float, symbol: str | None = None, *, afterwards: bool | None = None
    ) -> None:
        """Nothing was collected in ``[start, end)``: bars touching it will say ``partial``.

        :param end: infinite, for one ``symbol``: it is not over; the next call for it says when it was.
        :param symbol: only this one was interrupted; ``None``: all.
        :param afterwards: this is known only now: bars that were published meanwhile get a revision that
            says so, unless the vendor's have replaced them. ``None``: if a symbol is named.
        """
        if end < start:
            self.clock_set(start, end)  # in between
            return
        published = symbol is not None if afterwards is None else afterwards
        for line in self._lines.values():
            if symbol in (None, line.symbol):
                line.aggregator.interrupted(start, end, published=published)

    def clock_set(self, before: float, after: float) -> None:
        """The clock was at ``before`` when it was set to ``after``, or what it rests on was set.

        Bars were closed, and ticks of REST were stamped, by a time that was wrong: until then, or from
        then on. Those of both moments are partial, and asked of the vendor.
        """
        for symbol, line in self._lines.items():
            for at in (before, after):
                slot = int(at - at % BAR_SECONDS)
                if line.calendar.is_open(slot):
                    line.aggregator.doubt(slot)
                    self._incomplete(symbol, slot, slot + BAR_SECONDS)

    def on_quotes(self, quotes: Sequence[Quote], now: float) -> None:
        """Take one batch in arrival order.

        :raises JournalError: nothing of the batch counts as accepted, and none was published.
        """
        if not quotes:
            return
        latest = now + self._future_tolerance_s
        last = quotes[-1]
        if last.stamped and not last.raw and not last.first_after_subscribe:
            self._stamped(last.timestamp, last.received_at)
        rejections: list[Rejection] = []
        ticks: list[Tick] = []
        repeated: list[str] = []
        numbered: dict[str, int] = {}
        before = self._before()
        at = 0
        while at < len(quotes):
            quote = quotes[at]
            line = self._lines.get(quote.symbol)
            if line is None:
                at += 1
                rejections.append(rejection(quote, "unknown_symbol"))
                continue
            validator, hygiene = line.validator, line.hygiene
            offset = numbered.get(quote.symbol, line.offset)
            usual = line.usual(quotes[at : at + STRETCH], self.epoch, offset, latest)
            if usual.ticks:
                at += len(usual.ticks)
                hygiene.quotes += len(usual.ticks)
                ticks += usual.ticks
                numbered[quote.symbol] = usual.ticks[-1].offset
                repeated += [quote.symbol] * usual.repeated
                continue
            at += 1
            hygiene.quotes += 1
            if quote.first_after_subscribe and validator.is_resent(quote):
                self._watermarks.worked(quote.symbol, Hop.ACCEPTED)
                hygiene.resent += 1
                self._metrics.resent.inc()
                continue
            if not quote.stamped and validator.is_unchanged(quote):
                self._watermarks.worked(quote.symbol, Hop.ACCEPTED)
                hygiene.unchanged += 1
                accepted, refused = validator.on_rest_price(quote.price, quote.received_at)
            else:
                accepted, refused = validator.check(quote, timely=quote.timestamp <= latest)
            rejections += refused
            for one in accepted:
                numbered[quote.symbol] = offset = offset + 1
                ticks.append(line.tick(one, self.epoch, offset, now, self._future_tolerance_s))
                if one.repeated:
                    repeated.append(quote.symbol)
        for symbol, line in self._lines.items():
            if line.hygiene.quotes != line.told_quotes:
                line.told_quotes = line.hygiene.quotes
                self._watermarks.received(symbol, line.told_quotes)
        self._take(ticks, rejections, before, repeated)

    def on_rest_price(self, symbol: str, price: float, now: float) -> None:
        """A REST price that becomes no tick, e.g. an unchanged one or a sample of liveness: a witness for
        or against the held quotes.

        :param now: when it was received.
        :raises JournalError: as if it had not come.
        """
        self.settle(symbol, lambda validator: validator.on_rest_price(price, now), now)
        line = self._lines.get(symbol)
        if line is not None and line.validator.stands(price):
            # The market is quiet, by REST: what was refused meanwhile was none of its prices.
            self._watermarks.worked(symbol, Hop.ACCEPTED)

    def settle(self, symbol: str, judge: Callable[[QuoteValidator], Decision], now: float) -> None:
        """Let ``judge`` decide about the held quotes of ``symbol``, if there are any.

        :raises JournalError: as if it had not been asked.
        """
        line = self._lines.get(symbol)
        if line is None or not line.validator.held:
            return
        before = self._before()
        accepted, rejections = judge(line.validator)
        ticks = [
            line.tick(one, self.epoch, line.offset + number, now, self._future_tolerance_s)
            for number, one in enumerate(accepted, 1)
        ]
        self._take(ticks, rejections, before)

    def validator(self, symbol: str) -> QuoteValidator:
        """To tell it what is known of a pair before a feed begins; quotes go through the pipeline."""
        return self._lines[symbol].validator

    def doubt(self, symbol: str) -> Doubt | None:
        """Why quotes of ``symbol`` are held; ``None``: none are."""
        return self._lines[symbol].validator.doubt

    def needs_another_kind(self, symbol: str, price: float) -> bool:
        """Whether ``price`` would wait for a witness of another kind than its source."""
        line = self._lines.get(symbol)
        return line is not None and line.validator.needs_another_kind(price)

    def last_price(self, symbol: str) -> float | None:
        """The price that was accepted last by its stamp; ``None``: none was."""
        line = self._lines.get(symbol)
        return None if line is None else line.validator.last

    def on_time(self, now: float, grace: float) -> None:
        """Close the bars that are due. ``grace``: seconds for which a late tick revises a bar.

        :raises JournalError: the bars stay pending and are tried again by the next call.
        """
        self._closed += [
            BarUpdate(bar, self.epoch, line.offset, now)
            for line in self._lines.values()
            for bar in line.aggregator.advance(
                now, grace, line.validator.held_stamps, self._reached(line.symbol)
            )
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

        Refused are those that ticks can still change, and those whose number a live revision has
        taken: a live bar after the vendor's would claim to be better. The caller numbers the
        revisions and comes again with what was refused.

        :returns: those published.
        :raises JournalError: none was.
        """
        taken = [
            bar
            for bar in bars
            if bar.symbol in self._lines
            and not self.changeable(bar.symbol, bar.open_time)
            and bar.revision > self._lines[bar.symbol].aggregator.revision(bar.open_time)
        ]
        if taken:
            self._publish_bars(
                [
                    BarUpdate(bar, self.epoch, self._lines[bar.symbol].offset, now)
                    for bar in sorted(taken, key=lambda bar: bar.open_time)
                ]
            )
            for bar in taken:
                self._lines[bar.symbol].aggregator.settle(bar.open_time)
        return taken

    def next_close(self) -> float | None:
        """When ``on_time`` next has a bar to publish; ``None`` while there is none."""
        return min(self.closes().values(), default=None)

    def flush_held(self, symbol: str | None = None) -> None:
        """The session (of ``symbol``; ``None``: of all) is over: quotes still held outside the price band
        were never confirmed.

        Nor were they refuted: the bars they may belong to are partial.
        """
        before = self._before()
        rejections: list[Rejection] = []
        for line in self._lines.values():
            if symbol in (None, line.symbol):
                rejections += line.validator.flush()
        if rejections:
            self._take([], rejections, before)
        for one in rejections:
            self._doubt_bar(self._lines[one.symbol], one.timestamp)
        for name in self._lines if symbol is None else [symbol]:
            self._watermarks.rest(name)

    def _take(
        self,
        ticks: Sequence[Tick],
        rejections: Sequence[Rejection],
        before: _Before,
        repeated: Sequence[str] = (),
    ) -> None:
        """Journal, aggregate, publish and count what was decided.

        :param repeated: the symbol of each of ``ticks`` that is equal to the one before.
        """
        held = newly_held(before)
        if not ticks and not rejections and not held:
            return
        # What is held from now on comes last: of equal quotes, the fates are those of the earlier ones.
        self._append([*rejections, *ticks, *held], before)
        if held or self._waiting:
            self._tell_doubts()
        for one in rejections:
            self._metrics.rejected.labels(one.reason).inc()
            self._watermarks.refused(one.symbol, Hop.ACCEPTED, 1, f"rejected as {one.reason}")
            if (line := self._lines.get(one.symbol)) is None:
                self._strangers += 1
            else:
                line.hygiene.reject(one)
                if one.reason == UNWITNESSED and self._doubt_bar(line, one.timestamp):
                    self._want_bar(line.symbol, one.timestamp)
        if not ticks:
            return
        published: list[Tick] = []
        for symbol, several in groupby(ticks, key=_SYMBOL):
            group = list(several)
            shown, late = self._lines[symbol].take(group)
            published += shown
            self._mark(symbol, group, shown)
            for tick in late:
                self._metrics.late.inc()
                self._lines[symbol].aggregator.doubt(tick.timestamp)
                self._want_bar(symbol, tick.timestamp)
        if published:
            self._publish(published)
        # Counting comes last: nobody waits for it.
        for symbol in repeated:
            line = self._lines[symbol]
            line.hygiene.repeated += 1
            line.odd = True
        self._meter.count(ticks, published)
        for symbol, line in self._lines.items():
            if line.odd:
                line.odd = False
                self._meter.oddities(symbol, line.hygiene)

    def _tell_doubts(self) -> None:
        for symbol, line in self._lines.items():
            doubt = line.validator.doubt
            key = None if doubt is None else doubt.key
            if key != line.doubted:
                line.doubted = key
                if self._doubted is not None:
                    self._doubted(symbol)
        self._waiting = any(line.doubted is not None for line in self._lines.values())

    def _doubt_bar(self, line: Line, stamp: int) -> bool:
        """Something stamped ``stamp`` is lost to its bar, which says so; whether there is such a bar."""
        if not line.calendar.is_open(stamp):
            return False
        line.aggregator.doubt(stamp)
        return True

    def _want_bar(self, symbol: str, stamp: int) -> None:
        slot = stamp - stamp % BAR_SECONDS
        self._incomplete(symbol, slot, slot + BAR_SECONDS)

    def _mark(self, symbol: str, ticks: Sequence[Tick], shown: Sequence[Tick]) -> None:
        marks = self._watermarks
        marks.accepted(symbol, len(ticks), ticks[-1].offset)
        if shown:
            marks.owed(symbol, len(shown), shown[-1].offset)
        if len(shown) < len(ticks) and (ahead := sum(Flag.FUTURE in one.flags for one in ticks)):
            marks.refused(symbol, Hop.PUBLISHED, ahead, "stamped in the future of our clock")

    def _publish_bars(self, updates: list[BarUpdate]) -> None:
        self._journal.append(updates)
        self._bars_published += len(updates)
        for update in updates:
            self._metrics.bars.labels(update.bar.status).inc()
            final = update.bar.status == "reconciled"
            hop = Hop.BAR_RECONCILED if final else Hop.BAR_CLOSED
            self._watermarks.reached(update.bar.symbol, hop, update.bar.open_time)
        self._publish(updates)

    def _before(self) -> _Before:
        return [(line.validator, line.validator.state()) for line in self._lines.values()]

    def _append(self, records: Sequence[Record], before: _Before) -> None:
        """Journal ``records``; when that fails, the validators never saw them."""
        try:
            self._journal.append(records)
        except JournalError:
            # Else the vendor's re-sent price would equal one that is nowhere, and be dropped.
            for validator, state in before:
                validator.go_back(state)
            raise
