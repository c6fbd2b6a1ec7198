"""The REST prices asked during one silence, what they prove, and when the next is due. Pure."""

from collections import deque
from typing import Final, get_args

from .rest_agreement import WINDOW_S, same_price
from .status import Sample, SampleResult

LAG_S: Final = 21.0
"""A sample asked this long after the socket began to tell cannot be of before it: the lag and 1 s."""
STEP_S, LONGEST_STEP_S = 4.0, 60.0
PROMPT_S: Final = 3.0
"""After a sample that no price of the socket explains, the next one comes soon."""
DECISIVE_S: Final = 30.0
"""Until this long into a silence samples follow each other evenly, later at growing distances."""
REPEATS_AT_ONCE: Final = 4
REPEAT_EVERY_S: Final = 720.0
"""Questions about prices that come and repeat: so many at once, then one in so many seconds. At most 29 in
a session of 17,700 s, which one key's share for comparing (32 credits of 800) holds."""


class SampleLog:
    """What REST said since the last proof of life. Instants are those of the detector."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = dict.fromkeys(get_args(SampleResult), 0)
        self.rest: Sample | None = None  # the last one
        self.condemned_at: float | None = None
        self.proof = ""
        self.explained = False  # by the last sample
        self.first_failure: float | None = None  # since the last answer
        self.why_alone = ""
        self.answered_at = 0.0
        self.next_at = 0.0
        self._tried: deque[Sample] = deque(maxlen=16)
        self._allowance = float(REPEATS_AT_ONCE)
        self._allowed_at = 0.0

    @property
    def last(self) -> Sample | None:
        """The last one of the silence under way."""
        return self._tried[-1] if self._tried else None

    @property
    def contradicted(self) -> bool:
        """Whether the last answer is one that the socket did not bring: an open accusation."""
        last = self.last
        return last is not None and not self.explained and last.counts

    @property
    def begun(self) -> bool:
        """Whether anything was asked in this silence, answered or not."""
        return bool(self._tried) or self.first_failure is not None

    def begin(self) -> None:
        """A silence begins, or its cause is over: nothing of before counts."""
        self.condemned_at = None
        self.proof = ""
        self.explained = False
        self.first_failure = None
        self.why_alone = ""
        self.answered_at = 0.0
        self.next_at = 0.0
        self._tried.clear()

    def answered(
        self, one: Sample, proved_at: float, *, unborn: bool, believed: bool = True
    ) -> Sample | None:
        """Take an answer; returns the earlier sample from which the vendor has moved, if that is proved.

        :param proved_at: the socket's last new price.
        :param unborn: the connection has brought nothing, and nothing failed before it.
        :param believed: REST is a witness; else its answer is as good as none.
        """
        moved_from = next(
            (
                earlier
                for earlier in self._tried
                if earlier.counts
                and (not earlier.agrees or earlier.asked_at >= proved_at + WINDOW_S)
                and not same_price(earlier.price, one.price)
            ),
            None,
        )
        stands_still = any(same_price(earlier.price, one.price) for earlier in self._tried)
        self._tried.append(one)
        if believed:
            self.first_failure = None
            self.answered_at = one.asked_at
        self.explained = one.agrees or (unborn and stands_still)
        return moved_from if one.counts and not one.agrees else None

    def condemn(self, moved_from: Sample, now: float) -> None:
        """The vendor moved in two samples, and the socket did not."""
        if self.condemned_at is not None or self.rest is None:
            return
        self.condemned_at = now
        self.proof = (
            f"the vendor moved from {moved_from.price:g} to {self.rest.price:g} in two REST prices asked "
            f"{self.rest.asked_at - moved_from.asked_at:.0f} s apart, the socket did not"
        )

    def failed(self, why: str, now: float) -> None:
        """No REST price could be had, or none that can be believed."""
        if self.first_failure is None:
            self.first_failure = now
        self.why_alone = why

    def counted(self, result: SampleResult) -> SampleResult:
        self.counts[result] += 1
        return result

    def may_ask_of_repeats(self, now: float) -> bool:
        """Whether the share of questions about repeated prices allows one more."""
        return self._allowed(now) >= 1.0

    def repeats_allowed_at(self, now: float) -> float:
        """When it does next."""
        lacking = 1.0 - self._allowed(now)
        # Not by less than a second: who waits for the last bit of a float waits for ever.
        return now if lacking <= 0 else now + max(1.0, lacking * REPEAT_EVERY_S)

    def repeat_asked(self, now: float) -> None:
        """A question about repeated prices is asked."""
        self._allowance, self._allowed_at = self._allowed(now) - 1.0, now

    def _allowed(self, now: float) -> float:
        grown = self._allowance + max(0.0, now - self._allowed_at) / REPEAT_EVERY_S
        return min(float(REPEATS_AT_ONCE), grown)
