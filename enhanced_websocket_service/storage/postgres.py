"""What the service reads from PostgreSQL, and what L0 and the health log write.

All instants are unix seconds UTC; all ranges include both ends; prices are floats with at most 6
decimals. Simulated and real rows never mix: every read sees the world of ``provider`` alone. The
tick path's writes are in ``writer.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast, get_args
from zoneinfo import ZoneInfo

import asyncpg
import msgspec

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import DataError, RowsAltered
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.bar import INTERVALS, Bar, BarStatus, Certificate
from enhanced_websocket_service.market.calendar import BOGOTA, utc
from enhanced_websocket_service.market.events import EPOCH_LIMIT
from enhanced_websocket_service.market.source import Provider, is_simulated
from enhanced_websocket_service.market.tick import Tick

from .binary_copy import BAR_COLUMNS, UNENCODABLE, bar_rows
from .epochs import EPOCH_IN_DATABASE, MEND, impossible
from .pool import WRITES, Pool

STORED_INTERVAL_S: Final = 300
MAX_ROWS: Final = 100_000

_FIRST: Final = datetime(1900, 1, 1, tzinfo=UTC)
_LAST: Final = datetime(2200, 1, 1, tzinfo=UTC)
_STATUSES: Final = frozenset(get_args(BarStatus))
_certificates: Final = msgspec.json.Decoder(Certificate)


@dataclass(frozen=True, slots=True)
class BarPage:
    """Bars in ascending order; ``next_cursor`` continues behind them, ``None`` when that is all."""

    bars: list[Bar]
    next_cursor: int | None


class Database(Pool):
    """The PostgreSQL behind one service.

    :param provider: the vendor whose world this service lives in.
    :param clock: says when a vendor bar became known, and which composed bars have ended.
    :param zone: whose days 1-day bars are.
    :param failures: as for ``Pool``.
    """

    def __init__(
        self,
        dsn: str,
        provider: Provider,
        *,
        clock: Clock | None = None,
        zone: ZoneInfo = BOGOTA,
        failures: Failures | None = None,
        max_size: int = 8,
        timeout_s: float = 30.0,
    ) -> None:
        super().__init__(
            dsn,
            world=provider.world,
            clock=clock,
            failures=failures,
            max_size=max_size,
            timeout_s=timeout_s,
        )
        self.provider = provider
        self.zone = zone

    async def bars(
        self,
        symbol: str,
        interval_s: int = STORED_INTERVAL_S,
        start: float | None = None,
        end: float | None = None,
        limit: int = 1000,
        cursor: int | None = None,
        as_of: float | None = None,
        source: str | None = None,
    ) -> BarPage:
        """The bars whose labels lie in ``start .. end``, one a slot.

        Without ``start`` and ``cursor``: the newest. Shorter and longer intervals than the stored
        5 minutes are composed, from ticks and bars, and only once they have ended.

        :param cursor: the ``next_cursor`` of the page before.
        :param as_of: as a consumer saw it at that instant, instead of now.
        :param source: only bars of this source, instead of the one that speaks for each slot.
        :raises DataError: an interval that cannot be composed, or a limit out of range.
        """
        if interval_s not in INTERVALS.values():
            known = ", ".join(f"{seconds} ({name})" for name, seconds in INTERVALS.items())
            raise DataError(f"There are no bars of {interval_s} s; known: {known}.")
        _check_limit(limit)
        newest = start is None and cursor is None
        first = _instant(start if cursor is None else max(cursor + 1, start or 0), _FIRST)
        last = _instant(end, _LAST)
        seen = None if as_of is None else _instant(as_of, _LAST)
        if source is not None and is_simulated(source) != self.provider.simulated:
            return BarPage([], None)
        now = utc(self._clock.now() if as_of is None else as_of)
        length = timedelta(seconds=interval_s)
        # One more than asked for tells whether there is another page.
        common = [symbol, first, last, self.provider.simulated, source, seen, limit + 1]
        order = "newest_" if newest else ""
        version = "now" if as_of is None else "as_of"
        if interval_s == STORED_INTERVAL_S:
            rows = await self.fetch(f"select_{order}bars_{version}", *common)
        elif interval_s < STORED_INTERVAL_S:
            rows = await self.fetch(f"select_{order}minutes", *common, length, now)
        else:
            # The last slot of the last bar asked for.
            common[2] = last + length - timedelta(seconds=STORED_INTERVAL_S)
            name = f"compose_{order}bars_{version}"
            rows = await self.fetch(name, *common, length, self.zone.key, now)
        bars = [bar_of_row(row, symbol, interval_s) for row in rows[:limit]]
        if newest:
            return BarPage(bars[::-1], None)
        return BarPage(bars, bars[-1].open_time if len(rows) > limit else None)

    async def last_bar(self, symbol: str, vendor_only: bool = False) -> Bar | None:
        """The newest 5-minute bar; with ``vendor_only`` the newest that the vendor built."""
        source = self.provider.bars if vendor_only else None
        rows = await self.fetch(
            "last_bar", symbol, _FIRST, _LAST, self.provider.simulated, source, None
        )
        return bar_of_row(rows[0], symbol, STORED_INTERVAL_S) if rows else None

    async def largest_move(self, symbol: str) -> float | None:
        """The largest move between the closes of neighbouring stored bars, as a part of the earlier one, but
        for changes near a power of ten; ``None``: there are not two.
        """
        rows = await self.fetch("largest_move", symbol, self.provider.simulated)
        move: float | None = rows[0]["move"]
        return move

    async def slots_present(self, symbol: str, start: float, end: float) -> dict[int, list[str]]:
        """Label -> the sources that have a whole (or reconstructed) bar for it, in alphabetical order;
        none where all that is stored is partial or a close alone.
        """
        rows = await self.fetch(
            "slots_present",
            *(symbol, _instant(start, _FIRST), _instant(end, _LAST), self.provider.simulated),
        )
        return {row["slot"]: list(row["sources"]) for row in rows}

    async def vendor_bars(self, symbol: str, start: float, end: float) -> list[Bar]:
        """All bars that the vendor built, ascending."""
        query = ("select_bars_now", symbol, _instant(start, _FIRST), _instant(end, _LAST))
        rows = await self.fetch(*query, self.provider.simulated, self.provider.bars, None, None)
        return [bar_of_row(row, symbol, STORED_INTERVAL_S) for row in rows]

    async def upsert_vendor_bars(self, bars: Sequence[Bar]) -> int:
        """Store whole bars of 5 minutes in one transaction, under the source each one names.

        A version that gets replaced by other values is kept in ``bar_revisions``. The same slot twice
        in ``bars``: the last one counts.

        :returns: how many rows are new or different now.
        :raises DataError: a bar that the table cannot hold; nothing was stored.
        :raises RowsAltered: a trigger of the table's owner keeps bars out; nothing was stored.
        """
        unique = {(bar.symbol, bar.open_time, bar.source): bar for bar in bars}
        for bar in unique.values():
            if bar.interval_s != STORED_INTERVAL_S:
                raise DataError(
                    f"market_data holds bars of 5 minutes, not {bar.interval_s} s: {bar}"
                )
        if not unique:
            return 0
        try:
            rows = bar_rows(unique.values())
        except UNENCODABLE as error:
            raise DataError(f"A bar cannot be stored: {error}") from error
        async with self.transaction("storing vendor bars") as connection:
            await connection.execute(WRITES["make_incoming_bars"])
            try:
                await connection.copy_to_table(
                    "incoming_bars", source=rows, columns=BAR_COLUMNS, format="binary"
                )
            except asyncpg.DataError as error:
                raise DataError(f"A bar does not fit into market_data: {error}") from error
            await connection.execute(WRITES["keep_replaced_versions"])
            status = await connection.execute(WRITES["upsert_vendor_bars"], utc(self._clock.now()))
            if altered := await connection.fetchval(WRITES["altered_bars"]):
                raise RowsAltered(
                    f"{altered} of {len(unique)} vendor bars are not in market_data as they were written: a "
                    "trigger of its owner's keeps them out or changes them. Nothing of them was stored."
                )
        return int(status.rpartition(" ")[2])

    async def ticks(
        self,
        symbol: str,
        start: float | None = None,
        end: float | None = None,
        after: tuple[int, int] | None = None,
        limit: int = 1000,
        as_of: float | None = None,
        source: str | None = None,
    ) -> list[Tick]:
        """Stored ticks ascending by (epoch, offset), behind ``after``, stamped in ``start .. end``.

        Without ``start`` and ``after``: the newest. Rows that other programs wrote have no offset and
        are not among them.

        :param as_of: only what had been received by that instant.
        :param source: only ticks of this source.
        """
        _check_limit(limit)
        window = (
            *(symbol, _instant(start, _FIRST), _instant(end, _LAST), self.provider.simulated),
            *(source, None if as_of is None else _instant(as_of, _LAST)),
        )
        if start is None and after is None:
            return [_tick(row) for row in (await self.fetch("newest_ticks", *window, limit))[::-1]]
        epoch, offset = after or (-1, 0)
        return [
            _tick(row) for row in await self.fetch("ticks_after", *window, epoch, offset, limit)
        ]

    async def highest_epoch(self) -> int:
        """The highest epoch that ever claimed or wrote to this database; 0 without one.

        One that none of ours can be is told in ``failures`` and left out.
        """
        ((highest, foreign),) = await self.fetch("highest_epoch", EPOCH_LIMIT)
        if foreign is not None:
            self._failures.failed(EPOCH_IN_DATABASE, impossible(foreign, MEND))
        return cast(int, highest)

    async def record_health(
        self,
        status: str,
        details: dict[str, Any],
        response_time_ms: float | None = None,
        error_message: str | None = None,
    ) -> None:
        """Add a row to ``system_health``. Raises ``StorageError``."""
        document = msgspec.json.encode(details, enc_hook=str).decode().replace("\\u0000", "")
        milliseconds = None if response_time_ms is None else round(response_time_ms)
        async with self.transaction("recording the health") as connection:
            said = await connection.execute(
                *(WRITES["insert_health"], status, document, milliseconds, error_message)
            )
            if said.endswith(" 0"):
                raise RowsAltered(
                    "system_health took no row: a trigger of its owner's keeps it out."
                )


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= MAX_ROWS:
        raise DataError(f"limit is {limit}; it must lie between 1 and {MAX_ROWS}.")


def _instant(value: float | None, default: datetime) -> datetime:
    """``value`` as the database gets it, held inside what both sides can express."""
    if value is None:
        return default
    return utc(min(max(value, _FIRST.timestamp()), _LAST.timestamp()))


def bar_of_row(row: Any, symbol: str, interval_s: int) -> Bar:
    """A row of the columns ``bar_columns`` names."""
    status = row["status"]
    certificate = row["certificate"]
    return Bar(
        symbol=symbol,
        interval_s=interval_s,
        open_time=row["open_time"],
        open=row["open"],
        high=row["high"],
        low=row["low"],
        close=row["close"],
        volume=row["volume"],
        source=row["source"],
        revision=row["revision"],
        status=status if status in _STATUSES else "closed",
        certificate=None if certificate is None else _certificates.decode(certificate),
    )


def _tick(row: Any) -> Tick:
    return Tick(
        symbol=row["symbol"],
        epoch=row["epoch"],
        offset=row["tick_offset"],
        timestamp=row["timestamp"],
        price=row["last"],
        bid=row["bid"],
        ask=row["ask"],
        volume=row["volume"],
        source=row["source"],
        received_at=row["received_at"],
        trading_session=row["trading_session"],
        flags=tuple(row["flags"]),
    )
