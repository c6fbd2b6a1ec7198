"""The API keys: who may call when, what each has spent, and which one must not be used.

Pure: time is passed in (unix seconds UTC), nothing sleeps, nothing does I/O. Invariants:

- two uses of a key are at least ``spacing_s`` apart, counted from the end of the earlier call once it
  is reported, so that they cannot bunch up on the way to the vendor;
- a key never spends more than its limit in a wall-clock minute or a UTC day, as far as we know them,
  also when the vendor's clock is a second from ours (``ledger``);
- a clock that was ahead for a moment stops nothing, and forgets nothing, once it is set back;
- of the keys that are free the one with most credits left today is used, in turn where they are equal,
  so that no key has credits left over when the others have none;
- a key that the vendor calls wrong is tried once an hour, by the next call of whatever purpose: it comes
  back by itself, and costs nothing else meanwhile;
- no secret leaves this module but inside ``ApiKey.secret``: not in ``repr``, status or saved state.
"""

import copy
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from enhanced_websocket_service.errors import ConfigurationError

from .ledger import (
    DAY,
    KEY,
    MINUTE,
    NOTHING_SAVED,
    RESET_MARGIN_S,
    STREAM,
    Account,
    Ledger,
    turn,
)
from .spending import ELSEWHERE, POLL, TRIAL, SavedPool, Spending

MAX_KEYS: Final = 16
SAME_TIMELINE_S: Final = 60.0
"""Clocks are set back a little; ledgers saved later than this may be of another timeline."""
LONGEST_STEP_S: Final = 2.0 * DAY
"""A clock that was further ahead than this when it saved them says nothing about the present day."""

_KNOWN_KEY: Final = frozenset({"ok", "minute_exhausted", "day_exhausted", "not_entitled"})
"""Outcomes that only a key gets which the vendor knows."""

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
    topic: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """No key may be used before ``until`` (infinite: no key may be used at all)."""

    until: float
    reason: str
    refused: bool = False  # the vendor excludes the topic from the plan of every key


