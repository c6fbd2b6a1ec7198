"""The life of one symbol in the service: it waits for L0, checks the data, collects the session, and rests.

An endless loop drives the symbol's state machine; any failure becomes ERROR with its reason and is retried
with back-off. ERROR is left when something else is found than before: a retry that finds the same fault
changes neither state nor reason, and the last failure of a repair stays in both until one succeeds.
Owns the order of things, not the things: they are handed in. No symbol knows of another.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import (
    DatabaseUnavailable,
    EwsError,
    L0Error,
    StorageError,
    sentences,
)
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.l0.readiness import FlagState, ReadyFlag
from enhanced_websocket_service.l0.validator import Assessment
from enhanced_websocket_service.market.calendar import Session, TradingCalendar, iso_local

from .assessment_file import AssessmentFile
from .collector import Collector
from .data_check import DataCheck, History, usable
from .flag_wait import LOOK_WITHOUT_FLAG_S, FlagWait, note_folder
from .leadership import Leadership
from .retry import DATABASE_RETRY_S, LONGEST_RETRY_S, Retry
from .states import ServiceState, StateChange, StateMachine

Answer = TypeVar("Answer")

log = structlog.get_logger(__name__)

MIN_REAL_GRACE_S = 2.0
"""Messages in flight need real time, however fast the clock runs."""
CONNECT_LEAD_S = 30.0
"""How long before the open the vendor's socket is connected."""
CLOCK_LOOK_S = 1.0
"""Real seconds after which somebody who waits for a far instant looks whether the clock was set."""
PATIENCE_S = 5.0
"""Real seconds for an answer of PostgreSQL that a session need not wait for."""

