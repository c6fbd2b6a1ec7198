"""Holds what happened in a stage against what was expected. Pure: returns sentences, empty when right."""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from enhanced_websocket_service.market.calendar import iso_local

from .expectation import Expectation, accepts
from .stage import Report, Seen
from .stored import SLOT_S, Prices, Stored, bars_of

Said = tuple[int, float, float | None, float | None]
PRICE_TOLERANCE = 0.51
"""What a REST price may be rounded to."""
REST_LAG_S = 30
REFUSED = {"outlier", "scaled"}
REPAIR_WITHIN_S = 900


@dataclass
class Matched:
    """The ledger of the simulator laid beside the stored ticks of the stream."""

    missing: list[int] = field(default_factory=list)  # entries that should be stored
    alien: list[str] = field(default_factory=list)  # stored, never sent (or out of order)
    doubled: list[int] = field(default_factory=list)  # re-sent last prices stored twice


def match(report: Report, stored: Stored) -> Matched:
    """Find each stored tick in what was sent, in order."""
    sent: list[Said] = [
        (one["timestamp"], one["price"], one["bid"], one["ask"]) for one in report.sent
    ]
    resent = [bool(one["resent"]) for one in report.sent]
    places: dict[Said, list[int]] = defaultdict(list)
    for i, one in enumerate(sent):
        places[one].append(i)
    found = Matched()
    cursor, taken, last = 0, set(), None
    for tick in stored.ticks:
        if not tick.streamed:
            continue
        known = places.get(tick.seen, [])
        at = bisect_left(known, cursor)
        if at == len(known):
            found.alien.append(
                f"{tick.seen} as offset {tick.offset} at {iso_local(tick.received_at)}"
            )
            continue
        i = known[at]
        if resent[i] and last == tick.seen:
            found.doubled.append(i)
        taken.add(i)
        cursor, last = i + 1, tick.seen
    everything = {tick.seen for tick in stored.ticks}
    found.missing = [
        i
        for i, one in enumerate(sent)
        if i not in taken
        and not (resent[i] and one in everything)
        and not REFUSED & {*report.sent[i]["faults"].split(",")}  # which is judged elsewhere
    ]
    return found


def judge(
    report: Report,
    stored: Stored,
    matched: Matched,
    recording: Mapping[int, Prices],
    truth: "Truth",
    one: Expectation,
) -> list[str]:
    """What is wrong with ``one``."""
    seen = report.seen.get(one.name)
    if seen is None:
        return [f"never happened: {report.failure or 'the stage ended before'}"]
    wrong = [seen.trouble] if seen.trouble else []
    wrong += _verdict(seen, report.stage.speed)
    wrong += _counts(report, seen)
    wrong += _ticks(report, stored, matched, truth, seen)
    wrong += _bars(report, stored, recording, seen)
    return wrong


def _verdict(seen: Seen, speed: float) -> list[str]:
    one = seen.expectation
    wrong = []
    path: list[str] = []
    for _, verdict in seen.path:
        name = "live" if verdict == "quiet" else verdict
        if name != (path[-1] if path else "live"):
            path.append(name)
    if not accepts(one.verdicts, tuple(path)):
        shown = ", ".join(f"{iso_local(at)[11:21]} {name}" for at, name in seen.path)
        wrong.append(
            f"verdicts {path} instead of {list(one.verdicts)}; "
            f"began {iso_local(seen.began)[11:21]}: {shown}"
        )
    first = next((at for at, verdict in seen.path if verdict == one.noticed), None)
    if one.found_s is None:
        if first is not None:
            wrong.append(f"it was called {one.noticed} after {first - seen.began:.1f} s")
    elif first is None:
        wrong.append(f"never called {one.noticed}; evidence at last: {seen.evidence!r}")
    elif one.real_found_s is not None:
        real_s = (first - seen.began) / speed
        if real_s > one.real_found_s:
            wrong.append(f"{one.noticed} after {real_s:.1f} real s, allowed {one.real_found_s:g}")
    elif first - seen.began > one.found_s:
        changes = "; ".join(f"{at - seen.began:.1f} s {name}" for at, name in seen.path)
        wrong.append(
            f"{one.noticed} after {first - seen.began:.1f} s, allowed {one.found_s:g}: {changes}"
        )
    if one.back_s is not None and seen.back is not None and seen.back - seen.cleared > one.back_s:
        wrong.append(f"back after {seen.back - seen.cleared:.0f} s, allowed {one.back_s:g}")
    return wrong


