"""Which faults begin and end at which instant: the script that the stream plays. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """What happens at one instant (unix seconds of the clock): first ``clear``, then ``set``."""

    at: float
    set: Mapping[str, Any] = field(default_factory=dict)
    clear: tuple[str, ...] = ()

    def shown(self) -> dict[str, Any]:
        """For ``GET /_sim/faults``."""
        return {
            "at": datetime.fromtimestamp(self.at, UTC).isoformat(),
            "set": dict(self.set),
            "clear": list(self.clear),
        }


class Agenda:
    """Steps in the order of time; equal instants keep their order."""

    def __init__(self, steps: Iterable[Step] = ()) -> None:
        self._steps = sorted(steps, key=lambda step: step.at)
        self._done = 0

    def next_instant(self) -> float | None:
        """When something happens next; ``None``: nothing more."""
        return self._steps[self._done].at if self._done < len(self._steps) else None

    def take(self) -> Step:
        """The next step, which then counts as done."""
        step = self._steps[self._done]
        self._done += 1
        return step

    def shown(self) -> list[dict[str, Any]]:
        steps: Sequence[Step] = self._steps
        return [{**step.shown(), "done": i < self._done} for i, step in enumerate(steps)]
