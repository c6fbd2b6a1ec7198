"""What the service does when: waits for L0, checks the data, collects the session, sleeps.

One endless loop drives the state machine; any failure becomes ERROR with its reason and is retried
with back-off. ERROR is left when something else is found than before: a retry that finds the same fault
changes neither state nor reason, and the last failure of a repair stays in both until one succeeds.
Owns the order of things, not the things: they are handed in.
"""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, Protocol

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
from enhanced_websocket_service.feeds.base import Feed
from enhanced_websocket_service.l0.readiness import FlagState, ReadyFlag
from enhanced_websocket_service.l0.validator import Assessment
from enhanced_websocket_service.market.calendar import Session, TradingCalendar, iso_local

from .leadership import Leadership
from .pipeline import Pipeline
from .states import ServiceState, StateChange, StateMachine
from .supervisor import being_cancelled

log = structlog.get_logger(__name__)

MIN_REAL_GRACE_S = 2.0
"""Messages in flight need real time, however fast the clock runs."""
CONNECT_LEAD_S = 30.0
"""How long before the open the vendor's socket is connected."""
FIRST_RETRY_S, LONGEST_RETRY_S = 2.0, 60.0
DATABASE_RETRY_S = 5.0
"""The longest wait for an unreachable database: until it is seen to be back, no price is collected."""
FIRST_REPAIR_PAUSE_S, LONGEST_REPAIR_PAUSE_S = 60.0, 900.0
INITIALIZING_FOR_S = 10.0
"""Real seconds for which an unreachable database is "starting" rather than an error."""
CLOCK_LOOK_S = 1.0
"""Real seconds after which somebody who waits for a far instant looks whether the clock was set."""


REPAIR, MEASUREMENT, SIGNALS = "L0 repair", "L0 measurement", "ready signals folder"
"""Parts as ``Failures`` calls them."""


class History(Protocol):
    """The L0 data as the lifecycle needs it."""

    async def assess(self) -> Assessment:
        """Measure freshness and completeness now. Raises ``StorageError``."""
        ...

    async def repair(self) -> None:
        """Fetch what is missing since the last complete bar. Raises ``L0Error``."""
        ...

    async def check_files(self) -> None:
        """Find out whether the backup files can be written; does not raise."""
        ...


@dataclass(frozen=True, slots=True)
class Schedule:
    """The lifecycle's settings; seconds of the clock."""

    pre_open_s: float = 900.0
    close_drain_s: float = 5.0
    late_grace_s: float = 60.0
    startup_timeout_s: float = 3600.0
    l0_policy: Literal["strict", "degraded"] = "strict"


