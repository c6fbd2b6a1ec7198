"""Quotes without anything odd about them, made into ticks at a stretch. Pure.

Nearly every quote is one: it passes through one loop instead of a dozen calls. This is a short cut,
never a second rule: what it makes is what ``QuoteValidator.check`` and the pipeline would make one by
one, and at the first quote that it is not sure about it stops.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec.structs import astuple

from .calendar import BAR_SECONDS, Session
from .tick import MAX_PRICE, Flag, Quote, Tick, quantise
from .validation import SMALLEST, QuoteValidator

_MICRO = 1e6
_NO_FLAGS: tuple[str, ...] = ()
_CROSSED: tuple[str, ...] = (Flag.CROSSED,)


class Stretch(NamedTuple):
    """The ticks of the leading quotes, and how many of them are equal to the tick before."""

    ticks: list[Tick]
    repeated: int


def usual_ticks(
    quotes: Sequence[Quote],
    *,
    symbol: str,
    validator: QuoteValidator,
    session_on: Callable[[int], Session | None],
    accepts: Callable[[int], bool],
    latest: float,
    epoch: int,
    offset: int,
) -> Stretch:
    """Accept quotes of ``symbol`` from the first on, up to one that is not usual.

    Usual: a stamped price of the stream inside the band, not older than the newest, in the session and
    in a bar that takes it. Crossed quotes and repeated ones are. The validator remembers those taken.

    :param session_on: the session of the day of an instant.
    :param accepts: whether the bar of a stamp still takes ticks.
    :param latest: the latest stamp that is not in the future, unix seconds UTC.
    :param offset: the last one that is used.
    """
    ticks: list[Tick] = []
    repeated = 0
    last, newest, seen, held = validator.state()
    if last is None or seen is None or held:
        return Stretch(ticks, repeated)
    band = validator.band
    seen_stamp, seen_price, seen_bid, seen_ask = seen
    lower = upper = 0  # where session and bar are known
    limit = band * last
    for quote in quotes:
        name, stamp, price, source, received, bid, ask, volume, stamped, first, raw = astuple(quote)
        if name != symbol or first or raw or not stamped or not SMALLEST <= price < MAX_PRICE:
            break
        if not -limit <= price - last <= limit or not newest <= stamp <= latest:
            break
        if not lower <= stamp < upper:
            session = session_on(stamp)
            if session is None or not session.opens <= stamp < session.closes:
                break
            if not accepts(stamp):
                break
            slot = stamp - stamp % BAR_SECONDS
            lower = max(slot, session.opens)
            upper = min(slot + BAR_SECONDS, session.closes)
        # A number of 6 decimals is what it already should be, and dividing tells in half the time.
        if round(price * _MICRO) / _MICRO != price:
            price = quantise(price)
        flags = _NO_FLAGS
        if bid is not None:
            if not SMALLEST <= bid < MAX_PRICE:
                break
            if round(bid * _MICRO) / _MICRO != bid:
                bid = quantise(bid)
        if ask is not None:
            if not SMALLEST <= ask < MAX_PRICE:
                break
            if round(ask * _MICRO) / _MICRO != ask:
                ask = quantise(ask)
            if bid is not None and ask < bid:
                flags = _CROSSED
        offset += 1
        if price == seen_price and stamp == seen_stamp and bid == seen_bid and ask == seen_ask:
            repeated += 1
        if price != last:
            last = price
            limit = band * price
        newest = seen_stamp = stamp
        seen_price, seen_bid, seen_ask = price, bid, ask
        ticks.append(
            Tick(
                symbol,
                epoch,
                offset,
                stamp,
                price,
                bid,
                ask,
                volume,
                source,
                received,
                True,
                flags,
            )
        )
    if ticks:
        validator.accepted(last, newest, (seen_stamp, seen_price, seen_bid, seen_ask))
    return Stretch(ticks, repeated)
