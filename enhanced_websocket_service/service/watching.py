"""Wires the watermarks to the parts whose work they tell of: who says how far, who says why not."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from enhanced_websocket_service.bus.base import Bus
from enhanced_websocket_service.bus.redis import RedisBus
from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import EwsError, JournalError
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.l0.reconcile import Reconciler
from enhanced_websocket_service.market.events import Probe
from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.serving.hub import Hub
from enhanced_websocket_service.serving.loopback import Loopback
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.probe import probe_writes, who_blocks
from enhanced_websocket_service.storage.writer import JournalWriter
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.watermarks import Hop, Watermarks

from .canary import Canary
from .pipeline import Pipeline
from .work import WorkHealth, WorkLimits

BUSY_S = 1.0
"""Real seconds that PostgreSQL may take for a batch before somebody asks who is in the way."""
SLOW_S = 3.0
"""Real seconds without a commit after which a backlog does not get smaller, as far as anybody can see."""


@dataclass(frozen=True, slots=True)
class Watched:
    """The parts whose work is watched; ``redis`` is ``None`` where there is none."""

    clock: Clock
    marks: Watermarks
    pipeline: Pipeline
    journal: Journal
    writer: JournalWriter
    database: Database
    bus: Bus
    redis: RedisBus | None
    hub: Hub
    reconciler: Reconciler
    failures: Failures
    metrics: Metrics


def watch(
    it: Watched,
    limits: WorkLimits,
    *,
    probe_s: float,
    pace: Callable[[float], float],
    expecting: Callable[[], bool],
    may_probe: Callable[[], bool],
) -> tuple[WorkHealth, Canary]:
    """Let every part tell the watermarks what it did, and make their judge and their probes.

    :param probe_s: as ``Canary``'s ``every_s``; ``expecting`` and ``may_probe`` are its, too.
    :param pace: as ``WorkHealth``'s.
    """

    def reached(symbol: str, epoch: int, offset: int) -> None:
        if (
            epoch == it.pipeline.epoch
        ):  # what comes late is gathered: another may have begun meanwhile
            it.marks.reached(symbol, Hop.PUBLISHED, offset)

    loopback = Loopback(reached)
    it.hub.listen_inside(loopback.write)
    if it.redis is not None:
        cached = _Cached(it.marks, it.redis, it.pipeline)
        it.redis.on_told, it.redis.on_cached = cached.told, cached.cached
    canary = Canary(
        it.marks,
        _probes(it, loopback),
        every_s=probe_s,
        expecting=expecting,
        may_probe=may_probe,
        failures=it.failures,
        explain={Hop.COMMITTED: lambda: _who_is_in_the_way(it.writer, it.database)},
    )
    work = WorkHealth(
        it.clock,
        it.marks,
        it.pipeline,
        limits,
        pace=pace,
        overdue=it.reconciler.overdue,
        causes=_causes(it, canary),
    )
    it.metrics.undone.read = lambda: {hop.value: found for hop, found in work.oldest().items()}
    it.metrics.undone.read_symbols = lambda: {
        (symbol, hop): one.oldest_undone_s or 0.0
        for symbol, hops in work.by_symbol().items()
        for hop, one in hops.items()
    }
    return work, canary


class _Cached:
    """Redis has done its work for a tick once listeners were told of it, and its key has it or a newer one.

    A tick that came late is told and never cached: the key has a newer price already.
    """

    def __init__(self, marks: Watermarks, bus: RedisBus, pipeline: Pipeline) -> None:
        self._marks, self._bus, self._pipeline = marks, bus, pipeline
        self._told: dict[str, Tick] = {}
        self._in_key: dict[str, Tick] = {}

    def told(self, tick: Tick) -> None:
        self._told[tick.symbol] = tick
        self._mark(tick.symbol)

    def cached(self, tick: Tick) -> None:
        self._in_key[tick.symbol] = tick
        self._mark(tick.symbol)

    def _mark(self, symbol: str) -> None:
        told, in_key = self._told.get(symbol), self._in_key.get(symbol)
        if told is None or in_key is None:
            return
        if {told.epoch, in_key.epoch} != {self._pipeline.epoch}:
            return
        newest = in_key is self._bus.latest(symbol)
        self._marks.reached(
            symbol, Hop.CACHED, told.offset if newest else min(told.offset, in_key.offset)
        )


def _probes(it: Watched, loopback: Loopback) -> Mapping[Hop, Callable[[], Awaitable[str | None]]]:
    async def journal() -> None:
        if not await it.journal.sync():
            raise it.journal.failure or JournalError("The fsync failed.")

    async def hub() -> None:
        number = loopback.probe + 1
        it.bus.publish([Probe(number)])
        if loopback.probe != number:
            raise EwsError(it.bus.failure or "What is published does not reach a client inside.")

    async def redis() -> str | None:
        return None if it.redis is None else await it.redis.probe()

    async def postgresql() -> str | None:
        return await probe_writes(it.database, it.journal.journal_id, _row(it))

    probes: dict[Hop, Callable[[], Awaitable[str | None]]] = {
        Hop.JOURNALED: journal,
        Hop.PUBLISHED: hub,
        Hop.COMMITTED: postgresql,
    }
    if it.redis is not None:
        probes[Hop.CACHED] = redis
    return probes


def _row(it: Watched) -> Tick | None:
    """The last tick of any symbol, as one of now."""
    now = it.clock.now()
    for symbol in it.marks.symbols:
        if (tick := it.bus.latest(symbol)) is not None:
            return Tick(
                symbol=symbol,
                epoch=it.pipeline.epoch,
                offset=0,
                timestamp=int(now),
                price=tick.price,
                bid=tick.bid,
                ask=tick.ask,
                volume=tick.volume,
                source=tick.source,
                received_at=now,
                trading_session=False,
            )
    return None


async def _who_is_in_the_way(writer: JournalWriter, database: Database) -> str | None:
    waits = writer.waits_for
    if waits is None or waits[1] < BUSY_S:
        return None
    return await who_blocks(database, waits[0])


def _causes(it: Watched, canary: Canary) -> Mapping[Hop, Callable[[], str | None]]:
    def journal() -> str | None:
        if (failure := it.journal.failure) is not None:
            return str(failure)
        hangs_s = it.journal.hangs_for_s
        if hangs_s is None:
            return None
        return f"an fsync in {it.journal.directory} has not returned for {hangs_s:.0f} s"

    def postgresql() -> str | None:
        if known := it.writer.last_error or canary.reasons.get(Hop.COMMITTED):
            return known
        waits, committed_s = it.writer.waits_for, it.writer.committed_s
        if waits is not None and waits[1] >= SLOW_S:
            return (
                f"PostgreSQL (process {waits[0]}) has not answered to a batch for {waits[1]:.0f} s"
            )
        if committed_s is not None and committed_s < SLOW_S:
            return "nothing is refused, PostgreSQL is taking them batch by batch"
        return None

    return {
        Hop.JOURNALED: journal,
        Hop.PUBLISHED: lambda: it.bus.failure,
        Hop.CACHED: lambda: None if it.redis is None else it.redis.last_error,
        Hop.COMMITTED: postgresql,
        Hop.BAR_RECONCILED: it.reconciler.why_overdue,
    }
