"""Plans, and the ledger of API credits per key: wall-clock minutes and UTC days. Pure."""

from dataclasses import dataclass
from typing import Final

from enhanced_websocket_service.errors import ConfigurationError

from .answers import PRICING, Refusal
from .ledger import key_label

_MOST_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What a plan allows. ``None`` is no limit."""

    name: str
    per_minute: int
    per_day: int | None
    ws_credits: int  # one for each subscribed symbol, over all connections of a key
    ws_connections: int  # opening more closes the oldest
    trial_only: bool  # streams the trial symbols alone

    @property
    def title(self) -> str:
        return self.name.capitalize()


PLANS: Final[dict[str, Plan]] = {
    "basic": Plan("basic", 8, 800, 8, 1, True),
    "grow": Plan("grow", 55, None, 8, 1, True),
    "pro": Plan("pro", 610, None, 500, 3, False),
    "ultra": Plan("ultra", 2584, None, 2500, 3, False),
}


def plan_named(name: str) -> Plan:
    """The plan called ``name``.

    :raises ConfigurationError: when there is none.
    """
    plan = PLANS.get(name.lower())
    if plan is None:
        raise ConfigurationError(f"plan {name!r} is unknown; choose one of {', '.join(PLANS)}.")
    return plan


@dataclass(slots=True)
class _Counters:
    minute: int = -1
    minute_used: int = 0
    day: int = -1
    day_used: int = 0
    used: int = 0
    calls: int = 0
    refused: int = 0
    most_in_a_minute: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Where a key stands after a call."""

    minute_used: int
    day_used: int
    plan: Plan
    cost: int

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        return (
            ("api-credits-used", str(self.minute_used)),
            ("api-credits-left", str(max(0, self.plan.per_minute - self.minute_used))),
            ("api-credits-request", str(self.cost)),
        )

    def refusal(self) -> Refusal | None:
        """Why the call is not answered; the day's limit is told before the minute's."""
        day = self.plan.per_day
        if day is not None and self.day_used > day:
            return out_of_credits("day", self.day_used, day)
        if self.minute_used > self.plan.per_minute:
            return out_of_credits("minute", self.minute_used, self.plan.per_minute)
        return None


def out_of_credits(scope: str, used: int, limit: int) -> Refusal:
    """429 in the vendor's words for the ``minute`` or the ``day``."""
    period = "the current minute" if scope == "minute" else "the day"
    wait = "minute" if scope == "minute" else "day"
    return Refusal(
        429,
        f"You have run out of API credits for {period}. {used} API credits were used, with the "
        f"current limit being {limit}. Wait for the next {wait} or consider switching to a higher "
        f"tier plan at {PRICING}",
    )


class CreditLedger:
    """Counts every call, refused ones too: the vendor's "were used" figure runs past the limit."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._keys: dict[str, _Counters] = {}

    def charge(self, key: str, cost: int, now: float) -> Usage:
        counters = self._keys.get(key)
        if counters is None:
            if len(self._keys) >= _MOST_KEYS:
                del self._keys[next(iter(self._keys))]
            counters = self._keys[key] = _Counters()
        minute, day = int(now // 60), int(now // 86_400)
        if counters.minute != minute:
            counters.minute, counters.minute_used = minute, 0
        if counters.day != day:
            counters.day, counters.day_used = day, 0
        counters.minute_used += cost
        counters.day_used += cost
        counters.used += cost
        counters.calls += 1
        counters.most_in_a_minute = max(counters.most_in_a_minute, counters.minute_used)
        usage = Usage(counters.minute_used, counters.day_used, self.plan, cost)
        counters.refused += usage.refusal() is not None
        return usage

    def shown(self, now: float) -> dict[str, dict[str, int]]:
        """Where every key stands at ``now``, by its label; ``used`` counts since the start."""
        return {
            key_label(key): {
                "minute_used": one.minute_used if one.minute == int(now // 60) else 0,
                "day_used": one.day_used if one.day == int(now // 86_400) else 0,
                "used": one.used,
                "calls": one.calls,
                "refused": one.refused,
                "most_in_a_minute": one.most_in_a_minute,
            }
            for key, one in self._keys.items()
        }
