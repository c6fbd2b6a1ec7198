"""What a backfill is about to do, what it has done, and the book-keeping between. Pure."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from typing import Any

from enhanced_websocket_service.market.calendar import BAR_SECONDS

from .interfaces import Progress


@dataclass(frozen=True, slots=True)
class BackfillPlan:
    """What a run would ask for. Slots are unix seconds UTC, ascending."""

    symbol: str
    start: date
    end: date
    days: tuple[date, ...]  # the trading days of the range
    expected: tuple[int, ...]  # every settled slot of those days
    lacking: tuple[int, ...]  # no vendor bar in the database
    wanted: tuple[int, ...]  # what is to be asked for
    absent: tuple[int, ...]  # lacking, but on record as what the vendor does not have
    calls: int  # if the vendor has session bars only and gives full pages; a credit each
    keys: int  # usable, so many calls are under way at a time
    seconds: float  # of the clock until the last of the calls may begin; infinite: never
    credits_left: int | None  # of all keys today; None: not known
    day_of: dict[int, date]

    def as_dict(self) -> dict[str, Any]:
        """For logs and ``--json``."""
        return {
            "symbol": self.symbol,
            "start": self.start.isoformat(),
            "end": self.end.isoformat(),
            "trading_days": len(self.days),
            "expected_slots": len(self.expected),
            "slots_wanted": len(self.wanted),
            "known_absent": len(self.absent),
            "calls": self.calls,
            "credits": self.calls,
            "credits_left_today": self.credits_left,
            "keys": self.keys,
            "seconds": None if self.seconds == float("inf") else round(self.seconds, 1),
        }

    def sentence(self) -> str:
        """The plan for people."""
        head = (
            f"{self.symbol} {self.start} .. {self.end}: {len(self.days)} trading days, "
            f"{len(self.expected)} slots"
        )
        known = f", {len(self.absent)} of them known to be absent" if self.absent else ""
        if not self.wanted:
            return f"{head}{known}; nothing to fetch, 0 calls, 0 credits."
        keys = f"{self.keys} key{'s' if self.keys != 1 else ''}"
        left = "" if self.credits_left is None else f" of {self.credits_left} left today"
        time = "never" if self.seconds == float("inf") else f"about {self.seconds:.0f} s"
        return (
            f"{head}{known}; {len(self.wanted)} to fetch: {self.calls} calls, {self.calls} "
            f"credits{left}, {time} with {keys}. A feed that also quotes outside sessions "
            "takes more."
        )


@dataclass(frozen=True, slots=True)
class BackfillResult:
    """What a run did."""

    plan: BackfillPlan
    symbol: str
    start: date
    end: date
    days: int  # trading days in the range
    days_fetched: int  # of them, those something was asked for
    calls: int
    bars_written: int
    dropped: int  # vendor bars outside sessions, off the grid or not yet settled
    expected: int
    missing: tuple[int, ...]  # settled slots still without a vendor bar, unix seconds UTC


class BackfillRun:
    """The book-keeping of one run; the workers share it.

    :param absent: the record of what the vendor does not have; kept up to date here.
    """

    def __init__(self, plan: BackfillPlan, absent: set[int], progress: Progress | None) -> None:
        self.plan = plan
        self.absent = absent
        self.calls = 0
        self.dropped = 0
        self._progress = progress
        self._written: set[int] = set()
        self._unanswered = Counter(plan.day_of[slot] for slot in plan.wanted)
        self._days_asked = len(self._unanswered)
        self._tell()

    @property
    def days_done(self) -> int:
        return len(self.plan.days) - len(self._unanswered)

    def note_absences(
        self, slots: Collection[int], came: Collection[int], *, before: float
    ) -> bool:
        """Note which of ``slots`` did not come; whether the record changed.

        :param before: an answer is final for slots that ended until then, unix seconds UTC.
        """
        old = set(self.absent)
        self.absent.difference_update(came)
        self.absent.update(s for s in slots if s not in came and s + BAR_SECONDS <= before)
        return self.absent != old

    def settle(self, slots: Collection[int], came: Collection[int]) -> None:
        """``slots`` are answered and stored."""
        self._written.update(came)
        for slot in slots:
            day = self.plan.day_of[slot]
            self._unanswered[day] -= 1
            if not self._unanswered[day]:
                del self._unanswered[day]
        self._tell()

    def missing(self) -> tuple[int, ...]:
        return tuple(slot for slot in self.plan.lacking if slot not in self._written)

    def result(self) -> BackfillResult:
        return BackfillResult(
            plan=self.plan,
            symbol=self.plan.symbol,
            start=self.plan.start,
            end=self.plan.end,
            days=len(self.plan.days),
            days_fetched=self._days_asked,
            calls=self.calls,
            bars_written=len(self._written),
            dropped=self.dropped,
            expected=len(self.plan.expected),
            missing=self.missing(),
        )

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self.days_done, len(self.plan.days))
