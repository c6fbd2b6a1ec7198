"""Nothing invented ever reaches production: two worlds of prices, and what keeps them apart.

Looked at from outside only: commands, SQL, Redis, HTTP and folders, beside a real instance at work.
"""

import asyncio
import json
import re
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
import redis.asyncio

from tests.conftest import PostgresServer
from tests.waiting import eventually

from .conftest import told
from .faults.recording import database_name, execute
from .playback import Process, free_port
from .production import (
    DAY,
    HISTORY,
    HOURS,
    WITHIN_S,
    Instance,
    Production,
    foreign_rows,
    is_refusal,
    keys,
    listening,
    listing,
    mark,
    production,
    rows,
    scalar,
)
from .upgrading import older_release

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("two-worlds"),  # one real instance for all
    pytest.mark.timeout(300),
]

DEMO_DAY = "2025-06-26"
"""Not the day of the real instance: a row of it would be the demo's."""
FOLDERS = ("STATE_DIR", "READY_SIGNALS_DIR", "BACKUP_DIR", "LOG_DIR")
BACKFILL = ("l0", "backfill", "--start", HISTORY[0], "--end", HISTORY[1])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer
) -> AsyncIterator[Production]:
    async with production(tmp_path_factory.mktemp("worlds"), postgres_server.dsn) as made:
        yield made


def shop(folder: Path, settings: Mapping[str, str]) -> Path:
    """A folder with such a ``.env``."""
    folder.mkdir()
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    return folder


async def demo(real: Production, folder: Path, settings: Mapping[str, str]) -> Instance:
    """A demo started in a folder with such a ``.env``, and the same in the environment; it has prices."""
    environ = {
        **settings,
        "XDG_STATE_HOME": str(folder / "xdg"),
        "HOME": str(folder),
        "COLUMNS": "300",
    }
    port = free_port()
    at = f"{DEMO_DAY}T{HOURS['MARKET_OPEN']}"
    process = await real.start(
        *("demo", "--port", str(port), "--at", at, "--speed", "100"), environ=environ, cwd=folder
    )
    instance = Instance(process, port)
    await instance.price()
    return instance


async def collecting_invented_prices(instance: Instance) -> None:
    """The demo works, in servers of its own."""
    dsn = await told(instance.process, "DATABASE_URL")
    status = await instance.json("/status")
    assert status["simulated"] is True
    assert status["provider"] == "simulator"

    async def stored() -> bool | None:
        return await scalar(dsn, "SELECT count(*) > 0 FROM realtime_market_data") or None

    await eventually(stored, WITHIN_S, lambda: instance.process.text()[-3000:])
    assert await foreign_rows(dsn, "simulated") == {}


