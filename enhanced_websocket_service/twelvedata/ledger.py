"""What one API key has spent and when it may spend again. Pure; the rules of ``keys.KeyPool``.

The vendor counts by its own clock and when a call arrives; we know when a call began and when it was
answered, by ours. So that no difference can break a limit:

- our minute (and day) begins ``CLOCK_MARGIN_S`` after the vendor's: a call that begins in it cannot
  arrive in the vendor's one before;
- a call that is still under way when a period ends, or ended so near its end that the vendor may have
  counted it in the next one, is counted in both.

Our clock may also be set, by hours, and set back again; the vendor's goes on. A period that a step of
the clock has left is remembered, and what is spent meanwhile is counted in it, too: if it comes back,
it was the vendor's all the time.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from enhanced_websocket_service.clock import still_ahead

MINUTE: Final = 60
DAY: Final = 86_400

CLOCK_MARGIN_S: Final = 1.0
"""How far the vendor's clock may be from ours, either way."""
RESET_MARGIN_S: Final = 1.0
"""After a 429 the vendor's clock decides when the minute ends; it may run further behind than that."""
REFUSED_FOR_S: Final = 3600.0
"""How long a refusal holds: of a key that the vendor calls wrong (vendors have called good keys wrong
before), and of what the plan of a key does not include. Then the key is tried once, and so on."""
KEY: Final = "key"
"""The topic of a refusal that is of the key itself."""
STREAM: Final = "stream"
"""The topic, and the purpose, of a socket connection; it spends no API credits."""
SET_BACK_S: Final = 1.0
"""A clock that goes back by more was set; what goes back by less catches up."""
STEP_S: Final = 30.0
"""Looked at after a longer pause than that, time may have passed, or the clock was set."""
LONGEST_COOLDOWN_S: Final = 2 * MINUTE + CLOCK_MARGIN_S + RESET_MARGIN_S
"""Of a minute; a day that is spent is so by its ledger, too."""
_PERIODS_LEFT: Final = 8
_WORDS_KEPT: Final = 300
"""Characters of the vendor's words that are kept; nobody knows how long they are."""


Turn = Literal["on", "step", "back"]
"""How a clock came to an instant: it went on, it did or was set ahead, or it was set back."""


def turn(latest: float, now: float) -> Turn:
    """From ``latest`` to ``now``, unix seconds UTC."""
    if now < latest - SET_BACK_S:
        return "back"
    return "step" if math.isfinite(latest) and now > latest + STEP_S else "on"


def period_of(now: float, length: int) -> int:
    """Our number of the period of ``length`` seconds that ``now`` lies in."""
    return math.floor((now - CLOCK_MARGIN_S) / length)


@dataclass(slots=True)
class Ledger:
    """Credits spent in the current period of ``length`` seconds."""

    length: int
    limit: int
    period: int = -1
    used: int = 0
    carry: int = 0  # the part of it that the vendor may count in the next period
    calls: int = 0
    away: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Periods that a step of the clock has left: what was used and called in them, and since."""

    def roll(self, now: float, under_way: int = 0, how: Turn = "on") -> int:
        """Begin a new period when ``now`` lies in one; returns how many have passed.

        Backwards only when the clock was set back; then what was used stays used, whatever period
        that was in: the same minute is never handed out twice.

        :param under_way: credits of calls not ended yet: they may still arrive in the new one.
        """
        passed = period_of(now, self.length) - self.period
        if passed == 0 or (passed < 0 and how != "back"):
            return 0
        before = (self.used, self.calls)
        begun = (self.carry if passed == 1 else under_way, 0)
        if how == "on" or self.period < 0:
            self.away.clear()
        else:
            if len(self.away) >= _PERIODS_LEFT:
                del self.away[next(iter(self.away))]
            self.away[self.period] = before
        self.period += passed
        self.used, self.calls = self.away.pop(self.period, before if passed < 0 else begun)
        if passed > 0:
            self.carry = under_way
        return max(0, passed)

    def count(self, used: int, calls: int = 0) -> None:
        """``used`` credits more were used, by ``calls`` calls of ours."""
        self.used += used
        self.calls += calls
        for period, (used_there, called) in self.away.items():
            self.away[period] = (used_there + used, called + calls)

    def spend(self, cost: int) -> None:
        self.count(cost, 1)
        self.carry += cost

    def ended(self, cost: int, at: float) -> None:
        """A call that spent ``cost`` was answered at ``at``."""
        if at < self.end - 2 * CLOCK_MARGIN_S:
            self.carry = max(0, self.carry - cost)

    def surely_holds(self, began: float, ended: float) -> bool:
        """Whether the vendor counted a call in just this period, whatever its clock shows."""
        return period_of(began, self.length) == self.period and (
            ended < self.end - 2 * CLOCK_MARGIN_S
        )

    def surely_over(self, now: float) -> float:
        """The end of the period that the vendor's clock may show at ``now``, the later one of two."""
        return self.end if now < self.end - 2 * CLOCK_MARGIN_S else self.end + self.length

    def free_at(self, at: float, cost: int, headroom: int = 0) -> float:
        """The first instant from ``at`` on at which ``cost`` credits fit."""
        at = max(at, self.period * self.length + CLOCK_MARGIN_S)  # a clock set back catches up
        ahead = period_of(at, self.length) - self.period
        if ahead == 0 and self.used + cost > max(cost, self.limit - headroom):
            at, ahead = self.end, 1
        if ahead == 1 and self.carry + cost > self.limit:
            at = self.end + self.length
        return at

    @property
    def left(self) -> int:
        return max(0, self.limit - self.used)

    @property
    def end(self) -> float:
        """The end of the current period, exclusive."""
        return (self.period + 1) * self.length + CLOCK_MARGIN_S


