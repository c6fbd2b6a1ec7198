"""What ``/status`` tells of the reconciliation of a symbol, and what its next round begins with."""

from dataclasses import dataclass, field
from typing import Any

from enhanced_websocket_service.market.calendar import iso_local
from enhanced_websocket_service.market.lost import LostSpans

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 60.0, 1800.0


@dataclass(slots=True)
class ReconciliationState:
    """What ``/status`` tells of one symbol."""

    expected: int = 0
    final: int = 0
    seen: int = 0  # the vendor's bar is there, not final yet
    lacking: int = 0  # no bar of the vendor
    next_due: float | None = None
    calls: int = 0
    last_call_at: float | None = None
    answers: int = 0  # calls whose answer was used
    last_error: str | None = None
    unanswered: bool = False  # it was the vendor who failed
    published: int = 0
    corrected: int = 0  # bars that the vendor changed after they were final
    lost: LostSpans = field(default_factory=LostSpans)
    drift: dict[str, Any] = field(default_factory=dict)
    backoff_s: float = FIRST_BACKOFF_S
    resting_until: float = 0.0  # Clock.elapsed

    def shown(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "expected_slots": self.expected,
            "final": self.final,
            "seen_once": self.seen,
            "lacking": self.lacking,
            "next_due": None if self.next_due is None else iso_local(int(self.next_due)),
            "calls": self.calls,
            "last_call": None if self.last_call_at is None else iso_local(int(self.last_call_at)),
            "last_error": self.last_error,
            "bars_published": self.published,
            "corrected": self.corrected,
            "repairing": [
                {"from": iso_local(start), "to": iso_local(end)} for start, end in self.lost.spans
            ],
            "drift": self.drift,
        }
