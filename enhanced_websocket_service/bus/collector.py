"""Which instance collects, as Redis shows it: a second witness while PostgreSQL is away.

A key with a time to live, which whoever collects writes every few seconds. Nothing is decided by it while
PostgreSQL answers. What stands there in another form, or for longer than we would let it, is nobody's.
"""

from contextlib import suppress
from typing import Any, Final

import msgspec
import structlog
from redis.exceptions import NoPermissionError, RedisError

from enhanced_websocket_service.failures import Failures

from .address import client_for
from .names import RedisNames

log = structlog.get_logger(__name__)

PART: Final = "collector in Redis"
"""The part of ``Failures``: something foreign stands there."""
TTL_S: Final = 15.0
TIMEOUT_S: Final = 1.0
_UNAVAILABLE: Final = (RedisError, OSError, TimeoutError)
# One step on the server, or the mark of the next one could be removed.
_DELETE_IF_OURS: Final = """
local found = redis.call('GET', KEYS[1])
if found and string.find(found, ARGV[1], 1, true) then
    return redis.call('DEL', KEYS[1])
end
return 0
"""


class _Mark(msgspec.Struct):
    owner: str
    name: str
    epoch: int


class RedisCollector:
    """Implements ``service.leadership.CollectorMark``. The server is a help, not a condition.

    :param owner: what this instance is called in the fence; ``name`` is for people.
    :param failures: told what stands under the key that no instance writes.
    """

    def __init__(
        self,
        url: str,
        *,
        owner: str,
        name: str,
        failures: Failures,
        names: RedisNames | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """:raises ConfigurationError: the URL cannot be understood."""
        self._key = (names or RedisNames()).collector
        self._owner, self._name = owner, name
        self._failures = failures
        self._client = client_for(
            url, name="enhanced-websocket-service-collector", timeout_s=timeout_s
        )
        self._delete = self._client.register_script(_DELETE_IF_OURS)

    async def other(self) -> str | None:
        """The name of another instance that collects; ``None``: none is shown, or nobody can be asked."""
        try:
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.get(self._key)
                pipe.pttl(self._key)
                text, left_ms = await pipe.execute(raise_on_error=False)
        except _UNAVAILABLE:
            return None
        if text is None:
            self._failures.succeeded(PART)
            return None
        if isinstance(text, NoPermissionError) or isinstance(left_ms, RedisError):
            return None  # the account may not ask
        return self._other(text, left_ms)

    async def show(self, epoch: int) -> None:
        """We collect. Does not raise."""
        mark = msgspec.json.encode(_Mark(self._owner, self._name, epoch))
        with suppress(*_UNAVAILABLE):
            await self._client.set(self._key, mark, px=int(TTL_S * 1000))
            self._failures.succeeded(PART)

    async def clear(self) -> None:
        """We do not any more. Does not raise."""
        with suppress(*_UNAVAILABLE):
            await self._delete(keys=[self._key], args=[f'"owner":"{self._owner}"'])

    async def close(self) -> None:
        """Close the connections."""
        with suppress(*_UNAVAILABLE):
            await self._client.aclose()

    def _other(self, text: Any, left_ms: Any) -> str | None:
        try:
            mark = msgspec.json.decode(text, type=_Mark)
        except (msgspec.MsgspecError, UnicodeDecodeError, TypeError):
            mark = None  # another type of key answers with an error, which is no text
        if mark is None or not 0 < left_ms <= TTL_S * 1000:
            self._failures.failed(
                PART,
                f"Key {self._key} holds what no instance of the service writes there (another form, or no "
                "expiry); it is not believed. Somebody else wrote it; protect the Redis by a password.",
            )
            return None
        self._failures.succeeded(PART)
        return None if mark.owner == self._owner else mark.name
