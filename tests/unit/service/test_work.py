"""What of the market counts as work not done, and after how long."""

from datetime import datetime

from enhanced_websocket_service.clock import VirtualClock
from enhanced_websocket_service.service.work import HABIT, WorkHealth, WorkLimits
from enhanced_websocket_service.watermarks import Hop, Watermarks
from tests.unit.serving.fakes import ManualClock

SYMBOL = "USDCOP"


class Market:
    """What waits in the pipeline, as the test has it."""

    def __init__(self) -> None:
        self.waiting: dict[str, int] = {}
        self.due: dict[str, float] = {}

    def held(self) -> dict[str, int]:
        return self.waiting

    def closes(self) -> dict[str, float]:
        return self.due


class Stage:
    """A judge over marks, a market and clocks that only the test moves."""

    def __init__(self, pace_s: float = 1.0, shown: VirtualClock | None = None) -> None:
        self.clock, self.market = ManualClock(), Market()
        self.marks = Watermarks([SYMBOL], self.clock.elapsed)
        self.late: dict[str, float] = {}
        self.cause: str | None = None
        self.work = WorkHealth(
            shown or self.clock,
            self.marks,
            self.market,
            WorkLimits(),
            pace=lambda _: pace_s,
            overdue=lambda _: self.late,
            causes={Hop.JOURNALED: lambda: self.cause},
        )

    def pass_s(self, seconds: float) -> None:
        self.clock.instant += seconds


def test_a_held_quote_is_told_after_a_minute_and_forgotten_with_its_witness() -> None:
    it = Stage()
    it.market.waiting = {SYMBOL: 2}
    assert it.work.problems() == []
    it.pass_s(59)
    assert it.work.problems() == []
    it.pass_s(1)
    (problem,) = it.work.problems()
    assert "accepted: 2 quotes (USDCOP 2)" in problem
    assert "held until a second witness" in problem
    it.market.waiting = {}
    assert it.work.problems() == []
    it.market.waiting = {SYMBOL: 1}
    assert it.work.problems() == [], "it waits from now on, not since the first"


def test_one_free_key_polls_every_22_seconds_and_is_healthy() -> None:
    it = Stage(pace_s=22.0)
    it.market.waiting = {SYMBOL: 1}
    it.work.problems()
    it.pass_s(65)
    assert it.work.problems() == []
    it.pass_s(1)
    assert len(it.work.problems()) == 1


def test_noise_is_no_habit() -> None:
    it = Stage()
    for _ in range(HABIT - 1):
        it.marks.refused(SYMBOL, Hop.ACCEPTED, 1, "rejected as outlier")
    it.pass_s(1000)
    assert it.work.problems() == []
    it.marks.refused(SYMBOL, Hop.ACCEPTED, 1, "rejected as outlier")
    (problem,) = it.work.problems()
    assert "3 quotes (USDCOP 3)" in problem
    assert "rejected as outlier" in problem
    it.marks.accepted(SYMBOL, 1, 1)
    assert [one for one in it.work.problems() if "accepted:" in one] == []


def test_one_quarantined_record_is_told() -> None:
    it = Stage()
    it.marks.refused(SYMBOL, Hop.COMMITTED, 1, "in rejected_ticks instead")
    it.pass_s(5)
    (problem,) = it.work.problems()
    assert problem.startswith("committed: 1 record (USDCOP 1)")


def test_bars_and_slots_that_are_overdue() -> None:
    it = Stage()
    it.market.due = {SYMBOL: it.clock.instant + 1}
    it.pass_s(2)
    assert it.work.problems() == []
    it.pass_s(9)
    assert it.work.problems() == []
    it.pass_s(1)
    (problem,) = it.work.problems()
    assert problem.startswith("bar_closed: 1 bar (USDCOP 1) should be closed")
    it.market.due = {}
    it.late = {SYMBOL: 3599.0}
    assert it.work.problems() == []
    it.late = {SYMBOL: 3600.0}
    (problem,) = it.work.problems()
    assert problem.startswith("bar_reconciled: 1 symbol (USDCOP 1) has slots")


def test_the_cause_is_in_the_words_of_whoever_refuses() -> None:
    it = Stage()
    it.marks.appended(1, 1)
    it.pass_s(5)
    it.cause = "The journal in x could not be fsynced: Input/output error"
    (journaled, committed) = it.work.problems()
    assert journaled.endswith("the oldest for 5 s: " + it.cause)
    assert committed.startswith("committed: 1 record is not")


def test_what_is_shown_has_instants_of_the_services_clock() -> None:
    it = Stage()
    it.marks.received(SYMBOL, 4)
    it.marks.appended(2, 2)
    it.marks.accepted(SYMBOL, 2, 2)
    it.pass_s(3)
    shown = it.work.shown({Hop.JOURNALED: 1.5}, {Hop.JOURNALED: None})
    assert (shown["journaled"].undone, shown["journaled"].oldest_undone_s) == (2, 3.0)
    assert shown["journaled"].latency_ms == 1.5
    assert (shown["received"].undone, shown["received"].oldest_undone_s) == (0, None)
    assert shown["received"].last_done == it.clock.now() - 3
    view = it.work.by_symbol()[SYMBOL]
    assert view["accepted"].position == 2
    assert (view["committed"].undone, view["committed"].oldest_undone_s) == (2, 3.0)
    assert it.work.oldest()[Hop.COMMITTED] == (3.0, 2)


def test_an_instant_is_that_of_the_work_also_when_the_speed_changes_meanwhile_or_soon() -> None:
    """The demo runs sixty times as fast in the session, and 600 times outside."""
    real = 1000.0
    start = datetime.fromisoformat("2025-06-25T12:00:00-05:00").timestamp()
    shown = VirtualClock(
        start,
        60.0,
        is_trading_day=lambda _: True,
        anchor=real,
        closed_speed=600.0,
        real_time=lambda: real,
        monotonic=lambda: real,
    )
    it = Stage(shown=shown)
    done_at = shown.now()
    it.marks.reached(SYMBOL, Hop.BAR_RECONCILED, 300)
    for _ in range(3):  # 12:40 and 13:20, the speed changes at 13:10, and then far behind it
        real += 40
        it.pass_s(40)
        found = it.work.shown({}, {})["bar_reconciled"].last_done
        assert found is not None
        assert abs(found - done_at) < 1e-3
        assert it.work.by_symbol()[SYMBOL]["bar_reconciled"].done_at == found
