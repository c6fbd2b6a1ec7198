"""Tests that need the machine alone get it, and lock nobody out for ever."""

import fcntl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.turns import Turns


def _try(path: Path, how: int) -> None:
    with path.open("w") as file:
        fcntl.flock(file, how | fcntl.LOCK_NB)


def test_many_run_together(tmp_path: Path) -> None:
    with Turns(tmp_path).together(), Turns(tmp_path).together():
        _try(tmp_path / "turns-gate", fcntl.LOCK_EX)  # nobody stays at the gate


def test_nobody_runs_beside_one_who_is_alone(tmp_path: Path) -> None:
    with Turns(tmp_path).alone():
        for name in ("turns-gate", "turns-floor"):
            with pytest.raises(BlockingIOError):
                _try(tmp_path / name, fcntl.LOCK_SH)
    with Turns(tmp_path).together():
        pass


def test_who_waits_to_be_alone_comes_before_latecomers(tmp_path: Path) -> None:
    order = []

    def alone() -> None:
        with Turns(tmp_path).alone():
            order.append("alone")

    def latecomer() -> None:
        with Turns(tmp_path).together():
            order.append("late")

    with ThreadPoolExecutor(2) as pool:
        with Turns(tmp_path).together():
            waiting = pool.submit(alone)
            while True:  # until it stands at the gate
                try:
                    _try(tmp_path / "turns-gate", fcntl.LOCK_SH)
                except BlockingIOError:
                    break
            late = pool.submit(latecomer)
            assert order == []
        waiting.result(timeout=30)
        late.result(timeout=30)
    assert order == ["alone", "late"]
