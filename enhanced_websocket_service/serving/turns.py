"""The loop's turns, shared out among clients that catch up: what is live comes between any two of them.

A piece of the past takes a fraction of a millisecond. A thousand clients that come back at once, each with
a piece in the same turn, would hold up a live price by a third of a second.
"""

import asyncio
from collections import deque
from collections.abc import Callable


class Turns:
    """Steps in the order in which they were asked for, one in each turn of the loop."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def take(self, step: Callable[[], None]) -> None:
        """Call ``step`` in a turn of its own."""
        self._waiting.append(step)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._next)

    async def mine(self) -> None:
        """Return in a turn of its own. Cancelling gives it away."""
        turn = asyncio.get_running_loop().create_future()
        self.take(lambda: None if turn.done() else turn.set_result(None))
        await turn

    def _next(self) -> None:
        step = self._waiting.popleft()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next)
        step()