_WHAT_THEN = "L0 has to bring them, or L0_POLICY=degraded goes live without them."
"""What helps against partial bars that the vendor does not replace."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The lifecycle's settings; seconds of the clock."""

    pre_open_s: float = 900.0
    close_drain_s: float = 5.0
    late_grace_s: float = 60.0
    startup_timeout_s: float = 3600.0
    l0_policy: Literal["strict", "degraded"] = "strict"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the lifecycles of all symbols share.

    :param leadership: whether this instance is the one that collects; ``None``: there is no other.
    :param kept: remembers when the data was found good; ``None``: nothing does.
    :param connect: opens the database, waiting a while for it; raises ``EwsError``.
    :param changed: told the symbol of every change of a state; must not block.
    :param failed_again: told of a failure that follows another.
    """

    clock: Clock
    flag: ReadyFlag
    history: History
    failures: Failures
    schedule: Schedule
    collector: Collector
    leadership: Leadership | None
    kept: AssessmentFile | None
    connect: Callable[[], Awaitable[None]]
    changed: Callable[[str, StateChange], None]
    failed_again: Callable[[], None]


class SymbolLifecycle:
    """Drives ``symbol`` from INITIALIZING on; ``run`` as one task."""

    def __init__(
        self, symbol: str, calendar: TradingCalendar, around: Surroundings, *, alone: bool
    ) -> None:
        self.symbol = symbol
        self.states = StateMachine(around.clock.now())
        self.data = DataCheck(
            symbol, around.history, around.clock, around.failures, kept=around.kept, alone=alone
        )
        self._calendar = calendar
        self._around = around
        self._clock, self._schedule = around.clock, around.schedule
        self._flag = FlagWait(around.flag, around.clock, self._schedule.startup_timeout_s)
        self._missed: tuple[str | None, str] | None = None  # the flag's problem, the ERROR of it
        self._checked: Session | None = None  # the session whose data was found good
        self._caveat = ""

    async def run(self) -> None:
        """Run until cancelled; a failure of this symbol alone ends here."""
        retry = Retry()
        while True:
            began, longest_s = self._clock.elapsed(), LONGEST_RETRY_S
            try:
                await self._sessions()
            except EwsError as error:
                self.failed(sentences(str(error)))
                if isinstance(error, DatabaseUnavailable):
                    longest_s = DATABASE_RETRY_S
            except Exception as error:  # the border where any failure becomes a state
                log.exception("Unexpected failure", symbol=self.symbol)
                self.failed(sentences(f"{type(error).__name__}: {error}"))
            if retry.again:
                self._around.failed_again()
            wait_s = retry.wait_s(self._clock.elapsed() - began, longest_s)
            wait_s = self._clock.span(wait_s, at_least_real=1.0)
            # Before any bar closes: those cut short by the failure must say so.
            self._around.collector.missed(self.symbol, self._clock.now() + wait_s)
            await self._clock.sleep(wait_s)

    def failed(self, reason: str) -> None:
        """Show ERROR."""
        self.change(ServiceState.ERROR, reason)

    def change(self, state: ServiceState, reason: str) -> None:
        """Enter ``state``, and tell it when it is news."""
        change = self.states.change(state, reason, self._clock.now())
        if change is not None:
            self._around.changed(self.symbol, change)

    async def _sessions(self) -> None:
        await self._reach_database()
        while True:
            session = self._calendar.current_or_next(self._clock.now())
            if session == self._checked and session.opens <= self._clock.now():
                # A failure in mid-session: neither a withdrawn flag nor an absent database may
                # keep the ticks of a session that was cleared from being journaled.
                self.change(ServiceState.CHECKING_DATA, "Checked before this session; going on.")
            else:
                await self._flag.wait(self._show_flag, self._is_usable_without_flag)
                await self._check_data()
            now = self._clock.now()
            session = self._calendar.current_or_next(now)
            if now < session.opens - self._schedule.pre_open_s:
                await self._until_near(
                    session, f"The next session opens {self._local(session.opens)}.{self._caveat}"
                )
                continue
            self._checked = session
            began = "opens" if now < session.opens else "has been open since"
            self.change(
                ServiceState.READY,
                f"The session {began} {self._local(session.opens)}.{self._caveat}",
            )
            session = await self._collect(session)
            following = self._calendar.next_after(self._clock.now())
            await self._until_near(
                following,
                f"The session of {session.day} is over; the next opens {self._local(following.opens)}.",
            )

    async def _reach_database(self) -> None:
        """Connect; a session whose data was found good does not wait for that."""
        session = self._calendar.current_or_next(self._clock.now())
        if self.data.good_at(session) is None:
            await self._around.connect()
            return
        with contextlib.suppress(DatabaseUnavailable):  # it is told by whoever needs it
            await _soon(self._around.connect())

    async def look_again(self) -> None:
        """Measure what was measured before; what could not be before the session is mended now."""
        overdue = self.data.overdue
        await self.data.look_again()
        if not overdue or self.data.overdue:
            return
        with contextlib.suppress(StorageError):
            await self._measured(show=False)
        current, self._caveat, caveat = self.states.current, "", self._caveat
        if caveat:
            self.change(current.state, current.reason.replace(caveat, ""))

    async def _until_near(self, session: Session, reason: str) -> None:
        """Return ``pre_open_s`` before ``session``, the next one. Or as soon as it is not: a clock
        that was ahead for a moment has ended a session that goes on once it is set back.
        """
        clock, leadership = self._clock, self._around.leadership
        self.change(ServiceState.MARKET_CLOSED, reason)
        near = session.opens - self._schedule.pre_open_s
        while (left := near - clock.now()) > 0:
            if self._calendar.current_or_next(clock.now()) != session:
                return
            if leadership is not None:
                # Between sessions there is work, too, which one instance alone does. Each time: who loses
                # the fence meanwhile wants it no more, and its bars would not be stored.
                leadership.want()
                told = sentences(reason, leadership.reason) if leadership.reason else reason
                self.change(ServiceState.MARKET_CLOSED, told)
            await clock.sleep(min(left, clock.span(CLOCK_LOOK_S, at_least_real=CLOCK_LOOK_S)))

    async def _is_usable_without_flag(self) -> bool:
        """Whether to go on by the data alone, repaired where that is due; else the state is ERROR."""
        minutes = self._schedule.startup_timeout_s / 60
        assessment = await self._measured()
        if usable(assessment) or self._schedule.l0_policy == "degraded":
            log.warning(
                "No L0 ready signal: going on by the data alone",
                symbol=self.symbol,
                minutes=minutes,
            )
            return True
        reason = (
            f"No L0 ready signal after {minutes:g} minutes, and the data is not usable without "
            f"it: {self.data.why(assessment)}"
        )
        if (for_good := self.data.irreplaceable(assessment)) is not None:
            self.change(ServiceState.WAITING_L0, sentences(reason, f"{for_good}: {_WHAT_THEN}"))
            return False
        self._missed = (self._around.flag.read().problem, sentences(reason))
        self.failed(sentences(reason))
        return False

    async def _check_data(self) -> None:
        self._check_on("Measuring freshness and completeness of L0.")
        self._caveat = ""
        session = self._calendar.current_or_next(self._clock.now())
        good_at = self.data.good_at(session)
        try:
            assessment = await self._measured(soon=good_at is not None)
        except DatabaseUnavailable as error:
            if good_at is None:
                raise
            self._go_on(error, good_at)
            return
        if self._schedule.l0_policy == "strict":
            assessment = await self._replaced(assessment)
        self.data.settle()
        if not usable(assessment):
            # Whoever looks at the state must not take it for the usual one.
            reason = self.data.why(assessment)
            self._caveat = f" On L0 data that is not usable (L0_POLICY=degraded): {reason}"
            log.warning(
                "Going live on unusable L0 data, as L0_POLICY=degraded asks",
                symbol=self.symbol,
                why=reason,
            )
        if self.states.state in (ServiceState.ERROR, ServiceState.WAITING_L0):
            self.change(ServiceState.CHECKING_DATA, f"Measured again; going on.{self._caveat}")
        log.info(
            "L0 data checked",
            symbol=self.symbol,
            freshness_hours=assessment.data_freshness_hours,
            completeness_percentage=assessment.completeness_percentage,
            missing_slots=assessment.missing_slots,
        )

    def _go_on(self, error: DatabaseUnavailable, good_at: float) -> None:
        """PostgreSQL is away, and since the data was found good no slot has been due."""
        self._caveat = (
            f" PostgreSQL cannot be reached; the data was found good at {self._local(int(good_at))}, and no "
            "slot was due since. It is measured when PostgreSQL is back."
        )
        self.data.go_on(error)
        self.change(ServiceState.CHECKING_DATA, f"Going on.{self._caveat}")
        log.warning(
            "Going on without PostgreSQL, on data found good before",
            symbol=self.symbol,
            reason=str(error),
        )

    async def _replaced(self, assessment: Assessment) -> Assessment:
        """Data that can be used. Waits while nothing has failed, and yet whole bars lack.

        :raises L0Error: why it cannot be used.
        """
        while not usable(assessment):
            why = self.data.why(assessment)
            if (for_good := self.data.irreplaceable(assessment)) is None:
                raise L0Error(why)
            # Somebody else may bring whole bars, or allow to go on without them.
            self.change(ServiceState.WAITING_L0, sentences(why, f"{for_good}: {_WHAT_THEN}"))
            await self._clock.sleep(self._clock.span(LOOK_WITHOUT_FLAG_S, at_least_real=1.0))
            assessment = await self._measured()
        return assessment

    async def _measured(self, *, show: bool = True, soon: bool = False) -> Assessment:
        """The data as it is, repaired where that is needed and due, and ours to do.

        :param show: in the state, what is done.
        :param soon: nobody waits for a PostgreSQL that hangs.
        """
        assessment = await (_soon(self.data.assess()) if soon else self.data.assess())
        if not usable(assessment) and self.data.repair_is_due and await self._may_work():
            if show:
                self._check_on(f"Repairing by L0 incremental: {self.data.why(assessment)}")
            assessment = await self.data.repair()
        return assessment

    async def _may_work(self) -> bool:
        leadership = self._around.leadership
        return leadership is None or await leadership.asked()

    def _check_on(self, reason: str) -> None:
        """Show what the check of the data does. ERROR stays until it has found something else."""
        if self.states.state is not ServiceState.ERROR:
            self.change(ServiceState.CHECKING_DATA, reason)

    async def _collect(self, session: Session) -> Session:
        """Collect ``session``, and those that follow it without a pause; the last one."""
        lead = self._clock.span(CONNECT_LEAD_S, at_least_real=3.0)
        await self._clock.sleep_until(session.opens - lead)
        if await self._lead(session):
            await self._around.collector.collect(self.symbol, self._until_over(session))
        return session if self._checked is None else self._checked

    async def _lead(self, session: Session) -> bool:
        """Wait until this instance is the one that collects; ``False``: the session ended before."""
        if self._around.leadership is None:
            return True
        claiming = asyncio.create_task(self._around.leadership.claim(self._stand_by), name="claim")
        over = asyncio.create_task(self._clock.sleep_until(session.closes), name="session-over")
        try:
            await asyncio.wait({claiming, over}, return_when=asyncio.FIRST_COMPLETED)
            if claiming.done():
                claiming.result()
            return claiming.done()
        finally:
            for task in (claiming, over):
                task.cancel()
            await asyncio.gather(claiming, over, return_exceptions=True)

    def _stand_by(self, reason: str) -> None:
        self.change(ServiceState.READY, reason)

    async def _until_over(self, session: Session) -> None:
        """Return when the session is over. Raises ``EpochFenced`` once another instance collects."""
        leadership = self._around.leadership
        if leadership is None:
            await self._session_clock(session)
            return
        timer = asyncio.create_task(
            self._session_clock(session), name=f"session-clock-{self.symbol}"
        )
        fenced = asyncio.create_task(leadership.lost(), name=f"fenced-{self.symbol}")
        try:
            await asyncio.wait({timer, fenced}, return_when=asyncio.FIRST_COMPLETED)
            if fenced.done():
                fenced.result()
                raise leadership.fenced()
            timer.result()
        finally:
            for task in (timer, fenced):
                task.cancel()
            await asyncio.gather(timer, fenced, return_exceptions=True)

    async def _session_clock(self, session: Session) -> None:
        clock = self._clock
        following: Session | None = session
        while following is not None:
            session = self._checked = following
            self.data.cleared(session)
            await clock.sleep_until(session.opens)
            self.change(
                ServiceState.ACTIVE,
                f"Collecting until {self._local(session.closes)}.{self._caveat}",
            )
            await clock.sleep_until(session.closes)
            following = self._calendar.open_session(session.closes)
        # Ticks in flight: stamped before the close, not here yet.
        await clock.sleep(clock.span(self._schedule.close_drain_s, MIN_REAL_GRACE_S))

    def _show_flag(self, seen: FlagState) -> None:
        note_folder(seen, self._around.failures)
        # An ERROR of another cause is over once the flag is waited for again.
        current = self.states.current
        missed = current.state is ServiceState.ERROR and self._missed == (
            seen.problem,
            current.reason,
        )
        if not seen.ready and not missed:
            problem = seen.problem or "Waiting for the L0 ready signal."
            self.change(ServiceState.WAITING_L0, sentences(problem, *self.data.last_repair()))

    def _local(self, instant: int) -> str:
        return iso_local(instant, self._calendar.zone)


async def _soon(asked: Awaitable[Answer]) -> Answer:
    """What is asked of PostgreSQL, within ``PATIENCE_S``. Not awaited longer, whatever holds it up.

    :raises DatabaseUnavailable: there was no answer.
    """
    task = asyncio.ensure_future(asked)
    try:
        await asyncio.wait({task}, timeout=PATIENCE_S)
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(lambda one: one.cancelled() or one.exception())
    if not task.done():
        raise DatabaseUnavailable(f"PostgreSQL did not answer within {PATIENCE_S:g} s.")
    return task.result()
