"""Tells where anybody can see it that the log is not read or cannot be written: the log itself cannot."""

import asyncio

from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.log_writer import log_writers

CHECK_S = 1.0


async def watch_log(failures: Failures) -> None:
    """Until cancelled: each output of the log that takes no lines is a part that fails."""
    told: dict[str, str] = {}
    while True:
        for writer in log_writers():
            if writer.fault is None:
                told.pop(writer.part, None)
                failures.succeeded(writer.part)
                continue
            reason = f"{writer.fault}; {writer.dropped} lines were dropped since the start."
            if told.get(writer.part) != reason:
                told[writer.part] = reason
                failures.failed(writer.part, reason)
        await asyncio.sleep(CHECK_S)
