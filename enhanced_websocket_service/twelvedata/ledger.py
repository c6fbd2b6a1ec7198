"""What one API key has spent and when it may spend again. Pure; the rules of ``keys.KeyPool``."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

MINUTE: Final = 60
DAY: Final = 86_400


@dataclass(slots=True)
class Ledger:
    """Credits spent in the current period of ``length`` seconds, aligned to the unix epoch."""

    length: int
    limit: int
    period: int = -1
    used: int = 0

    def roll(self, now: float) -> bool:
        """Begin a new period when ``now`` lies in one; returns whether it did.

        Never backwards: a clock that is set back must not hand out the same minute twice.
        """
        period = math.floor(now / self.length)
        if period <= self.period:
            return False
        self.period, self.used = period, 0
        return True

    def free_at(self, at: float, cost: int) -> float:
        """The first instant from ``at`` on at which ``cost`` credits fit."""
        at = max(at, float(self.period * self.length))  # a clock set back waits to catch up
        if math.floor(at / self.length) > self.period or self.used + cost <= self.limit:
            return at
        return self.end

    @property
    def end(self) -> float:
        """The end of the current period, exclusive."""
        return float((self.period + 1) * self.length)


class SavedKey(msgspec.Struct, frozen=True):
    """The part of a key's account that survives a restart; instants in unix seconds UTC."""

    minute_used: int
    minute_limit: int
    day_used: int
    day_limit: int
    calls_today: int
    last_used: float | None
    cooldown_until: float | None
    minute_configured: int = 0  # the limits of the settings then
    day_configured: int = 0


class SavedPool(msgspec.Struct, frozen=True):
    """The ledgers of a pool, keys named by fingerprint."""

    saved_at: float
    spent_by_purpose: dict[str, int]
    keys: dict[str, SavedKey]


@dataclass(slots=True)
class Account:
    """Everything known about one key but the key itself."""

    minute: Ledger
    day: Ledger
    configured: tuple[int, int]  # the limits (minute, day) of the settings
    last_used: float = -math.inf
    cooldown_until: float = -math.inf
    disabled: str = ""  # why, once the vendor has called the key wrong
    refused: dict[str, str] = field(default_factory=dict)  # purpose -> the vendor's reason
    calls: int = 0
    calls_today: int = 0
    failures: int = 0
    latency_ms: float | None = None  # moving average, real milliseconds
    latency_max_ms: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)

    def roll(self, now: float) -> None:
        self.minute.roll(now)
        if self.day.roll(now):
            self.calls_today = 0

    def free_at(self, now: float, cost: int, spacing_s: float) -> float:
        """When ``cost`` credits may be spent; infinite for a key that must not be used."""
        if self.disabled or cost > min(self.minute.limit, self.day.limit):
            return math.inf
        at = max(now, self.last_used + spacing_s, self.cooldown_until)
        return self.day.free_at(self.minute.free_at(at, cost), cost)

    def spend(self, now: float, cost: int) -> None:
        self.minute.used += cost
        self.day.used += cost
        self.last_used = max(self.last_used, now)
        self.calls += 1
        self.calls_today += 1

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
        )

    def restore(self, saved: SavedKey, saved_at: float) -> None:
        """Take over what was ``save``d at ``saved_at``; spending since then stays counted."""
        self.roll(saved_at)
        if (saved.minute_configured, saved.day_configured) == self.configured:
            # Learned from the vendor since. Else the settings were changed: they must count.
            self.minute.limit = max(1, saved.minute_limit)
            self.day.limit = max(1, saved.day_limit)
        if math.floor(saved_at / MINUTE) == self.minute.period:
            self.minute.used += max(0, saved.minute_used)
        if math.floor(saved_at / DAY) == self.day.period:
            self.day.used += max(0, saved.day_used)
            self.calls_today += max(0, saved.calls_today)
        if saved.last_used is not None:
            self.last_used = max(self.last_used, min(saved.last_used, saved_at))
        if saved.cooldown_until is not None:
            self.cooldown_until = max(
                self.cooldown_until, min(saved.cooldown_until, saved_at + DAY)
            )

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
            "disabled": self.disabled or None,
            "refused": dict(self.refused),
        }
