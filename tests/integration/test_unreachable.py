"""Why PostgreSQL cannot be used: where it was looked for, as whom, and what it answered; no password."""

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.errors import DatabaseUnavailable, StorageError
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.storage.pool import POSTGRESQL
from enhanced_websocket_service.storage.postgres import Database
from tests.waiting import eventually

SIMULATOR = Provider("simulator")
PASSWORD = "s3cr3t-pw"


async def refusal(dsn: str, **options: float) -> str:
    """What a connection to ``dsn`` ends with."""
    database = Database(dsn, SIMULATOR, **options)  # type: ignore[arg-type]
    with pytest.raises(StorageError) as caught:
        await database.connect()
    # Whoever asks meanwhile hears the same, and when that was.
    with pytest.raises(DatabaseUnavailable) as asked:
        await database.ping()
    assert str(asked.value).startswith(f"{caught.value} Last tried 2")
    await database.close()
    assert "s3cr3t" not in str(caught.value)
    return str(caught.value)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_nothing_listens() -> None:
    port = free_port()
    said = await refusal(f"postgresql://me:{PASSWORD}@127.0.0.1:{port}/fx")
    assert f"PostgreSQL at 127.0.0.1:{port} (database fx, user me) cannot be reached: " in said
    assert "connection refused" in said


async def test_several_hosts_are_all_named() -> None:
    one, two = free_port(), free_port()
    said = await refusal(f"postgresql://me:{PASSWORD}@127.0.0.1:{one},localhost:{two}/fx")
    assert f"127.0.0.1:{one} or localhost:{two} (database fx, user me)" in said
    assert "connection refused" in said


async def test_there_is_no_socket(tmp_path: Path) -> None:
    said = await refusal(f"postgresql://me:{PASSWORD}@/fx?host={tmp_path}&port=5433")
    assert f"PostgreSQL at {tmp_path}/.s.PGSQL.5433 (database fx, user me)" in said
    assert "there is no such socket" in said


async def test_a_name_that_nobody_knows() -> None:
    said = await refusal(f"postgresql://me:{PASSWORD}@no-such-host.invalid/fx")
    assert "no-such-host.invalid:5432" in said
    assert "its name is not known" in said


@asynccontextmanager
async def listening(answer: bytes | None) -> AsyncIterator[int]:
    """A port whose owner says ``answer`` to all that comes and hangs up; ``None``: it says nothing."""
    taken = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        if answer is None:
            await taken.wait()
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        taken.set()
        server.close()


async def test_who_listens_says_nothing() -> None:
    async with listening(None) as port:
        said = await refusal(f"postgresql://me@127.0.0.1:{port}/fx", timeout_s=0.3)
    assert f"127.0.0.1:{port}" in said
    assert "no answer in 0.3 s" in said


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"-ERR unknown\r\n"])
async def test_who_listens_is_no_postgresql(answer: bytes) -> None:
    async with listening(answer) as port:
        said = await refusal(f"postgresql://me@127.0.0.1:{port}/fx?sslmode=disable", timeout_s=5)
    assert f"PostgreSQL at 127.0.0.1:{port} (database fx, user me) cannot be reached: " in said


@pytest.fixture
async def server(database_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_dsn)
    yield connection
    await connection.close()


@contextmanager
def first_rule(rules: Path, rule: str) -> Iterator[None]:
    """``rule`` ahead of all others in ``pg_hba.conf``."""
    before = rules.read_text()
    rules.write_text(f"{rule}\n{before}")
    try:
        yield
    finally:
        rules.write_text(before)


@asynccontextmanager
async def role(server: asyncpg.Connection, options: str, method: str = "") -> AsyncIterator[str]:
    """A new role; ``method`` is how the server lets it in, unless as everybody."""
    name = f"r_{uuid.uuid4().hex[:8]}"
    rule = f"local all {name} {method}" if method else ""
    await server.execute(f"CREATE ROLE {name} {options}")
    try:
        with first_rule(Path(await server.fetchval("SHOW hba_file")), rule):
            await server.execute("SELECT pg_reload_conf()")
            yield name
    finally:
        await server.execute(f"SELECT pg_reload_conf(); DROP ROLE {name}")


