"""Whether ``healthy`` was ever said while no work was done: what ``/health`` told beside what was seen. Pure.

Seen from outside, at each hop whose work others see: frames at a client, prices that are new and young among
them, rows committed in PostgreSQL, the latest price in Redis. What cannot be looked at shows no work.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

LONGEST_S: Final = 30.0
"""Real seconds of open session in which ``healthy`` may stand without work."""
BLIND_S: Final = 5.0
"""Without a sample for so long nobody knows what was said meanwhile."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One look.

    :ivar at: real seconds.
    :ivar healthy: ``/health`` answered ``healthy``, in an open session.
    :ivar sent: how many prices the vendor has sent so far; ``None``: he does not say.
    :ivar done: by hop, how far its work has got, in any form that changes with work; ``None``: not seen.
    """

    at: float
    healthy: bool
    sent: int | None
    done: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Idle:
    """``healthy`` from ``begins`` to ``ends`` (real seconds) while ``hop`` did nothing with what was sent."""

    hop: str
    begins: float
    ends: float
    sent: int

    @property
    def lasted(self) -> float:
        return self.ends - self.begins


class Honesty:
    """Takes looks in the order of time."""

    def __init__(self) -> None:
        self.looks = 0
        self.healthy = 0
        self.longest: dict[str, Idle] = {}
        """By hop, the longest stretch."""
        self._broken: dict[tuple[str, float], Idle] = {}
        self._last_at: float | None = None
        self._sent = 0
        self._done: dict[str, object] = {}
        self._since: dict[
            str, tuple[float, int]
        ] = {}  # when the stretch began, and what was sent by then

    @property
    def broken(self) -> list[Idle]:
        """Every stretch that lasted longer than is allowed."""
        return list(self._broken.values())

    def see(self, one: Seen) -> None:
        self.looks += 1
        self.healthy += one.healthy
        if one.sent is not None:
            self._sent = max(self._sent, one.sent)
        blind = self._last_at is None or one.at - self._last_at > BLIND_S
        self._last_at = one.at
        for hop, done in one.done.items():
            worked = done is not None and done != self._done.get(hop)
            if worked:
                self._done[hop] = done
            if not one.healthy:
                self._since.pop(hop, None)
            elif worked or blind or hop not in self._since:
                self._since[hop] = (one.at, self._sent)
            else:
                self._weigh(hop, one.at)

    def _weigh(self, hop: str, now: float) -> None:
        begins, sent = self._since[hop]
        idle = Idle(hop, begins, now, self._sent - sent)
        if not idle.sent:
            return
        if hop not in self.longest or idle.lasted > self.longest[hop].lasted:
            self.longest[hop] = idle
        if idle.lasted >= LONGEST_S:
            self._broken[hop, begins] = idle


def judged(looks: Iterable[Seen]) -> Honesty:
    found = Honesty()
    for one in looks:
        found.see(one)
    return found
