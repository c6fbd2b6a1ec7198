"""The vendor's WebSocket protocol, sans I/O: bytes -> frames, requests -> text, symbols.

Owns: what a frame means. Does not own: sockets, time (the instant of receipt is passed in), whether a
price is believable (``market.validation``). Nothing here raises on what the vendor sends.
"""

import json
import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, Literal

import msgspec

from enhanced_websocket_service.market.tick import Quote

LATEST_STAMP: Final = 253_402_300_799
"""9999-12-31T23:59:59Z: what lies beyond is milliseconds or garbage, and no date type holds it."""

_RAW_LIMIT: Final = 500
_KIND_LIMIT: Final = 40


class SubscribeStatus(msgspec.Struct, frozen=True, gc=False):
    """The answer to a subscription. Symbols are ours, without slash."""

    success: tuple[str, ...]
    fails: tuple[str, ...]
    ok: bool  # status "ok"; the lists may be empty or null all the same
    message: str = ""


class Heartbeat(msgspec.Struct, frozen=True, gc=False):
    """The vendor's answer to our heartbeat. Not data: it says nothing about prices."""


class StatusMessage(msgspec.Struct, frozen=True, gc=False):
    """Any other answer with a status: unsubscribe-status, reset-status, errors without an event."""

    event: str  # empty when the vendor named none
    status: str
    code: int | None = None
    message: str = ""


class Unknown(msgspec.Struct, frozen=True, gc=False):
    """A JSON object of a kind this client does not know."""

    kind: str


class Malformed(msgspec.Struct, frozen=True, gc=False):
    """Bytes that are no JSON object, or a price without a symbol."""

    reason: str
    raw: str = ""  # the beginning of the offending text


class _UsualPrice(msgspec.Struct, gc=False):
    """A price as the vendor nearly always sends it; its other fields are of no use here."""

    event: Literal["price"]
    symbol: str
    timestamp: int
    price: float
    bid: float | None = None
    ask: float | None = None


_usual_price: Final = msgspec.json.Decoder(_UsualPrice)

Frame = Quote | SubscribeStatus | Heartbeat | StatusMessage | Unknown | Malformed


def vendor_symbol(symbol: str) -> str:
    """The vendor's spelling of our symbol: ``USDCOP`` -> ``USD/COP``; anything but 6 letters as is."""
    if len(symbol) == 6 and symbol.isascii() and symbol.isalpha():
        return f"{symbol[:3]}/{symbol[3:]}"
    return symbol


def our_symbol(symbol: str) -> str:
    """Our spelling of the vendor's symbol: ``USD/COP`` -> ``USDCOP``."""
    return symbol.replace("/", "").upper()


def subscribe(symbols: Iterable[str]) -> str:
    """The request to stream ``symbols`` (ours); additive to earlier ones."""
    return _action("subscribe", symbols)


def unsubscribe(symbols: Iterable[str]) -> str:
    """The request to stop streaming ``symbols`` (ours)."""
    return _action("unsubscribe", symbols)


def reset() -> str:
    """The request to drop every subscription of the connection."""
    return '{"action":"reset"}'


def heartbeat() -> str:
    """The keep-alive the vendor recommends about every 10 s."""
    return '{"action":"heartbeat"}'


def parse_frame(data: str | bytes, received_at: float, source: str) -> list[Frame]:
    """What one text frame says, in order; an array gives several frames.

    A price whose number or stamp cannot be used is not dropped: it becomes a ``Quote`` with ``raw``
    set (and a NaN price, or the receipt as its stamp), which validation rejects and stores.

    :param received_at: our clock when the bytes were read, unix seconds UTC.
    :param source: the source name the quotes shall carry.
    """
    usual = parse_price(data, received_at, source)
    if usual is not None:
        return [usual]
    try:
        message = decode_json(data)
    except ValueError as error:
        return [Malformed(f"not JSON: {text(error)[:80]}", _snippet(data))]
    if isinstance(message, dict):
        return [_frame(message, received_at, source, data)]
    if isinstance(message, list):
        return [
            _frame(item, received_at, source, text(item))
            if isinstance(item, dict)
            else Malformed("an array member that is no object", text(item))
            for item in message
        ]
    return [Malformed("JSON that is no object", _snippet(data))]


