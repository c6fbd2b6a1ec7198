"""What is secret in an address, and text without the secrets that are known. Pure.

A secret that could be a word or a number of its own (``usdcop``, ``password``, ``2025``) is only taken
out where an address, an assignment or quotes show that it is meant: everywhere else the log would
lose its words, and tell with each gap what the password is.
"""

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, unquote, unquote_plus

REDACTED = "[redacted]"

_ENDING = (
    r"(?:password|passwd|passphrase|secret|token|api[-_]?key|credentials?|signature"
    r"|(?:access|account|client|licen[cs]e|private|subscription)[-_]?key)"
)
_SECRET_NAME = re.compile(
    rf"(?i)(?:.*{_ENDING}|pass|pwd|key|auth|authorization|bearer|sig|jwt|username)"
)
"""Parameters of an address that hold a secret. ``passfile`` and ``sslkey`` hold paths, PostgreSQL's
``user`` a name; the ``username`` of Redis is a token as often as not.
"""
_ASSIGNED = re.compile(rf"(?i)([\w.-]*{_ENDING})=((?:\\.|'(?:[^'\\]|\\.)*'|[^\s&;'\\])+)")
"""The same inside a value, such as ``options=-c password=...``."""
_WORDS_UP_TO = 12
_WHOLE_BELOW = 8


def redact_url(url: str) -> str:
    """``url`` without its secrets, fit to be shown to anyone."""
    return _taken_apart(url)[0]


def secrets_in_url(url: str) -> set[str]:
    """What is secret in ``url``, as it stands there and as libraries quote it."""
    return {text for one in _taken_apart(url)[1] for text in (one, unquote(one)) if text}


def _taken_apart(url: str) -> tuple[str, set[str]]:
    # By hand: an address that no parser takes must not be shown whole either.
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    tail = re.search(r"[/?#]|$", rest)
    assert tail is not None  # the end always matches
    authority, rest = rest[: tail.start()], rest[tail.start() :]
    shown, found = _without_login(authority, scheme.lower())
    rest, hash_sign, fragment = rest.partition("#")
    path, question_mark, query = rest.partition("?")
    for part in (query, fragment):
        found |= _of_parameters(part)[1]
    return (
        f"{scheme}{separator}{shown}{path}{question_mark}{_of_parameters(query)[0]}"
        f"{hash_sign}{_of_parameters(fragment)[0]}",
        found,
    )


def _without_login(authority: str, scheme: str) -> tuple[str, set[str]]:
    login, at, place = authority.rpartition("@")
    user, colon, password = login.partition(":")
    if password:
        return f"{user}:{REDACTED}@{place}", {password}
    # Alone, it is a token; only PostgreSQL has users without a password (peer, .pgpass).
    if user and scheme not in ("postgresql", "postgres"):
        return f"{REDACTED}{colon}@{place}", {user}
    return f"{login}{at}{place}", set()


def _of_parameters(query: str) -> tuple[str, set[str]]:
    shown: list[str] = []
    found: set[str] = set()
    for pair in query.split("&"):
        name, equals, value = pair.partition("=")
        plain = unquote_plus(value)
        if value and _SECRET_NAME.fullmatch(unquote_plus(name)):
            found |= {value, plain}
            value = REDACTED
        elif assigned := _ASSIGNED.findall(plain):
            found.update(secret for _, secret in assigned)
            value = quote(_ASSIGNED.sub(rf"\1={REDACTED}", plain), safe="/:,=[]-")
        shown.append(f"{name}{equals}{value}")
    return "&".join(shown), found


class Redactor:
    """Replaces known secrets in text and in (nested) log values."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = sorted({one for one in secrets if one}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(_where_meant, self._secrets)))

    def text(self, value: str) -> str:
        if not any(secret in value for secret in self._secrets):
            return value
        return self._pattern.sub(REDACTED, value)

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self(key): self(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self(item) for item in value]
        if isinstance(value, tuple):  # a named one could not be made of one argument
            return tuple(self(item) for item in value)
        if value is None or isinstance(value, int | float):
            return value
        return self.text(str(value))


def _where_meant(secret: str) -> str:
    """The pattern of the places in a text where ``secret`` can only be the secret."""
    exact = re.escape(secret)
    word = secret.isalpha() and len(secret) <= _WORDS_UP_TO
    number = secret.isdigit() and len(secret) < _WHOLE_BELOW
    if word or number or len(secret) < 4:
        return (
            rf"(?<=:){exact}(?=@)|(?<=//){exact}(?=:?@)|(?<==){exact}(?=[\s&,;'\")\]}}]|\Z)"
            rf"|(?<=['\"]){exact}(?=['\"])|\A{exact}\Z"
        )
    if len(secret) < _WHOLE_BELOW:
        return rf"(?<![A-Za-z0-9]){exact}(?![A-Za-z0-9])"
    return exact
