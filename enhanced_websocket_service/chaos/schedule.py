"""What befalls whom when: a pure function of the seed.

Every target has a lane of its own with a random generator of its own, so nothing befalls one target
twice at once, and a change to one lane leaves the others as they were. Times are real seconds since
the storm began.
"""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

Kind = Literal["kill", "outage", "stall", "fault"]
When = Literal["storm", "started", "collecting"]

SERVICE: Final = "service"
POSTGRES: Final = "postgres"
VALKEY: Final = "valkey"
SIMULATOR: Final = "simulator"
SLOW_CLIENT: Final = "client-slow"

FAULTS: Final[tuple[tuple[str, tuple[Any, ...]], ...]] = (
    # 401, 403, 429_day and "fails" are missing on purpose: they disable a key for the rest of the
    # day, rightly, so that nothing could be reconciled after the storm.
    ("drop", (True,)),
    ("close", (1000, 1001, 1008, 1011)),
    ("garbage_frames", (1, 20)),
    ("mute", (True,)),
    ("no_bid_ask", (True,)),
    ("string_prices", (True,)),
    ("refuse_handshake", (503, 429)),
    ("rest_status", ("429_minute", "500", "520")),
    ("status_200_errors", (True,)),
)
ONCE: Final = frozenset({"drop", "close", "garbage_frames"})


@dataclass(frozen=True, slots=True)
class Action:
    """Something befalls ``target`` at ``at`` and lasts ``lasts`` seconds.

    ``at`` counts from the beginning of the storm or, by ``when``, from the moment the service was started
    last or has taken its first tick since.

    ``kill``: ``kill -9``, started again after ``lasts``; ``outage``: the same after an orderly end (servers
    only). ``stall``: SIGSTOP, SIGCONT after ``lasts``.
    ``fault``: the vendor's fault ``name`` with ``value``, taken back after ``lasts``.
    """

    at: float
    target: str
    kind: Kind
    lasts: float
    name: str = ""
    value: Any = None
    when: When = "storm"

    @property
    def ends(self) -> float:
        return self.at + self.lasts

    def shown(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            name: value
            for name, value in asdict(self).items()
            if value not in ("", None) and (name, value) != ("when", "storm")
        }


def storm(seed: int, seconds: float) -> list[Action]:
    """The schedule of ``seed``, in order of time; every action has ended at ``seconds``."""
    lanes: dict[str, tuple[float, float, Callable[[random.Random, float], Action]]] = {
        SERVICE: (3.0, 12.0, _service),
        POSTGRES: (4.0, 16.0, _part(POSTGRES, 8.0)),
        VALKEY: (4.0, 20.0, _part(VALKEY, 8.0)),
        SIMULATOR: (2.0, 10.0, _vendor),
        SLOW_CLIENT: (3.0, 12.0, _slow_client),
    }
    actions = []
    for name, (shortest, longest, make) in lanes.items():
        rng = random.Random(f"{seed}|{name}")  # noqa: S311 - repeatable, not secret
        at = rng.uniform(1.0, shortest + 1.0)
        while (action := make(rng, round(at, 3))).ends < seconds:
            actions.append(action)
            at = action.ends + rng.uniform(shortest, longest)
    return sorted(actions, key=lambda one: (one.at, one.target))


def kills(seed: int, count: int, longest: float = 4.0) -> list[Action]:
    """Only ``count`` kills of the service, at random moments of its life.

    Four of five hit while it collects, up to ``longest`` seconds after its first tick; the others
    while it starts. How many fit into a storm depends on how fast the machine starts it.
    """
    rng = random.Random(f"{seed}|kills")  # noqa: S311 - repeatable, not secret
    actions = []
    for _ in range(count):
        if rng.random() < 0.8:
            at = round(rng.uniform(0.0, longest), 3)
            actions.append(Action(at, SERVICE, "kill", 0.0, when="collecting"))
        else:
            at = round(rng.uniform(0.0, 2.0), 3)
            actions.append(Action(at, SERVICE, "kill", 0.0, when="started"))
    return actions


def _service(rng: random.Random, at: float) -> Action:
    if rng.random() < 0.7:
        return Action(at, SERVICE, "kill", round(rng.uniform(0.0, 2.0), 3))
    return Action(at, SERVICE, "stall", round(rng.uniform(0.2, 5.0), 3))


def _part(name: str, longest: float) -> Callable[[random.Random, float], Action]:
    def make(rng: random.Random, at: float) -> Action:
        kind: Kind = "kill" if rng.random() < 0.6 else "stall"
        return Action(at, name, kind, round(rng.uniform(0.3, longest), 3))

    return make


def _vendor(rng: random.Random, at: float) -> Action:
    if rng.random() < 0.12:
        return Action(at, SIMULATOR, "stall", round(rng.uniform(0.3, 4.0), 3))
    name, values = rng.choice(FAULTS)
    value = rng.choice(values)
    lasts = 0.0 if name in ONCE else round(rng.uniform(0.5, 6.0), 3)
    return Action(at, SIMULATOR, "fault", lasts, name, value)


def _slow_client(rng: random.Random, at: float) -> Action:
    return Action(at, SLOW_CLIENT, "stall", round(rng.uniform(1.0, 10.0), 3))
