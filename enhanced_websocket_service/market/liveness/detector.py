"""Whether a silent symbol is quiet or its socket dead: a small state machine for each symbol.

It is told what happens (prices, REST samples, the state of the connection) with the instant, and says
the verdict, the evidence in one sentence, and when the next REST price should be asked. Pure: it asks
nobody and waits for nothing. The rule, its reasons and limits: ``docs/explanation/liveness.md``.

- ``live``: a price within the last 15 s. ``quiet``: none, but that is usual, or REST stands still too.
- ``suspect``: silent for unusually long; a REST price is asked. ``dead``: the vendor moved in two
  samples and the socket did not; or no REST price can be had and the silence is very long; or there
  is no connection. ``closed``: no session, or nothing runs.
- No REST price that lags up to 20 s, however it is rounded, can make a working socket dead.
"""

import math
from collections import deque
from collections.abc import Callable
from datetime import date
from typing import Final, Literal, get_args

from enhanced_websocket_service.market.calendar import Session

from .baseline import PRIOR, InactivityBaseline, Usual
from .inter_arrival import InterArrivalTimes, MinuteStatistics
from .rest_agreement import WINDOW_S, RecentPrices, same_price
from .status import Change, Sample, SampleResult, SymbolVerdict, Verdict, is_news

Link = Literal["stopped", "connecting", "waiting", "up", "down"]

LIVE_S: Final = 15.0
LAG_S: Final = 21.0
"""A sample asked this long after the socket began to tell cannot be of before it: the lag and 1 s."""
STEP_S, LONGEST_STEP_S = 4.0, 60.0
PROMPT_S: Final = 3.0
"""After a sample that no price of the socket explains, the next one comes soon."""
DECISIVE_S: Final = 30.0
"""Until this long into a silence samples follow each other evenly, later at growing distances."""
SETTLE_S: Final = 0.3
"""What is on its way when the second sample is read must still be able to arrive."""
ALONE_S: Final = 90.0
"""Without REST, silence itself decides, but not before this."""
HISTORY: Final = 50
IDLE_S: Final = 5.0
"""How often to look when nothing is due: the minute changes, and with it what is usual."""

# Real seconds: what networks and schedulers need, however fast the clock runs.
REAL_SUSPECT_S, REAL_STEP_S, REAL_SETTLE_S, REAL_ALONE_S = 0.1, 0.06, 0.03, 1.0


def always_open(at: float) -> Session | None:
    """A market without hours."""
    return Session(date(1970, 1, 1), 0, 1 << 40)


