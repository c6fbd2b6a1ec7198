"""Two whole services on one database: who collects, who waits, and what becomes of their ticks."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import eventually

from .two_instances import MORNING, Instance, Pair, pair

LEASE_S = 15.0
LATER_STATE = """
INSERT INTO system_health (service_name, status, details)
VALUES ('enhanced_websocket_service', $1, jsonb_build_object('epoch', $2::bigint))
"""


async def ticks_arrive(one: Pair, instance: Instance, epoch: int | None = None) -> int:
    """Wait until PostgreSQL has ticks of ``instance``'s epoch; the epoch."""

    async def look() -> int | None:
        wanted = instance.epoch if epoch is None else epoch
        return wanted if (await one.stored()).get(wanted) else None

    return await eventually(look, 15, lambda: f"ticks of {instance.name}: {instance.reason}")


async def problems(instance: Instance) -> str:
    return " ".join((await instance.get("/health"))["problems"])


async def test_an_instance_that_waits_for_its_flag_disturbs_nobody_and_says_who_collects(
    database_dsn: str, tmp_path: Path
) -> None:
    async with pair(database_dsn, tmp_path) as one:
        await one.a.start()
        await one.a.until("active")
        (one.b.settings.ready_signals_dir / "l0_ready.flag").unlink(missing_ok=True)
        await one.b.start()
        await one.b.until("waiting_l0")
        epoch = await ticks_arrive(one, one.a)

        async def told() -> str | None:
            text = await problems(one.b)
            return text if "This instance collects nothing" in text else None

        text = await eventually(told, 10, "B says who collects")
        assert "collects USDCOP since" in text
        assert f"epoch {one.a.epoch}" in text
        await one.b.stop()
        before = len((await one.stored())[epoch])

        async def more() -> bool | None:
            return len((await one.stored())[epoch]) > before + 5 or None

        await eventually(more, 15, "A goes on storing")
        assert one.a.states.count("active") == 1
        assert "error" not in one.a.states


@pytest.mark.parametrize("first", ["a", "b"])
async def test_a_standby_takes_over_from_who_stops_under_a_higher_epoch(
    database_dsn: str, tmp_path: Path, first: str
) -> None:
    async with pair(database_dsn, tmp_path) as one:
        active, standby = (one.a, one.b) if first == "a" else (one.b, one.a)
        for instance in (active, standby):
            instance.raise_flag()
        await active.start()
        await active.until("active")
        old = await ticks_arrive(one, active)
        await standby.start()
        await standby.until("ready", reason="This instance collects nothing")
        spent = one.credits_of(standby.name)
        assert (await standby.get("/health"))["status"] == "degraded"
        shown = (await standby.get("/status"))["collector"]
        assert shown["held"] is False
        assert f"(epoch {old})" in shown["waiting_for"]
        assert (await active.get("/status"))["collector"]["held"] is True
        assert standby.service is not None
        assert standby.service.lifecycle.feed is None
        await asyncio.sleep(0)
        assert one.credits_of(standby.name) == spent
        await active.stop()
        await standby.until("active")
        new = await ticks_arrive(one, standby)
        assert new > old
        assert "This instance collects nothing" not in await problems(standby)
        stored = await one.stored()
        assert set(stored) == {old, new}
        for offsets in stored.values():
            assert offsets == list(range(1, len(offsets) + 1))
        last = len(stored[old])
        assert await one.rows(
            "SELECT previous_epoch, previous_last_offset FROM tick_epochs WHERE epoch = $1", new
        ) == [(old, last)]


async def test_who_dies_is_succeeded_when_its_lease_has_run_out(
    database_dsn: str, tmp_path: Path
) -> None:
    async with pair(database_dsn, tmp_path) as one:
        for instance in (one.a, one.b):
            instance.raise_flag()
        await one.a.start()
        await one.a.until("active")
        old = await ticks_arrive(one, one.a)
        await one.b.start()
        await one.b.until("ready", reason="This instance collects nothing")
        await one.a.die()
        await one.b.until("active", within_s=LEASE_S + 10)
        assert await ticks_arrive(one, one.b) > old
        # It comes back, as a supervisor has it, and waits.
        await one.a.start()
        await one.a.until("ready", reason="This instance collects nothing")
        assert one.b.state == "active"


async def test_a_restart_of_the_same_state_dir_goes_on_at_once(
    database_dsn: str, tmp_path: Path
) -> None:
    async with pair(database_dsn, tmp_path) as one:
        one.a.raise_flag()
        await one.a.start()
        await one.a.until("active")
        old = await ticks_arrive(one, one.a)
        await one.a.die()
        await one.a.start()
        await one.a.until("active", within_s=LEASE_S / 5)
        assert await ticks_arrive(one, one.a) > old


