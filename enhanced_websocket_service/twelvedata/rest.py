"""Calls to the vendor's REST API: one key per call, errors classified, retries where they help.

Owns: HTTP, the choice of retry. Does not own: what an answer means (``answers``), who may call when
(``keys``), paging (one call is one page). The key travels in a header, never in a URL, and is removed
from every error text. Time-outs are real seconds; waiting for keys and back-off follow the clock.
"""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from ipaddress import ip_address
from typing import Literal, TypeVar
from urllib.parse import urlsplit

import httpx
import structlog

from enhanced_websocket_service import __version__
from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import (
    ConfigurationError,
    CreditsExhausted,
    InvalidKey,
    NoData,
    NotEntitled,
    VendorError,
    VendorUnavailable,
)
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.redaction import REDACTED
from enhanced_websocket_service.telemetry import Metrics

from . import answers
from .backoff import Backoff
from .keys import KeyPool, Lease, Outcome, Wait
from .protocol import vendor_symbol
from .rest_failures import RestFailures

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 8_000_000
"""Ten times a page of 5,000 bars; a vendor (or a proxy) that sends more is not believed."""

LOOK_S = 10.0
"""How often somebody who waits for a key looks whether one is free after all."""
_FAULTS_SHOWN = 3
Answer = TypeVar("Answer")


