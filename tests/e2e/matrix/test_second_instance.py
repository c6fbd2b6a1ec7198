"""Two instances under a supervisor: one collects, the other waits and says who does.

Whatever the second one goes through, the first one stays ACTIVE; once the first is gone the second collects,
and when the first comes back it waits.
"""

import signal
from pathlib import Path

import pytest

from .stage import Instance, Sample, installation

pytestmark = pytest.mark.long

LEASE_S = 30.0
"""A lease that nobody renews is over by then; seconds of the machine."""


def _waits(one: Sample) -> bool:
    """It does not pass for one that collects, and says so."""
    return one.state in ("ready", "market_closed") and one.names(r"collects nothing|standby")


async def _stays_active(instance: Instance, seen: int) -> list[str]:
    await instance.well()
    return [
        f"the active one was {one.state}: {one.problems}"
        for one in instance.samples[seen:]
        if one.state != "active"
    ]


@pytest.mark.timeout(400)
async def test_the_one_that_collects_is_never_disturbed(tmp_path: Path) -> None:
    async with installation(tmp_path, speed=20.0) as stage:
        first = await stage.begin()
        await first.well()
        begun = len(first.samples)
        other = {"STATE_DIR": str(tmp_path / "other")}

        # A supervisor that starts it again whenever it ends.
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            second = await stage.begin(**other)
            waiting = await second.until("a standby that names who collects", _waits)
            assert waiting.status == "degraded"
            await second.process.stop(number)
        # One that fails at its start, one after the other: no flag, no folder, no key.
        for broken in (
            {"READY_SIGNALS_DIR": str(tmp_path / "nothing")},
            {"TWELVEDATA_API_KEY_G1_1": "your_key", "TWELVEDATA_API_KEY_G1_2": ""},
            {"SSL_CERT_PATH": "/nothing", "SSL_KEY_PATH": "/nothing"},
        ):
            third = await stage.begin(**other, **broken)
            until = first.samples[-1].at + 3.0
            await first.until("time to pass", lambda one, until=until: one.at > until)
            if third.process.running:
                await third.process.stop(signal.SIGKILL)
        assert await _stays_active(first, begun) == []

        second = await stage.begin(**other)
        await second.until("a standby", _waits)
        await first.process.stop(signal.SIGKILL)
        await second.well(LEASE_S)
        begun = len(second.samples)
        again = (
            await stage.begin()
        )  # the same STATE_DIR as the first: it has been replaced all the same
        await again.until("a standby", _waits)
        assert await _stays_active(second, begun) == []
        await again.process.stop(signal.SIGTERM)
        assert await stage.ledger(second) == []
        stored = await stage.sql("SELECT epoch, tick_offset FROM realtime_market_data")
        assert first.seen <= {(row["epoch"], row["tick_offset"]) for row in stored}
