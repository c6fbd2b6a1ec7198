"""Why Redis cannot be used: where it was looked for and what it answered; no password."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from enhanced_websocket_service.bus.redis import REDIS, RedisBus
from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.errors import BusUnavailable
from enhanced_websocket_service.failures import Failures
from tests.storage_samples import ticks
from tests.waiting import eventually

PASSWORD = "s3cr3t-pw"


async def refusal(url: str) -> str:
    """What a ping to ``url`` ends with."""
    bus = RedisBus(url, timeout_s=1.0)
    with pytest.raises(BusUnavailable) as caught:
        await bus.ping()
    await bus.close()
    assert "s3cr3t" not in str(caught.value)
    return str(caught.value)


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[int]:
    """A port whose owner answers every command with the next of ``answers``, then with nothing."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.read(4096)
            writer.write(answer)
        await over.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        over.set()
        server.close()


@pytest.fixture
async def admin(valkey_url: str) -> AsyncIterator[Any]:
    async with contextlib.aclosing(redis.asyncio.Redis.from_url(valkey_url)) as client:
        yield client


@asynccontextmanager
async def guarded(admin: Any) -> AsyncIterator[None]:
    """The server wants a password meanwhile."""
    await admin.config_set("requirepass", PASSWORD)
    try:
        yield
    finally:
        await admin.config_set("requirepass", "")


def with_login(url: str, login: str) -> str:
    return url.replace("unix://", f"unix://{login}@")


async def test_nothing_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said = await refusal(f"redis://:{PASSWORD}@127.0.0.1:{port}/3")
    assert said == (
        f"Redis at 127.0.0.1:{port}/3 cannot be reached: connection refused, nothing listens there."
    )


async def test_a_name_that_nobody_knows_and_no_socket(tmp_path: Path) -> None:
    said = await refusal(f"redis://:{PASSWORD}@no-such-host.invalid")
    assert "Redis at no-such-host.invalid:6379/0 cannot be reached: its name is not known" in said
    said = await refusal(f"unix://:{PASSWORD}@{tmp_path}/none.sock")
    assert f"Redis at {tmp_path}/none.sock (database 0) cannot be reached: there is no such" in said


async def test_who_listens_says_nothing() -> None:
    async with answering() as port:
        said = await refusal(f"redis://127.0.0.1:{port}")
    assert said == f"Redis at 127.0.0.1:{port}/0 cannot be reached: no answer in 1 s."


async def test_it_is_loading_and_it_does_not_know_auth() -> None:
    loading = b"-LOADING Redis is loading the dataset in memory\r\n"
    async with answering(*[loading] * 5) as port:
        assert await refusal(f"redis://127.0.0.1:{port}") == (
            f"Redis at 127.0.0.1:{port}/0 is LOADING its data and answers once it has."
        )
    echo = f"-ERR unknown command 'HELLO', with args beginning with: '{PASSWORD}'\r\n".encode()
    async with answering(*[echo] * 5) as port:
        said = await refusal(f"redis://:{PASSWORD}@127.0.0.1:{port}")
    assert "refused: unknown command" in said.replace("ERR ", "")


async def test_it_wants_a_password(admin: Any, valkey_url: str) -> None:
    async with guarded(admin):
        said = await refusal(valkey_url)
        assert "refused: NOAUTH, it wants a password. Name it in REDIS_URL." in said
        said = await refusal(with_login(valkey_url, ":s3cr3t-wrong"))
        assert "refused: WRONGPASS, user or password is wrong. Correct REDIS_URL." in said
        said = await refusal(with_login(valkey_url, f"nobody:{PASSWORD}"))
        assert "user nobody) refused: WRONGPASS" in said
        bus = RedisBus(with_login(valkey_url, f":{PASSWORD}"))
        assert await bus.ping() > 0
        await bus.close()


async def test_a_right_that_the_user_lacks(admin: Any, valkey_url: str) -> None:
    await admin.acl_setuser("reader", enabled=True, passwords=[f"+{PASSWORD}"], commands=["+info"])
    try:
        said = await refusal(with_login(valkey_url, f"reader:{PASSWORD}"))
    finally:
        await admin.acl_deluser("reader")
    assert "user reader) refused: NOPERM " in said
    assert "no permissions to run" in said
    assert "ACL SETUSER" in said


async def test_a_database_that_it_does_not_have(valkey_url: str) -> None:
    said = await refusal(f"{valkey_url.partition('?')[0]}?db=999")
    assert "(database 999) refused: DB index is out of range." in said


async def test_what_it_answered_stays_until_it_serves_again(admin: Any, valkey_url: str) -> None:
    failures = Failures(SystemClock())
    bus = RedisBus(valkey_url, failures=failures, longest_backoff_s=0.1)

    async def told() -> str | None:
        failure = failures.of(REDIS)
        return None if failure is None else failure.reason

    async with guarded(admin):
        running = asyncio.create_task(bus.run())
        said = await eventually(told, 10, "what it answered")
        assert "NOAUTH" in said
        assert bus.status()["last_error"] == said
    bus.publish(ticks(3))
    assert await bus.drain(10)
    assert failures.present == ()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await bus.close()
