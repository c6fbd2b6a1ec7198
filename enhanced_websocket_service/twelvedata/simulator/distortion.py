"""How REST faults distort what the market really was: old prices, noise, late and wrong bars. Pure."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from .fault_values import Lacking, Range, Revising, draw
from .faults import FaultBoard
from .model import Candle, SimTick, SymbolSource


def float32(price: float) -> float:
    """``price`` as a 32-bit float shows it with five decimals: 3271.76 -> 3271.76001."""
    noisy: float = struct.unpack("f", struct.pack("f", price))[0]
    return round(noisy, 5)


class NoisySource:
    """A ``SymbolSource`` seen through 32-bit floats."""

    def __init__(self, source: SymbolSource) -> None:
        self._source = source

    def ticks(self, start: int, end: int) -> list[SimTick]:
        return [noisy(tick) for tick in self._source.ticks(start, end)]

    def next_stamp(self, at: int) -> int | None:
        return self._source.next_stamp(at)

    def last_tick(self, until: int) -> SimTick | None:
        tick = self._source.last_tick(until)
        return None if tick is None else noisy(tick)

    def candles(self, start: int, end: int) -> list[Candle]:
        return [
            Candle(one.open_time, *(float32(price) for price in one[1:]))
            for one in self._source.candles(start, end)
        ]

    def first_open(self) -> int | None:
        return self._source.first_open()


class ScaledSource:
    """A ``SymbolSource`` whose prices are all times ``factor``."""

    def __init__(self, source: SymbolSource, factor: float) -> None:
        self._source = source
        self._factor = factor

    def ticks(self, start: int, end: int) -> list[SimTick]:
        return [scaled(tick, self._factor) for tick in self._source.ticks(start, end)]

    def next_stamp(self, at: int) -> int | None:
        return self._source.next_stamp(at)

    def last_tick(self, until: int) -> SimTick | None:
        tick = self._source.last_tick(until)
        return None if tick is None else scaled(tick, self._factor)

    def candles(self, start: int, end: int) -> list[Candle]:
        return [
            Candle(one.open_time, *(round(price * self._factor, 6) for price in one[1:]))
            for one in self._source.candles(start, end)
        ]

    def first_open(self) -> int | None:
        return self._source.first_open()


def scaled(tick: SimTick, factor: float) -> SimTick:
    return SimTick(
        tick.timestamp,
        round(tick.price * factor, 6),
        None if tick.bid is None else round(tick.bid * factor, 6),
        None if tick.ask is None else round(tick.ask * factor, 6),
    )


def scaled_source(source: SymbolSource, faults: FaultBoard, place: str) -> SymbolSource:
    """``source`` as it is seen at ``place``: ``price`` or ``bars``."""
    scale = faults.scale
    return source if scale is None or place not in scale.at else ScaledSource(source, scale.factor)


def streamed_scale(faults: FaultBoard) -> float | None:
    """The factor of the prices on the socket; ``None``: they are what they are."""
    scale = faults.scale
    return None if scale is None or "stream" not in scale.at else scale.factor


def noisy(tick: SimTick) -> SimTick:
    return SimTick(
        tick.timestamp,
        float32(tick.price),
        None if tick.bid is None else float32(tick.bid),
        None if tick.ask is None else float32(tick.ask),
    )


def as_quoted(
    params: Mapping[str, str], source: SymbolSource, now: float, faults: FaultBoard
) -> tuple[Mapping[str, str], SymbolSource, float]:
    """Parameters, prices and instant of a call for the current price, under ``faults``."""
    source = scaled_source(source, faults, "price")
    if faults.rest_decimals is not None:
        params = {**params, "dp": str(faults.rest_decimals)}
    if faults.rest_float32:
        source = NoisySource(source)
    if faults.rest_lag_s is not None:
        now -= faults.rest_lag_s.drawn(faults.seed, "rest_lag_s", int(now))
    return params, source, now


@dataclass(frozen=True, slots=True)
class CandleFaults:
    """What happens to finished rows of ``/time_series``."""

    late: Range | None
    revised: Revising | None
    missing: Lacking | None
    seed: int
    symbol: str

    def shown(self, row: Candle, end: int, now: float) -> Candle | None:
        """``row``, which ends at ``end``, as it is answered at ``now``; ``None``: it is absent."""
        place = (self.seed, self.symbol, row.open_time, end)
        if self.missing is not None and (
            row.open_time in self.missing.opens or draw(*place, "missing") < self.missing.share
        ):
            return None
        if now < end:
            return row
        if self.late is not None and now < end + self.late.drawn(*place, "late"):
            return None
        how = self.revised
        if how is None or now >= end + how.until_s or draw(*place, "revised") >= how.share:
            return row
        # Never nothing: a first answer that equals the final one would be no revision.
        shift = how.bp / 10_000 * (0.5 + draw(*place, "by") / 2)
        sign = 1 if draw(*place, "sign") < 0.5 else -1
        close = round(row.close * (1 + sign * shift), 5)
        return Candle(row.open_time, row.open, max(row.high, close), min(row.low, close), close)


def candle_faults(faults: FaultBoard, symbol: str) -> CandleFaults | None:
    """What ``faults`` do to the rows of ``symbol``; ``None``: nothing."""
    late, revised, missing = faults.late_candles_s, faults.revised_candles, faults.missing_bars
    if late is None and revised is None and missing is None:
        return None
    return CandleFaults(late, revised, missing, faults.seed, symbol)
