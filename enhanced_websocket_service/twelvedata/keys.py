"""The API keys: who may call when, what each has spent, and which one must not be used.

Pure: time is passed in (unix seconds UTC), nothing sleeps, nothing does I/O. Invariants:

- two uses of a key are at least ``spacing_s`` apart, counted from the end of the earlier call once it
  is reported, so that they cannot bunch up on the way to the vendor;
- a key never spends more than its limit in a wall-clock minute or a UTC day, as far as we know them;
- no secret leaves this module but inside ``ApiKey.secret``: not in ``repr``, status or saved state.
"""

import copy
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from enhanced_websocket_service.errors import ConfigurationError

from .ledger import DAY, MINUTE, Account, Ledger, SavedPool

MAX_KEYS: Final = 16
RESET_MARGIN_S: Final = 1.0
"""After a 429 the vendor's clock decides when the minute ends; it may run a little behind ours."""

STREAM: Final = "stream"
"""The purpose of a socket connection; it spends no API credits."""

Outcome = Literal[
    "ok",  # answered, "no data" and unknown symbols included
    "minute_exhausted",
    "day_exhausted",
    "invalid_key",
    "not_entitled",
    "unavailable",
    "cancelled",
]


@dataclass(frozen=True, slots=True, repr=False)
class ApiKey:
    """One key of the vendor. Its text form shows the label only."""

    label: str  # G1_1 .. G2_8
    secret: str
    group: int = 1

    def __post_init__(self) -> None:
        if not (self.secret and self.secret.isascii() and self.secret.isprintable()):
            raise ConfigurationError(
                f"API key {self.label} is empty or has characters no HTTP header may carry."
            )
        if " " in self.secret:
            raise ConfigurationError(f"API key {self.label} contains a space.")

    def __repr__(self) -> str:
        return f"ApiKey({self.label})"

    @property
    def fingerprint(self) -> str:
        """A short hash: the same key is recognised in saved state whatever its label."""
        return hashlib.sha256(self.secret.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Lease:
    """Permission for one call. Hand it back with ``KeyPool.report`` whatever happens."""

    key: ApiKey
    index: int
    credits: int
    purpose: str
    at: float


@dataclass(frozen=True, slots=True)
class Wait:
    """No key may be used before ``until`` (infinite: no key may be used at all)."""

    until: float
    reason: str


@dataclass(frozen=True, slots=True)
class Budget:
    """What the keys can still spend in the current UTC day."""

    keys: int  # not disabled
    day_total: int  # their day limits together
    left: int  # credits left today
    spent: Mapping[str, int]  # credits spent today by purpose, all keys
    min_interval_s: float  # the shortest mean distance of calls that spacing and minutes allow


class KeyPool:
    """Up to 16 keys, used in turn. One per process; not thread-safe."""

    def __init__(
        self,
        keys: Sequence[ApiKey],
        *,
        spacing_s: float = 8.0,
        minute_limit: int = 8,
        day_limit: int = 800,
    ) -> None:
        if not 1 <= len(keys) <= MAX_KEYS:
            raise ConfigurationError(
                f"{len(keys)} API keys are configured; 1 to {MAX_KEYS} can be used."
            )
        labels: dict[str, str] = {}
        for key in keys:
            if key.secret in labels:
                raise ConfigurationError(
                    f"API keys {labels[key.secret]} and {key.label} are the same key: "
                    "the vendor counts both against one limit. Remove one."
                )
            labels[key.secret] = key.label
        self.keys = tuple(keys)
        self.spacing_s = spacing_s
        self._accounts = [
            Account(Ledger(MINUTE, minute_limit), Ledger(DAY, day_limit), (minute_limit, day_limit))
            for _ in keys
        ]
        self._last = -1  # index of the key used last, -1 before the first use
        self._stream = -1
        self._spent: Counter[str] = Counter()
        self._spent_day = -1

    @property
    def current_key_index(self) -> int:
        """Index of the key used last, from 0."""
        return max(0, self._last)

    def acquire(
        self,
        now: float,
        credits: int = 1,  # noqa: A002 - the vendor's word
        purpose: str = "poll",
        avoid: Iterable[str] = (),
    ) -> Lease | Wait:
        """The next key in turn that may spend ``credits`` now, or how long to wait for one.

        :param avoid: labels not to use for this call (they failed it already).
        """
        avoided = frozenset(avoid)
        earliest, reason = math.inf, "every API key is disabled or refused"
        for step in range(1, len(self.keys) + 1):
            index = (self._last + step) % len(self.keys)
            account = self._accounts[index]
            if self.keys[index].label in avoided:
                continue
            account.roll(now)
            at = account.free_at(now, credits, self.spacing_s)
            if at <= now:
                account.spend(now, credits)
                self._roll_spent(now)
                self._spent[purpose] += credits
                self._last = index
                return Lease(self.keys[index], index, credits, purpose, now)
            if at < earliest:
                earliest = at
                reason = "key spacing" if at - now <= self.spacing_s else "API credits"
        return Wait(earliest, reason)

    def report(
        self,
        lease: Lease,
        outcome: Outcome,
        now: float,
        *,
        latency_ms: float | None = None,
        header_credits: tuple[int, int] | None = None,
        stated_limit: int | None = None,
        detail: str = "",
    ) -> None:
        """Say how the call of ``lease`` ended.

        :param latency_ms: real milliseconds until the answer.
        :param header_credits: ``(used, left)`` of the current minute from the answer's headers.
        :param stated_limit: the limit a 429 names, for its scope.
        :param detail: the vendor's wording, for keys that are refused.
        """
        account = self._accounts[lease.index]
        account.roll(now)
        account.last_used = max(account.last_used, now)
        account.outcomes[outcome] += 1
        if outcome not in ("ok", "cancelled"):
            account.failures += 1
        if latency_ms is not None:
            old = account.latency_ms
            account.latency_ms = latency_ms if old is None else 0.8 * old + 0.2 * latency_ms
            account.latency_max_ms = max(account.latency_max_ms, latency_ms)
        if header_credits is not None:
            used, left = header_credits
            if outcome == "ok" and left >= 0 and used + left > 0:
                account.minute.limit = used + left
            # Someone else may spend with this key too. A call that straddles two minutes says
            # nothing certain about the new one.
            if math.floor(lease.at / MINUTE) == account.minute.period:
                account.minute.used = max(account.minute.used, used)
        if outcome == "minute_exhausted":
            account.minute.limit = stated_limit or account.minute.limit
            account.cooldown_until = account.minute.end + RESET_MARGIN_S
        elif outcome == "day_exhausted":
            account.day.limit = stated_limit or account.day.limit
            account.day.used = max(account.day.used, account.day.limit)
            account.cooldown_until = account.day.end + RESET_MARGIN_S
        elif outcome == "invalid_key":
            account.disabled = detail or "the vendor does not know this key"
        elif outcome == "not_entitled":
            account.refused[lease.purpose] = detail

    def learn_limits(
        self, lease: Lease, now: float, *, minute: int, day: int | None, day_used: int | None
    ) -> None:
        """Adopt what ``/api_usage`` says; ``day`` is ``None`` on a plan without a daily limit."""
        account = self._accounts[lease.index]
        account.roll(now)
        account.minute.limit = max(1, minute)
        account.day.limit = max(1, minute * DAY // MINUTE if day is None else day)
        account.day.used = max(account.day.used, day_used or 0)

    def stream_key(self, *, rotate: bool = False) -> ApiKey | None:
        """The key to stream with; ``None`` when every key is disabled.

        :param rotate: move on to the next one. Keys not refused for streaming come first.
        """
        usable = [i for i, account in enumerate(self._accounts) if not account.disabled]
        if not usable:
            return None
        if rotate or self._stream not in usable:
            after = [i for i in usable if i > self._stream] + [
                i for i in usable if i <= self._stream
            ]
            fresh = [i for i in after if STREAM not in self._accounts[i].refused]
            self._stream = (fresh or after)[0]
        self._last = self._stream
        return self.keys[self._stream]

    def refuse_stream(self, key: ApiKey, reason: str) -> None:
        """Note that the vendor will not stream with ``key``. It may still be good for REST."""
        self._accounts[self.keys.index(key)].refused[STREAM] = reason

    def accept_stream(self, key: ApiKey) -> None:
        """Note that the vendor streams with ``key`` after all."""
        self._accounts[self.keys.index(key)].refused.pop(STREAM, None)

    def budget(self, now: float) -> Budget:
        """What can be spent until the next UTC midnight."""
        self._roll_spent(now)
        usable = [account for account in self._accounts if not account.disabled]
        for account in usable:
            account.roll(now)
        rates = [
            min(account.minute.limit / MINUTE, 1.0 / self.spacing_s if self.spacing_s else math.inf)
            for account in usable
        ]
        return Budget(
            keys=len(usable),
            day_total=sum(account.day.limit for account in usable),
            left=sum(max(0, account.day.limit - account.day.used) for account in usable),
            spent=dict(self._spent),
            min_interval_s=1.0 / sum(rates) if rates else math.inf,
        )

    def forecast(self, now: float, calls: int) -> float:
        """Seconds from ``now`` until the last of ``calls`` further calls may begin; infinite when it
        never may. Nothing is spent.
        """
        pool, at = copy.deepcopy(self), now
        for _ in range(calls):
            while isinstance(answer := pool.acquire(at), Wait):
                if math.isinf(answer.until):
                    return math.inf
                at = answer.until
        return at - now

    def total_calls(self, now: float) -> int:
        """REST calls of all keys since UTC midnight."""
        for account in self._accounts:
            account.roll(now)
        return sum(account.calls_today for account in self._accounts)

    def snapshot(self, now: float) -> dict[str, Any]:
        """Everything worth showing in ``/status``; no part of any key."""
        budget = self.budget(now)
        return {
            "total_keys": len(self.keys),
            "usable_keys": budget.keys,
            "current_key_index": self.current_key_index,
            "total_calls": self.total_calls(now),
            "credits_left_today": budget.left,
            "credits_by_purpose": dict(budget.spent),
            "keys": [
                {"label": key.label, "group": key.group, **account.show(now)}
                for key, account in zip(self.keys, self._accounts, strict=True)
            ],
        }

    def export_state(self, now: float) -> dict[str, Any]:
        """The ledgers as plain JSON values, for ``import_state`` after a restart."""
        self._roll_spent(now)
        for account in self._accounts:
            account.roll(now)
        accounts = zip(self.keys, self._accounts, strict=True)
        saved = SavedPool(
            saved_at=now,
            spent_by_purpose=dict(self._spent),
            keys={key.fingerprint: account.save() for key, account in accounts},
        )
        plain: dict[str, Any] = msgspec.to_builtins(saved)
        return plain

    def import_state(self, state: object, now: float) -> bool:
        """Take over saved ledgers; returns whether they were used.

        Ledgers saved later than ``now`` belong to another (virtual) timeline and are ignored, as is
        anything damaged: the vendor's answers teach the truth again.
        """
        try:
            saved = msgspec.convert(state, SavedPool)
        except msgspec.ValidationError:
            return False
        if not saved.saved_at <= now:
            return False
        self._roll_spent(saved.saved_at)
        if math.floor(saved.saved_at / DAY) == self._spent_day:
            self._spent.update(saved.spent_by_purpose)
        for key, account in zip(self.keys, self._accounts, strict=True):
            if key.fingerprint in saved.keys:
                account.restore(saved.keys[key.fingerprint], saved.saved_at)
        return True

    def _roll_spent(self, now: float) -> None:
        day = math.floor(now / DAY)
        if day > self._spent_day:
            self._spent_day = day
            self._spent.clear()
