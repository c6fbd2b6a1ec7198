"""The reference of faults says what the tests expect, no more and no less."""

from enhanced_websocket_service.twelvedata.simulator import FAULTS

from .catalogue import ALL
from .expectation import Bounds, accepts
from .table import PAGE, page


def test_the_reference_is_in_step() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.e2e.faults.table"


def test_every_fault_has_a_name_of_its_own_and_a_row() -> None:
    names = [one.name for _, one in ALL]
    assert len(names) == len(set(names))
    text = page()
    assert [one.what for _, one in ALL if one.what not in text] == []


def test_every_fault_of_the_simulator_is_proven() -> None:
    proven = {name for _, one in ALL for name in one.sets}
    assert set(FAULTS) - proven == set()


def test_paths_are_told_apart() -> None:
    pattern = ("suspect?", "dead", "live")
    assert accepts(pattern, ("dead", "live"))
    assert accepts(pattern, ("suspect", "dead", "live"))
    assert not accepts(pattern, ("suspect", "live"))
    assert not accepts(pattern, ("dead",))
    assert not accepts((), ("suspect",))


def test_bounds_are_inclusive() -> None:
    assert 1 in Bounds(1, 2)
    assert 2 in Bounds(1, 2)
    assert 3 not in Bounds(1, 2)
    assert str(Bounds(0, 0)) == "0"
    assert str(Bounds(2)) == "2 or more"
