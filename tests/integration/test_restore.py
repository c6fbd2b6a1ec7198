"""A restart in mid-session: journal, reader, pipeline and wiring together."""

from pathlib import Path

import pytest

from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.calendar import BAR_SECONDS, TradingCalendar
from enhanced_websocket_service.market.events import Event
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.service.build import restore
from enhanced_websocket_service.service.pipeline import Pipeline
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.telemetry import Metrics

OPEN = 1737378000  # 2025-01-20T08:00:00-05:00


@pytest.mark.parametrize("restart_after", range(60, 2400, 70))
def test_no_bar_that_was_published_is_published_again_from_half_its_ticks(
    tmp_path: Path, restart_after: int
) -> None:
    """Whatever the moment, also when the replayed stretch begins in the middle of a bar."""
    published: dict[int, list[BarUpdate]] = {}

    def publish(events: list[Event]) -> None:
        for event in events:
            if isinstance(event, BarUpdate):
                published.setdefault(event.bar.open_time, []).append(event)

    def process(epoch: int, start: int, end: int) -> None:
        journal = Journal.open(tmp_path / "journal")
        pipeline = Pipeline(
            {"USDCOP": TradingCalendar()},
            journal=journal,
            publish=publish,  # type: ignore[arg-type]
            metrics=Metrics(),
            epoch=epoch,
        )
        restore(pipeline, journal, float(start))
        for now in range(start, end, 7):
            quote = Quote("USDCOP", now, 4000.0 + now % 97, "simulator_websocket", now + 0.1)
            pipeline.on_quotes([quote], now + 0.1)
            pipeline.on_time(now + 0.1, grace=60.0)
        journal.close()

    process(1, OPEN, OPEN + restart_after)
    process(2, OPEN + restart_after, OPEN + 3600)
    for label, updates in published.items():
        assert len(updates) == 1, label
        prices = [
            4000.0 + now % 97 for now in _stamps(restart_after) if 0 <= now - label < BAR_SECONDS
        ]
        bar = updates[0].bar
        assert (bar.open, bar.high, bar.low, bar.close) == (
            prices[0],
            max(prices),
            min(prices),
            prices[-1],
        )
    assert len(published) == 11


def _stamps(restart_after: int) -> list[int]:
    return [
        *range(OPEN, OPEN + restart_after, 7),
        *range(OPEN + restart_after, OPEN + 3600, 7),
    ]
