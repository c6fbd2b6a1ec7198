"""How much one call brings, and which slots to ask for together. Pure.

The vendor cuts an answer short without saying so, at a number of rows that is documented as 5,000 and need
not be; what it keeps is believed to be what is nearest the end. Nothing here decides whether data is
complete: a wrong guess about the cap or the hours of the feed costs a call, never a bar.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

A_SESSION = 60
DAY_S = 86_400
_MONDAY = 3 * DAY_S  # the epoch was a Thursday
_MARGIN = 0.97
"""Of a page, where its rows are estimated: a chunk that is a little too large costs a call."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Slots to ask for in one call, unix seconds UTC, ascending.

    ``start`` is where the question begins: at the first slot or, as an *anchor*, at the slot before.
    An answer that reaches the anchor has not been cut before the first slot. ``run`` numbers the
    stretch of incomplete days that the chunk is a part of.
    """

    slots: tuple[int, ...]
    start: int
    run: int


class Paging:
    """What the answers of one run have shown.

    :param expected: every slot that history must have, ascending, with the number of its trading day.
    :param page_rows: the rows asked for in a call, and the cap until an answer shows another.
    """

    def __init__(self, expected: dict[int, int], page_rows: int) -> None:
        self._day_of = expected
        self._expected = tuple(expected)
        self.page_rows = page_rows
        self.cap = page_rows
        self.keeps_newest = False
        """Whether an answer was seen that was cut at its old end."""
        self._known = False
        # A slot behind an answer that may have been cut -> its rows, and whether that is the old end.
        self._suspects: dict[int, tuple[int, bool]] = {}
        self._per_weekday = 0.0  # rows of a weekday; 0: sessions only

    def learn(
        self, asked: Sequence[int], rows: Sequence[int], *, outside: int, left: int, right: int
    ) -> None:
        """Take note of an answer.

        :param asked: the slots it was asked for, ascending.
        :param rows: the open times it brought, ascending.
        :param outside: how many of them are no expected slots.
        :param left, right: how many slots asked for lie before its first and after its last row.
        """
        for slot in [one for one in self._suspects if asked[0] <= one <= asked[-1]]:
            suspect = self._suspects.pop(slot)
            if rows:  # there was more: the answer before was cut
                self._know(*suspect)
        count = len(rows)
        if not count:
            return
        if count >= self.page_rows or (self._known and count > self.cap):
            self._know(count, left > 0)
        elif not self._known and left > A_SESSION:
            self._suspects[asked[left - 1]] = (count, True)
        elif not self._known and right > A_SESSION:
            self._suspects[asked[-right]] = (count, False)
        weekdays = _weekdays(rows[0], rows[-1] + 300)
        if outside * 10 > count and weekdays > 0:
            self._per_weekday = max(self._per_weekday, min(count / weekdays, DAY_S / 300))

    def rows(self, first: int, last: int) -> float:
        """About how many rows the vendor has from slot ``first`` to slot ``last``, both inclusive."""
        slots = bisect_right(self._expected, last) - bisect_left(self._expected, first)
        return max(slots, self._per_weekday * _weekdays(first, last + 300))

    def chunks(self, wanted: Sequence[int], *, anchors: bool, worthwhile: int = 1) -> list[Chunk]:
        """``wanted`` (ascending) as calls, newest first: a page each or, until an answer has shown how
        much a page is, a stretch each.

        No call reaches over a day that is complete, but for small holes: where asking for several at
        once saves at least ``worthwhile`` calls, the days between are read again.
        """
        stretches = self._stretches(wanted)
        gathered = self._gathered(stretches)
        if len(stretches) - len(gathered) >= worthwhile:
            stretches = gathered
        budget = self.cap * (_MARGIN if self._per_weekday else 1.0)
        chunks: list[Chunk] = []
        for number, run in reversed(list(enumerate(stretches))):
            among = set(run)
            end = len(run)
            while end:
                begin = self._begin(run, end, budget) if self._known else 0
                slots = tuple(run[begin:end])
                # Only past a cut that kept the newest rows is the additional one free.
                anchored = anchors and self.keeps_newest
                start = self._anchor(slots[0], among) if anchored else slots[0]
                chunks.append(Chunk(slots, start, number))
                end = begin
        return chunks

    def estimate(self, wanted: Sequence[int], worthwhile: int) -> int:
        """Calls for ``wanted`` when every page brings ``cap`` rows and sessions are all there is."""
        exact = Paging(self._day_of, self.page_rows)
        exact._known = True  # the plan takes the documented cap at its word
        return len(exact.chunks(wanted, anchors=False, worthwhile=worthwhile))

    def _know(self, cap: int, cut_at_old_end: bool) -> None:
        self.cap = max(self.cap, cap) if self._known else cap
        self._known = True
        self.keeps_newest = self.keeps_newest or cut_at_old_end

    def _stretches(self, wanted: Sequence[int]) -> list[list[int]]:
        """``wanted`` without a complete day inside."""
        runs: list[list[int]] = []
        for slot in wanted:
            if runs and self._day_of[slot] - self._day_of[runs[-1][-1]] <= 1:
                runs[-1].append(slot)
            else:
                runs.append([slot])
        return runs

    def _gathered(self, runs: list[list[int]]) -> list[list[int]]:
        """``runs`` with neighbouring small holes put together where one page holds them all."""
        gathered: list[list[int]] = []
        small = False
        for run in runs:
            hole = len(run) < A_SESSION
            if small and hole and self.rows(gathered[-1][0], run[-1]) <= self.cap * _MARGIN:
                gathered[-1] = gathered[-1] + run
            else:
                gathered.append(run)
            small = hole
        return gathered

    def _begin(self, run: Sequence[int], end: int, budget: float) -> int:
        """Where the page that ends with ``run[end - 1]`` begins."""
        last = run[end - 1]
        fits = bisect_left(range(end), True, key=lambda i: self.rows(run[i], last) <= budget)
        return min(fits, end - 1)

    def _anchor(self, slot: int, wanted: set[int]) -> int:
        """The slot before ``slot``; where that completes another day, just the time before."""
        index = bisect_left(self._expected, slot)
        before = self._expected[index - 1] if index else slot - 300
        if not index or before in wanted or self._day_of[before] == self._day_of[slot]:
            return before
        return slot - 300


def _weekdays(start: float, end: float) -> float:
    """How many weekdays lie between two instants, in fractions. UTC will do for an estimate."""

    def until(instant: float) -> float:
        weeks, rest = divmod(instant + _MONDAY, 7 * DAY_S)
        return weeks * 5 + min(5.0, rest / DAY_S)

    return until(end) - until(start)
