"""One kind of exchange with Redis: its work, its back-off and its fate are its own.

A server whose memory is full takes no entry into a stream and still tells its listeners; an account may be
allowed one and not the other. Whatever one lane waits for, the others go on at their full pace.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final, Generic, TypeVar

from redis.exceptions import RedisError, ResponseError

from enhanced_websocket_service.errors import WrongWorld
from enhanced_websocket_service.failures import Failures

FIRST_BACKOFF_S: Final = 0.1
LONGEST_REFUSAL_S: Final = 1.0
"""The longest wait after a refusal, real seconds: whoever mends the server wants to see it at once."""
UNAVAILABLE: Final = (RedisError, OSError, TimeoutError)

Work = TypeVar("Work")


class Waiting(Generic[Work]):
    """Work in order, so much at most: more than that pushes out the oldest, which is counted."""

    def __init__(self, size: int) -> None:
        self._items: deque[Work] = deque()
        self._size = size
        self._gone = 0  # what has left at the head, in all
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        return len(self._items) >= self._size

    def add(self, one: Work) -> None:
        if self.full:
            self._items.popleft()
            self._gone += 1
            self.dropped += 1
        self._items.append(one)

    def head(self, count: int) -> tuple[int, list[Work]]:
        """The oldest ``count``, and where they stand, for ``did``."""
        return self._gone, list(islice(self._items, count))

    def did(self, start: int, count: int) -> None:
        """The first ``count`` of what stood at ``start`` are done, though some may have been pushed out."""
        pushed_out = min(count, self._gone - start)
        self.dropped -= pushed_out
        for _ in range(count - pushed_out):
            self._items.popleft()
        self._gone += count - pushed_out


class Lane:
    """Run ``run`` as a task.

    :param part: what ``Failures`` calls it where the server refuses its work.
    :param pending: whether something waits.
    :param send: sends some of it; raises what redis-py does, refusals of the server included.
    :param meet: sees to it that the server is there and is one for us, before anything is sent.
    :param lost: told of every failure that is no refusal of this lane's work.
    :param says: the error in a sentence.
    :param every_s: real seconds after which the server is met again without work.
    """

    def __init__(
        self,
        part: str,
        *,
        pending: Callable[[], bool],
        send: Callable[[], Awaitable[None]],
        meet: Callable[[], Awaitable[None]],
        lost: Callable[[Exception], None],
        says: Callable[[Exception], str],
        failures: Failures,
        longest_backoff_s: float,
        every_s: float,
    ) -> None:
        self.part = part
        self.error: str | None = None
        """Why its work was not done the last time; ``None`` once it was."""
        self._pending, self._send = pending, send
        self._meet, self._lost, self._says = meet, lost, says
        self._failures = failures
        self._longest_backoff_s = longest_backoff_s
        self._every_s = every_s
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def wake(self) -> None:
        """There may be work."""
        if self._pending():
            self._idle.clear()
            self._wake.set()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits."""
        return self._idle.is_set()

    async def idle(self) -> None:
        """Return once nothing waits; ``run`` must be running."""
        await self._idle.wait()

    async def run(self) -> None:
        """Send what waits, until cancelled. What fails goes again, after a back-off."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            refused = False
            try:
                await self._meet()
                try:
                    await self._work()
                except ResponseError as error:
                    refused = True
                    self.error = self._says(error)
                    self._failures.failed(self.part, self.error)
                except UNAVAILABLE as error:
                    self.error = self._says(error)
                    raise
            except (WrongWorld, *UNAVAILABLE) as error:
                self._lost(error)
            else:
                if not refused:
                    backoff_s = FIRST_BACKOFF_S
                    continue
            await asyncio.sleep(min(backoff_s, LONGEST_REFUSAL_S) if refused else backoff_s)
            backoff_s = min(2 * backoff_s, self._longest_backoff_s)

    async def _work(self) -> None:
        """One exchange; without work, wait for some. A server that is away is asked until it answers."""
        if self._pending():
            await self._send()
        if self.error is not None:
            self.error = None
            self._failures.succeeded(self.part)
        if not self._pending():
            self._idle.set()
            self._wake.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._every_s)


def answered(answers: Sequence[object]) -> int:
    """How many answers come before the first that is an error."""
    return next((i for i, one in enumerate(answers) if isinstance(one, Exception)), len(answers))