class Access(msgspec.Struct, frozen=True):
    """What the vendor last said to a key about a topic; instants in unix seconds UTC."""

    at: float  # when it was asked; a refusal counts from here
    refusal: str = ""  # its words; empty: it let the key have the topic
    since: float | None = None  # the first refusal without a grant behind it
    granted: bool = False  # ever

    def not_void(self, now: float) -> "Access":
        """The same, said at ``now`` if it was said too far ahead by a clock that has been set back since:
        a refusal could hold for ever. A step back of less hands out no second try.
        """
        if self.at <= now or still_ahead(self.at, now, REFUSED_FOR_S):
            return self
        return msgspec.structs.replace(self, at=now)

    def later(self, other: "Access") -> "Access":
        """The later of two; of the same instant the grant, which ended what was asked then."""
        mine, theirs = ((one.at, not one.refusal) for one in (self, other))
        last = self if mine >= theirs else other
        return msgspec.structs.replace(last, granted=self.granted or other.granted)


class SavedKey(msgspec.Struct, frozen=True):
    """The part of a key's account that survives a restart; instants in unix seconds UTC.

    Its counts are those of the minute and the day in which it was saved.
    """

    minute_used: int
    minute_limit: int
    day_used: int
    day_limit: int
    calls_today: int
    last_used: float | None
    cooldown_until: float | None
    minute_configured: int = 0  # the limits of the settings then
    day_configured: int = 0
    minute_carry: int = 0
    day_carry: int = 0
    access: dict[str, Access] = {}  # by topic; older files have none
    # By number, days that a step of the clock has left: credits and calls in them, and since.
    days: dict[str, tuple[int, int]] = {}

    def matters(self, now: float) -> bool:
        """Whether somebody who has this key needs to know it at ``now``."""
        refusals = (one for one in self.access.values() if one.refusal)
        return bool(self.day_used) or any(one.at > now - DAY for one in refusals)

    def rolled(self, saved_at: float, now: float) -> "SavedKey":
        """What is left of the counts at ``now``; before ``saved_at``, the clock was set back since."""
        how = turn(saved_at, now)
        minutes = period_of(now, MINUTE) - period_of(saved_at, MINUTE)
        if minutes <= 0 and how != "back":
            return self
        day = Ledger(
            DAY,
            self.day_limit,
            period_of(saved_at, DAY),
            self.day_used,
            self.day_carry,
            self.calls_today,
            {int(number): (used, calls) for number, (used, calls) in self.days.items()},
        )
        if minutes > 1 and period_of(now, DAY) > day.period:
            day.carry = 0
        day.roll(now, 0, how)
        kept = {0: self.minute_used, 1: self.minute_carry}.get(max(0, minutes), 0)
        cooldown = self.cooldown_until
        if cooldown is not None and how == "back":
            cooldown = min(cooldown, now + LONGEST_COOLDOWN_S)
        return msgspec.structs.replace(
            self,
            minute_used=kept,
            minute_carry=self.minute_carry if minutes <= 0 else 0,
            day_used=day.used,
            day_carry=day.carry,
            calls_today=day.calls,
            cooldown_until=cooldown,
            days=_saved_days(day),
        )


