"""Trading days, sessions and the bar labels a session must have.

A trading day is a weekday that is neither a Colombian holiday (``holidays`` >= 0.99, with the observed
days: the Emiliani law moves most of them to Mondays) nor the last weekday of the year, when the banks
close. The rule was checked against six years of recorded bars (``docs/decisions/0003-calendar.md``).
Never infer a holiday from the presence of bars: the vendor also quotes on closed days.

Other markets have calendars with names (``docs/decisions/0036-calendars-and-symbols.md``): ``fx``, Sunday
17:00 to Friday 17:00 in New York, and ``24x7``. Whatever a market's hours, a session is at most a day: the
silences of its minutes, its credits and its proof of continuity are those of a day. Sessions that
follow each other without a pause are collected without one.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

import holidays

BOGOTA = ZoneInfo("America/Bogota")
NEW_YORK = ZoneInfo("America/New_York")
UTC_ZONE = ZoneInfo("UTC")
BAR_SECONDS = 300
DAY_S: Final = 86_400
DEFAULT_CALENDAR: Final = "default"
MIDNIGHT: Final = time(0)
"""As a close: 24:00, the end of the day."""
WEEKEND: Final = "Weekend"


@dataclass(frozen=True, slots=True)
class Session:
    """One trading session: open at ``opens <= t < closes``, unix seconds UTC."""

    day: date
    opens: int
    closes: int


@lru_cache(maxsize=64)
def _closures(year: int) -> dict[date, str]:
    names = {
        day: str(name)
        for day, name in holidays.country_holidays("CO", years=year, language="en_US").items()
    }
    last = date(year, 12, 31)
    while last.weekday() >= 5 or last in names:
        last -= timedelta(days=1)
    names[last] = "Last weekday of year (bank closing)"
    return names


def colombian(day: date) -> str | None:
    """Why the Colombian market is closed on ``day``; ``None`` on a trading day."""
    if day.weekday() >= 5:
        return WEEKEND
    return _closures(day.year).get(day)


def weekdays(day: date) -> str | None:
    """Why a market that knows no holidays is closed on ``day``."""
    return WEEKEND if day.weekday() >= 5 else None


def every_day(_day: date) -> str | None:
    """A market that never closes."""
    return None


class TradingCalendar:
    """When one market trades. All instants are unix seconds UTC; dates are days of the market, in ``zone``.

    A close at ``MIDNIGHT`` is the end of the day, 24:00. With ``overnight`` a session opens on the evening
    before the day that it is named after, as the days of foreign exchange do: such a day lasts from
    ``opens`` to ``opens``.

    :param rule: why the market is closed all day, ``None`` where it is not. ``extra_closures`` and
        ``extra_openings`` win over it, openings last.
    """

    def __init__(
        self,
        opens: time = time(8, 0),
        closes: time = time(12, 55),
        zone: ZoneInfo = BOGOTA,
        extra_closures: Iterable[date] = (),
        extra_openings: Iterable[date] = (),
        *,
        rule: Callable[[date], str | None] = colombian,
        overnight: bool = False,
        name: str = DEFAULT_CALENDAR,
    ) -> None:
        self.opens, self.closes, self.zone = opens, closes, zone
        self.name, self.overnight = name, overnight
        # A bar labelled with a close at which the next session may open is that session's.
        self.closing_label = closes != MIDNIGHT and not overnight
        self._rule = rule
        self._extra_closures = frozenset(extra_closures)
        self._extra_openings = frozenset(extra_openings)
        # The day asked about last: its bounds and its session. Every tick asks.
        self._day_bounds: tuple[int, int] = (0, 0)
        self._day_session: Session | None = None

    @property
    def opens_s(self) -> int:
        """The open in seconds after midnight of the session's day; negative on the evening before."""
        return _seconds(self.opens) - (DAY_S if self.overnight else 0)

    @property
    def closes_s(self) -> int:
        """The close in seconds after midnight of the session's day."""
        return DAY_S if self.closes == MIDNIGHT else _seconds(self.closes)

    @property
    def round_the_clock(self) -> bool:
        """Whether a session lasts a whole day, so that the next one may follow without a pause."""
        return self.closes_s - self.opens_s == DAY_S

    def closure(self, day: date) -> str | None:
        """Why the market is closed on ``day``; ``None`` on a trading day."""
        if day in self._extra_openings:
            return None
        if day in self._extra_closures:
            return "Closed by setting"
        return self._rule(day)

    def holiday(self, day: date) -> str | None:
        """The name of the closure on ``day`` when it is more than a weekend."""
        reason = self.closure(day)
        if reason == WEEKEND and self._rule is colombian:
            return _closures(day.year).get(day)
        return None if reason == WEEKEND else reason

    def is_trading_day(self, day: date) -> bool:
        return self.closure(day) is None

    def local_date(self, instant: float) -> date:
        """The day of the market that ``instant`` lies in."""
        local = datetime.fromtimestamp(instant, self.zone)
        later = self.overnight and local.time() >= self.opens
        return local.date() + timedelta(days=later)

    def day_start(self, day: date) -> int:
        """When ``day`` of the market begins."""
        if self.overnight:
            return self._instant(day - timedelta(days=1), self.opens)
        return self._instant(day, MIDNIGHT)

    def session(self, day: date) -> Session | None:
        """The session of ``day``, ``None`` when the market is closed all day."""
        if not self.is_trading_day(day):
            return None
        opens = self.day_start(day) if self.overnight else self._instant(day, self.opens)
        if self.closes == MIDNIGHT:
            return Session(day, opens, self._instant(day + timedelta(days=1), MIDNIGHT))
        return Session(day, opens, self._instant(day, self.closes))

    def session_on(self, instant: float) -> Session | None:
        """The session of the day that ``instant`` lies in, open or not."""
        lower, upper = self._day_bounds
        if not lower <= instant < upper:
            day = self.local_date(instant)
            self._day_bounds = (self.day_start(day), self.day_start(day + timedelta(days=1)))
            self._day_session = self.session(day)
        return self._day_session

    def is_open(self, instant: float) -> bool:
        session = self.session_on(instant)
        return session is not None and session.opens <= instant < session.closes

    def open_session(self, instant: float) -> Session | None:
        """The session that is open at ``instant``."""
        session = self.session_on(instant)
        return session if session is not None and self.is_open(instant) else None

    def current_or_next(self, instant: float) -> Session:
        """The session that is open at ``instant`` or, failing that, the next one to open."""
        day = self.local_date(instant)
        while (session := self.session(day)) is None or session.closes <= instant:
            day += timedelta(days=1)
        return session

    def next_after(self, instant: float) -> Session:
        """The first session that opens after ``instant``."""
        day = self.local_date(instant)
        while (session := self.session(day)) is None or session.opens <= instant:
            day += timedelta(days=1)
        return session

    def trading_days(self, start: date, end: date) -> list[date]:
        """The trading days of ``start .. end``, both inclusive."""
        days = (start + timedelta(days=i) for i in range((end - start).days + 1))
        return [day for day in days if self.is_trading_day(day)]

    def expected_labels(self, day: date) -> list[int]:
        """The open times of the 5-minute bars that L0 history has for ``day``: 60 by default.

        The vendor's history runs one bar past a close that ends live collection in mid-day: the bar
        labelled with the close itself (12:55) belongs to it.
        """
        session = self.session(day)
        if session is None:
            return []
        return list(range(session.opens, session.closes + self.closing_label, BAR_SECONDS))

    def live_labels(self, day: date) -> list[int]:
        """The labels that live collection can complete: 59 by default, the last one 12:50."""
        session = self.session(day)
        if session is None:
            return []
        return list(range(session.opens, session.closes - BAR_SECONDS + 1, BAR_SECONDS))

    def _instant(self, day: date, at: time) -> int:
        return int(datetime.combine(day, at, self.zone).timestamp())


