"""How often to poll: the credits of the day, spread over the rest of the session. Pure.

A share of the day's credits is reserved for everything that is not polling (repair, reconciliation,
back-fill). What those purposes have already spent counts against the reserve, so a morning's repair
does not reserve it twice; what they spend beyond it is missing for polling.
"""

import math
from dataclasses import dataclass

from .keys import Budget, KeyPool
from .ledger import DAY

POLL = "poll"
"""The purpose of credits spent on polled prices; every other purpose draws on the reserve."""


@dataclass(frozen=True, slots=True)
class PollPlan:
    """A pace and what it rests on."""

    interval_s: float  # between two polled credits; infinite when none may be spent
    poll_credits: int  # left for polling until the horizon
    reserve: int  # left for everything else today
    keys: int
    horizon: float  # the end of the session or of the UTC day, whichever comes first

    def forecast(self) -> str:
        """One sentence for people."""
        if not math.isfinite(self.interval_s):
            return "no credits left for polling today"
        return (
            f"{self.poll_credits} credits on {self.keys} keys: one poll per {self.interval_s:.1f} s"
        )


def plan(now: float, session_end: float, budget: Budget, reserve: float = 0.1) -> PollPlan:
    """The even pace from ``now`` to ``session_end`` (unix seconds UTC).

    :param reserve: the share of the day's credits kept from polling, 0 to 1.
    """
    midnight = (math.floor(now / DAY) + 1) * DAY
    horizon = min(max(session_end, now), float(midnight))
    other = sum(spent for purpose, spent in budget.spent.items() if purpose != POLL)
    kept = min(budget.left, max(0, math.ceil(budget.day_total * reserve) - other))
    credits_left = budget.left - kept
    interval = math.inf
    if credits_left > 0 and budget.keys > 0:
        interval = max(budget.min_interval_s, (horizon - now) / credits_left)
    return PollPlan(interval, credits_left, kept, budget.keys, horizon)


class CreditPlanner:
    """``plan`` over the keys of one pool."""

    def __init__(self, keys: KeyPool, reserve: float = 0.1) -> None:
        self._keys = keys
        self._reserve = reserve

    def plan(self, now: float, session_end: float) -> PollPlan:
        return plan(now, session_end, self._keys.budget(now), self._reserve)

    def poll_interval(self, now: float, session_end: float) -> float:
        """Seconds to leave between two polled credits; infinite when none may be spent today."""
        return self.plan(now, session_end).interval_s
