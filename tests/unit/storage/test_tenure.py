"""Which records may be stored, by marks in the journal."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.storage import tenure as tenure_module
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.segment import Position
from enhanced_websocket_service.storage.tenure import Tenure
from tests.storage_samples import ticks

ENDLESS = 1 << 62


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal.open(tmp_path / "journal")
    yield journal
    journal.close()


@pytest.fixture
def failures() -> Failures:
    return Failures(SystemClock())


def reopened(journal: Journal) -> Journal:
    journal.close()
    return Journal.open(journal.directory)


def test_what_an_earlier_process_left_is_stored_and_what_comes_waits_for_the_fence(
    journal: Journal, tmp_path: Path, failures: Failures
) -> None:
    begin = journal.append(ticks(5))
    tenure = Tenure(tmp_path, journal, failures)
    end = journal.append(ticks(3, first=6))
    assert tenure.limit == begin
    assert not tenure.needs_fence(begin)
    assert tenure.needs_fence(end)
    assert tenure.room(begin) == 0
    tenure.began(7, 0.0, kept_back=False)
    assert (tenure.limit, tenure.epoch, tenure.room(begin)) == (None, 7, ENDLESS)
    # The claim proves that nobody collected before.
    assert not tenure.needs_fence(end)


def test_what_was_journaled_while_it_held_is_stored_whoever_holds_it_now(
    journal: Journal, tmp_path: Path, failures: Failures
) -> None:
    tenure = Tenure(tmp_path, journal, failures)
    tenure.began(7, tenure_module.monotonic(), kept_back=False)
    lost_at = journal.append(ticks(5))
    tenure.lost("the winner")
    journal.append(ticks(4, first=6))
    assert tenure.limit == lost_at
    assert not tenure.needs_fence(lost_at)
    regained_at = journal.end
    tenure.began(9, tenure_module.monotonic(), kept_back=True, winner="the winner")
    journal.append(ticks(2, epoch=9))
    gap = tenure.gap_at(lost_at)
    assert gap is not None
    assert (gap.first, gap.end, gap.count(journal.end)) == (lost_at, regained_at, 4)
    (told,) = failures.present
    assert told.reason.startswith("4 records that were journaled while the winner collected")
    assert "journal inspect" in told.reason
    assert tenure.room(regained_at) == ENDLESS


def test_a_silent_lease_ends_where_the_mark_was_put(
    journal: Journal, tmp_path: Path, failures: Failures, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(tenure_module, "monotonic", lambda: now)
    tenure = Tenure(tmp_path, journal, failures)
    tenure.began(7, now, kept_back=False)
    journal.append(ticks(5))
    confirmed = journal.end
    tenure.confirmed(confirmed, now)
    held = journal.append(ticks(5, first=6))
    now += 15.0
    tenure.expire()
    journal.append(ticks(5, first=11))
    assert tenure.undecided == held
    tenure.lost("the winner")
    assert tenure.limit == held
    # A process that stood still cannot tell what came in before the mark.
    tenure.began(8, now, kept_back=True)
    again = journal.end
    tenure.confirmed(again, now)
    journal.append(ticks(5, epoch=8))
    now += 60.0
    tenure.expire()
    assert tenure.undecided == again


@pytest.mark.parametrize("winner", [True, False])
def test_a_kill_in_doubt_leaves_the_doubt_to_the_next_process(
    journal: Journal, tmp_path: Path, failures: Failures, winner: bool
) -> None:
    tenure = Tenure(tmp_path, journal, failures)
    tenure.began(7, tenure_module.monotonic(), kept_back=False)
    certain = journal.append(ticks(5))
    tenure.expire()
    journal.append(ticks(5, first=6))
    journal = reopened(journal)
    after = Tenure(tmp_path, journal, failures)
    assert after.held_last
    assert after.limit is not None
    assert after.limit.record == certain.record
    after.began(9, 0.0, kept_back=winner, winner="somebody")
    assert (after.gap_at(certain) is not None) == winner
    assert bool(failures.present) == winner
    again = Tenure(tmp_path, reopened(journal), failures)
    assert (again.gap_at(certain) is not None) == winner
    assert not again.needs_fence(certain)


def test_what_a_standby_noted_is_not_stored_by_the_process_after_it(
    journal: Journal, tmp_path: Path, failures: Failures
) -> None:
    before = journal.append(ticks(5))
    standby = Tenure(tmp_path, journal, failures)
    standby.lost("the winner")
    standby.lost("the winner")
    # E.g. the bar that was forming when the process before died: the winner has a better one.
    journal.append(ticks(3, epoch=9))
    journal = reopened(journal)
    after = Tenure(tmp_path, journal, failures)
    gap = after.gap_at(before)
    assert gap is not None
    assert (gap.first.record, gap.end) == (before.record, journal.end)
    assert after.gap_at(Position(*before[:2], before.record - 1)) is None
    assert failures.present == ()  # no price is among them
    after.lost("the winner")
    journal.append(ticks(2, epoch=10))
    after.began(11, 0.0, kept_back=True, winner="the winner")
    assert after.room(journal.end) == ENDLESS
    gap = after.gap_at(before)
    assert gap is not None
    assert (gap.first.record, gap.end) == (before.record, journal.end)
    saved = json.loads((tmp_path / "fence.json").read_text())
    assert len(saved["kept_back"]) == 1, "a standby that restarts for ever"


FOREIGN = [
    *(b"", b"{", b"[]", b"\xff", b'{"owner": 1}'),
    b'{"owner": "x", "held": true, "undecided": null, "kept_back": []}',
]


@pytest.mark.parametrize("content", FOREIGN)
def test_a_foreign_file_says_nothing(
    journal: Journal, tmp_path: Path, failures: Failures, content: bytes
) -> None:
    (tmp_path / "fence.json").write_bytes(content)
    tenure = Tenure(tmp_path, journal, failures)
    assert not tenure.held_last
    assert tenure.limit == journal.end
    assert [one.part for one in failures.present] == ["fence file"][: content != FOREIGN[-1]]
    tenure.began(7, 0.0, kept_back=False)
    assert json.loads((tmp_path / "fence.json").read_text())["owner"] == str(journal.journal_id)
    assert failures.present == ()


@pytest.mark.parametrize("record", [-1, 10**9])
def test_places_of_another_journal_mean_nothing(
    journal: Journal, tmp_path: Path, failures: Failures, record: int
) -> None:
    saved = {
        "owner": str(journal.journal_id),
        "held": True,
        "undecided": [1, 64, record],
        "kept_back": [],
    }
    (tmp_path / "fence.json").write_text(json.dumps(saved))
    tenure = Tenure(tmp_path, journal, failures)
    assert (tenure.held_last, tenure.limit) == (False, journal.end)
