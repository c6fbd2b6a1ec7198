"""What the pipeline keeps for one symbol, and what happens to its ticks there. Synchronous.

Does not own: the order of things (journal before bars before clients), which is the pipeline's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from enhanced_websocket_service.market.aggregation import BarAggregator
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.hygiene import TickHygiene
from enhanced_websocket_service.market.noise import count_float32_noise
from enhanced_websocket_service.market.tick import Flag, Quote, Tick, quantise
from enhanced_websocket_service.market.usual import Stretch, usual_ticks
from enhanced_websocket_service.market.validation import Accepted, QuoteValidator

DAY_S = 86_400
_PRICE = attrgetter("price")


@dataclass(slots=True)
class Line:
    """Everything the pipeline keeps per symbol."""

    symbol: str
    calendar: TradingCalendar
    validator: QuoteValidator
    aggregator: BarAggregator
    hygiene: TickHygiene = field(default_factory=TickHygiene)
    odd: bool = False  # there are oddities the metrics do not know of
    offset: int = 0
    doubted: tuple[int, float, float] | None = None  # ``Doubt.key`` of the doubt that was told last
    told_quotes: int = 0  # of hygiene.quotes, those that the watermarks know of

    def usual(self, quotes: Sequence[Quote], epoch: int, offset: int, latest: float) -> Stretch:
        """The ticks of the leading quotes that need no closer look; numbered from ``offset + 1``."""
        return usual_ticks(
            quotes,
            symbol=self.symbol,
            validator=self.validator,
            session_on=self.calendar.session_on,
            accepts=self.aggregator.accepts,
            latest=latest,
            epoch=epoch,
            offset=offset,
        )

    def tick(
        self, accepted: Accepted, epoch: int, offset: int, now: float, future_tolerance_s: float
    ) -> Tick:
        """The tick of an accepted quote, with the flags that time gives it."""
        quote, flags = accepted.quote, accepted.flags
        stamp = quote.timestamp
        # No calendar knows the days at the end of time, and no bar waits for tomorrow's tick.
        session = self.calendar.session_on(stamp) if stamp < now + DAY_S else None
        inside = session is not None and session.opens <= stamp < session.closes
        if stamp > now + future_tolerance_s:
            flags += (Flag.FUTURE,)
        elif inside and not self.aggregator.accepts(stamp):
            flags += (Flag.LATE,)
        return Tick(
            symbol=quote.symbol,
            epoch=epoch,
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

    def take(self, ticks: Sequence[Tick]) -> tuple[Sequence[Tick], list[Tick]]:
        """Count journaled ticks and add them to their bars.

        :returns: those that are to be published, and those of them that came too late for their bar.
        """
        self.offset = ticks[-1].offset
        self.hygiene.ticks += len(ticks)
        noisy = count_float32_noise(map(_PRICE, ticks))
        if noisy:
            self.hygiene.float32_noise += noisy
            self.odd = True
        published: list[Tick] = []
        late: list[Tick] = []
        for tick in ticks:
            if tick.flags or not tick.trading_session:
                if not self._count_odd(tick):
                    continue
                if Flag.LATE in tick.flags:
                    late.append(tick)
            published.append(tick)
        in_bars = [tick for tick in published if Flag.LATE not in tick.flags] if late else published
        self.aggregator.add_all(in_bars)
        return published, late

    def _count_odd(self, tick: Tick) -> bool:
        """Count what is odd about ``tick``; whether it is to be published."""
        hygiene, flags = self.hygiene, tick.flags
        self.odd = True
        hygiene.crossed += Flag.CROSSED in flags
        hygiene.confirmed += Flag.HELD in flags
        hygiene.out_of_order += Flag.OUT_OF_ORDER in flags
        if Flag.FUTURE in flags:
            hygiene.future += 1
            return False
        if not tick.trading_session:
            hygiene.outside_session += 1
            return False
        hygiene.late += Flag.LATE in flags
        return True