class LivenessDetector:
    """Judges one symbol; lives as long as the process.

    Time is passed in and never goes back by more than the messages of one batch.

    :param session_at: the session that is open at an instant, or ``None``.
    """

    def __init__(
        self,
        symbol: str,
        profile: InactivityBaseline,
        session_at: Callable[[float], Session | None] = always_open,
    ) -> None:
        self.symbol = symbol
        self.verdict: Verdict = "closed"
        self.evidence = "nothing runs"
        self.since = 0.0
        self.history: deque[Change] = deque(maxlen=HISTORY)
        self.samples: dict[str, int] = dict.fromkeys(get_args(SampleResult), 0)
        self.real_second = 0.0
        """Seconds of the clock in one real second: what needs real time is stretched by it."""
        self.on_change: Callable[[LivenessDetector, Verdict], None] | None = None
        """Told of every change of the verdict, with the one before; must not block."""
        self.spacing_s = 0.0
        """How soon after a sample the next one can be had at all."""
        self.last_price_at: float | None = None
        self.rest: Sample | None = None  # the last one
        self._profile = profile
        self._session_at = session_at
        self._link: Link = "stopped"
        self._said = ""  # why the link is not up
        self._failed = False  # and no price has proved the stream since
        self._recent = RecentPrices()
        self._connected_at = 0.0
        self._told_since = 0.0  # from here on the socket tells every price
        self._brought = False  # at least one price on this connection
        self._heard = 0.0  # the last price, or when the silence began otherwise
        self._dead: str | None = None  # the evidence, once it is
        self._condemned_at: float | None = None
        # Of the silence under way.
        self._tried: deque[Sample] = deque(maxlen=16)
        self._explained = False  # by the last sample
        self._proof = ""
        self._next_sample = 0.0
        self._answered_at = 0.0
        self._first_failure: float | None = None  # since the last answer
        self._why_alone = ""
        self._pace = InterArrivalTimes()
        self._minute = MinuteStatistics()
        self._clean_since = math.inf  # from here on everything was heard: fit to be learned

    @property
    def listening(self) -> bool:
        """Whether there is a connection that could bring a price, and nothing is proved against it."""
        return self._link == "up" and self._dead is None

    @property
    def proved(self) -> bool:
        """Whether nothing has failed since the last price (or the start)."""
        return self.listening and not self._failed

    # --- what happens -------------------------------------------------------------------------

    def connected(self, at: float) -> None:
        """A connection is there and the symbol subscribed, or about to be."""
        self._link, self._said = "up", ""
        self._dead = None
        self._brought = False
        self._recent.clear()
        self._pace.restart()
        self._told_since = self._connected_at = at
        self._begin_silence(at)
        self._clean_since = at
        self.look(at)

    def lost(self, why: str, at: float) -> None:
        """No connection, or the symbol is not streamed to us."""
        self._link, self._said = "down", why
        self._failed = True
        self._clean_since = math.inf
        self.look(at)

    def connecting(self, why: str, at: float, *, waiting: bool = False) -> None:
        """A connection is being made or, ``waiting``, must not be made yet."""
        if waiting or not self._failed:
            self._link, self._said = ("waiting" if waiting else "connecting"), why
        self.look(at)

    def stopped(self, at: float) -> None:
        """The session's feed is over."""
        self._link, self._said = "stopped", "nothing runs"
        self._failed = False
        self._pace.forget()
        self._clean_since = math.inf
        self.look(at)

    def price(self, price: float, at: float, *, resent: bool = False) -> None:
        """The socket brought a usable price.

        :param resent: it may be the last one again, sent upon our subscription: it tells the price,
            but proves no life.
        """
        self._recent.add(price, at)
        if not self._brought:
            self._brought = True
            self._told_since = at
        if resent:
            return
        if self._dead is not None:
            self._dead = None
            self._clean_since = at
            self._pace.restart()
        self._pace.price(at)
        session = self._session_at(at)
        if session is not None:
            self._learn(session, at)
            self._minute.tick(at - max(self._heard, session.opens))
        self.last_price_at = at
        self._failed = False
        if self._tried or self._first_failure is not None:
            self._begin_silence(at)
        self._heard = at
        if self.verdict != "live":
            self.look(at)

    def excuse(self, at: float) -> None:
        """We did not read: the silence so far is ours."""
        if self._dead is None:
            self._told_since = max(self._told_since, at)
            self._begin_silence(at)
        self._pace.restart()
        self._clean_since = at

    def sample(self, price: float, asked_at: float, now: float) -> SampleResult:
        """REST answered ``price`` to a question asked at ``asked_at``."""
        counts = asked_at >= self._told_since + LAG_S
        one = self.rest = Sample(price, asked_at, self._recent.agree(price, asked_at), counts)
        if self._link != "up" or asked_at < self._heard:
            return self._counted("late")  # it is of before the silence
        unexplained = counts and not one.agrees
        moved_from = next(
            (
                earlier
                for earlier in self._tried
                if earlier.counts
                and (not earlier.agrees or earlier.asked_at >= self._heard + WINDOW_S)
                and not same_price(earlier.price, price)
            ),
            None,
        )
        stands_still = any(same_price(earlier.price, price) for earlier in self._tried)
        self._tried.append(one)
        self._first_failure = None
        self._answered_at = asked_at
        self._explained = one.agrees or (not self._brought and not self._failed and stands_still)
        if unexplained and moved_from is not None and self._condemned_at is None:
            self._condemned_at = now
            self._proof = (
                f"the vendor moved from {moved_from.price:g} to {price:g} in two REST prices asked "
                f"{asked_at - moved_from.asked_at:.0f} s apart, the socket did not"
            )
        self._plan(asked_at, prompt=unexplained)
        self.look(now)
        if one.agrees:
            return self._counted("agrees")
        return self._counted("differs" if counts else "unclear")

    def sample_failed(self, why: str, now: float, result: SampleResult | None = "failed") -> None:
        """No REST price could be had.

        :param result: what to count it as: an error, no credit for it, or nothing.
        """
        if result is not None:
            self._counted(result)
        if self._first_failure is None:
            self._first_failure = now
        self._why_alone = why
        self._next_sample = now + max(self._step(now), self._real(REAL_STEP_S), self.spacing_s)
        self.look(now)

    # --- what follows -------------------------------------------------------------------------

    def look(self, now: float) -> Verdict:
        """The verdict at ``now``; also kept in ``verdict``, ``evidence`` and ``history``."""
        verdict, evidence = self._judge(now)
        if verdict == "dead" and self._link == "up" and self._dead is None:
            self._dead = evidence
            self._failed = True
            self._clean_since = math.inf
        before, self.verdict, self.evidence = self.verdict, verdict, evidence
        if verdict != before:
            self.since = now
            if is_news(before, verdict):
                self.history.append(Change(verdict, evidence, now))
            if self.on_change is not None:
                self.on_change(self, before)
        session = self._session_at(now)
        if session is not None and self._link == "up":
            self._learn(session, now)
        return verdict

    def wants_sample(self, now: float) -> bool:
        """Whether a REST price should be asked now."""
        return (
            self._link == "up"
            and self._dead is None
            and self._condemned_at is None
            and self._session_at(now) is not None
            and now >= self._silent_since(now) + self.suspect_after(now)
            and now >= self._next_sample
        )

    def next_look(self, now: float) -> float:
        """When the verdict may change by itself, or a sample is due; never before ``now``."""
        if self._link != "up" or self._dead is not None or self._session_at(now) is None:
            return now + IDLE_S
        if self._condemned_at is not None:
            return max(now, self._condemned_at + self._settle())
        since = self._silent_since(now)
        due = max(since + self.suspect_after(now), self._next_sample)
        if now < since + LIVE_S:
            due = min(due, since + LIVE_S)
        return min(max(now, due), now + IDLE_S)

    def suspect_after(self, now: float) -> float:
        """The silence, in seconds, that is unusual at ``now``."""
        limit = self._pace.suspect_after(self._usual(now))
        return max(limit, self._real(REAL_SUSPECT_S))

    def shown(self, now: float) -> SymbolVerdict:
        """Everything worth telling."""
        self.look(now)
        usual = self._usual(now)
        due = self._link == "up" and self._session_at(now) is not None
        return SymbolVerdict(
            symbol=self.symbol,
            verdict=self.verdict,
            evidence=self.evidence,
            since=self.since,
            silence_s=max(0.0, now - self._silent_since(now)) if due else None,
            suspect_after_s=self.suspect_after(now),
            usual_silence_s=usual.silence_s,
            usual_gap_s=usual.gap_s,
            learned_days=usual.days,
            last_price_at=self.last_price_at,
            rest_price=None if self.rest is None else self.rest.price,
            rest_asked_at=None if self.rest is None else self.rest.asked_at,
            samples=dict(self.samples),
            history=tuple(self.history),
        )

    # --- the rule -----------------------------------------------------------------------------

    def _judge(self, now: float) -> tuple[Verdict, str]:
        if self._link == "stopped":
            return "closed", self._said
        if self._session_at(now) is None:
            return "closed", "the market is closed"
        if self._link == "down":
            return "dead", self._said
        if self._link != "up":
            return "suspect", self._said
        silence = max(0.0, now - self._silent_since(now))
        if self._dead is not None:
            return "dead", self._dead
        if self._condemned_at is not None and now >= self._condemned_at + self._settle():
            return "dead", f"{self._proof} for {silence:.0f} s"
        limit = self.suspect_after(now)
        what = f"no price for {silence:.0f} s"
        if (alone := self._decides_alone(now, limit)) is not None:
            return "dead", f"{what} and no REST price to compare with ({alone})"
        if now >= self._silent_since(now) + limit or self._condemned_at is not None:
            return self._doubt(what, limit)
        if self._failed:
            return "suspect", "connected again, no new price yet"
        if self.last_price_at is None or self.last_price_at < self._connected_at:
            return "quiet", "connected, no price yet"
        if silence > LIVE_S:
            return "quiet", f"{what}, usual at this time of the session"
        return "live", f"{silence:.0f} s since the last price"

    def _doubt(self, what: str, limit: float) -> tuple[Verdict, str]:
        unusual = f"{what}, unusual after {limit:.0f} s"
        if not self._tried:
            waiting = f": {self._why_alone}" if self._first_failure is not None else ""
            return "suspect", f"{unusual}; asking REST for a price to compare with{waiting}"
        last = self._tried[-1]
        asked = f"the REST price {last.price:g}"
        if self._explained:
            if last.agrees:
                return "quiet", f"{what}; {asked} is one the socket brought"
            return "quiet", f"{what}; {asked} stands still too"
        if last.counts:
            return "suspect", f"{unusual}; {asked} is none the socket brought"
        return "suspect", f"{unusual}; {asked} may still be of before the connection"

    def _decides_alone(self, now: float, limit: float) -> str | None:
        """Why silence alone makes the symbol dead now; ``None`` while it does not."""
        if self._first_failure is None:
            return None
        gap = max(self._usual(now).gap_s, self._pace.recent_gap or 0.0)
        wait = max(ALONE_S, 4 * limit, 8 * gap, self._real(REAL_ALONE_S))
        since = max(self._silent_since(now), self._answered_at)
        if now - since < wait or now - self._first_failure < wait / 2:
            return None
        return self._why_alone

    # --- small change -------------------------------------------------------------------------

    def _silent_since(self, now: float) -> float:
        session = self._session_at(now)
        return self._heard if session is None else max(self._heard, float(session.opens))

    def _usual(self, now: float) -> Usual:
        session = self._session_at(now)
        if session is None:
            return PRIOR
        minute = int((now - session.opens) // 60)
        return self._profile.usual(self.symbol, session.day.isoformat(), minute)

    def _begin_silence(self, at: float) -> None:
        self._heard = at
        self._condemned_at = None
        self._tried.clear()
        self._explained = False
        self._proof = ""
        self._next_sample = 0.0
        self._answered_at = 0.0
        self._first_failure = None
        self._why_alone = ""

    def _plan(self, asked_at: float, *, prompt: bool) -> None:
        """When to ask again after a sample; ``prompt``: it is one nothing explains."""
        since = self._silent_since(asked_at)
        step = self._step(asked_at)
        soon = max(PROMPT_S, 0.75 * step)
        # The first sample that sees beyond the lag says most: do not just miss it.
        telling = max(since, self._told_since) + LAG_S + 0.1
        if prompt or telling <= asked_at < since + DECISIVE_S:
            wait = soon
        elif asked_at >= since + DECISIVE_S:
            wait = max(step, 0.6 * (asked_at - since))
        elif asked_at < telling < asked_at + 2 * max(step, self.spacing_s):
            wait = telling - asked_at
        else:
            wait = step
        self._next_sample = asked_at + max(wait, self.spacing_s, self._real(REAL_STEP_S))

    def _step(self, now: float) -> float:
        return min(max(STEP_S, 0.45 * self.suspect_after(now)), LONGEST_STEP_S)

    def _settle(self) -> float:
        return max(SETTLE_S, self._real(REAL_SETTLE_S))

    def _real(self, seconds: float) -> float:
        return seconds * self.real_second

    def _counted(self, result: SampleResult) -> SampleResult:
        self.samples[result] += 1
        return result

    def _learn(self, session: Session, now: float) -> None:
        minute = int((now - session.opens) // 60)
        silence = now - max(self._heard, session.opens)
        for ended, ticks, longest in self._minute.advance(session.day, minute, silence):
            if session.opens + 60 * ended >= self._clean_since:
                self._profile.learn(self.symbol, session.day.isoformat(), ended, ticks, longest)
