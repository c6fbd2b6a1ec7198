"""Whether a stream that brings nothing new is dead or its market quiet: a small state machine per symbol.

It is told what happens (prices, REST samples, the state of the connection) with the instant, and says
the verdict, the evidence in one sentence, and when the next REST price should be asked. Pure: it asks
nobody and waits for nothing. The rule, its reasons and limits: ``docs/explanation/liveness.md``.

- What proves a stream is a *new* price with a *young* stamp. Frames alone prove nothing, nor does a price
  that is held because only another source can tell whether it is true.
- ``live``: a proof within the last 15 s. ``quiet``: none, but that is usual, or REST stands still too.
- ``suspect``: no proof for unusually long; a REST price is asked. ``dead``: the vendor moved in two
  samples and the socket did not; or no REST price can be had and the silence is very long; or there
  is no connection. ``closed``: no session, or nothing runs.
- No REST price that lags up to 20 s, however it is rounded, can make a working socket dead.

Instants are unix seconds of a clock that is never set (``LivenessMonitor``): a wrong clock must not hold a
verdict.
"""

from collections import deque
from collections.abc import Callable
from datetime import date
from typing import Final, NamedTuple

from enhanced_websocket_service.market.calendar import Session
from enhanced_websocket_service.market.tick import quantise

from .baseline import InactivityBaseline
from .link import LinkState
from .rest_agreement import RecentPrices
from .rest_witness import RestWitness
from .samples import DECISIVE_S, LAG_S, LONGEST_STEP_S, PROMPT_S, STEP_S, SampleLog
from .silence import SilenceClock
from .stamp_age import OLD_S, StampAge
from .status import Change, DeadSpan, Sample, SampleResult, SymbolVerdict, Verdict, is_news

LIVE_S: Final = 15.0
SETTLE_S: Final = 0.3
"""What is on its way when the second sample is read must still be able to arrive."""
ALONE_S: Final = 90.0
"""Without REST, silence itself decides, but not before this."""
HISTORY: Final = 50
IDLE_S: Final = 5.0
"""How often to look when nothing is due: the minute changes, and with it what is usual."""

# Real seconds: what networks and schedulers need, however fast the clock runs.
REAL_SUSPECT_S, REAL_STEP_S, REAL_SETTLE_S, REAL_ALONE_S = 0.1, 0.06, 0.03, 1.0


class Timing(NamedTuple):
    """What the machine and the keys allow at an instant, in seconds of the clock."""

    real_second: float = 0.0  # one real second: what needs real time is stretched by it
    spacing_s: float = 0.0  # how soon after a sample the next one can be had at all


def always_open(at: float) -> Session | None:
    """A market without hours."""
    return Session(date(1970, 1, 1), 0, 1 << 40)


def _no_timing(at: float) -> Timing:
    return Timing()


