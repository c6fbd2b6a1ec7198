"""How many ticks a bar becomes and when: the seeded arrivals inside a 5-minute slot. Pure."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

from .model import SLOT_SECONDS

Arrivals = Literal["bursty", "poisson", "regular"]
ARRIVALS: tuple[Arrivals, ...] = ("bursty", "poisson", "regular")

FEWEST_TICKS, MOST_TICKS = 2, 40
_BURST = 0.15  # share of bursty ticks that follow their predecessor within the same second


class Pace(Protocol):
    """The number of a bar's ticks, then their stamps (a bar may need more than the pace gave)."""

    def count(self, open_time: int, rng: random.Random) -> int: ...

    def stamps(self, open_time: int, count: int, rng: random.Random) -> list[int]:
        """``count`` non-decreasing whole seconds in ``[open_time, open_time + 300)``."""
        ...


@dataclass(frozen=True, slots=True)
class CountedPace:
    """``fewest`` .. ``most`` ticks a bar.

    :ivar arrivals: ``bursty``: the number is drawn evenly, the instants at random, some in pairs
        within a second; ``poisson``: the number is drawn from a Poisson distribution whose mean is
        drawn from the range (and kept in it), the instants are independent; ``regular``: each tick
        somewhere in its own share of the bar.
    """

    fewest: int = FEWEST_TICKS
    most: int = MOST_TICKS
    arrivals: Arrivals = "bursty"

    def count(self, open_time: int, rng: random.Random) -> int:
        if self.fewest == self.most:
            return self.fewest
        if self.arrivals == "poisson":
            drawn = _poisson(rng.uniform(self.fewest, self.most), rng)
            return min(max(drawn, self.fewest), self.most)
        return rng.randint(self.fewest, self.most)

    def stamps(self, open_time: int, count: int, rng: random.Random) -> list[int]:
        if self.arrivals == "regular":
            share = SLOT_SECONDS / count
            return [open_time + int((i + rng.random()) * share) for i in range(count)]
        stamps = sorted(rng.randrange(SLOT_SECONDS) for _ in range(count))
        if self.arrivals == "bursty":
            for i in range(1, count):
                if rng.random() < _BURST:
                    stamps[i] = stamps[i - 1]
        return [open_time + stamp for stamp in stamps]


@dataclass(frozen=True, slots=True)
class TimedPace:
    """A tick every so many seconds; from given instants on, every so many others.

    :ivar phases: (instant in unix seconds, mean seconds between two ticks) in order of time; the
        first one rules before its instant too.
    :ivar arrivals: ``poisson``, or ``regular``: one tick somewhere in each such span.
    """

    phases: Sequence[tuple[float, float]]
    arrivals: Arrivals = "regular"

    def count(self, open_time: int, rng: random.Random) -> int:
        expected = sum((stop - start) / every for start, stop, every in self._pieces(open_time))
        drawn = _poisson(expected, rng) if self.arrivals == "poisson" else round(expected)
        return max(drawn, FEWEST_TICKS)

    def stamps(self, open_time: int, count: int, rng: random.Random) -> list[int]:
        # Evenly in the number of expected ticks is densely where the rate is high.
        pieces = self._pieces(open_time)
        expected = sum((stop - start) / every for start, stop, every in pieces)
        if self.arrivals == "poisson":
            places = sorted(rng.random() for _ in range(count))
        else:
            places = [(i + rng.random()) / count for i in range(count)]
        found: list[int] = []
        for place in places:
            ahead = place * expected
            for start, stop, every in pieces:
                if ahead < (stop - start) / every:
                    break
                ahead -= (stop - start) / every
            at = min(start + ahead * every, open_time + SLOT_SECONDS - 1)
            found.append(max(int(at), open_time))
        return found

    def _pieces(self, open_time: int) -> list[tuple[float, float, float]]:
        """Start, end and seconds between ticks of the parts of a slot."""
        end = open_time + SLOT_SECONDS
        edges = [open_time, *(at for at, _ in self.phases[1:] if open_time < at < end), end]
        return [(start, stop, self._every(start)) for start, stop in pairwise(edges)]

    def _every(self, at: float) -> float:
        ruling = [every for start, every in self.phases if start <= at]
        return ruling[-1] if ruling else self.phases[0][1]


def _poisson(mean: float, rng: random.Random) -> int:
    """A number from the Poisson distribution: arrivals of rate 1 within ``mean``."""
    count, at = 0, rng.expovariate(1.0)
    while at < mean:
        count, at = count + 1, at + rng.expovariate(1.0)
    return count
