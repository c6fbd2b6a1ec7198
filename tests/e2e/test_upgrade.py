"""This release goes on where a ``kill -9`` ended an older one in mid-session, and the other way round.

The same STATE_DIR, journal, database and Redis: nothing lost, nothing doubled, whoever wrote it.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.conftest import PostgresServer
from tests.waiting import eventually

from .playback import ROOT
from .upgrading import (
    WITHIN_S,
    Estate,
    Life,
    bars_of,
    estate,
    is_tick,
    older_release,
    resumed,
    teach,
)

LIVE_TICKS = 10
"""Of the new epoch, after which a client that resumed has seen the seam."""


@dataclass(frozen=True)
class Release:
    """An older release, by its commit.

    :param returns: it also starts on what this release leaves: a downgrade is possible.
    :param ledgers: the worlds in which both know what the keys have spent. A simulated instance of this
        release has a file of its own for that, which those before did not know.
    """

    commit: str
    returns: bool
    ledgers: tuple[str, ...] = ("real", "simulated")


RELEASES = (
    Release("39e799b", returns=True, ledgers=("real",)),
    Release("0e4796c", returns=True),
)
"""Each part adds the release before it. The CHANGELOG says which of them still read what this one writes."""
WORLDS = {"simulated": {}, "real": {"PROVIDER": "twelvedata"}}


@pytest.fixture(
    scope="module",
    # The newest is always tried; what it hands on was tried when it was new.
    params=[
        *(pytest.param(one, marks=pytest.mark.long, id=one.commit) for one in RELEASES[:-1]),
        pytest.param(RELEASES[-1], id=RELEASES[-1].commit),
    ],
)
def release(request: pytest.FixtureRequest) -> Release:
    found: Release = request.param
    return found


@pytest.fixture(scope="module")
def older(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return older_release(release.commit, tmp_path_factory.mktemp("release") / release.commit)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("world", WORLDS)
async def test_nothing_is_lost_or_doubled_between_releases(
    release: Release,
    older: Path,
    world: str,
    tmp_path: Path,
    database_dsn: str,
    postgres_server: PostgresServer,
    valkey_url: str,
) -> None:
    admin = postgres_server.dsn
    async with estate(tmp_path, WORLDS[world], database_dsn, admin, valkey_url) as place:
        await teach(older, place.state_dir, world)
        first = await place.begin(older)
        await place.collecting(first)
        await end(place, first)
        spending = world in release.ledgers
        second, left = await hand_over(place, older, ROOT)  # the upgrade
        await goes_on(place, second, left, by_message=False, spending=spending)
        if release.returns:
            await end(place, second)
            third, left = await hand_over(place, ROOT, older)  # the way back
            await goes_on(place, third, left, by_message=True, spending=spending)
        assert await place.lives[-1].process.stop() == 0, place.lives[-1].process.text()[-4000:]
        await everything_is_stored_once(place)


async def end(place: Estate, life: Life) -> None:
    """Kill it in mid-session, with records that only its journal has."""
    async with place.watching(life):
        await place.kill_in_the_middle(life)


@dataclass(frozen=True)
class Left:
    """What a killed life left, as the release that wrote it reads it."""

    ticks: Sequence[dict[str, Any]]
    cursor: tuple[int, int]  # of a client that had only a part of it
    calls: int  # of the vendor, so far


async def hand_over(place: Estate, before: Path, after: Path) -> tuple[Life, Left]:
    """Start the release in ``after`` on what a life of the one in ``before`` left."""
    journal = place.copy_of_the_journal()
    stored = await place.query("SELECT FROM realtime_market_data")
    called = await calls(place)
    published = {at: one["price"] for at, one in place.lives[-1].ticks.items()}
    life = await place.begin(after)
    ticks = await place.export(before, journal, "ticks")
    journaled = {(one["epoch"], one["offset"]): one["price"] for one in ticks}
    assert published.items() <= journaled.items(), "published before it was on disk"
    assert len(stored) < len(ticks), "the journal was to be ahead of the database"
    return life, Left(ticks, sorted(published)[len(published) // 2], called)


async def calls(place: Estate) -> int:
    """How often the vendor was called."""
    async with httpx.AsyncClient(base_url=place.environ["TWELVEDATA_REST_URL"]) as http:
        return len((await http.get("/_sim/requests")).json()["requests"])


async def goes_on(
    place: Estate, life: Life, left: Left, *, by_message: bool, spending: bool
) -> None:
    """It has read all that was left, and collects."""
    status = await place.collecting(life, after=left.ticks[-1]["epoch"])
    assert life.faults() == []

    # What was learned: the silences of the day before, and what the keys have spent.
    assert status["realtime_collection"]["verdicts"]["USDCOP"]["learned_days"] == 1
    # A call is counted before it is sent: a kill between the two leaves one that the vendor never saw.
    most = await calls(place) + len(place.lives) - 1
    assert (left.calls if spending else 0) <= status["api_key_usage"]["total_calls"] <= most

    # A client that was cut off goes on without a hole.
    messages = await resumed(life, left.cursor, by_message=by_message, until=LIVE_TICKS)
    (seam,) = (one for one in messages if one["type"] == "epoch")
    last = left.ticks[-1]
    assert (seam["previous_epoch"], seam["previous_last_offset"]) == (last["epoch"], last["offset"])
    assert seam["epoch"] > last["epoch"]
    assert [one for one in messages if one["type"] in ("skipped", "error")] == []
    ticks = [one for one in messages if is_tick(one)]
    got = Counter((one["epoch"], one["offset"]) for one in ticks)
    newest = max(got)
    owed = [
        *((one["epoch"], one["offset"]) for one in left.ticks),
        *((seam["epoch"], offset) for offset in range(1, newest[1] + 1)),
    ]
    assert sorted(got) == [at for at in owed if at > left.cursor]
    if not by_message:  # which may give what came since the welcome twice
        assert max(got.values()) == 1
    prices = {(one["epoch"], one["offset"]): one["price"] for one in left.ticks}
    for one in ticks:
        at = (one["epoch"], one["offset"])
        assert prices.get(at, one["data"]["price"]) == one["data"]["price"]
    await cached(place, datetime.fromisoformat(ticks[-1]["data"]["timestamp"]))


async def cached(place: Estate, since: datetime) -> None:
    """Redis has the price of this life, too; a simulated instance may have put a prefix before the name."""
    async with redis.asyncio.Redis.from_url(place.environ["REDIS_URL"]) as client:

        async def fresh() -> bool | None:
            values = [await client.get(name) for name in await client.keys("*usdcop:latest_price")]
            stamps = [json.loads(value)["timestamp"] for value in values if value]
            return any(datetime.fromisoformat(one) >= since for one in stamps) or None

        await eventually(fresh, WITHIN_S, "a price of this life in Redis")


async def everything_is_stored_once(place: Estate) -> None:
    """The journal, read by this release, against the tables; and the bars against the ticks."""
    journal = place.state_dir / "journal"
    ticks, published = await asyncio.gather(
        place.export(ROOT, journal, "ticks"), place.export(ROOT, journal, "bars")
    )
    stored = await place.query(
        "SELECT epoch, tick_offset, last::float8, bid::float8, ask::float8, source, time "
        "FROM realtime_market_data ORDER BY epoch, tick_offset"
    )
    assert [tuple(row) for row in stored] == [
        (
            *(one[name] for name in ("epoch", "offset", "price", "bid", "ask", "source")),
            datetime.fromisoformat(one["timestamp"]),
        )
        for one in ticks
    ]

    epochs = Counter(one["epoch"] for one in ticks)
    begun = sorted(epochs)
    assert len(begun) == len(place.lives)
    assert [(one["epoch"], one["offset"]) for one in ticks] == [
        (epoch, offset) for epoch in begun for offset in range(1, epochs[epoch] + 1)
    ]
    chain = await place.query(
        "SELECT epoch, previous_epoch, previous_last_offset FROM tick_epochs ORDER BY epoch"
    )
    assert [row["epoch"] for row in chain] == begun
    assert [tuple(row) for row in chain][1:] == [
        (epoch, before, epochs[before]) for before, epoch in pairwise(begun)
    ]

    revisions = await place.query(
        "SELECT datetime, source, epoch, revision FROM bar_revisions WHERE epoch > 0"
    )
    assert Counter(map(tuple, revisions)) == Counter(
        (datetime.fromisoformat(one["datetime"]), one["source"], one["epoch"], one["revision"])
        for one in published
    )
    twice = await place.query(
        "SELECT FROM market_data GROUP BY symbol, datetime, source HAVING count(*) > 1"
    )
    assert twice == []

    bars = await place.query(
        "SELECT datetime, open::float8, high::float8, low::float8, close::float8, "
        "certificate @> '{\"partial\": false}' AS whole FROM market_data "
        "WHERE source LIKE '%\\_websocket' OR source LIKE '%\\_rest' ORDER BY datetime"
    )
    computed = bars_of(ticks)
    forming = max(computed)
    live = {row["datetime"]: tuple(row)[1:5] for row in bars}
    # Those that a kill cut in two, too: the next life finished them.
    assert {**live, forming: None} == {**computed, forming: None}
    assert any(row["whole"] for row in bars)
