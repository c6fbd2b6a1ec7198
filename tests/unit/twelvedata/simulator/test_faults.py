"""The fault board: what is known, what is refused."""

import pytest

from enhanced_websocket_service.twelvedata.simulator.faults import (
    FAULTS,
    BadFault,
    FaultBoard,
    described,
)


def test_switches_stay_and_actions_are_handed_on() -> None:
    board = FaultBoard()
    wanted = {"mute": True, "close": 1011, "garbage_frames": 2, "fails": "usd/cop,EURUSD"}
    assert board.apply(wanted) == [("close", 1011), ("garbage_frames", 2)]
    changed = {"mute": True, "fails": ["EUR/USD", "USD/COP"]}
    assert board.shown() == {**FaultBoard().shown(), **changed}
    assert board.apply({"drop": True, "mute": False, "fails": None}) == [("drop", True)]
    assert board.apply({"drop": False}) == []
    assert not board.mute
    assert board.fails == frozenset()


def test_clear_restores_everything() -> None:
    board = FaultBoard()
    board.apply({"mute": True, "rest_status": "500", "refuse_handshake": 401})
    board.clear()
    assert board.shown() == FaultBoard().shown()


@pytest.mark.parametrize(
    "wanted",
    [
        [],
        None,
        "mute",
        {"explode": True},
        {"mute": 1},
        {"close": 1006},
        {"close": "1000"},
        {"close": True},
        {"garbage_frames": 0},
        {"garbage_frames": True},
        {"refuse_handshake": 200},
        {"rest_status": 418},
        {"fails": [1]},
        {"fails": ["dollars"]},
        {"string_prices": "yes"},
    ],
)
def test_bad_faults_change_nothing(wanted: object) -> None:
    board = FaultBoard()
    also = {"no_bid_ask": True, **wanted} if isinstance(wanted, dict) else wanted
    with pytest.raises(BadFault):
        board.apply(also)
    assert board.shown() == FaultBoard().shown()


def test_a_refusal_lists_what_is_known() -> None:
    with pytest.raises(BadFault) as refused:
        FaultBoard().apply({"explode": True, "mute": 7})
    message = str(refused.value)
    assert "unknown fault 'explode'" in message
    assert "mute takes true, or a list of symbols, or null, not 7" in message
    for name in FAULTS:
        assert name in message


def test_every_switch_is_an_attribute_of_the_board() -> None:
    shown = FaultBoard().shown()
    assert set(shown) == {name for name, fault in FAULTS.items() if not fault.action}
    assert set(described()) == set(FAULTS)
