"""Who collects, as a real Valkey shows it: what stands there, and what an account may not ask."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis.asyncio

from enhanced_websocket_service.bus.collector import PART, RedisCollector
from enhanced_websocket_service.bus.names import RedisNames
from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.failures import Failures

KEY = RedisNames().collector
OURS, THEIRS = "11111111-0000-4000-8000-000000000000", "22222222-0000-4000-8000-000000000000"


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Any]:
    client = redis.asyncio.Redis.from_url(valkey_url, decode_responses=True)
    yield client
    await client.aclose()


def mark(url: str, owner: str, failures: Failures) -> RedisCollector:
    return RedisCollector(url, owner=owner, name=f"the host of {owner[0]}", failures=failures)


async def test_who_collects_is_shown_to_the_others_until_it_does_not(valkey_url: str) -> None:
    failures = Failures(SystemClock())
    ours, theirs = (mark(valkey_url, owner, failures) for owner in (OURS, THEIRS))
    assert await ours.other() is None
    await theirs.show(7)
    assert await ours.other() == "the host of 2"
    assert await theirs.other() is None
    await ours.clear()
    assert await ours.other() == "the host of 2"
    await theirs.clear()
    assert await ours.other() is None
    for one in (ours, theirs):
        await one.close()


@pytest.mark.parametrize("kind", ["text", "endless", "hash"])
async def test_what_no_instance_writes_is_named_and_is_nobody(
    valkey_url: str, client: Any, kind: str
) -> None:
    failures = Failures(SystemClock())
    ours = mark(valkey_url, OURS, failures)
    if kind == "hash":
        await client.hset(KEY, "owner", THEIRS)
    elif kind == "text":
        await client.set(KEY, "somebody", px=5_000)
    else:
        await client.set(KEY, f'{{"owner":"{THEIRS}","name":"x","epoch":1}}')
    assert await ours.other() is None
    assert [one.part for one in failures.present] == [PART]
    await client.delete(KEY)
    assert await ours.other() is None
    assert failures.present == ()
    await ours.close()


@pytest.mark.parametrize("refused", ["get", "pttl"])
async def test_an_account_that_may_not_ask_knows_nobody_and_finds_nothing_foreign(
    valkey_url: str, client: Any, refused: str
) -> None:
    failures = Failures(SystemClock())
    theirs = mark(valkey_url, THEIRS, failures)
    await theirs.show(7)
    await client.execute_command("ACL", "SETUSER", "few", "on", ">pw", "~*", "+@all", f"-{refused}")
    parts = urlsplit(valkey_url)
    where = (
        f"unix://few:pw@{parts.path}"
        if parts.scheme == "unix"
        else f"redis://few:pw@{parts.hostname}:{parts.port}/0"
    )
    few = mark(where, OURS, failures)
    assert await few.other() is None
    assert failures.present == ()
    await client.execute_command("ACL", "DELUSER", "few")
    for one in (few, theirs):
        await one.close()
