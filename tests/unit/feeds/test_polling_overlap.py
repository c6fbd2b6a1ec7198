"""Polls that overlap: order of answers, bounds, keys that fail, noise, and a whole session's pace."""

import asyncio
import itertools
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from enhanced_websocket_service.feeds.polling import PollingFeed
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.twelvedata.backoff import Backoff
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool
from enhanced_websocket_service.twelvedata.rest import RestClient

from .alone import Alone
from .clocks import ManualClock
from .vendor import until

Answer = tuple[int, dict[str, object]]


def refusal(code: int, message: str) -> Answer:
    return code, {"code": code, "message": message, "status": "error"}


class Waiting(httpx.AsyncBaseTransport):
    """Holds every request until it is answered by number."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.keys: list[str] = []
        self.at: list[float] = []
        self._answers: list[asyncio.Future[Answer]] = []
        self.always: Callable[[str], Answer | None] = lambda _: None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        key = request.headers["authorization"].removeprefix("apikey ")
        self.keys.append(key)
        self.at.append(self._clock.now())
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        if (at_once := self.always(key)) is not None:
            answer.set_result(at_once)
        status, body = await answer
        return httpx.Response(status, content=json.dumps(body).encode())

    def answer(self, number: int, price: float | str) -> None:
        self._answers[number].set_result((200, {"price": str(price)}))

    def refuse(self, number: int, answer: Answer) -> None:
        self._answers[number].set_result(answer)


class Bench:
    believing = True

    def __init__(self, keys: int = 4) -> None:
        self.clock = ManualClock(1_000_000_030.0)
        self.wire = Waiting(self.clock)
        self.metrics = Metrics()
        self.pace = 2.0
        pool = KeyPool([ApiKey(f"K{i}", f"key-{i}") for i in range(keys)])
        provider = Provider("simulator")
        self.rest = RestClient(
            "http://vendor.test", pool, self.clock, provider, self.metrics, self.wire
        )
        polling = PollingFeed(
            self.rest,
            ["USDCOP"],
            self.clock,
            provider,
            pace=lambda _: self.pace,
            last_price=lambda symbol: self.accepted.get(symbol),
            witness=lambda *said: self.witnessed.append(said),
            backoff=Backoff(base=2.0, cap=60.0, jitter=lambda: 1.0),
            metrics=self.metrics,
        )
        self.feed = Alone(polling)
        self.quotes: list[Quote] = []
        self.accepted: dict[str, float] = {}  # as the pipeline would
        self.witnessed: list[tuple[str, float]] = []
        self._consumer = asyncio.create_task(self._consume())

    async def _consume(self) -> None:
        async for batch in self.feed:
            self.quotes += batch
            self.accepted |= {quote.symbol: quote.price for quote in batch if self.believing}

    @property
    def prices(self) -> list[float]:
        return [quote.price for quote in self.quotes]

    @property
    def asked(self) -> int:
        return len(self.wire.keys)

    def polls(self, result: str) -> float:
        return self.metrics.polls.labels(result)._value.get()

    async def stop(self) -> None:
        await self.feed.aclose()
        await self._consumer
        await self.rest.aclose()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    one = Bench()
    yield one
    await one.stop()
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("feed")] == []


async def test_a_slow_vendor_does_not_set_the_pace(bench: Bench) -> None:
    await until(lambda: bench.asked == 1)
    await bench.clock.pass_time(6)
    assert bench.asked == 4
    assert len(set(bench.wire.keys)) == 4
    await bench.clock.pass_time(60)
    assert bench.asked == 4, "no more than there are keys"
    bench.wire.answer(0, 4000.0)
    await bench.clock.pass_time(8)
    assert bench.asked == 5


async def test_after_a_stall_no_credit_is_spent_twice(bench: Bench) -> None:
    keys, two_spent = bench.rest.keys, 4 * 800 - 2
    bench.feed.source._pace = lambda now: 2.0 if keys.left(now) > two_spent else math.inf
    await until(lambda: bench.asked == 1)
    await bench.clock.pass_time(30, step=30)
    assert bench.asked == 2


async def test_answers_count_in_the_order_of_their_questions(bench: Bench) -> None:
    await until(lambda: bench.asked == 1)
    await bench.clock.pass_time(6)
    bench.wire.answer(1, 4001.0)
    await until(lambda: bench.prices == [4001.0])
    await bench.clock.pass_time(1)
    bench.wire.answer(0, 4000.0)  # older than what is known
    bench.wire.answer(2, 4002.0)
    await until(lambda: len(bench.quotes) == 2)
    assert bench.prices == [4001.0, 4002.0]
    assert bench.polls("superseded") == 1
    assert bench.feed.status().last_quote_at == bench.clock.now(), "a late answer is a sign of life"


async def test_noise_is_no_tick_and_news_of_freshness(bench: Bench) -> None:
    await until(lambda: bench.asked == 1)
    await bench.clock.pass_time(6)
    for number, price in enumerate(["4179.96", "4179.95996", "4179.97", "4179.97000"]):
        bench.wire.answer(number, price)
        for _ in range(20):
            await asyncio.sleep(0)
    assert bench.prices == [4179.96, 4179.97]
    assert (bench.polls("changed"), bench.polls("unchanged")) == (2, 2)
    assert bench.feed.status().verdict == "live"


async def test_an_older_failure_says_nothing_about_now(bench: Bench) -> None:
    await until(lambda: bench.asked == 1)
    await bench.clock.pass_time(6)
    bench.wire.answer(3, 4000.0)
    await until(lambda: bench.quotes)
    bench.wire.refuse(0, refusal(400, "Bad request"))
    await bench.clock.pass_time(1)
    assert bench.feed.status().last_error is None
    assert bench.feed.status().verdict == "live"


async def test_polls_that_fail_together_are_one_failure(bench: Bench) -> None:
    await until(lambda: bench.asked == 1)
    await bench.clock.pass_time(6)
    for number in range(4):
        bench.wire.refuse(number, refusal(400, "Bad request"))
    await bench.clock.pass_time(1)
    assert bench.polls("failed") == 4
    await bench.clock.pass_time(8)
    assert bench.asked >= 5, "2 s of rest and the spacing of the keys, not 16 s"


@pytest.mark.parametrize(
    "answer",
    [
        refusal(401, "**apikey** parameter is incorrect or not specified."),
        refusal(403, "/price is available exclusively with pro plans."),
        refusal(429, "You have run out of API credits for the current minute. 9 API credits were"),
        refusal(429, "You have run out of API credits for the day. 801 API credits were used"),
        refusal(500, "Internal server error"),
    ],
)
async def test_a_key_that_fails_is_replaced_by_another_at_once(
    bench: Bench, answer: Answer
) -> None:
    good = (200, {"price": "4000.0"})
    bench.wire.always = lambda key: answer if key == "key-0" else good
    await until(lambda: bench.asked >= 1)
    await bench.clock.pass_time(1)
    assert bench.wire.keys[:2] == ["key-0", "key-1"]
    assert bench.prices == [4000.0]
    await bench.clock.pass_time(40)
    assert bench.feed.status().last_error is None
    used = Counter(bench.wire.keys)
    if answer[0] != 500:
        assert used["key-0"] == 1, "it is left alone"
    for key in used:
        moments = [
            at for name, at in zip(bench.wire.keys, bench.wire.at, strict=True) if name == key
        ]
        assert all(b - a >= 8.0 for a, b in itertools.pairwise(moments))


async def test_what_was_asked_before_the_stream_had_the_symbol_is_old(bench: Bench) -> None:
    await until(lambda: bench.asked == 1)
    bench.feed.set_symbols(())
    bench.accepted["USDCOP"] = 4010.0
    bench.feed.set_symbols(("USDCOP",))
    await bench.clock.pass_time(2)
    bench.wire.answer(0, 4000.0)
    bench.wire.answer(1, 4011.0)
    await until(lambda: bench.quotes)
    assert bench.prices == [4011.0]


async def test_an_answer_that_a_later_question_overtook_is_no_witness(bench: Bench) -> None:
    await until(lambda: bench.asked == 1)
    await bench.clock.pass_time(2)
    bench.wire.answer(1, 4300.0)
    await until(lambda: bench.quotes)
    bench.wire.answer(0, 4000.0)
    await until(lambda: bench.polls("superseded") == 1)
    assert bench.witnessed == [("USDCOP", 4300.0)]