async def test_a_supervisor_that_restarts_a_failing_instance_for_ever_disturbs_nobody(
    database_dsn: str, tmp_path: Path
) -> None:
    async with pair(database_dsn, tmp_path) as one:
        one.a.raise_flag()
        await one.a.start()
        await one.a.until("active")
        epoch = await ticks_arrive(one, one.a)
        for stage in range(6):
            if stage == 3:
                one.b.raise_flag()
            if stage == 5:
                await one.b.proxy.down()
            await one.b.start()
            if stage in (1, 4):
                await one.b.until("waiting_l0" if stage == 1 else "ready")
            await (one.b.die() if stage % 2 else one.b.stop())
        before = len((await one.stored())[epoch])

        async def more() -> bool | None:
            return len((await one.stored())[epoch]) > before + 5 or None

        await eventually(more, 15, "A goes on storing")
        assert "error" not in one.a.states
        assert await one.rows("SELECT epoch FROM epoch_fence") == [(epoch,)]
        await one.b.proxy.up()


async def test_a_lost_fence_is_an_error_that_names_the_winner_and_is_claimed_again_when_it_is_free(
    database_dsn: str, tmp_path: Path
) -> None:
    """The winner is an instance of the release before, which knows epochs alone."""
    async with pair(database_dsn, tmp_path) as one:
        one.a.raise_flag()
        await one.a.start()
        await one.a.until("active")
        old = await ticks_arrive(one, one.a)
        theirs = old + 1000
        await one.rows(LATER_STATE, "active", theirs)
        await one.rows("UPDATE epoch_fence SET epoch = $1, updated_at = now()", theirs)

        async def fenced() -> bool | None:
            return "error" in one.a.states or None

        await eventually(fenced, 15, lambda: f"A is told: {one.a.states}")
        await one.a.until("ready", reason="An instance of an older release collects USDCOP")
        assert f"epoch {theirs}" in one.a.reason
        kept = (await one.stored())[old]
        assert kept == list(range(1, len(kept) + 1))
        await one.rows(LATER_STATE, "shutdown", theirs)
        await one.a.until("active")
        assert await ticks_arrive(one, one.a) > theirs
        assert (await one.stored())[old] == kept


async def test_what_was_journaled_without_the_fence_is_kept_and_told_and_the_rest_is_stored(
    database_dsn: str, tmp_path: Path
) -> None:
    async with pair(database_dsn, tmp_path) as one:
        for instance in (one.a, one.b):
            instance.raise_flag()
        await one.a.start()
        await one.a.until("active")
        old = await ticks_arrive(one, one.a)
        await one.b.start()
        await one.b.until("ready", reason="This instance collects nothing")
        await one.a.proxy.down()
        await one.b.until("active", within_s=LEASE_S + 10)
        new = await ticks_arrive(one, one.b)
        assert one.a.state == "active"  # it cannot know
        assert one.a.service is not None
        line: Any = one.a.service._pipeline
        before = line.offsets["USDCOP"]

        async def goes_on() -> bool | None:
            return line.offsets["USDCOP"] > before + 2 or None

        await eventually(goes_on, 20, "A journals on")
        await one.a.proxy.up()
        await one.a.until("ready", reason="This instance collects nothing", within_s=30)
        assert "error" in one.a.states
        writer: Any = one.a.service._writer

        async def done() -> bool | None:
            return writer.caught_up or None

        await eventually(done, 20, "A has stored what it may")
        stored = await one.stored()
        assert set(stored) == {old, new}
        assert stored[old] == list(range(1, len(stored[old]) + 1))
        assert len(stored[old]) < line.offsets["USDCOP"]
        told = await problems(one.a)
        assert "records that were journaled while" in told
        assert "journal inspect" in told
        # Nobody else was there when the first of them came: those of the lease are all stored.
        ((first, last),) = await one.rows(
            "SELECT extract(epoch FROM min(received_at))::float8, "
            "extract(epoch FROM max(received_at))::float8 FROM realtime_market_data WHERE epoch = $1",
            old,
        )
        ((began,),) = await one.rows(
            "SELECT extract(epoch FROM min(received_at))::float8 FROM realtime_market_data "
            "WHERE epoch = $1",
            new,
        )
        assert first < last < began
        saved = json.loads((one.a.settings.state_dir / "fence.json").read_text())
        assert saved["held"] is False
        # A restart does not store them either.
        await one.a.stop()
        await one.a.start()
        await one.a.until("ready", reason="This instance collects nothing")
        assert "records that were journaled while" in await problems(one.a)
        await one.b.stop()
        await one.a.until("active")
        await ticks_arrive(one, one.a)
        assert (await one.stored())[old] == stored[old]


async def test_who_loses_the_fence_between_sessions_wants_it_again(
    database_dsn: str, tmp_path: Path
) -> None:
    """The night's repairs journal bars, and only who holds the fence may store them."""
    evening = MORNING + 10 * 3600.0
    async with pair(database_dsn, tmp_path, start=evening) as one:
        await one.a.start()
        await one.a.until("market_closed")

        async def held() -> bool | None:
            return (await one.a.get("/status"))["collector"]["held"] or None

        await eventually(held, 15, "A holds the fence")
        await one.rows(
            "UPDATE epoch_fence SET owner = 'somebody', owner_name = 'another host', epoch = epoch + 1, "
            "lease_epoch = epoch + 1, heartbeat_at = now()"
        )
        await one.a.until("market_closed", reason="another host collects USDCOP")
        await one.rows("UPDATE epoch_fence SET released_at = now()")
        await eventually(held, 15, lambda: f"A holds the fence again: {one.a.reason}")
