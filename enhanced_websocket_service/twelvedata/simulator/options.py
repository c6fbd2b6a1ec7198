"""From the options of ``ews simulate`` and ``ews demo`` to a market."""

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.market.calendar import BOGOTA, TradingCalendar

from .bar_ticks import CandleTicks
from .fault_table import FAULTS
from .faults import BadFault, parsed
from .loading import load_candles, load_ticks
from .model import SLOT_SECONDS, MarketSource, SymbolSource, describe, spelled
from .pace import ARRIVALS, CountedPace, Pace, TimedPace
from .random_market import RandomCandles, Regime
from .recorded import RecordedCandles

MOST_TICKS_PER_BAR = 10_000

_BASE_PRICES = {"USD/COP": 4100.0, "EUR/USD": 1.09, "BTC/USD": 95_000.0}
_VOLATILITY = {"EUR/USD": 0.5, "BTC/USD": 2.0}
TRIAL_SYMBOLS = ("EUR/USD", "BTC/USD")
"""The vendor's: every random market has them."""
_REGIMES: tuple[Regime, ...] = ("onshore", "24x5", "24x7")


def market_from_options(
    bars: Path | None = None,
    ticks: Path | None = None,
    *,
    scale: float = 1.0,
    ticks_per_bar: int | str | None = None,
    arrivals: str = "",
    tick_every: str | None = None,
    seed: int = 0,
    regime: str = "onshore",
    symbol: str = "USD/COP",
    random_symbols: Sequence[str] = TRIAL_SYMBOLS,
    spread_bp: float = 1.2,
    missing_quotes: float = 0.02,
    calendar: TradingCalendar | None = None,
) -> MarketSource:
    """The market that the options describe.

    :param bars: recorded 5-minute bars; each becomes ticks.
    :param ticks: recorded quotes; ``scale`` multiplies them.
    :param ticks_per_bar: number of ticks made from a bar, or ``FEWEST-MOST``; ``None``: 2-40.
    :param arrivals: ``bursty``, ``poisson`` or ``regular`` (``pace.CountedPace``).
    :param tick_every: instead of ``ticks_per_bar``: seconds between two ticks, then comma, seconds
        ``@`` the instant from which they rule (ISO 8601, America/Bogota without offset), and so on.
    :param regime: hours of the random ``symbol``: ``onshore``, ``24x5`` or ``24x7``.
    :param symbol: name of the recorded symbol, or of the first random one.
    :param random_symbols: further symbols of a random market (the vendor's trial symbols).
    :param spread_bp: mean spread around prices made from bars, basis points; 0: no bid and ask.
    :param missing_quotes: share of ticks made from bars that have no bid and ask.
    :raises ConfigurationError: options that make no sense, all of them at once.
    :raises DataError: a file that cannot be used.
    """
    faults: list[str] = []
    if bars is not None and ticks is not None:
        faults.append("--bars and --ticks exclude each other: give one of them.")
    if not (math.isfinite(scale) and scale > 0):
        faults.append(f"--scale {scale}: must be greater than 0.")
    elif scale != 1.0 and ticks is None:
        faults.append("--scale works with --ticks only: recorded bars are served as they are.")
    pace = _pace(ticks_per_bar, arrivals, tick_every, faults)
    if ticks is not None and (ticks_per_bar is not None or arrivals or tick_every is not None):
        faults.append(
            "--ticks-per-bar, --arrivals and --tick-every have no meaning with --ticks: those are "
            "sent as recorded."
        )
    chosen = next((one for one in _REGIMES if one == regime), None)
    if chosen is None:
        faults.append(f"--regime {regime}: must be one of {', '.join(_REGIMES)}.")
    if not 0 <= spread_bp <= 100:
        faults.append(f"spread_bp {spread_bp}: must be 0 .. 100 basis points.")
    if not 0 <= missing_quotes <= 1:
        faults.append(f"missing_quotes {missing_quotes}: must be a share between 0 and 1.")
    if faults or chosen is None:
        raise ConfigurationError(*faults)
    name = spelled(symbol)
    if ticks is not None:
        return MarketSource({name: load_ticks(ticks, scale)})

    def from_candles(of: str, book: RecordedCandles | RandomCandles) -> SymbolSource:
        return CandleTicks(
            of,
            book,
            seed=seed,
            pace=pace,
            spread_bp=spread_bp,
            missing_quotes=missing_quotes,
        )

    if bars is not None:
        return MarketSource({name: from_candles(name, RecordedCandles(load_candles(bars, name)))})
    sources = {}
    for one in dict.fromkeys([name, *map(spelled, random_symbols)]):
        digital = describe(one).type == "Digital Currency"
        hours: Regime = chosen if one == name else "24x7" if digital else "24x5"
        book = RandomCandles(
            one,
            seed=seed,
            base_price=_BASE_PRICES.get(one, 100.0),
            regime=hours,
            volatility=_VOLATILITY.get(one, 1.0),
            calendar=calendar,
        )
        sources[one] = from_candles(one, book)
    return MarketSource(sources)


