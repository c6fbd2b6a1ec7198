"""The life of the service: the lifecycles of its symbols, side by side, and what they share.

Each symbol has its own state, its own hours and its own failures; the state of the service is that of the
symbol which is furthest (``states.combined``). What all of them need (journal, bar clock, a part that
interrupts) fails for all: every symbol is in ERROR, and all begin anew with back-off.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import (
    DatabaseUnavailable,
    EwsError,
    sentences,
)
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.feeds.base import Feed
from enhanced_websocket_service.l0.readiness import ReadyFlag
from enhanced_websocket_service.l0.validator import Assessment, worst
from enhanced_websocket_service.market.calendar import TradingCalendar

from .assessment_file import AssessmentFile
from .collector import Collector
from .data_check import History
from .leadership import Leadership
from .pipeline import Pipeline
from .states import ServiceState, StateChange, StateMachine, combined
from .supervisor import being_cancelled
from .symbol_lifecycle import (
    DATABASE_RETRY_S,
    LONGEST_RETRY_S,
    MIN_REAL_GRACE_S,
    Retry,
    Schedule,
    Surroundings,
    SymbolLifecycle,
    note_folder,
)

log = structlog.get_logger(__name__)

INITIALIZING_FOR_S = 10.0
"""Real seconds for which an unreachable database is "starting" rather than an error."""
_UNWELL = frozenset({ServiceState.ERROR, ServiceState.WAITING_L0})
"""States of one symbol among several that ``/health`` names."""


class Lifecycle:
    """Drives the service from INITIALIZING to SHUTDOWN.

    :param calendars: the symbols, each with its calendar.
    :param states: the service's state; of several symbols it knows no order.
    :param connect: opens the database and brings its schema up to date; raises ``EwsError``.
    :param make_feed: a fresh feed; it is told its symbols.
    :param on_change: told of every change of the service's state; must not block.
    :param leadership: whether this instance is the one that collects; ``None``: there is no other.
    :param kept: remembers over restarts when the data was found good; ``None``: nothing does.
    :param on_symbol: told that one of several symbols has changed its state; must not block.
    :param collected_until: by symbol, until when it was collected; unix seconds UTC.
    :param check: raises ``EwsError`` while trying again would be useless; the state stays ERROR then.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        calendars: Mapping[str, TradingCalendar],
        states: StateMachine,
        flag: ReadyFlag,
        history: History,
        pipeline: Pipeline,
        connect: Callable[[], Awaitable[None]],
        make_feed: Callable[[], Feed],
        on_change: Callable[[StateChange], None],
        on_symbol: Callable[[], None] = lambda: None,
        schedule: Schedule,
        failures: Failures,
        leadership: Leadership | None = None,
        kept: AssessmentFile | None = None,
        collected_until: Mapping[str, float] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._states = states
        self._flag = flag
        self._history = history
        self._pipeline = pipeline
        self._connect = connect
        self._on_change = on_change
        self._on_symbol = on_symbol
        self._late_grace_s = schedule.late_grace_s
        self._failures = failures
        self._check = check
        self._connecting = asyncio.Lock()
        self._interruption: EwsError | None = None
        self._interrupted = asyncio.Event()
        self._together = False  # several symbols change their state at once
        self._leadership = leadership
        self._collector = Collector(clock, pipeline, make_feed, collected_until or {})
        around = Surroundings(
            clock=clock,
            flag=flag,
            history=history,
            failures=failures,
            schedule=schedule,
            collector=self._collector,
            leadership=leadership,
            kept=kept,
            connect=self._connected,
            changed=self._symbol_changed,
            failed_again=self._stand_back,
        )
        self.symbols = {
            symbol: SymbolLifecycle(symbol, calendar, around, alone=len(calendars) == 1)
            for symbol, calendar in calendars.items()
        }

    @property
    def feed(self) -> Feed | None:
        """The feed of all symbols that are collected now."""
        return self._collector.feed

    @property
    def current(self) -> StateChange:
        """The state, its reason and since when."""
        return self._states.current

    @property
    def assessment(self) -> Assessment | None:
        """The worst of what was found of the symbols' data last."""
        found = [one.data.assessment for one in self.symbols.values()]
        known = [one for one in found if one is not None]
        return worst(known) if known else None

    @property
    def assessed_at(self) -> float | None:
        """When the data of a symbol was measured last."""
        known = (one.data.assessed_at for one in self.symbols.values())
        return max((at for at in known if at is not None), default=None)

    async def run(self) -> None:
        """Run until cancelled."""
        retry = Retry()
        while True:
            began, longest_s = self._clock.elapsed(), LONGEST_RETRY_S
            # Before any bar closes: those cut short by the failure must say so.
            for symbol in self.symbols:
                self._collector.missed(symbol, self._clock.now())
            self._interrupted.clear()  # what failed while we were down is tried anew
            try:
                # On a disk that is still full the state would become ACTIVE and /health good, from
                # one retry to the next, until another tick came that nobody could keep.
                self._check()
                async with asyncio.TaskGroup() as group:
                    group.create_task(_for_ever(self._close_bars()), name="bar-clock")
                    for symbol, one in self.symbols.items():
                        group.create_task(_for_ever(one.run()), name=f"sessions-{symbol}")
                    group.create_task(self._watch_interruptions(), name="interruptions")
            except EwsError as error:
                self._show_all(ServiceState.ERROR, sentences(str(error)))
            except ExceptionGroup as failures:  # the border where any failure becomes a state
                reason = sentences(*dict.fromkeys(_leaves(failures)))
                errors = _leaf_errors(failures)
                if not all(isinstance(one, EwsError) for one in errors):
                    log.exception("Unexpected failure")
                if all(isinstance(one, DatabaseUnavailable) for one in errors):
                    longest_s = DATABASE_RETRY_S
                self._show_all(ServiceState.ERROR, reason)
            if retry.again:
                self._stand_back()
            wait_s = retry.wait_s(self._clock.elapsed() - began, longest_s)
            await self._clock.sleep(self._clock.span(wait_s, at_least_real=1.0))

    def interrupt(self, error: EwsError) -> None:
        """A part that runs beside the lifecycle failed so badly that the state must be ERROR.

        Retried like any other failure.
        """
        self._interruption = error
        self._interrupted.set()

    def symbol_states(self) -> dict[str, StateChange]:
        """The state of each symbol, its reason and since when."""
        return {symbol: one.states.current for symbol, one in self.symbols.items()}

    def state_of(self, symbol: str) -> ServiceState:
        """The state of one symbol."""
        return self.symbols[symbol].states.state

    def enter_shutdown(self, reason: str) -> None:
        """Show SHUTDOWN; the caller has cancelled ``run`` and drains the rest."""
        self._show_all(ServiceState.SHUTDOWN, reason)

    async def watch_data(self, every_s: float = 60.0) -> None:
        """Look at L0's folders and measure its data now and then, so that ``/health`` and ``/status`` show
        the present; until cancelled.
        """
        while True:
            await self._history.check_files()
            note_folder(self._flag.read(), self._failures)
            await self._clock.sleep(self._clock.span(every_s, at_least_real=5.0))
            for one in self.symbols.values():
                await one.look_again()

    async def _connected(self) -> None:
        """Open the database, for whoever asks first; ``INITIALIZING_FOR_S`` it may take at the start."""
        loop = asyncio.get_running_loop()
        started, retry_s = loop.time(), 0.25
        async with self._connecting:
            while True:
                try:
                    await self._connect()
                except EwsError as error:
                    failed = self._states.state is ServiceState.ERROR
                    if failed or loop.time() - started > INITIALIZING_FOR_S:
                        raise
                    for one in self.symbols.values():
                        if one.states.state is ServiceState.INITIALIZING:
                            one.change(ServiceState.INITIALIZING, str(error))
                    await asyncio.sleep(retry_s)
                    retry_s = min(2 * retry_s, 2.0)
                else:
                    return

    async def _watch_interruptions(self) -> None:
        await self._interrupted.wait()
        self._interrupted.clear()
        assert self._interruption is not None
        raise self._interruption

    async def _close_bars(self) -> None:
        clock, pipeline = self._clock, self._pipeline
        while True:
            grace = clock.span(self._late_grace_s, at_least_real=MIN_REAL_GRACE_S)
            pipeline.on_time(clock.now(), grace)
            # Late ticks make bars due at once, so look again soon even when none is due later.
            soon = clock.now() + clock.span(1.0, at_least_real=0.05)
            due = pipeline.next_close()
            # Not until an instant: a clock that is set back would take long to get there.
            await clock.sleep((soon if due is None else min(soon, due)) - clock.now())
            await asyncio.sleep(0)

    def _stand_back(self) -> None:
        """It failed again; when nothing is collected, another instance may be able to."""
        if self._leadership is not None and self._states.state is ServiceState.ERROR:
            self._leadership.stand_back()

    def _show_all(self, state: ServiceState, reason: str) -> None:
        """Enter ``state`` with all symbols at once: that of the service changes once."""
        self._together = True
        try:
            for one in self.symbols.values():
                one.change(state, reason)
        finally:
            self._together = False
        self._show()

    def _symbol_changed(self, symbol: str, change: StateChange) -> None:
        if len(self.symbols) > 1:
            self._tell_symbol(symbol, change)
        if not self._together:
            self._show()

    def _show(self) -> None:
        """The state of the service, when it is news."""
        state, reason = combined(self.symbol_states())
        told = self._states.change(state, reason, self._clock.now())
        if told is not None:
            self._on_change(told)

    def _tell_symbol(self, symbol: str, change: StateChange) -> None:
        """What the state of the service does not say: how this one of its symbols is."""
        log.info("Symbol state", symbol=symbol, state=change.state.value, reason=change.reason)
        self._on_symbol()
        if change.state in _UNWELL:
            self._failures.failed(symbol, f"{change.state.value}: {change.reason}")
        elif change.state is not ServiceState.CHECKING_DATA:
            self._failures.succeeded(symbol)


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
