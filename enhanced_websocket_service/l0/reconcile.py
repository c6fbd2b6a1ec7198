"""Reconciliation: the vendor's bars are fetched again, compared with the live ones, and made final.

The thin shell around ``market.reconciliation``: reads what is stored, asks the vendor when the plan says
so, records the answer, and hands new versions to the pipeline, which journals and publishes them.
Order of effects: first what is idempotent (gaps, drift), then the journal; so a crash between the
two, or anywhere else, leads to the same round again. Nothing is kept in memory that matters: a gap of
the feed is asked for sooner when it is told (``repair``), and still asked for after a restart, because
its bars are absent, partial or made of two feeds.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from time import monotonic
from typing import Any, Protocol

import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import EwsError, StorageError, VendorError
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.market.calendar import (
    BAR_SECONDS,
    TradingCalendar,
    iso_local,
)
from enhanced_websocket_service.market.reconciliation import (
    CALL_SPACING_S,
    FIRST_CANDLE_S,
    Ask,
    Credits,
    Drift,
    Wish,
    answered,
    next_due,
    plan,
    wish,
)
from enhanced_websocket_service.market.slot import SETTLE_S, SlotEvidence
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.telemetry import Metrics, Rarely

from .findings import Findings
from .interfaces import HistorySource
from .reconciliation_state import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, ReconciliationState
from .slots import window_slots

log = structlog.get_logger(__name__)

PURPOSE = "reconcile"
REPAIR = "repair"
LONGEST_LOOK_S = 300.0
"""Holes are noticed by looking: the evidence is read again at least so often."""
SOON_S = 60.0
CHANGEABLE_LOOK_S = 10.0
"""How soon to look again at a gap whose bars late ticks can still change."""
SHORTEST_LOOK_REAL_S = 0.5
SET_WAITS_S = 900.0
"""The backup set is rewritten once nothing more is about to come."""
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


@dataclass(frozen=True, slots=True)
class _Survey:
    """What is known of the slots of the window, and of younger ones that a gap touched."""

    labels: list[int]
    wishes: list[Wish]
    anchors: list[int]  # slots that the vendor is known to have
    look_at: float | None  # when a gap's next slot can be asked for


class Reconciler:
    """Run ``run`` as one task.

    :param publish: journals and publishes new versions of slots; returns those it took. A slot that
        ticks can still change is refused and comes again.
    :param changeable: whether ticks can still change a slot: asking for it would be a credit wasted.
    :param stored: waits, for that many real seconds at most, until PostgreSQL has everything journaled
        before the call; whether it has.
    :param calendars: the symbols, each with its calendar.
    :param may_run: whether a symbol is in a state in which its data is nobody else's business.
    :param write_backup: rewrites the backup set of a symbol; the ready flag is not touched. A folder that
        takes no file is no matter of this class: it raises for the database only.
    :param may_repair: whether at an instant credits may go into asking early and often for what the feed
        lost. While not, it waits for its turn like any hole.
    """

    def __init__(
        self,
        *,
        rest: HistorySource,
        store: EvidenceStore,
        calendars: Mapping[str, TradingCalendar],
        clock: Clock,
        provider: Provider,
        publish: Callable[[Sequence[Bar], float], Sequence[Bar]],
        changeable: Callable[[str, int], bool],
        stored: Callable[[float], Awaitable[bool]],
        may_run: Callable[[str], bool],
        credits: Callable[[float], Credits],  # noqa: A002 - the vendor's word
        write_backup: Callable[[str], Awaitable[object]],
        window_days: int,
        metrics: Metrics,
        failures: Failures,
        may_repair: Callable[[float], bool] = lambda _: True,
    ) -> None:
        self._rest, self._store = rest, store
        self._calendars, self._clock, self._provider = dict(calendars), clock, provider
        self._publish, self._stored, self._may_run = publish, stored, may_run
        self._changeable = changeable
        self._credits, self._write_backup = credits, write_backup
        self._window_days = window_days
        self._metrics = metrics
        self._failures = failures
        self._may_repair = may_repair
        self._rarely = Rarely()
        self._told = asyncio.Event()  # of a new gap
        self._running_since: dict[str, float] = {}  # by symbol: that it may run, without a break
        self._states = {symbol: ReconciliationState() for symbol in calendars}
        # The set may have missed what was reconciled before a crash.
        self._set_is_behind = dict.fromkeys(calendars, True)
        self._set_of: dict[str, date] = {}  # the day on which it was written last

    def status(self) -> dict[str, Any]:
        """By symbol, as plain JSON values."""
        return {symbol: state.shown() for symbol, state in self._states.items()}

    def owed(self, now: float) -> bool:
        """Whether the vendor is to be asked for bars at ``now``, as far as the last look tells."""
        dues = (state.next_due for state in self._states.values())
        return any(due is not None and due <= now for due in dues)

    def overdue(self, now: float) -> dict[str, float]:
        """By symbol, for how many seconds slots are due and the vendor was not asked for any.

        What was due while we were away is late from our start on only.
        """
        return {
            symbol: now - max(state.next_due, state.last_call_at or 0.0, since)
            for symbol, since in self._running_since.items()
            if (state := self._states[symbol]).next_due is not None and state.next_due < now
        }

    def why_overdue(self) -> str:
        """What kept it from asking, as far as that is known."""
        said = [state.last_error for state in self._states.values() if state.last_error]
        if said:
            return said[-1]
        return "the credit plan has none to spare, or PostgreSQL is behind the journal"

    def repair(self, symbol: str, start: float, end: float) -> None:
        """The feed lost ``[start, end)``: its slots get the vendor's bars as soon as it has them.

        May be called at any time, as often as one likes. Unix seconds UTC.
        """
        state = self._states.get(symbol)
        if state is None or not state.lost.add(start, end):
            return
        # A feed that comes and goes tells one gap after the other. Real time: the log is for people.
        if times := self._rarely.due(monotonic(), symbol):
            log.info(
                "A gap of the feed is to be filled by L0 incremental (the fallback)",
                symbol=symbol,
                start=iso_local(int(start)),
                end=iso_local(int(end)),
                times=times,
            )
        # What failed while the vendor was away may work now.
        state.resting_until, state.backoff_s = 0.0, FIRST_BACKOFF_S
        self._told.set()

    async def run(self) -> None:
        """Reconcile until cancelled. Failures of the vendor and the database are retried."""
        clock = self._clock
        while True:
            wait = LONGEST_LOOK_S
            running = [symbol for symbol in self._calendars if self._may_run(symbol)]
            self._running_since = {s: self._running_since.get(s, clock.now()) for s in running}
            for symbol in running:
                wait = min(wait, await self._attempt(symbol))
            await self._pause(clock.span(wait, at_least_real=SHORTEST_LOOK_REAL_S))

    async def _pause(self, seconds: float) -> None:
        """Sleep until something may be due; a gap that is told meanwhile ends it."""
        sleeping = asyncio.create_task(self._clock.sleep(seconds), name="reconciliation-pause")
        told = asyncio.create_task(self._told.wait(), name="reconciliation-told")
        try:
            await asyncio.wait({sleeping, told}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sleeping, told):
                task.cancel()
            await asyncio.gather(sleeping, told, return_exceptions=True)
            self._told.clear()

    async def _attempt(self, symbol: str) -> float:
        """``look``, with a back-off of each symbol's own after failures."""
        state, elapsed = self._states[symbol], self._clock.elapsed()
        if elapsed < state.resting_until:
            return state.resting_until - elapsed
        part = f"reconciliation of {symbol}"
        answers = state.answers
        try:
            wait = await self.look(symbol)
            if wait is None:
                return SOON_S
        except EwsError as error:
            state.last_error, state.unanswered = str(error), isinstance(error, VendorError)
            wait = state.backoff_s
            self._failures.failed(part, str(error))
            state.resting_until = self._clock.elapsed() + wait
            state.backoff_s = min(2 * wait, LONGEST_BACKOFF_S)
        else:
            state.backoff_s = FIRST_BACKOFF_S
            # A look at the database proves nothing of a vendor who did not answer, while he owes one.
            if state.answers > answers or not state.unanswered or state.next_due is None:
                state.last_error, state.unanswered = None, False
                self._failures.succeeded(part)
        return wait

    async def look(self, symbol: str) -> float | None:
        """One round for a symbol; seconds until the next is worth it.

        ``None``: there was none, as PostgreSQL does not have yet what was journaled.
        """
        if not await self._stored(STORED_WITHIN_S):
            return None
        state = self._states[symbol]
        now = self._clock.now()
        survey = await self._survey(symbol, state, now)
        ask = plan(
            survey.wishes,
            now,
            credits=self._credits(now),
            last_call_at=state.last_call_at,
            anchors=survey.anchors,
            look_back_to=self._look_back_to(symbol, survey, now),
        )
        if ask is not None:
            await self._round(symbol, state, ask, survey)
            survey = await self._survey(symbol, state, self._clock.now())
        now = self._clock.now()
        state.next_due = next_due(survey.wishes)
        await self._rewrite_set(symbol, state, now)
        # The next slot to settle may be a hole, which is due at once.
        until = [LONGEST_LOOK_S, BAR_SECONDS - (now - SETTLE_S) % BAR_SECONDS]
        if survey.look_at is not None:
            until.append(max(1.0, survey.look_at - now))
        if state.next_due is not None and state.next_due > now:
            until.append(state.next_due - now)
        elif state.next_due is not None:
            last = state.last_call_at
            spaced = SOON_S if last is None else last + CALL_SPACING_S - now
            until.append(spaced if 0 < spaced < SOON_S else SOON_S)
        return min(until)

    def _look_back_to(self, symbol: str, survey: _Survey, now: float) -> int | None:
        """Since when what is final is compared again: today's, after the session the whole window."""
        labels, calendar = survey.labels, self._calendars[symbol]
        if calendar.is_open(now):
            today = calendar.local_date(now)
            labels = [label for label in labels if calendar.local_date(label) == today]
        return labels[0] if labels else None

    async def _rewrite_set(self, symbol: str, state: ReconciliationState, now: float) -> None:
        """The backup set, when it is behind, the session is over and nothing more is about to come.

        Of a market that does not rest: once a day.
        """
        calendar = self._calendars[symbol]
        today = calendar.local_date(now)
        quiet = state.next_due is None or state.next_due > now + SET_WAITS_S
        over = quiet and not calendar.is_open(now)
        if calendar.round_the_clock:
            over = over or self._set_of.get(symbol) != today
        if (
            self._set_is_behind[symbol]
            and over
            and state.expected > state.lacking
            and await self._stored(STORED_WITHIN_S)
        ):
            await self._write_backup(symbol)
            self._set_is_behind[symbol] = False
            self._set_of[symbol] = today

    async def _survey(self, symbol: str, state: ReconciliationState, now: float) -> _Survey:
        """What is to be asked for, and what the vendor is known to have."""
        calendar = self._calendars[symbol]
        settled = window_slots(calendar, now, self._window_days)
        lost = state.lost
        young = [
            label
            for label in calendar.expected_labels(calendar.local_date(now))
            if label + BAR_SECONDS + SETTLE_S > now and lost.touches(label)
        ]
        labels = settled + [one for one in young if one + BAR_SECONDS + FIRST_CANDLE_S <= now]
        found = await self._store.evidence(symbol, labels)
        wishes: list[Wish] = []
        waiting: list[float] = [
            label + BAR_SECONDS + FIRST_CANDLE_S for label in young if label not in labels
        ]
        unrepaired = [label for label in young if label not in labels]
        hurry = bool(lost) and self._may_repair(now)
        for evidence in found:
            slot = evidence.slot
            session = calendar.session_on(slot)
            over = SETTLE_S + BAR_SECONDS + (slot if session is None else session.closes)
            is_lost = lost.touches(slot)
            one = wish(evidence, over, now, self._provider, lost=is_lost and hurry)
            if is_lost and one is not None:
                unrepaired.append(slot)
            if self._changeable(symbol, slot):
                if is_lost and one is not None:
                    waiting.append(now + CHANGEABLE_LOOK_S)
            elif one is not None:
                wishes.append(one)
        lost.keep(unrepaired)
        self._metrics.slots_lost.labels(symbol).set(len(unrepaired))
        vendor = [evidence.first("vendor", self._provider) for evidence in found]
        old = vendor[: len(settled)]
        state.expected = len(old)
        state.final = sum(bar is not None and bar.status == "reconciled" for bar in old)
        state.lacking = sum(bar is None for bar in old)
        state.seen = state.expected - state.final - state.lacking
        self._metrics.slots_lacking.labels(symbol).set(state.lacking)
        if settled:
            state.drift = await self._store.drift(symbol, settled[0], settled[-1])
        anchors = [one.slot for one, bar in zip(found, vendor, strict=True) if bar is not None]
        return _Survey(labels, wishes, anchors, min(waiting, default=None))

    async def _round(
        self, symbol: str, state: ReconciliationState, ask: Ask, survey: _Survey
    ) -> None:
        state.last_call_at = self._clock.now()
        state.calls += 1
        bars = await self._rest.time_series(
            symbol,
            start=ask.start,
            end=ask.end,
            interval_s=BAR_SECONDS,
            purpose=REPAIR if ask.repair else PURPOSE,
        )
        # The answer speaks for when it was asked: a bar was no older than that.
        asked_at = state.last_call_at
        # What was journaled meanwhile must be seen before versions are numbered.
        if not await self._stored(STORED_WITHIN_S):
            raise StorageError("PostgreSQL is behind the journal; the answer is not used.")
        by_slot = {bar.open_time: bar for bar in bars}
        asked = set(answered(ask, bars))
        others = {
            label
            for label in survey.labels
            if label in by_slot and label not in asked and not self._changeable(symbol, label)
        }
        evidence = await self._store.evidence(symbol, sorted(asked | others))
        answer = Findings(self._provider, self._calendars[symbol], asked_at)
        for one in evidence:
            answer.take(one, by_slot.get(one.slot), asked=one.slot in asked)
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
        answer: Findings,
        published: int,
    ) -> None:
        state.answers += 1
        state.published += published
        state.corrected += answer.findings.get("corrected", 0)
        if published or answer.confirmed:
            self._set_is_behind[symbol] = True
        for finding, count in answer.findings.items():
            self._metrics.reconciled_slots.labels(finding).inc(count)
        for one in answer.drifts:
            if not one.live.partial:
                for name, value in one.by_field().items():
                    self._metrics.bar_drift.labels(name).observe(abs(value))
        log.info(
            "L0 incremental (the fallback) asked for a gap of the feed"
            if ask.repair
            else "Reconciled with the vendor",
            symbol=symbol,
            start=iso_local(ask.start),
            end=iso_local(ask.end),
            asked=len(ask.slots),
            repair=ask.repair,
            published=published,
            **answer.findings,
        )
