"""Query parameters: parsed strictly, refused with a sentence that says what would be right."""

import re
from datetime import UTC, date, datetime
from typing import Annotated, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from enhanced_websocket_service.market.bar import INTERVALS
from enhanced_websocket_service.market.calendar import BOGOTA

_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_INSTANT: Final = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?)([Zz]|[+ -]\d{2}:\d{2})?)?",
    re.ASCII,
)
_YEARS: Final = range(1970, 2101)
MAX_RANGE_DAYS: Final = 1100


def parse_instant(text: object) -> float | None:
    """ISO 8601 -> unix seconds UTC. Without offset: America/Bogota; a date alone: its midnight.

    :raises ValueError: saying what was expected.
    """
    if text is None or isinstance(text, float):
        return text
    wanted = (
        "must be ISO 8601, for example 2025-01-20T08:00:00-05:00 or 2025-01-20 "
        "(without offset: America/Bogota)"
    )
    match = _INSTANT.fullmatch(str(text))
    if match is None:
        raise ValueError(wanted)
    day, clock, offset = match.groups()
    if offset is not None:
        # A "+" that was not percent-encoded in the URL arrives as a space.
        offset = "+00:00" if offset in "Zz" else offset.replace(" ", "+")
    try:
        parsed = datetime.fromisoformat(f"{day}T{clock or '00:00'}{offset or ''}")
    except ValueError as error:
        raise ValueError(f"{wanted}: {error}") from error
    if parsed.year not in _YEARS:
        raise ValueError(f"must lie in the years {_YEARS[0]} to {_YEARS[-1]}")
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=BOGOTA)
    return parsed.astimezone(UTC).timestamp()


def parse_date(text: object) -> date | None:
    """``YYYY-MM-DD``, a local day.

    :raises ValueError: saying what was expected.
    """
    if text is None or isinstance(text, date):
        return text
    if _DATE.fullmatch(str(text)) is None:
        raise ValueError("must be a date, for example 2025-01-20")
    try:
        day = date.fromisoformat(str(text))
    except ValueError as error:
        raise ValueError(f"must be a date, for example 2025-01-20: {error}") from error
    if day.year not in _YEARS:
        raise ValueError(f"must lie in the years {_YEARS[0]} to {_YEARS[-1]}")
    return day


def _tick_cursor(text: str | None) -> str | None:
    if text is not None and re.fullmatch(r"[0-9]{1,18}:[0-9]{1,18}", text) is None:
        raise ValueError("must be a next_cursor of an earlier answer: EPOCH:OFFSET")
    return text


def _bar_cursor(text: object) -> object:
    if not isinstance(text, str):
        return text
    if re.fullmatch(r"[0-9]{1,10}", text) is None:
        raise ValueError("must be a next_cursor of an earlier answer")
    return int(text)


def _interval(text: object) -> object:
    if text not in INTERVALS:
        raise ValueError(f"must be one of {', '.join(INTERVALS)}")
    return text


_INSTANT_SCHEMA = WithJsonSchema(
    {"type": "string", "format": "date-time", "examples": ["2025-01-20T08:00:00-05:00"]}
)
InstantParam = Annotated[float | None, BeforeValidator(parse_instant), _INSTANT_SCHEMA]
DateParam = Annotated[
    date | None,
    BeforeValidator(parse_date),
    WithJsonSchema({"type": "string", "format": "date", "examples": ["2025-01-20"]}),
]
IntervalParam = Annotated[
    str, BeforeValidator(_interval), WithJsonSchema({"type": "string", "enum": list(INTERVALS)})
]


class NoParams(BaseModel):
    """Parameters nobody knows are refused: a misspelt one must not silently change the answer."""

    model_config = ConfigDict(extra="forbid")


class SymbolParams(NoParams):
    symbol: str | None = Field(
        None, max_length=40, description="USDCOP, usdcop or USD/COP; default: the first served"
    )


class WindowParams(SymbolParams):
    start: InstantParam = Field(None, description="At or after; without offset America/Bogota")
    end: InstantParam = Field(None, description="Before; without offset America/Bogota")
    limit: int = Field(1000, ge=1, le=10_000, description="Rows at most")
    as_of: InstantParam = Field(None, description="What was known at that instant")
    source: str | None = Field(
        None,
        min_length=1,
        max_length=50,
        pattern="^[A-Za-z0-9_.-]+$",
        description="One source only",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "WindowParams":
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError("start must be before end")
        return self


class BarParams(WindowParams):
    interval: IntervalParam = Field("5min", description="Length of a bar")
    cursor: Annotated[
        int | None,
        BeforeValidator(_bar_cursor),
        WithJsonSchema({"type": "string", "pattern": "^[0-9]{1,10}$"}),
    ] = Field(None, description="next_cursor of the page before")


class TickParams(WindowParams):
    cursor: Annotated[
        str | None,
        AfterValidator(_tick_cursor),
        WithJsonSchema({"type": "string", "pattern": "^[0-9]{1,18}:[0-9]{1,18}$"}),
    ] = Field(None, description="next_cursor of the page before")

    @property
    def after(self) -> tuple[int, int] | None:
        """The cursor's (epoch, offset)."""
        if self.cursor is None:
            return None
        epoch, offset = self.cursor.split(":")
        return int(epoch), int(offset)


class DayParams(SymbolParams):
    date: DateParam = Field(None, description="Local day; default: today")
    start: DateParam = Field(None, description="Local day: with end, a summary of a range instead")
    end: DateParam = Field(None, description="Local day, inclusive")

    @model_validator(mode="after")
    def _one_question(self) -> "DayParams":
        if (self.start is None) != (self.end is None):
            raise ValueError("start and end belong together")
        if self.start is not None and self.end is not None:
            if self.date is not None:
                raise ValueError("either date, or start and end")
            if self.start > self.end:
                raise ValueError("start must not be after end")
            if (self.end - self.start).days >= MAX_RANGE_DAYS:
                raise ValueError(f"start and end may span {MAX_RANGE_DAYS} days at most")
        return self
