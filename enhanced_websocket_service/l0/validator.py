"""Is the history fresh and complete enough to go live on? Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from enhanced_websocket_service.market.calendar import BAR_SECONDS, TradingCalendar, iso_local

from .slots import slots_ended_since, window_slots

COMPLETE_ABOVE_PCT = 95
DEFAULT_WINDOW_DAYS = 7


@dataclass(frozen=True, slots=True)
class Assessment:
    """The verdict on one symbol, or the worst of several.

    ``missing_slots`` counts the expected slots that ended since the last bar (freshness);
    ``gaps`` are the slots absent from the window (completeness), unix seconds UTC.
    """

    symbol: str
    data_freshness_hours: float | None  # wall time since the last bar's end; None: no bar at all
    missing_slots: int
    is_fresh: bool
    completeness_percentage: float  # 0 .. 100, not rounded
    is_complete: bool
    expected: int
    present: int
    last_bar_end: int | None  # unix seconds UTC
    gaps: tuple[int, ...]
    partial: tuple[
        int, ...
    ]  # those of ``gaps`` that have a bar, but only a partial or close-only one
    reasons: tuple[str, ...]  # one sentence for each thing that is wrong; empty when all is well

    @property
    def ok(self) -> bool:
        return self.is_fresh and self.is_complete

    @property
    def lacks_whole_bars_only(self) -> bool:
        """Whether every slot that lacks for completeness has a bar, though not a whole one."""
        return self.is_fresh and is_enough(self.present + len(self.partial), self.expected)


def is_enough(present: int, expected: int) -> bool:
    """Whether ``present`` of ``expected`` slots are complete by the requirements: more than 95 %."""
    return present * 100 > COMPLETE_ABOVE_PCT * expected


def assess(
    slots: Collection[int],
    *,
    partial: Collection[int] = (),
    last_open: int | None,
    calendar: TradingCalendar,
    now: float,
    window_days: int = DEFAULT_WINDOW_DAYS,
    symbol: str = "USDCOP",
) -> Assessment:
    """Judge the bars present at ``now`` (unix seconds UTC).

    :param slots: the slots with a whole bar, at least those of the window; others do no harm.
    :param partial: those that have only a partial or close-only bar, which is no complete one.
    :param last_open: the slot of the newest bar in the database, ``None`` when there is none.
    """
    wanted = window_slots(calendar, now, window_days)
    have = set(slots)
    gaps = tuple(slot for slot in wanted if slot not in have)
    poor = set(partial)
    not_whole = tuple(slot for slot in gaps if slot in poor)
    expected, present = len(wanted), len(wanted) - len(gaps)
    complete = is_enough(present, expected)
    percentage = 100.0 * present / expected

    end = _last_end([*have, *partial], last_open, now)
    a_session = _slots_in_a_session(calendar, now)
    ended = expected if end is None else slots_ended_since(calendar, end, now)
    fresh = end is not None and ended < a_session

    reasons = []
    if end is None:
        reasons.append(f"{symbol}: the database has no bar at all. Run `l0 backfill`.")
    elif not fresh:
        reasons.append(
            f"{symbol}: {ended} expected slots ended since the last bar's end at {iso_local(end)}; "
            f"fewer than {a_session} are allowed. Run `l0 incremental`."
        )
    if not complete:
        besides = ""
        if not_whole:
            besides = (
                f" {len(not_whole)} more have only partial or close-only bars, which do not count, "
                f"the first of them {iso_local(not_whole[0])}."
            )
        reasons.append(
            f"{symbol}: {present} of {expected} slots of the last {window_days} trading days are "
            f"present ({percentage:.2f} %); more than {COMPLETE_ABOVE_PCT} % are needed. The first "
            f"missing one is {iso_local(gaps[0])}.{besides} Run `l0 incremental`."
        )
    return Assessment(
        symbol=symbol,
        data_freshness_hours=None if end is None else (now - end) / 3600,
        missing_slots=ended,
        is_fresh=fresh,
        completeness_percentage=percentage,
        is_complete=complete,
        expected=expected,
        present=present,
        last_bar_end=end,
        gaps=gaps,
        partial=not_whole,
        reasons=tuple(reasons),
    )


def worst(assessments: Sequence[Assessment]) -> Assessment:
    """One verdict for all symbols: fresh and complete only when each of them is.

    :raises ValueError: when there are none.
    """
    if len(assessments) == 1:
        return assessments[0]
    stale = max(
        assessments,
        key=lambda one: (one.last_bar_end is None, one.data_freshness_hours or 0.0),
    )
    thin = min(assessments, key=lambda one: one.completeness_percentage)
    return Assessment(
        symbol=",".join(one.symbol for one in assessments),
        data_freshness_hours=stale.data_freshness_hours,
        missing_slots=max(one.missing_slots for one in assessments),
        is_fresh=all(one.is_fresh for one in assessments),
        completeness_percentage=thin.completeness_percentage,
        is_complete=all(one.is_complete for one in assessments),
        expected=thin.expected,
        present=thin.present,
        last_bar_end=stale.last_bar_end,
        gaps=thin.gaps,
        partial=thin.partial,
        reasons=tuple(reason for one in assessments for reason in one.reasons),
    )


def _last_end(slots: Collection[int], last_open: int | None, now: float) -> int | None:
    """The end of the newest bar that has ended: a forming or mis-stamped one proves nothing."""
    candidates = [*slots] if last_open is None else [*slots, last_open]
    ends = [slot + BAR_SECONDS for slot in candidates if slot + BAR_SECONDS <= now]
    return max(ends, default=None)


def _slots_in_a_session(calendar: TradingCalendar, now: float) -> int:
    return len(calendar.expected_labels(calendar.current_or_next(now).day))
