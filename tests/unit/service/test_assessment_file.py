"""When a session may begin on what was found before."""

import json
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.service.assessment_file import AssessmentFile

BOGOTA = ZoneInfo("America/Bogota")
CALENDAR = TradingCalendar()


def at(day: int, hour: int, minute: int, second: int = 0) -> float:
    """June 2025; the 3rd is a Tuesday, the 6th a Friday; Monday the 9th is no holiday."""
    return datetime(2025, 6, day, hour, minute, second, tzinfo=BOGOTA).timestamp()


@pytest.fixture
def failures() -> Failures:
    return Failures(SystemClock())


def opened(folder: Path, failures: Failures) -> AssessmentFile:
    return AssessmentFile(folder, {"USDCOP": CALENDAR}, failures, simulated=False)


@pytest.mark.parametrize(
    ("assessed", "now", "good"),
    [
        (at(3, 13, 0), at(4, 7, 45), True),  # the last slot has ended
        (at(3, 12, 59, 59), at(4, 7, 45), False),
        (at(4, 7, 39), at(4, 7, 45), True),
        (at(6, 18, 0), at(9, 7, 59), True),  # over a weekend
        (at(2, 18, 0), at(4, 7, 45), False),  # a whole session lies between
        (at(4, 7, 50), at(4, 10, 0), True),  # a start in mid-session: good for its open
        (at(4, 8, 30), at(4, 10, 0), False),
        (at(4, 7, 50), at(4, 7, 45), False),  # of a clock that was ahead
    ],
)
def test_nothing_may_have_been_due_since(
    tmp_path: Path, failures: Failures, assessed: float, now: float, good: bool
) -> None:
    opened(tmp_path, failures).note("USDCOP", assessed, good=True)
    session = CALENDAR.current_or_next(now)
    found = opened(tmp_path, failures).good_at("USDCOP", session, now)
    assert found == (assessed if good else None)


def test_a_session_that_was_cleared_is_collected_on_after_a_restart(
    tmp_path: Path, failures: Failures
) -> None:
    session = CALENDAR.current_or_next(at(4, 9, 0))
    before = opened(tmp_path, failures)
    before.note("USDCOP", at(4, 7, 46), good=True)
    before.cleared("USDCOP", at(4, 8, 0), session)
    for minute in range(5, 55, 5):
        before.note("USDCOP", at(4, 8, minute, 10), good=True)
    after = opened(tmp_path, failures)
    assert after.good_at("USDCOP", session, at(4, 9, 0)) is not None
    following = CALENDAR.next_after(at(4, 9, 0))
    assert after.good_at("USDCOP", following, at(5, 7, 45)) is None


def test_what_is_not_good_any_more_is_forgotten(tmp_path: Path, failures: Failures) -> None:
    file = opened(tmp_path, failures)
    file.note("USDCOP", at(4, 7, 0), good=True)
    file.note("USDCOP", at(4, 7, 40), good=False)
    session = CALENDAR.current_or_next(at(4, 7, 45))
    assert file.good_at("USDCOP", session, at(4, 7, 45)) is None
    assert opened(tmp_path, failures).good_at("USDCOP", session, at(4, 7, 45)) is None
    assert file.good_at("EURUSD", session, at(4, 7, 45)) is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"USDCOP": {"at": "yesterday"}}', b'{"USDCOP": 5}']
)
def test_a_foreign_file_is_named_and_says_nothing(
    tmp_path: Path, failures: Failures, content: bytes
) -> None:
    (tmp_path / "assessment.json").write_bytes(content)
    file = opened(tmp_path, failures)
    assert file.good_at("USDCOP", CALENDAR.current_or_next(at(4, 7, 45)), at(4, 7, 45)) is None
    assert [one.part for one in failures.present] == ["assessment file"]
    file.note("USDCOP", at(4, 7, 40), good=True)
    assert json.loads((tmp_path / "assessment.json").read_text())["USDCOP"]["at"] == at(4, 7, 40)
    assert failures.present == ()


@pytest.mark.parametrize("instant", [-1e300, -1e12, 0.0, 1e12, 1e300])
def test_an_instant_that_is_none_says_nothing(
    tmp_path: Path, failures: Failures, instant: float
) -> None:
    content = json.dumps({"USDCOP": {"at": instant}})
    (tmp_path / "assessment.json").write_text(content)
    file = opened(tmp_path, failures)
    assert file.good_at("USDCOP", CALENDAR.current_or_next(at(4, 7, 45)), at(4, 7, 45)) is None
    file.note("USDCOP", at(4, 7, 40), good=True)
    assert json.loads((tmp_path / "assessment.json").read_text())["USDCOP"]["at"] == at(4, 7, 40)
