"""Quotes as the vendor reports them, and the ticks that accepted quotes become.

Prices are floats rounded to 6 decimals. Below ``MAX_PRICE`` that is at most 12 significant digits,
which a float holds exactly enough to compare, print and parse without ever changing a digit.
"""

import math

import msgspec

PRICE_DECIMALS = 6
MAX_PRICE = 999_999.9999995  # from here on rounding makes it a million, too large for the tables
"""Prices at or above do not fit DECIMAL(12,6), the column of the requirements."""


class Flag:
    """Names of the flags a stored tick may carry."""

    CROSSED = "crossed"  # ask < bid
    RECEIVED = "received"  # the vendor gave no stamp: the time is that of the receipt
    FUTURE = "future"  # stamped more than the tolerance ahead of our clock: enters no bar
    LATE = "late"  # arrived after its bar was beyond revision
    HELD = "held"  # was outside the price band until later prices agreed with it
    OUT_OF_ORDER = "out_of_order"  # stamped before a tick that came earlier


HELD, OUTLIER, UNWITNESSED = "held", "outlier", "unwitnessed"
"""Reasons of rejections. ``held`` is none for good: the quote waits for a witness, and the journal says so
in case that the process dies. Its fate follows there: a tick with flag ``held``, or another rejection."""


def quantise(value: float) -> float:
    """Round to the 6 decimals in which prices are compared, stored and shown."""
    return round(value, PRICE_DECIMALS)


class Quote(msgspec.Struct, frozen=True, gc=False):
    """One price the vendor reported; nothing has been decided about it yet.

    ``price`` is NaN when the vendor sent something that is not a number (``raw`` then tells what).
    """

    symbol: str  # ours, without slash: USDCOP
    timestamp: int  # the vendor's stamp, unix seconds UTC
    price: float
    source: str  # twelvedata_websocket, twelvedata_rest, simulator_websocket, ...
    received_at: float  # our clock when the bytes were read, unix seconds UTC
    bid: float | None = None
    ask: float | None = None
    volume: int = 0
    stamped: bool = True  # False: the vendor gave no stamp, timestamp is the receipt
    first_after_subscribe: bool = False  # the vendor may re-send its last price here
    raw: str = ""  # the offending text, for rejected quotes only


class Tick(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An accepted quote: numbered per symbol by ``offset`` (1, 2, 3, ...) inside ``epoch``."""

    symbol: str
    epoch: int
    offset: int
    timestamp: int  # the vendor's stamp, unix seconds UTC
    price: float
    bid: float | None
    ask: float | None
    volume: int
    source: str
    received_at: float  # unix seconds UTC
    trading_session: bool  # the stamp lies inside a session
    flags: tuple[str, ...] = ()

    @property
    def spread(self) -> float | None:
        """``ask - bid`` in price units; negative when crossed; ``None`` when either is unknown."""
        if self.bid is None or self.ask is None:
            return None
        # Of two such prices the difference is never near a tie: ``quantise`` in half the time.
        return round((self.ask - self.bid) * 1e6) / 1e6


class Rejection(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A quote that will not become a tick, and why. Stored in ``rejected_ticks``."""

    symbol: str
    timestamp: int
    price: float | None
    bid: float | None
    ask: float | None
    source: str
    received_at: float
    reason: str  # not_a_number, not_positive, out_of_range, outlier, unwitnessed, unparsable; held
    raw: str = ""
    volume: int = 0
    stamped: bool = True

    def quote(self) -> Quote:
        """The quote of a rejection that says ``held``, to be held again."""
        return Quote(
            symbol=self.symbol,
            timestamp=self.timestamp,
            price=math.nan if self.price is None else self.price,
            source=self.source,
            received_at=self.received_at,
            bid=self.bid,
            ask=self.ask,
            volume=self.volume,
            stamped=self.stamped,
        )


def rejection(quote: Quote, reason: str, raw: str = "") -> Rejection:
    """The record of ``quote`` being refused for ``reason``; ``raw`` tells more, where the quote has none."""
    return Rejection(
        symbol=quote.symbol,
        timestamp=quote.timestamp,
        price=quote.price if math.isfinite(quote.price) else None,
        bid=quote.bid,
        ask=quote.ask,
        source=quote.source,
        received_at=quote.received_at,
        reason=reason,
        raw=quote.raw or raw,
        volume=quote.volume,
        stamped=quote.stamped,
    )
