"""Fault scripts and options: what they mean, and every fault in them told at once."""

from datetime import date
from pathlib import Path

import pytest

from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.market.calendar import Session
from enhanced_websocket_service.twelvedata.simulator.agenda import Agenda, Step
from enhanced_websocket_service.twelvedata.simulator.fault_table import FAULTS
from enhanced_websocket_service.twelvedata.simulator.options import faults_from_options
from enhanced_websocket_service.twelvedata.simulator.script import load_script

from .parts import OPEN, at

START = OPEN - 600.0
SESSION = Session(date(2025, 6, 3), OPEN, OPEN + 17_700)


def load(folder: Path, text: str, name: str = "faults.jsonl") -> list[Step]:
    path = folder / name
    path.write_text(text)
    return load_script(path, START, SESSION)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("90", START + 90),
        ('"start+90"', START + 90),
        ('"start"', START),
        ('"open+0:10:00"', OPEN + 600),
        ('"open - 30.5"', OPEN - 30.5),
        ('"close-60"', OPEN + 17_640),
        ('"+30"', START + 30),
        ('"2025-06-03T08:20:00"', OPEN + 1200),
        ('"2025-06-03T13:20:00+00:00"', OPEN + 1200),
    ],
)
def test_instants(tmp_path: Path, text: str, instant: float) -> None:
    (step,) = load(tmp_path, f'{{"at": {text}, "set": {{"mute": true}}}}')
    assert step == Step(instant, {"mute": True})


def test_steps_durations_and_comments(tmp_path: Path) -> None:
    steps = load(
        tmp_path,
        "# a quiet morning\n\n"
        '{"at": "open+60", "set": {"mute": ["USDCOP"], "drop": true}, "for": "0:01:00"}\n'
        '{"at": "+30", "clear": "all", "set": {"close": 1011}}\n',
    )
    assert steps == [
        Step(OPEN + 60, {"mute": ["USDCOP"], "drop": True}),
        Step(OPEN + 120, clear=("mute",)),
        Step(OPEN + 90, {"close": 1011}, tuple(FAULTS)),
    ]
    assert [step.at - OPEN for step in steps] == [60, 120, 90]


def test_the_same_in_toml(tmp_path: Path) -> None:
    text = """
        [[step]]
        at = "open"
        set = {rest_lag_s = [0, 20], rest_decimals = 2}
        [[step]]
        at = 2025-06-03T08:20:00-05:00
        clear = ["rest_lag_s"]
    """
    assert load(tmp_path, text, "faults.toml") == [
        Step(OPEN, {"rest_lag_s": [0, 20], "rest_decimals": 2}),
        Step(OPEN + 1200, clear=("rest_lag_s",)),
    ]


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    lines = [
        '{"at": 1, "set": {"explode": true, "mute": 7}}',
        "nonsense",
        "[1]",
        '{"set": {"mute": true}}',
        '{"at": "noon", "set": {"mute": true}}',
        '{"at": 1, "clear": ["nothing"]}',
        '{"at": 1}',
        '{"at": 1, "set": {"drop": true}, "for": 5}',
        '{"at": 1, "set": {"mute": true}, "for": "soon"}',
        '{"at": 1, "set": {"mute": true}, "until": 5}',
        '{"at": true, "set": [1]}',
    ]
    with pytest.raises(ConfigurationError) as refused:
        load(tmp_path, "\n".join(lines))
    told = refused.value.faults
    for number in range(1, len(lines) + 1):
        assert any(f"line {number}:" in one for one in told), (number, told)
    assert len(told) == len(lines) + 2  # the first and the last line have two each
    assert "unknown fault 'explode'" in told[0] + told[1] + told[2]


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("", "empty.jsonl", "holds no steps"),
        ("[[step]\n", "broken.toml", "is not TOML"),
        ("[[stage]]\nat = 1\n", "other.toml", "write \\[\\[step\\]\\]"),
    ],
)
def test_files_that_say_nothing(tmp_path: Path, text: str, name: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load(tmp_path, text, name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_script(tmp_path / "absent.jsonl", START, SESSION)


def test_an_agenda_goes_by_time_and_shows_what_is_done() -> None:
    agenda = Agenda([Step(20, {"mute": True}), Step(10, {"drop": True}), Step(20, clear=("mute",))])
    assert (agenda.next_instant(), agenda.take().set) == (10, {"drop": True})
    assert agenda.take().set == {"mute": True}
    assert agenda.take().clear == ("mute",)
    assert agenda.next_instant() is None
    assert [one["done"] for one in agenda.shown()] == [True] * 3
    assert agenda.shown()[0]["at"] == "1970-01-01T00:00:10+00:00"


def test_options_are_json_text_or_true() -> None:
    texts = ["mute", "rest_lag_s=[0,20]", "rest_status=429_day", "fails=USD/COP,EUR/USD"]
    assert faults_from_options(texts) == {
        "mute": True,
        "rest_lag_s": [0, 20],
        "rest_status": "429_day",
        "fails": "USD/COP,EUR/USD",
    }
    assert faults_from_options([]) == {}


def test_every_wrong_option_is_told() -> None:
    with pytest.raises(ConfigurationError) as refused:
        faults_from_options(["explode", "mute=7", "close=1000"])
    text = "\n".join(refused.value.faults)
    for said in ("'explode'", "mute takes", "--fault close: happens once", "rest_lag_s"):
        assert said in text


def test_times_of_the_file_are_those_of_the_day() -> None:
    assert at("2025-06-03 13:00") == OPEN == SESSION.opens
