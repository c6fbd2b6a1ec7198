"""The REST client: keys in headers, waiting, retries, errors; the wire is an injected transport."""

import asyncio
import json
import math
from collections.abc import Callable
from contextlib import suppress

import httpx
import pytest
from structlog.testing import capture_logs

from enhanced_websocket_service.errors import (
    BadRequest,
    CreditsExhausted,
    InvalidKey,
    NotEntitled,
    VendorError,
    VendorUnavailable,
)
from enhanced_websocket_service.failures import Failure, Failures
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.twelvedata import rest as rest_module
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool
from enhanced_websocket_service.twelvedata.rest import RestClient, is_loopback_url
from enhanced_websocket_service.twelvedata.rest_failures import (
    UNASKED_S,
    VENDOR_REST,
    RestFailures,
)
from tests.unit.feeds.clocks import IdleClock, JumpingClock, ManualClock

OPEN = 1_749_042_000  # 2025-06-04 13:00:00 UTC
SECRETS = ("s3cret-aaaa-0001", "s3cret-bbbb-0002", "s3cret-cccc-0003")
Answer = httpx.Response | Exception
GARBAGE = httpx.Response(200, json={"prize": "4101.25"})
BROKEN = httpx.Response(500, json={"code": 500, "message": "internal", "status": "error"})


def refusal(code: int, message: str) -> httpx.Response:
    return httpx.Response(code, json={"code": code, "message": message, "status": "error"})


def exhausted(period: str) -> httpx.Response:
    return refusal(
        429, f"You have run out of API credits for the {period}. 9 API credits were used"
    )


class Wire(httpx.AsyncBaseTransport):
    """Answers in turn; the last answer for ever."""

    def __init__(self, *answers: Answer | Callable[[httpx.Request], Answer]) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers[0] if len(self._answers) == 1 else self._answers.pop(0)
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    @property
    def keys_used(self) -> list[str]:
        return [request.headers["authorization"] for request in self.requests]


def client(wire: Wire, keys: int = 2) -> tuple[RestClient, JumpingClock]:
    clock = JumpingClock(OPEN + 3600.0)
    pool = KeyPool([ApiKey(f"G1_{i + 1}", SECRETS[i]) for i in range(keys)])
    provider = Provider("simulator")
    return (
        RestClient(
            "http://vendor.test", pool, clock, provider, Metrics(), wire, jitter=lambda: 1.0
        ),
        clock,
    )


PRICE = httpx.Response(200, json={"price": "4101.25"})


async def test_the_key_travels_in_the_header_alone() -> None:
    wire = Wire(PRICE)
    rest, _ = client(wire)
    assert await rest.price("USDCOP", "poll") == 4101.25
    (request,) = wire.requests
    assert request.headers["authorization"] == f"apikey {SECRETS[0]}"
    assert SECRETS[0] not in str(request.url)
    assert request.url.params["symbol"] == "USD/COP"
    await rest.aclose()


async def test_calls_wait_for_their_key_in_turn() -> None:
    wire = Wire(PRICE)
    began = OPEN + 3600.0
    clock = IdleClock(began)  # they wait side by side
    pool = KeyPool([ApiKey(f"G1_{i + 1}", SECRETS[i]) for i in range(2)])
    rest = RestClient("http://vendor.test", pool, clock, Provider("simulator"), Metrics(), wire)
    asked = [asyncio.create_task(rest.price("USDCOP", "poll")) for _ in range(4)]
    await clock.run_until(began + 7.9)
    assert [one.done() for one in asked] == [True, True, False, False]
    await clock.run_until(began + 8.0)
    assert await asyncio.gather(*asked) == [4101.25] * 4
    assert [key[-4:] for key in wire.keys_used] == ["0001", "0002", "0001", "0002"]
    await rest.aclose()


async def test_a_page_of_bars() -> None:
    values = [
        {"datetime": f"2025-06-04 13:{m:02}:00", "open": "1", "high": "3", "low": "1", "close": "2"}
        for m in (10, 5, 0)
    ]
    wire = Wire(httpx.Response(200, json={"values": [*values, {"datetime": "?"}], "status": "ok"}))
    rest, _ = client(wire)
    with capture_logs() as logs:
        bars = await rest.time_series("USDCOP", start=OPEN, end=OPEN + 600, purpose="backfill")
    assert [bar.open_time for bar in bars] == [OPEN, OPEN + 300, OPEN + 600]
    assert {bar.source for bar in bars} == {"simulator"}
    assert logs[0]["count"] == 1
    params = wire.requests[0].url.params
    assert (params["timezone"], params["outputsize"]) == ("UTC", "5000")
    await rest.aclose()


