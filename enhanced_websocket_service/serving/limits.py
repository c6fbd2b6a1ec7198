"""What clients may cost, and the token bucket that measures what they send."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what clients may cost. Sizes in bytes, times in real seconds."""

    history: int = 50_000  # entries kept per symbol for resume
    high_water: int = 256 * 1024  # unsent bytes at which a client counts as slow
    low_water: int = 32 * 1024  # unsent bytes at which it has drained
    high_water_latest: int = 4096  # the same for one that wants of waiting ticks only the newest
    hard: int = 1024 * 1024  # unsent bytes at which it is closed with 4008
    age_s: float = 5.0  # what waits longer to be sent makes a client slow, however little it is
    stall_s: float = 30.0  # slow for so long without taking a byte: closed with 4008
    clients: int = 20_000
    clients_per_address: int | None = None  # None: DEFAULT_PER_ADDRESS, but none on this machine
    messages_per_s: float = 20.0  # from one client, on average; control frames count by themselves
    message_burst: int = 100
    message_bytes: int = 64 * 1024  # one message from a client, also once decompressed
    handshake_s: float = 10.0  # from the first byte of a request to its last; for TLS once more

    def water(self, *, conflate: bool) -> tuple[int, int]:
        """The high and the low mark of one client."""
        if not conflate:
            return self.high_water, self.low_water
        high = min(self.high_water, self.high_water_latest)
        return high, min(self.low_water, high // 4)


DEFAULT_PER_ADDRESS = 1000
"""Clients from one address outside this machine, where no number is set."""


class Budget:
    """A token bucket: ``burst`` messages at once, ``rate`` a real second on average."""

    __slots__ = ("_at", "_burst", "_rate", "_real_time", "_tokens")

    def __init__(self, rate: float, burst: int, real_time: Callable[[], float]) -> None:
        self._rate, self._burst, self._real_time = rate, burst, real_time
        self._tokens = float(burst)
        self._at = real_time()

    def take(self) -> bool:
        """Spend one; False when there is none left."""
        now = self._real_time()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
