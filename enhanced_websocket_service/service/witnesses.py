"""Finds witnesses for prices that are doubted, and tells ``/health`` of those that wait for one.

What a witness proves is decided in ``market.validation``; here it is only found: the last stored bar costs
nothing and is asked first, the vendor's current price speaks about the stream, its own 5-minute bar about
both. Each question has its distance from the one before, so that a source that prints one wrong price after
the other cannot spend the day's credits. One object for the life of the process.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, get_args

import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import EwsError, JournalError, StorageError
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.market.calendar import BAR_SECONDS, iso_local
from enhanced_websocket_service.market.plausibility import BarWitness, Doubt
from enhanced_websocket_service.market.validation import Decision, QuoteValidator
from enhanced_websocket_service.twelvedata.spending import LIVENESS, REPAIR

from .pipeline import Pipeline

log = structlog.get_logger(__name__)

Question = Literal["stored", "rest", "bar"]

LONGEST_WAIT_S: Final = 595.0
"""No price waits longer for a witness; with the last look, ten minutes."""
ASK_AFTER_S: Final = 2.0
"""A lone wrong print is refuted by the next price: before that, a question would be a credit wasted."""
MOVE_AFTER_S: Final = 30.0
"""A move outside the band is settled by the next prices; only where none come, somebody is asked."""
FIRST_REST_PAUSE_S, LONGEST_REST_PAUSE_S = 30.0, 240.0
FORGIVEN_AFTER_S: Final = 900.0
"""So long after the last question the next ones are as close together as the first."""
BAR_PAUSE_S: Final = 60.0
STORED_PAUSE_S: Final = 30.0
BAR_APPEARS_S: Final = 20
"""The soonest after its end that the vendor has a bar."""
CALM_S: Final = 60.0
"""A doubt is over when no price is held for so long, or when one was accepted."""
LOOK_S: Final = 30.0
TELL_EVERY_S: Final = 1.0
LOOK_AT_LEAST_REAL_S: Final = 0.05
WAIT_AT_LEAST_REAL_S: Final = 5.0
ANSWER_AT_LEAST_REAL_S: Final = 1.0
_LOOK_BACK_S: Final = {"first": 4 * 86_400}
"""How old a bar may be that speaks for the first price: a weekend and a holiday."""
_NEAR_S: Final = 2 * 3600

_PREPARING: Final[tuple[str, Question]] = ("", "stored")
_NAMES: Final[dict[Question, str]] = {
    "stored": "the last stored bar",
    "rest": "the vendor's REST price",
    "bar": "the vendor's 5-minute bar",
}
_WHY: Final = {
    "first": "no earlier price is known to compare it with",
    "scale": "a change by a power of ten looks like another unit",
    "leap": "the pair never moved so far at once",
    "move": "that is outside PRICE_BAND_PCT",
}


class VendorPrices(Protocol):
    """What is asked of the vendor; see ``twelvedata.rest``."""

    async def price(self, symbol: str, purpose: str, *, retries: int | None = None) -> float: ...

    async def time_series(
        self, symbol: str, *, start: int, end: int, purpose: str
    ) -> list[Bar]: ...


class StoredPrices(Protocol):
    """What is asked of PostgreSQL; see ``storage.postgres``."""

    async def last_bar(self, symbol: str) -> Bar | None: ...

    async def largest_move(self, symbol: str) -> float | None: ...


@dataclass(slots=True)
class _Search:
    """The search for a witness of one doubt; instants are ``Clock.elapsed``."""

    doubt: Doubt
    began: float
    until: float  # by the clock people read, unix seconds UTC
    offset: int  # the last accepted tick when it began
    due: dict[Question, float] = field(default_factory=dict)
    said: dict[Question, str] = field(default_factory=dict)
    told: str = ""
    told_at: float = -math.inf
    calm_since: float | None = None  # nothing is held since
    unwitnessed: bool = False  # quotes of this level were given up: only an accepted price ends it


class PriceWitnesses:
    """``wake`` is told of each doubt by the pipeline; run ``run`` as one task.

    :param may_spend: whether a credit may be spent on a purpose at an instant.
    :param is_open: whether the market of a symbol is open at an instant.
    :param on_failure: told that the journal did not take what was decided; must not block.
    """

    def __init__(
        self,
        symbols: Sequence[str],
        clock: Clock,
        pipeline: Pipeline,
        *,
        vendor: VendorPrices,
        stored: StoredPrices,
        may_spend: Callable[[str, float], bool],
        is_open: Callable[[str, float], bool],
        failures: Failures,
        on_failure: Callable[[JournalError], None],
    ) -> None:
        self._symbols = tuple(symbols)
        self._clock, self._pipeline = clock, pipeline
        self._vendor, self._stored = vendor, stored
        self._may_spend, self._is_open = may_spend, is_open
        self._failures, self._on_failure = failures, on_failure
        self._searches: dict[str, _Search] = {}
        self._rest_pause = dict.fromkeys(self._symbols, FIRST_REST_PAUSE_S)
        self._asked_at: dict[tuple[str, Question], float] = {}
        self._asking: dict[tuple[str, Question], asyncio.Task[None]] = {}
        self._unprepared = set(self._symbols)
        self._woken = asyncio.Event()

    def wake(self, symbol: str) -> None:
        """The doubt about the price of ``symbol`` is another one, or over."""
        self._woken.set()

    def prepare(self) -> None:
        """A feed is about to begin: measure its first prices by the last stored bars, where no tick is
        younger. Must be called while ``run`` runs.
        """
        self._unprepared = set(self._symbols)
        self._woken.set()

    def on_rest_price(self, symbol: str, price: float) -> None:
        """A REST price that somebody else asked for: it is a witness, too."""
        try:
            self._pipeline.on_rest_price(symbol, price, self._clock.now())
        except JournalError as error:
            self._on_failure(error)

    async def run(self) -> None:
        """Look whenever something is due, until cancelled. Failures of those who are asked are told."""
        clock = self._clock
        try:
            while True:
                self._woken.clear()
                if self._unprepared and _PREPARING not in self._asking:
                    # Beside the looks: a database that hangs must not hold up who waits.
                    self._asking[_PREPARING] = asyncio.create_task(
                        self._prepare(), name="witness-prepare"
                    )
                wait = min((self._look(symbol) for symbol in self._symbols), default=LOOK_S)
                waiters = {
                    asyncio.create_task(
                        clock.sleep(clock.span(wait, LOOK_AT_LEAST_REAL_S)), name="witness-look"
                    ),
                    asyncio.create_task(self._woken.wait(), name="witness-woken"),
                }
                try:
                    await asyncio.wait(
                        {*waiters, *self._asking.values()}, return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    for task in waiters:
                        task.cancel()
                    await asyncio.gather(*waiters, return_exceptions=True)
                for key in [key for key, task in self._asking.items() if task.done()]:
                    self._asking.pop(key).result()
        finally:
            asking, self._asking = self._asking, {}
            for task in asking.values():
                task.cancel()
            await asyncio.gather(*asking.values(), return_exceptions=True)

    async def _prepare(self) -> None:
        """What PostgreSQL cannot tell now is asked again when a price is doubted."""
        while self._unprepared:
            symbol = self._unprepared.pop()
            validator = self._pipeline.validator(symbol)
            try:
                bar = await self._stored.last_bar(symbol)
                if bar is not None:
                    validator.assume(_witness(bar, asked=False))
                # Of millions of bars this takes seconds, which the first price need not wait for.
                move = await self._stored.largest_move(symbol)
            except StorageError as error:
                log.debug("No stored bar to measure prices by", symbol=symbol, error=str(error))
                continue
            if move is not None:
                validator.expect(move)

    def _look(self, symbol: str) -> float:
        """Ask and tell what is due about ``symbol``; seconds until the next look."""
        now = self._clock.elapsed()
        search = self._searches.get(symbol)
        doubt = self._pipeline.doubt(symbol)
        limit = self._clock.span(LONGEST_WAIT_S, WAIT_AT_LEAST_REAL_S)
        if doubt is not None and search is not None and doubt.key == search.doubt.key:
            search.doubt = doubt
            if now - search.began >= limit:
                search.unwitnessed = True
                self._settle(symbol, lambda validator: validator.overdue())
                doubt = self._pipeline.doubt(symbol)
        if doubt is None:
            return LOOK_S if search is None else self._calm_down(symbol, search, now)
        if search is None or doubt.key != search.doubt.key:
            search = self._begin(doubt, now, now + limit, search)
            self._searches[symbol] = search
        search.calm_since = None
        wait = min(LOOK_S, max(1.0, search.began + limit - now))
        for question in get_args(Question):
            due = search.due.get(question, math.inf)
            if due <= now and (symbol, question) not in self._asking:
                search.due[question] = due = self._next(question, symbol, now)
                self._asking[symbol, question] = asyncio.create_task(
                    self._ask(question, symbol, search), name=f"witness-{question}-{symbol}"
                )
            wait = min(wait, due - now)
        return max(0.0, min(wait, self._tell(symbol, search, now)))

    def _begin(self, doubt: Doubt, now: float, end: float, before: _Search | None) -> _Search:
        symbol = doubt.symbol
        offset = self._pipeline.offsets[symbol] if before is None else before.offset
        search = _Search(doubt, now, self._clock.now() + end - now, offset)
        if before is not None:  # the same trouble goes on with another quote
            search.unwitnessed = before.unwitnessed
            search.told, search.told_at = before.told, before.told_at
        if now - self._asked_at.get((symbol, "rest"), -math.inf) > FORGIVEN_AFTER_S:
            self._rest_pause[symbol] = FIRST_REST_PAUSE_S
        after = ASK_AFTER_S if doubt.needs_another_kind else MOVE_AFTER_S
        if "stream" in doubt.kinds:
            search.due["rest"] = self._no_sooner("rest", symbol, now + after)
        if doubt.needs_another_kind:
            search.due["stored"] = now
            bar_at = now + after + self._until_bar(doubt)
            search.due["bar"] = self._no_sooner("bar", symbol, bar_at)
        return search

    def _until_bar(self, doubt: Doubt) -> float:
        """Seconds until the vendor can have a bar that ends after the last price was the last."""
        at = self._clock.now()
        ended = int(at) // BAR_SECONDS * BAR_SECONDS
        if doubt.newest < ended - BAR_SECONDS or doubt.stamp < ended:
            return 0.0
        return max(0.0, ended + BAR_SECONDS + BAR_APPEARS_S - at)

    def _no_sooner(self, question: Question, symbol: str, due: float) -> float:
        asked_at = self._asked_at.get((symbol, question))
        if asked_at is None:
            return due
        return max(due, asked_at + self._pause(question, symbol))

    def _pause(self, question: Question, symbol: str) -> float:
        if question == "rest":
            return self._rest_pause[symbol]
        return BAR_PAUSE_S if question == "bar" else STORED_PAUSE_S

    def _next(self, question: Question, symbol: str, now: float) -> float:
        """``question`` is asked now: when it may be asked again."""
        self._asked_at[symbol, question] = now
        due = now + self._pause(question, symbol)
        if question == "rest":
            self._rest_pause[symbol] = min(2 * self._rest_pause[symbol], LONGEST_REST_PAUSE_S)
        return due

    async def _ask(self, question: Question, symbol: str, search: _Search) -> None:
        ask = {"stored": self._ask_stored, "rest": self._ask_rest, "bar": self._ask_bar}[question]
        try:
            search.said[question] = await ask(symbol, search.doubt)
        except EwsError as error:
            search.said[question] = str(error).rstrip(".")
        self._woken.set()

    async def _ask_stored(self, symbol: str, doubt: Doubt) -> str:
        bar = await self._stored.last_bar(symbol)
        if bar is None:
            return "there is none"
        return self._show_bar(symbol, _witness(bar, asked=False))

    async def _ask_rest(self, symbol: str, doubt: Doubt) -> str:
        if not self._may_spend(LIVENESS, self._clock.now()):
            return "no credit is left for it"
        price = await self._vendor.price(symbol, LIVENESS, retries=0)
        self.on_rest_price(symbol, price)
        return f"{price:g} at {iso_local(int(self._clock.now()))}"

    async def _ask_bar(self, symbol: str, doubt: Doubt) -> str:
        now = self._clock.now()
        if not self._may_spend(REPAIR, now):
            return "no credit is left for it"
        end = int(now) // BAR_SECONDS * BAR_SECONDS
        start = end - _LOOK_BACK_S.get(doubt.why, _NEAR_S)
        bars = await self._vendor.time_series(symbol, start=start, end=end, purpose=REPAIR)
        said = "there is none yet"
        for bar in reversed(bars):  # the newest knows best
            told = self._show_bar(symbol, _witness(bar, asked=True))
            said = told if said == "there is none yet" else said
        return said

    def _show_bar(self, symbol: str, bar: BarWitness) -> str:
        self._settle(symbol, lambda validator: validator.on_bar(bar))
        return f"{bar.close:g} at the end of the bar of {iso_local(bar.opens)}"

    def _settle(self, symbol: str, judge: Callable[[QuoteValidator], Decision]) -> None:
        try:
            self._pipeline.settle(symbol, judge, self._clock.now())
        except JournalError as error:
            self._on_failure(error)

    def _calm_down(self, symbol: str, search: _Search, now: float) -> float:
        """Nothing is held any more: end the search once that is for good."""
        calm_s = self._clock.span(CALM_S)
        if search.calm_since is None:
            search.calm_since = now
        accepted = self._pipeline.offsets[symbol] > search.offset
        quiet = now - search.calm_since >= calm_s
        closed = not self._is_open(symbol, self._clock.now())
        if accepted or (quiet and (closed or not search.unwitnessed)):
            self._failures.succeeded(_part(symbol))
            del self._searches[symbol]
            return LOOK_S
        return max(1.0, calm_s - (now - search.calm_since))

    def _tell(self, symbol: str, search: _Search, now: float) -> float:
        """Say what is known now, once a second at most; seconds until there is more to say."""
        if not search.doubt.needs_another_kind and now - search.began < MOVE_AFTER_S:
            return MOVE_AFTER_S - (now - search.began)
        if "stored" in search.due and "stored" not in search.said:
            # Usually it knows at once: the first price of a feed is no trouble before that.
            patience_s = self._clock.span(ASK_AFTER_S, ANSWER_AT_LEAST_REAL_S)
            if now - search.began < patience_s:
                return patience_s - (now - search.began)
        text = _sentence(search)
        if text == search.told:
            return LOOK_S
        if search.told and now - search.told_at < TELL_EVERY_S:
            return TELL_EVERY_S
        search.told, search.told_at = text, now
        self._failures.failed(_part(symbol), text)
        return LOOK_S


def _part(symbol: str) -> str:
    """The part as ``Failures`` calls it."""
    return f"price of {symbol}"


def _witness(bar: Bar, *, asked: bool) -> BarWitness:
    return BarWitness(bar.close, bar.open_time, bar.open_time + bar.interval_s, asked)


def _sentence(search: _Search) -> str:
    doubt = search.doubt
    change = (
        f"{doubt.price:g} is the first price"
        if doubt.last is None
        else f"the price went from {doubt.last:g} to {doubt.price:g}"
    )
    by = "the stream" if "stream" in doubt.kinds else "REST"
    wanted: list[Question] = ["bar"] if doubt.needs_another_kind else []
    if "stream" in doubt.kinds:
        wanted.insert(0, "rest")
    waiting = " or ".join(_NAMES[one] for one in wanted) or "another price"
    said = "; ".join(f"{_NAMES[one]}: {text}" for one, text in sorted(search.said.items()))
    return (
        f"By {by} {change} at {iso_local(int(doubt.since))}, and {_WHY[doubt.why]}: its quotes are held, "
        f"at the longest until {iso_local(int(search.until))}, for a witness of another kind ({waiting})"
        + (f". Asked so far: {said}." if said else ".")
    )
