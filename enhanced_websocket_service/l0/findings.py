"""What one answer of the vendor means, sorted by what is to be done. Decides nothing by itself."""

from typing import Final

import structlog

from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.market.calendar import BAR_SECONDS, TradingCalendar, iso_local
from enhanced_websocket_service.market.reconciliation import (
    Drift,
    Finding,
    drift,
    judge,
    to_publish,
)
from enhanced_websocket_service.market.slot import SETTLE_S, SlotEvidence
from enhanced_websocket_service.market.source import Provider

log = structlog.get_logger(__name__)

NEWS: Final[frozenset[Finding]] = frozenset({"first", "changed", "corrected"})


class Findings:
    """What the vendor's answer of ``at`` means, sorted by what is to be done."""

    def __init__(self, provider: Provider, calendar: TradingCalendar, at: float) -> None:
        self.gaps: list[int] = []
        self.drifts: list[Drift] = []
        self.news: list[Bar] = []
        self.confirmed: list[int] = []
        self.findings: dict[Finding, int] = {}
        self._provider, self._calendar, self._at = provider, calendar, at

    def take(self, evidence: SlotEvidence, bar: Bar | None, *, asked: bool) -> None:
        """:param asked: whether the call was made for this slot; else it only shows what changed."""
        if bar is None and self._at < evidence.slot + BAR_SECONDS + SETTLE_S:
            return  # too early to say that the vendor lacks it
        finding = judge(evidence, bar, self._at, self._provider)
        if not asked and finding not in NEWS:
            return
        if finding == "corrected":
            log.warning(
                "The vendor changed a bar that was final",
                symbol=bar.symbol if bar is not None else "",
                slot=iso_local(evidence.slot),
            )
        self.findings[finding] = self.findings.get(finding, 0) + 1
        if bar is None:
            self.gaps.append(evidence.slot)
            return
        if finding != "same" and (found := drift(evidence, bar, self._provider)) is not None:
            self.drifts.append(found)
        today = self._calendar.local_date(evidence.slot) == self._calendar.local_date(self._at)
        version = to_publish(evidence, bar, finding, today=today)
        if version is not None:
            self.news.append(version)
        elif finding == "final":
            self.confirmed.append(evidence.slot)
