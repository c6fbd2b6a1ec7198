"""Reconciliation: the vendor's bars are fetched again, compared with the live ones, and made final.

The thin shell around ``market.reconciliation``: reads what is stored, asks the vendor when the plan says
so, records the answer, and hands new versions to the pipeline, which journals and publishes them.
Order of effects: first what is idempotent (gaps, drift), then the journal; so a crash between the
two, or anywhere else, leads to the same round again. Nothing is kept in memory that matters.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import EwsError, StorageError
from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.market.calendar import (
    BAR_SECONDS,
    TradingCalendar,
    iso_local,
)
from enhanced_websocket_service.market.reconciliation import (
    Ask,
    Credits,
    Drift,
    Finding,
    Wish,
    answered,
    drift,
    judge,
    next_due,
    plan,
    to_publish,
    wish,
)
from enhanced_websocket_service.market.slot import SETTLE_S, SlotEvidence
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.telemetry import Metrics

from .interfaces import HistorySource
from .slots import window_slots

log = structlog.get_logger(__name__)

PURPOSE = "reconcile"
LONGEST_LOOK_S = 300.0
"""Holes are noticed by looking: the evidence is read again at least so often."""
SOON_S = 60.0
SHORTEST_LOOK_REAL_S = 0.5
SET_WAITS_S = 900.0
"""The backup set is rewritten once nothing more is about to come."""
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 60.0, 1800.0
STORED_WITHIN_S = 5.0
"""Real seconds that a round waits for PostgreSQL to have what was journaled before it."""


class EvidenceStore(Protocol):
    """What is stored about slots; see ``storage.slot_store``."""

    async def evidence(self, symbol: str, labels: Sequence[int]) -> list[SlotEvidence]: ...

    async def drift(self, symbol: str, start: float, end: float) -> dict[str, Any]: ...

    async def note(
        self,
        symbol: str,
        now: float,
        *,
        gaps: Sequence[int],
        drifts: Sequence[Drift],
        replaced: Sequence[int],
        confirmed: Sequence[int],
    ) -> None: ...


@dataclass(slots=True)
class ReconciliationState:
    """What ``/status`` tells of one symbol."""

    expected: int = 0
    final: int = 0
    seen: int = 0  # the vendor's bar is there, not final yet
    lacking: int = 0  # no bar of the vendor
    next_due: float | None = None
    calls: int = 0
    last_call_at: float | None = None
    last_error: str | None = None
    published: int = 0
    drift: dict[str, Any] = field(default_factory=dict)
    backoff_s: float = FIRST_BACKOFF_S
    resting_until: float = 0.0

    def shown(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "expected_slots": self.expected,
            "final": self.final,
            "seen_once": self.seen,
            "lacking": self.lacking,
            "next_due": None if self.next_due is None else iso_local(int(self.next_due)),
            "calls": self.calls,
            "last_call": None if self.last_call_at is None else iso_local(int(self.last_call_at)),
            "last_error": self.last_error,
            "bars_published": self.published,
            "drift": self.drift,
        }


class Reconciler:
    """Run ``run`` as one task.

    :param publish: journals and publishes new versions of slots; returns those it took. A slot that
        ticks can still change is refused and comes again.
    :param changeable: whether ticks can still change a slot: asking for it would be a credit wasted.
    :param stored: waits, for that many real seconds at most, until PostgreSQL has everything journaled
        before the call; whether it has.
    :param may_run: whether the service is in a state in which the data is nobody else's business.
    :param write_backup: rewrites the backup set of a symbol; the ready flag is not touched.
    """

    def __init__(
        self,
        *,
        rest: HistorySource,
        store: EvidenceStore,
        calendar: TradingCalendar,
        clock: Clock,
        provider: Provider,
        symbols: Sequence[str],
        publish: Callable[[Sequence[Bar], float], Sequence[Bar]],
        changeable: Callable[[str, int], bool],
        stored: Callable[[float], Awaitable[bool]],
        may_run: Callable[[], bool],
        credits: Callable[[float], Credits],  # noqa: A002 - the vendor's word
        write_backup: Callable[[str], Awaitable[object]],
        window_days: int,
        metrics: Metrics,
    ) -> None:
        self._rest, self._store = rest, store
        self._calendar, self._clock, self._provider = calendar, clock, provider
        self._symbols = tuple(symbols)
        self._publish, self._stored, self._may_run = publish, stored, may_run
        self._changeable = changeable
        self._credits, self._write_backup = credits, write_backup
        self._window_days = window_days
        self._metrics = metrics
        self._states = {symbol: ReconciliationState() for symbol in symbols}
        # The set may have missed what was reconciled before a crash.
        self._set_is_behind = dict.fromkeys(symbols, True)

    def status(self) -> dict[str, Any]:
        """By symbol, as plain JSON values."""
        return {symbol: state.shown() for symbol, state in self._states.items()}

    async def run(self) -> None:
        """Reconcile until cancelled. Failures of the vendor and the database are retried."""
        clock = self._clock
        while True:
            wait = LONGEST_LOOK_S
            for symbol in self._symbols if self._may_run() else ():
                wait = min(wait, await self._attempt(symbol))
            await clock.sleep(clock.span(wait, at_least_real=SHORTEST_LOOK_REAL_S))

    async def _attempt(self, symbol: str) -> float:
        """``look``, with a back-off of each symbol's own after failures."""
        state, now = self._states[symbol], self._clock.now()
        if now < state.resting_until:
            return state.resting_until - now
        try:
            wait = await self.look(symbol)
        except EwsError as error:
            state.last_error = str(error)
            wait = state.backoff_s
            log.warning("Not reconciled for now", symbol=symbol, error=str(error), again_in_s=wait)
            state.resting_until = self._clock.now() + wait
            state.backoff_s = min(2 * wait, LONGEST_BACKOFF_S)
        else:
            state.backoff_s = FIRST_BACKOFF_S
        return wait

    async def look(self, symbol: str) -> float:
        """One round for a symbol; seconds until the next is worth it."""
        if not await self._stored(STORED_WITHIN_S):
            return SOON_S
        state = self._states[symbol]
        now = self._clock.now()
        wishes, known = await self._wishes(symbol, state, now)
        ask = plan(
            wishes,
            now,
            credits=self._credits(now),
            last_call_at=state.last_call_at,
            anchors=known,
        )
        if ask is not None:
            await self._round(symbol, state, ask)
            wishes, _ = await self._wishes(symbol, state, self._clock.now())
        now = self._clock.now()
        state.next_due = next_due(wishes)
        await self._rewrite_set(symbol, state, now)
        # The next slot to settle may be a hole, which is due at once.
        until = [LONGEST_LOOK_S, BAR_SECONDS - (now - SETTLE_S) % BAR_SECONDS]
        if state.next_due is not None and state.next_due > now:
            until.append(state.next_due - now)
        elif state.next_due is not None:
            until.append(SOON_S)
        return min(until)

    async def _rewrite_set(self, symbol: str, state: ReconciliationState, now: float) -> None:
        """The backup set, when it is behind, the session is over and nothing more is about to come."""
        quiet = state.next_due is None or state.next_due > now + SET_WAITS_S
        if (
            self._set_is_behind[symbol]
            and quiet
            and state.expected > state.lacking
            and not self._calendar.is_open(now)
            and await self._stored(STORED_WITHIN_S)
        ):
            await self._write_backup(symbol)
            self._set_is_behind[symbol] = False

    async def _wishes(
        self, symbol: str, state: ReconciliationState, now: float
    ) -> tuple[list[Wish], list[int]]:
        """What is to be asked for, and the slots that the vendor is known to have."""
        labels = window_slots(self._calendar, now, self._window_days)
        found = await self._store.evidence(symbol, labels)
        over: dict[int, float] = {}
        for label in labels:
            session = self._calendar.session_on(label)
            over[label] = SETTLE_S + BAR_SECONDS + (label if session is None else session.closes)
        wishes = [
            one
            for evidence in found
            if not self._changeable(symbol, evidence.slot)
            and (one := wish(evidence, over[evidence.slot], now, self._provider)) is not None
        ]
        vendor = [evidence.first("vendor", self._provider) for evidence in found]
        state.expected = len(found)
        state.final = sum(bar is not None and bar.status == "reconciled" for bar in vendor)
        state.lacking = sum(bar is None for bar in vendor)
        state.seen = state.expected - state.final - state.lacking
        self._metrics.slots_lacking.labels(symbol).set(state.lacking)
        if labels:
            state.drift = await self._store.drift(symbol, labels[0], labels[-1])
        known = [one.slot for one, bar in zip(found, vendor, strict=True) if bar is not None]
        return wishes, known

    async def _round(self, symbol: str, state: ReconciliationState, ask: Ask) -> None:
        state.last_call_at = self._clock.now()
        state.calls += 1
        bars = await self._rest.time_series(
            symbol, start=ask.start, end=ask.end, interval_s=BAR_SECONDS, purpose=PURPOSE
        )
        # The answer speaks for when it was asked: a bar was no older than that.
        asked_at = state.last_call_at
        # What was journaled meanwhile must be seen before versions are numbered.
        if not await self._stored(STORED_WITHIN_S):
            raise StorageError("PostgreSQL is behind the journal; the answer is not used.")
        state.last_error = None
        by_slot = {bar.open_time: bar for bar in bars}
        evidence = await self._store.evidence(symbol, answered(ask, bars))
        answer = _Answer(self._provider, self._calendar, asked_at)
        for one in evidence:
            answer.take(one, by_slot.get(one.slot))
        await self._store.note(
            symbol,
            asked_at,
            gaps=answer.gaps,
            drifts=answer.drifts,
            replaced=[bar.open_time for bar in answer.news],
            confirmed=answer.confirmed,
        )
        published = self._publish(answer.news, self._clock.now()) if answer.news else ()
        self._account(symbol, state, ask, answer, len(published))

    def _account(
        self,
        symbol: str,
        state: ReconciliationState,
        ask: Ask,
        answer: "_Answer",
        published: int,
    ) -> None:
        state.published += published
        if published or answer.confirmed:
            self._set_is_behind[symbol] = True
        for finding, count in answer.findings.items():
            self._metrics.reconciled_slots.labels(finding).inc(count)
        for one in answer.drifts:
            if not one.live.partial:
                for name, value in one.by_field().items():
                    self._metrics.bar_drift.labels(name).observe(abs(value))
        log.info(
            "Reconciled with the vendor",
            symbol=symbol,
            start=iso_local(ask.start),
            end=iso_local(ask.end),
            asked=len(ask.slots),
            published=published,
            **answer.findings,
        )


class _Answer:
    """What the vendor's answer of ``at`` means, sorted by what is to be done."""

    def __init__(self, provider: Provider, calendar: TradingCalendar, at: float) -> None:
        self.gaps: list[int] = []
        self.drifts: list[Drift] = []
        self.news: list[Bar] = []
        self.confirmed: list[int] = []
        self.findings: dict[Finding, int] = {}
        self._provider, self._calendar, self._at = provider, calendar, at

    def take(self, evidence: SlotEvidence, bar: Bar | None) -> None:
        finding = judge(evidence, bar, self._at, self._provider)
        self.findings[finding] = self.findings.get(finding, 0) + 1
        if bar is None:
            self.gaps.append(evidence.slot)
            return
        if finding != "same" and (found := drift(evidence, bar, self._provider)) is not None:
            self.drifts.append(found)
        today = self._calendar.local_date(evidence.slot) == self._calendar.local_date(self._at)
        version = to_publish(evidence, bar, finding, today=today)
        if version is not None:
            self.news.append(version)
        elif finding == "final":
            self.confirmed.append(evidence.slot)
