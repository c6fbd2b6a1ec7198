"""Clocks are set: by a second or a day, ahead and back, at any moment. What waits or counts gets over it.

The right time is that of the vendor; the test knows it, the units only see the clock that is set.
"""

import math
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.clock import still_ahead
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool, Lease

DAY = 86_400.0
NOON = 1_748_952_000.0 + 0.5  # 2025-06-03 12:00 UTC: no jump back and forth meets a real midnight

_ERRORS = (
    st.floats(1.5, DAY)
    | st.floats(-DAY, -1.5)
    | st.sampled_from([-DAY, -3600.0, -90.0, 90.0, 3600.0, 12 * 3600.0, 13 * 3600.0, DAY])
)
"""By how much the clock is wrong meanwhile."""
_GLITCHES = st.lists(
    st.tuples(
        st.floats(0.1, 900.0),  # seconds before it
        _ERRORS,
        st.floats(0.01, 300.0),  # seconds it lasts
        st.integers(0, 4),  # calls meanwhile
        st.booleans(),  # the process is killed meanwhile
    ),
    min_size=1,
    max_size=12,
)


def make() -> KeyPool:
    return KeyPool([ApiKey("K", "secret")], spacing_s=8.0, minute_limit=8, day_limit=800)


@dataclass
class World:
    """One key, its ledgers on file, a vendor with the right time."""

    pool: KeyPool = field(default_factory=make)
    right: float = NOON
    error: float = 0.0
    spent: int = 0
    file: object = None

    def now(self) -> float:
        return self.right + self.error

    def call(self) -> bool:
        if self.file is not None:
            assert self.pool.import_state(self.file, self.now(), same_timeline=True)
        lease = self.pool.acquire(self.now())
        if isinstance(lease, Lease):
            self.spent += 1
            self.pool.report(lease, "ok", self.now())
        self.file = self.pool.export_state(self.now())
        self.pool.exported(self.file)
        return isinstance(lease, Lease)

    def look(self) -> None:
        self.pool.snapshot(self.now())


@given(_GLITCHES)
def test_keys_are_free_soon_after_the_clock_is_right_again_and_forget_nothing(
    glitches: list[tuple[float, float, float, int, bool]],
) -> None:
    world = World()
    world.call()
    for pause, error, lasts, calls, killed in glitches:
        # As in a session: somebody looks all the time, and asks now and then.
        for _ in range(int(pause // 20)):
            world.right += 20.0
            world.look()
        world.right += pause % 20
        world.call()
        world.error = error
        world.look()
        for _ in range(calls):
            world.right += lasts / (calls + 1)
            world.call()
        world.right += lasts / (calls + 1)
        if killed:
            world.pool = make()
            assert world.pool.import_state(world.file, world.now(), same_timeline=True)
        world.error = 0.0
        now = world.now()
        if world.file is not None:
            assert world.pool.import_state(world.file, now, same_timeline=True)
        # A minute may be full; nothing waits for the wrong instant.
        assert world.pool.free_at(now) - now <= 61.0
        budget = world.pool.budget(now)
        assert budget.left == 800 - world.spent, "credits of the vendor's day"
        assert world.pool.total_calls(now) == world.spent
        assert math.isfinite(budget.min_interval_s)


@given(st.floats(-2 * DAY, 2 * DAY), st.floats(0.0, DAY))
def test_an_instant_further_ahead_than_its_longest_wait_is_void(
    ahead: float, longest: float
) -> None:
    assert still_ahead(NOON + ahead, NOON, longest) == (NOON < NOON + ahead <= NOON + longest)
