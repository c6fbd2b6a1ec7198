"""Bars: OHLC of the ticks in ``[open_time, open_time + interval)``, with a birth certificate."""

from typing import Final, Literal

import msgspec

INTERVALS: Final[dict[str, int]] = {
    "1min": 60,
    "5min": 300,
    "15min": 900,
    "30min": 1800,
    "1h": 3600,
    "1day": 86400,
}
"""Interval names as the vendor spells them -> seconds. 5min is the one that is stored."""

BarStatus = Literal["closed", "revised", "reconciled"]


class Certificate(msgspec.Struct, frozen=True, gc=False):
    """How a bar came to be: enough to tell a whole bar from one with a hole in it."""

    ticks: dict[str, int]  # number of ticks by source
    first_tick: int | None  # stamps, unix seconds UTC
    last_tick: int | None
    longest_silence_s: int  # the longest stretch of the bar without a tick, its edges included
    partial: bool  # collection was not running for the whole bar


class Bar(msgspec.Struct, frozen=True, gc=False):
    """One bar. ``open_time`` is its label and its identity together with symbol, interval, source."""

    symbol: str
    interval_s: int
    open_time: int  # unix seconds UTC
    open: float
    high: float
    low: float
    close: float
    volume: int
    source: str
    revision: int  # 0 at the first close, +1 for each change published after it
    status: BarStatus
    certificate: Certificate | None = None  # None for bars that came whole from the vendor

    @property
    def close_time(self) -> int:
        """The end of the bar, exclusive; unix seconds UTC."""
        return self.open_time + self.interval_s


class BarUpdate(msgspec.Struct, frozen=True, gc=False):
    """A bar as it was published: beside the last tick offset at that moment."""

    bar: Bar
    epoch: int
    offset: int
    published_at: float  # unix seconds UTC