def decode_json(data: str | bytes) -> Any:
    """Decode vendor JSON, ``NaN`` and ``Infinity`` included.

    :raises ValueError: for anything that is not JSON, absurdly deep nesting included.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass  # msgspec is strict about NaN and huge numbers; the standard library is not
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def number(value: object) -> float | None:
    """A JSON number or a string that spells one, as float (maybe NaN); ``None`` for all else."""
    if isinstance(value, float):
        return value
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def whole_seconds(value: object) -> int | None:
    """A plausible unix time in whole seconds from a number or a string; else ``None``."""
    seconds = number(value)
    if seconds is None or not math.isfinite(seconds) or not 0 < seconds <= LATEST_STAMP:
        return None
    return int(seconds)


def text(value: object) -> str:
    """``value`` as a short text that logs and databases can hold."""
    if value is None:
        return ""
    try:
        shown = value if isinstance(value, str) else str(value)
    except (RecursionError, ValueError):  # nested too deeply, or thousands of digits
        shown = f"<{type(value).__name__}>"
    return _snippet(shown)


def parse_price(data: str | bytes, received_at: float, source: str) -> Quote | None:
    """The price in a frame with nothing odd about it, which nearly all are; ``None``: ask ``parse_frame``."""
    try:
        found = _usual_price.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    symbol = _known_symbol(found.symbol)
    stamp = found.timestamp
    if not symbol or not 0 < stamp <= LATEST_STAMP:
        return None
    return Quote(symbol, stamp, found.price, source, received_at, found.bid, found.ask)


@lru_cache(maxsize=256)
def _known_symbol(symbol: str) -> str:
    return our_symbol(text(symbol.strip()))[:_KIND_LIMIT]


def _frame(message: dict[str, Any], received_at: float, source: str, raw: str | bytes) -> Frame:
    event = message.get("event")
    if event == "price":
        return _price(message, received_at, source, raw)
    if event == "heartbeat":
        return Heartbeat()
    if event == "subscribe-status":
        return SubscribeStatus(
            success=_symbols(message.get("success")),
            fails=_symbols(message.get("fails")),
            ok=message.get("status") == "ok",
            message=_messages(message),
        )
    if "status" in message and (not event or text(event).endswith("-status")):
        code = message.get("code")
        return StatusMessage(
            event=text(event)[:_KIND_LIMIT],
            status=text(message["status"])[:_KIND_LIMIT],
            code=code if isinstance(code, int) and not isinstance(code, bool) else None,
            message=_messages(message),
        )
    return Unknown(text(event)[:_KIND_LIMIT] or "no event")


def _price(
    message: dict[str, Any], received_at: float, source: str, raw: str | bytes
) -> Quote | Malformed:
    symbol = message.get("symbol")
    if not isinstance(symbol, str) or not symbol.strip():
        return Malformed("a price without a symbol", _snippet(raw))
    usable = True
    price = number(message.get("price"))
    if price is None:
        price, usable = math.nan, False
    sides: list[float | None] = []
    for name in ("bid", "ask"):
        value = message.get(name)
        side = None if value is None or value == "" else number(value)
        if side is None and value is not None and value != "":
            side, usable = math.nan, False
        sides.append(side)
    stamp = whole_seconds(message.get("timestamp"))
    if stamp is None:
        stamp, usable = int(received_at), False
    # day_volume is the running total of the day: as a tick's volume it would be summed into bars.
    return Quote(
        symbol=_known_symbol(symbol),
        timestamp=stamp,
        price=price,
        source=source,
        received_at=received_at,
        bid=sides[0],
        ask=sides[1],
        raw="" if usable else _snippet(raw),
    )


def _symbols(items: object) -> tuple[str, ...]:
    found: list[str] = []
    for item in items if isinstance(items, list) else []:
        name = item.get("symbol") if isinstance(item, dict) else item
        if isinstance(name, str) and name:
            found.append(our_symbol(text(name))[:_KIND_LIMIT])
    return tuple(found)


def _messages(message: dict[str, Any]) -> str:
    several = message.get("messages")
    if isinstance(several, list):
        return text("; ".join(text(item) for item in several))
    return text(message.get("message"))


def _action(action: str, symbols: Iterable[str]) -> str:
    names = ",".join(vendor_symbol(symbol) for symbol in symbols)
    return json.dumps({"action": action, "params": {"symbols": names}}, separators=(",", ":"))


def _snippet(data: str | bytes) -> str:
    if isinstance(data, bytes):
        data = data[: 4 * _RAW_LIMIT].decode("utf-8", "replace")
    # PostgreSQL text takes neither NUL nor lone surrogates, and this text is stored.
    return data[:_RAW_LIMIT].replace("\x00", "\\0").encode("utf-8", "replace").decode()
