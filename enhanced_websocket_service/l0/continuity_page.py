"""The proof of continuity as a page of text and as JSON.

One character a slot, so that a person sees a day on a line and a hole at a glance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any
from zoneinfo import ZoneInfo

from rich.text import Text

from enhanced_websocket_service.market.calendar import BAR_SECONDS, BOGOTA, iso_local
from enhanced_websocket_service.market.continuity import PARTIAL, DaySummary, Slot, SlotStatus
from enhanced_websocket_service.storage.slot_store import SlotStore

from .continuity import Continuity, DayContinuity

_SIGNS: dict[SlotStatus, tuple[str, str, str]] = {
    "both": ("B", "b", "green"),
    "vendor": ("V", "v", "cyan"),
    "live": ("L", "l", "yellow"),
    "pending": (".", ".", "dim"),
    "unknown": ("?", "?", "bold red"),
}
LEGEND = (
    "B vendor and live   V vendor only   L live only   . not due yet   ? unknown\n"
    "small b, v: the vendor's bar is not final yet   small l: the live bar is partial"
)
_MARGIN = 16


def sign(slot: Slot) -> tuple[str, str]:
    """The character of a slot and its style."""
    sure, unsure, style = _SIGNS[slot.status]
    doubtful = slot.grade == PARTIAL if slot.status == "live" else not slot.final
    return (unsure if doubtful else sure), style


def render_day(day: DayContinuity) -> list[Text]:
    """One day: its line, what lacks and why, and the legend."""
    head = Text(f"{day.symbol} {day.day:%A %Y-%m-%d}")
    if not day.slots:
        head.append(f": closed ({day.closed or 'no session'}).")
        return [head]
    lines = [head, _ruler(day.slots, day.zone), _line(day), Text("")]
    lines += [Text(f"  {_numbers(day.summary)}")]
    for text in _reasons(day.slots, day.zone):
        lines.append(Text(f"  {text}"))
    return [*lines, Text(""), *(Text(line, style="dim") for line in LEGEND.splitlines())]


def render_days(days: Sequence[DayContinuity]) -> list[Text]:
    """A range: a line a day, the sum, and the legend."""
    if not days:
        return [Text("No trading day in this range.")]
    lines = [Text(days[0].symbol), _ruler(days[0].slots, days[0].zone)]
    lines += [_line(day) for day in days]
    lines += [Text(""), Text(f"  {len(days)} trading days: {_sum(days)}"), Text("")]
    return [*lines, *(Text(line, style="dim") for line in LEGEND.splitlines())]


@dataclass(frozen=True, slots=True)
class WindowProof:
    """The last trading days and the drift over them, for ``l0 status``."""

    symbol: str
    days: tuple[DayContinuity, ...]
    drift: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {
            "days": [summary_dict(day.summary) for day in self.days],
            "drift": dict(self.drift),
        }

    def lines(self) -> list[Text]:
        return [*render_days(self.days), *_drift_lines(self.drift)]


async def window_proof(
    store: SlotStore, continuity: Continuity, symbol: str, window_days: int
) -> WindowProof:
    """The last ``window_days`` trading days and today. Raises ``StorageError``."""
    start, end = continuity.last_days(symbol, window_days + 1)
    days = await continuity.days(symbol, start, end)
    labels = [slot.open_time for day in days for slot in day.slots]
    drift = await store.drift(symbol, labels[0], labels[-1]) if labels else {"bars": 0}
    return WindowProof(symbol, tuple(days), drift)


def slot_dict(slot: Slot, zone: ZoneInfo = BOGOTA) -> dict[str, Any]:
    """A slot as a row of ``/market/continuity``."""
    return {
        "datetime": iso_local(slot.open_time, zone),
        "source": slot.source,
        "status": slot.status,
        "revision": slot.revision,
        "final": slot.final,
        "grade": slot.grade,
        "reason": slot.reason,
    }


def summary_dict(summary: DaySummary) -> dict[str, Any]:
    """A day in numbers."""
    return {
        "date": summary.day.isoformat(),
        "expected": summary.expected,
        "covered": summary.covered,
        "vendor": summary.vendor,
        "live": summary.live,
        "both": summary.both,
        "pending": summary.pending,
        "unknown": summary.unknown,
        "final": summary.final,
    }


def day_dict(day: DayContinuity) -> dict[str, Any]:
    """A day slot by slot, for ``--json``."""
    return {
        "symbol": day.symbol,
        **summary_dict(day.summary),
        "slots": [slot_dict(slot, day.zone) for slot in day.slots],
    }


def _line(day: DayContinuity) -> Text:
    line = Text(f"  {day.day:%a %Y-%m-%d} ")
    for slot in day.slots:
        line.append(*sign(slot))
    line.append(f" {day.covered}/{len(day.slots)}")
    return line


def _ruler(slots: Sequence[Slot], zone: ZoneInfo) -> Text:
    """The full hours, each above its slot."""
    ruler = [" "] * (_MARGIN + len(slots) + 5)
    for place, slot in enumerate(slots):
        at = datetime.fromtimestamp(slot.open_time, zone)
        if at.minute == 0 or place == 0:
            ruler[_MARGIN + place + 1 : _MARGIN + place + 6] = f"{at:%H:%M}"
    return Text("".join(ruler).rstrip(), style="dim")


def _numbers(summary: DaySummary) -> str:
    kinds = [
        f"{name} {count}"
        for name in ("both", "vendor", "live", "pending", "unknown")
        if (count := getattr(summary, name))
    ]
    return f"{summary.covered} of {summary.expected} covered, {summary.final} final; " + ", ".join(
        kinds
    )


def _sum(days: Sequence[DayContinuity]) -> str:
    summaries = [day.summary for day in days]
    first = summaries[0]
    total = DaySummary(
        first.day,
        *(
            sum(getattr(one, name) for one in summaries)
            for name in ("expected", "vendor", "live", "both", "pending", "unknown", "final")
        ),
    )
    return _numbers(total)


def _reasons(slots: Sequence[Slot], zone: ZoneInfo) -> list[str]:
    """What lacks, one line for neighbours of one reason."""
    lines = []
    for (status, reason), group in groupby(slots, key=lambda slot: (slot.status, slot.reason)):
        run = list(group)
        if reason is None:
            continue
        begin = datetime.fromtimestamp(run[0].open_time, zone)
        end = datetime.fromtimestamp(run[-1].open_time + BAR_SECONDS, zone)
        lines.append(f"{begin:%H:%M}-{end:%H:%M} {status}: {reason}")
    return lines


def _drift_lines(drift: Mapping[str, Any]) -> list[Text]:
    if not drift["bars"]:
        return [Text("  Drift: no slot has both a live bar and the vendor's.")]
    whole = drift["bars"] - drift["partial"]
    lines = [
        Text(
            f"  Drift: {drift['bars']} slots compared, {drift['partial']} of them collected in part; "
            f"of {whole} whole ones {drift['differing']} differ from the vendor's."
        )
    ]
    if whole:
        fields = (
            f"{name} {drift['mean_abs'][name]:g} (at most {drift['max_abs'][name]:g})"
            for name in drift["mean_abs"]
        )
        lines.append(Text(f"  Mean distance: {', '.join(fields)}"))
    return lines
