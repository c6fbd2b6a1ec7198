"""What the credits of the UTC day were spent on, and what came of it. Pure.

Every spend has a purpose. ``POLL`` is the price in a session without a stream; the named reserves of
``planner`` are for the others.
"""

from typing import Any, Final

import msgspec

from .ledger import DAY, SavedKey, Turn, period_of, turn

POLL: Final = "poll"
LIVENESS: Final = "liveness"
REPAIR: Final = "repair"
RECONCILE: Final = "reconcile"
BACKFILL: Final = "backfill"
INCREMENTAL: Final = "incremental"
TRIAL: Final = "trial"
"""Whether the vendor accepts a key again that it called wrong, where no other call tries it."""
ELSEWHERE: Final = "elsewhere"
"""Spent by somebody we do not know, as the vendor's figures show."""


class Purchase(msgspec.Struct):
    """The spends of one purpose."""

    credits: int = 0
    calls: int = 0
    outcomes: dict[str, int] = {}
    items: dict[str, int] = {}  # what was got: prices, bars
    last_at: float | None = None  # unix seconds UTC
    last_outcome: str | None = None


class SavedPool(msgspec.Struct, frozen=True):
    """The ledgers of a pool, keys named by fingerprint; all counts as of ``saved_at``."""

    saved_at: float
    spent_by_purpose: dict[str, int]
    keys: dict[str, SavedKey]
    spending: dict[str, Purchase] | None = None

    def purchases(self) -> dict[str, Purchase]:
        """By purpose; of files from before there were purchases, the credits alone."""
        if self.spending is not None:
            return self.spending
        return {purpose: Purchase(credits=n) for purpose, n in self.spent_by_purpose.items()}

    def rolled(self, now: float) -> "SavedPool":
        """What is left of the counts at ``now``."""
        how = turn(self.saved_at, now)
        if period_of(now, DAY) > period_of(self.saved_at, DAY):
            purposes, spending = {}, {}
        else:
            purposes, spending = self.spent_by_purpose, self.purchases()
        keys = {name: one.rolled(self.saved_at, now) for name, one in self.keys.items()}
        at = now if how == "back" else max(now, self.saved_at)
        return SavedPool(at, purposes, keys, spending)


class Spending:
    """Purchases by purpose of one UTC day."""

    def __init__(self) -> None:
        self._day = -1
        self._bought: dict[str, Purchase] = {}
        # Of the day that a step of the clock has left last, and since: it may come back.
        self._left: tuple[int, dict[str, Purchase]] = (-1, {})

    def roll(self, now: float, how: Turn = "on") -> None:
        """Forget the day before when a new one has begun, unless the clock may have been set."""
        day = period_of(now, DAY)
        if day == self._day or (day < self._day and how != "back"):
            return
        left, kept = self._left
        before = (self._day, {purpose: _copy(one) for purpose, one in self._bought.items()})
        if left == day:
            self._bought = kept
        elif day > self._day:
            self._bought = {}
        self._left = (-1, {}) if how == "on" else before
        self._day = day

    def charge(self, purpose: str, credits: int, now: float, calls: int = 1) -> None:  # noqa: A002
        for one in self._of(purpose):
            one.credits += credits
            one.calls += calls
            one.last_at = now

    def ended(self, purpose: str, outcome: str) -> None:
        for one in self._of(purpose):
            one.outcomes[outcome] = one.outcomes.get(outcome, 0) + 1
            one.last_outcome = outcome

    def got(self, purpose: str, what: str, count: int) -> None:
        for one in self._of(purpose):
            one.items[what] = one.items.get(what, 0) + count

    def credits(self) -> dict[str, int]:
        return {purpose: one.credits for purpose, one in self._bought.items()}

    def save(self) -> dict[str, Purchase]:
        return {purpose: _copy(one) for purpose, one in self._bought.items()}

    def merge(self, theirs: dict[str, Purchase], base: dict[str, Purchase]) -> None:
        """Take over ``theirs``, and add what we did since we both had ``base``; all of one day."""
        nothing = Purchase()
        for purpose in theirs.keys() | self._bought.keys():
            mine = self._bought.get(purpose, nothing)
            their, old = theirs.get(purpose, nothing), base.get(purpose, nothing)
            later = mine if (mine.last_at or 0.0) >= (their.last_at or 0.0) else their
            self._bought[purpose] = Purchase(
                credits=max(0, their.credits + mine.credits - old.credits),
                calls=max(0, their.calls + mine.calls - old.calls),
                outcomes=_sum(their.outcomes, mine.outcomes, old.outcomes),
                items=_sum(their.items, mine.items, old.items),
                last_at=later.last_at,
                last_outcome=later.last_outcome,
            )

    def show(self) -> dict[str, Any]:
        """By purpose, as plain values; ``last_at`` in unix seconds UTC."""
        plain: dict[str, Any] = msgspec.to_builtins(self._bought)
        return plain

    def _of(self, purpose: str) -> list[Purchase]:
        days = [self._bought, self._left[1]] if self._left[0] >= 0 else [self._bought]
        return [day.setdefault(purpose, Purchase()) for day in days]


def _copy(one: Purchase) -> Purchase:
    return msgspec.structs.replace(one, outcomes=dict(one.outcomes), items=dict(one.items))


def _sum(theirs: dict[str, int], mine: dict[str, int], base: dict[str, int]) -> dict[str, int]:
    sums = {
        name: theirs.get(name, 0) + mine.get(name, 0) - base.get(name, 0)
        for name in theirs.keys() | mine.keys()
    }
    return {name: count for name, count in sorted(sums.items()) if count > 0}
