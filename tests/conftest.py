"""Real servers for every test that wants one: one PostgreSQL and one Valkey per pytest process.

They live in a temporary folder and end with the session. A watchdog process, which sees its standard
input end whatever becomes of pytest (Ctrl-C, ``kill -9``, a time-out), removes what would be left.
"""

import asyncio
import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis
from hypothesis import HealthCheck, settings

from enhanced_websocket_service.storage.embedded import EmbeddedServers

from .foreign_owner import execute
from .turns import Turns

T = TypeVar("T")

# How long an example takes says how busy the machine is, nothing of what is tested.
settings.register_profile("ews", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ews")

_TURNS = pytest.StashKey[Turns]()

_WATCHDOG = """
import asyncio, shutil, sys
from pathlib import Path

sys.stdin.read()
state_dir = Path(sys.argv[1])
if state_dir.exists():
    from enhanced_websocket_service.storage.embedded import EmbeddedServers

    asyncio.run(EmbeddedServers(state_dir).erase())
    shutil.rmtree(state_dir, ignore_errors=True)
"""


@dataclass(frozen=True)
class PostgresServer:
    """``dsn`` leads to the database ``postgres`` of the session's server."""

    dsn: str


@pytest.fixture(scope="session")
def turns(request: pytest.FixtureRequest) -> Turns:
    """For what a test marked ``takes_turns`` does alone, whose time-out must allow for the waiting."""
    return request.config.stash[_TURNS]


def pytest_configure(config: pytest.Config) -> None:
    # Under nohup, or in the background of a script, these are ignored, and what the tests start would rightly
    # ignore them, too. A handler, unlike that, is not inherited.
    for number in (signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    given = getattr(config, "workerinput", {}).get("turns")
    folder = Path(given or tempfile.mkdtemp(prefix="ews-turns-"))
    config.stash[_TURNS] = Turns(folder)
    if given is None:
        config.add_cleanup(lambda: shutil.rmtree(folder))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """A worker of xdist is about to begin."""
    node.workerinput["turns"] = str(node.config.stash[_TURNS].folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    twice = [name for name, count in Counter(item.nodeid for item in items).items() if count > 1]
    if twice:  # xdist would run one of them and say nothing of the others
        raise pytest.UsageError(f"Several tests have the same name: {', '.join(twice)}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    # Around everything, the test's time-out too: waiting for one's turn is nobody's fault.
    if item.get_closest_marker("takes_turns"):
        return (yield)
    with item.config.stash[_TURNS].together():
        return (yield)


def _run(coroutine: Coroutine[object, object, T]) -> T:
    """Run to the end on a loop and a thread of its own: pytest-asyncio's loop stays untouched."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


@pytest.fixture(scope="session")
def _embedded_servers() -> Iterator[EmbeddedServers]:
    state_dir = Path(tempfile.mkdtemp(prefix="ews-tests-"))
    state_dir.chmod(0o711)  # started as root, the servers run as a user who must get in
    watchdog = subprocess.Popen(
        [sys.executable, "-c", _WATCHDOG, str(state_dir)],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    servers = EmbeddedServers(state_dir, durable=False)
    try:
        yield servers
    finally:
        try:
            _run(servers.erase())
            shutil.rmtree(state_dir)
        finally:
            assert watchdog.stdin
            with contextlib.suppress(BrokenPipeError):
                watchdog.stdin.close()
            watchdog.wait()


@pytest.fixture(scope="session")
def postgres_server(_embedded_servers: EmbeddedServers) -> PostgresServer:
    """The session's PostgreSQL 18."""
    return PostgresServer(_run(_embedded_servers.start_postgres("postgres")))


@pytest.fixture
def database_dsn(postgres_server: PostgresServer) -> Iterator[str]:
    """The DSN of a new, empty database, dropped afterwards whoever is still connected."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    _run(execute(postgres_server.dsn, f'CREATE DATABASE "{name}"'))
    yield postgres_server.dsn.replace("/postgres?", f"/{name}?")
    _run(execute(postgres_server.dsn, f'DROP DATABASE "{name}" WITH (FORCE)'))


@pytest.fixture(scope="session")
def _valkey_server(_embedded_servers: EmbeddedServers) -> str:
    return _run(_embedded_servers.start_valkey())


@pytest.fixture
def valkey_url(_valkey_server: str) -> str:
    """The URL of the session's Valkey, emptied."""
    with contextlib.closing(redis.Redis.from_url(_valkey_server)) as client:
        client.flushall()
    return _valkey_server
