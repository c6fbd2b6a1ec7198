"""Capped exponential back-off with jitter. Pure: says how long to wait, never waits."""

import random
from collections.abc import Callable


class Backoff:
    """Delays of ``base``, twice that, ... up to ``cap`` seconds, each shortened by up to a half.

    The jitter keeps clients that failed together from coming back together.
    """

    def __init__(
        self,
        base: float = 1.0,
        cap: float = 60.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._base, self._cap, self._jitter = base, cap, jitter
        self.failures = 0

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        whole = min(self._cap, self._base * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return whole * (0.5 + 0.5 * self._jitter())

    def reset(self) -> None:
        """Start over: what was tried really works."""
        self.failures = 0
