"""The eight states of the service and the changes between them. Pure.

A state change always has a reason; an illegal one raises, because it means that the lifecycle and
this table no longer agree.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from enhanced_websocket_service.errors import InvalidTransition

HISTORY = 100


class ServiceState(StrEnum):
    """The states of the requirements, spelled as JSON shows them."""

    INITIALIZING = "initializing"
    WAITING_L0 = "waiting_l0"
    CHECKING_DATA = "checking_data"
    READY = "ready"
    ACTIVE = "active"
    MARKET_CLOSED = "market_closed"
    ERROR = "error"
    SHUTDOWN = "shutdown"


_S = ServiceState
ALLOWED: dict[ServiceState, frozenset[ServiceState]] = {
    _S.INITIALIZING: frozenset({_S.WAITING_L0, _S.CHECKING_DATA, _S.ERROR, _S.SHUTDOWN}),
    _S.WAITING_L0: frozenset({_S.CHECKING_DATA, _S.ERROR, _S.SHUTDOWN}),
    _S.CHECKING_DATA: frozenset({_S.READY, _S.MARKET_CLOSED, _S.WAITING_L0, _S.ERROR, _S.SHUTDOWN}),
    _S.READY: frozenset({_S.ACTIVE, _S.MARKET_CLOSED, _S.ERROR, _S.SHUTDOWN}),
    _S.ACTIVE: frozenset({_S.MARKET_CLOSED, _S.ERROR, _S.SHUTDOWN}),
    _S.MARKET_CLOSED: frozenset({_S.WAITING_L0, _S.CHECKING_DATA, _S.ERROR, _S.SHUTDOWN}),
    _S.ERROR: frozenset({_S.INITIALIZING, _S.WAITING_L0, _S.CHECKING_DATA, _S.SHUTDOWN}),
    _S.SHUTDOWN: frozenset(),
}


ANY: dict[ServiceState, frozenset[ServiceState]] = {
    state: frozenset() if state is _S.SHUTDOWN else frozenset(ServiceState) - {state}
    for state in ServiceState
}
"""For the state of several symbols together, each of which keeps to ``ALLOWED``."""
ORDER = (
    *(_S.ACTIVE, _S.READY, _S.MARKET_CLOSED, _S.CHECKING_DATA, _S.WAITING_L0, _S.INITIALIZING),
    *(_S.ERROR, _S.SHUTDOWN),
)
"""From the furthest on: a symbol that is well speaks before one that is not yet, or not any more."""


@dataclass(frozen=True, slots=True)
class StateChange:
    """One entry of the history: ``state`` since ``at`` (unix seconds UTC), because of ``reason``."""

    state: ServiceState
    reason: str
    at: float


class StateMachine:
    """Where the service is, since when, why, and how it got there."""

    def __init__(
        self,
        now: float,
        reason: str = "Starting.",
        *,
        allowed: Mapping[ServiceState, frozenset[ServiceState]] = ALLOWED,
    ) -> None:
        self._allowed = allowed
        self._history: deque[StateChange] = deque(maxlen=HISTORY)
        self._history.append(StateChange(ServiceState.INITIALIZING, reason, now))

    @property
    def current(self) -> StateChange:
        return self._history[-1]

    @property
    def state(self) -> ServiceState:
        return self._history[-1].state

    @property
    def history(self) -> Sequence[StateChange]:
        """The last changes, oldest first."""
        return tuple(self._history)

    def change(self, state: ServiceState, reason: str, now: float) -> StateChange | None:
        """Enter ``state``; in the same state only the reason changes.

        :returns: the change, or ``None`` when neither state nor reason is new.
        :raises InvalidTransition: when the table does not allow it.
        """
        current = self.current
        if state is current.state:
            if reason == current.reason:
                return None
        elif state not in self._allowed[current.state]:
            raise InvalidTransition(f"{current.state} -> {state} ({reason})")
        change = StateChange(state, reason, now)
        self._history.append(change)
        return change


def combined(symbols: Mapping[str, StateChange]) -> tuple[ServiceState, str]:
    """The state of a service over its symbols, and why: that of the symbol which is furthest by ``ORDER``.

    The reason is that of all symbols in this state; it names them where there is more than one symbol.
    """
    state = min((change.state for change in symbols.values()), key=ORDER.index)
    by_reason: dict[str, list[str]] = {}
    for symbol, change in symbols.items():
        if change.state is state:
            by_reason.setdefault(change.reason, []).append(symbol)
    if len(symbols) == 1:
        return state, next(iter(by_reason))
    return state, " ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
