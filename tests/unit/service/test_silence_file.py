"""The learned silences survive a restart; a damaged file costs only knowledge."""

from datetime import date
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.liveness.baseline import PRIOR, InactivityBaseline
from enhanced_websocket_service.service.silence_file import SilenceFile

TODAY = date(2026, 11, 20)


def taught() -> InactivityBaseline:
    profile = InactivityBaseline()
    for minute in range(10):
        profile.learn("USDCOP", "2026-11-19", minute, 2, 50.0)
    return profile


def silence_file(
    profile: InactivityBaseline, folder: Path, *, simulated: bool = False
) -> SilenceFile:
    return SilenceFile(profile, folder, Failures(SystemClock()), simulated=simulated)


def test_what_was_learned_is_there_again(tmp_path: Path) -> None:
    silence_file(taught(), tmp_path / "new").save()
    profile = InactivityBaseline()
    silence_file(profile, tmp_path / "new").load(TODAY)
    assert profile.usual("USDCOP", TODAY.isoformat(), 5).silence_s == 50.0


def test_invented_prices_teach_nothing_about_real_ones(tmp_path: Path) -> None:
    silence_file(taught(), tmp_path, simulated=True).save()
    profile = InactivityBaseline()
    silence_file(profile, tmp_path).load(TODAY)
    assert profile.usual("USDCOP", TODAY.isoformat(), 5) == PRIOR


def test_nothing_saved_is_no_fault(tmp_path: Path) -> None:
    with capture_logs() as logs:
        silence_file(InactivityBaseline(), tmp_path).load(TODAY)
    assert logs == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 9, "symbols": {}}', b"\xff"])
def test_a_damaged_file_is_reported_and_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "silence.json").write_bytes(content)
    profile = InactivityBaseline()
    failures = Failures(SystemClock())
    SilenceFile(profile, tmp_path, failures, simulated=False).load(TODAY)
    (told,) = failures.present
    assert str(tmp_path / "silence.json") in told.reason
    assert profile.usual("USDCOP", TODAY.isoformat(), 5) == PRIOR


def test_the_same_content_is_not_written_again(tmp_path: Path) -> None:
    file = silence_file(taught(), tmp_path)
    file.save()
    before = (tmp_path / "silence.json").stat().st_mtime_ns
    file.save()
    assert (tmp_path / "silence.json").stat().st_mtime_ns == before


def test_a_folder_that_cannot_be_written_is_told_until_it_can(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    failures = Failures(SystemClock())
    file = SilenceFile(taught(), tmp_path / "file", failures, simulated=False)
    file.save()
    (failure,) = failures.present
    assert failure.part == "silence profile"
    assert str(tmp_path / "file") in failure.reason
    (tmp_path / "file").unlink()
    file.save()
    assert failures.present == ()
