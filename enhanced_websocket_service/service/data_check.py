"""Freshness and completeness of one symbol's history, and its repair, as the lifecycle needs them.

Owns when a repair is due: the data is measured every minute, but each repair costs a credit. When they do
not help they become rarer, or a night of retries would spend the credits of the session.
"""

import math
from typing import Protocol

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import (
    EwsError,
    InvalidKey,
    NotEntitled,
    StorageError,
    sentences,
)
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.l0.validator import Assessment
from enhanced_websocket_service.market.calendar import Session, iso_local

from .assessment_file import AssessmentFile

FIRST_REPAIR_PAUSE_S, LONGEST_REPAIR_PAUSE_S = 60.0, 900.0
REPAIR, MEASUREMENT = "L0 repair", "L0 measurement"
"""Parts as ``Failures`` calls them, followed by the symbol where there are several."""


class History(Protocol):
    """The L0 data as the lifecycle needs it."""

    async def assess(self, symbol: str) -> Assessment:
        """Measure freshness and completeness now. Raises ``StorageError``."""
        ...

    async def repair(self, symbol: str) -> None:
        """Fetch what is missing since the last complete bar. Raises ``L0Error``."""
        ...

    async def check_files(self) -> None:
        """Find out whether the backup files can be written; does not raise."""
        ...


class DataCheck:
    """The history of ``symbol``; ``assessment`` is what was found last, ``assessed_at`` when.

    :param kept: remembers over restarts when it was found good; ``None``: nothing does.
    :param alone: whether it is the only symbol, and need not be named.
    """

    def __init__(
        self,
        symbol: str,
        history: History,
        clock: Clock,
        failures: Failures,
        *,
        kept: AssessmentFile | None = None,
        alone: bool,
    ) -> None:
        self.assessment: Assessment | None = None
        self.assessed_at: float | None = None
        self._symbol = symbol
        self._history = history
        self._clock = clock
        self._failures = failures
        self._kept = kept
        self.overdue = False  # a session goes on on what was found before, as PostgreSQL was away
        of = "" if alone else f" of {symbol}"
        self._repair, self._measurement = f"{REPAIR}{of}", f"{MEASUREMENT}{of}"
        self._next_repair = -math.inf  # Clock.elapsed
        self._next_repair_told = ""
        self._repair_pause_s = FIRST_REPAIR_PAUSE_S / 2
        self._repaired_at: float | None = None  # by the last repair, the data is still not usable
        self._refused = False  # by the vendor, to every key, when it was asked last

    async def assess(self) -> Assessment:
        """Measure now. Raises ``StorageError``."""
        self.assessment = await self._history.assess(self._symbol)
        self.assessed_at = self._clock.now()
        self.overdue = False
        if self._kept is not None:
            good = usable(self.assessment)
            self._kept.note(self._symbol, self.assessed_at, good=good)
        self._failures.succeeded(self._measurement)
        if usable(self.assessment):
            self._repaired_at = None
            self._failures.forgotten(self._repair)  # whoever mended it
        return self.assessment

    async def look_again(self) -> None:
        """Measure what was measured before, so that others see the present. Never raises."""
        if self.assessment is None and not self.overdue:
            return
        try:
            await self.assess()
        except StorageError as error:
            self._failures.failed(self._measurement, str(error))

    def good_at(self, session: Session) -> float | None:
        """When the data was found good that ``session`` may be collected on without looking again."""
        if self._kept is None:
            return None
        return self._kept.good_at(self._symbol, session, self._clock.now())

    def cleared(self, session: Session) -> None:
        """``session`` is collected on what was found."""
        if self._kept is not None:
            self._kept.cleared(self._symbol, self._clock.now(), session)

    def go_on(self, error: StorageError) -> None:
        """It cannot be measured now, and is good as far as is known; it is measured later."""
        self.overdue = True
        self._failures.failed(self._measurement, str(error))

    @property
    def repair_is_due(self) -> bool:
        """Whether a repair may be tried now."""
        return self._clock.elapsed() >= self._next_repair

    async def repair(self) -> Assessment:
        """Fetch what is missing and measure again; ``why`` tells what came of it. Raises ``StorageError``."""
        try:
            await self._history.repair(self._symbol)
        except EwsError as error:
            self._refused = isinstance(error.__cause__, InvalidKey | NotEntitled)
            self._failures.failed(self._repair, str(error))
        else:
            self._refused = False
            self._failures.succeeded(self._repair)
        self._repaired_at = self._clock.now()
        self._repair_pause_s = min(2 * self._repair_pause_s, LONGEST_REPAIR_PAUSE_S)
        self._next_repair = self._clock.elapsed() + self._repair_pause_s
        self._next_repair_told = iso_local(int(self._repaired_at + self._repair_pause_s))
        return await self.assess()

    def irreplaceable(self, assessment: Assessment) -> str | None:
        """Where all that lacks are whole bars in place of partial ones: why the vendor gives none."""
        if not assessment.lacks_whole_bars_only:
            return None
        if self._refused:
            return "No API key may ask the vendor for whole bars in their place"
        if self._repaired_at is not None and self._failures.of(self._repair) is None:
            return "The vendor was asked, and has no whole bars in their place"
        return None

    def settle(self) -> None:
        """The data is good enough to go on: no repair is due until the next session is near."""
        self._next_repair = -math.inf
        self._repair_pause_s = FIRST_REPAIR_PAUSE_S / 2

    def why(self, assessment: Assessment) -> str:
        """Why the data is not usable, and what became of the last repair."""
        return sentences(*assessment.reasons, *self.last_repair())

    def last_repair(self) -> tuple[str, ...]:
        """A sentence on the last repair, while it has not mended the data."""
        failure = self._failures.of(self._repair)
        if failure is not None:
            at, reason = iso_local(int(failure.last_at)), failure.reason.rstrip(".")
            told = f"The last repair failed at {at}: {reason}"
        elif self._repaired_at is not None:
            told = f"The repair at {iso_local(int(self._repaired_at))} brought too little"
        else:
            return ()
        if math.isfinite(self._next_repair):
            told += f"; the next is due {self._next_repair_told}"
        return (told,)


def usable(assessment: Assessment) -> bool:
    """Whether one may go live on it."""
    return assessment.is_fresh and assessment.is_complete
