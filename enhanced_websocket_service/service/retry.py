"""The back-off of the lifecycles. Pure."""

FIRST_RETRY_S, LONGEST_RETRY_S = 2.0, 60.0
DATABASE_RETRY_S = 5.0
"""The longest wait for an unreachable database: until it is seen to be back, no price is collected."""


class Retry:
    """The back-off of one loop: how long to wait after each failure, seconds."""

    def __init__(self) -> None:
        self._next_s = FIRST_RETRY_S

    @property
    def again(self) -> bool:
        """Whether a failure now would follow another."""
        return self._next_s > FIRST_RETRY_S

    def wait_s(self, lasted_s: float, longest_s: float = LONGEST_RETRY_S) -> float:
        """:param lasted_s: how long all went well before the failure."""
        if lasted_s > 10 * LONGEST_RETRY_S:
            self._next_s = FIRST_RETRY_S
        wait_s = min(self._next_s, longest_s)
        self._next_s = min(2 * self._next_s, LONGEST_RETRY_S)
        return wait_s