class LivenessDetector:
    """Judges the stream of one symbol; lives as long as the process.

    :param session_at: the session that is open at an instant, or ``None``.
    :param timing: see ``Timing``.
    :param on_change: told of every change of the verdict, with the one before; must not block.
    """

    def __init__(
        self,
        symbol: str,
        baseline: InactivityBaseline,
        session_at: Callable[[float], Session | None] = always_open,
        *,
        timing: Callable[[float], Timing] = _no_timing,
        on_change: Callable[["LivenessDetector", Verdict], None] | None = None,
    ) -> None:
        self.symbol = symbol
        self.verdict: Verdict = "closed"
        self.evidence = ""
        self.since = 0.0
        self.last_price_at: float | None = None
        self.last_new_price_at: float | None = None
        self.history: deque[Change] = deque(maxlen=HISTORY)
        self.dead_spans: deque[DeadSpan] = deque(maxlen=HISTORY)
        self.stamps = StampAge()
        self._link = LinkState()
        self._silence = SilenceClock(symbol, baseline, session_at)
        self._samples = SampleLog()
        self._witness = RestWitness()
        self._recent = RecentPrices()
        self._dead: str | None = None  # the evidence, once it is
        self._doubtful = False  # the last price
        self._session_at = session_at
        self._timing = timing
        self._on_change = on_change
        self.evidence = self._link.said

    @property
    def listening(self) -> bool:
        """Whether there is a connection that could bring a price, and nothing is proved against it."""
        return self._link.is_up and self._dead is None

    @property
    def proved(self) -> bool:
        """Whether nothing has failed since the last proof (or the start)."""
        return self.listening and not self._link.failed

    @property
    def proved_at(self) -> float:
        """The last proof of life, or when the silence began otherwise."""
        return self._silence.proved_at

    @property
    def samples(self) -> dict[str, int]:
        """How many REST prices were compared, by result."""
        return self._samples.counts

    @property
    def rest_fault(self) -> str | None:
        """Why REST is no witness now; ``None``: it is believed."""
        return self._witness.fault

    # --- what happens -------------------------------------------------------------------------

    def connected(self, at: float) -> None:
        """A connection is there and the symbol subscribed, or about to be."""
        self._link.up(at)
        self._dead = None
        self._recent.clear()
        self.stamps.clear()
        self._silence.restart(at)
        self._begin_silence(at)
        self.look(at)

    def lost(self, why: str, at: float) -> None:
        """No connection, or the symbol is not streamed to us."""
        self._link.down(why)
        self._silence.deaf()
        self.look(at)

    def connecting(self, why: str, at: float, *, waiting: bool = False) -> None:
        """A connection is being made or, ``waiting``, must not be made yet."""
        self._link.connecting(why, waiting=waiting)
        self.look(at)

    def stopped(self, at: float) -> None:
        """The session's feed is over."""
        self._link.stopped()
        self._silence.forget()
        self.look(at)

    def price(
        self,
        price: float,
        at: float,
        *,
        stamp: int | None = None,
        age: float = 0.0,
        clock_ahead: float = 0.0,
        resent: bool = False,
        doubtful: bool = False,
    ) -> bool:
        """The socket brought a usable price.

        :param stamp: the vendor's, unix seconds.
        :param age: how old it was at the receipt, in seconds by our clock.
        :param clock_ahead: how far that is known to be ahead of the vendor's, in seconds.
        :param resent: it may be the last one again, sent upon our subscription: it tells the price,
            but proves no life.
        :param doubtful: only a witness of another kind could make it believed.
        :returns: whether it proves the stream.
        """
        silence = self._silence
        self._recent.add(price, at)
        self._link.heard(at)
        price = quantise(price)
        new, silence.price = price != silence.price, price
        if resent:
            return False
        if stamp is not None:
            self.stamps.add(stamp, age, at)
        self.last_price_at, self._doubtful = at, doubtful
        if doubtful or not new or age - clock_ahead > OLD_S:
            if self._dead is None:
                silence.heard(at)
            return False
        by_itself = self.proved and self._samples.condemned_at is None
        if self._dead is not None or self._samples.contradicted:
            self._dead = None
            silence.restart(at)
        silence.heard(at)
        silence.proved(at)
        self.last_new_price_at = at
        self._link.failed = False
        if self._samples.begun:
            self._witness.silence_over(by_itself=by_itself)
            self._samples.begin()
        if self.verdict != "live":
            self.look(at)
        return True

    def excuse(self, at: float) -> None:
        """Reading was paused: the silence so far is not the vendor's fault."""
        if self._dead is None:
            self._link.told_since = max(self._link.told_since, at)
            self._begin_silence(at)
        self._silence.restart(at)

    def sample(self, price: float, asked_at: float, now: float) -> SampleResult:
        """REST answered ``price`` to a question asked at ``asked_at``."""
        link, samples = self._link, self._samples
        counts = asked_at >= link.told_since + LAG_S
        one = Sample(price, asked_at, self._recent.agree(price, asked_at), counts)
        samples.rest = one
        if not link.is_up or asked_at < self._silence.proved_at:
            return samples.counted("late")  # it is of before the silence
        self._witness.answered(price, asked_at, agrees=one.agrees, counts=counts and link.brought)
        unborn = not link.brought and not link.failed
        unexplained = counts and not one.agrees
        fault = self._witness.fault if unexplained else None
        moved_from = samples.answered(
            one, self._silence.proved_at, unborn=unborn, believed=fault is None
        )
        if fault is not None:
            samples.failed(fault, now)
        elif moved_from is not None:
            samples.condemn(moved_from, now)
        self._plan(asked_at, prompt=unexplained and fault is None)
        self.look(now)
        if one.agrees:
            return samples.counted("agrees")
        return samples.counted("differs" if counts else "unclear")

    def sample_failed(self, why: str, now: float, result: SampleResult | None = "failed") -> None:
        """No REST price could be had.

        :param result: what to count it as: an error, no credit for it, or nothing.
        """
        samples, timing = self._samples, self._timing(now)
        if result is not None:
            samples.counted(result)
        samples.failed(why, now)
        step = max(self._step(now), timing.real_second * REAL_STEP_S, timing.spacing_s)
        samples.next_at = now + step
        self.look(now)

    def asked(self, now: float) -> None:
        """A credit is spent on the question that ``wants_sample`` asked for."""
        if now < self._silent_at(now) and not self._samples.contradicted:
            self._samples.repeat_asked(now)

    # --- what follows -------------------------------------------------------------------------

    def look(self, now: float) -> Verdict:
        """The verdict at ``now``; also kept in ``verdict``, ``evidence`` and ``history``."""
        verdict, evidence = self._judge(now)
        if verdict == "dead" and self._link.is_up and self._dead is None:
            self._dead = evidence
            self._link.failed = True
            self._silence.deaf()
        before, self.verdict, self.evidence = self.verdict, verdict, evidence
        if verdict != before:
            self.since = now
            self._note_span(verdict, evidence, now)
            if is_news(before, verdict):
                self.history.append(Change(verdict, evidence, now))
            if self._on_change is not None:
                self._on_change(self, before)
        session = self._session_at(now)
        if session is not None and self._link.is_up:
            self._silence.learn(session, now)
        return verdict

    def wants_sample(self, now: float) -> bool:
        """Whether a REST price should be asked now."""
        samples = self._samples
        if (
            not self.listening
            or samples.condemned_at is not None
            or self._session_at(now) is None
            or now < samples.next_at
        ):
            return False
        if samples.contradicted or now >= self._silent_at(now):
            return True
        return now >= self._repeating_at(now) and samples.may_ask_of_repeats(now)

    def next_look(self, now: float) -> float:
        """When the verdict may change by itself, or a sample is due; never before ``now``."""
        samples = self._samples
        if not self.listening or self._session_at(now) is None:
            return now + IDLE_S
        if samples.condemned_at is not None:
            return max(now, samples.condemned_at + self._settle(now))
        repeating = self._repeating_at(now)
        if repeating <= now and not samples.contradicted:
            repeating = samples.repeats_allowed_at(now)
        doubtful = now if samples.contradicted else min(self._silent_at(now), repeating)
        due = max(doubtful, samples.next_at)
        live_until = self._silence.unproved_since(now) + LIVE_S
        if now < live_until:
            due = min(due, live_until)
        return min(max(now, due), now + IDLE_S)

    def suspect_after(self, now: float) -> float:
        """The silence, in seconds, that is unusual at ``now``."""
        return max(self._silence.limit(now), self._timing(now).real_second * REAL_SUSPECT_S)

    def shown(self, now: float) -> SymbolVerdict:
        """Everything worth telling."""
        self.look(now)
        usual, rest = self._silence.usual(now), self._samples.rest
        due = self._link.is_up and self._session_at(now) is not None
        return SymbolVerdict(
            symbol=self.symbol,
            verdict=self.verdict,
            evidence=self.evidence,
            since=self.since,
            silence_s=max(0.0, now - self._silence.silent_since(now)) if due else None,
            suspect_after_s=self.suspect_after(now),
            usual_silence_s=usual.silence_s,
            usual_gap_s=usual.gap_s,
            learned_days=usual.days,
            last_price_at=self.last_price_at,
            last_new_price_at=self.last_new_price_at,
            lag_s=self.stamps.lag_s,
            rest_fault=self._witness.fault,
            rest_price=None if rest is None else rest.price,
            rest_asked_at=None if rest is None else rest.asked_at,
            samples=dict(self._samples.counts),
            history=tuple(self.history),
            dead_spans=tuple(self.dead_spans),
        )

    # --- the rule -----------------------------------------------------------------------------

    def _judge(self, now: float) -> tuple[Verdict, str]:
        link, samples = self._link, self._samples
        if link.kind == "stopped":
            return "closed", link.said
        if self._session_at(now) is None:
            return "closed", "the market is closed"
        if link.kind == "down":
            return "dead", link.said
        if not link.is_up:
            return "suspect", link.said
        if self._dead is not None:
            return "dead", self._dead
        if samples.condemned_at is not None and now >= samples.condemned_at + self._settle(now):
            unproved = max(0.0, now - self._silence.unproved_since(now))
            return "dead", f"{samples.proof} for {unproved:.0f} s{self._delay()}"
        what = self._what_lacks(now)
        if (alone := self._decides_alone(now)) is not None:
            return "dead", f"{what} and no REST price to compare with ({alone})"
        repeating = now >= self._repeating_at(now) and (
            samples.begun or samples.may_ask_of_repeats(now)
        )
        if (
            repeating
            or now >= self._silent_at(now)
            or samples.contradicted
            or samples.condemned_at is not None
        ):
            return self._doubt(what, now)
        if link.failed:
            return "suspect", f"connected again, no new price yet{self._delay()}"
        if self.last_price_at is None or self.last_price_at < link.connected_at:
            return "quiet", "connected, no price yet"
        unproved = max(0.0, now - self._silence.unproved_since(now))
        if unproved > LIVE_S:
            return "quiet", f"{what}, usual at this time of the session"
        return "live", f"{unproved:.0f} s since the last price"

    def _what_lacks(self, now: float) -> str:
        silence = max(0.0, now - self._silence.silent_since(now))
        unproved = max(0.0, now - self._silence.unproved_since(now))
        if self.last_price_at is None or silence >= self.suspect_after(now) or unproved == silence:
            return f"no price for {silence:.0f} s"
        if delay := self._delay():
            return f"prices come, none of them young for {unproved:.0f} s{delay}"
        if self._doubtful:
            return f"prices come, none for {unproved:.0f} s that can be believed"
        return f"prices come, no new one for {unproved:.0f} s"

    def _delay(self) -> str:
        lag = self.stamps.lag_s
        return f"; the stream's youngest stamp was {lag:.0f} s old" if lag > OLD_S / 2 else ""

    def _doubt(self, what: str, now: float) -> tuple[Verdict, str]:
        samples = self._samples
        unusual = f"{what}, unusual after {self.suspect_after(now):.0f} s"
        if (last := samples.last) is None:
            waiting = f": {samples.why_alone}" if samples.first_failure is not None else ""
            return "suspect", f"{unusual}; asking REST for a price to compare with{waiting}"
        asked = f"the REST price {last.price:g}"
        if samples.explained:
            if last.agrees:
                return "quiet", f"{what}; {asked} is one the socket brought"
            return "quiet", f"{what}; {asked} stands still too"
        if (fault := self._witness.fault) is not None:
            return "suspect", f"{unusual}; {fault}, and is no witness"
        if last.counts:
            return "suspect", f"{unusual}; {asked} is none the socket brought"
        return "suspect", f"{unusual}; {asked} may still be of before the connection"

    def _decides_alone(self, now: float) -> str | None:
        """Why silence alone makes the symbol dead now; ``None`` while it does not.

        Silence in the strict sense: no price at all. Repeated ones may be a quiet market.
        """
        samples, silence = self._samples, self._silence
        if samples.first_failure is None:
            return None
        gap = max(silence.usual(now).gap_s, silence.pace.recent_gap or 0.0)
        least = self._timing(now).real_second * REAL_ALONE_S
        wait = max(ALONE_S, 4 * self.suspect_after(now), 8 * gap, least)
        since = max(silence.silent_since(now), samples.answered_at)
        if now - since < wait or now - samples.first_failure < wait / 2:
            return None
        return samples.why_alone

    # --- small change -------------------------------------------------------------------------

    def _silent_at(self, now: float) -> float:
        """When no price at all is unusual."""
        return self._silence.silent_since(now) + self.suspect_after(now)

    def _repeating_at(self, now: float) -> float:
        """When no *new* price is unusual, though prices come."""
        limit = max(self._silence.repeats_limit(now), self.suspect_after(now))
        return self._silence.unproved_since(now) + limit

    def _begin_silence(self, at: float) -> None:
        self._silence.begin(at)
        self._samples.begin()
        self._witness.silence_over(by_itself=False)

    def _plan(self, asked_at: float, *, prompt: bool) -> None:
        """When to ask again after a sample; ``prompt``: it is one nothing explains."""
        samples, timing = self._samples, self._timing(asked_at)
        since = self._silence.silent_since(asked_at)
        step = self._step(asked_at)
        soon = max(PROMPT_S, 0.75 * step)
        # The first sample that sees beyond the lag says most: do not just miss it.
        telling = max(since, self._link.told_since) + LAG_S + 0.1
        if not prompt and asked_at < since + self.suspect_after(asked_at):
            # Prices come: the distance to the next question doubles while REST shows the same one.
            wait = max(step, asked_at - self._silence.unproved_since(asked_at))
        elif prompt or telling <= asked_at < since + DECISIVE_S:
            wait = soon
        elif asked_at >= since + DECISIVE_S:
            wait = max(step, 0.6 * (asked_at - since))
        elif asked_at < telling < asked_at + 2 * max(step, timing.spacing_s):
            wait = telling - asked_at
        else:
            wait = step
        samples.next_at = asked_at + max(wait, timing.spacing_s, timing.real_second * REAL_STEP_S)

    def _step(self, now: float) -> float:
        return min(max(STEP_S, 0.45 * self.suspect_after(now)), LONGEST_STEP_S)

    def _settle(self, now: float) -> float:
        return max(SETTLE_S, self._timing(now).real_second * REAL_SETTLE_S)

    def _note_span(self, verdict: Verdict, evidence: str, now: float) -> None:
        spans = self.dead_spans
        if spans and spans[-1].end is None:
            if verdict in ("live", "closed"):  # a REST price that agrees is no proof of the stream
                last = spans.pop()
                spans.append(DeadSpan(last.start, last.found_at, now, last.evidence))
        elif verdict == "dead":
            start = self.last_new_price_at if self.last_new_price_at is not None else now
            session = self._session_at(now)
            start = start if session is None else max(start, float(session.opens))
            spans.append(DeadSpan(min(start, now), now, None, evidence))
