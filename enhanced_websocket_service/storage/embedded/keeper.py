"""Starts a private server again when it has died: killed, out of memory, or a crash of its own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import structlog

from enhanced_websocket_service.errors import EmbeddedError

from .process import ServerProcess

if TYPE_CHECKING:  # whoever only wants the servers needs neither metrics nor logging
    from enhanced_websocket_service.failures import Failures

log = structlog.get_logger(__name__)

_CHECK_S = 0.25
_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 30.0
_HEALTHY_AFTER_S = 60.0
"""A server that lived longer begins with short waits again. All are real seconds."""


async def keep_running(
    server: str,
    process: ServerProcess,
    start: Callable[[], Awaitable[str]],
    failures: "Failures",
) -> None:
    """Until cancelled: ``start`` whenever ``process`` has ended; less and less often while that fails.

    :param server: its name for people.
    :param start: returns once the server answers; a process it began belongs to ``process`` at once, so
        that whoever cancels us finds and stops it.
    """
    loop = asyncio.get_running_loop()
    part = f"embedded {server}"
    backoff_s = _FIRST_BACKOFF_S
    started_at = loop.time()
    while True:
        while process.is_alive():
            await asyncio.sleep(_CHECK_S)
        ended = f"The private {server} {_how_it_ended(process)}"
        failures.failed(part, f"{ended} and is being started again.")
        if loop.time() - started_at > _HEALTHY_AFTER_S:
            backoff_s = _FIRST_BACKOFF_S
        while True:
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)
            try:
                await start()
            except EmbeddedError as error:
                said = " ".join(str(error).split())
                failures.failed(part, f"{ended} and cannot be started again: {said}")
            except Exception as error:  # the border where any bug of a start is contained
                log.exception("A private server could not be started", server=server)
                failures.failed(part, f"{ended} and cannot be started again: {error!r}")
            else:
                break
        started_at = loop.time()
        log.info("The private server was started again", server=server, pid=process.pid)
        failures.succeeded(part)


def _how_it_ended(process: ServerProcess) -> str:
    code = process.exit_code()
    if code is None:
        return "ended"
    return f"ended (signal {-code})" if code < 0 else f"ended (exit code {code})"