def _seconds(at: time) -> int:
    return at.hour * 3600 + at.minute * 60


_NAMED: Final[dict[str, Callable[[], TradingCalendar]]] = {
    "fx": lambda: TradingCalendar(
        time(17), time(17), NEW_YORK, rule=weekdays, overnight=True, name="fx"
    ),
    "24x7": lambda: TradingCalendar(MIDNIGHT, MIDNIGHT, UTC_ZONE, rule=every_day, name="24x7"),
}
CALENDARS: Final = (DEFAULT_CALENDAR, *_NAMED)
"""The names that may follow a symbol: ``EURUSD@fx``."""


def named_calendar(name: str) -> TradingCalendar:
    """The calendar of that name; the default one needs the settings and is none of these.

    :raises KeyError: there is none.
    """
    return _NAMED[name]()


_DEFAULT = TradingCalendar()


def is_trading_day(day: date) -> bool:
    """Whether the Colombian session trades on ``day``, by the rule alone (no extra settings)."""
    return _DEFAULT.is_trading_day(day)


def iso_local(instant: float, zone: ZoneInfo = BOGOTA) -> str:
    """``instant`` as ISO 8601 with offset in ``zone``, the form of every time that leaves the service.

    Microseconds are shown only when there are any.
    """
    second = math.floor(instant)
    micros = 0 if second == instant else round((instant - second) * 1_000_000)
    if micros == 1_000_000:
        second, micros = second + 1, 0
    stamp, offset, whole = _iso_second(second, zone)
    return f"{stamp}.{micros:06d}{offset}" if micros else whole


@lru_cache(maxsize=4096)
def _iso_second(second: int, zone: ZoneInfo) -> tuple[str, str, str]:
    """Date and time, the offset, and both: many ticks share a second."""
    text = datetime.fromtimestamp(second, zone).isoformat()
    return text[:19], text[19:], text


def utc(instant: float) -> datetime:
    """``instant`` as an aware UTC datetime, the form in which the database gets it."""
    return datetime.fromtimestamp(instant, UTC)
