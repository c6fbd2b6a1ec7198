"""Frames of the vendor's WebSocket: what clients may ask, what they are told. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from .model import SimTick, SymbolInfo

Action = Literal["subscribe", "unsubscribe", "reset", "heartbeat"]
_ACTIONS: Final[tuple[Action, ...]] = ("subscribe", "unsubscribe", "reset", "heartbeat")

GARBAGE: Final[tuple[bytes, ...]] = (
    b"<html>502 Bad Gateway</html>",
    b'{"event":"price","symbol":"USD/COP","pri',
    b'[{"event":"price"}]',
    b'{"event":"maintenance","note":"never seen before"}',
    b'{"event":"price","symbol":"USD/COP","timestamp":null,"price":"n/a"}',
    b'"price"',
)
"""Frames that are no price: broken JSON, other shapes, unknown events, impossible values."""


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """What a client asked for."""

    action: Action
    symbols: tuple[str, ...] = ()  # upper case, in order, unique


def parse_request(text: str | bytes | None) -> ClientRequest | None:
    """The request in a text frame; ``None`` when the vendor could not parse it."""
    if not isinstance(text, str):
        return None
    try:
        message = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(message, dict):
        return None
    action = next((one for one in _ACTIONS if one == message.get("action")), None)
    if action is None:
        return None
    if action in ("reset", "heartbeat"):
        return ClientRequest(action)
    params = message.get("params")
    symbols = _symbols(params.get("symbols")) if isinstance(params, dict) else None
    return ClientRequest(action, symbols) if symbols else None


def _symbols(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, str):
        names: list[Any] = value.split(",")
    elif isinstance(value, list):
        names = [one.get("symbol") if isinstance(one, dict) else one for one in value]
    else:
        return None
    if not all(isinstance(name, str) for name in names):
        return None
    return tuple(dict.fromkeys(name.strip().upper() for name in names if name.strip()))


def subscribe_status(success: Sequence[SymbolInfo], fails: Sequence[str]) -> bytes:
    """``error`` only when every symbol was refused; no reasons are given."""
    return msgspec.json.encode(
        {
            "event": "subscribe-status",
            "status": "ok" if success else "error",
            "success": [
                {"symbol": info.symbol, "exchange": "FOREX", "country": "", "type": info.type}
                for info in success
            ]
            or None,
            "fails": [{"symbol": symbol} for symbol in fails],
        }
    )


def status(event: str) -> bytes:
    """``unsubscribe-status``, ``reset-status`` and ``heartbeat``."""
    return msgspec.json.encode({"event": event, "status": "ok"})


CANT_PARSE: Final = msgspec.json.encode(
    {"event": "subscribe-status", "status": "error", "messages": ["Cant parse message"]}
)


def too_many_events(count: int, limit: int) -> bytes:
    return msgspec.json.encode(
        {
            "status": "error",
            "code": 429,
            "message": f"The server received {count} events from you, which exceeds the limit of "
            f"{limit} events per minute",
        }
    )


class PriceEncoder:
    """Makes ``price`` frames of one symbol. The constant head is encoded once."""

    def __init__(self, info: SymbolInfo) -> None:
        head: dict[str, Any] = {
            "event": "price",
            "symbol": info.symbol,
            "currency_base": info.base_name,
            "currency_quote": info.quote_name,
        }
        if info.type == "Digital Currency":
            head["exchange"] = "Binance"
        head["type"] = info.type
        self._head = msgspec.json.encode(head)[:-1].decode()

    def frame(self, tick: SimTick, *, strings: bool = False, quotes: bool = True) -> bytes:
        """The text frame of ``tick``, ready for the transport."""
        price = f'"{tick.price!r}"' if strings else repr(tick.price)
        text = f'{self._head},"timestamp":{tick.timestamp},"price":{price}'
        if quotes and tick.bid is not None and tick.ask is not None:
            if strings:
                text = f'{text},"bid":"{tick.bid!r}","ask":"{tick.ask!r}"'
            else:
                text = f'{text},"bid":{tick.bid!r},"ask":{tick.ask!r}'
        return text_frame(f"{text}}}".encode())


def text_frame(payload: bytes) -> bytes:
    """``payload`` as one unmasked, final text frame (RFC 6455, 5.2)."""
    length = len(payload)
    if length < 126:
        return bytes((0x81, length)) + payload
    if length < 65_536:
        return b"\x81\x7e" + length.to_bytes(2, "big") + payload
    return b"\x81\x7f" + length.to_bytes(8, "big") + payload