async def test_an_empty_window_is_an_answer() -> None:
    wire = Wire(refusal(400, "No data is available on the specified dates."))
    rest, clock = client(wire)
    assert await rest.time_series("USDCOP", start=OPEN, end=OPEN, purpose="backfill") == []
    assert len(wire.requests) == 1
    assert rest.keys.snapshot(clock.now())["keys"][0]["outcomes"] == {"ok": 1}
    await rest.aclose()


async def test_a_wrong_key_is_set_aside_and_the_next_one_asked() -> None:
    wire = Wire(refusal(401, f"key {SECRETS[0]} is incorrect"), PRICE)
    rest, clock = client(wire)
    with capture_logs() as logs:
        assert await rest.price("USDCOP", "poll") == 4101.25
        await rest.price("USDCOP", "poll")
    assert [key[-4:] for key in wire.keys_used] == ["0001", "0002", "0002"]
    shown = f"{logs} {rest.keys.snapshot(clock.now())}"
    assert "[redacted]" in shown
    assert SECRETS[0] not in shown
    await rest.aclose()


async def test_no_key_left_is_said_plainly() -> None:
    rest, _ = client(Wire(refusal(401, "incorrect")))
    with pytest.raises(InvalidKey, match="No usable API key"):
        await rest.price("USDCOP", "poll")
    await rest.aclose()


async def test_an_exhausted_minute_moves_to_the_next_key_and_then_waits() -> None:
    wire = Wire(exhausted("current minute"), exhausted("current minute"), PRICE)
    rest, clock = client(wire)
    await rest.price("USDCOP", "poll")
    assert [key[-4:] for key in wire.keys_used] == ["0001", "0002", "0001"]
    assert clock.now() == OPEN + 3662.0  # a minute that the vendor must have begun
    await rest.aclose()


async def test_an_exhausted_day_is_not_waited_for() -> None:
    wire = Wire(exhausted("day"))
    rest, clock = client(wire)
    with pytest.raises(CreditsExhausted) as refused:
        await rest.price("USDCOP", "poll")
    assert refused.value.scope == "day"
    assert len(wire.requests) == 2
    assert clock.now() == OPEN + 3600.0
    await rest.aclose()


async def test_a_vendor_that_always_says_429_does_not_hold_a_call_for_ever() -> None:
    rest, clock = client(Wire(exhausted("current minute")))
    with pytest.raises(CreditsExhausted):
        await rest.price("USDCOP", "poll")
    assert clock.now() < OPEN + 3600.0 + 200.0
    await rest.aclose()


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("cut"),
        httpx.Response(520, text="error code: 520"),
        httpx.Response(200, text="<html>"),
        httpx.Response(302, headers={"location": "http://elsewhere.test/"}),
    ],
)
async def test_an_unreachable_vendor_is_asked_again_with_backoff(failure: Answer) -> None:
    wire = Wire(failure, failure, PRICE)
    rest, clock = client(wire, keys=3)
    assert await rest.price("USDCOP", "poll") == 4101.25
    assert clock.now() == OPEN + 3600.0 + 1.0 + 2.0
    assert {request.url.host for request in wire.requests} == {"vendor.test"}
    await rest.aclose()


async def test_retries_are_capped_and_can_be_refused() -> None:
    for retries, asked in ((None, 3), (0, 1)):
        wire = Wire(httpx.ConnectError("refused"))
        rest, _ = client(wire)
        with pytest.raises(VendorUnavailable, match="cannot be reached"):
            await rest.price("USDCOP", "poll", retries=retries)
        assert len(wire.requests) == asked
        await rest.aclose()


async def test_what_a_plan_excludes_is_asked_of_every_key_once() -> None:
    wire = Wire(refusal(404, "This symbol is available starting with the Grow plan."))
    rest, clock = client(wire)
    for _ in range(3):
        with pytest.raises(NotEntitled, match="Grow plan"):
            await rest.price("USDCOP", "poll")
    assert len(wire.requests) == 2, "one call for each key, none for the question repeated"
    assert "/price USD/COP" in rest.keys.snapshot(clock.now())["keys"][0]["access"]
    with pytest.raises(NotEntitled):
        await rest.price("EURUSD", "poll")
    assert len(wire.requests) == 4, "another symbol may be in the plan"
    await rest.aclose()


