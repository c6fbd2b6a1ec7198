"""Who covers each expected slot of a day, what is missing, and why. Pure.

The proof rests on stored evidence alone: bars and their certificates, answers of the vendor, and what the
service wrote of itself while it ran. Instants are unix seconds UTC.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Literal

from .calendar import BAR_SECONDS, TradingCalendar
from .reconciliation import FINAL_AGE_S
from .slot import SETTLE_S, SlotEvidence, kind_of
from .source import Provider

SlotStatus = Literal["vendor", "live", "both", "pending", "unknown"]
COVERED: frozenset[SlotStatus] = frozenset({"vendor", "live", "both"})

PARTIAL = "partial"
COLLECTING = "active"
ALMOST_ALL_S = BAR_SECONDS - 5.0
"""Marks are a little apart; a slot collected for this long was collected."""


@dataclass(frozen=True, slots=True)
class Mark:
    """At ``at`` the service of ``epoch`` said to be in ``state``."""

    at: float
    state: str
    epoch: int
    reason: str | None = None
    dead: Mapping[str, str] | None = None
    """By symbol, why nothing brought its prices; ``None``: as the mark before says."""
    symbols: Mapping[str, tuple[str, str]] | None = None
    """By symbol its own state and reason, where there are several."""


@dataclass(frozen=True, slots=True)
class Span:
    """The service was known to be in ``state`` in ``[start, end)``."""

    start: float
    end: float
    state: str
    reason: str | None = None
    dead: str | None = None  # why nothing brought prices of the symbol


@dataclass(frozen=True, slots=True)
class Slot:
    """One line of the proof. ``source`` speaks for the slot; ``reason`` tells why something lacks."""

    open_time: int
    status: SlotStatus
    source: str | None = None
    revision: int | None = None
    final: bool = False  # two answers of the vendor agree
    grade: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class DaySummary:
    """A day in numbers; the five kinds add up to ``expected``."""

    day: date
    expected: int
    vendor: int
    live: int
    both: int
    pending: int
    unknown: int
    final: int

    @property
    def covered(self) -> int:
        return self.vendor + self.live + self.both


def spans(
    marks: Iterable[Mark], alive: tuple[int, float] | None = None, symbol: str = ""
) -> list[Span]:
    """What the service is known to have been doing: from mark to mark of one process.

    Between the last mark of a process and the first of the next nothing is known.

    :param alive: a process (its epoch) that still runs at that instant.
    :param symbol: whose feed is meant.
    """
    found: list[Span] = []
    ordered = sorted(marks, key=lambda mark: mark.at)
    by_epoch: dict[int, list[Mark]] = {}
    for mark in ordered:
        by_epoch.setdefault(mark.epoch, []).append(mark)
    for epoch, own in by_epoch.items():
        last = own[-1]
        until = alive[1] if alive is not None and alive[0] == epoch else last.at
        ends = [*(mark.at for mark in own[1:]), max(until, last.at)]
        dead: str | None = None
        for mark, end in zip(own, ends, strict=True):
            if mark.dead is not None:
                dead = mark.dead.get(symbol)
            state, reason = (mark.symbols or {}).get(symbol, (mark.state, mark.reason))
            found.append(Span(mark.at, end, state, reason, dead))
    return sorted(found, key=lambda span: span.start)


def judge_slot(
    evidence: SlotEvidence,
    now: float,
    calendar: TradingCalendar,
    provider: Provider,
    spans: Sequence[Span] | None = None,
) -> Slot:
    """Who covers the slot at ``now``.

    :param spans: what the service did; ``None``: not asked for, and no reason tells of it.
    """
    slot = evidence.slot
    speaking = evidence.bars[0] if evidence.bars else None
    live = evidence.first("live", provider)
    history = next((bar for bar in evidence.bars if kind_of(bar.source, provider) != "live"), None)
    if now < slot + BAR_SECONDS:
        # Also when rows say otherwise: a virtual clock may have been set back over its future.
        return Slot(slot, "pending", reason="Not over yet.")
    if speaking is None:
        if now < slot + BAR_SECONDS + SETTLE_S:
            return Slot(slot, "pending", reason="Not due yet.")
        why = [_why_not_live(slot, calendar, spans), _why_not_vendor(evidence, calendar)]
        return Slot(slot, "unknown", reason=" ".join(filter(None, why)))
    status: SlotStatus = "live"
    reason: str | None = None
    final = False
    if history is not None:
        status = "vendor" if live is None else "both"
        final = history.status == "reconciled"
        if live is None:
            reason = _why_not_live(slot, calendar, spans)
    elif now >= slot + BAR_SECONDS + FINAL_AGE_S:
        reason = _why_not_vendor(evidence, calendar)
    return Slot(
        slot,
        status,
        source=speaking.source,
        revision=speaking.revision,
        final=final,
        grade=speaking.grade,
        reason=reason,
    )


def summarise(day: date, slots: Sequence[Slot]) -> DaySummary:
    """``slots`` of one day, counted."""
    count = dict.fromkeys(("vendor", "live", "both", "pending", "unknown"), 0)
    for slot in slots:
        count[slot.status] += 1
    return DaySummary(
        day=day, expected=len(slots), final=sum(slot.final for slot in slots), **count
    )


def _why_not_live(slot: int, calendar: TradingCalendar, spans: Sequence[Span] | None) -> str | None:
    session = calendar.session_on(slot)
    end = slot + BAR_SECONDS
    if session is not None and end > session.closes:
        return "Live collection ends before it."
    if spans is None:
        return None
    inside = [span for span in spans if span.start < end and span.end >= slot]
    collecting = [span for span in inside if span.state == COLLECTING]
    collected = sum(min(span.end, end) - max(span.start, slot) for span in collecting)
    dead = [span for span in collecting if span.dead is not None]
    dead_for = sum(min(span.end, end) - max(span.start, slot) for span in dead)
    if dead_for >= ALMOST_ALL_S:
        return f"The feed was dead: {dead[0].dead}."
    if dead_for > 0:
        return f"The feed was dead for {dead_for:.0f} s of it ({dead[0].dead}); no tick came."
    if collected >= ALMOST_ALL_S:
        return "The feed was silent: the service collected, and no tick came."
    if collected > 0:
        return f"The service is known to have collected for {collected:.0f} s of it; no bar came of it."
    other = next((span for span in inside if span.state != COLLECTING), None)
    if other is None:
        return "The service was not running."
    because = f" ({other.reason})" if other.state == "error" and other.reason else ""
    return f"The service was not collecting: {other.state}{because}."


def _why_not_vendor(evidence: SlotEvidence, calendar: TradingCalendar) -> str:
    gap = evidence.gap
    if gap is None:
        return "The vendor was not asked yet."
    at = datetime.fromtimestamp(gap.last_asked_at, calendar.zone)
    times = "once" if gap.asked == 1 else f"{gap.asked} times"
    return f"The vendor was asked {times}, last on {at:%Y-%m-%d %H:%M}, and has no bar."
