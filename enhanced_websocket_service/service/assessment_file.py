"""When the history of each symbol was last found good, on file: a session begins without PostgreSQL, too.

Between the last slot of a session and the open of the next no slot is expected, so what was found good then
still is. Owns ``STATE_DIR/assessment.json``; what it allows is told in the state and mended later.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.l0.slots import slots_ended_since
from enhanced_websocket_service.market.calendar import Session, TradingCalendar
from enhanced_websocket_service.storage.atomic_file import replace_file

PART: Final = "assessment file"
"""As ``Failures`` calls it."""


LONGEST_S: Final = 30 * 86_400.0
"""No two slots are so far apart; further back nothing need be counted."""


class FoundGood(msgspec.Struct, frozen=True):
    """At ``at`` the data was fresh and complete; ``session``: the open of the one it was found good for."""

    at: float  # unix seconds UTC, of the service's clock
    session: int | None = None


def still_good(found: FoundGood, session: Session, calendar: TradingCalendar, now: float) -> bool:
    """Whether ``session`` may be collected on it, without looking again. Pure."""
    if found.session == session.opens:
        return True
    if not found.at <= now:  # of another timeline, or not ours
        return False
    return found.at <= session.opens and not _ended(calendar, found.at, session.opens)


def _ended(calendar: TradingCalendar, since: float, now: float) -> bool:
    """Whether a slot has ended meanwhile."""
    return now - since > LONGEST_S or slots_ended_since(calendar, since, now) > 0


class AssessmentFile:
    """What was found good, by symbol. A file that cannot be used is told, and costs only knowledge.

    :param simulated: invented prices have a file of their own: they say nothing about real ones.
    """

    def __init__(
        self,
        state_dir: Path,
        calendars: Mapping[str, TradingCalendar],
        failures: Failures,
        *,
        simulated: bool,
    ) -> None:
        self._path = state_dir / ("assessment-simulated.json" if simulated else "assessment.json")
        self._calendars = calendars
        self._failures = failures
        self._found = self._load()

    def good_at(self, symbol: str, session: Session, now: float) -> float | None:
        """When the data was found good that ``session`` may be collected on; ``None``: it was not."""
        found = self._found.get(symbol)
        if found is None or not still_good(found, session, self._calendars[symbol], now):
            return None
        return found.at

    def note(self, symbol: str, at: float, *, good: bool) -> None:
        """The data was measured. Written only where that says more than what is on file."""
        known = self._found.get(symbol)
        if not good:
            if known is not None:
                del self._found[symbol]
                self._save()
        elif known is None or at < known.at or _ended(self._calendars[symbol], known.at, at):
            self._found[symbol] = FoundGood(at, None if known is None else known.session)
            self._save()

    def cleared(self, symbol: str, at: float, session: Session) -> None:
        """``session`` is collected on data found good at ``at``."""
        known = self._found.get(symbol)
        if known is None or known.session != session.opens:
            self._found[symbol] = FoundGood(at if known is None else known.at, session.opens)
            self._save()

    def _load(self) -> dict[str, FoundGood]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, FoundGood])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._failures.failed(
                PART,
                f"{self._path} cannot be used ({error}): without PostgreSQL no session begins until the "
                "data has been measured. It is replaced then.",
            )
            return {}

    def _save(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, msgspec.json.encode(self._found))
        except OSError as error:
            self._failures.failed(
                PART,
                f"{self._path} cannot be written: {error.strerror or error}. Without PostgreSQL a restart "
                "will not collect. Make the files in STATE_DIR writable.",
            )
        else:
            self._failures.succeeded(PART)
