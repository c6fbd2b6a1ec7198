"""When to ask the vendor for its bars again, and what its answer means. Pure.

A vendor bar is final when it is old enough and two of its answers agree. All state is what the
database holds (the bar as first seen, its status, the answers that lacked it), so whoever decides after
a restart decides the same. Instants are unix seconds UTC, spans seconds of the clock.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .bar import Bar
from .calendar import BAR_SECONDS
from .noise import same_but_noise
from .slot import SETTLE_S, SlotEvidence, SourceBar
from .source import Provider

FINAL_AGE_S = 300
"""Counted from the end of the bar. Younger bars are still revised."""
CONFIRM_AFTER_S = 120
"""Two answers closer together are one: the vendor would only repeat itself."""
BATCH_S = 3600
"""How long a slot that ticks cover waits during the session, so that one credit serves many."""
RETRY_S = 300
FIRST_CANDLE_S = 20
"""The soonest after its end that the vendor has a bar: so early only what was lost is asked for."""
LONGEST_RETRY_S = 6 * 3600
GIVE_UP_S = 86_400
"""What the vendor lacks a day after its end it will not have: the slot stays unknown."""
CALL_SPACING_S = 60
MAX_SPAN_S = 4_900 * BAR_SECONDS
"""One answer holds 5,000 rows, also of a market that never closes."""
ANCHOR_WITHIN_S = 5 * 86_400
ROUTINE_RESERVE = 20
"""Credits that batches during the session leave to repairs."""


@dataclass(frozen=True, slots=True)
class Credits:
    """What may be spent today: all that is ``left``, and the share kept from polling (``reserve``)."""

    left: int
    reserve: int


@dataclass(frozen=True, slots=True)
class Wish:
    """A slot that is not final."""

    evidence: SlotEvidence
    useful_from: float  # an answer before this could teach nothing
    due: float  # no later than this a call is worth a credit
    urgent: bool  # a hole, or the session is over
    repair: bool = False  # the feed had a gap here, or the session still runs and lacks it


@dataclass(frozen=True, slots=True)
class Ask:
    """One call: the bars that open in ``start .. end`` (both inclusive)."""

    start: int
    end: int
    slots: tuple[int, ...]  # those it is asked for
    urgent: bool
    repair: bool = False  # it is made because of a gap


def lossy(bar: SourceBar | None) -> bool:
    """Whether a live bar is evidence of a feed that failed: absent, cut short, or of two feeds."""
    return bar is None or bar.partial or bar.mixed


def wish(
    evidence: SlotEvidence,
    session_over_at: float,
    now: float,
    provider: Provider,
    *,
    lost: bool = False,
) -> Wish | None:
    """What is to be asked about a slot; ``None`` when it is final or given up.

    :param session_over_at: when the last slot of its session has settled.
    :param lost: the feed had a gap in the slot: it is asked for as soon and as often as can help.
    """
    end = evidence.slot + BAR_SECONDS
    ready = end + (FIRST_CANDLE_S if lost else SETTLE_S)
    vendor = evidence.first("vendor", provider)
    gap = evidence.gap
    over = now >= session_over_at
    if vendor is not None and vendor.status == "reconciled":
        return None
    if gap is not None and (vendor is None or gap.last_asked_at > vendor.seen_at):
        if gap.last_asked_at >= end + GIVE_UP_S:
            return None
        first = CALL_SPACING_S if lost else RETRY_S
        wait = min(first * 2.0 ** min(gap.asked - 1, 16), LONGEST_RETRY_S)
        # The last question comes when the answer is final.
        again = min(gap.last_asked_at + wait, max(end + GIVE_UP_S, gap.last_asked_at + RETRY_S))
        return Wish(evidence, gap.last_asked_at + first, again, True, repair=lost or not over)
    if vendor is not None:
        useful = max(vendor.seen_at + CONFIRM_AFTER_S, float(end + FINAL_AGE_S))
        # What was lost is there already; that it is final may wait for its neighbours.
        batch = min(vendor.seen_at + (RETRY_S if lost else BATCH_S), session_over_at)
        due = useful if over else max(useful, batch)
        return Wish(evidence, useful, due, over or lost, repair=lost)
    if lost or lossy(evidence.first("live", provider)):
        return Wish(evidence, ready, ready, True, repair=lost or not over)
    due = ready if over else max(ready, min(ready + BATCH_S, session_over_at))
    return Wish(evidence, ready, due, urgent=over)


def plan(
    wishes: Sequence[Wish],
    now: float,
    *,
    credits: Credits,  # noqa: A002 - the vendor's word
    last_call_at: float | None,
    anchors: Iterable[int] = (),
    look_back_to: int | None = None,
) -> Ask | None:
    """The call to make at ``now``, if one is worth it and may be paid for.

    It asks for everything an answer could teach something about, so that one credit serves many.

    :param anchors: slots that the vendor is known to have. The call begins at one of them: an answer
        that holds it has not been cut short, so it speaks for absent slots behind it.
    :param look_back_to: begin no later than at this slot, to see whether what is final still is: more
        rows cost no more, and of too many the vendor keeps the newest, which are those asked for.
    """
    if last_call_at is not None and last_call_at <= now < last_call_at + CALL_SPACING_S:
        return None
    due = [one for one in wishes if one.due <= now]
    if not due or credits.left < 1:
        return None
    urgent = any(one.urgent for one in due)
    if not urgent and credits.reserve < ROUTINE_RESERVE:
        return None
    slots = sorted(one.evidence.slot for one in wishes if one.useful_from <= now)
    last = slots[-1]
    slots = [slot for slot in slots if slot > last - MAX_SPAN_S]
    earliest = max(last - MAX_SPAN_S, slots[0] - ANCHOR_WITHIN_S)
    start = max((one for one in anchors if earliest <= one < slots[0]), default=slots[0])
    if look_back_to is not None:
        start = min(start, max(look_back_to, last - MAX_SPAN_S))
    return Ask(start, last, tuple(slots), urgent, repair=any(one.repair for one in due))


def next_due(wishes: Iterable[Wish]) -> float | None:
    """The earliest instant at which one of ``wishes`` is due."""
    return min((one.due for one in wishes), default=None)


def answered(ask: Ask, bars: Sequence[Bar]) -> tuple[int, ...]:
    """The slots of ``ask`` that the answer speaks for.

    An answer may be cut short without saying so and keeps what is nearest its end: of slots before its
    first bar it says nothing, unless it is empty.
    """
    if not bars:
        return ask.slots
    first = min(bar.open_time for bar in bars)
    return tuple(slot for slot in ask.slots if slot >= first)


Finding = Literal["first", "changed", "corrected", "final", "same", "absent"]
"""``corrected``: changed after it had been final."""


def judge(evidence: SlotEvidence, bar: Bar | None, now: float, provider: Provider) -> Finding:
    """What the vendor's answer of ``now`` says about a slot."""
    if bar is None:
        return "absent"
    known = evidence.first("vendor", provider)
    if known is None:
        return "first"
    prices = zip(known.prices, (bar.open, bar.high, bar.low, bar.close), strict=True)
    if known.volume != bar.volume or not all(same_but_noise(*pair) for pair in prices):
        return "corrected" if known.status == "reconciled" else "changed"
    useful = max(known.seen_at + CONFIRM_AFTER_S, float(evidence.slot + BAR_SECONDS + FINAL_AGE_S))
    if known.status == "reconciled" or now < useful:
        return "same"
    return "final"