@dataclass(frozen=True, slots=True)
class Budget:
    """What the keys can still spend in the current UTC day."""

    keys: int  # not disabled, or due to be tried again
    day_total: int  # their day limits together
    left: int  # credits left today
    spent: Mapping[str, int]  # credits spent today by purpose, all keys
    min_interval_s: float  # the shortest mean distance of calls that spacing and minutes allow
    spendable: int  # of those left, what spacing and minutes allow until the asked instant


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
        # Groups alternate: what befalls one of them (an account, an address) spares every other call.
        self._order = sorted(range(len(keys)), key=lambda i: (self._place_in_group(i), i))
        self._last = -1  # index of the key used last, -1 before the first use
        self._stream = -1
        self._spending = Spending()
        self._latest = -math.inf  # the latest instant seen: saved counts are those of its periods
        self._base: SavedPool | None = None  # what others had from us, and we from them, last

    @property
    def current_key_index(self) -> int:
        """Index of the key used last, from 0."""
        return max(0, self._last)

    def usable(self) -> int:
        """How many keys are not disabled."""
        return sum(not account.disabled for account in self._accounts)

    def left(self, now: float) -> int:
        """Credits left today on the keys that may be used, or tried again, now."""
        return sum(one.day.left for one in self._rolled(now) if one.worth_a_try(now))

    def free_at(self, now: float, topic: str = "") -> float:
        """The first instant at which a call about ``topic`` may be made; infinite when none may."""
        return min(account.free_at(now, 1, self.spacing_s, topic) for account in self._rolled(now))

    def acquire(
        self,
        now: float,
        credits: int = 1,  # noqa: A002 - the vendor's word
        purpose: str = POLL,
        avoid: Iterable[str] = (),
        *,
        topic: str = "",
    ) -> Lease | Wait:
        """A key that may spend ``credits`` now, or how long to wait for one.

        :param avoid: labels not to use for this call (they failed it already).
        :param topic: what is asked about; a key whose plan excludes it is not asked again for a while.
        """
        avoided = frozenset(avoid)
        self._rolled(now)
        place = self._order.index(self._last) + 1 if self._last >= 0 else 0
        chosen, earliest = -1, math.inf
        best = (False, -1)  # disabled, so that it is its turn to be tried; credits left today
        usable = refused = 0
        for index in (*self._order[place:], *self._order[:place]):
            account = self._accounts[index]
            if self.keys[index].label in avoided:
                continue
            at = account.free_at(now, credits, self.spacing_s, topic)
            if at <= now:
                rank = (account.disabled, account.day.left)
                if rank > best:
                    chosen, best = index, rank
            elif not account.disabled:
                earliest = min(earliest, at)
                usable += 1
                refused += account.refused(topic) is not None
        if chosen >= 0:
            return self._lease(chosen, now, credits, purpose, topic)
        if usable and refused == usable:
            refusals = (one.refused(topic) for one in self._accounts)
            return Wait(earliest, next(one.refusal for one in refusals if one), refused=True)
        if math.isinf(earliest):
            return Wait(earliest, "every API key is disabled or refused")
        return Wait(earliest, "key spacing" if earliest - now <= self.spacing_s else "API credits")

    def trial(self, now: float, overdue_s: float) -> Lease | None:
        """A disabled key whose hour has been over for ``overdue_s`` without a call that tried it."""
        for index, account in enumerate(self._rolled(now)):
            free_at = account.free_at(now, 1, self.spacing_s)
            if account.disabled and free_at <= now and account.worth_a_try(now - overdue_s):
                return self._lease(index, now, 1, TRIAL, "")
        return None

    def report(
        self,
        lease: Lease,
        outcome: Outcome,
        now: float,
        *,
        latency_ms: float | None = None,
        header_credits: tuple[int, int] | None = None,
        stated: tuple[int, int] | None = None,
        detail: str = "",
    ) -> None:
        """Say how the call of ``lease`` ended.

        :param latency_ms: real milliseconds until the answer.
        :param header_credits: ``(used, left)`` of the current minute from the answer's headers.
        :param stated: ``(used, limit)`` that a 429 names, for its scope.
        :param detail: the vendor's wording, for keys that are refused.
        """
        account = self._accounts[lease.index]
        self._rolled(now)
        account.ended(now, lease.credits)
        account.outcomes[outcome] += 1
        self._spending.ended(lease.purpose, outcome)
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
            # A call near the end of a minute says nothing certain about either.
            if account.minute.surely_holds(lease.at, now):
                self._seen(account, used - account.minute.used, now)
        if outcome == "minute_exhausted":
            if stated is not None:
                account.minute.limit = max(1, stated[1])
                if header_credits is None and account.minute.surely_holds(lease.at, now):
                    self._seen(account, stated[0] - account.minute.used, now)
            account.cooldown_until = account.minute.surely_over(now) + RESET_MARGIN_S
        elif outcome == "day_exhausted":
            if stated is not None:
                account.day.limit = max(1, stated[1])
                self._seen(account, stated[0] - account.day.used, now, of_the_minute=False)
            account.day.count(max(0, account.day.limit - account.day.used))
            account.cooldown_until = account.day.surely_over(now) + RESET_MARGIN_S
        elif outcome == "invalid_key":
            account.refuse(KEY, detail or "the vendor does not know this key", now)
        elif outcome == "not_entitled":
            account.refuse(lease.topic or lease.purpose, detail, now)
        if outcome in _KNOWN_KEY:
            account.grant(KEY, lease.at, now)
        if outcome == "ok":
            account.grant(lease.topic, lease.at, now)

    def got(self, purpose: str, what: str, count: int = 1) -> None:
        """Note what credits of ``purpose`` bought: ``count`` ``what``."""
        self._spending.got(purpose, what, count)

    def learn_limits(
        self, lease: Lease, now: float, *, minute: int, day: int | None, day_used: int | None
    ) -> None:
        """Adopt what ``/api_usage`` says; ``day`` is ``None`` on a plan without a daily limit."""
        account = self._accounts[lease.index]
        self._rolled(now)
        account.minute.limit = max(1, minute)
        account.day.limit = max(1, minute * DAY // MINUTE if day is None else day)
        self._seen(account, (day_used or 0) - account.day.used, now, of_the_minute=False)

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
            fresh = [i for i in after if self._accounts[i].refused(STREAM) is None]
            self._stream = (fresh or after)[0]
        self._last = self._stream
        return self.keys[self._stream]

    def refuse_stream(self, key: ApiKey, reason: str, now: float) -> None:
        """Note that the vendor will not stream with ``key``. It may still be good for REST."""
        self._accounts[self.keys.index(key)].refuse(STREAM, reason, now)

    def accept_stream(self, key: ApiKey, now: float) -> None:
        """Note that the vendor streams with ``key``."""
        self._accounts[self.keys.index(key)].grant(STREAM, now, now)

    def budget(self, now: float, until: float | None = None) -> Budget:
        """What can be spent until the next UTC midnight, and until ``until`` (unix seconds UTC)."""
        usable = [account for account in self._rolled(now) if account.worth_a_try(now)]
        until = now + DAY if until is None else until
        ready = [a.rate(self.spacing_s) for a in usable if a.day.left and a.cooldown_until <= now]
        spendable = 0
        for account in usable:
            seconds = until - max(now, account.cooldown_until)
            if seconds > 0:
                most = seconds * account.rate(self.spacing_s) + 1
                spendable += account.day.left if most > account.day.left else int(most)
        return Budget(
            keys=len(usable),
            day_total=sum(account.day.limit for account in usable),
            left=sum(account.day.left for account in usable),
            spent=self._spending.credits(),
            min_interval_s=1.0 / sum(ready) if ready else math.inf,
            spendable=spendable,
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
            pool.report(answer, "ok", at)
        return at - now

    def accounts(self, now: float) -> Sequence[Account]:
        """What is known of each key at ``now``, to be read."""
        return self._rolled(now)

    def total_calls(self, now: float) -> int:
        """REST calls of all keys since UTC midnight."""
        return sum(account.calls_today for account in self._rolled(now))

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
            "purchases": self._spending.show(),
            "groups": self._groups(),
            "keys": [
                {"label": key.label, "group": key.group, **account.show(now)}
                for key, account in zip(self.keys, self._accounts, strict=True)
            ],
        }

    def export_state(self, now: float) -> dict[str, Any]:
        """The ledgers as plain JSON values, for ``import_state`` here or in another process.

        Keys that only the others know of are in it.
        """
        plain: dict[str, Any] = msgspec.to_builtins(self._save(now))
        return plain

    def exported(self, state: object) -> None:
        """What ``export_state`` returned has been written: the others have it now."""
        self._base = msgspec.convert(state, SavedPool)

    def import_state(self, state: object, now: float, *, same_timeline: bool = False) -> bool:
        """Take over saved ledgers and add what was spent here since the last exchange.

        :param same_timeline: whoever saved them had our clock. Saved well after ``now`` means then that
            it was set back since; else they are of another (virtual) timeline, and are ignored.
        :returns: whether they were used. Anything damaged is ignored: the vendor's answers teach the
            truth again.
        """
        try:
            saved = msgspec.convert(state, SavedPool)
        except msgspec.ValidationError:
            return False
        if not math.isfinite(saved.saved_at):
            return False
        self._rolled(now)
        ahead = saved.saved_at - self._latest
        if ahead > SAME_TIMELINE_S and not (same_timeline and ahead <= LONGEST_STEP_S):
            return False
        if turn(saved.saved_at, self._latest) != "back":
            self._rolled(max(now, saved.saved_at))
        at = self._latest
        base = SavedPool(at, {}, {}) if self._base is None else self._base.rolled(at)
        theirs = saved.rolled(at)
        self._spending.merge(theirs.purchases(), base.purchases())
        for key, account in zip(self.keys, self._accounts, strict=True):
            name = key.fingerprint
            if name in theirs.keys:
                account.merge(theirs.keys[name], base.keys.get(name, NOTHING_SAVED), at)
        self._base = theirs
        return True

    def _lease(self, index: int, now: float, cost: int, purpose: str, topic: str) -> Lease:
        self._accounts[index].spend(now, cost)
        self._spending.charge(purpose, cost, now)
        self._last = index
        return Lease(self.keys[index], index, cost, purpose, now, topic)

    def _save(self, now: float) -> SavedPool:
        accounts = zip(self.keys, self._rolled(now), strict=True)
        others = {} if self._base is None else self._base.rolled(self._latest).keys
        return SavedPool(
            saved_at=self._latest,
            spent_by_purpose=self._spending.credits(),
            keys={
                **{name: one for name, one in others.items() if one.matters(self._latest)},
                **{key.fingerprint: account.save() for key, account in accounts},
            },
            spending=self._spending.save(),
        )

    def _rolled(self, now: float) -> Sequence[Account]:
        """All accounts, in the minute and the day of ``now``."""
        how = turn(self._latest, now)
        self._latest = now if how == "back" else max(now, self._latest)
        self._spending.roll(self._latest, how)
        for account in self._accounts:
            account.roll(self._latest, how)
        return self._accounts

    def _seen(
        self, account: Account, unknown: int, now: float, *, of_the_minute: bool = True
    ) -> None:
        """The vendor counted ``unknown`` credits that we know nothing of."""
        if unknown <= 0:
            return
        if of_the_minute:
            account.spent_elsewhere(unknown)
        else:
            account.day.count(unknown)
        self._spending.charge(ELSEWHERE, unknown, now, calls=0)

    def _place_in_group(self, index: int) -> int:
        return sum(key.group == self.keys[index].group for key in self.keys[:index])

    def _groups(self) -> list[dict[str, int]]:
        shown = []
        for group in sorted({key.group for key in self.keys}):
            pairs = zip(self.keys, self._accounts, strict=True)
            members = [account for key, account in pairs if key.group == group]
            usable = [account for account in members if not account.disabled]
            shown.append(
                {
                    "group": group,
                    "keys": len(members),
                    "usable_keys": len(usable),
                    "used_today": sum(account.day.used for account in members),
                    "left_today": sum(account.day.left for account in usable),
                }
            )
        return shown