class Lifecycle:
    """Drives the service from INITIALIZING to SHUTDOWN.

    :param connect: opens the database and brings its schema up to date; raises ``EwsError``.
    :param make_feed: a fresh feed for each session.
    :param on_change: told of every state change; must not block.
    :param leadership: whether this instance is the one that collects; ``None``: there is no other.
    :param check: raises ``EwsError`` while trying again would be useless; the state stays ERROR then.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        calendar: TradingCalendar,
        states: StateMachine,
        flag: ReadyFlag,
        history: History,
        pipeline: Pipeline,
        connect: Callable[[], Awaitable[None]],
        make_feed: Callable[[], Feed],
        on_change: Callable[[StateChange], None],
        schedule: Schedule,
        failures: Failures,
        leadership: Leadership | None = None,
        collected_until: float = 0.0,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._calendar = calendar
        self._states = states
        self._flag = flag
        self._history = history
        self._pipeline = pipeline
        self._connect = connect
        self._make_feed = make_feed
        self._on_change = on_change
        self._schedule = schedule
        self._failures = failures
        self._leadership = leadership
        self._collected_until = collected_until
        self._check = check
        self._next_repair = -math.inf
        self._repair_pause_s = FIRST_REPAIR_PAUSE_S / 2
        self._repaired_at: float | None = None  # by the last repair, the data is still not usable
        self._missed: tuple[str | None, str] | None = None  # the flag's problem, the ERROR of it
        self._checked: Session | None = None  # the session whose data was found good
        self._caveat = ""
        self._interruption: EwsError | None = None
        self._interrupted = asyncio.Event()
        self.feed: Feed | None = None
        self.assessment: Assessment | None = None
        self.assessed_at: float | None = None

    async def run(self) -> None:
        """Run until cancelled."""
        retry_s = FIRST_RETRY_S
        while True:
            began, longest_s = self._clock.now(), LONGEST_RETRY_S
            # Before any bar closes: those cut short by the failure must say so.
            self._pipeline.interrupted(self._collected_until, began)
            self._interrupted.clear()  # what failed while we were down is tried anew
            try:
                # On a disk that is still full the state would become ACTIVE and /health good, from
                # one retry to the next, until another tick came that nobody could keep.
                self._check()
                async with asyncio.TaskGroup() as group:
                    group.create_task(_for_ever(self._close_bars()), name="bar-clock")
                    group.create_task(_for_ever(self._sessions()), name="sessions")
                    group.create_task(self._watch_interruptions(), name="interruptions")
            except EwsError as error:
                self._change(ServiceState.ERROR, sentences(str(error)))
            except ExceptionGroup as failures:  # the border where any failure becomes a state
                reason = sentences(*dict.fromkeys(_leaves(failures)))
                errors = _leaf_errors(failures)
                if not all(isinstance(one, EwsError) for one in errors):
                    log.exception("Unexpected failure")
                if all(isinstance(one, DatabaseUnavailable) for one in errors):
                    longest_s = DATABASE_RETRY_S
                self._change(ServiceState.ERROR, reason)
                if retry_s > FIRST_RETRY_S and self._leadership is not None:
                    self._leadership.stand_back()  # another instance may be able to collect
            if self._clock.now() - began > 10 * LONGEST_RETRY_S:
                retry_s = FIRST_RETRY_S
            wait_s = min(retry_s, longest_s)
            await self._clock.sleep(self._clock.span(wait_s, at_least_real=1.0))
            retry_s = min(2 * retry_s, LONGEST_RETRY_S)

    def interrupt(self, error: EwsError) -> None:
        """A part that runs beside the lifecycle failed so badly that the state must be ERROR.

        Retried like any other failure.
        """
        self._interruption = error
        self._interrupted.set()

    @property
    def current(self) -> StateChange:
        """The state, its reason and since when."""
        return self._states.current

    def enter_shutdown(self, reason: str) -> None:
        """Show SHUTDOWN; the caller has cancelled ``run`` and drains the rest."""
        self._change(ServiceState.SHUTDOWN, reason)

    async def watch_data(self, every_s: float = 60.0) -> None:
        """Look at L0's folders and measure its data now and then, so that ``/health`` and ``/status`` show
        the present; until cancelled.
        """
        while True:
            await self._history.check_files()
            self._note_folder(self._flag.read())
            await self._clock.sleep(self._clock.span(every_s, at_least_real=5.0))
            if self.assessment is not None:
                try:
                    await self._assess()
                except StorageError as error:
                    self._failures.failed(MEASUREMENT, str(error))

    async def _assess(self) -> Assessment:
        self.assessment = await self._history.assess()
        self.assessed_at = self._clock.now()
        self._failures.succeeded(MEASUREMENT)
        if _usable(self.assessment):
            self._repaired_at = None
            self._failures.forgotten(REPAIR)  # whoever mended it
        return self.assessment

    def _note_folder(self, flag: FlagState) -> None:
        if flag.blind:
            self._failures.failed(SIGNALS, flag.problem or "It cannot be read.")
        else:
            self._failures.succeeded(SIGNALS)

    async def _sessions(self) -> None:
        await self._initialise()
        while True:
            session = self._calendar.current_or_next(self._clock.now())
            if session == self._checked and session.opens <= self._clock.now():
                # A failure in mid-session: neither a withdrawn flag nor an absent database may
                # keep the ticks of a session that was cleared from being journaled.
                self._change(ServiceState.CHECKING_DATA, "Checked before this session; going on.")
            else:
                await self._wait_for_flag()
                await self._check_data()
            now = self._clock.now()
            session = self._calendar.current_or_next(now)
            if now < session.opens - self._schedule.pre_open_s:
                self._change(
                    ServiceState.MARKET_CLOSED,
                    f"The next session opens {iso_local(session.opens)}.{self._caveat}",
                )
                if self._leadership is not None:
                    # Between sessions there is work, too, which one instance alone does.
                    self._leadership.want()
                await self._until_near(session)
                continue
            self._checked = session
            began = "opens" if now < session.opens else "has been open since"
            self._change(
                ServiceState.READY,
                f"The session {began} {iso_local(session.opens)}.{self._caveat}",
            )
            await self._collect(session)
            following = self._calendar.next_after(self._clock.now())
            self._change(
                ServiceState.MARKET_CLOSED,
                f"The session of {session.day} is over; the next opens {iso_local(following.opens)}.",
            )
            await self._until_near(following)

    async def _until_near(self, session: Session) -> None:
        """Return ``pre_open_s`` before ``session``, the next one. Or as soon as it is not: a clock
        that was ahead for a moment has ended a session that goes on once it is set back.
        """
        clock = self._clock
        near = session.opens - self._schedule.pre_open_s
        while (left := near - clock.now()) > 0:
            if self._calendar.current_or_next(clock.now()) != session:
                return
            await clock.sleep(min(left, clock.span(CLOCK_LOOK_S, at_least_real=CLOCK_LOOK_S)))

    async def _initialise(self) -> None:
        loop = asyncio.get_running_loop()
        started, retry_s = loop.time(), 0.25
        while True:
            try:
                await self._connect()
            except EwsError as error:
                failed = self._states.state is ServiceState.ERROR
                if failed or loop.time() - started > INITIALIZING_FOR_S:
                    raise
                self._change(ServiceState.INITIALIZING, str(error))
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, 2.0)
            else:
                return

    async def _wait_for_flag(self) -> None:
        waiting = asyncio.create_task(self._flag.wait(self._show_flag), name="l0-flag")
        timer = asyncio.create_task(
            self._clock.sleep(self._schedule.startup_timeout_s), name="l0-timeout"
        )
        try:
            await asyncio.wait({waiting, timer}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                waiting.result()
                return
        finally:
            for task in (waiting, timer):
                task.cancel()
            await asyncio.gather(waiting, timer, return_exceptions=True)
        assessment = await self._assess()
        minutes = self._schedule.startup_timeout_s / 60
        if not _usable(assessment) and self._schedule.l0_policy == "strict":
            reason = (
                f"No L0 ready signal after {minutes:g} minutes, and the data is not usable without "
                f"it: {self._why(assessment)}"
            )
            self._missed = (self._flag.read().problem, reason)
            raise L0Error(reason)
        log.warning("No L0 ready signal: going on by the data alone", minutes=minutes)

    async def _check_data(self) -> None:
        self._check_on("Measuring freshness and completeness of L0.")
        self._caveat = ""
        assessment = await self._assess()
        if not _usable(assessment) and self._repair_is_due() and self._may_work:
            self._check_on(f"Repairing by L0 incremental: {self._why(assessment)}")
            await self._repair()
            assessment = await self._assess()
        if not _usable(assessment) and self._schedule.l0_policy == "strict":
            raise L0Error(self._why(assessment))
        # No repair is due until the next session is near.
        self._next_repair = -math.inf
        self._repair_pause_s = FIRST_REPAIR_PAUSE_S / 2
        if not _usable(assessment):
            # Whoever looks at the state must not take it for the usual one.
            reason = self._why(assessment)
            self._caveat = f" On L0 data that is not usable (L0_POLICY=degraded): {reason}"
            log.warning("Going live on unusable L0 data, as L0_POLICY=degraded asks", why=reason)
        if self._states.state is ServiceState.ERROR:
            self._change(ServiceState.CHECKING_DATA, f"Measured again; going on.{self._caveat}")
        log.info(
            "L0 data checked",
            freshness_hours=assessment.data_freshness_hours,
            completeness_percentage=assessment.completeness_percentage,
            missing_slots=assessment.missing_slots,
        )

    @property
    def _may_work(self) -> bool:
        return self._leadership is None or self._leadership.may_work

    def _check_on(self, reason: str) -> None:
        """Show what the check of the data does. ERROR stays until it has found something else."""
        if self._states.state is not ServiceState.ERROR:
            self._change(ServiceState.CHECKING_DATA, reason)

    def _repair_is_due(self) -> bool:
        """The data is measured again every minute, but each repair costs a credit: when they do not
        help, they become rarer, or a night of retries would spend the credits of the session.
        """
        now = self._clock.now()
        # Further ahead than any pause: the clock was set back.
        return not now < self._next_repair <= now + LONGEST_REPAIR_PAUSE_S

    async def _repair(self) -> None:
        """Fetch what is missing; ``_why`` tells what came of it."""
        try:
            await self._history.repair()
        except EwsError as error:
            self._failures.failed(REPAIR, str(error))
        else:
            self._failures.succeeded(REPAIR)
        self._repaired_at = self._clock.now()
        self._repair_pause_s = min(2 * self._repair_pause_s, LONGEST_REPAIR_PAUSE_S)
        self._next_repair = self._repaired_at + self._repair_pause_s

    def _why(self, assessment: Assessment) -> str:
        """Why the data is not usable, and what became of the last repair."""
        return sentences(*assessment.reasons, *self._last_repair())

    def _last_repair(self) -> tuple[str, ...]:
        """A sentence on the last repair, while it has not mended the data."""
        failure = self._failures.of(REPAIR)
        if failure is not None:
            at, reason = iso_local(int(failure.last_at)), failure.reason.rstrip(".")
            told = f"The last repair failed at {at}: {reason}"
        elif self._repaired_at is not None:
            told = f"The repair at {iso_local(int(self._repaired_at))} brought too little"
        else:
            return ()
        if math.isfinite(self._next_repair):
            told += f"; the next is due {iso_local(int(self._next_repair))}"
        return (told,)

    async def _collect(self, session: Session) -> None:
        clock = self._clock
        lead = clock.span(CONNECT_LEAD_S, at_least_real=3.0)
        await clock.sleep_until(session.opens - lead)
        if not await self._lead(session):
            return
        self._pipeline.interrupted(self._collected_until, clock.now())
        feed = self.feed = self._make_feed()
        pump = asyncio.create_task(self._pump(feed), name="feed")
        timer = asyncio.create_task(self._session_clock(session), name="session-clock")
        fenced = asyncio.create_task(self._fenced(), name="fenced")
        try:
            await asyncio.wait({pump, timer, fenced}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
                raise EwsError("The feed ended in mid-session.")
            if fenced.done():
                fenced.result()
            else:
                timer.result()
        finally:
            told = pump.done()
            for task in (pump, timer, fenced):
                task.cancel()
            await asyncio.gather(pump, timer, fenced, return_exceptions=True)
            if not told and not pump.cancelled() and (error := pump.exception()) is not None:
                log.error("The last quotes of the feed could not be taken", error=repr(error))
            self.feed = None
            self._collected_until = clock.now()
            try:
                self._pipeline.flush_held()
            except EwsError as error:
                # An error here would replace the cancellation: the task group would take it for a
                # failure, and the session would begin again in the middle of a shutdown.
                log.error("Held quotes could not be journaled", error=str(error))

    async def _lead(self, session: Session) -> bool:
        """Wait until this instance is the one that collects; ``False``: the session ended before."""
        if self._leadership is None:
            return True
        claiming = asyncio.create_task(self._leadership.claim(self._stand_by), name="claim")
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
        self._change(ServiceState.READY, reason)

    async def _fenced(self) -> None:
        """Raise ``EpochFenced`` once another instance collects."""
        if self._leadership is None:
            await asyncio.Event().wait()
        else:
            await self._leadership.lost()
            raise self._leadership.fenced()

    async def _session_clock(self, session: Session) -> None:
        clock = self._clock
        await clock.sleep_until(session.opens)
        self._change(
            ServiceState.ACTIVE, f"Collecting until {iso_local(session.closes)}.{self._caveat}"
        )
        await clock.sleep_until(session.closes)
        # Ticks in flight: stamped before the close, not here yet.
        await clock.sleep(clock.span(self._schedule.close_drain_s, MIN_REAL_GRACE_S))

    async def _watch_interruptions(self) -> None:
        await self._interrupted.wait()
        self._interrupted.clear()
        assert self._interruption is not None
        raise self._interruption

    async def _pump(self, feed: Feed) -> None:
        batches = feed.__aiter__()
        try:
            async for batch in batches:
                self._pipeline.on_quotes(batch, self._clock.now())
        finally:
            await batches.aclose()
            # What was read from the socket, but not taken when the feed was closed.
            with contextlib.suppress(StopAsyncIteration):
                while True:
                    self._pipeline.on_quotes(await anext(batches), self._clock.now())

    async def _close_bars(self) -> None:
        clock, pipeline = self._clock, self._pipeline
        while True:
            grace = clock.span(self._schedule.late_grace_s, at_least_real=MIN_REAL_GRACE_S)
            pipeline.on_time(clock.now(), grace)
            # Late ticks make bars due at once, so look again soon even when none is due later.
            soon = clock.now() + clock.span(1.0, at_least_real=0.05)
            due = pipeline.next_close()
            # Not until an instant: a clock that is set back would take long to get there.
            await clock.sleep((soon if due is None else min(soon, due)) - clock.now())
            await asyncio.sleep(0)

    def _show_flag(self, seen: FlagState) -> None:
        self._note_folder(seen)
        # An ERROR of another cause is over once the flag is waited for again.
        missed = self._states.state is ServiceState.ERROR and self._missed == (
            seen.problem,
            self.current.reason,
        )
        if not seen.ready and not missed:
            problem = seen.problem or "Waiting for the L0 ready signal."
            self._change(ServiceState.WAITING_L0, sentences(problem, *self._last_repair()))

    def _change(self, state: ServiceState, reason: str) -> None:
        change = self._states.change(state, reason, self._clock.now())
        if change is not None:
            self._on_change(change)


async def _for_ever(part: Coroutine[Any, Any, None]) -> None:
    """Run a part that must not end: a task group takes one that does, or that a leaked cancellation
    ends, for done, and the state would stay ACTIVE with nobody collecting.
    """
    try:
        await part
    except asyncio.CancelledError:
        if being_cancelled():
            raise
    task = asyncio.current_task()
    raise EwsError(f"{task.get_name() if task else 'A part'} ended without being asked to.")


def _usable(assessment: Assessment) -> bool:
    return assessment.is_fresh and assessment.is_complete


def _leaf_errors(group: ExceptionGroup[Exception]) -> list[Exception]:
    leaves: list[Exception] = []
    for one in group.exceptions:
        leaves += _leaf_errors(one) if isinstance(one, ExceptionGroup) else [one]
    return leaves


def _leaves(group: ExceptionGroup[Exception]) -> list[str]:
    return [
        str(one) if isinstance(one, EwsError) else f"{type(one).__name__}: {one}"
        for one in _leaf_errors(group)
    ]
