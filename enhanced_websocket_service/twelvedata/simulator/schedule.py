"""What leaves when: the market's ticks as faults shape them, those held back, and bursts. Pure.

Instants are those of the vendor's clock. The market is looked at in whole seconds, each once.
"""

from collections.abc import Iterable
from heapq import heappop, heappush

from .bursts import Burst
from .fault_values import Bursting
from .faults import FaultBoard
from .model import MarketSource
from .shaping import Departure, Shaper


class Schedule:
    """The departures of all symbols."""

    def __init__(self, market: MarketSource, faults: FaultBoard) -> None:
        self._market = market
        self._faults = faults
        self._shaper = Shaper(faults)
        self._held: list[Departure] = []  # a heap
        self._bursts: list[Burst] = []

    @property
    def bursting(self) -> bool:
        return bool(self._bursts)

    def due(self, after: int, now: float, symbols: Iterable[str]) -> list[Departure]:
        """What leaves by ``now``, in order; the market's part are the stamps in (after, now].

        Muted symbols have none: what would leave meanwhile is lost.
        """
        heard = [symbol for symbol in symbols if symbol not in self._faults.mute]
        shaped = self._shaper.plain if self._shaper.idle else self._shaper.departures
        found: list[Departure] = []
        for symbol in heard:
            source = self._market.get(symbol)
            if source is not None and int(now) > after:
                found += shaped(symbol, source.ticks(after + 1, int(now) + 1))
        for burst in self._bursts:
            extra = burst.due(now)
            if burst.symbol in heard:
                found += self._shaper.burst(burst.symbol, extra)
        self._bursts = [one for one in self._bursts if one.next_instant() is not None]
        if self._held or any(one.at > now for one in found):
            for one in found:
                heappush(self._held, one)
            found = []
            while self._held and self._held[0].at <= now:
                one = heappop(self._held)
                if one.symbol in heard:
                    found.append(one)
            return found
        found.sort()
        return found

    def next_instant(self, after: int, symbols: Iterable[str]) -> float | None:
        """When something leaves next, with ``after`` as the last second that was looked at."""
        instants: list[float] = []
        for symbol in symbols:
            source = self._market.get(symbol)
            stamp = source.next_stamp(after + 1) if source is not None else None
            if stamp is not None:
                instants.append(stamp)
        if self._held:
            instants.append(self._held[0].at)
        instants += [at for burst in self._bursts if (at := burst.next_instant()) is not None]
        return min(instants, default=None)

    def start_burst(self, now: float, how: Bursting) -> None:
        """Let a burst begin with the next whole second after ``now``."""
        for symbol, source in self._market.sources.items():
            if symbol in how.symbols:
                self._bursts.append(Burst(symbol, source, int(now) + 1, how))

    def stop_bursts(self) -> None:
        self._bursts.clear()
