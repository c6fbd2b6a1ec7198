"""S18: one number in Redis must not become an epoch; a database that has one already is mended."""

from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis.asyncio

from enhanced_websocket_service.storage.mend import mend_epochs
from enhanced_websocket_service.storage.migrate import migrate
from tests.storage_samples import OPEN

from .two_instances import pair

POISON = (1 << 62) - 1
GOOD = 1_700_000_000_000
ROWS = f"""
INSERT INTO realtime_market_data (symbol, time, last, source, epoch, tick_offset) VALUES
    ('USDCOP', to_timestamp({OPEN}), 1, 'simulator_websocket', {GOOD}, 1),
    ('USDCOP', to_timestamp({OPEN} + 1), 2, 'simulator_websocket', {POISON}, 1),
    ('USDCOP', to_timestamp({OPEN} + 2), 3, 'simulator_websocket', {POISON}, 2),
    ('USDCOP', to_timestamp({OPEN} + 3), 4, 'simulator_websocket', {POISON + 1}, 1),
    ('USDCOP', to_timestamp({OPEN} + 4), 5, 'another program', NULL, NULL);
INSERT INTO market_data (symbol, datetime, open, high, low, close, source, bar_epoch)
VALUES ('USDCOP', to_timestamp({OPEN}), 1, 1, 1, 1, 'simulator_websocket', {POISON});
INSERT INTO bar_revisions
    (symbol, interval_s, datetime, source, epoch, revision, status, open, high, low, close, volume,
    published_at)
VALUES
    ('USDCOP', 300, to_timestamp({OPEN}), 'simulator_websocket', {POISON}, 0, 'closed', 1, 1, 1, 1, 0, now()),
    ('USDCOP', 300, to_timestamp({OPEN}), 'simulator', 0, 0, 'closed', 1, 1, 1, 1, 0, now());
INSERT INTO tick_epochs (symbol, epoch, previous_epoch, previous_last_offset) VALUES
    ('USDCOP', {GOOD}, NULL, NULL), ('USDCOP', {POISON}, {GOOD}, 1), ('USDCOP', {POISON + 1}, {POISON}, 2);
INSERT INTO epoch_fence (symbol, epoch) VALUES ('USDCOP', {POISON + 1});
INSERT INTO journal_checkpoints (journal_id, segment, byte_offset, record, epoch)
VALUES ('11111111-0000-4000-8000-000000000000', 1, 2, 3, {POISON});
INSERT INTO system_health (service_name, status, details)
VALUES ('enhanced_websocket_service', 'active', '{{"epoch": {POISON}, "reason": "x"}}');
"""


async def all_of(connection: Any, statement: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await connection.fetch(statement)]


async def test_a_poisoned_database_is_mended_in_every_table_and_says_so(database_dsn: str) -> None:
    connection = await asyncpg.connect(database_dsn)
    try:
        await migrate(connection)
        assert await mend_epochs(connection) == []
        await connection.execute(ROWS)
        told = " ".join(await mend_epochs(connection))
        assert f"Epoch {POISON}, which none can be, is {GOOD + 1} now." in told
        assert "3 rows of realtime_market_data" in told
        assert await all_of(
            connection,
            "SELECT epoch, tick_offset, last::int FROM realtime_market_data ORDER BY last",
        ) == [(GOOD, 1, 1), (GOOD + 1, 1, 2), (GOOD + 1, 2, 3), (GOOD + 2, 1, 4), (None, None, 5)]
        assert await all_of(connection, "SELECT bar_epoch FROM market_data") == [(GOOD + 1,)]
        assert await all_of(connection, "SELECT epoch FROM bar_revisions ORDER BY epoch") == [
            *((0,), (GOOD + 1,)),
        ]
        assert await all_of(
            connection, "SELECT epoch, previous_epoch FROM tick_epochs ORDER BY epoch"
        ) == [(GOOD, None), (GOOD + 1, GOOD), (GOOD + 2, GOOD + 1)]
        assert await all_of(connection, "SELECT epoch FROM epoch_fence") == [(GOOD + 2,)]
        assert await all_of(connection, "SELECT epoch FROM journal_checkpoints") == [(GOOD + 1,)]
        assert await all_of(
            connection, "SELECT details ->> 'epoch', details ->> 'reason' FROM system_health"
        ) == [(str(GOOD + 1), "x")]
        assert await mend_epochs(connection) == []
    finally:
        await connection.close()


@pytest.mark.parametrize("poison", [str(POISON), str(1 << 63), "garbage", "9" * 5000])
async def test_what_redis_alone_says_is_named_and_persisted_nowhere(
    database_dsn: str, valkey_url: str, tmp_path: Path, poison: str
) -> None:
    async with (
        pair(database_dsn, tmp_path, redis_url=valkey_url) as one,
        redis.asyncio.Redis.from_url(valkey_url, decode_responses=True) as client,
    ):
        await client.set("simulated:ews:epoch", poison)
        await one.a.start()
        told = " ".join((await one.a.get("/health"))["problems"])
        assert "epoch in Redis" in told
        await one.a.until("active")
        first = one.a.epoch
        assert first < 1 << 53
        await one.a.stop()
        await one.a.start()
        await one.a.until("active")
        assert first < one.a.epoch < 1 << 53
        assert "epoch in Redis" not in " ".join((await one.a.get("/health"))["problems"])
        assert (one.a.settings.state_dir / "epoch").read_text().strip() == str(one.a.epoch)


async def test_a_poisoned_fence_is_an_error_that_db_migrate_mends(
    database_dsn: str, tmp_path: Path
) -> None:
    async with pair(database_dsn, tmp_path) as one:
        await one.rows("INSERT INTO epoch_fence (symbol, epoch) VALUES ('USDCOP', $1)", POISON)
        await one.a.start()
        await one.a.until("error", reason="db migrate")
        assert str(POISON) in one.a.reason
        connection = await asyncpg.connect(database_dsn)
        await mend_epochs(connection)
        await connection.close()
        await one.a.until("active", within_s=20)
        assert "db migrate" not in " ".join((await one.a.get("/health"))["problems"])
