"""What fails and has not succeeded since, part by part.

A cause that only stands in a log line, or in a state that the next retry overwrites, is gone when somebody
looks. Whoever writes, repairs or connects says here that it failed, and that it succeeded; ``/health``,
``/status`` and ``system_health`` show what stands here. Owns the log lines about it, too: one when a part
begins to fail, one a minute at most while it fails, one when it works again.
"""

from dataclasses import dataclass, replace
from time import monotonic

import structlog

from .clock import Clock
from .telemetry import Rarely

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failure of a part that has not succeeded since; times in unix seconds UTC of the clock."""

    part: str
    reason: str
    since: float
    last_at: float
    times: int


class Failures:
    """The parts of one process that fail at present.

    A part is a short name for people: ``backup files``, ``L0 repair``. What a part is not asked to do
    any more is ``forgotten``, or it would fail for ever.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._present: dict[str, Failure] = {}
        self._rarely = Rarely()
        self._told: set[str] = set()  # parts whose present failure the log knows of

    def failed(self, part: str, reason: str) -> None:
        """``part`` failed for ``reason``: a sentence that says what, where and what to do. No secrets."""
        now = self._clock.now()
        known = self._present.get(part)
        if known is None:
            self._present[part] = Failure(part, reason, since=now, last_at=now, times=1)
        else:
            self._present[part] = replace(known, reason=reason, last_at=now, times=known.times + 1)
        # Real time: the log is read by people, however fast the service's clock runs.
        if times := self._rarely.due(monotonic(), part):
            self._told.add(part)
            log.warning("Failed", part=part, reason=reason, times=times)

    def succeeded(self, part: str) -> None:
        """``part`` did what it is for. Cheap when it did not fail before."""
        known = self._present.pop(part, None)
        if known is not None and part in self._told:
            self._told.discard(part)
            log.info("Works again", part=part, failures=known.times)

    def forgotten(self, part: str) -> None:
        """Nobody asks ``part`` to do anything any more, so its last failure says nothing."""
        self._present.pop(part, None)
        self._told.discard(part)

    def of(self, part: str) -> Failure | None:
        """The last failure of ``part``; ``None`` when it has succeeded since, or never failed."""
        return self._present.get(part)

    @property
    def present(self) -> tuple[Failure, ...]:
        """All that fail, the one that began first ahead."""
        return tuple(sorted(self._present.values(), key=lambda one: one.since))
