"""The table of state changes, as the requirements and decisions describe the states."""

import pytest

from enhanced_websocket_service.errors import InvalidTransition
from enhanced_websocket_service.service.states import (
    ALLOWED,
    ANY,
    ServiceState,
    StateChange,
    StateMachine,
    combined,
)

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


def changed(state: ServiceState, reason: str) -> StateChange:
    return StateChange(state, reason, 0.0)


def test_of_one_symbol_the_state_is_its_own() -> None:
    for state in ServiceState:
        assert combined({"USDCOP": changed(state, "Why.")}) == (state, "Why.")


def test_of_several_symbols_the_furthest_speaks() -> None:
    symbols = {
        "USDCOP": changed(ServiceState.MARKET_CLOSED, "Opens tomorrow."),
        "EURUSD": changed(ServiceState.ACTIVE, "Collecting."),
        "BTCUSD": changed(ServiceState.ERROR, "Not in the plan."),
        "ETHUSD": changed(ServiceState.ACTIVE, "Collecting."),
    }
    assert combined(symbols) == (ServiceState.ACTIVE, "EURUSD, ETHUSD: Collecting.")
    del symbols["EURUSD"], symbols["ETHUSD"]
    assert combined(symbols) == (ServiceState.MARKET_CLOSED, "USDCOP: Opens tomorrow.")
    del symbols["USDCOP"]
    assert combined(symbols | {"XAUUSD": changed(ServiceState.ERROR, "No history.")}) == (
        ServiceState.ERROR,
        "BTCUSD: Not in the plan. XAUUSD: No history.",
    )


def test_the_state_of_several_symbols_may_go_anywhere_but_out_of_the_end() -> None:
    states = StateMachine(0.0, allowed=ANY)
    for state in (ServiceState.ACTIVE, ServiceState.WAITING_L0, ServiceState.SHUTDOWN):
        assert states.change(state, "Why.", 1.0) is not None
    with pytest.raises(InvalidTransition):
        states.change(ServiceState.ACTIVE, "Why.", 2.0)
