"""What befalls whom when: a pure function of the seed.

Every target has a lane of its own with a random generator of its own, so nothing befalls one target
twice at once, and a change to one lane leaves the others as they were. Times are real seconds since
the storm began.
"""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

Kind = Literal["kill", "outage", "stall", "fault", "lie", "instance"]
When = Literal["storm", "started", "collecting"]

SERVICE: Final = "service"
SECOND: Final = "second"
"""A second instance over the same database and Redis, which finds the fence taken."""
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
LIES: Final[tuple[tuple[str, tuple[Any, ...]], ...]] = (
    ("frozen", (True,)),
    ("delay_s", (300,)),
    ("rest_frozen", (True,)),
    ("rest_lag_s", (600,)),
)
"""Faults of the vendor that look like success."""
DATABASE_LIES: Final = ("read_only", "lock", "trigger")
REDIS_LIES: Final = ("oom", "pause_write")
"""Pings are answered, nothing is written; see ``lies``."""
SHORTEST_LIE_S, LONGEST_LIE_S = 8.0, 45.0
"""Some outlast what ``honesty`` allows."""
LEASE_AT_RISK_S: Final = 6.0
"""A PostgreSQL that takes no heartbeat for longer may end the lease of the fence, rightly: with a second
instance waiting, that would be another story than the one whose end is judged here."""
ONCE: Final = frozenset({"drop", "close", "garbage_frames"})


@dataclass(frozen=True, slots=True)
class Action:
    """Something befalls ``target`` at ``at`` and lasts ``lasts`` seconds.

    ``at`` counts from the beginning of the storm or, by ``when``, from the moment the service was started
    last or has taken its first tick since.

    ``kill``: ``kill -9``, started again after ``lasts``; ``outage``: the same after an orderly end (servers
    only). ``stall``: SIGSTOP, SIGCONT after ``lasts``.
    ``fault``: the vendor's fault ``name`` with ``value``, taken back after ``lasts``. ``lie``: a server that
    answers and does nothing, in the way ``name``. ``instance``: started, and ``kill -9`` after ``lasts``.
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
        POSTGRES: (4.0, 16.0, _part(POSTGRES, 8.0, DATABASE_LIES)),
        VALKEY: (4.0, 20.0, _part(VALKEY, 8.0, REDIS_LIES)),
        SIMULATOR: (2.0, 10.0, _vendor),
        SLOW_CLIENT: (3.0, 12.0, _slow_client),
    }
    actions = []
    for name, (shortest, longest, make) in lanes.items():
        rng = random.Random(f"{seed}|{name}")  # noqa: S311 - repeatable, not secret
        at = rng.uniform(1.0, shortest + 1.0)
        # Beyond the end, so that what is left out does not depend on the length of the storm.
        while (action := make(rng, round(at, 3))).at < seconds:
            actions.append(action)
            at = action.ends + rng.uniform(shortest, longest)
    risks = [
        (one.at - LEASE_AT_RISK_S, one.ends + LEASE_AT_RISK_S)
        for one in actions
        if one.target == POSTGRES and one.lasts > LEASE_AT_RISK_S
    ]
    kept = [
        one
        for one in actions
        if one.ends < seconds
        and not (one.target == SECOND and any(a < one.ends and one.at < b for a, b in risks))
    ]
    return sorted(kept, key=lambda one: (one.at, one.target))


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
    chance = rng.random()
    if chance < 0.55:
        return Action(at, SERVICE, "kill", round(rng.uniform(0.0, 2.0), 3))
    if chance < 0.75:
        return Action(at, SECOND, "instance", round(rng.uniform(2.0, 10.0), 3))
    return Action(at, SERVICE, "stall", round(rng.uniform(0.2, 5.0), 3))


def _part(
    name: str, longest: float, lies: tuple[str, ...]
) -> Callable[[random.Random, float], Action]:
    def make(rng: random.Random, at: float) -> Action:
        chance = rng.random()
        if chance < 0.4:
            return Action(at, name, "lie", _lies_for(rng), rng.choice(lies))
        kind: Kind = "kill" if chance < 0.76 else "stall"
        return Action(at, name, kind, round(rng.uniform(0.3, longest), 3))

    return make


def _vendor(rng: random.Random, at: float) -> Action:
    if rng.random() < 0.12:
        return Action(at, SIMULATOR, "stall", round(rng.uniform(0.3, 4.0), 3))
    if rng.random() < 0.25:
        name, values = rng.choice(LIES)
        return Action(at, SIMULATOR, "fault", _lies_for(rng), name, rng.choice(values))
    name, values = rng.choice(FAULTS)
    value = rng.choice(values)
    lasts = 0.0 if name in ONCE else round(rng.uniform(0.5, 6.0), 3)
    return Action(at, SIMULATOR, "fault", lasts, name, value)


def _lies_for(rng: random.Random) -> float:
    return round(rng.uniform(SHORTEST_LIE_S, LONGEST_LIE_S), 3)


def _slow_client(rng: random.Random, at: float) -> Action:
    return Action(at, SLOW_CLIENT, "stall", round(rng.uniform(1.0, 10.0), 3))