def _counts(report: Report, seen: Seen) -> list[str]:
    one = seen.expectation
    wrong = []
    if seen.reconnects not in one.reconnects:
        wrong.append(f"{seen.reconnects} reconnects, allowed {one.reconnects}")
    for purpose, bounds in one.credits.items():
        spent = seen.credits.get(purpose, 0)
        if spent not in bounds:
            wrong.append(f"{spent} credits for {purpose}, allowed {bounds}")
    calls = repair_calls(report, seen)
    if calls not in one.repair:
        wrong.append(f"{calls} calls for its bars, allowed {one.repair}")
    return wrong


def repair_calls(report: Report, seen: Seen) -> int:
    """The calls of ``/time_series`` that asked for one of the fault's slots, soon enough after it.

    Later ones ask for the slots of other faults as well, and would be counted for all of them.
    """
    until = (seen.back or seen.cleared) + REPAIR_WITHIN_S
    slots = slots_of(seen)
    calls = 0
    for call in report.requests:
        if call["path"] != "/time_series" or not seen.began < call["at"] < until:
            continue
        start = _instant(f"{str(call['start_date']).replace(' ', 'T')}+00:00")
        end = _instant(f"{str(call['end_date']).replace(' ', 'T')}+00:00")
        calls += any(start <= slot <= end for slot in slots)
    return calls


def slots_of(seen: Seen) -> list[int]:
    """The slots that the fault touches, by the unix second of their open."""
    end = seen.back or seen.cleared
    first = int(seen.began) // SLOT_S * SLOT_S
    return list(range(first, int(end) + 1, SLOT_S))


def _ticks(
    report: Report, stored: Stored, matched: Matched, truth: "Truth", seen: Seen
) -> list[str]:
    one = seen.expectation
    wrong = []
    end = seen.back or seen.cleared
    first, last = seen.sent
    missing = [i for i in matched.missing if first <= i < last]
    if missing and one.ticks == "all":
        wrong.append(
            f"{len(missing)} of {last - first} sent ticks are not stored, the first: "
            f"{report.sent[missing[0]]}"
        )
    if missing and one.ticks == "broken_off" and missing[-1] - missing[0] >= len(missing):
        wrong.append(f"lost more than one stretch of what was sent: {missing[:5]}..{missing[-1]}")
    doubled = [i for i in matched.doubled if first <= i < last]
    if doubled:
        wrong.append(f"a re-sent price was stored again: {report.sent[doubled[0]]}")
    during = [tick for tick in stored.ticks if seen.began <= tick.received_at <= end]
    polled = [tick for tick in during if not tick.streamed]
    if len(polled) not in one.rest_prices:
        wrong.append(f"{len(polled)} ticks by REST, expected {one.rest_prices}")
    invented = [tick for tick in polled if not truth.had(tick.price, tick.received_at)]
    if invented:
        wrong.append(f"REST ticks the vendor never had: {invented[:2]}")
    flags = Counter(flag for tick in during for flag in tick.flags)
    for flag, bounds in one.flags.items():
        if flags.get(flag, 0) not in bounds:
            wrong.append(f"{flags.get(flag, 0)} ticks flagged {flag}, expected {bounds}")
    rejected = Counter(reason for reason, at in stored.rejected if seen.began <= at <= end)
    if sum(rejected.values()) not in one.rejected:
        wrong.append(f"rejected {dict(rejected)}, expected {one.rejected}")
    return wrong


