"""What the simulated vendor can be asked about prices. Pure: no I/O, no clock.

Instants are unix seconds UTC (``int``), prices floats rounded to 6 decimals, symbols in the vendor's
spelling (``USD/COP``). A source knows the whole recording, its future included; whoever serves it
decides what may be seen at a given instant.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from enhanced_websocket_service.errors import ConfigurationError

SLOT_SECONDS = 300

_CURRENCIES = {
    "AUD": "Australian Dollar",
    "BRL": "Brazil Real",
    "BTC": "Bitcoin",
    "CAD": "Canadian Dollar",
    "CHF": "Swiss Franc",
    "COP": "Colombian Peso",
    "ETH": "Ethereum",
    "EUR": "Euro",
    "GBP": "British Pound",
    "JPY": "Japanese Yen",
    "MXN": "Mexican Peso",
    "USD": "US Dollar",
}
_MAJORS = frozenset({"AUD", "CAD", "CHF", "EUR", "GBP", "JPY", "USD"})
_COINS = frozenset({"BTC", "ETH"})


class SimTick(NamedTuple):
    """One price the vendor will send when the clock reaches ``timestamp`` (whole seconds)."""

    timestamp: int
    price: float
    bid: float | None
    ask: float | None


class Candle(NamedTuple):
    """OHLC of the ticks in ``[open_time, open_time + its interval)``."""

    open_time: int
    open: float
    high: float
    low: float
    close: float


class SymbolSource(Protocol):
    """All prices of one symbol."""

    def ticks(self, start: int, end: int) -> list[SimTick]:
        """The ticks stamped in ``[start, end)`` in the order in which they go on the wire."""
        ...

    def next_stamp(self, at: int) -> int | None:
        """The stamp of the first tick at or after ``at``; ``None`` when there is none."""
        ...

    def last_tick(self, until: int) -> SimTick | None:
        """The last tick stamped at or before ``until``; ``None`` when there is none."""
        ...

    def candles(self, start: int, end: int) -> list[Candle]:
        """The whole 5-minute candles that open in ``[start, end)``, oldest first."""
        ...

    def first_open(self) -> int | None:
        """The open of the first 5-minute candle of all; ``None`` for an empty source."""
        ...


@dataclass(frozen=True, slots=True)
class SymbolInfo:
    """What the vendor tells about a currency pair."""

    symbol: str  # USD/COP
    base: str  # USD
    quote: str  # COP
    base_name: str  # US Dollar
    quote_name: str  # Colombian Peso
    type: str  # Physical Currency or Digital Currency
    group: str  # Major, Minor, Exotic, Exotic-Cross
    trial: bool  # streams on the free plans too


@dataclass(frozen=True, slots=True)
class MarketSource:
    """The symbols that the simulated vendor has, each with its prices."""

    sources: Mapping[str, SymbolSource]

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(self.sources)

    def get(self, symbol: str) -> SymbolSource | None:
        """The prices of ``symbol`` (vendor's spelling, any case)."""
        return self.sources.get(symbol.upper())


TRIAL_SYMBOLS = frozenset({"EUR/USD", "BTC/USD"})


def describe(symbol: str) -> SymbolInfo:
    """Names, type and group of a pair in the vendor's spelling."""
    base, _, quote = symbol.partition("/")
    majors = (base in _MAJORS) + (quote in _MAJORS)
    if majors == 2:
        group = "Major" if "USD" in (base, quote) else "Minor"
    else:
        group = "Exotic" if majors == 1 else "Exotic-Cross"
    return SymbolInfo(
        symbol=symbol,
        base=base,
        quote=quote,
        base_name=_CURRENCIES.get(base, base),
        quote_name=_CURRENCIES.get(quote, quote),
        type="Digital Currency" if base in _COINS else "Physical Currency",
        group=group,
        trial=symbol in TRIAL_SYMBOLS,
    )


def spelled(symbol: str) -> str:
    """``symbol`` in the vendor's spelling: ``usdcop`` and ``USD/COP`` both give ``USD/COP``.

    :raises ConfigurationError: when it is not a pair.
    """
    text = symbol.strip().upper()
    if "/" not in text and len(text) == 6:
        text = f"{text[:3]}/{text[3:]}"
    base, slash, quote = text.partition("/")
    if not (slash and base.isalnum() and quote.isalnum()):
        raise ConfigurationError(
            f"{symbol!r} is not a currency pair; write it like 'USD/COP' or 'USDCOP'."
        )
    return text
