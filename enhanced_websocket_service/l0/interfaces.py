"""What L0 asks of the vendor's REST client and of the database; nothing more.

All instants are unix seconds UTC, all ranges inclusive at both ends.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from enhanced_websocket_service.market.bar import Bar

Progress = Callable[[int, int], None]
"""Told after every page: trading days settled so far, trading days in all."""


class HistorySource(Protocol):
    """The vendor's bars."""

    async def time_series(
        self,
        symbol: str,
        *,
        start: int,
        end: int,
        interval_s: int = 300,
        outputsize: int = 5000,
        purpose: str,
    ) -> list[Bar]:
        """The vendor's bars with ``start <= open_time <= end``, ascending, the forming one dropped.

        An empty window is an empty list. When there are more than the vendor gives in one answer,
        those nearest ``end`` come. Raises ``VendorError``.
        """
        ...


class BarStore(Protocol):
    """The table ``market_data``, as far as L0 uses it."""

    async def upsert_vendor_bars(self, bars: Sequence[Bar]) -> int:
        """Store ``bars`` in one transaction, replacing rows of the same slot and source."""
        ...

    async def slots_present(self, symbol: str, start: int, end: int) -> dict[int, list[str]]:
        """Slot -> the sources that have a bar for it."""
        ...

    async def vendor_bars(self, symbol: str, start: int, end: int) -> list[Bar]:
        """The bars whose source is a vendor's own, ascending."""
        ...

    async def last_bar(self, symbol: str, vendor_only: bool = False) -> Bar | None:
        """The newest bar of any source, or of a vendor's own."""
        ...
