"""How often to poll: the credits of the day, spread over the rest of the session. Pure.

Some credits are reserved for what is not polling, each purpose with its own share, so that a thin
market's doubts cannot eat what repairs a gap. What a purpose has already spent counts against its share;
what it spends beyond is missing for polling. Once nothing more is to be polled today, everything left
is free for the others.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

from enhanced_websocket_service.market.calendar import BOGOTA, iso_local

from .keys import Budget, KeyPool
from .ledger import DAY
from .spending import BACKFILL, INCREMENTAL, LIVENESS, RECONCILE, REPAIR


@dataclass(frozen=True, slots=True)
class Reserve:
    """Credits kept from polling: a share of the day's, up to ``most``. More keys need no more."""

    share: float
    most: int
    borrows: bool = False  # may go on at the expense of polling, up to ``BORROWED`` of its credits


RESERVES: Final[Mapping[str, Reserve]] = {
    LIVENESS: Reserve(0.04, 100, borrows=True),
    REPAIR: Reserve(0.03, 80, borrows=True),
    RECONCILE: Reserve(0.03, 60),
}
"""A tenth of one key's day, 240 credits at most."""
BORROWED: Final = 0.25
HISTORY: Final = frozenset({REPAIR, BACKFILL, INCREMENTAL})
"""Purposes that fetch history: they share the reserve of repairs."""


@dataclass(frozen=True, slots=True)
class PollPlan:
    """A pace and what it rests on; instants in unix seconds UTC."""

    interval_s: float  # between two polled credits; infinite when none may be spent
    poll_credits: int  # for polling until the horizon
    reserve: int  # for everything else today
    keys: int
    horizon: float  # the end of the session or of the UTC day, whichever comes first
    begins: float = 0.0  # now or, later, the open
    kept: Mapping[str, int] = field(default_factory=dict)  # the reserve by purpose
    today: bool = True  # false: the credits are those of the next UTC day

    def forecast(self, zone: ZoneInfo = BOGOTA) -> str:
        """One sentence for people, times in ``zone``."""
        if self.keys == 0:
            return "every API key is disabled"
        if not math.isfinite(self.interval_s):
            return "no credits left for polling today"
        keys = f"{self.keys} key{'' if self.keys == 1 else 's'}"
        until = datetime.fromtimestamp(self.horizon, zone).strftime("%H:%M")
        when = "" if self.today else " of the next session's day"
        return (
            f"{self.poll_credits} credits{when} on {keys}: enough until {until} "
            f"at one poll per {self.interval_s:.1f} s"
        )


def plan(
    now: float,
    session_end: float,
    budget: Budget,
    *,
    opens: float | None = None,
    reserves: Mapping[str, Reserve] = RESERVES,
) -> PollPlan:
    """The even pace from ``now``, or the open where that is later, to ``session_end``.

    :param budget: as of ``now``, spendable until ``horizon(now, session_end)``.
    :param opens: the open of the session; ``None``: it has opened.
    """
    begins = max(now, opens if opens is not None else now)
    end = horizon(now, session_end)
    today = begins < end or begins <= now
    if not today:  # the credits of today buy no polls any more
        end, midnight = session_end, _midnight(begins)
        end = min(end, midnight)
        spent: Mapping[str, int] = {}
        left = spendable = budget.day_total
    else:
        spent, left, spendable = budget.spent, budget.left, budget.spendable
    kept = _kept(budget.day_total, spent, reserves)
    reserve = min(left, sum(kept.values()))
    credits_left = min(left - reserve, spendable)
    interval = math.inf
    if credits_left > 0 and budget.keys > 0:
        seconds = max(0.0, end - begins)
        floor = budget.min_interval_s if math.isfinite(budget.min_interval_s) else 0.0
        interval = max(floor, seconds / credits_left)
        if floor * credits_left > seconds > 0:  # more than the keys can spend until then
            credits_left = math.floor(seconds / floor) + 1
    if not today:
        reserve = budget.left
    return PollPlan(interval, credits_left, reserve, budget.keys, end, begins, kept, today)