def _saved_days(day: Ledger) -> dict[str, tuple[int, int]]:
    return {str(number): counts for number, counts in day.away.items()}


NOTHING_SAVED: Final = SavedKey(0, 0, 0, 0, 0, None, None)


@dataclass(slots=True)
class Account:
    """Everything known about one key but the key itself."""

    minute: Ledger
    day: Ledger
    configured: tuple[int, int]  # the limits (minute, day) of the settings
    last_used: float = -math.inf
    cooldown_until: float = -math.inf
    access: dict[str, Access] = field(default_factory=dict)  # by topic; most were never refused
    under_way: int = 0  # credits of calls that have not ended
    others: int = 0  # credits that somebody else spent with this key in this minute
    others_usually: float = 0.0  # the same, of the minutes before
    calls: int = 0
    failures: int = 0
    latency_ms: float | None = None  # moving average, real milliseconds
    latency_max_ms: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)

    def roll(self, now: float, how: Turn = "on") -> None:
        """Go to ``now``; ``how`` from the instant before."""
        if passed := self.minute.roll(now, self.under_way, how):
            self.others_usually = max(
                float(self.others), self.others_usually / 2.0 ** min(passed, 9)
            )
            self.others = 0
        if self.day.roll(now, self.under_way, how):
            self.access = {t: a for t, a in self.access.items() if a.refusal or t == STREAM}
        if how == "back":
            # What a clock that was ahead has noted for later is void: nothing waits for it.
            self.last_used = min(self.last_used, now)
            self.cooldown_until = min(self.cooldown_until, now + LONGEST_COOLDOWN_S)
            self.access = {topic: one.not_void(now) for topic, one in self.access.items()}

    @property
    def calls_today(self) -> int:
        """REST calls since UTC midnight."""
        return self.day.calls

    @property
    def headroom(self) -> int:
        """Credits of the minute left to whoever else uses this key, as far as they show."""
        return max(0, round(self.others_usually) - self.others)

    def free_at(self, now: float, cost: int, spacing_s: float, topic: str = "") -> float:
        """When ``cost`` credits may be spent on ``topic``; infinite when they never may."""
        if cost > min(self.minute.limit, self.day.limit):
            return math.inf
        at = max(now, self.last_used + spacing_s, self.cooldown_until)
        for refused in (self.refused(KEY), self.refused(topic)):
            if refused is not None:
                at = max(at, refused.at + REFUSED_FOR_S)
        return self.day.free_at(self.minute.free_at(at, cost, self.headroom), cost)

    def rate(self, spacing_s: float) -> float:
        """Credits a second that the limits of the minute and the spacing allow for long."""
        room = max(1, self.minute.limit - round(self.others_usually))
        return min(room / MINUTE, 1.0 / spacing_s if spacing_s else math.inf)

    def spend(self, now: float, cost: int) -> None:
        self.minute.spend(cost)
        self.day.spend(cost)
        self.under_way += cost
        self.last_used = max(self.last_used, now)
        self.calls += 1
        if (refused := self.refused(KEY)) is not None:
            # From now on, whatever becomes of the call: one try an hour, also of a process killed in it.
            self.access[KEY] = msgspec.structs.replace(refused, at=now)

    def ended(self, now: float, cost: int) -> None:
        self.under_way = max(0, self.under_way - cost)
        self.minute.ended(cost, now)
        self.day.ended(cost, now)
        self.last_used = max(self.last_used, now)

    def spent_elsewhere(self, credits: int) -> None:  # noqa: A002 - the vendor's word
        """Count what the vendor says was spent in this minute beyond what we know of."""
        self.others += credits
        self.minute.count(credits)
        self.day.count(credits)

    def refused(self, topic: str) -> Access | None:
        """The vendor's refusal of ``topic`` (or of the ``KEY``), however old; ``None``: there is none."""
        access = self.access.get(topic)
        return access if access is not None and access.refusal else None

    @property
    def disabled(self) -> bool:
        """Whether the vendor has called the key wrong."""
        return self.refused(KEY) is not None

    def worth_a_try(self, now: float) -> bool:
        """Whether the key may be used at ``now`` as far as the vendor's last word on it goes."""
        refused = self.refused(KEY)
        return refused is None or refused.at + REFUSED_FOR_S <= now

    def refuse(self, topic: str, words: str, now: float) -> None:
        """The vendor has refused ``topic``."""
        known = self.access.get(topic)
        since = now if known is None or known.since is None else known.since
        granted = known is not None and known.granted
        self.access[topic] = Access(now, words[:_WORDS_KEPT] or "refused", since, granted)

    def grant(self, topic: str, asked_at: float, now: float) -> None:
        """The vendor has let the key have ``topic``, when it was asked at ``asked_at``.

        A question from before a refusal proves nothing.
        """
        refused = self.refused(topic)
        if (refused is not None and refused.at <= asked_at) or topic == STREAM:
            self.access[topic] = Access(now, granted=True)

    def save(self) -> SavedKey:
        return SavedKey(
            minute_used=self.minute.used,
            minute_limit=self.minute.limit,
            day_used=self.day.used,
            day_limit=self.day.limit,
            calls_today=self.calls_today,
            last_used=self.last_used if math.isfinite(self.last_used) else None,
            cooldown_until=self.cooldown_until if math.isfinite(self.cooldown_until) else None,
            minute_configured=self.configured[0],
            day_configured=self.configured[1],
            minute_carry=self.minute.carry,
            day_carry=self.day.carry,
            access=dict(self.access),
            days=_saved_days(self.day),
        )

    def merge(self, theirs: SavedKey, base: SavedKey, saved_at: float) -> None:
        """Take over ``theirs``, and add to it what we did since we both had ``base``.

        All three are of the same minute and day.
        """

        def sum_up(mine: int, name: str) -> int:
            return max(0, int(getattr(theirs, name)) + mine - int(getattr(base, name)))

        self.minute.count(sum_up(self.minute.used, "minute_used") - self.minute.used)
        self.minute.carry = max(self.under_way, sum_up(self.minute.carry, "minute_carry"))
        self.day.count(
            sum_up(self.day.used, "day_used") - self.day.used,
            sum_up(self.day.calls, "calls_today") - self.day.calls,
        )
        for number, there in theirs.days.items():
            mine = self.day.away.get(int(number), (0, 0))
            if int(number) != self.day.period:
                self.day.away[int(number)] = (max(there[0], mine[0]), max(there[1], mine[1]))
        self.day.carry = max(self.under_way, sum_up(self.day.carry, "day_carry"))
        if (theirs.minute_configured, theirs.day_configured) == self.configured:
            # Learned from the vendor since, unless we learned later. Else the settings were changed:
            # they must count.
            if base is NOTHING_SAVED or self.minute.limit == base.minute_limit:
                self.minute.limit = max(1, theirs.minute_limit)
            if base is NOTHING_SAVED or self.day.limit == base.day_limit:
                self.day.limit = max(1, theirs.day_limit)
        if theirs.last_used is not None:
            self.last_used = max(self.last_used, min(theirs.last_used, saved_at))
        if theirs.cooldown_until is not None:
            self.cooldown_until = max(
                self.cooldown_until, min(theirs.cooldown_until, saved_at + DAY)
            )
        for topic, access in theirs.access.items():
            said = access.not_void(saved_at)
            self.access[topic] = said.later(self.access.get(topic, said))

    def show(self, now: float) -> dict[str, Any]:
        """For ``/status``."""
        return {
            "calls": self.calls,
            "calls_today": self.calls_today,
            "failures": self.failures,
            "outcomes": dict(self.outcomes),
            "minute_used": self.minute.used,
            "minute_limit": self.minute.limit,
            "day_used": self.day.used,
            "day_limit": self.day.limit,
            "latency_ms": None if self.latency_ms is None else round(self.latency_ms, 1),
            "latency_max_ms": round(self.latency_max_ms, 1),
            "cooling_s": round(max(0.0, self.cooldown_until - now), 1),
            "access": dict(self.access),
        }