def to_publish(evidence: SlotEvidence, bar: Bar, finding: Finding, *, today: bool) -> Bar | None:
    """The version of the slot that clients get because of ``finding``; ``None`` when it is no news.

    Its revision is above every one that the slot ever had, whatever source it had it from: for a client
    the highest revision is right. History that was only confirmed, and that no client was told of,
    is no news.
    """
    if finding == "final":
        if not today and not evidence.published:
            return None
        status: Literal["closed", "revised", "reconciled"] = "reconciled"
    elif finding in ("first", "changed", "corrected"):
        status = "revised" if evidence.bars else "closed"
    else:
        return None
    known = max((one.revision for one in evidence.bars), default=-1)
    return Bar(
        symbol=bar.symbol,
        interval_s=bar.interval_s,
        open_time=bar.open_time,
        open=bar.open,
        high=bar.high,
        low=bar.low,
        close=bar.close,
        volume=bar.volume,
        source=bar.source,
        revision=max(known, evidence.highest_revision) + 1,
        status=status,
    )


@dataclass(frozen=True, slots=True)
class Drift:
    """Live minus vendor in price units, by field."""

    slot: int
    live: SourceBar
    open: float
    high: float
    low: float
    close: float

    def by_field(self) -> Mapping[str, float]:
        return {"open": self.open, "high": self.high, "low": self.low, "close": self.close}


def drift(evidence: SlotEvidence, bar: Bar, provider: Provider) -> Drift | None:
    """How far the live bar of the slot is from the vendor's; ``None`` without one."""
    live = evidence.first("live", provider)
    if live is None:
        return None
    vendor = (bar.open, bar.high, bar.low, bar.close)
    return Drift(evidence.slot, live, *map(_distance, live.prices, vendor))


def _distance(ours: float, theirs: float) -> float:
    return 0.0 if same_but_noise(ours, theirs) else round(ours - theirs, 6)
