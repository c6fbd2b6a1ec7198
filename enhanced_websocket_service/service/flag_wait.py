"""Waiting for the ready flag, and what to do without one. Owns the time-out, not the state meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.l0.readiness import FlagState, ReadyFlag

LOOK_WITHOUT_FLAG_S = 60.0
"""How often the data is measured once the flag is overdue."""
SIGNALS = "ready signals folder"
"""The part of ``Failures``."""


class FlagWait:
    """The time-out counts from the first wait until the flag is seen: a failure does not begin it anew."""

    def __init__(self, flag: ReadyFlag, clock: Clock, timeout_s: float) -> None:
        self._flag = flag
        self._clock = clock
        self._timeout_s = timeout_s
        self._due: float | None = None  # by the clock's ``elapsed``

    async def wait(
        self, show: Callable[[FlagState], None], can_do_without: Callable[[], Awaitable[bool]]
    ) -> None:
        """Return once the flag is there or, when it is overdue, one can do without it.

        :param show: told the flag at first, and whenever it changes.
        :param can_do_without: asked every minute once the flag is overdue.
        """
        clock = self._clock
        if self._due is None:
            self._due = clock.elapsed() + self._timeout_s
        wait_s = self._due - clock.elapsed()
        while wait_s <= 0 or not await self._within(wait_s, show):
            if await can_do_without():
                return
            # The flag may have come meanwhile; and an empty one takes a moment to count.
            wait_s = clock.span(LOOK_WITHOUT_FLAG_S, at_least_real=1.0)
        self._due = None

    async def _within(self, seconds: float, show: Callable[[FlagState], None]) -> bool:
        waiting = asyncio.create_task(self._flag.wait(show), name="l0-flag")
        timer = asyncio.create_task(self._clock.sleep(seconds), name="l0-timeout")
        try:
            await asyncio.wait({waiting, timer}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                return False
            waiting.result()
            return True
        finally:
            for task in (waiting, timer):
                task.cancel()
            await asyncio.gather(waiting, timer, return_exceptions=True)


def note_folder(flag: FlagState, failures: Failures) -> None:
    """Tell ``failures`` whether the folder of the flag can be read."""
    if flag.blind:
        failures.failed(SIGNALS, flag.problem or "It cannot be read.")
    else:
        failures.succeeded(SIGNALS)
