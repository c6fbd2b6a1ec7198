"""The tests' PostgreSQL by TCP: for those who may not use its socket, and to come between it and a client."""

import asyncio
from urllib.parse import parse_qs, urlsplit


class Proxy:
    """Stands between client and server; can refuse connections and swallow the answer to a COMMIT."""

    def __init__(self, dsn: str) -> None:
        self._target = urlsplit(dsn)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.swallow_commits = 0
        self.commits_swallowed = 0

    @property
    def dsn(self) -> str:
        user, path = self._target.username, self._target.path
        return f"postgresql://{user}@127.0.0.1:{self.port}{path}?sslmode=disable"

    async def up(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        assert self._server is not None
        self._server.close()
        self._hang_up()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _hang_up(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        host = parse_qs(self._target.query)["host"][0]
        port = parse_qs(self._target.query)["port"][0]
        back, forth = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        self._writers |= {writer, forth}
        lost = asyncio.Event()

        async def to_server() -> None:
            while data := await reader.read(65536):
                if self.swallow_commits and b"COMMIT;" in data:
                    self.swallow_commits -= 1
                    lost.set()
                forth.write(data)
                await forth.drain()

        async def to_client() -> None:
            while data := await back.read(65536):
                if lost.is_set():
                    self.commits_swallowed += 1
                    return
                writer.write(data)
                await writer.drain()

        pumps = [asyncio.create_task(to_server()), asyncio.create_task(to_client())]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for one in (writer, forth):
            one.transport.abort()
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        self._writers -= {writer, forth}
        self._tasks.discard(task)
