"""What Redis or Valkey answered, or why it did not answer, in sentences for people."""

import re
from collections.abc import Mapping
from typing import Any, Final

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeout

from enhanced_websocket_service.addresses import redis_address, unreachable

_NO_PASSWORD: Final = re.compile("NOAUTH|authentication required|already authenticated", re.I)
_UNASKED: Final = re.compile("without any password configured|no password is set", re.I)


_OF_A_NAME: Final = re.compile(r"permissions? to access .*(key|channel)", re.I)


def is_about_a_name(error: Exception) -> bool:
    """Whether the account may do this, with other names."""
    return isinstance(error, NoPermissionError) and _OF_A_NAME.search(str(error)) is not None


def refusal(error: Exception, options: Mapping[str, Any]) -> str:
    """``error``, whatever redis-py or the system raised for the server that ``options`` name."""
    where = f"Redis at {redis_address(options)}"
    # What the server answered to a login comes wrapped, over some sockets.
    answer = _first(error, (AuthenticationError, ResponseError, BusyLoadingError))
    if answer is None:
        return f"{where} cannot be reached: {_unreached(error, options)}."
    said = _said(answer, options)
    if isinstance(answer, AuthenticationError):
        # In own words: the server's "username-password pair" looks like a secret to whoever redacts.
        if _UNASKED.search(said):
            return f"{where} refused: it knows no password. Take the one in REDIS_URL out."
        if getattr(answer, "status_code", None) == "NOAUTH" or _NO_PASSWORD.search(said):
            return f"{where} refused: NOAUTH, it wants a password. Name it in REDIS_URL."
        return f"{where} refused: WRONGPASS, user or password is wrong. Correct REDIS_URL."
    if isinstance(answer, NoPermissionError):
        return f"{where} refused: NOPERM {said}. Allow it to the user of REDIS_URL (ACL SETUSER)."
    if isinstance(answer, BusyLoadingError):
        return f"{where} is LOADING its data and answers once it has."
    if isinstance(answer, ReadOnlyError):
        return f"{where} refused: READONLY {said}. Name the primary in REDIS_URL."
    if "DB index is out of range" in said:
        return f"{where} refused: DB index is out of range. End REDIS_URL with one it has, like /0."
    return f"{where} refused: {said}."


def _first(error: BaseException, kinds: tuple[type[Exception], ...]) -> BaseException | None:
    """The first of ``kinds`` in the chain behind ``error``."""
    at: BaseException | None = error
    while at is not None and not isinstance(at, kinds):
        at = at.__cause__ or at.__context__
    return at


def _said(error: BaseException, options: Mapping[str, Any]) -> str:
    said = " ".join(str(error).split()).rstrip(".")
    if password := options.get("password"):
        # A server that does not know AUTH repeats what it was given.
        said = re.sub(rf"(?<![\w-]){re.escape(str(password))}(?![\w-])", "(the password)", said)
    return said


def _unreached(error: Exception, options: Mapping[str, Any]) -> str:
    """redis-py puts its own error around the system's."""
    if isinstance(error, RedisTimeout):
        timeout_s = options.get("socket_timeout")
        return unreachable(TimeoutError(), None if timeout_s is None else float(timeout_s))
    inner = _first(error, (OSError,))
    return _said(error, options) if inner is None else unreachable(inner)