async def test_other_errors_are_not_retried() -> None:
    wire = Wire(refusal(400, "Invalid **interval** provided: 7min."))
    rest, _ = client(wire)
    with pytest.raises(BadRequest):
        await rest.price("USDCOP", "poll")
    assert len(wire.requests) == 1
    await rest.aclose()


async def test_endless_bodies_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_module, "MAX_BODY_BYTES", 1000)
    rest, _ = client(Wire(httpx.Response(200, content=b'{"price":"' + b"1" * 2000 + b'"}')))
    with pytest.raises(VendorUnavailable, match="exceeds 1000 bytes"):
        await rest.price("USDCOP", "poll", retries=0)
    await rest.aclose()


async def test_headers_and_usage_teach_the_pool() -> None:
    headers = {"api-credits-used": "50", "api-credits-left": "5"}
    usage = {"current_usage": 1, "plan_limit": 55, "daily_usage": 136, "plan_daily_limit": 700}
    wire = Wire(
        httpx.Response(200, json={"price": "1"}, headers=headers), httpx.Response(200, json=usage)
    )
    rest, clock = client(wire, keys=1)
    clock.advance(10)  # at the edge of a minute the figures would say nothing
    await rest.price("USDCOP", "poll")
    first = rest.keys.snapshot(clock.now())["keys"][0]
    assert (first["minute_limit"], first["minute_used"]) == (55, 50)
    assert (await rest.api_usage()).plan_daily_limit == 700
    assert rest.keys.budget(clock.now()).left == 700 - 136
    await rest.aclose()


async def test_the_other_endpoints() -> None:
    earliest = httpx.Response(200, json={"datetime": "2020-02-10", "unix_time": 1581292800})
    quote = httpx.Response(200, json={"close": "4100.5", "timestamp": OPEN})
    wire = Wire(earliest, quote)
    rest, _ = client(wire)
    assert await rest.earliest_timestamp("USDCOP", 300) == 1581292800
    assert (await rest.quote("USDCOP", "check")).price == 4100.5
    assert [request.url.path for request in wire.requests] == ["/earliest_timestamp", "/quote"]
    assert wire.requests[0].url.params["interval"] == "5min"
    await rest.aclose()


