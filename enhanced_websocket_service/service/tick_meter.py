"""Brings the metrics of ticks up to date, once a batch: a label look-up per tick would cost more than
the tick."""

from collections import Counter as Counts
from collections.abc import Sequence
from operator import attrgetter

from prometheus_client import Counter, Gauge

from enhanced_websocket_service.market.hygiene import TickHygiene
from enhanced_websocket_service.market.tick import Flag, Tick
from enhanced_websocket_service.telemetry import Metrics

_LABELS = attrgetter("symbol", "source")
_OLD = frozenset({Flag.LATE, Flag.OUT_OF_ORDER})


class TickMeter:
    """The part of ``metrics`` that the pipeline moves with every tick."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._accepted: dict[tuple[str, str], Counter] = {}  # by symbol and source
        self._prices: dict[str, Gauge] = {}  # none before the first price: 0 would be a lie
        self._odd: dict[tuple[str, str], int] = {}  # by symbol and kind: what was counted already

    def count(self, ticks: Sequence[Tick], published: Sequence[Tick]) -> None:
        """A batch was accepted, and of it ``published`` went to clients."""
        accepted = Counts(map(_LABELS, ticks))
        for key, number in accepted.items():
            counter = self._accepted.get(key)
            if counter is None:
                counter = self._accepted[key] = self._metrics.ticks.labels(*key)
            counter.inc(number)
        newest: dict[str, float] = {}
        symbols = {symbol for symbol, _ in accepted}
        for tick in reversed(published):
            if tick.symbol not in newest and not _OLD.intersection(tick.flags):
                newest[tick.symbol] = tick.price
                if len(newest) == len(symbols):
                    break
        for symbol, price in newest.items():
            gauge = self._prices.get(symbol)
            if gauge is None:
                gauge = self._prices[symbol] = self._metrics.tick_price.labels(symbol)
            gauge.set(price)

    def oddities(self, symbol: str, hygiene: TickHygiene) -> None:
        """Something odd came since the last call."""
        for kind, number in hygiene.oddities().items():
            key = (symbol, kind)
            if (new := number - self._odd.get(key, 0)) > 0:
                self._metrics.odd_ticks.labels(*key).inc(new)
                self._odd[key] = number
