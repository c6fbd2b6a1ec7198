"""What the parts tell the watermarks, and in which words it is told that they do not do their work."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.service.watching import watch
from enhanced_websocket_service.service.work import WorkHealth, WorkLimits
from enhanced_websocket_service.serving.outlet import text_frame
from enhanced_websocket_service.watermarks import Hop, Watermarks
from tests.unit.serving.fakes import ManualClock

SYMBOL = "USDCOP"


class Stage:
    """The wiring over parts that are what the test says."""

    def __init__(self, **writer: Any) -> None:
        self.clock = clock = ManualClock()
        self.marks = Watermarks([SYMBOL], clock.elapsed, cached=False)
        self.pipeline = SimpleNamespace(epoch=2, held=dict, closes=dict)
        self.writer = SimpleNamespace(last_error=None, waits_for=None, committed_s=None)
        vars(self.writer).update(writer)
        listening: list[Callable[[bytes], None]] = []
        parts: Any = SimpleNamespace(
            clock=clock,
            marks=self.marks,
            pipeline=self.pipeline,
            journal=SimpleNamespace(failure=None, hangs_for_s=None),
            writer=self.writer,
            database=None,
            bus=SimpleNamespace(failure=None),
            redis=None,
            hub=SimpleNamespace(listen_inside=listening.append),
            reconciler=SimpleNamespace(overdue=lambda _: {}, why_overdue=lambda: ""),
            failures=Failures(clock),
            metrics=SimpleNamespace(undone=SimpleNamespace()),
        )
        self.work: WorkHealth
        self.work, _ = watch(
            parts,
            WorkLimits(),
            probe_s=0,
            pace=lambda _: 1.0,
            expecting=lambda: True,
            may_probe=lambda: True,
        )
        (self.inside,) = listening

    def deliver(self, epoch: int, offset: int) -> None:
        self.inside(
            text_frame(b'{"symbol":"%b","epoch":%d,"offset":%d}' % (SYMBOL.encode(), epoch, offset))
        )


def test_what_comes_late_of_the_epoch_before_is_no_work_of_this_one() -> None:
    it = Stage()
    it.marks.begin_epoch()
    it.deliver(1, 5000)
    it.marks.owed(SYMBOL, 1, 1)
    assert [one.hop for one in it.marks.undone()] == [Hop.PUBLISHED]
    it.deliver(2, 1)
    assert it.marks.undone() == []


@pytest.mark.parametrize(
    ("writer", "cause"),
    [
        ({"committed_s": 0.4, "waits_for": (7, 0.3)}, "PostgreSQL is taking them batch by batch"),
        ({"committed_s": 9.0, "waits_for": (7, 9.0)}, "PostgreSQL (process 7) has not answered"),
        ({"committed_s": 0.4, "last_error": "read-only"}, "read-only"),
        ({"committed_s": 60.0}, "no answer to it yet, and no refusal"),
    ],
)
def test_a_backlog_that_drains_is_told_from_one_that_does_not(
    writer: dict[str, Any], cause: str
) -> None:
    it = Stage(**writer)
    it.marks.appended(1_000_000, 1_000_000)
    it.marks.done(Hop.JOURNALED, 1_000_000)
    it.clock.instant += 30
    (problem,) = it.work.problems()
    assert problem.startswith("committed: 1000000 records are not committed")
    assert cause in problem
