"""Waiting for something outside this process: the one place where a test polls."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

POLL_INTERVAL_S = 0.03
PATIENCE = 4
"""Limits only end a wait that has failed: on a loaded machine the same things take longer."""


async def eventually(
    look: Callable[[], Awaitable[T | None]], within_s: float, what: Callable[[], str] | str
) -> T:
    """The first result of ``look`` that is not ``None``; an assertion failure when it never comes.

    :param within_s: real seconds that suffice on an idle machine.
    :param what: what was waited for, or a function that tells, asked only when it did not come.
    """
    deadline = time.monotonic() + PATIENCE * within_s
    while (found := await look()) is None:
        if time.monotonic() > deadline:
            raise AssertionError(
                f"within {PATIENCE * within_s:g} s: {what if isinstance(what, str) else what()}"
            )
        await asyncio.sleep(POLL_INTERVAL_S)
    return found
