"""Connections to the servers and the vendor, opened from the settings: for the service and the commands."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.l0.continuity import Continuity
from enhanced_websocket_service.l0.foreign.job import ForeignImport
from enhanced_websocket_service.l0.pipeline import L0Pipeline
from enhanced_websocket_service.l0.readiness import ReadyFlag
from enhanced_websocket_service.settings import Settings, usable_backup_dir
from enhanced_websocket_service.storage.embedded import EmbeddedServers
from enhanced_websocket_service.storage.imports import ImportStore
from enhanced_websocket_service.storage.pool import Pool
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.slot_store import SlotStore
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.twelvedata.keys import KeyPool
from enhanced_websocket_service.twelvedata.rest import RestClient

from .ledgers import KeyLedgers

log = structlog.get_logger(__name__)

LONGEST_WAIT_S = 900.0
"""How long a command waits for a key: it has nothing better to do. A live service has."""
COMMAND_LOCK_WITHIN_S = 5.0
"""The same for the lock on the ledgers, which it never has to wait for, as a rule."""


def starts_servers(settings: Settings, *, with_redis: bool = True) -> bool:
    """Whether private servers are needed, and ``EMBEDDED`` allows them."""
    lacks_redis = with_redis and settings.redis_url is None
    return settings.embedded and (settings.database_url is None or lacks_redis)


@contextlib.asynccontextmanager
async def data_servers(
    settings: Settings, *, failures: Failures | None = None, with_redis: bool = True
) -> AsyncIterator[tuple[str, str | None]]:
    """The addresses of PostgreSQL and Redis; private servers where ``EMBEDDED`` allows them.

    :param failures: told while one that died is being started again.
    :raises EmbeddedError: a private server does not start.
    """
    database_url, redis_url = settings.database_url, settings.redis_url
    if database_url is not None and not starts_servers(settings, with_redis=with_redis):
        yield database_url, redis_url
        return
    async with EmbeddedServers(settings.state_dir) as servers:
        if database_url is None:
            database_url = await servers.start_postgres()
        if redis_url is None and with_redis:
            redis_url = await servers.start_valkey()
        log.info("Private servers", database_url=database_url, redis_url=redis_url)
        async with servers.kept_running(failures or Failures(settings.clock())):
            yield database_url, redis_url


def require(settings: Settings, *, key: bool = True) -> None:
    """:raises ConfigurationError: what ``missing`` tells, all at once."""
    if faults := missing(settings, key=key):
        raise ConfigurationError(*faults)


def missing(settings: Settings, *, key: bool = True, database: bool = True) -> list[str]:
    """What only some commands need and the settings do not give: a vendor key, a database."""
    faults = []
    if key and not settings.keys:
        faults.append(
            "No TwelveData API key is set. Set TWELVEDATA_API_KEY_G1_1 (up to 16: _G1_1 .. _G2_8); "
            "`demo` runs without any."
        )
    if database and settings.database_url is None and not settings.embedded:
        faults.append(
            "DATABASE_URL is not set. Set it to your PostgreSQL (postgresql://user:password@host:"
            "5432/usdcop_trading), or set EMBEDDED=1 for a private one, or try `demo` first."
        )
    return faults


def vendor(
    settings: Settings,
    clock: Clock,
    metrics: Metrics,
    max_wait_s: float = 130.0,
    failures: Failures | None = None,
) -> RestClient:
    """The REST client over the configured keys; ``failures`` hears when the vendor's REST fails."""
    keys = KeyPool(
        settings.keys,
        spacing_s=settings.key_spacing_s,
        minute_limit=settings.key_credits_per_minute,
        day_limit=settings.key_credits_per_day,
    )
    return RestClient(
        settings.twelvedata_rest_url,
        keys,
        clock,
        settings.data_provider,
        metrics,
        max_wait_s=max_wait_s,
        failures=failures,
    )