class _Waiting:
    """A call that has no key yet."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.wake = asyncio.Event()
        self.yields = False  # lets somebody go first who came earlier


class RestClient:
    """The vendor's REST API with a pool of keys. Close it with ``aclose``.

    Every call raises ``VendorError`` subclasses only. Calls wait for a key in the order they came, but one
    that waits for a key whose plan allows its question holds up none that another key may answer; a
    call that would wait longer than ``max_wait_s`` of the clock raises ``CreditsExhausted`` instead.
    Cancelling a call is safe at any moment. ``failures`` hears when calls fail in succession.
    """

    def __init__(
        self,
        base_url: str,
        keys: KeyPool,
        clock: Clock,
        provider: Provider,
        metrics: Metrics,
        transport: httpx.AsyncBaseTransport | None = None,
        timeout_s: float = 10.0,
        *,
        retries: int = 2,
        max_wait_s: float = 130.0,
        jitter: Callable[[], float] = random.random,
        failures: Failures | None = None,
    ) -> None:
        self.keys = keys
        self._clock = clock
        self._provider = provider
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._retries = retries
        self._max_wait_s = max_wait_s
        self._jitter = jitter
        self.shared: Callable[[], AbstractContextManager[None]] = nullcontext
        """Held, briefly, around every change of the ledgers: whoever shares them with other processes
        takes over theirs on entering and hands on ours on leaving, before the call is sent."""
        self.on_date: Callable[[float, float], None] | None = None
        """Told the ``Date`` header of every answer (unix seconds UTC), and how many seconds of the clock
        after the question it came; before the answer is used. Must not block."""
        # In the order they came: a long back-fill must not starve the polled price.
        self._waiting: list[_Waiting] = []
        self.failing = RestFailures(failures or Failures(clock), clock)
        self._http = http_client(base_url, timeout_s, transport)

    async def time_series(
        self,
        symbol: str,
        *,
        start: int,
        end: int,
        interval_s: int = 300,
        outputsize: int = 5000,
        purpose: str,
    ) -> list[Bar]:
        """One page of finished bars that open at ``start .. end`` (both inclusive), ascending.

        When the window holds more than ``outputsize`` bars the vendor silently sends those nearest
        ``end``. An empty window gives ``[]``. Rows that cannot be used are logged and left out.
        """
        params = answers.time_series_params(symbol, interval_s, start, end, outputsize)
        try:
            body, _ = await self._get("/time_series", params, purpose)
        except NoData:
            return []
        page = self._understood(
            lambda: answers.parse_bars(
                body,
                symbol=symbol,
                interval_s=interval_s,
                now=self._clock.now(),
                source=self._provider.bars,
            )
        )
        if page.faults:
            log.warning(
                "Vendor bars left out because they cannot be used",
                symbol=symbol,
                count=len(page.faults),
                examples=page.faults[:_FAULTS_SHOWN],
            )
            self._metrics.vendor_frames.labels("bad_bar").inc(len(page.faults))
        self.keys.got(purpose, "bars", len(page.bars))
        return page.bars

    async def price(self, symbol: str, purpose: str, *, retries: int | None = None) -> float:
        """The vendor's current price of ``symbol``; it has no stamp."""
        params = {"symbol": vendor_symbol(symbol)}
        body, _ = await self._get("/price", params, purpose, retries)
        price = self._understood(lambda: answers.parse_price(body))
        self.keys.got(purpose, "prices")
        return price

    async def quote(self, symbol: str, purpose: str) -> answers.DailyQuote:
        """The running day of ``symbol``."""
        body, _ = await self._get("/quote", {"symbol": vendor_symbol(symbol)}, purpose)
        quote = self._understood(lambda: answers.parse_quote(body, symbol))
        self.keys.got(purpose, "quotes")
        return quote

    async def api_usage(self, purpose: str = "usage") -> answers.ApiUsage:
        """Usage and limits of the key whose turn it is; the pool learns them."""
        body, lease = await self._get("/api_usage", {}, purpose)
        return self._learn(body, lease)

    async def try_disabled(self, overdue_s: float) -> None:
        """Ask with each disabled key whose hour has been over for ``overdue_s`` whether it is accepted
        again. The call costs a credit of that key, and is not repeated.

        :raises VendorError: an accepted key's usage cannot be read.
        """
        while True:
            with self.shared():
                lease = self.keys.trial(self._clock.now(), overdue_s)
            if lease is None:
                return
            self._metrics.credits_spent.labels(lease.purpose).inc(lease.credits)
            body, error = await self._call(lease, "/api_usage", {})
            if error is None:
                log.info("API key accepted again", key=lease.key.label)
                self._learn(body, lease)
            else:
                log.info("API key tried again", key=lease.key.label, error=str(error))

    async def earliest_timestamp(
        self, symbol: str, interval_s: int = 300, purpose: str = "backfill"
    ) -> int:
        """The open of the vendor's first bar, unix seconds UTC."""
        params = {
            "symbol": vendor_symbol(symbol),
            "interval": answers.interval_name(interval_s),
            "timezone": "UTC",
        }
        body, _ = await self._get("/earliest_timestamp", params, purpose)
        return self._understood(lambda: answers.parse_earliest(body))

    async def ask_time(self) -> None:
        """Ask for nothing, without a key and a credit: the answer, whatever it is, has a ``Date`` header.

        :raises VendorError: there was none.
        """
        await self._exchange("/", {}, {})

    async def aclose(self) -> None:
        """Close the connections. Calls still running fail."""
        await self._http.aclose()

    def _learn(self, body: bytes, lease: Lease) -> answers.ApiUsage:
        usage = self._understood(lambda: answers.parse_usage(body))
        with self.shared():
            self.keys.learn_limits(
                lease,
                self._clock.now(),
                minute=usage.plan_limit,
                day=usage.plan_daily_limit,
                day_used=usage.daily_usage,
            )
        return usage

    def _understood(self, parse: Callable[[], Answer]) -> Answer:
        try:
            answer = parse()
        except VendorError as error:
            self.failing.failed(error)
            raise
        self.failing.answered()
        return answer

    async def _get(
        self, path: str, params: dict[str, str], purpose: str, retries: int | None = None
    ) -> tuple[bytes, Lease]:
        backoff = Backoff(base=1.0, cap=30.0, jitter=self._jitter)
        retries = self._retries if retries is None else retries
        topic = topic_of(path, params.get("symbol", ""))
        last: VendorError | None = None
        asked = self._clock.elapsed()
        while True:
            lease = await self._lease(purpose, topic, asked, last)
            body, error = await self._call(lease, path, params)
            if error is None:
                return body, lease
            if isinstance(error, InvalidKey | CreditsExhausted | NotEntitled):
                # The pool now knows that this key must rest, or that its plan is too small; the next
                # one may do.
                log.warning("API key refused", key=lease.key.label, path=path, error=str(error))
                last = error
                continue
            if isinstance(error, VendorUnavailable) and backoff.failures < retries:
                await self._clock.sleep(backoff.next())
                continue
            raise error

    async def _lease(
        self, purpose: str, topic: str, asked: float, last: VendorError | None
    ) -> Lease:
        mine = _Waiting(topic)
        self._waiting.append(mine)
        try:
            while True:
                now = self._clock.now()
                if (first := self._ahead_of(mine, now)) is not None:
                    first.wake.set()
                    mine.yields = True
                    await mine.wake.wait()
                    mine.yields = False
                    mine.wake.clear()
                    continue
                with self.shared():
                    answer = self.keys.acquire(now, 1, purpose, topic=topic)
                if not isinstance(answer, Wait):
                    self._metrics.credits_spent.labels(purpose).inc(answer.credits)
                    return answer
                self._must_wait(answer, now, asked, last)
                for one in self._waiting:
                    if one.yields:  # in vain, as it turned out: others have spent the credit
                        one.wake.set()
                # Not in one go: how long was found by a clock that may be set meanwhile.
                look_s = self._clock.span(LOOK_S, at_least_real=0.25)
                await self._pause(mine, max(0.001, min(answer.until - now, look_s)))
        finally:
            place = self._waiting.index(mine)
            del self._waiting[place]
            for later in self._waiting[place:]:
                later.wake.set()

    def _ahead_of(self, mine: "_Waiting", now: float) -> "_Waiting | None":
        """Who came earlier and may have a key at once: it is about to wake up, and goes first."""
        for one in self._waiting:
            if one is mine:
                return None
            if self.keys.free_at(now, one.topic) <= now:
                return one
        return None

    def _must_wait(self, answer: Wait, now: float, asked: float, last: VendorError | None) -> None:
        """:raises VendorError: waiting is in vain, or would take too long."""
        if answer.refused:
            raise NotEntitled(answer.reason)
        if answer.until == float("inf"):
            raise InvalidKey(
                f"No usable API key is left ({last or answer.reason}). "
                "Check the TWELVEDATA_API_KEY settings; each key is tried again once an hour."
            )
        wait_s = answer.until - now
        if self._clock.elapsed() - asked + wait_s > self._max_wait_s:
            scope: Literal["minute", "day"] = "day" if wait_s > 3600 else "minute"
            raise CreditsExhausted(
                f"No API key is free for another {wait_s:.0f} s "
                f"({answer.reason}); more keys or a larger plan would help.",
                scope,
            )

    async def _pause(self, mine: "_Waiting", seconds: float) -> None:
        """Sleep so long, or until somebody ahead has left."""
        sleeping = asyncio.create_task(self._clock.sleep(seconds), name="key-is-free")
        woken = asyncio.create_task(mine.wake.wait(), name="key-turn")
        try:
            await asyncio.wait({sleeping, woken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            woken.cancel()
            await asyncio.gather(sleeping, woken, return_exceptions=True)
            mine.wake.clear()

    async def _call(
        self, lease: Lease, path: str, params: dict[str, str]
    ) -> tuple[bytes, VendorError | None]:
        """One request with one key; the pool is told how it ended, even when cancelled."""
        began = time.perf_counter()
        outcome: Outcome = "cancelled"
        latency_ms: float | None = None
        header_credits: tuple[int, int] | None = None
        error: VendorError | None = None
        body = b""
        try:
            try:
                key = {"Authorization": f"apikey {lease.key.secret}"}
                status, headers, body = await self._exchange(path, params, key)
                header_credits = answers.credit_headers(headers)
                error = answers.classify_error(status, body)
                secret = lease.key.secret.encode()
                if error is not None and secret in body:
                    error = answers.classify_error(status, body.replace(secret, REDACTED.encode()))
            except VendorUnavailable as unreachable:
                error = unreachable
            latency_ms = (time.perf_counter() - began) * 1000.0
            outcome = _outcome(error)
            if error is not None:
                self.failing.failed(error)
        finally:
            now = self._clock.now()
            with self.shared():
                self.keys.report(
                    lease,
                    outcome,
                    now,
                    latency_ms=latency_ms,
                    header_credits=header_credits,
                    stated=answers.credit_figures(str(error)) if error is not None else None,
                    detail=str(error) if error is not None else "",
                )
            self._metrics.vendor_calls.labels(outcome).inc()
            self._metrics.credits_left.set(self.keys.left(now))
        return body, error

    async def _exchange(
        self, path: str, params: dict[str, str], headers: dict[str, str]
    ) -> tuple[int, httpx.Headers, bytes]:
        body = bytearray()
        asked = self._clock.elapsed()
        try:
            # httpx limits each read; a body that drips in needs a limit on the whole.
            async with (
                asyncio.timeout(3.0 * self._timeout_s),
                self._http.stream("GET", path, params=params, headers=headers) as answer,
            ):
                if (
                    self.on_date is not None
                    and (date := answers.http_date(answer.headers)) is not None
                ):
                    self.on_date(date, self._clock.elapsed() - asked)
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        raise VendorUnavailable(
                            f"The vendor's {path} answer exceeds {MAX_BODY_BYTES} bytes."
                        )
                return answer.status_code, answer.headers, bytes(body)
        except (httpx.TimeoutException, TimeoutError) as error:
            raise VendorUnavailable(
                f"The vendor did not answer {path} within {self._timeout_s:g} s."
            ) from error
        except httpx.HTTPError as error:
            raise VendorUnavailable(
                f"The vendor cannot be reached for {path}: {type(error).__name__}: {error}"
            ) from error


def http_client(
    base_url: str, timeout_s: float, transport: httpx.AsyncBaseTransport | None = None
) -> httpx.AsyncClient:
    """Connections to the vendor, by the proxy that the environment names, if any.

    :raises ConfigurationError: the address, or that of the proxy, is none that can be used.
    """
    try:
        httpx.URL(base_url)
    except httpx.InvalidURL:
        # Without its words: they may quote the part with the password.
        raise ConfigurationError(
            "TWELVEDATA_REST_URL cannot be understood. It looks like https://host:port/path."
        ) from None
    try:
        return httpx.AsyncClient(
            base_url=base_url,
            transport=transport,
            timeout=httpx.Timeout(timeout_s),
            follow_redirects=False,  # the key must not travel to wherever a redirect points
            trust_env=not is_loopback_url(base_url),
            headers={
                "Accept": "application/json",
                "User-Agent": f"enhanced-websocket-service/{__version__}",
            },
        )
    except (httpx.InvalidURL, ValueError, ImportError):
        raise ConfigurationError(
            "The proxy that the environment names (HTTPS_PROXY, HTTP_PROXY or ALL_PROXY) cannot be used: its "
            "address must look like http://host:port; SOCKS is not supported. Unset it, or name the vendor's "
            "host in NO_PROXY."
        ) from None


def topic_of(path: str, symbol: str) -> str:
    """What a plan includes or excludes: an endpoint, for a symbol."""
    return f"{path} {symbol}".strip()


def is_loopback_url(url: str) -> bool:
    """Whether ``url`` points at this machine: no proxy of the environment must come between."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _outcome(error: VendorError | None) -> Outcome:
    if isinstance(error, InvalidKey):
        return "invalid_key"
    if isinstance(error, CreditsExhausted):
        return "day_exhausted" if error.scope == "day" else "minute_exhausted"
    if isinstance(error, NotEntitled):
        return "not_entitled"
    if isinstance(error, VendorUnavailable):
        return "unavailable"
    return "ok"