async def test_a_demo_beside_production_touches_nothing_of_it(
    real: Production, tmp_path: Path
) -> None:
    live, url = real.live, real.redis_url
    kept = {name: Path(real.environ[name]) for name in FOLDERS}
    await eventually(
        lambda: bar_stream(url), WITHIN_S, "the first bar of the real instance in Redis"
    )
    epochs = "SELECT array_agg((symbol, epoch)::text ORDER BY 1) FROM "
    fenced = await scalar(live, epochs + "epoch_fence")
    begun = await scalar(live, epochs + "tick_epochs")
    journals = await scalar(live, "SELECT array_agg(journal_id) FROM journal_checkpoints")
    columns = (await rows(live))["columns"]
    names = set(await keys(url))
    signals = listing(kept["READY_SIGNALS_DIR"])
    state_names = set(listing(kept["STATE_DIR"]))
    states = set()
    # Broken values disturb it as little: they are not looked at.
    broken = {
        **real.environ,
        "DATABASE_URL": "garbage",
        "REDIS_URL": "more garbage",
        "TWELVEDATA_API_KEY_G1_1": "two words",
        "STATE_DIR": "/dev/null/state",
        "READY_SIGNALS_DIR": "/dev/null/signals",
        "BACKUP_DIR": "/dev/null/backups",
        "LOG_DIR": "/dev/null/logs",
    }
    async with listening(url) as heard:
        instances = await asyncio.gather(
            demo(real, shop(tmp_path / "demo", real.environ), real.environ),
            demo(real, shop(tmp_path / "broken", broken), broken),
        )
        for one in instances:
            await collecting_invented_prices(one)
        before = len(heard)

        async def goes_on() -> bool | None:
            states.add((await real.service.json("/health"))["service_status"])
            return len(heard) > before + 20 or None

        await eventually(goes_on, WITHIN_S, "prices of the real instance")
        for one in instances:
            assert await one.process.stop() == 0, one.process.text()[-3000:]
            assert "a-production-key" not in one.process.text()
        assert {message["data"]["source"] for message in heard} <= {
            "twelvedata_websocket",
            "twelvedata_rest",
        }
    assert states == {"active"}
    assert (await real.service.json("/health"))["service_status"] == "active"

    assert await foreign_rows(live, "real") == {}
    assert await scalar(live, epochs + "epoch_fence") == fenced
    assert await scalar(live, epochs + "tick_epochs") == begun
    assert await scalar(live, "SELECT array_agg(journal_id) FROM journal_checkpoints") == journals
    assert (await rows(live))["columns"] == columns
    of_the_demo = (
        f"SELECT count(*) FROM system_health WHERE details->>'at' >= '{DEMO_DAY}'",
        f"SELECT count(*) FROM market_data WHERE datetime >= '{DEMO_DAY} 00:00-05'",
        f"SELECT count(*) FROM realtime_market_data WHERE session_date >= '{DEMO_DAY}'",
    )
    assert [await scalar(live, sql) for sql in of_the_demo] == [0, 0, 0]

    assert set(await keys(url)) <= names
    async with redis.asyncio.Redis.from_url(url) as client:
        cached = json.loads(await client.get("usdcop:latest_price"))
    assert cached["source"] in ("twelvedata_websocket", "twelvedata_rest")

    assert listing(kept["READY_SIGNALS_DIR"]) == signals
    assert set(listing(kept["STATE_DIR"])) <= state_names | set(of_journal(kept["STATE_DIR"]))
    assert "simulator" not in (kept["LOG_DIR"] / "enhanced_websocket_service.log").read_text()
    metadata = (kept["BACKUP_DIR"] / "usdcop_m5_backup_metadata.json").read_text()
    assert "simulator" not in metadata


async def bar_stream(url: str) -> str | None:
    """The last name that a real instance makes in Redis."""
    return next((name for name in await keys(url) if ":bars:" in name), None)


def of_journal(state_dir: Path) -> list[str]:
    """The segments of the journal come and go."""
    return [str(path.relative_to(state_dir)) for path in (state_dir / "journal").glob("*")]


async def test_the_real_database_refuses_invented_prices_and_nothing_is_written(
    real: Production,
) -> None:
    """By each command that writes."""
    flag = Path(real.environ["READY_SIGNALS_DIR"])
    backups = real.folder / "quiet-backups"
    shutil.copytree(real.environ["BACKUP_DIR"], backups)  # the real instance works on its own
    before = await rows(real.quiet), listing(flag), listing(backups)
    assert "l0_ready.flag" in before[1]
    run, incremental = ("run", "--port", "0"), ("l0", "incremental")
    refused = await asyncio.gather(
        real.command(*run, environ=real.simulated(real.quiet)),
        real.command(*run, environ=real.simulated(real.quiet, PROVIDER="simulator")),
        real.command(*BACKFILL, environ=real.simulated(real.quiet)),
        real.command(*incremental, environ=real.simulated(real.quiet)),
    )
    for code, text in refused:
        assert is_refusal(code, text, database_name(real.quiet)), text
    # In the folders of the real history, too, whichever of the places is named.
    folders = {"READY_SIGNALS_DIR": str(flag), "BACKUP_DIR": str(backups)}
    refused = await asyncio.gather(
        *(
            real.command(*arguments, environ=real.simulated(real.quiet, **folders))
            for arguments in (run, BACKFILL, incremental)
        )
    )
    for code, text in refused:
        assert (code, "real" in text, "simulated" in text) == (2, True, True), text
    assert (await rows(real.quiet), listing(flag), listing(backups)) == before


