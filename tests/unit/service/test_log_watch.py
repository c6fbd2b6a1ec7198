"""A log that is not read is seen in ``/health``, ``/status`` and the metrics."""

import asyncio
import logging
from collections.abc import Iterator

import pytest

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.log_writer import LogWriter
from enhanced_websocket_service.service import log_watch
from enhanced_websocket_service.telemetry import Metrics
from tests.waiting import eventually

WITHIN_S = 10.0


class Disk:
    name = "LOG_DIR=/logs"
    full = True

    def write(self, data: bytes) -> None:
        if self.full:
            raise OSError(28, "No space left on device")


@pytest.fixture
def disk() -> Iterator[Disk]:
    made = Disk()
    handler = LogWriter(made, "log files", logging.Formatter())
    logging.getLogger().addHandler(handler)
    try:
        yield made
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


async def test_it_fails_for_as_long_as_lines_are_dropped(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_watch, "CHECK_S", 0.01)
    failures, metrics = Failures(SystemClock()), Metrics()
    watch = asyncio.create_task(log_watch.watch_log(failures))
    logging.getLogger("x").error("nobody reads this")

    async def failing() -> str | None:
        failure = failures.of("log files")
        return None if failure is None else failure.reason

    reason = await eventually(failing, WITHIN_S, "the failure")
    assert reason.startswith("LOG_DIR=/logs cannot be written (No space left on device); ")
    dropped = metrics.registry.get_sample_value(
        "ews_log_lines_dropped_total", {"output": "log files"}
    )
    assert dropped is not None
    assert dropped >= 1
    disk.full = False

    async def works() -> bool | None:
        logging.getLogger("x").error("this is written")
        return failures.present == () or None

    await eventually(works, WITHIN_S, "the end of the failure")
    watch.cancel()
    await asyncio.wait({watch})