def _bars(report: Report, stored: Stored, recording: Mapping[int, Prices], seen: Seen) -> list[str]:
    one = seen.expectation
    wrong = []
    missing = 0
    lossy = {
        slot
        for other in report.seen.values()
        if not other.expectation.live_bars
        for slot in slots_of(other)
    }
    made = bars_of(stored.ticks)
    began = min((tick.received_at for tick in stored.ticks), default=0.0)
    for slot in slots_of(seen):
        if slot not in recording:
            continue
        at = iso_local(slot)[11:16]
        final = stored.final.get(slot)
        if final is None:
            missing += 1
        elif final != recording[slot]:
            wrong.append(f"{at}: final bar {final}, recorded {recording[slot]}")
        live = stored.live.get(slot)
        if live is not None and slot in made and live.prices != made[slot]:
            wrong.append(f"{at}: live bar {live.prices}, its ticks make {made[slot]}")
        due = one.live_bars and slot not in lossy and began <= slot
        if due and (live is None or live.prices != recording[slot]):
            wrong.append(f"{at}: live bar {live}, recorded {recording[slot]}")
    bars = [bar for slot in slots_of(seen) if (bar := stored.live.get(slot)) is not None]
    if one.partial and bars and not any(bar.partial for bar in bars):
        wrong.append("no live bar of it is called partial")
    if missing != one.missing:
        wrong.append(f"{missing} of its slots have no final bar")
    return wrong


class Truth:
    """Every price the vendor had, whether it was sent or not."""

    def __init__(self, ticks: Iterable[tuple[int, float]]) -> None:
        rows = sorted(ticks)
        self._stamps = [stamp for stamp, _ in rows]
        self._prices = [price for _, price in rows]

    def had(self, price: float, at: float) -> bool:
        """Whether the vendor's price was ``price``, more or less, shortly before ``at``."""
        first = max(0, bisect_left(self._stamps, at - REST_LAG_S) - 1)
        last = bisect_left(self._stamps, at + 2)
        return any(abs(one - price) <= PRICE_TOLERANCE for one in self._prices[first:last])


def stage_faults(report: Report, stored: Stored, matched: Matched) -> list[str]:
    """What is wrong with the stage as a whole, whichever fault it was."""
    wrong = [report.failure] if report.failure else []
    if report.exit_code != 0 and not report.failure:
        wrong.append(f"the service ended with {report.exit_code}")
    wrong += [f"stored, but never sent: {one}" for one in matched.alien[:3]]
    by_epoch: dict[int, list[int]] = defaultdict(list)
    for tick in stored.ticks:
        by_epoch[tick.epoch].append(tick.offset)
    for epoch, offsets in by_epoch.items():
        if offsets != list(range(offsets[0], offsets[0] + len(offsets))):
            wrong.append(f"epoch {epoch}: the offsets have a hole or a double")
    wrong += _line(report, stored)
    if abs(report.spent - report.calls) > 1:  # one may be under way
        wrong.append(f"{report.spent} credits accounted for, {report.calls} calls got there")
    unknown = [
        slot["datetime"]
        for slot in report.continuity.get("slots", ())
        if slot["status"] == "unknown"
    ]
    if unknown:
        wrong.append(f"slots of which nobody knows anything: {unknown}")
    if "Traceback" in report.log:
        wrong.append(f"a traceback in the log: {report.log[report.log.index('Traceback') :][:600]}")
    return wrong


def _line(report: Report, stored: Stored) -> list[str]:
    """What the consumer saw: one line of offsets, with nothing left out but what is not published."""
    offsets, wrong = report.consumer.line()
    if not offsets:
        return [*wrong, "the consumer got no tick"]
    got = set(offsets) | report.consumer.skipped()
    held_back = [
        (tick.epoch, tick.offset)
        for tick in stored.ticks
        if offsets[0] <= (tick.epoch, tick.offset) <= offsets[-1]
        and tick.in_session
        and "future" not in tick.flags
        and (tick.epoch, tick.offset) not in got
    ]
    if held_back:
        wrong.append(f"{len(held_back)} ticks never reached the consumer, the first {held_back[0]}")
    return wrong


def _instant(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
