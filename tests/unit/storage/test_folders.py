"""Whether a folder takes files: tried, undone, and told by the operating system's own error."""

import errno
from pathlib import Path

import pytest

from enhanced_websocket_service.storage.folders import fault_of


def test_a_folder_that_takes_files_is_left_as_it_was(tmp_path: Path) -> None:
    assert fault_of(tmp_path / "a" / "b") is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_its_place_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        error = fault_of(folder)
        assert error is not None
        assert error.errno == errno.ENOTDIR


def test_a_folder_that_another_makes_at_the_same_moment_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    with monkeypatch.context() as unseen:
        unseen.setattr(Path, "exists", lambda path: path != folder)
        assert fault_of(folder) is None
    assert folder.is_dir(), "only what was made is undone"
