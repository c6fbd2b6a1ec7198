"""Does the work of each hop while there is none, so that a fault shows before the next price comes.

Only a hop that did nothing for a while is asked, one question at a time, and what it does not answer is a
problem with its name. Real time: disks, databases and networks do not run faster in virtual time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Final

from enhanced_websocket_service.errors import EwsError
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.watermarks import Hop, Watermarks

LOOK_S: Final = 1.0
RARELY_S: Final = 60.0
"""Between two probes of a hop while no prices are expected."""
WITHIN_S: Final = 5.0
SOON_S: Final = 2.0
"""Work that has waited for so long gets an explanation."""
PARTS: Final = {
    Hop.JOURNALED: "probe of the journal's disk",
    Hop.PUBLISHED: "probe of the clients' hub",
    Hop.CACHED: "probe of Redis",
    Hop.COMMITTED: "probe of PostgreSQL",
}
"""What ``Failures`` calls them."""

Probe = Callable[[], Awaitable[str | None]]
"""Does the work; returns what it had to leave out, raises ``EwsError`` where the work was not done."""


@dataclass(slots=True)
class _State:
    """What is known of one hop."""

    began: float  # the last probe, or the start (monotonic)
    latency_ms: float | None = None
    told: str | None = None
    failed_at: float | None = None


class Canary:
    """Run ``run`` as one task.

    :param every_s: how long a hop may do nothing, real seconds; 0: no probes.
    :param expecting: whether prices may come: else a probe a minute is enough.
    :param may_probe: whether this instance is the one that collects.
    :param explain: by hop, who is in the way of work that waits.
    """

    def __init__(
        self,
        marks: Watermarks,
        probes: Mapping[Hop, Probe],
        *,
        every_s: float,
        expecting: Callable[[], bool],
        may_probe: Callable[[], bool],
        failures: Failures,
        explain: Mapping[Hop, Probe],
    ) -> None:
        self._marks, self._probes, self._explain = marks, probes, explain
        self._every_s = every_s
        self._expecting, self._may_probe = expecting, may_probe
        self._failures = failures
        self._states = {hop: _State(monotonic()) for hop in probes}
        self.reasons: dict[Hop, str | None] = {}
        """Who is in the way of what waits at a hop, as far as anybody knows."""

    @property
    def latencies(self) -> dict[Hop, float]:
        """Real milliseconds that the last probe took."""
        return {
            hop: state.latency_ms
            for hop, state in self._states.items()
            if state.latency_ms is not None
        }

    @property
    def told(self) -> dict[Hop, str | None]:
        """What the last probe said, where it failed or left something out."""
        return {hop: state.told for hop, state in self._states.items()}

    async def run(self) -> None:
        """Probe until cancelled."""
        async with asyncio.TaskGroup() as group:
            for hop in self._probes:
                group.create_task(self._keep(hop), name=PARTS[hop])

    async def _keep(self, hop: Hop) -> None:
        state = self._states[hop]
        while True:
            await asyncio.sleep(LOOK_S)
            waiting = next((one for one in self._marks.undone() if one.hop is hop), None)
            self._settle(hop, state)
            explain = None if waiting is None or waiting.age_s <= SOON_S else self._explain.get(hop)
            self.reasons[hop] = None if explain is None else await explain()
            if waiting is None and self._is_due(hop, state):
                await self._ask(hop, state)

    def _is_due(self, hop: Hop, state: _State) -> bool:
        if not self._every_s or not self._may_probe():
            return False
        last = self._marks.last(hop)
        done = state.began if last is None else max(state.began, last.at)
        pause_s = self._every_s if self._expecting() else max(self._every_s, RARELY_S)
        return monotonic() - done >= pause_s

    def _settle(self, hop: Hop, state: _State) -> None:
        """A probe that failed is history once the hop has worked since, or nobody may ask it again."""
        if state.failed_at is None:
            return
        last = self._marks.last(hop)
        if (last is not None and last.at > state.failed_at) or not self._may_probe():
            state.failed_at = state.told = None
            self._failures.succeeded(PARTS[hop])

    async def _ask(self, hop: Hop, state: _State) -> None:
        state.began, began = monotonic(), perf_counter()
        asked = asyncio.create_task(self._answer(hop), name=f"asking: {PARTS[hop]}")
        try:
            if not (await asyncio.wait({asked}, timeout=WITHIN_S))[0]:
                self._failed(hop, state, f"It has not answered for {WITHIN_S:g} s.")
                await asyncio.wait({asked})
            note = asked.result()
        except (EwsError, OSError) as error:
            self._failed(hop, state, str(error) or type(error).__name__)
        else:
            state.latency_ms = round((perf_counter() - began) * 1000, 2)
            state.told, state.failed_at = note, None
            self._marks.alive(hop)
            self._failures.succeeded(PARTS[hop])
        finally:
            if not asked.done():
                asked.cancel()
                asked.add_done_callback(lambda one: one.cancelled() or one.exception())

    async def _answer(self, hop: Hop) -> str | None:
        return await self._probes[hop]()

    def _failed(self, hop: Hop, state: _State, reason: str) -> None:
        state.told, state.failed_at = reason, monotonic()
        self._failures.failed(PARTS[hop], reason)
