"""All stages at once, when the first test asks, and nothing beside them: they are a dozen processes."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import PostgresServer
from tests.turns import Turns

from . import secrets
from .catalogue import STAGES
from .expectation import Expectation, Stage
from .judge import Matched, Truth, judge, match, stage_faults
from .recording import drop_database, make_recording, new_database, numbered_cache, true_ticks
from .running import DAY, Place
from .stage import Report, play
from .stored import Prices, Stored, read_stored, recorded_bars


@dataclass
class Judged:
    """A stage after its end, with everything needed to judge it."""

    report: Report
    stored: Stored
    matched: Matched
    recording: Mapping[int, Prices]
    truth: Truth
    cache: Mapping[str, str]

    def faults_of(self, one: Expectation) -> list[str]:
        return judge(self.report, self.stored, self.matched, self.recording, self.truth, one)

    def faults(self) -> list[str]:
        return stage_faults(self.report, self.stored, self.matched)


@pytest.fixture(scope="session")
def judged(
    tmp_path_factory: pytest.TempPathFactory,
    turns: Turns,
    request: pytest.FixtureRequest,
) -> Mapping[str, Judged]:
    """By name, every stage that a collected test belongs to."""
    folder = tmp_path_factory.mktemp("faults")
    folder.chmod(0o755)
    wanted = {
        item.callspec.params["stage"].name
        for item in request.session.items
        if hasattr(item, "callspec") and isinstance(item.callspec.params.get("stage"), Stage)
    }
    stages = [stage for stage in STAGES if stage.name in wanted]
    # On a thread and loop of its own: pytest-asyncio's loops stay untouched.
    with turns.alone(), ThreadPoolExecutor(1) as pool:
        postgres: PostgresServer = request.getfixturevalue("postgres_server")
        valkey: str = request.getfixturevalue("_valkey_server")
        return pool.submit(asyncio.run, _all(stages, folder, postgres.dsn, valkey)).result()


async def _all(stages: list[Stage], folder: Path, dsn: str, redis_url: str) -> Mapping[str, Judged]:
    recording = make_recording(folder / "bars.parquet")
    places = []
    for number, stage in enumerate(stages, 1):
        database = await new_database(dsn, "faults")
        cache = numbered_cache(redis_url, number)
        places.append(Place(folder / stage.name, recording, database, cache))

    begun = asyncio.Event()
    if not any(stage.taught for stage in stages):
        begun.set()

    reports = await asyncio.gather(
        *(play(stage, place, begun) for stage, place in zip(stages, places, strict=True))
    )
    bars = recorded_bars(recording)
    found = {}
    for report in reports:
        stored = await read_stored(report.place.database_dsn, DAY)
        told = await secrets.cache(report.place.redis_url)
        truth = Truth(true_ticks(recording, report.stage.ticks_per_bar))
        found[report.stage.name] = Judged(report, stored, match(report, stored), bars, truth, told)
    for place in places:
        await drop_database(dsn, place.database_dsn)
    return found
