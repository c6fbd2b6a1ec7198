"""The storm is a pure function of its seed."""

import itertools
import subprocess
import sys

import pytest

from enhanced_websocket_service.chaos.honesty import LONGEST_S
from enhanced_websocket_service.chaos.schedule import (
    DATABASE_LIES,
    FAULTS,
    LEASE_AT_RISK_S,
    LIES,
    POSTGRES,
    REDIS_LIES,
    SECOND,
    SERVICE,
    SIMULATOR,
    SLOW_CLIENT,
    VALKEY,
    kills,
    storm,
)
from enhanced_websocket_service.twelvedata.simulator import FAULTS as KNOWN_FAULTS
from enhanced_websocket_service.twelvedata.simulator.faults import FaultBoard


@pytest.mark.parametrize("seed", range(20))
def test_a_storm_ends_in_time_and_never_befalls_one_target_twice_at_once(seed: int) -> None:
    actions = storm(seed, 180.0)
    assert all(0 < one.at <= one.ends < 180.0 for one in actions)
    assert [one.at for one in actions] == sorted(one.at for one in actions)
    for target in (SERVICE, POSTGRES, VALKEY, SIMULATOR, SLOW_CLIENT):
        lane = [one for one in actions if one.target == target]
        assert len(lane) >= 3, target
        assert all(one.ends < later.at for one, later in itertools.pairwise(lane))


def test_the_storms_of_twenty_seeds_have_every_lie_some_longer_than_health_may_be_wrong() -> None:
    lies = {
        **dict.fromkeys(DATABASE_LIES, POSTGRES),
        **dict.fromkeys(REDIS_LIES, VALKEY),
        **dict.fromkeys((name for name, _ in LIES), SIMULATOR),
    }
    actions = [one for seed in range(20) for one in storm(seed, 180.0)]
    for name, target in lies.items():
        lengths = [one.lasts for one in actions if (one.target, one.name) == (target, name)]
        assert len(lengths) >= 5, name
        assert max(lengths) > LONGEST_S + 5, name


def test_a_second_instance_waits_only_while_nothing_threatens_the_lease_of_the_first() -> None:
    seconds = 0
    for seed in range(20):
        actions = storm(seed, 180.0)
        threats = [one for one in actions if one.target == SERVICE] + [
            one for one in actions if one.target == POSTGRES and one.lasts > LEASE_AT_RISK_S
        ]
        for one in (one for one in actions if one.target == SECOND):
            seconds += 1
            assert one.kind == "instance"
            assert not any(it.at < one.ends and one.at < it.ends for it in threats)
    assert seconds > 15


def test_the_same_seed_is_the_same_storm_in_another_process() -> None:
    program = (
        "from enhanced_websocket_service.chaos.schedule import storm\n"
        "print([one.shown() for one in storm(7, 60.0)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str([one.shown() for one in storm(7, 60.0)])
    assert storm(7, 60.0) != storm(8, 60.0)


def test_a_longer_storm_begins_like_a_shorter_one() -> None:
    """So that a failure late in a long storm can be looked for in the same order of events."""
    assert [one for one in storm(3, 180.0) if one.ends < 60.0][:10] == storm(3, 60.0)[:10]


def test_the_simulator_knows_every_fault() -> None:
    for name, values in (*FAULTS, *LIES):
        assert name in KNOWN_FAULTS
        for value in values:
            FaultBoard().apply({name: value})


def test_kills_only_kill_the_service() -> None:
    actions = kills(1, 200)
    assert len(actions) == 200
    assert {(one.target, one.kind, one.lasts) for one in actions} == {(SERVICE, "kill", 0.0)}
    collecting = [one.at for one in actions if one.when == "collecting"]
    assert 140 < len(collecting) < 180
    assert 0.0 <= min(collecting) < 0.2
    assert 3.8 < max(collecting) <= 4.0
    assert kills(1, 200) == actions != kills(2, 200)