def horizon(now: float, session_end: float) -> float:
    """Until when today's credits must last: the end of the session, or of the UTC day."""
    return min(max(session_end, now), _midnight(now))


def _midnight(now: float) -> float:
    return (math.floor(now / DAY) + 1.0) * DAY


def _kept(
    day_total: int, spent: Mapping[str, int], reserves: Mapping[str, Reserve]
) -> dict[str, int]:
    return {
        purpose: max(0, _share(day_total, one) - _spent(purpose, spent))
        for purpose, one in reserves.items()
    }


def _share(day_total: int, reserve: Reserve) -> int:
    # Rounded before it is rounded up: 0.03 * 800 is a little more than 24.
    return min(reserve.most, math.ceil(round(day_total * reserve.share, 6)))


def _spent(purpose: str, spent: Mapping[str, int]) -> int:
    members = HISTORY if purpose == REPAIR else {purpose}
    return sum(spent.get(one, 0) for one in members)


class CreditPlanner:
    """``plan`` over the keys of one pool. Sessions are given by their end and, ahead of it, their open."""

    def __init__(self, keys: KeyPool, reserves: Mapping[str, Reserve] = RESERVES) -> None:
        self._keys = keys
        self._reserves = reserves

    def plan(self, now: float, session_end: float, opens: float | None = None) -> PollPlan:
        budget = self._keys.budget(now, horizon(now, session_end))
        if opens is not None and now < opens:  # nothing has to be spent before
            budget = self._keys.budget(now, now + horizon(now, session_end) - opens)
        return plan(now, session_end, budget, opens=opens, reserves=self._reserves)

    def poll_interval(self, now: float, session_end: float, opens: float | None = None) -> float:
        """Seconds to leave between two polled credits; infinite when none may be spent today."""
        return self.plan(now, session_end, opens).interval_s

    def may_spend(
        self, purpose: str, now: float, session_end: float, opens: float | None = None
    ) -> bool:
        """Whether a credit may be spent on ``purpose`` now.

        A purpose with a reserve may use that up; one that ``borrows`` goes on, up to a quarter of what
        polling would have. Whoever has no reserve may spend what polling may. What is kept for other
        purposes is never touched while something is still to be polled today.
        """
        budget = self._keys.budget(now)
        if budget.left < 1:
            return False
        planned = self.plan(now, session_end, opens)
        if not planned.today or session_end <= now:
            return True
        name = REPAIR if purpose in HISTORY else purpose
        for_polls = budget.left - sum(planned.kept.values())
        if name not in self._reserves:
            return for_polls >= 1
        if planned.kept[name] >= 1:
            return True
        reserve = self._reserves[name]
        if not reserve.borrows:
            return False
        borrowed = _spent(name, budget.spent) - _share(budget.day_total, reserve)
        return for_polls >= 1 and borrowed < BORROWED * (for_polls + borrowed)

    def show(
        self, now: float, session_end: float, opens: float | None = None, zone: ZoneInfo = BOGOTA
    ) -> dict[str, Any]:
        """The credits for ``/status``; times as ISO 8601 in ``zone``."""
        planned = self.plan(now, session_end, opens)
        shown = self._keys.snapshot(now)
        finite = math.isfinite(planned.interval_s)
        bought = {
            purpose: {
                **one,
                "last_at": None if one["last_at"] is None else iso_local(one["last_at"], zone),
            }
            for purpose, one in shown["purchases"].items()
        }
        return {
            "left_today": shown["credits_left_today"],
            "spent_by_purpose": shown["credits_by_purpose"],
            "reserve": planned.reserve,
            "reserve_by_purpose": dict(planned.kept),
            "forecast": planned.forecast(zone),
            "plan": {
                "keys": planned.keys,
                "poll_credits": planned.poll_credits,
                "interval_s": round(planned.interval_s, 3) if finite else None,
                "from": iso_local(planned.begins, zone),
                "until": iso_local(planned.horizon, zone),
            },
            "groups": shown["groups"],
            "bought": bought,
        }
