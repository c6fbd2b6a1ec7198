"""The client for notebooks and scripts: the same events, without ``async``.

The connection lives in a thread with a loop of its own, so that it works inside Jupyter, whose own loop
is always running, and answers pings while the reader is busy.
"""

import asyncio
import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, Self

from .events import Cursor, Event
from .market_client import MarketClient

_POLL_S: Final = 0.2


class SyncMarketClient:
    """``for event in SyncMarketClient(url, ...)``: parameters as ``MarketClient``.

    :param waiting: events that may wait for the reader; when it is full the server is made to wait.
    """

    def __init__(self, url: str, *args: Any, waiting: int = 1000, **options: Any) -> None:
        self._client = MarketClient(url, *args, **options)
        self._queue: queue.Queue[tuple[Event | BaseException | None, dict[str, Cursor]]] = (
            queue.Queue(max(1, waiting))
        )
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._cursors = self._client.cursors
        self._over = False

    @property
    def cursors(self) -> dict[str, Cursor]:
        """By symbol, how far the events taken so far go."""
        return dict(self._cursors)

    def get(self, timeout_s: float | None = None) -> Event | None:
        """The next event; ``None`` when there was none in time, or there will be none any more.

        :raises RefusedByServer: as ``MarketClient``.
        """
        if self._over:
            return None
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="market client", daemon=True)
            self._thread.start()
        try:
            found, self._cursors = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if found is None or isinstance(found, BaseException):
            self.close()
            if found is not None:
                raise found
            return None
        return found

    def __iter__(self) -> Iterator[Event]:
        try:
            while (event := self.get()) is not None:
                yield event
        finally:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection and its thread. Repeatable."""
        self._over = True
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is None:
            return
        loop, task = self._loop, self._task
        if loop is not None and task is not None and not loop.is_closed():
            with suppress(RuntimeError):  # it may end by itself in this moment
                loop.call_soon_threadsafe(task.cancel)
        thread.join()

    def _work(self) -> None:
        try:
            asyncio.run(self._follow())
        except asyncio.CancelledError:
            return
        except BaseException as error:  # the reader's thread is where it belongs
            self._put((error, self._client.cursors))
        else:
            self._put((None, self._client.cursors))

    async def _follow(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._stop.is_set():
            return
        async with self._client as client:
            async for event in client:
                # Off the loop when there is no room: pings must be answered meanwhile.
                entry = (event, self._client.cursors)
                try:
                    self._queue.put_nowait(entry)
                except queue.Full:
                    await asyncio.to_thread(self._put, entry)

    def _put(self, entry: tuple[Event | BaseException | None, dict[str, Cursor]]) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(entry, timeout=_POLL_S)
            except queue.Full:
                continue
            return
