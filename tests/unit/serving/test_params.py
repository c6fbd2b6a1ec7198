"""Query parameters: what is accepted and what is said about the rest."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.serving.params import parse_date, parse_instant

EIGHT = datetime(2025, 1, 20, 13, 0, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    "text",
    [
        "2025-01-20T08:00:00-05:00",
        "2025-01-20T13:00:00Z",
        "2025-01-20T13:00:00+00:00",
        "2025-01-20T13:00:00 00:00",  # the plus of a URL nobody encoded
        "2025-01-20T08:00",
        "2025-01-20 08:00:00.000",
    ],
)
def test_instants(text: str) -> None:
    assert parse_instant(text) == EIGHT


def test_a_date_is_its_local_midnight() -> None:
    assert parse_instant("2025-01-20") == EIGHT - 8 * 3600


@pytest.mark.parametrize(
    "text",
    ["", "now", "20250120", "2025-W03-1", "2025-02-30", "2025-01-20T25:00", "1969-12-31", "2101-01-01",
     "2025-01-20T08:00:00-0500", "٢٠٢٥-01-20", "0001-01-01T00:00:00+14:00", "1737378000"],
)  # fmt: skip
def test_what_is_not_an_instant_says_what_would_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be ISO 8601|must lie in the years"):
        parse_instant(text)


@given(st.floats(40_000_000, 4_000_000_000).map(lambda s: datetime.fromtimestamp(s, UTC)))
def test_every_instant_survives(moment: datetime) -> None:
    assert parse_instant(moment.isoformat()) == moment.timestamp()


def test_dates() -> None:
    day = parse_date("2025-01-20")
    assert day is not None
    assert day.isoformat() == "2025-01-20"
    for text in ("2025-1-20", "20250120", "2025-02-30", "1900-01-01", "today"):
        with pytest.raises(ValueError, match="must "):
            parse_date(text)