async def test_the_real_redis_refuses_invented_prices_and_the_empty_database_stays_nobodys(
    real: Production,
) -> None:
    empty = await real.database()
    names = set(await keys(real.redis_url))
    environ = real.simulated(empty, REDIS_URL=real.redis_url)
    async with listening(real.redis_url) as heard:
        code, text = await real.command("run", "--port", "0", environ=environ)
        assert is_refusal(code, text, "Redis"), text
    assert {message["data"]["source"].startswith("twelvedata") for message in heard} <= {True}
    assert set(await keys(real.redis_url)) <= names
    assert await real.world(empty) == "nobody"
    assert not any(await written(empty))
    assert (await real.service.json("/health"))["service_status"] == "active"


async def written(dsn: str) -> list[str]:
    """The tables in which there are rows, but for the ledger of migrations."""
    return [
        name
        for name, texts in (await rows(dsn)).items()
        if texts and name not in ("columns", "ews_schema_migrations")
    ]


async def test_an_empty_database_is_nobodys_until_its_first_row(real: Production) -> None:
    empty = await real.database()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        failed = await asyncio.gather(
            real.command("run", "--port", port, environ=real.simulated(empty)),
            real.command("run", "--port", port, environ=real.real(empty)),
        )
    assert [code for code, _ in failed] == [2, 2], failed
    looked = await asyncio.gather(
        *(
            real.command(*arguments, environ=real.simulated(empty))
            for arguments in (("config", "check"), ("db", "migrate"), ("db", "world"))
        )
    )
    assert [code for code, _ in looked] == [0, 0, 0], looked
    assert await real.world(empty) == "nobody"
    assert not any(await written(empty))

    code, text = await real.command(*BACKFILL, environ=real.simulated(empty))
    assert code == 0, text
    (code, text), *worlds = await asyncio.gather(
        real.command(*BACKFILL, environ=real.real(empty)),
        real.world(empty),
        real.world(real.live),
    )
    assert is_refusal(code, text, database_name(empty)), text
    assert worlds == ["simulated", "real"]
    assert await foreign_rows(empty, "simulated") == {}


async def test_databases_from_before_are_real_unless_all_their_rows_are_invented(
    real: Production, tmp_path: Path
) -> None:
    older = older_release("39e799b", tmp_path / "release")
    invented = await real.database()
    process = await real.start(*BACKFILL, environ=real.simulated(invented), cwd=older)
    assert await process.finished(WITHIN_S) == 0, process.text()
    mixed, emptied = [await real.database(invented) for _ in range(2)]
    await execute(
        mixed,
        "UPDATE market_data SET source = 'investing.com' WHERE id = (SELECT min(id) FROM market_data)",
    )
    await execute(emptied, "DELETE FROM market_data; DELETE FROM bar_revisions")

    worlds = await asyncio.gather(*(real.world(one) for one in (invented, mixed, emptied)))
    assert worlds[:2] == ["simulated", "real"]
    assert worlds[2] != "simulated"  # tables without rows say nothing of invented prices
    outcomes = await asyncio.gather(
        real.command("l0", "incremental", environ=real.simulated(invented)),
        real.command("l0", "incremental", environ=real.real(invented)),
        real.command("l0", "incremental", environ=real.simulated(mixed)),
        real.command("l0", "incremental", environ=real.real(mixed)),
    )
    assert [code for code, _ in outcomes] == [0, 2, 2, 0], outcomes
    assert is_refusal(*outcomes[1], database_name(invented))
    assert is_refusal(*outcomes[2], database_name(mixed))