def _pace(
    ticks_per_bar: int | str | None, arrivals: str, tick_every: str | None, faults: list[str]
) -> Pace:
    chosen = next((one for one in ARRIVALS if one == arrivals), None)
    if arrivals and chosen is None:
        faults.append(f"--arrivals {arrivals}: must be one of {', '.join(ARRIVALS)}.")
    if tick_every is not None:
        if ticks_per_bar is not None:
            faults.append("--ticks-per-bar and --tick-every exclude each other.")
        if chosen == "bursty":
            faults.append("--arrivals bursty works with --ticks-per-bar only.")
        return TimedPace(_phases(tick_every, faults), chosen or "regular")
    if ticks_per_bar is None:
        return CountedPace(arrivals=chosen or "bursty")
    low, _, high = str(ticks_per_bar).partition("-")
    try:
        fewest, most = int(low), int(high or low)
    except ValueError:
        fewest = most = 0
    if not 2 <= fewest <= most <= MOST_TICKS_PER_BAR:
        faults.append(
            f"--ticks-per-bar {ticks_per_bar}: must be a number 2 .. {MOST_TICKS_PER_BAR}, or two "
            "as in 2-40."
        )
    return CountedPace(fewest, most, chosen or "bursty")


def _phases(text: str, faults: list[str]) -> list[tuple[float, float]]:
    phases: list[tuple[float, float]] = []
    for i, part in enumerate(text.split(",")):
        seconds, _, instant = part.partition("@")
        try:
            every = float(seconds)
            found = datetime.fromisoformat(instant.strip()) if i else datetime.fromtimestamp(0, UTC)
            if (
                not i and instant
            ) or not SLOT_SECONDS / MOST_TICKS_PER_BAR <= every <= SLOT_SECONDS:
                raise ValueError
        except ValueError:
            faults.append(
                f"--tick-every {text}: must be seconds ({SLOT_SECONDS / MOST_TICKS_PER_BAR:g} .. "
                f"{SLOT_SECONDS}), then SECONDS@TIME, as in 1,60@2025-06-25T10:30."
            )
            return [(0.0, 1.0)]
        local = found if found.tzinfo else found.replace(tzinfo=BOGOTA)
        phases.append((local.timestamp(), every))
    if phases != sorted(phases):
        faults.append(f"--tick-every {text}: the times must follow each other.")
    return phases


def faults_from_options(texts: Sequence[str]) -> dict[str, Any]:
    """What ``--fault NAME[=VALUE]`` asks for; a value is JSON or else a text, none is ``true``.

    :raises ConfigurationError: with every option that is wrong.
    """
    wanted: dict[str, Any] = {}
    wrong = []
    for text in texts:
        name, given, value = text.partition("=")
        name = name.strip()
        try:
            wanted[name] = json.loads(value) if given else True
        except ValueError:
            wanted[name] = value.strip()
        if name in FAULTS and FAULTS[name].action:
            wrong.append(
                f"--fault {name}: happens once, and at the start no socket is open; give it an "
                "instant in a --fault-script, or POST it to /_sim/faults."
            )
    try:
        parsed(wanted)
    except BadFault as error:
        wrong += [f"--fault: {one}" for one in error.wrong]
        wrong.append(f"--fault: there are {', '.join(FAULTS)}.")
    if wrong:
        raise ConfigurationError(*wrong)
    return wanted
