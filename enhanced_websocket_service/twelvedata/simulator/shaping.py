"""Market ticks to what goes on the wire: doubled, late, in the wrong order, with wrong stamps. Pure.

What happens to a tick depends on the seed, its symbol, its second and its place in that second; it
does not depend on how many seconds are looked at together. Only faults that end after so many
times count in the order in which the ticks pass.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from .distortion import noisy, scaled, streamed_scale
from .fault_values import draw
from .faults import FaultBoard
from .ledger import Shape
from .model import SimTick


class Departure(NamedTuple):
    """A tick and the instant (unix seconds of the vendor's clock) from which it may leave."""

    at: float
    number: int  # keeps the order of departures at the same instant
    symbol: str
    tick: SimTick
    shape: int = 0


_SHAPING = (
    "double",
    "disorder",
    "delay_s",
    "future_s",
    "outlier",
    "crossed",
    "float32_noise",
    "scale",
)


class Shaper:
    """Applies the faults of the board to the ticks of the market."""

    def __init__(self, faults: FaultBoard) -> None:
        self._faults = faults
        self._number = 0

    @property
    def idle(self) -> bool:
        """No fault shapes ticks now."""
        return not any(getattr(self._faults, name) for name in _SHAPING)

    def departures(self, symbol: str, ticks: Iterable[SimTick]) -> list[Departure]:
        """``ticks`` (whole seconds, in order) as they leave."""
        found: list[Departure] = []
        for stamp, group in groupby(ticks, key=lambda tick: tick.timestamp):
            found.extend(self._second(symbol, stamp, list(group)))
        return found

    def plain(self, symbol: str, ticks: Iterable[SimTick]) -> list[Departure]:
        """``ticks`` as the market had them."""
        return [self._departure(tick.timestamp, symbol, tick, 0) for tick in ticks]

    def burst(self, symbol: str, ticks: Iterable[tuple[float, SimTick]]) -> list[Departure]:
        """Ticks of a burst, each with its instant."""
        return [self._departure(at, symbol, tick, Shape.BURST) for at, tick in ticks]

    def _second(self, symbol: str, stamp: int, ticks: list[SimTick]) -> Iterator[Departure]:
        faults = self._faults
        order = list(range(len(ticks)))
        disorder = faults.disorder
        shuffled = disorder is not None and disorder.within_s == 0 and len(ticks) > 1
        if shuffled and self._chosen("disorder", symbol, stamp, 0):
            order.sort(key=lambda i: draw(faults.seed, "order", symbol, stamp, i))
        for place, i in enumerate(order):
            moved = Shape.DISORDER if place != i else Shape.NONE
            yield from self._one(symbol, ticks[i], i, moved)

    def _one(self, symbol: str, tick: SimTick, i: int, shape: int) -> Iterator[Departure]:
        faults = self._faults
        stamp = tick.timestamp
        at = float(stamp)
        if (factor := streamed_scale(faults)) is not None:
            tick, shape = scaled(tick, factor), shape | Shape.SCALED
        if faults.float32_noise:
            tick, shape = noisy(tick), shape | Shape.NOISE
        if tick.bid is not None and self._chosen("crossed", symbol, stamp, i):
            tick = SimTick(stamp, tick.price, tick.ask, tick.bid)
            shape |= Shape.CROSSED
        if faults.delay_s is not None:
            at += faults.delay_s.drawn(faults.seed, "delay_s", symbol, stamp, i)
            shape |= Shape.DELAYED
        disorder = faults.disorder
        if (
            disorder is not None
            and disorder.within_s
            and self._chosen("disorder", symbol, stamp, i)
        ):
            late = 1 + int(draw(faults.seed, "late", symbol, stamp, i) * disorder.within_s)
            at += late
            shape |= Shape.DISORDER
        future = faults.future_s
        if future is not None and self._chosen("future_s", symbol, stamp, i):
            tick = tick._replace(timestamp=stamp + future.seconds)
            shape |= Shape.FUTURE
        yield self._departure(at, symbol, tick, shape)
        if self._chosen("double", symbol, stamp, i):
            yield self._departure(at, symbol, tick, shape | Shape.DOUBLE)
        outlier = faults.outlier
        if outlier is not None and self._chosen("outlier", symbol, stamp, i):
            wrong = [
                None if value is None else round(value * (1 + outlier.pct / 100), 6)
                for value in tick[1:]
            ]
            price = wrong[0]
            assert price is not None
            bad = SimTick(tick.timestamp, price, wrong[1], wrong[2])
            yield self._departure(at, symbol, bad, shape | Shape.OUTLIER)

    def _chosen(self, name: str, symbol: str, stamp: int, i: int) -> bool:
        """Whether the fault happens to this tick; where it does, that is counted."""
        fault = getattr(self._faults, name)
        if fault is None:
            return False
        if fault.share < 1 and draw(self._faults.seed, name, symbol, stamp, i) >= fault.share:
            return False
        self._faults.spend(name)
        return True

    def _departure(self, at: float, symbol: str, tick: SimTick, shape: int) -> Departure:
        self._number += 1
        return Departure(at, self._number, symbol, tick, shape)