async def test_a_database_changes_hands_by_command_only_and_no_answer_mixes(
    real: Production,
) -> None:
    given = await real.database(real.quiet)
    environ = real.simulated(given)
    change = ("db", "world", "--set")
    (code, text), (nonsense, _) = await asyncio.gather(
        real.command(*change, "simulated", environ=environ),  # nobody there to be asked
        real.command(*change, "nonsense", "--yes", environ=environ),
    )
    assert code != 0, text
    assert nonsense == 2
    assert await real.world(given) == "real"

    remaining = await scalar(given, "SELECT count(*) FROM market_data")
    code, text = await real.command(*change, "simulated", "--yes", environ=environ)
    assert code == 0, text
    assert str(remaining) in text.replace(",", ""), "what remains of the other world is said"

    service, world = await asyncio.gather(real.run(environ), real.world(given))
    assert world == "simulated"
    await service.state("active")
    await service.price()
    await no_answer_mixes(service)

    # From another process, while the service runs: it is real again.
    code, text = await real.command(*change, "real", "--yes", environ=environ)
    assert code == 0, text
    await disconnect(real.server_dsn, given)
    count = "SELECT count(*) FROM realtime_market_data"
    health = await service.state("error")
    reason = health["service_info"]["reason"]
    assert all(word in reason for word in ("real", "simulated", "db world")), reason
    stored = await scalar(given, count)
    await virtual_minutes(real, 3)
    assert await scalar(given, count) == stored
    assert (await service.json("/health"))["service_status"] == "error"
    assert await service.process.stop() == 0, service.process.text()[-3000:]
    assert await scalar(given, count) == stored


async def no_answer_mixes(service: Instance) -> None:
    """In a database with the rows of both worlds."""

    def sources(found: Any) -> set[str]:
        if isinstance(found, dict):
            own = {found["source"]} if isinstance(found.get("source"), str) else set()
            return own.union(*(sources(one) for one in found.values()))
        return set().union(*(sources(one) for one in found)) if isinstance(found, list) else set()

    async def there(path: str, enough: Callable[[Any], bool], **params: str) -> Any:
        async def answered() -> Any:
            found = await service.json(path, **params)
            return found if enough(found) else None

        return await eventually(answered, WITHIN_S, path)

    answers = [
        await there("/market/bars", lambda one: bool(one["data"]), start=HISTORY[0], limit="10000"),
        await there("/market/bars", lambda one: bool(one["data"]), start=str(DAY), interval="1h"),
        await there("/market/ticks", lambda one: bool(one["data"])),
        await there("/market/latest", lambda one: one.get("price", 0) > 0),
        await there("/market/continuity", lambda one: bool(one["slots"]), date=HISTORY[1]),
        await there("/market/continuity", lambda one: bool(one["slots"]), date=str(DAY)),
    ]
    for answer in answers:
        assert {one for one in sources(answer) if not one.startswith("simulator")} == set(), answer
    assert "simulator" in sources(answers[0])
    others = await service.json("/market/bars", source="twelvedata", start=HISTORY[0])
    assert not others.get("data")


async def disconnect(server_dsn: str, dsn: str) -> None:
    """End every connection to a database: whoever comes back contacts it anew."""
    connection = await asyncpg.connect(server_dsn)
    try:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1",
            database_name(dsn),
        )
    finally:
        await connection.close()


async def virtual_minutes(real: Production, minutes: float) -> None:
    until = real.clock.now() + 60 * minutes

    async def reached() -> bool | None:
        return real.clock.now() >= until or None

    await eventually(reached, WITHIN_S, "virtual time")


