"""How many subscription events may be sent: the vendor refuses more than 100 a minute. Pure."""

from collections import deque
from typing import Final

EVENTS_A_MINUTE: Final = 60
"""The vendor allows 100; heartbeats may count, and so may another process with the same key."""
MINUTE_S: Final = 60.0
_ROUNDING_S: Final = 1e-6
"""Who waits as long as told must not be told to wait for the last bit of a float."""


class EventBudget:
    """At most ``limit`` events in any minute of the clock. Instants are ``Clock.elapsed``: a
    minute of the vendor passes whatever our clock is set to.
    """

    def __init__(self, limit: int = EVENTS_A_MINUTE) -> None:
        self._limit = limit
        self._sent: deque[float] = deque()

    def wait_s(self, now: float, events: int = 1) -> float:
        """Seconds until ``events`` more may be sent; 0: now."""
        while self._sent and self._sent[0] + MINUTE_S <= now + _ROUNDING_S:
            self._sent.popleft()
        over = len(self._sent) + events - self._limit
        return 0.0 if over <= 0 else self._sent[over - 1] + MINUTE_S - now

    def spend(self, now: float, events: int = 1) -> None:
        """Note that they were sent."""
        self._sent.extend([now] * events)