@contextlib.asynccontextmanager
async def open_l0(settings: Settings, *, with_vendor: bool = True) -> AsyncIterator[L0Pipeline]:
    """L0 for a command: its own connections, closed at the end. Raises ``EwsError``."""
    require(settings, key=with_vendor)
    clock, metrics = settings.clock(), Metrics()
    # Of its own: ledgers that cannot be shared are no reason to call a set unready.
    ledger_failures = Failures(clock)
    async with contextlib.AsyncExitStack() as stack:
        rest = None
        if with_vendor:
            rest = vendor(settings, clock, metrics, LONGEST_WAIT_S)
            stack.push_async_callback(rest.aclose)
            ledgers = KeyLedgers(
                rest.keys,
                settings.state_dir,
                clock,
                ledger_failures,
                simulated=settings.data_provider.simulated,
                lock_within_s=COMMAND_LOCK_WITHIN_S,
            )
            ledgers.sync()
            rest.shared = ledgers.shared
        servers = await stack.enter_async_context(data_servers(settings, with_redis=False))
        database_url, _ = servers
        database = Database(database_url, settings.data_provider, clock=clock)
        stack.push_async_callback(database.close)
        await database.connect()
        yield l0_pipeline(settings, clock, rest, database, Failures(clock))


@contextlib.asynccontextmanager
async def open_database(settings: Settings, doing: str) -> AsyncIterator[Any]:
    """A connection to the database as it is, for a command about its schema. Raises ``EwsError``.

    :param doing: completes "PostgreSQL cannot be reached while ...".
    """
    require(settings, key=False)
    async with data_servers(settings, with_redis=False) as (database_url, _):
        pool = Pool(database_url, max_size=1)
        try:
            async with pool.bare_connection(doing) as connection:
                yield connection
        finally:
            await pool.close()


@contextlib.asynccontextmanager
async def open_slots(settings: Settings) -> AsyncIterator[tuple[SlotStore, Continuity]]:
    """The proof of continuity for a command: its own connections. Raises ``EwsError``."""
    require(settings, key=False)
    clock = settings.clock()
    async with contextlib.AsyncExitStack() as stack:
        servers = await stack.enter_async_context(data_servers(settings, with_redis=False))
        database_url, _ = servers
        database = Database(database_url, settings.data_provider, clock=clock)
        stack.push_async_callback(database.close)
        await database.connect()
        store = SlotStore(database)
        yield store, Continuity(store, settings.calendars(), clock, settings.data_provider)


@contextlib.asynccontextmanager
async def open_import(
    settings: Settings, *, quarantine: Path | None, dry_run: bool
) -> AsyncIterator[ForeignImport]:
    """The import of foreign files for a command; a dry run needs no database. Raises ``EwsError``."""
    if not dry_run:
        require(settings, key=False)
    clock = settings.clock()
    async with contextlib.AsyncExitStack() as stack:
        store = None
        if settings.database_url is not None or settings.embedded or not dry_run:
            servers = await stack.enter_async_context(data_servers(settings, with_redis=False))
            database_url, _ = servers
            database = Database(database_url, settings.data_provider, clock=clock)
            stack.push_async_callback(database.close)
            await database.connect()
            store = ImportStore(database)
        yield ForeignImport(
            store,
            settings.calendars(),
            clock,
            quarantine=quarantine or settings.state_dir / "quarantine",
            band=settings.price_band_pct / 100,
            simulated=settings.data_provider.simulated,
        )


def l0_pipeline(
    settings: Settings,
    clock: Clock,
    rest: RestClient | None,
    database: Database,
    failures: Failures,
) -> L0Pipeline:
    """The L0 jobs over open connections."""
    backup_dir, warning = usable_backup_dir(settings.backup_dir)
    if warning is not None:
        log.warning(warning)
    elif "backup_dir" not in settings.model_fields_set:
        log.warning(f"BACKUP_DIR is not set; using {backup_dir}.")
    return L0Pipeline(
        rest=rest,
        database=database,
        calendars=settings.calendars(),
        clock=clock,
        provider=settings.data_provider,
        backup_dir=backup_dir,
        flag=ReadyFlag(settings.ready_signals_dir, clock),
        failures=failures,
        window_days=settings.l0_window_days,
        keys=None if rest is None else rest.keys,
    )
