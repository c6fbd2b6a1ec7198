"""What health is computed from: the last work done and the age of the oldest work not done, hop by hop.

Disk, PostgreSQL, Redis and clients take real time, so their ages are real seconds; quotes and bars are of
the market, and theirs are seconds of the service's clock. The silence of the feed is no matter of this
module: that is the verdict's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Final, Protocol

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.serving.models import HopHealth, WatermarkView
from enhanced_websocket_service.watermarks import Hop, Mark, Undone, Watermarks, judge

REAL: Final = (Hop.JOURNALED, Hop.PUBLISHED, Hop.CACHED, Hop.COMMITTED)
PACES: Final = 3
"""Expected prices that a held quote may wait for before it counts as not done."""
HABIT: Final = 3
"""Refused quotes in a row, without one that is accepted, are more than the noise of a feed."""
OF_CLIENTS: Final = (Hop.ACCEPTED, Hop.PUBLISHED)


@dataclass(frozen=True, slots=True)
class WorkLimits:
    """How old the oldest work not done may be. ``undone_s`` is real seconds, the others the clock's."""

    undone_s: float = 5.0
    held_s: float = 60.0
    bar_s: float = 10.0
    reconciled_s: float = 3600.0


class Market(Protocol):
    """What waits in the pipeline, by symbol."""

    def held(self) -> Mapping[str, int]: ...

    def closes(self) -> Mapping[str, float]: ...


class WorkHealth:
    """Judges the watermarks of one process.

    :param pace: seconds of the clock between two prices that are expected at an instant.
    :param overdue: by symbol, for how many seconds of the clock slots wait for the vendor's bars.
    :param causes: why a hop does not do its work now, in the words of whoever refuses; ``None``: unknown.
    """

    def __init__(
        self,
        clock: Clock,
        marks: Watermarks,
        market: Market,
        limits: WorkLimits,
        *,
        pace: Callable[[float], float],
        overdue: Callable[[float], Mapping[str, float]],
        causes: Mapping[Hop, Callable[[], str | None]],
    ) -> None:
        self._clock, self._marks, self._market, self._limits = clock, marks, market, limits
        self._pace, self._overdue = pace, overdue
        self._causes = causes
        self._held_since: dict[str, float] = {}  # of Clock.elapsed
        self._late_since: dict[
            tuple[str, float], float
        ] = {}  # by symbol and close, of Clock.elapsed

    def undone(self) -> list[Undone]:
        """What waits at each hop; a hop may appear twice, with what waits and with what was refused."""
        found = []
        for one in self._marks.undone():
            if one.why is not None and one.hop in OF_CLIENTS:
                if one.count < HABIT:
                    continue
                if one.hop is Hop.ACCEPTED:
                    one = replace(one, age_s=self._clock_seconds(one.age_s))
            found.append(one)
        found += [one for one in (self._held(), self._unclosed(), self._unreconciled()) if one]
        return found

    def problems(self) -> list[str]:
        """A sentence for each hop whose oldest work not done is too old."""
        clock, limits = self._clock, self._limits
        allowed = dict.fromkeys(REAL, limits.undone_s)
        allowed[Hop.ACCEPTED] = max(limits.held_s, PACES * self._pace(clock.now()))
        allowed[Hop.BAR_CLOSED] = clock.span(limits.bar_s, at_least_real=limits.undone_s)
        allowed[Hop.BAR_RECONCILED] = clock.span(limits.reconciled_s, at_least_real=60.0)
        return judge(self.undone(), allowed, self._cause)

    def oldest(self) -> dict[Hop, tuple[float, int]]:
        """By hop, the age of the oldest work not done and how much there is; (0, 0): nothing waits."""
        found = dict.fromkeys(Hop, (0.0, 0))
        for one in self.undone():
            age_s, count = found[one.hop]
            found[one.hop] = (max(age_s, one.age_s), count + one.count)
        return found

    def shown(
        self, latencies: Mapping[Hop, float], told: Mapping[Hop, str | None]
    ) -> dict[str, HopHealth]:
        """For ``/health``, by hop.

        :param latencies: real milliseconds of the last probe.
        :param told: what it said, where it failed or left something out.
        """
        return {
            hop.value: HopHealth(
                last_done=self._instant(self._marks.last(hop)),
                undone=count,
                oldest_undone_s=None if not count else round(age_s, 1),
                latency_ms=latencies.get(hop),
                probe=told.get(hop),
            )
            for hop, (age_s, count) in self.oldest().items()
        }

    def by_symbol(self) -> dict[str, dict[str, WatermarkView]]:
        """For ``/status``: by symbol and hop."""
        return {
            symbol: {hop.value: self._watermark(symbol, hop) for hop in Hop}
            for symbol in self._marks.symbols
        }

    def _watermark(self, symbol: str, hop: Hop) -> WatermarkView:
        mark, waiting = self._marks.last(hop, symbol), self._marks.of_symbol(symbol, hop)
        return WatermarkView(
            position=None if mark is None else mark.position,
            done_at=self._instant(mark),
            undone=0 if waiting is None else waiting[1],
            oldest_undone_s=None if waiting is None else round(waiting[0], 1),
        )

    def _held(self) -> Undone | None:
        counts, now = self._market.held(), self._clock.elapsed()
        self._held_since = {s: self._held_since.get(s, now) for s in counts}
        if not counts:
            return None
        age_s = now - min(self._held_since.values())
        why = "held until a second witness agrees with them"
        return Undone(Hop.ACCEPTED, age_s, sum(counts.values()), dict(counts), why)

    def _unclosed(self) -> Undone | None:
        clock, closes = self._clock, self._market.closes()
        now, elapsed = clock.now(), clock.elapsed()
        overdue = [place for place in closes.items() if place[1] < now]
        # A clock that was set makes a bar late at once; whoever closes it needs a moment all the same.
        self._late_since = {place: self._late_since.get(place, elapsed) for place in overdue}
        if not overdue:
            return None
        late = {s: min(now - at, elapsed - self._late_since[s, at]) for s, at in overdue}
        return Undone(Hop.BAR_CLOSED, max(late.values()), len(late), dict.fromkeys(late, 1))

    def _unreconciled(self) -> Undone | None:
        late = {s: age_s for s, age_s in self._overdue(self._clock.now()).items() if age_s > 0}
        if not late:
            return None
        return Undone(Hop.BAR_RECONCILED, max(late.values()), len(late), dict.fromkeys(late, 1))

    def _cause(self, hop: Hop) -> str | None:
        known = self._causes.get(hop)
        return None if known is None else known()

    def _clock_seconds(self, real_s: float) -> float:
        return self._clock.span(0.0, at_least_real=real_s)

    def _instant(self, mark: Mark | None) -> float | None:
        if mark is None:
            return None
        # Backwards: a virtual clock may have run at another speed then than it does from now on.
        return self._clock.now() + self._clock.span(-inf, at_least_real=-self._marks.age_s(mark))
