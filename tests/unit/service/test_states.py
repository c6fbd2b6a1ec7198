"""The table of state changes, as the requirements and decisions describe the states."""

import pytest

from enhanced_websocket_service.errors import InvalidTransition
from enhanced_websocket_service.service.states import ALLOWED, ServiceState, StateMachine

S = ServiceState


def test_the_eight_states_of_the_requirements() -> None:
    assert {state.name for state in S} == {
        "INITIALIZING",
        "WAITING_L0",
        "CHECKING_DATA",
        "READY",
        "ACTIVE",
        "MARKET_CLOSED",
        "ERROR",
        "SHUTDOWN",
    }
    assert all(state.value == state.name.lower() for state in S)


def test_a_whole_day_is_allowed_and_remembered_with_reasons() -> None:
    machine = StateMachine(0.0)
    day = [S.WAITING_L0, S.CHECKING_DATA, S.READY, S.ACTIVE, S.MARKET_CLOSED, S.CHECKING_DATA]
    for second, state in enumerate(day, start=1):
        change = machine.change(state, f"because {second}", float(second))
        assert change is not None
    assert [change.state for change in machine.history] == [S.INITIALIZING, *day]
    assert machine.current.reason == "because 6"


def test_every_state_can_fail_and_stop_and_error_recovers() -> None:
    for state in S:
        if state is not S.SHUTDOWN:
            assert S.SHUTDOWN in ALLOWED[state]
        if state not in (S.SHUTDOWN, S.ERROR):
            assert S.ERROR in ALLOWED[state]
    assert ALLOWED[S.ERROR] > {S.SHUTDOWN}
    assert not ALLOWED[S.SHUTDOWN]


@pytest.mark.parametrize("skipped", [S.READY, S.ACTIVE, S.MARKET_CLOSED])
def test_data_is_always_checked_first(skipped: ServiceState) -> None:
    machine = StateMachine(0.0)
    with pytest.raises(InvalidTransition, match=f"initializing -> {skipped}"):
        machine.change(skipped, "too early", 1.0)


def test_the_same_state_with_a_new_reason_is_a_change_and_with_the_old_one_is_none() -> None:
    machine = StateMachine(0.0, "Starting.")
    assert machine.change(S.INITIALIZING, "Starting.", 1.0) is None
    assert machine.change(S.INITIALIZING, "PostgreSQL is away.", 2.0) is not None
