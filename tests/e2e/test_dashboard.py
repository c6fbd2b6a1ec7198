"""The dashboard and the API page in a real browser: live, self-contained, resuming after a cut."""

import os
import shutil
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from enhanced_websocket_service.market.calendar import named_calendar
from enhanced_websocket_service.market.events import EpochStarted, StatusChanged
from enhanced_websocket_service.serving.models import PartHealth
from tests.unit.serving.fakes import (
    EPOCH,
    NOON,
    FakeService,
    Running,
    bar,
    bar_update,
    running,
    tick,
)

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


def _chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    if os.environ.get("EWS_REQUIRE_BROWSER") == "1":
        pytest.fail("EWS_REQUIRE_BROWSER=1, but there is no chromium on this machine")
    pytest.skip("needs chromium, which is not on this machine")


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    path = _chromium()
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield opened
        await opened.close()


@pytest.fixture
async def api() -> AsyncIterator[Running]:
    service = FakeService()
    service.stored_bars = [
        bar(n, open=4100.0 + n, close=4100.5 + n, low=4099.0 + n, high=4102.0 + n)
        for n in range(30)
    ]
    async with running(service) as started:
        started.hub.on_events([EpochStarted("USDCOP", EPOCH, None, None)])
        yield started


class Watched:
    """A page, and everything about it that must not happen."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.sockets: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("console", self._console)
        page.on("request", lambda request: self._request(request.url, origin))
        page.on("websocket", lambda socket: self.sockets.append(socket.url))

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning") and "ERR_CONNECTION" not in message.text:
            self.faults.append(f"{message.type}: {message.text}")

    def _request(self, url: str, origin: str) -> None:
        self.requests.append(url)
        if not url.startswith((origin, "data:", "blob:")):
            self.faults.append(f"asked {url}")


async def open_page(browser: Browser, api: Running, path: str = "/", **options: Any) -> Watched:
    context = await browser.new_context(**options)
    watched = Watched(await context.new_page(), api.url)
    await watched.page.goto(f"{api.url}{path}")
    return watched


def live_tick(offset: int, **changes: Any) -> Any:
    """A tick of the present minute of the test's clock."""
    return tick(offset, timestamp=int(NOON) + offset, received_at=NOON + offset, **changes)


async def test_the_dashboard_is_live_and_contacts_nobody_else(
    browser: Browser, api: Running
) -> None:
    watched = await open_page(browser, api)
    page = watched.page
    await expect(page.locator("#state")).to_have_text("active")
    await expect(page.locator("#link-text")).to_have_text("live")
    await expect(page.locator("#reason")).to_have_text("The session is open.")
    await expect(page.locator("#verdict")).to_have_text("live")
    await expect(page.locator("#completeness")).to_have_text("98.7 %")
    await expect(page.locator("#calls")).to_have_text("127")
    await expect(page.locator("#clients")).to_have_text("1")
    await expect(page.locator("#countdown")).to_have_text("2:24:45")
    await expect(page.locator("#session-hours")).to_have_text("Trading day · 08:00–12:55 COT")
    await expect(page.locator("#chart .trace.boxes, #chart .boxlayer path").first).to_be_attached()

    api.hub.on_events([live_tick(1, price=4133.5), live_tick(2, price=4134.75)])
    await expect(page.locator("#price")).to_have_text("4,134.75")
    await expect(page.locator("#ticks")).to_have_text("2")
    await expect(page.locator("#change")).to_contain_text("+34.75")
    api.hub.on_events([bar_update(30, 2)])
    await expect(page.locator("#log")).to_contain_text("bar closed")

    api.service.state, api.service.reason = "market_closed", "The session is over."
    api.hub.on_events([StatusChanged("market_closed", "The session is over.", "closed", NOON + 10)])
    await expect(page.locator("#state")).to_have_text("market closed")
    await expect(page.locator("#log")).to_contain_text("The session is over.")
    assert watched.faults == []


async def test_it_says_whether_the_work_is_done_and_why_not(browser: Browser, api: Running) -> None:
    watched = await open_page(browser, api, viewport={"width": 390, "height": 844})
    page = watched.page
    await expect(page.locator("#health")).to_have_text("healthy")
    await expect(page.locator("#problems-card")).to_be_hidden()
    cause = f"PostgreSQL at {'a-folder/' * 20}.s.PGSQL.5432 cannot be reached: <b>refused</b>"
    api.service.database = PartHealth(connected=False, error=cause)
    await expect(page.locator("#health")).to_have_text("degraded")
    await expect(page.locator("#problems li")).to_have_text([f"Database is not connected: {cause}"])
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    api.service.database = PartHealth(connected=True, response_time_ms=2)
    await expect(page.locator("#problems-card")).to_be_hidden()
    assert watched.faults == []


async def test_the_hours_are_those_of_the_market(browser: Browser, api: Running) -> None:
    api.service.calendar = named_calendar("fx")
    watched = await open_page(browser, api)
    hours = watched.page.locator("#session-hours")
    await expect(hours).to_have_text("Trading day · 17:00–17:00 America/New York")
    assert watched.faults == []


async def test_it_resumes_after_a_cut(browser: Browser, api: Running) -> None:
    watched = await open_page(browser, api)
    page = watched.page
    await expect(page.locator("#link-text")).to_have_text("live")
    api.hub.on_events([live_tick(n) for n in range(1, 6)])
    await expect(page.locator("#ticks")).to_have_text("5")
    api.hub.close_all()
    api.hub.on_events([live_tick(n) for n in range(6, 11)])  # nobody is connected
    await expect(page.locator("#ticks")).to_have_text("10", timeout=15_000)
    assert watched.sockets[-1].endswith(f"?since=USDCOP:{EPOCH}:5")
    assert watched.faults == []


async def test_it_fits_a_phone_and_follows_the_theme(browser: Browser, api: Running) -> None:
    watched = await open_page(
        browser, api, viewport={"width": 390, "height": 844}, color_scheme="light"
    )
    page = watched.page
    await expect(page.locator("#state")).to_have_text("active")
    assert await page.evaluate("document.documentElement.dataset.theme") == "light"
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    await page.click("#theme")
    assert await page.evaluate("document.documentElement.dataset.theme") == "dark"
    await page.click('[data-style="line"]')
    await expect(page.locator("#chart .scatterlayer path.js-line")).to_be_attached()
    assert watched.faults == []


async def test_without_history_it_says_so(browser: Browser, api: Running) -> None:
    api.service.stored_bars = []
    api.service.database_down = True
    watched = await open_page(browser, api)
    await expect(watched.page.locator("#log")).to_contain_text("database cannot be reached")
    await expect(watched.page.locator("#price")).to_have_text("–")
    api.hub.on_events([live_tick(1)])
    await expect(watched.page.locator("#price")).to_have_text("4,100.01")


async def test_the_api_page_works_without_a_cdn(browser: Browser, api: Running) -> None:
    watched = await open_page(browser, api, "/docs")
    page = watched.page
    await expect(page.locator(".opblock-summary-path", has_text="/market/latest")).to_be_visible()
    await page.locator(".opblock-summary-path", has_text="/market/session").click()
    await page.get_by_role("button", name="Try it out").click()
    await page.get_by_role("button", name="Execute").click()
    await expect(page.locator(".live-responses-table .response-col_status").last).to_contain_text(
        "200"
    )
    assert watched.faults == []


def test_the_moment_of_these_tests_is_in_a_session() -> None:
    assert datetime.fromtimestamp(NOON).astimezone().timestamp() == NOON
