"""Leases in Redis: at most one process streams with an API key, whatever machine it runs on.

A lease is a key with the owner's random id and a time to live; ``run`` renews those we hold. An owner that
vanishes loses its leases when the time is over. The server is a help, not a condition: while it cannot be
reached everybody may stream, and once it is back the first to ask owns the lease, the others learn from
``lost`` that they do not. All times are real seconds.
"""

import asyncio
import secrets
from collections.abc import Coroutine
from contextlib import suppress
from time import monotonic
from typing import Any, Final

import structlog
from redis.exceptions import RedisError

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.failures import Failures

from .address import client_for
from .answers import refusal
from .names import RedisNames

log = structlog.get_logger(__name__)

TTL_S: Final = 6.0
RENEW_S: Final = 2.0
TIMEOUT_S: Final = 1.0
_UNAVAILABLE: Final = (RedisError, OSError, TimeoutError)

LONGEST_S: Final = 60.0
"""No lease of ours has longer to live."""
PART: Final = "leases of API keys in Redis"
"""The part of ``Failures``: something foreign stands there."""
TOLD_FOR_S: Final = 60.0
"""How long that stays in ``Failures`` after it was seen last."""

# One step on the server, or a lease that ran out between two steps could be taken from its new owner. What
# has no end, or does not look like an owner, was written by somebody else, and would stand for ever: 2.
_TAKE_OR_RENEW: Final = """
local kind = redis.call('TYPE', KEYS[1])['ok']
local owner = kind == 'string' and redis.call('GET', KEYS[1])
local answer = 1
if kind ~= 'none' and owner ~= ARGV[1] then
    local left = redis.call('PTTL', KEYS[1])
    local ours = owner and (#owner == 32 or #owner == 36) and string.match(owner, '^[%x%-]+$')
    if ours and left > 0 and left <= tonumber(ARGV[3]) then
        return 0
    end
    answer = 2
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return answer
"""
_DELETE_IF_OURS: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
    return redis.call('DEL', KEYS[1])
end
return 0
"""


class RedisKeyLeases:
    """Implements ``feeds.base.KeyLeases``. Run ``run`` as one task; without it leases run out.

    :param owner: what this process is called in the leases: 32 hexadecimal digits, hyphens allowed; random
        by default. One that stays the same
        over a restart lets it go on with the lease of the process before, without waiting for its end.
    :param names: what the keys are called.
    :param failures: told what stands there that no process of the service writes.
    """

    def __init__(
        self,
        url: str,
        *,
        owner: str | None = None,
        names: RedisNames | None = None,
        ttl_s: float = TTL_S,
        renew_s: float = RENEW_S,
        timeout_s: float = TIMEOUT_S,
        failures: Failures | None = None,
    ) -> None:
        """:raises ConfigurationError: the URL cannot be understood."""
        self._names = names or RedisNames()
        self._client = client_for(
            url, name="enhanced-websocket-service-leases", timeout_s=timeout_s
        )
        self.owner = owner or secrets.token_hex(16)
        self._ttl_ms = int(ttl_s * 1000)
        self._renew_s = renew_s
        self._failures = failures or Failures(SystemClock())
        self._foreign_at = -TOLD_FOR_S  # monotonic
        self._take = self._client.register_script(_TAKE_OR_RENEW)
        self._delete = self._client.register_script(_DELETE_IF_OURS)
        self._held: dict[str, asyncio.Event] = {}  # by fingerprint; set once it is lost
        self._asking: set[asyncio.Task[Any]] = set()
        self._reachable = True

    @property
    def held(self) -> frozenset[str]:
        """The fingerprints of the keys that we may stream with."""
        return frozenset(self._held)

    async def acquire(self, fingerprint: str) -> bool:
        """Whether we may stream with the key; ``True`` also when the server cannot be asked."""
        asked = self._begin(self._acquire(fingerprint))
        try:
            # Shielded: redis-py may swallow a cancellation, and whoever stops a feed would wait for ever.
            return bool(await asyncio.shield(asked))
        except asyncio.CancelledError:
            self._begin(self._undo(asked, fingerprint))
            raise

    async def lost(self, fingerprint: str) -> None:
        """Return once another process has the lease; at once when we do not hold it."""
        event = self._held.get(fingerprint)
        if event is not None:
            await event.wait()

    async def release(self, fingerprint: str) -> None:
        """Give the lease back; the next process need not wait for its end."""
        if self._held.pop(fingerprint, None) is not None:
            await asyncio.shield(self._begin(self._give_back(fingerprint)))

    async def run(self) -> None:
        """Renew what we hold until cancelled. Leases are kept then: ``release`` and ``close`` end them."""
        while True:
            await asyncio.sleep(self._renew_s)
            for fingerprint in self.held:
                if fingerprint not in self._held:
                    continue
                # Shielded as in ``acquire``: with a swallowed cancellation this would go on for ever.
                if not await asyncio.shield(self._begin(self._taken(fingerprint))):
                    log.warning("Another process streams with this key now", key=fingerprint)
                    self._drop(fingerprint)
                elif fingerprint not in self._held:  # released while we were asking
                    await asyncio.shield(self._begin(self._give_back(fingerprint)))

    async def close(self) -> None:
        """Release everything and close the connections; end ``run`` first."""
        for fingerprint in self.held:
            await self.release(fingerprint)
        while self._asking:
            await asyncio.wait(self._asking)
        with suppress(*_UNAVAILABLE):
            await self._client.aclose()

    async def _acquire(self, fingerprint: str) -> bool:
        if await self._taken(fingerprint):
            self._held.setdefault(fingerprint, asyncio.Event())
            return True
        self._drop(fingerprint)
        return False

    async def _undo(self, asked: asyncio.Task[Any], fingerprint: str) -> None:
        """Whoever asked does not wait for the answer any more."""
        await asyncio.wait({asked})
        if self._held.pop(fingerprint, None) is not None:
            await self._give_back(fingerprint)

    def _begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name="key-lease")
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return task

    async def _taken(self, fingerprint: str) -> bool:
        """Take the lease or renew it; whether it is ours, as far as anybody can say."""
        try:
            answer: Any = await self._take(
                keys=[self._names.lease(fingerprint)],
                args=[self.owner, self._ttl_ms, int(LONGEST_S * 1000)],
            )
        except _UNAVAILABLE as error:
            self._unreachable(error)
            return True
        if not self._reachable:
            self._reachable = True
            log.info("The leases of API keys are in Redis again")
        self._note(fingerprint, foreign=answer == 2)
        return bool(answer)

    def _note(self, fingerprint: str, *, foreign: bool) -> None:
        if foreign:
            self._foreign_at = monotonic()
            self._failures.failed(
                PART,
                f"Key {self._names.lease(fingerprint)} held what no process of the service writes there "
                "(another form, or no expiry); it was taken over. Somebody else wrote it: protect the Redis "
                "by a password.",
            )
        elif monotonic() - self._foreign_at > TOLD_FOR_S:
            self._failures.succeeded(PART)

    async def _give_back(self, fingerprint: str) -> None:
        try:
            await self._delete(keys=[self._names.lease(fingerprint)], args=[self.owner])
        except _UNAVAILABLE as error:
            self._unreachable(error)  # it runs out by itself

    def _drop(self, fingerprint: str) -> None:
        event = self._held.pop(fingerprint, None)
        if event is not None:
            event.set()

    def _unreachable(self, error: Exception) -> None:
        if self._reachable:
            self._reachable = False
            log.warning(
                "Redis cannot be asked who streams with an API key; streaming all the same",
                reason=refusal(error, self._client.connection_pool.connection_kwargs),
            )
