"""The fault board: what is known, what is refused."""

import typing
from pathlib import Path

import pytest

from enhanced_websocket_service.twelvedata.simulator.fault_table import FAULTS
from enhanced_websocket_service.twelvedata.simulator.faults import (
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


PAGE = Path(__file__).parents[4] / "docs" / "reference" / "simulator.md"


def test_the_page_lists_every_fault_as_the_code_has_it() -> None:
    rows = ["| fault | kind | takes | does |", "|---|---|---|---|"]
    rows += [
        f"| `{name}` | {fault.kind} | {fault.takes} | {fault.does} |"
        for name, fault in FAULTS.items()
    ]
    before, after = "compared with the code by a test -->\n", "\n<!-- /faults -->"
    table = PAGE.read_text().partition(before)[2].partition(after)[0]
    assert table.splitlines() == rows


VALUES: dict[str, list[object]] = {
    "mute": [True, ["USD/COP"]],
    "mute_from_birth": [True, ["EUR/USD", "USD/COP"]],
    "stall": [True],
    "close": [1001],
    "refuse_handshake": [503, "404_plan", {"status": 401, "times": 3}],
    "fails": [["USD/COP"]],
    "garbage_frames": [6],
    "double": [0.5, {"share": 0.5, "times": 2}],
    "disorder": [0, {"within_s": 5, "share": 0.1}],
    "delay_s": [2.0, [0.0, 5.0]],
    "future_s": [16, {"seconds": 16, "times": 1}],
    "outlier": [8.0, {"pct": -8.0, "share": 0.5}],
    "scale": [0.01, {"factor": 1.07, "at": ["bars", "price"]}],
    "crossed": [1.0],
    "burst": [5, {"seconds": 5, "rate": 100, "symbols": ["USD/COP"]}],
    "slow_frames": [5.0, {"ms": 5.0, "size": 10}],
    "max_connections": [1],
    "clock_skew_s": [-3.5],
    "rest_status": ["429_day", {"status": "500", "paths": ["/price"]}],
    "rest_timeout": [True, {"times": 2, "paths": ["/quote"]}],
    "rest_delay_ms": [50.0, [0.0, 100.0]],
    "rest_lag_s": [20.0, [0.0, 20.0]],
    "rest_decimals": [0, 3],
    "late_candles_s": [60.0, [18.0, 180.0]],
    "revised_candles": [240.0, {"until_s": 240.0, "bp": 8.0, "share": 0.5}],
    "missing_bars": [0.1, ["2025-06-03T13:05:00+00:00"]],
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_value_is_shown_as_what_would_set_it_again(name: str) -> None:
    for value in VALUES.get(name, [True]):
        board = FaultBoard()
        actions = board.apply({name: value})
        if FAULTS[name].action:
            assert [one for one, _ in actions] == [name]
            continue
        assert board.shown()[name] == value
        board.apply({name: board.shown()[name]})
        assert board.shown()[name] == value
        for off in (None, False, []):
            board.apply({name: value})
            board.apply({name: off})
            assert board.shown() == FaultBoard().shown()


def test_every_switch_has_a_type() -> None:
    switches = {name for name, fault in FAULTS.items() if not fault.action}
    assert set(typing.get_type_hints(FaultBoard)) == switches


@pytest.mark.parametrize(
    "wanted",
    [
        {"refuse_handshake": {"times": 3}},
        {"refuse_handshake": {"status": 503, "times": 0}},
        {"refuse_handshake": {"status": 503, "often": 3}},
        {"rest_status": {"status": "500", "paths": ["price"]}},
        {"rest_lag_s": [5, 1]},
        {"rest_lag_s": [1, 2, 3]},
        {"rest_lag_s": float("nan")},
        {"rest_decimals": True},
        {"double": 0},
        {"double": 2},
        {"missing_bars": ["yesterday"]},
        {"mute": ["dollars"]},
        {"burst": {"rate": 100}},
        {"clock_skew_s": "5"},
    ],
)
def test_bad_values_are_refused(wanted: dict[str, object]) -> None:
    with pytest.raises(BadFault, match=next(iter(wanted))):
        FaultBoard().apply(wanted)
