"""What an address of the settings is called where anybody may read it."""

import errno
import socket
import ssl

import pytest

from enhanced_websocket_service.addresses import PostgresAddress, redis_address, unreachable
from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.settings import load_settings

ENVIRON = {"PGHOST": "10.1.2.3", "PGPORT": "6432", "PGDATABASE": "fx", "PGUSER": "reader"}


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://me:s3cr3t@db:5433/fx", "db:5433 (database fx, user me)"),
        ("postgres://me:s3cr%40t@db/f%20x", "db:5432 (database f x, user me)"),
        ("postgresql://me:s3cr3t@a:1,b/fx", "a:1 or b:5432 (database fx, user me)"),
        ("postgresql://me@[::1]:5433,b:2/fx", "[::1]:5433 or b:2 (database fx, user me)"),
        (
            "postgresql://me@/fx?host=/run/a&port=6000",
            "/run/a/.s.PGSQL.6000 (database fx, user me)",
        ),
        (
            "postgresql:///?host=a,b&port=1,2&user=me&password=s3cr3t&dbname=fx",
            "a:1 or b:2 (database fx, user me)",
        ),
        ("postgresql://me@db", "db:5432 (database me, user me)"),
        ("postgresql://me@/fx?service=prod", "the service prod (database fx, user me)"),
    ],
)
def test_a_database_address_without_its_password(dsn: str, shown: str) -> None:
    assert str(PostgresAddress.of(dsn, {})) == shown


def test_the_environment_fills_in_what_the_address_leaves_out() -> None:
    assert str(PostgresAddress.of("postgresql://", ENVIRON)) == (
        "10.1.2.3:6432 (database fx, user reader)"
    )
    assert str(PostgresAddress.of("postgresql://me@db/x", ENVIRON)) == (
        "db:6432 (database x, user me)"
    )


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://user:s3cr3t@pw@host:5432/db",
        "postgresql://user:12#s3cr3t@host/db",
        "postgresql://user:12/s3cr3t@host/db",
        "postgresql://user:1@s/s3cr3t@host/db",
        "postgresql://user:12?s3cr3t@host/db",
        "postgresql://user:s3cr3t/pw@host/db",
        "http://user:s3cr3t@host/db",
    ],
)
def test_a_password_that_no_parser_takes_for_one_is_not_shown(dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="percent-encoded") as caught:
        PostgresAddress.of(dsn, {})
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"host": "cache", "port": 6380, "db": 2, "password": "s3cr3t"}, "cache:6380/2"),
        ({"password": "s3cr3t", "username": "me"}, "localhost:6379/0 (user me)"),
        ({"path": "/run/v.sock", "db": 1}, "/run/v.sock (database 1)"),
        ({"path": "/run/v.sock", "username": "token"}, "/run/v.sock (database 0)"),
        ({"host": "::1"}, "[::1]:6379/0"),
    ],
)
def test_a_redis_address_without_its_password(options: dict[str, object], shown: str) -> None:
    assert redis_address(options) == shown


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed"), "refused"),
        (
            OSError("Multiple exceptions: [Errno 111] ('::1', 1), [Errno 111] ('127.', 1)"),
            "refused",
        ),
        (
            OSError("Multiple exceptions: [Errno 111] ('::1', 1), [Errno 110] ('127.', 1)"),
            "and con",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file"), "no such socket"),
        (PermissionError(errno.EACCES, "Permission denied"), "may not use the socket"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "name is not known"),
        (OSError(errno.EHOSTUNREACH, "Connect call failed"), "no route to host"),
        (TimeoutError(), "did not answer in time"),
        (ssl.SSLError(1, "wrong version number"), "wrong version number"),
        (ConnectionError("rejected SSL upgrade"), "rejected SSL upgrade"),
    ],
)
def test_why_nobody_answered(error: OSError, words: str) -> None:
    assert words in unreachable(error)


def test_a_time_out_says_how_long_was_waited() -> None:
    assert unreachable(TimeoutError(), 10.0) == "no answer in 10 s"


def test_the_settings_take_several_hosts_and_refuse_what_would_be_shown() -> None:
    several = "postgresql://me:s3cr3t@a:1,b:2/fx?target_session_attrs=primary"
    assert load_settings({"DATABASE_URL": several}).settings.database_url == several
    for dsn in ("postgresql://me:s3cr3t@pw@host/fx", "postgresql://me@a:1,b:two/fx"):
        with pytest.raises(ConfigurationError, match="DATABASE_URL cannot be understood") as caught:
            load_settings({"DATABASE_URL": dsn})
        assert "s3cr3t" not in str(caught.value)
