"""``/ws/{symbol}?from=&speed=`` and resuming from the store, on real sockets."""

import asyncio
import contextlib
import json
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from enhanced_websocket_service.market.events import EpochStarted, Event
from enhanced_websocket_service.serving.hub import Limits
from tests.unit.serving.fakes import EPOCH, FakeService, Running, bar_update, running, tick, until

OPEN_TEXT = "2025-06-04T08:00:00-05:00"
EARLIER = EPOCH - 1


async def message(client: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(40):
        received: dict[str, Any] = json.loads(await client.recv())
        return received


def journaled() -> FakeService:
    """A service that was restarted: 1,205 ticks of an earlier epoch, and a bar, are in the store."""
    service = FakeService()
    before: list[Event] = [EpochStarted("USDCOP", EARLIER, None, None)]
    before += [tick(n, epoch=EARLIER) for n in range(1, 1204)]
    before += [bar_update(0, 1203, epoch=EARLIER)]
    before += [tick(1204, epoch=EARLIER), tick(1205, epoch=EARLIER, trading_session=False)]
    service.store.journal(before)  # type: ignore[arg-type]
    return service


def restart(api: Running, service: FakeService) -> None:
    api.hub.seed(tick(1204, epoch=EARLIER))
    publish(api, service, [EpochStarted("USDCOP", EPOCH, EARLIER, 1205), tick(1), tick(2)])


def publish(api: Running, service: FakeService, events: list[Event]) -> None:
    service.store.journal(events)  # type: ignore[arg-type]
    api.hub.on_events(events)


async def collect(client: ClientConnection, last: tuple[int, int]) -> list[dict[str, Any]]:
    found = []
    while not found or (found[-1].get("epoch"), found[-1].get("offset")) != last:
        found.append(await message(client))
    return found


EVERYTHING = [
    *((EARLIER, n) for n in range(1, 1206)),
    (EPOCH, 1),
    (EPOCH, 2),
    (EPOCH, 3),
]


def account(messages: list[dict[str, Any]]) -> list[tuple[int, int]]:
    keys = []
    for one in messages:
        if one["type"] == "market_data":
            keys.append((one["epoch"], one["offset"]))
        elif one["type"] == "skipped":
            keys += [(one["epoch"], n) for n in range(one["from"], one["to"] + 1)]
    return keys


@pytest.mark.parametrize("cursor", [f"USDCOP:{EARLIER}:7", f"{EARLIER}:7"])
async def test_resuming_from_before_a_restart_goes_through_the_store(cursor: str) -> None:
    service = journaled()
    async with running(service) as api:
        restart(api, service)
        async with connect(f"{api.ws}/ws/USDCOP?since={cursor}") as client:
            got = await collect(client, (EPOCH, 2))
            publish(api, service, [tick(3)])
            got += await collect(client, (EPOCH, 3))
    assert account(got) == EVERYTHING[7:]
    assert [m["reason"] for m in got if m["type"] == "skipped"] == ["not_published"]
    assert sum(m["type"] == "bar" for m in got) == 1
    assert not any("replayed" in m for m in got)


async def test_resume_on_an_open_connection_reaches_the_store_too() -> None:
    service = journaled()
    async with running(service) as api:
        restart(api, service)
        async with connect(f"{api.ws}/ws") as client:
            assert (await message(client))["type"] == "welcome"
            assert (await message(client))["snapshot"] is True
            request = {"type": "resume", "symbol": "USDCOP", "epoch": EARLIER, "offset": 1200}
            await client.send(json.dumps(request))
            got = await collect(client, (EPOCH, 2))
    assert account(got) == EVERYTHING[1200:-1]


async def test_time_travel_replays_and_joins_live() -> None:
    service = journaled()
    async with running(service) as api:
        restart(api, service)
        async with connect(f"{api.ws}/ws/usdcop?from={OPEN_TEXT}") as client:
            assert (await message(client))["type"] == "welcome"
            got = await collect(client, (EPOCH, 2))
            publish(api, service, [tick(3)])
            live = await collect(client, (EPOCH, 3))
    assert account(got + live) == EVERYTHING
    assert all(m["replayed"] for m in got if m["type"] in ("market_data", "bar"))
    assert sum(m["type"] == "bar" for m in got) == 1
    assert "replayed" not in live[-1]


async def test_time_travel_at_a_pace() -> None:
    """Twenty minutes of ticks at 3,000 times their pace take 0.4 s, and not less."""
    service = journaled()
    async with running(service) as api:
        restart(api, service)
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with connect(f"{api.ws}/ws/USDCOP?from={OPEN_TEXT}&speed=3000") as client:
            got = await collect(client, (EPOCH, 2))
        assert loop.time() - began >= 1203 / 3000
    assert account(got) == EVERYTHING[:-1]


async def test_time_travel_in_a_slow_clients_own_time(capfd: pytest.CaptureFixture[str]) -> None:
    service = journaled()
    limits = Limits(high_water=4096, low_water=512)
    async with running(service, limits) as api:
        restart(api, service)
        async with connect(f"{api.ws}/ws/USDCOP?from={OPEN_TEXT}", max_queue=1) as client:
            got = await collect(client, (EPOCH, 2))
    assert account(got) == EVERYTHING[:-1]
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/ws/USDCOP?from=yesterday", "bad_from"),
        ("/ws/USDCOP?from=2099-01-01", "bad_from"),
        (f"/ws?from={OPEN_TEXT}", "bad_from"),
        (f"/ws/USDCOP?from={OPEN_TEXT}&since=1:1", "bad_from"),
        (f"/ws/USDCOP?from={OPEN_TEXT}&mode=latest", "bad_from"),
        ("/ws/USDCOP?speed=2", "bad_speed"),
        (f"/ws/USDCOP?from={OPEN_TEXT}&speed=-1", "bad_speed"),
        (f"/ws/USDCOP?from={OPEN_TEXT}&speed=nan", "bad_speed"),
        (f"/ws/USDCOP?from={OPEN_TEXT}&speed=fast", "bad_speed"),
    ],
)
async def test_bad_times_are_explained(path: str, code: str) -> None:
    async with running() as api, connect(api.ws + path) as client:
        assert (await message(client))["code"] == code
        with pytest.raises(ConnectionClosed):
            await message(client)
        assert client.close_code == 4400


async def test_without_a_store_time_travel_says_so() -> None:
    service = journaled()
    service.database_down = True
    async with running(service) as api:
        restart(api, service)
        async with connect(f"{api.ws}/ws/USDCOP?from={OPEN_TEXT}") as client:
            got = []
            with contextlib.suppress(ConnectionClosed):
                while True:
                    got.append(await message(client))
            assert client.close_code == 1013
    assert got[-1]["code"] == "unavailable"


async def test_clients_that_leave_while_they_read_leave_nothing_behind() -> None:
    service = journaled()
    async with running(service) as api:
        restart(api, service)
        for _ in range(20):
            async with connect(f"{api.ws}/ws/USDCOP?from={OPEN_TEXT}&speed=1") as client:
                await message(client)
                client.transport.abort()
        await until(lambda: api.hub.counts().connected == 0)
        stream = api.hub.stored
        assert stream is not None
        await until(lambda: not stream.fetching)
