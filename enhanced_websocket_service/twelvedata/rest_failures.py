"""Whether the vendor's REST fails: told once calls fail in succession, for as long as somebody calls."""

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import (
    CreditsExhausted,
    InvalidKey,
    NotEntitled,
    VendorError,
    VendorUnavailable,
    sentences,
)
from enhanced_websocket_service.failures import Failures

VENDOR_REST = "vendor REST"
"""The part, as ``Failures`` calls it."""
IN_SUCCESSION = 2
"""So many calls without one answer in between: a call that its first retry mends is no fault."""
UNASKED_S = 900.0
"""Seconds of the clock. In a session the last bar is asked for every 5 minutes, again and again while that
fails; whoever has asked nothing for so long needs nothing, and a new question finds a new fault."""


class RestFailures:
    """Counts calls that were not answered; tells ``failures``, with the vendor's words.

    What the vendor says of one key is no failure of REST, nor an answer: that is told of keys.
    """

    def __init__(self, failures: Failures, clock: Clock) -> None:
        self._failures = failures
        self._clock = clock
        self._in_succession = 0
        self._last_at = 0.0  # of clock.elapsed

    def failed(self, error: VendorError) -> None:
        """A call ended with ``error``."""
        if isinstance(error, InvalidKey | CreditsExhausted | NotEntitled):
            return
        if not isinstance(error, VendorUnavailable):
            self.answered()  # whom it refuses the question, it answers
            return
        self._in_succession += 1
        self._last_at = self._clock.elapsed()
        if self._in_succession >= IN_SUCCESSION:
            self._failures.failed(
                VENDOR_REST,
                sentences(
                    str(error),
                    "While calls fail, no price is polled or compared, no bar repaired or reconciled.",
                ),
            )

    def answered(self) -> None:
        """A call brought an answer that can be understood."""
        self._in_succession = 0
        self._failures.succeeded(VENDOR_REST)

    def look(self) -> None:
        """Call it now and then: what nobody has asked for ``UNASKED_S`` fails no more."""
        if self._in_succession and self._clock.elapsed() - self._last_at >= UNASKED_S:
            self._in_succession = 0
            self._failures.forgotten(VENDOR_REST)
