"""What fails stays told until it succeeds, and the log hears of it rarely."""

import structlog

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.failures import Failure, Failures

START = 1_750_000_000.0


class _At(SystemClock):
    """Stands at ``instant``."""

    instant = START

    def now(self) -> float:
        return self.instant

    def elapsed(self) -> float:
        return self.instant - START


def test_the_last_failure_stays_until_one_succeeds() -> None:
    clock = _At()
    failures = Failures(clock)
    failures.failed("backup files", "The disk is full.")
    clock.instant += 60
    failures.failed("backup files", "The folder is gone.")
    failures.failed("L0 repair", "The vendor answered 503.")
    assert failures.present == (
        Failure("backup files", "The folder is gone.", START, START + 60, 2),
        Failure("L0 repair", "The vendor answered 503.", START + 60, START + 60, 1),
    )
    assert failures.of("L0 repair") == failures.present[1]
    failures.succeeded("backup files")
    failures.forgotten("L0 repair")
    failures.succeeded("never failed")
    assert failures.present == ()


def test_the_log_has_one_line_a_minute_and_one_for_the_end() -> None:
    failures = Failures(_At())
    with structlog.testing.capture_logs() as lines:
        for _ in range(100):
            failures.failed("backup files", "The disk is full.")
        failures.succeeded("backup files")
        for _ in range(100):  # flapping: the minute is not over, so nothing more is said
            failures.failed("backup files", "The disk is full.")
            failures.succeeded("backup files")
    assert [line["event"] for line in lines] == ["Failed", "Works again"]
    assert lines[0]["times"] == 1
    assert lines[1]["failures"] == 100
