"""A market, its socket and its REST price in a few lines, for tests of the detector; no I/O."""

import bisect
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from enhanced_websocket_service.market.liveness.detector import LivenessDetector
from enhanced_websocket_service.market.liveness.status import Verdict

START = 1_000_000_000.0


def rounded(price: float, decimals: int, *, noise: bool = False) -> float:
    """As REST spells it: fewer decimals, or what 32 bits leave of it, padded to 5."""
    if noise:
        return round(struct.unpack("f", struct.pack("f", round(price, decimals)))[0], 5)
    return round(price, decimals)


@dataclass
class Market:
    """The vendor's prices by instant; ``lag`` of REST behind them by the instant of the question."""

    ticks: Sequence[tuple[float, float]]
    lag: Callable[[float], float] = lambda _: 0.0
    decimals: int = 5
    noise: bool = False

    def rest(self, asked_at: float) -> float:
        index = bisect.bisect_right(self.ticks, (asked_at - self.lag(asked_at), 1e12))
        return rounded(self.ticks[max(0, index - 1)][1], self.decimals, noise=self.noise)


@dataclass
class Course:
    """What came of it: the verdicts in order, the instants of samples."""

    verdicts: list[tuple[float, Verdict]] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)
    repeats_asked: int = 0
    """Those about prices that came and repeated."""

    def first(self, verdict: Verdict) -> float | None:
        return next((at for at, one in self.verdicts if one == verdict), None)


def play(
    detector: LivenessDetector,
    market: Market,
    until: float,
    *,
    begin: float = START,
    mute_from: float = 1e18,
    frozen_from: float = 1e18,
    latency: float = 0.2,
    delay: float = 0.05,
    rest: bool = True,
) -> Course:
    """Connect at ``begin`` and let time pass; after ``mute_from`` the socket says nothing, after
    ``frozen_from`` it repeats one price. ``delay``: how long after its stamp a tick arrives.
    """
    course = Course()
    still = [price for at, price in market.ticks if at <= frozen_from][-1:]
    heard = [
        (at + delay, price if at <= frozen_from else still[0], at)
        for at, price in market.ticks
        if begin <= at + delay and at < mute_from
    ]
    pending: tuple[float, float] | None = None  # an answer under way: asked, due
    now, index = begin, 0
    detector.connected(begin)
    while now < until:
        due = [until, detector.next_look(now) if pending is None else now + 1.0]
        if index < len(heard):
            due.append(heard[index][0])
        if pending is not None:
            due.append(pending[1])
        now = max(now, min(due))
        while index < len(heard) and heard[index][0] <= now:
            arrived, price, stamp = heard[index]
            detector.price(price, arrived, stamp=int(stamp), age=arrived - int(stamp))
            index += 1
        if pending is not None and pending[1] <= now:
            detector.sample(market.rest(pending[0]), pending[0], now)
            pending = None
        detector.look(now)
        if detector.wants_sample(now) and pending is None:
            course.asked.append(now)
            last = heard[index - 1][0] if index else begin
            course.repeats_asked += now < last + detector.suspect_after(now)
            detector.asked(now)
            if rest:
                pending = (now, now + latency)
            else:
                detector.sample_failed("no answer", now)
        if not course.verdicts or course.verdicts[-1][1] != detector.verdict:
            course.verdicts.append((now, detector.verdict))
        if detector.verdict == "dead":
            break
    return course
