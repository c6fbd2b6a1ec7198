"""All stages at once, when the first test asks: they wait far more than they compute."""

import asyncio
import random
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import asyncpg
import polars as pl
import pytest

from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.twelvedata.simulator import market_from_options
from tests.conftest import PostgresServer

from .catalogue import STAGES
from .expectation import Expectation, Stage
from .judge import Matched, Truth, judge, match, stage_faults
from .stage import (
    CLOSES,
    DAY,
    OPENS,
    TAUGHT_DAY,
    TICKS_PER_BAR,
    VENDOR_SYMBOL,
    Place,
    Report,
    play,
    teach,
)
from .stored import Prices, Stored, read_stored, recorded_bars


@dataclass
class Judged:
    """A stage after its end, with everything needed to judge it."""

    report: Report
    stored: Stored
    matched: Matched
    recording: Mapping[int, Prices]
    truth: Truth

    def faults_of(self, one: Expectation) -> list[str]:
        return judge(self.report, self.stored, self.matched, self.recording, self.truth, one)

    def faults(self) -> list[str]:
        return stage_faults(self.report, self.stored, self.matched)


@pytest.fixture(scope="session")
def judged(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: PostgresServer,
    _valkey_server: str,
    request: pytest.FixtureRequest,
) -> Iterator[Mapping[str, Judged]]:
    """By name, every stage that a collected test belongs to."""
    folder = tmp_path_factory.mktemp("faults")
    folder.chmod(0o755)
    wanted = {
        item.callspec.params["stage"].name
        for item in request.session.items
        if hasattr(item, "callspec") and isinstance(item.callspec.params.get("stage"), Stage)
    }
    stages = [stage for stage in STAGES if stage.name in wanted]
    with ThreadPoolExecutor(1) as pool:
        # On a thread and loop of its own: pytest-asyncio's loops stay untouched.
        yield pool.submit(
            asyncio.run, _all(stages, folder, postgres_server.dsn, _valkey_server)
        ).result()


async def _all(stages: list[Stage], folder: Path, dsn: str, redis_url: str) -> Mapping[str, Judged]:
    recording = make_recording(folder / "bars.parquet")
    places = []
    for number, stage in enumerate(stages):
        name = f"faults_{uuid.uuid4().hex[:12]}"
        await _execute(dsn, f'CREATE DATABASE "{name}"')
        places.append(
            Place(
                folder / stage.name,
                recording,
                dsn.replace("/postgres?", f"/{name}?"),
                f"{redis_url.rpartition('=')[0]}={number + 1}",
            )
        )

    async def one(stage: Stage, place: Place) -> Report:
        if stage.taught:
            place = replace(place, taught=await teach(stage, place))
        return await play(stage, place)

    reports = await asyncio.gather(*map(one, stages, places))
    bars = recorded_bars(recording)
    truth = Truth(_truth(recording))
    found = {}
    for report in reports:
        stored = await read_stored(report.place.database_dsn, DAY)
        found[report.stage.name] = Judged(report, stored, match(report, stored), bars, truth)
    for place in places:
        name = place.database_dsn.partition("?")[0].rpartition("/")[2]
        await _execute(dsn, f'DROP DATABASE "{name}" WITH (FORCE)')
    return found


def make_recording(path: Path) -> Path:
    """Plausible bars of the session's labels for three weeks."""
    rng = random.Random(17)
    calendar = TradingCalendar(_time(OPENS), _time(CLOSES))
    rows, price = [], 3900.0
    for day in calendar.trading_days(TAUGHT_DAY - timedelta(days=21), DAY):
        for label in calendar.expected_labels(day):
            moves = [round(price + rng.gauss(0, 3), 4) for _ in range(4)]
            price = moves[-1]
            at = datetime.fromtimestamp(label, UTC)
            rows.append((at, "USDCOP", moves[0], max(moves), min(moves), price, 0, "twelvedata"))
    columns = ["datetime", "symbol", "open", "high", "low", "close", "volume", "source"]
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(path)
    return path


def _truth(recording: Path) -> list[tuple[int, float]]:
    market = market_from_options(recording, ticks_per_bar=TICKS_PER_BAR)
    source = market.get(VENDOR_SYMBOL)
    assert source is not None
    midnight = int(datetime.combine(DAY, time(5), UTC).timestamp())
    return [(tick.timestamp, tick.price) for tick in source.ticks(midnight, midnight + 86_400)]


def _time(text: str) -> time:
    hours, minutes = text.split(":")
    return time(int(hours), int(minutes))


async def _execute(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
