"""The requirements' JavaScript, as it is written, in a real browser; and pages that may not connect."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright

from tests.requirements.facts import JAVASCRIPT
from tests.unit.serving.fakes import Running, running, tick, until

from .test_dashboard import ARGUMENTS, _chromium

SERVICE = "http://localhost:8080"
OTHER = "http://other.example:8080"


@pytest.fixture
async def api() -> AsyncIterator[Running]:
    async with running() as started:
        started.hub.on_events([tick(1)])
        yield started


@pytest.fixture
async def page(api: Running) -> AsyncIterator[Page]:
    """A browser for which both names lead to the server of the test."""
    port = api.server.port
    rules = ", ".join(
        f"MAP {name}:8080 127.0.0.1:{port}" for name in ("localhost", "other.example")
    )
    path = _chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=path, args=[*ARGUMENTS, f"--host-resolver-rules={rules}"]
        )
        yield await browser.new_page()
        await browser.close()


class Said:
    """What a page wrote to its console."""

    def __init__(self, page: Page) -> None:
        self.texts: list[str] = []
        self.values: list[Any] = []
        page.on("console", self._hear)

    async def _hear(self, message: Any) -> None:
        self.texts.append(message.text)
        self.values += [await argument.json_value() for argument in message.args]

    def about(self, text: str) -> bool:
        return any(line.startswith(text) for line in self.texts)


async def test_the_requirements_javascript(api: Running, page: Page) -> None:
    said = Said(page)
    await page.goto(f"{SERVICE}/health/live")  # a page of the service, without scripts of its own
    await page.evaluate(f"() => {{ {JAVASCRIPT} }}")
    await until(lambda: said.about("Connected to Enhanced WebSocket Service"), timeout=20)
    await until(lambda: "active" in said.values, timeout=20)
    await until(lambda: api.hub.counts().connected == 2, timeout=20)
    api.hub.on_events([tick(2)])
    await until(lambda: any(_price(value) == 4100.02 for value in said.values), timeout=20)
    assert said.about("Price update:")
    assert said.about("Server status: active")


def _price(value: Any) -> float | None:
    return value.get("price") if isinstance(value, dict) else None


_CONNECT = """
    (url) => new Promise((resolve) => {
        const ws = new WebSocket(url);
        ws.onopen = () => { ws.close(); resolve("open"); };
        ws.onerror = () => resolve("refused");
    })
"""


async def test_pages_of_other_origins_get_no_connection(api: Running, page: Page) -> None:
    socket = "ws://localhost:8080/ws"
    await page.goto(f"{OTHER}/health/live")
    async with asyncio.timeout(20):
        assert await page.evaluate(_CONNECT, socket) == "refused"
        assert await page.evaluate(_CONNECT, "ws://other.example:8080/ws") == "open"
    assert api.server.admission.refusals == {"origin": 1}
