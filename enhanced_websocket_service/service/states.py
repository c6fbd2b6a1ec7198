"""The eight states of the service and the changes between them. Pure.

A state change always has a reason; an illegal one raises, because it means that the lifecycle and
this table no longer agree.
"""

from collections import deque
from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True)
class StateChange:
    """One entry of the history: ``state`` since ``at`` (unix seconds UTC), because of ``reason``."""

    state: ServiceState
    reason: str
    at: float


class StateMachine:
    """Where the service is, since when, why, and how it got there."""

    def __init__(self, now: float, reason: str = "Starting.") -> None:
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
        elif state not in ALLOWED[current.state]:
            raise InvalidTransition(f"{current.state} -> {state} ({reason})")
        change = StateChange(state, reason, now)
        self._history.append(change)
        return change
