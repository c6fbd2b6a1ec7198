"""What the service publishes to its bus: ticks, bars, epochs and changes of its own state."""

from typing import Final

import msgspec

from .bar import BarUpdate
from .tick import Tick

EPOCH_LIMIT: Final = 1 << 53
"""Epochs are lower: clients in JavaScript round what is not."""


class EpochStarted(msgspec.Struct, frozen=True, gc=False):
    """Offsets of ``symbol`` begin again at 1 under a new epoch."""

    symbol: str
    epoch: int
    previous_epoch: int | None
    previous_last_offset: int | None


class StatusChanged(msgspec.Struct, frozen=True, gc=False):
    """The service state or a verdict changed."""

    state: str  # one of the eight states, lower case
    reason: str
    feed_verdict: str  # live, quiet, suspect, dead, closed
    at: float  # unix seconds UTC
    evidence: str | None = None  # what the verdict on the feed rests on
    verdicts: dict[str, str] = {}  # on the stream of each symbol


class Probe(msgspec.Struct, frozen=True, gc=False):
    """Nothing happened: whoever hands events on shows that it does. For nobody outside the process."""

    number: int


Event = Tick | BarUpdate | EpochStarted | StatusChanged | Probe
