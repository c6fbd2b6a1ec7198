"""What is known of one 5-minute slot: every source's bar, and what the vendor was asked for in vain."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .source import Provider

SETTLE_S = 180
"""The vendor publishes a bar 0.3 to 3 minutes after its end: before that its absence says nothing."""

Kind = Literal["vendor", "import", "live"]


def kind_of(source: str, provider: Provider) -> Kind:
    """Who made the bars of ``source``: the vendor, another system, or we from ticks."""
    if source == provider.bars:
        return "vendor"
    if source.endswith(("_websocket", "_rest")):
        return "live"
    return "import"


@dataclass(frozen=True, slots=True)
class SourceBar:
    """One source's bar of a slot as it is stored."""

    source: str
    open: float
    high: float
    low: float
    close: float
    volume: int
    revision: int
    status: str  # closed, revised, reconciled
    published: bool = False  # clients were told of it
    seen_at: float = 0.0  # since when its values are these; unix seconds UTC, 0: not known
    partial: bool = False  # live, and not collected for its whole time
    mixed: bool = False  # live, of ticks from several sources: a feed failed in it
    grade: str = "whole"  # what the bar is worth; see docs/reference/continuity.md

    @property
    def prices(self) -> tuple[float, float, float, float]:
        return (self.open, self.high, self.low, self.close)


@dataclass(frozen=True, slots=True)
class VendorGap:
    """``asked`` answers of the vendor lacked the slot, the last one at ``last_asked_at``."""

    asked: int
    last_asked_at: float  # unix seconds UTC


@dataclass(frozen=True, slots=True)
class SlotEvidence:
    """``slot`` is the open of the bar, unix seconds UTC; ``bars`` the one that speaks for it first."""

    slot: int
    bars: Sequence[SourceBar] = ()
    gap: VendorGap | None = None
    highest_revision: int = -1  # of any bar ever published or stored for the slot; -1: none

    def first(self, kind: Kind, provider: Provider) -> SourceBar | None:
        """The best bar of that kind."""
        return next((bar for bar in self.bars if kind_of(bar.source, provider) == kind), None)

    @property
    def published(self) -> bool:
        """Whether clients were told of any bar of the slot."""
        return any(bar.published for bar in self.bars)