async def test_a_redis_given_by_hand_gets_no_name_that_a_consumer_could_take_for_real(
    real: Production,
) -> None:
    """And a real instance that comes to it afterwards takes it over."""
    url = real.cache(1)
    async with listening(url) as heard:
        service = await real.run(real.simulated(await real.database(), REDIS_URL=url))
        await service.state("active")

        async def cached() -> str | None:
            names = [name for name in await keys(url) if name.endswith("usdcop:latest_price")]
            return names[0] if names else None

        name = await eventually(cached, WITHIN_S, "a cached price")
        assert await service.process.stop() == 0, service.process.text()[-3000:]
        assert {one["data"]["source"].startswith("twelvedata") for one in heard} <= {True}
    prefix = name.removesuffix("usdcop:latest_price")
    assert prefix
    whose = await mark(url, "simulated")
    assert whose is not None
    assert [one for one in await keys(url) if not one.startswith(prefix) and one != whose] == []

    successor = await real.run(real.real(await real.database(), REDIS_URL=url))
    await successor.state("active")
    await eventually(lambda: plain_price(url), WITHIN_S, "a price under the requester's name")
    assert await mark(url, "real") is not None
    assert "simulated" in warned(successor.process, "Redis"), successor.process.text()
    assert await successor.process.stop() == 0


async def plain_price(url: str) -> bool | None:
    async with redis.asyncio.Redis.from_url(url) as client:
        value = await client.get("usdcop:latest_price")
    return (value is not None and json.loads(value)["source"].startswith("twelvedata")) or None


def warned(process: Process, about: str) -> str:
    """The log lines of ``run`` that name something."""
    return "\n".join(line for line in process.text().splitlines() if about in line)


@pytest.mark.parametrize("forged", ["simulated", "garbage", "a list"])
async def test_no_mark_stops_a_real_instance(real: Production, forged: str) -> None:
    """Whoever may write to Redis could otherwise end the collection."""
    name = await mark(real.redis_url, "real")
    assert name is not None
    number = {"simulated": 2, "garbage": 3, "a list": 4}[forged]
    url = real.cache(number)

    async def forge() -> None:
        async with redis.asyncio.Redis.from_url(url) as client:
            await client.delete(name)
            if forged == "a list":
                await client.rpush(name, "simulated", "real")
            else:
                await client.set(name, {"simulated": b"simulated", "garbage": b"\xff\x00{"}[forged])

    await forge()
    service = await real.run(real.real(await real.database(), REDIS_URL=url))
    await service.state("active")
    await eventually(lambda: plain_price(url), WITHIN_S, lambda: service.process.text()[-3000:])
    # And while it runs: the price expires unless it goes on to write it.
    async with redis.asyncio.Redis.from_url(url) as client:
        await forge()
        await client.delete("usdcop:latest_price")
        await client.client_kill_filter(_type="normal", skipme=True)
    await eventually(lambda: plain_price(url), WITHIN_S, lambda: service.process.text()[-3000:])
    assert (await service.json("/health"))["service_status"] == "active"
    assert await service.process.stop() == 0


async def test_a_mark_of_real_prices_stops_a_simulated_instance_only(real: Production) -> None:
    name = await mark(real.redis_url, "real")
    assert name is not None
    url = real.cache(5)
    async with (
        redis.asyncio.Redis.from_url(real.redis_url) as live,
        redis.asyncio.Redis.from_url(url) as client,
    ):
        await client.restore(name, 0, await live.dump(name))
    before = await keys(url)
    environ = real.simulated(await real.database(), REDIS_URL=url)
    code, text = await real.command("run", "--port", "0", environ=environ)
    assert is_refusal(code, text, "Redis"), text
    assert await keys(url) == before


async def test_a_provider_by_hand_beside_a_foreign_vendor_is_said(real: Production) -> None:
    warnings = [
        line
        for line in real.service.process.text().splitlines()
        if '"warning"' in line and "PROVIDER" in line
    ]
    assert len(warnings) == 1, real.service.process.text()[:3000]
    assert "TWELVEDATA" in warnings[0] or "127.0.0.1" in warnings[0]
    status = json.dumps(await real.service.json("/status"))
    assert re.search(r"PROVIDER|foreign", status), status