async def test_a_cancelled_call_hands_its_key_back() -> None:
    entered = asyncio.Event()

    class Hanging(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            entered.set()
            await asyncio.Event().wait()
            raise AssertionError

    pool = KeyPool([ApiKey("G1_1", SECRETS[0])])
    clock = JumpingClock(OPEN)
    rest = RestClient("http://vendor.test", pool, clock, Provider(), Metrics(), Hanging())
    call = asyncio.create_task(rest.price("USDCOP", "poll"))
    await entered.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert pool.snapshot(clock.now())["keys"][0]["outcomes"] == {"cancelled": 1}
    await rest.aclose()


async def test_a_real_vendor_that_hangs_up_is_unavailable() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = KeyPool([ApiKey("G1_1", SECRETS[0])])
    rest = RestClient(f"http://127.0.0.1:{port}", pool, JumpingClock(OPEN), Provider(), Metrics())
    with pytest.raises(VendorUnavailable) as error:
        await rest.price("USDCOP", "poll", retries=0)
    assert SECRETS[0] not in f"{error.value!r}"
    await rest.aclose()
    server.close()
    await server.wait_closed()


def test_only_this_machine_is_asked_without_a_proxy() -> None:
    for url in ("http://127.0.0.1:80", "ws://[::1]:9/x", "http://localhost"):
        assert is_loopback_url(url)
    for url in ("https://api.twelvedata.com", "http://10.0.0.1", "nonsense"):
        assert not is_loopback_url(url)


def test_infinity_survives_json_nowhere() -> None:
    """Saved state is JSON; an unused key's "never" must not become an invalid literal."""
    state = KeyPool([ApiKey("G1_1", SECRETS[0])]).export_state(float(OPEN))
    assert json.loads(json.dumps(state, allow_nan=False)) == state
    assert not any(value == math.inf for value in state.values())


def mixed_plans(request: httpx.Request) -> Answer:
    """The plan of the first key lacks BTC/USD; the second has no credits left in this minute."""
    if request.headers["authorization"].endswith(SECRETS[1]):
        return exhausted("current minute")
    if request.url.params["symbol"] == "BTC/USD":
        return refusal(404, "This symbol is available starting with the Grow plan.")
    return PRICE


async def test_a_question_that_waits_for_its_key_holds_up_no_other() -> None:
    """C10: only the key that rests may answer it; the other one is free for everything else."""
    clock = ManualClock(OPEN + 3600.0)
    pool = KeyPool([ApiKey(f"G1_{i + 1}", SECRETS[i]) for i in range(2)])
    provider = Provider("simulator")
    rest = RestClient("http://vendor.test", pool, clock, provider, Metrics(), Wire(mixed_plans))
    waiting = asyncio.create_task(rest.price("BTCUSD", "poll", retries=0))
    await clock.pass_time(10)
    assert not waiting.done()
    async with asyncio.timeout(5):
        assert await rest.price("USDCOP", "poll", retries=0) == 4101.25
    assert clock.now() == OPEN + 3610.0
    assert not waiting.done()
    # Those who ask the same wait in the order they came, and what is spent is booked as ever.
    asked = [asyncio.create_task(rest.price("USDCOP", "poll", retries=0)) for _ in range(3)]
    done: list[int] = []
    for _ in range(30):
        await clock.pass_time(1)
        done += [i for i, one in enumerate(asked) if one.done() and i not in done]
    assert done == [0, 1, 2]
    assert pool.snapshot(clock.now())["total_calls"] == 6
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await rest.aclose()


async def failing(*answers: Answer, times: int, keys: int = 2, retries: int = 0) -> list[Failure]:
    """What fails after the same question ``times`` times."""
    wire = Wire(*answers)
    clock = JumpingClock(OPEN + 3600.0)
    failures = Failures(clock)
    pool = KeyPool([ApiKey(f"G1_{i + 1}", SECRETS[i]) for i in range(keys)])
    rest = RestClient(
        "http://vendor.test",
        *(pool, clock, Provider("simulator"), Metrics(), wire),
        retries=retries,
        jitter=lambda: 1.0,
        failures=failures,
    )
    for _ in range(times):
        with suppress(VendorError):
            await rest.price("USDCOP", "poll")
    await rest.aclose()
    return list(failures.present)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (BROKEN, "The vendor answered 500: internal. While calls fail, no price"),
        (httpx.Response(520, text="gone"), "The vendor answered 520"),
        (GARBAGE, "/price"),
        (httpx.ConnectTimeout("slow"), "did not answer /price within"),
        (httpx.ConnectError("refused"), "cannot be reached for /price"),
    ],
)
async def test_two_calls_in_succession_that_fail_are_told_in_the_vendors_words(
    answer: Answer, said: str
) -> None:
    assert await failing(answer, times=1) == []
    (told,) = await failing(answer, times=2)
    assert told.part == "vendor REST"
    assert said in told.reason


async def test_a_call_that_its_retry_mends_is_no_failure_and_an_answer_ends_one() -> None:
    assert await failing(BROKEN, PRICE, times=1, retries=2) == []
    assert await failing(BROKEN, PRICE, BROKEN, PRICE, BROKEN, PRICE, times=6) == []
    assert len(await failing(BROKEN, times=1, retries=2)) == 1
    assert await failing(BROKEN, BROKEN, GARBAGE, PRICE, times=4) == []
    no_symbol = refusal(404, "**symbol** not found: XXX/YYY")
    assert await failing(BROKEN, BROKEN, no_symbol, times=3) == [], "a refusal is an answer"


async def test_what_is_said_of_a_key_is_neither_a_failure_nor_an_answer() -> None:
    wrong, spent = refusal(401, "**apikey** parameter is incorrect"), exhausted("minute")
    assert await failing(wrong, wrong, times=2, keys=2) == []
    assert len(await failing(BROKEN, spent, BROKEN, times=3, keys=3)) == 1


async def test_a_failure_is_forgotten_when_nobody_asks_any_more() -> None:
    clock = JumpingClock(OPEN)
    failures = Failures(clock)
    failing = RestFailures(failures, clock)
    for _ in range(2):
        failing.failed(VendorUnavailable("The vendor answered 500: no"))
    await clock.sleep(UNASKED_S - 1)
    failing.look()
    assert [one.part for one in failures.present] == [VENDOR_REST]
    failing.failed(VendorUnavailable("The vendor answered 500: no"))
    await clock.sleep(UNASKED_S - 1)
    failing.look()
    assert failures.of(VENDOR_REST) is not None, "somebody asked"
    await clock.sleep(1)
    failing.look()
    assert failures.present == ()
    failing.failed(VendorUnavailable("The vendor answered 500: no"))
    assert failures.present == (), "a new question may find a new fault"
