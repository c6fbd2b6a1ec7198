"""Where PostgreSQL and Redis are, in words fit for anybody, and why nobody answered there.

An address of the settings holds a password. What is made of it here never does, not even where somebody
wrote the password in a way that no parser takes for one.
"""

import errno
import getpass
import os
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import parse_qs, unquote, urlsplit

from .errors import ConfigurationError

BAD_DATABASE_URL: Final = (
    "DATABASE_URL cannot be understood. It looks like postgresql://user:password@host:5432/database; "
    "special characters in the password are percent-encoded."
)
_NO_HOST: Final = ("/run/postgresql", "/var/run/postgresql", "/tmp", "/private/tmp", "localhost")  # noqa: S108 as asyncpg looks for it
_NUMBER: Final = re.compile(r"\[Errno (-?\d+)\]")


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """Where a DSN leads: ``hosts`` as ``host:port`` or as the path of a Unix socket."""

    hosts: tuple[str, ...]
    database: str
    user: str

    @classmethod
    def of(cls, dsn: str, environ: Mapping[str, str] = os.environ) -> Self:
        """What asyncpg makes of ``dsn``; ``PGHOST`` and its sisters fill in what it leaves out.

        :raises ConfigurationError: it cannot be understood.
        """
        try:
            parts = urlsplit(dsn)
            query = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
            given = {name: values[-1] for name, values in query.items()}
            userinfo, _, place = parts.netloc.rpartition("@")
            # A raw @ or # belongs to a password that should have been percent-encoded: what follows it
            # would be taken for a host or a database, and shown.
            if (
                parts.scheme not in ("postgresql", "postgres")
                or parts.fragment
                or "@" in userinfo
                or (parts.netloc and "@" in parts.path)
            ):
                raise ValueError
            hosts = _hosts(unquote(place), given, environ)
        except ValueError:
            # Not chained: a parser's message may quote the part with the password.
            raise ConfigurationError(BAD_DATABASE_URL) from None
        user = unquote(userinfo.partition(":")[0]) or given.get("user") or environ.get("PGUSER")
        user = user or _this_user()
        database = unquote(parts.path[1:]) or given.get("dbname") or given.get("database")
        return cls(hosts, database or environ.get("PGDATABASE") or user, user)

    def __str__(self) -> str:
        return f"{' or '.join(self.hosts)} (database {self.database}, user {self.user})"


def redis_address(options: Mapping[str, Any]) -> str:
    """Where ``options``, what redis-py makes of a URL, lead: ``host:port/db``, or the socket's path."""
    database = options.get("db") or 0
    # A user name without a password is a token, and so a secret.
    user = options.get("username") if options.get("password") else None
    if path := options.get("path"):
        where, notes = str(path), [f"database {database}"]
    else:
        host, port = options.get("host", "localhost"), options.get("port", 6379)
        where, notes = f"{_joined(str(host), str(port))}/{database}", []
    if user:
        notes.append(f"user {user}")
    return f"{where} ({', '.join(notes)})" if notes else where


def unreachable(error: BaseException, within_s: float | None = None) -> str:
    """Why nobody answered, for people: what the operating system said.

    :param within_s: the real seconds after which a ``TimeoutError`` gave up.
    """
    if isinstance(error, TimeoutError):
        return "it did not answer in time" if within_s is None else f"no answer in {within_s:g} s"
    if isinstance(error, socket.gaierror):
        return f"its name is not known ({error.strerror or error})"
    # asyncio puts what several addresses of one name said into a text, one Python's own number each.
    numbers = [int(found) for found in _NUMBER.findall(str(error))]
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        numbers.append(error.errno)
    if numbers and all(number > 0 for number in numbers):
        return " and ".join(dict.fromkeys(_WORDS.get(n) or os.strerror(n).lower() for n in numbers))
    return str(error) or type(error).__name__


_WORDS: Final = {
    errno.ENOENT: "there is no such socket",
    errno.EACCES: "this user may not use the socket",
    errno.ECONNREFUSED: "connection refused, nothing listens there",
    errno.ECONNRESET: "it broke the connection off",
}
"""By error number, where the system's own words do not say it."""


def _hosts(place: str, given: Mapping[str, str], environ: Mapping[str, str]) -> tuple[str, ...]:
    """Raises ``ValueError`` for a port that is none."""
    if (service := given.get("service")) and not place:
        return (f"the service {service}",)
    listed = place or given.get("host") or environ.get("PGHOST") or ",".join(_NO_HOST)
    port_there = None if place else given.get("port")
    ports = (port_there or environ.get("PGPORT") or "5432").split(",")
    hosts = []
    for position, one in enumerate(listed.split(",")):
        host, port = one, ports[min(position, len(ports) - 1)]
        if one.startswith("/"):
            hosts.append(one if ".s.PGSQL." in one else f"{one}/.s.PGSQL.{int(port)}")
            continue
        if found := re.fullmatch(r"\[([^\]]+)\](?::(\d+))?", one):
            host, port = found[1], found[2] or port
        elif ":" in one:
            host, _, named = one.partition(":")
            port = named or port  # "host:" is the host alone, for asyncpg
        host.encode("idna")  # as the resolver will
        hosts.append(_joined(host, str(int(port))))
    return tuple(hosts)


def _joined(host: str, port: str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _this_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        return "of this process"
