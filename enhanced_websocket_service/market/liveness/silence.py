"""How long a symbol has brought no price, and no new one; what of that is unusual. Pure.

Two clocks. The first runs since the last price of any kind: it finds a mute socket. The second runs since
the last *proof*: a new price with a young stamp. It finds a socket that repeats itself, or tells of long
ago.
"""

import math
from collections.abc import Callable
from typing import Final

from enhanced_websocket_service.market.calendar import Session

from .baseline import PRIOR, InactivityBaseline, Usual
from .inter_arrival import LATEST_S, InterArrivalTimes, MinuteStatistics

REPEATS_MARGIN: Final = 2.0
"""How much longer than the longest of today's stretches without a new price is unusual."""


class SilenceClock:
    """The two silences of one symbol.

    :param session_at: the session that is open at an instant, or ``None``.
    """

    def __init__(
        self,
        symbol: str,
        baseline: InactivityBaseline,
        session_at: Callable[[float], Session | None],
    ) -> None:
        self.heard_at = 0.0  # the last price, or when the silence began otherwise
        self.proved_at = 0.0  # the same of the last proof
        self.price: float | None = None  # the last one; kept over reconnects
        self.clean_since = math.inf  # from here on everything was heard: fit to be learned
        self.pace = InterArrivalTimes()
        self._symbol = symbol
        self._baseline = baseline
        self._session_at = session_at
        self._new_pace = InterArrivalTimes()
        self._minute = MinuteStatistics()

    def begin(self, at: float) -> None:
        """Both silences begin at ``at``, by something else than a price."""
        self.heard_at = self.proved_at = at

    def restart(self, at: float) -> None:
        """From ``at`` on everything is heard; the next price ends no silence that was heard whole."""
        self.pace.restart()
        self._new_pace.restart()
        self.clean_since = at

    def deaf(self) -> None:
        """What is not heard from now on says nothing about the market."""
        self.clean_since = math.inf

    def forget(self) -> None:
        """The session is over: tomorrow's pace is another one, and its first price a new one."""
        self.pace.forget()
        self._new_pace.forget()
        self.price = None
        self.deaf()

    def heard(self, at: float) -> None:
        """A price came."""
        self.pace.price(at)
        session = self._session_at(at)
        if session is not None:
            self.learn(session, at)
            self._minute.tick(at - max(self.heard_at, session.opens))
        self.heard_at = at

    def proved(self, at: float) -> None:
        """It was a new price, with a young stamp."""
        self._new_pace.price(at)
        self.proved_at = at

    def silent_since(self, now: float) -> float:
        return self._since(self.heard_at, now)

    def unproved_since(self, now: float) -> float:
        return self._since(self.proved_at, now)

    def limit(self, now: float) -> float:
        """The silence, in seconds, that is unusual at ``now``."""
        return self.pace.suspect_after(self.usual(now))

    def repeats_limit(self, now: float) -> float:
        """How long prices may come at ``now`` without a new one among them, in seconds."""
        longest = REPEATS_MARGIN * self._new_pace.longest_gap
        return max(self.limit(now), min(longest, LATEST_S))

    def usual(self, now: float) -> Usual:
        session = self._session_at(now)
        if session is None:
            return PRIOR
        minute = int((now - session.opens) // 60)
        return self._baseline.usual(self._symbol, session.day.isoformat(), minute)

    def learn(self, session: Session, now: float) -> None:
        """Teach the baseline the minutes that have ended, where all of them was heard."""
        minute = int((now - session.opens) // 60)
        silence = now - max(self.heard_at, session.opens)
        for ended, ticks, longest in self._minute.advance(session.day, minute, silence):
            if session.opens + 60 * ended >= self.clean_since:
                self._baseline.learn(self._symbol, session.day.isoformat(), ended, ticks, longest)

    def _since(self, at: float, now: float) -> float:
        session = self._session_at(now)
        return at if session is None else max(at, float(session.opens))
