"""Every way in which a part can fail, and what ``/health`` must say of it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg

from enhanced_websocket_service.chaos.parts import Part

from .stage import Installation, Instance

WITHIN_S = 10.0
"""From the first work not done until ``/health`` is not healthy; seconds of the machine."""
BACK_OFF_S = 5.0
"""The longest wait between two attempts at a part that failed; the drain of the backlog comes on top."""

STOPPED_S, RUNNING_S = 0.4, 0.2
"""What makes a server slow: it does nothing for two thirds of the time."""

Act = Callable[[Installation, Instance], Awaitable[None]]


@dataclass(frozen=True)
class Cell:
    """One way of one hop.

    :param names: what a problem of ``/health`` must match while it lasts: the hop and the cause.
    :param how: what is done, for the page.
    :param silent: nothing shows because no work is owed or the work is done: healthy is right.
    """

    hop: str
    way: str
    how: str
    names: str
    begin: Act
    end: Act
    silent: bool = False

    @property
    def name(self) -> str:
        return f"{self.hop}: {self.way}"


def _switched(**faults: Any) -> tuple[Act, Act]:
    async def begin(_: Installation, instance: Instance) -> None:
        instance.fault(**faults)

    async def end(_: Installation, instance: Instance) -> None:
        instance.fault()

    return begin, end


async def _postgres_down(stage: Installation, _: Instance) -> None:
    await stage.postgres.kill()


async def _postgres_up(stage: Installation, _: Instance) -> None:
    await stage.postgres.start()


async def _postgres_stalled(stage: Installation, _: Instance) -> None:
    stage.postgres.stall()


async def _postgres_goes_on(stage: Installation, _: Instance) -> None:
    stage.postgres.go_on()


def _sql(*statements: str) -> Act:
    async def run(stage: Installation, _: Instance) -> None:
        await stage.sql(*statements)

    return run


async def _lock(stage: Installation, _: Instance) -> None:
    stage.locking = await asyncpg.connect(stage.environ["DATABASE_URL"])
    await stage.locking.execute("BEGIN; LOCK TABLE realtime_market_data IN ACCESS EXCLUSIVE MODE")


async def _unlock(stage: Installation, _: Instance) -> None:
    assert stage.locking is not None
    await stage.locking.close()


_CUT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE pid <> pg_backend_pid() AND application_name <> '' AND datname = current_database()"
)


async def _valkey_down(stage: Installation, _: Instance) -> None:
    await stage.valkey.kill()


async def _valkey_up(stage: Installation, _: Instance) -> None:
    await stage.valkey.start()


async def _valkey_stalled(stage: Installation, _: Instance) -> None:
    stage.valkey.stall()


async def _valkey_goes_on(stage: Installation, _: Instance) -> None:
    stage.valkey.go_on()


def _slow(part: Callable[[Installation], Part]) -> tuple[Act, Act]:
    async def slow(server: Part) -> None:
        while True:
            server.stall()
            await asyncio.sleep(STOPPED_S)
            server.go_on()
            await asyncio.sleep(RUNNING_S)

    async def begin(stage: Installation, _: Instance) -> None:
        stage.slowing = asyncio.create_task(slow(part(stage)))

    async def end(stage: Installation, _: Instance) -> None:
        assert stage.slowing is not None
        stage.slowing.cancel()
        await asyncio.wait({stage.slowing})
        part(stage).go_on()

    return begin, end


def _valkey(*command: str) -> Act:
    async def run(stage: Installation, _: Instance) -> None:
        import redis.asyncio

        async with redis.asyncio.Redis.from_url(stage.valkey.url) as client:
            await client.execute_command(*command)

    return run


JOURNAL = (
    Cell(
        "journal",
        "refuses",
        "each write answers ENOSPC",
        r"journal.*(space|ENOSPC|Errno 28)",
        *_switched(journal="refuse"),
    ),
    Cell("journal", "hangs", "fsync does not return", r"journal", *_switched(journal="hang")),
    Cell(
        "journal",
        "answers and does nothing",
        "writes are said to be done, and nothing is in the file",
        r"journal",
        *_switched(journal="lie"),
    ),
    Cell(
        "journal", "is slow", "each fsync takes 1.5 s", r"", *_switched(journal="slow"), silent=True
    ),
)

POSTGRES = (
    Cell(
        "PostgreSQL",
        "refuses",
        "`kill -9` of the server",
        r"(postgres|database|commit).*(refused|reach|connect)",
        _postgres_down,
        _postgres_up,
    ),
    Cell(
        "PostgreSQL",
        "hangs",
        "SIGSTOP of the server",
        r"(postgres|database|commit)",
        _postgres_stalled,
        _postgres_goes_on,
    ),
    Cell(
        "PostgreSQL",
        "answers and does nothing",
        "the database is read-only; pings are answered",
        r"read-only",
        _sql("ALTER DATABASE usdcop_trading SET default_transaction_read_only = on", _CUT),
        _sql(
            "SET default_transaction_read_only = off",
            "ALTER DATABASE usdcop_trading RESET default_transaction_read_only",
            _CUT,
        ),
    ),
    Cell(
        "PostgreSQL",
        "answers and holds the table",
        "somebody holds a lock on `realtime_market_data`; pings are answered",
        r"commit.*lock",
        _lock,
        _unlock,
    ),
    Cell(
        "PostgreSQL",
        "answers and refuses rows",
        "a trigger of somebody raises",
        r"no ticks today",
        _sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'no ticks today'; END $$",
            "CREATE TRIGGER refuse BEFORE INSERT ON realtime_market_data "
            "FOR EACH ROW EXECUTE FUNCTION refuse()",
        ),
        _sql("DROP TRIGGER refuse ON realtime_market_data", "DROP FUNCTION refuse()"),
    ),
    Cell(
        "PostgreSQL",
        "is slow",
        f"SIGSTOP for {STOPPED_S:g} s, SIGCONT for {RUNNING_S:g} s, again and again",
        r"",
        *_slow(lambda stage: stage.postgres),
        silent=True,
    ),
)

REDIS = (
    Cell("Redis", "refuses", "`kill -9` of the server", r"redis", _valkey_down, _valkey_up),
    Cell("Redis", "hangs", "SIGSTOP of the server", r"redis", _valkey_stalled, _valkey_goes_on),
    Cell(
        "Redis",
        "answers and does nothing",
        "full and `noeviction`: pings are answered, writes refused",
        r"redis.*(OOM|maxmemory)",
        _valkey("CONFIG", "SET", "maxmemory", "1"),
        _valkey("CONFIG", "SET", "maxmemory", "0"),
    ),
    Cell(
        "Redis",
        "holds writes",
        "`CLIENT PAUSE WRITE`: pings are answered, writes wait",
        r"redis",
        _valkey("CLIENT", "PAUSE", "600000", "WRITE"),
        _valkey("CLIENT", "UNPAUSE"),
    ),
    Cell(
        "Redis",
        "is slow",
        f"SIGSTOP for {STOPPED_S:g} s, SIGCONT for {RUNNING_S:g} s, again and again",
        r"",
        *_slow(lambda stage: stage.valkey),
        silent=True,
    ),
)

HUB = (
    Cell(
        "hub", "refuses", "each delivery raises", r"hub|client|published", *_switched(hub="refuse")
    ),
    Cell(
        "hub",
        "answers and does nothing",
        "events are swallowed",
        r"hub|client|published",
        *_switched(hub="lie"),
    ),
    Cell(
        "hub",
        "is slow",
        "each delivery is 6 s late",
        r"hub|client|published",
        *_switched(hub="slow"),
    ),
)


def _vendor(**faults: Any) -> tuple[Act, Act]:
    async def begin(stage: Installation, _: Instance) -> None:
        await stage.vendor(**faults)

    async def end(stage: Installation, _: Instance) -> None:
        await stage.vendor()

    return begin, end


STREAM = (
    Cell(
        "stream",
        "refuses",
        "handshakes are answered with 503",
        r"stream.*503",
        *_vendor(refuse_handshake=503, drop=True),
    ),
    Cell("stream", "hangs", "sockets stay open and bring nothing", r"stream", *_vendor(mute=True)),
    Cell(
        "stream",
        "answers and does nothing",
        "prices go on with fresh stamps, but each is an old one",
        r"stream",
        *_vendor(frozen=True),
    ),
    Cell(
        "stream",
        "is slow",
        "each tick comes five minutes after its stamp",
        r"stream",
        *_vendor(delay_s=300),
    ),
)

REST = (
    Cell("REST", "refuses", "each call is answered with 503", r"503", *_vendor(rest_status=503)),
    Cell(
        "REST",
        "hangs",
        "calls are never answered",
        r"answer|REST|vendor",
        *_vendor(rest_timeout=True),
    ),
)
CLOCK = (
    Cell(
        "clock",
        "is ahead",
        "the machine's clock is an hour ahead of the vendor's",
        r"clock",
        *_switched(clock=180.0),
    ),
    Cell(
        "clock",
        "is behind",
        "the machine's clock is an hour behind the vendor's",
        r"clock",
        *_switched(clock=-180.0),
    ),
)
VENDOR_WITHIN_S = 180.0
"""For stream, REST and clock; seconds of the session."""

PARTS = {"journal": JOURNAL, "postgres": POSTGRES, "redis": REDIS, "hub": HUB}
