"""The address of Redis or Valkey: read in one place, and whether somebody answers there."""

from contextlib import suppress

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from enhanced_websocket_service.errors import ConfigurationError

from .answers import refusal
from .world import RedisWorld


def client_for(url: str, *, name: str, timeout_s: float) -> Redis:
    """A client that connects when it is first used, and does not retry: its user decides on that.

    :param timeout_s: real seconds for a connection or an answer.
    :raises ConfigurationError: the URL cannot be understood.
    """
    try:
        client = Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            client_name=name,
        )
        # Parameters that do not exist are only noticed here, without connecting.
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError, RedisError):
        # Not chained: the parser's message may quote the part with the password.
        raise ConfigurationError(
            "REDIS_URL cannot be understood. It looks like redis://:password@host:6379/0; special "
            "characters in the password are percent-encoded."
        ) from None
    return client


async def answer_of(url: str, timeout_s: float, world: RedisWorld) -> str | None:
    """Why the server cannot be used; ``None`` when it answers. Nothing is changed there.

    :raises WrongWorld: it has prices of the other world.
    """
    client = client_for(url, name="enhanced-websocket-service-check", timeout_s=timeout_s)
    try:
        await client.ping()
        await world.check(client)
    except (RedisError, OSError, TimeoutError) as error:
        return refusal(error, client.connection_pool.connection_kwargs)
    finally:
        with suppress(RedisError, OSError, TimeoutError):
            await client.aclose()
    return None
