"""The short cut for usual quotes makes what looking at each quote by itself makes."""

import struct
from collections.abc import Sequence
from datetime import time
from typing import Any
from unittest.mock import patch

from hypothesis import example, given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.noise import count_float32_noise, is_float32_noise
from enhanced_websocket_service.market.tick import Quote, Tick
from enhanced_websocket_service.market.usual import Stretch
from enhanced_websocket_service.service.line import Line
from enhanced_websocket_service.service.pipeline import Pipeline, Record
from enhanced_websocket_service.telemetry import Metrics

OPEN = 1_737_378_000  # 2025-01-20 08:00 in Bogota
CLOSE = OPEN + 17_700
SYMBOLS = ("USDCOP", "EURUSD", "XXXYYY")

usual = st.integers(4_090_000_000, 4_110_000_000).map(lambda millionths: millionths / 1e6)
odd = st.sampled_from([4100.0, 4100.25, 4179.95996, 4500.0, 0.0, -1.0, 1e-7, 1e6, 999_999.9999999])
numbers = usual | usual | st.floats(4090.0, 4110.0) | odd | st.floats()
stamps = st.sampled_from([OPEN + 290, OPEN + 291, OPEN + 291, OPEN + 299, OPEN + 300]) | (
    st.sampled_from([OPEN - 1, OPEN, CLOSE - 1, CLOSE, OPEN + 350, OPEN + 100_000, 10**11])
)


@st.composite
def quotes(draw: st.DrawFn) -> Quote:
    plain = draw(st.booleans())
    sometimes = st.just(False) if plain else st.booleans()
    stamped = not draw(sometimes)
    return Quote(
        draw(st.sampled_from(SYMBOLS[:1] * 8 + SYMBOLS[1:2] * 4 + SYMBOLS)),
        draw(st.just(OPEN + 295) if plain else stamps),
        draw(usual if plain else numbers),
        "simulator_websocket" if stamped else "simulator_rest",
        OPEN + 296.5,
        draw(st.none() | (usual if plain else numbers)),
        draw(st.none() | (usual if plain else numbers)),
        draw(st.integers(0, 3)),
        stamped,
        draw(sometimes),
        "" if plain else draw(st.sampled_from(["", "", "", "{"])),
    )


class Kept:
    """A journal and a bus that keep what they are given."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def append(self, records: Sequence[Record]) -> None:
        self.given.append(list(records))


def outcome(batches: Sequence[Sequence[Quote]]) -> tuple[object, ...]:
    kept, metrics = Kept(), Metrics()
    late: list[tuple[str, float, float]] = []
    line = Pipeline(
        # The other one closes in the middle of a bar.
        {SYMBOLS[0]: TradingCalendar(), SYMBOLS[1]: TradingCalendar(closes=time(8, 4, 58))},
        journal=kept,
        publish=kept.append,
        metrics=metrics,
        epoch=3,
        incomplete=lambda *span: late.append(span),
    )
    for number, batch in enumerate(batches):
        now = OPEN + 296.5 + 60 * number
        line.on_quotes(batch, now)
        line.on_time(now, 30.0)
    shown = line.hygiene(), line.counts, line.offsets
    remembered = [state for _, state in line._before()]
    return repr(kept.given), late, repr(shown), repr(remembered)


def plain(symbol: str, *seconds: int) -> list[Quote]:
    source = "simulator_websocket"
    return [Quote(symbol, OPEN + second, 4100.0, source, OPEN + 299.0) for second in seconds]


@settings(max_examples=250)
@example([plain("EURUSD", 290, 291, 299)], False)
@example([plain("USDCOP", 290, 291, 300, 299, 301), plain("USDCOP", 302, 299)], False)
@given(st.lists(st.lists(quotes(), max_size=12), max_size=4), st.booleans())
def test_the_short_cut_changes_nothing(batches: list[list[Quote]], again: bool) -> None:
    if again:
        batches = [[*batch, *batch[-1:]] for batch in batches]
    with patch.object(Line, "usual", lambda *_: Stretch([], 0)):
        expected = outcome(batches)
    assert outcome(batches) == expected


def test_usual_quotes_do_take_the_short_cut() -> None:
    made: list[int] = []
    real = Line.usual

    def spy(line: Line, *arguments: Any) -> Stretch:
        stretch = real(line, *arguments)
        made.append(len(stretch.ticks))
        return stretch

    batch = [
        Quote("USDCOP", OPEN + i, 4100 + i / 7, "simulator_websocket", OPEN + 10.0)
        for i in range(10)
    ]
    with patch.object(Line, "usual", spy):
        kept = Kept()
        line = Pipeline(
            {"USDCOP": TradingCalendar()},
            journal=kept,
            publish=lambda _: None,
            metrics=Metrics(),
            epoch=3,
        )
        line.on_quotes(batch, OPEN + 10.0)
    assert made == [0, 9], "the first quote has nothing to be measured by"
    assert [tick.offset for tick in kept.given[0] if isinstance(tick, Tick)] == list(range(1, 11))


@settings(max_examples=1000)
@given(usual | st.floats(1e-6, 999_999.0).map(lambda price: round(price, 6)) | odd)
def test_noise_is_counted_as_one_by_one(price: float) -> None:
    blurred = round(struct.unpack("<f", struct.pack("<f", round(price, 2)))[0], 6)
    for one in (price, blurred):
        assert count_float32_noise([one]) == is_float32_noise(one)
