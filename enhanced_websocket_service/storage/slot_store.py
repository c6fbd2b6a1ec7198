"""What reconciliation and the proof of continuity read and write beside the bars themselves.

All instants are unix seconds UTC, all ranges include both ends. Every method raises ``StorageError``.
"""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from enhanced_websocket_service.market.calendar import iso_local, utc
from enhanced_websocket_service.market.continuity import Mark
from enhanced_websocket_service.market.reconciliation import Drift
from enhanced_websocket_service.market.slot import SlotEvidence, SourceBar, VendorGap

from .pool import WRITES
from .postgres import Database

FIELDS = ("open", "high", "low", "close")


class SlotStore:
    """The evidence about slots in one database, in the world of its provider."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._provider = database.provider

    async def evidence(self, symbol: str, labels: Sequence[int]) -> list[SlotEvidence]:
        """What is known of each of ``labels`` (ascending slots)."""
        if not labels:
            return []
        first, last = utc(labels[0]), utc(labels[-1])
        world = (symbol, first, last, self._provider.simulated)
        fetch = self._database.fetch
        bars: defaultdict[int, list[SourceBar]] = defaultdict(list)
        for row in await fetch("slot_rows", *world):
            bars[row["slot"]].append(_source_bar(row))
        revisions = {row["slot"]: row["revision"] for row in await fetch("slot_revisions", *world)}
        gaps = {
            row["slot"]: VendorGap(row["asked"], row["last_asked_at"])
            for row in await fetch("vendor_gaps", symbol, first, last, self._provider.bars)
        }
        return [
            SlotEvidence(
                slot,
                tuple(bars.get(slot, ())),
                gap=gaps.get(slot),
                highest_revision=revisions.get(slot, -1),
            )
            for slot in labels
        ]

    async def marks(self, start: float, end: float) -> list[Mark]:
        """What the service wrote into ``system_health`` about ``start .. end``, oldest first."""
        rows = await self._database.fetch("health_marks", iso_local(start), iso_local(end))
        return [
            Mark(
                datetime.fromisoformat(row["at"]).timestamp(),
                row["status"],
                row["epoch"],
                row["error_message"] or row["reason"],
                _dead(row["dead"]),
                _symbols(row["symbols"]),
            )
            for row in rows
        ]

    async def drift(self, symbol: str, start: float, end: float) -> dict[str, Any]:
        """Live minus vendor over the slots of ``start .. end``: counts, mean and largest by field."""
        rows = await self._database.fetch(
            "drift", symbol, utc(start), utc(end), self._provider.bars
        )
        row = rows[0]
        return {
            "bars": row["bars"],
            "partial": row["partial"],
            "differing": row["differing"],
            "mean_abs": {name: _rounded(row[f"mean_{name}"]) for name in FIELDS},
            "max_abs": {name: _rounded(row[f"max_{name}"]) for name in FIELDS},
        }

    async def note(
        self,
        symbol: str,
        now: float,
        *,
        gaps: Sequence[int],
        drifts: Sequence[Drift],
        replaced: Sequence[int],
        confirmed: Sequence[int],
    ) -> None:
        """Record an answer of the vendor in one transaction; recording it twice changes nothing but
        the count of answers.

        :param gaps: slots that it lacked.
        :param replaced: slots whose stored vendor bar gives way to a journaled version.
        :param confirmed: slots whose stored vendor bar is final now, without a new version.
        """
        source, at = self._provider.bars, utc(now)
        rows = [
            (
                *(symbol, utc(one.slot), source, one.live.source, one.live.revision),
                *(one.live.partial, one.open, one.high, one.low, one.close, at),
            )
            for one in drifts
        ]
        if not (gaps or rows or replaced or confirmed):
            return
        doing = "recording what the vendor answered"
        async with self._database.transaction(doing) as connection:
            if gaps:
                await connection.execute(WRITES["note_vendor_gaps"], symbol, source, list(gaps), at)
            if rows:
                await connection.executemany(WRITES["note_drift"], rows)
            if replaced:
                await connection.execute(
                    WRITES["keep_seen_versions"], symbol, source, list(replaced)
                )
            if confirmed:
                await connection.execute(WRITES["confirm_history"], symbol, source, list(confirmed))


def _source_bar(row: Any) -> SourceBar:
    return SourceBar(
        source=row["source"],
        open=row["open"],
        high=row["high"],
        low=row["low"],
        close=row["close"],
        volume=row["volume"],
        revision=row["revision"],
        status=row["status"],
        published=row["published"],
        seen_at=row["seen_at"],
        partial=row["partial"],
        mixed=row["mixed"],
        grade=row["grade"],
    )


def _dead(text: str | None) -> dict[str, str] | None:
    """As ``Mark.dead``. Rows of older releases do not tell it; other people's may tell anything."""
    try:
        return None if text is None else msgspec.json.decode(text, type=dict[str, str])
    except msgspec.DecodeError:
        return None


class _SymbolState(msgspec.Struct):
    state: str
    reason: str


def _symbols(text: str | None) -> dict[str, tuple[str, str]]:
    """As ``Mark.symbols``; none in rows of older releases, or of other people."""
    try:
        told = {} if text is None else msgspec.json.decode(text, type=dict[str, _SymbolState])
    except msgspec.DecodeError:
        return {}
    return {symbol: (one.state, one.reason) for symbol, one in told.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
