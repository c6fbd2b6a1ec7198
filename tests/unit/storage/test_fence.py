"""Who may claim the fence: decided on rows alone."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.storage.fence import FenceRow, holder_of, is_ours

OURS, THEIRS = "00000001-0000-4000-8000-000000000000", "00000002-0000-4000-8000-000000000000"
NOW, KNOWN = 1_750_000_000.0, 100


def row(**changes: Any) -> FenceRow:
    fields: dict[str, Any] = {
        "symbol": "USDCOP",
        "epoch": 200,
        "owner": THEIRS,
        "name": "their host",
        "lease_epoch": 200,
        "claimed_at": NOW - 3600,
        "heartbeat_at": NOW - 2,
        "released": False,
        "updated_at": NOW - 3600,
        "now": NOW,
        "stored_here": False,
        "last_state": None,
        "stores": False,
    }
    return FenceRow(**{**fields, **changes})


def by_an_older_release(**changes: Any) -> FenceRow:
    """It raises the epoch and leaves the rest as it was."""
    return row(**{"lease_epoch": 150, "updated_at": NOW - 60, **changes})


CLAIMABLE = {
    "never claimed": row(epoch=0, owner=None, lease_epoch=None),
    "released": row(released=True),
    "expired": row(heartbeat_at=NOW - 15),
    "our own, from before a restart": row(owner=OURS, epoch=KNOWN, lease_epoch=KNOWN),
    "our own, and an older clock": row(owner=OURS, epoch=50, lease_epoch=50),
    "a heartbeat of a clock that was set back": row(heartbeat_at=NOW + 3600),
    "an older release that is gone": by_an_older_release(),
    "an older release that stopped": by_an_older_release(last_state="shutdown", stores=True),
    "an older release that only waits": by_an_older_release(last_state="waiting_l0"),
    "an older release of this STATE_DIR": by_an_older_release(epoch=KNOWN, last_state="active"),
    "an older release of this journal": by_an_older_release(stored_here=True, last_state="active"),
    "without a lease, of an older release": row(owner=None, lease_epoch=None),
}
HELD = {
    "a fresh heartbeat": row(),
    "a lower epoch than ours": row(epoch=1, lease_epoch=1),
    "just short of its end": row(heartbeat_at=NOW - 14.9),
    "a copy of our STATE_DIR": row(owner=OURS),
    "an older release that collects": by_an_older_release(last_state="active"),
    "an older release about to collect": by_an_older_release(last_state="ready"),
    "an older release that stores": by_an_older_release(stores=True),
}


@pytest.mark.parametrize("name", CLAIMABLE)
def test_it_is_claimed(name: str) -> None:
    assert holder_of(CLAIMABLE[name], OURS, KNOWN) is None


@pytest.mark.parametrize("name", HELD)
def test_it_is_waited_for(name: str) -> None:
    holder = holder_of(HELD[name], OURS, KNOWN)
    assert holder is not None
    assert f"epoch {HELD[name].epoch}" in str(holder)


@given(epoch=st.integers(1, 1 << 53), known=st.integers(0, 1 << 53), age=st.floats(0, 14.9))
def test_no_epoch_however_high_takes_it_from_who_renews(epoch: int, known: int, age: float) -> None:
    held = row(epoch=epoch, lease_epoch=epoch, heartbeat_at=NOW - age)
    assert holder_of(held, OURS, known) is not None
    assert not is_ours(held, OURS, known)