def login(dsn: str, user: str, password: str = "", database: str = "") -> str:
    parts = urlsplit(dsn)
    return f"postgresql://{user}{password and ':'}{password}@/{database or parts.path[1:]}?{parts.query}"


def where(dsn: str, user: str, database: str = "") -> str:
    folder = parse_qs(urlsplit(dsn).query)["host"][0]
    name = database or urlsplit(dsn).path[1:]
    return f"PostgreSQL at {folder}/.s.PGSQL.5432 (database {name}, user {user}) answered: "


async def test_a_connection_that_broke_while_it_was_lent(
    server: asyncpg.Connection, database_dsn: str
) -> None:
    """The writer holds one from batch to batch; what asyncpg says of it is about asyncpg."""
    database = Database(database_dsn, SIMULATOR)
    await database.connect()

    async def store() -> None:
        async with database.connection("storing the journal") as lent:
            ended = asyncio.Event()
            lent.add_termination_listener(lambda _connection: ended.set())
            pid = lent.get_server_pid()
            await server.execute("SELECT pg_terminate_backend($1)", pid)
            await asyncio.wait_for(ended.wait(), 20)
            async with lent.transaction():
                pass

    with pytest.raises(DatabaseUnavailable, match=r"reached: the connection was lost \(while stor"):
        await store()
    await database.close()


async def test_a_wrong_password_and_none(server: asyncpg.Connection, database_dsn: str) -> None:
    async with role(server, f"LOGIN PASSWORD '{PASSWORD}'", "scram-sha-256") as name:

        async def refused_without() -> str | None:
            try:  # the server reads the file in its own time
                await (await asyncpg.connect(login(database_dsn, name))).close()
            except (asyncpg.PostgresError, asyncpg.InterfaceError):
                return "refused"
            return None

        await eventually(refused_without, 10, "the new rule")
        said = await refusal(login(database_dsn, name, "s3cr3t-but-wrong"))
        assert where(database_dsn, name) in said
        assert f'password authentication failed for user "{name}" [28P01]' in said
        assert "Check user and password in DATABASE_URL." in said
        said = await refusal(login(database_dsn, name))
        assert "password" in said
        # Repaired while the service waits: it goes on, and nothing fails any more.
        await server.execute(f"ALTER ROLE {name} PASSWORD 'another'")
        failures = Failures(SystemClock())
        database = Database(login(database_dsn, name, PASSWORD), SIMULATOR, failures=failures)
        with pytest.raises(DatabaseUnavailable):
            await database.connect()
        assert failures.of(POSTGRESQL) is not None
        await server.execute(f"GRANT CREATE ON SCHEMA public TO {name}")
        await server.execute(f"ALTER ROLE {name} PASSWORD '{PASSWORD}'")
        await database.connect()
        assert failures.present == ()
        await database.close()
        await server.execute(f"DROP OWNED BY {name} CASCADE")


async def test_no_entry_lets_the_role_in(server: asyncpg.Connection, database_dsn: str) -> None:
    async with role(server, "LOGIN", "reject") as name:

        async def rejected() -> str | None:
            said = await refusal_or_none(login(database_dsn, name))
            return said if said is not None and "pg_hba.conf" in said else None

        said = await eventually(rejected, 10, "the new rule")
        assert where(database_dsn, name) in said
        assert "[28000]" in said


async def refusal_or_none(dsn: str) -> str | None:
    database = Database(dsn, SIMULATOR)
    try:
        await database.connect()
    except StorageError as error:
        return str(error)
    finally:
        await database.close()
    return None


async def test_no_such_role(database_dsn: str) -> None:
    said = await refusal(login(database_dsn, "nobody_at_all", PASSWORD))
    assert where(database_dsn, "nobody_at_all") in said
    assert 'role "nobody_at_all" does not exist [28000]' in said


async def test_no_such_database(database_dsn: str) -> None:
    said = await refusal(login(database_dsn, "ews", database="nowhere"))
    assert where(database_dsn, "ews", "nowhere") in said
    assert 'database "nowhere" does not exist [3D000]' in said
    assert "Create the database" in said


async def test_too_many_connections(server: asyncpg.Connection, database_dsn: str) -> None:
    async with role(server, "LOGIN CONNECTION LIMIT 0") as name:
        said = await refusal(login(database_dsn, name))
    assert f'too many connections for role "{name}" [53300]' in said
