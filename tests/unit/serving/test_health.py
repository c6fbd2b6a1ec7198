"""The verdict in each state and with each part down, and a meter that never waits."""

from dataclasses import replace
from pathlib import Path

import pytest

from enhanced_websocket_service.serving import models
from enhanced_websocket_service.serving.health import ResourceMeter, is_ready, judge

from .fakes import FakeService

LEVELS = {
    "initializing": "degraded",
    "waiting_l0": "degraded",
    "checking_data": "degraded",
    "ready": "healthy",
    "active": "healthy",
    "market_closed": "healthy",
    "error": "unhealthy",
    "shutdown": "unhealthy",
}
DOWN = models.PartHealth(connected=False, error="connection refused")


@pytest.mark.parametrize(("state", "level"), LEVELS.items())
def test_states(state: str, level: str) -> None:
    view = FakeService(state=state, reason="Because.").health()
    found, problems = judge(view)
    assert found == level
    assert bool(problems) == (level != "healthy")
    assert all("Because." in problem for problem in problems)
    assert is_ready(state) == (level == "healthy")


@pytest.mark.parametrize("part", ["database", "redis"])
def test_a_part_down_degrades_and_is_named(part: str) -> None:
    found, problems = judge(replace(FakeService().health(), **{part: DOWN}))
    assert found == "degraded"
    assert part in problems[0].lower()
    assert "connection refused" in problems[0]


@pytest.mark.parametrize(("expected", "level"), [(True, "degraded"), (False, "healthy")])
def test_a_feed_matters_while_it_is_expected(expected: bool, level: str) -> None:
    feed = models.FeedHealth(connected=False, expected=expected)
    assert judge(replace(FakeService().health(), feed=feed))[0] == level


def test_an_error_stays_unhealthy_whatever_else_is_down() -> None:
    view = replace(FakeService(state="error").health(), database=DOWN)
    found, problems = judge(view)
    assert found == "unhealthy"
    assert len(problems) == 2


def test_what_follows_from_a_lost_connection_is_told_and_the_cause_once() -> None:
    cause = "PostgreSQL at db:5432 (database a, user b) cannot be reached: connection refused"
    down = models.PartHealth(connected=False, error=f"{cause} (while answering a ping).")
    committed = "committed: 39 records are not committed, the oldest for 5 s: "
    others = [f"{committed}{cause} (while storing the journal).", "backup files: no room"]
    view = replace(FakeService().health(), database=down, problems=others)
    assert judge(view)[1] == [
        f"Database is not connected: {cause} (while answering a ping).",
        f"{committed}Database is not connected (while storing the journal).",
        "backup files: no room",
    ]


def test_the_meter_measures_once_a_second(tmp_path: Path) -> None:
    now = 0.0
    meter = ResourceMeter(tmp_path / "not" / "there" / "yet", real_time=lambda: now)
    first = meter.read()
    assert 0 < first.memory_percent < 100
    assert 0 < first.disk_percent <= 100
    now = 0.9
    assert meter.read() is first
    now = 1.1
    assert meter.read() is not first
