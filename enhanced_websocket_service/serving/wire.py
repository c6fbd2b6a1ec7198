"""The client protocol: messages to JSON and back. Pure; each message is encoded once.

Every message to a client has ``type`` first and times as ISO 8601 with offset, America/Bogota.
``parse`` never raises: what it cannot use becomes the ``error`` message to answer with.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec.structs import astuple

from enhanced_websocket_service.market.bar import INTERVALS, Bar, BarUpdate
from enhanced_websocket_service.market.calendar import iso_local
from enhanced_websocket_service.market.events import StatusChanged
from enhanced_websocket_service.market.price_view import PriceData, price_data, price_view
from enhanced_websocket_service.market.tick import Tick

PROTOCOL: Final = 1
"""Version of this protocol, told in ``welcome``; it grows when a client could misunderstand."""

Channel = Literal["ticks", "bars", "status"]
CHANNELS: Final[frozenset[Channel]] = frozenset({"ticks", "bars", "status"})

_INTERVAL_NAMES: Final = {seconds: name for name, seconds in INTERVALS.items()}
_encode = msgspec.json.Encoder().encode


def interval_name(seconds: int) -> str:
    """``300`` -> ``5min``; lengths without a name of their own are told in seconds."""
    return _INTERVAL_NAMES.get(seconds, f"{seconds}s")


def bar_data(bar: Bar) -> dict[str, Any]:
    """A bar as ``data`` of a ``bar`` message and as a row of ``/market/bars``."""
    certificate = bar.certificate
    return {
        "symbol": bar.symbol,
        "datetime": iso_local(bar.open_time),
        "open": bar.open,
        "high": bar.high,
        "low": bar.low,
        "close": bar.close,
        "volume": bar.volume,
        "source": bar.source,
        "revision": bar.revision,
        "status": bar.status,
        "certificate": None
        if certificate is None
        else {
            "ticks": certificate.ticks,
            "first_tick": _iso_or_none(certificate.first_tick),
            "last_tick": _iso_or_none(certificate.last_tick),
            "longest_silence_s": certificate.longest_silence_s,
            "partial": certificate.partial,
        },
    }


def tick_data(tick: Tick) -> dict[str, Any]:
    """A tick as a row of ``/market/ticks``: the price beside everything known about it."""
    return {
        **price_data(tick),
        "epoch": tick.epoch,
        "offset": tick.offset,
        "received_at": iso_local(tick.received_at),
        "trading_session": tick.trading_session,
        "flags": list(tick.flags),
    }


def local_day(now: float) -> str:
    """The local date of ``now``, ``YYYY-MM-DD``."""
    return iso_local(now)[:10]


def welcome(
    symbols: Sequence[str],
    epoch: int | None,
    offsets: Mapping[str, int],
    server_status: str,
    now: float,
) -> bytes:
    return _encode(
        {
            "type": "welcome",
            "protocol": PROTOCOL,
            "symbols": list(symbols),
            "epoch": epoch,
            "offsets": dict(offsets),
            "server_status": server_status,
            "timestamp": iso_local(now),
        }
    )


def epoch_started(
    symbol: str, epoch: int, previous_epoch: int | None, previous_last_offset: int | None
) -> bytes:
    return _encode(
        {
            "type": "epoch",
            "symbol": symbol,
            "epoch": epoch,
            "previous_epoch": previous_epoch,
            "previous_last_offset": previous_last_offset,
        }
    )


class _MarketData(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="market_data"):
    symbol: str
    epoch: int
    offset: int
    data: PriceData
    timestamp: str


class _Snapshot(_MarketData, frozen=True, gc=False, tag="market_data"):
    snapshot: bool = True


class _Replayed(_MarketData, frozen=True, gc=False, tag="market_data"):
    replayed: bool = True


def market_data(tick: Tick, *, snapshot: bool = False, replayed: bool = False) -> bytes:
    """``timestamp`` is when the service received the price; ``data.timestamp`` is the vendor's.

    :param replayed: out of the past because the client asked for that time, not live.
    """
    message = _Snapshot if snapshot else _Replayed if replayed else _MarketData
    received = iso_local(tick.received_at)
    return _encode(message(tick.symbol, tick.epoch, tick.offset, price_view(tick), received))


def market_data_of(ticks: Iterable[Tick]) -> list[bytes]:
    """``market_data`` of each, in two thirds of the time: what neighbours share is made once."""
    messages: list[bytes] = []
    stamp_of_text = text_of_stamp = None
    second = offset_text = second_text = None
    for tick in ticks:
        symbol, epoch, offset, stamp, price, bid, ask, volume, source, received, _, _ = astuple(
            tick
        )
        if text_of_stamp is None or stamp != stamp_of_text:
            stamp_of_text, text_of_stamp = stamp, iso_local(stamp)
        begun = received // 1.0
        if begun != second:
            second = begun
            whole = iso_local(begun)
            second_text, offset_text = whole[:-6], whole[-6:]
        micros = round((received - begun) * 1e6)
        at = (
            f"{second_text}.{micros:06d}{offset_text}"
            if 0 < micros < 1_000_000
            else iso_local(received)
        )
        # As Tick.spread has it, which here would be a fifth of the time.
        spread = None if bid is None or ask is None else round((ask - bid) * 1e6) / 1e6
        data = PriceData(symbol, price, bid, ask, spread, volume, text_of_stamp, source)
        messages.append(_encode(_MarketData(symbol, epoch, offset, data, at)))
    return messages


def bar(update: BarUpdate, *, replayed: bool = False) -> bytes:
    published = update.bar
    message = {
        "type": "bar",
        "symbol": published.symbol,
        "epoch": update.epoch,
        "offset": update.offset,
        "interval": interval_name(published.interval_s),
        "revision": published.revision,
        "status": published.status,
        "data": bar_data(published),
        "timestamp": iso_local(update.published_at),
    }
    return _encode(message | {"replayed": True} if replayed else message)


def status(change: StatusChanged) -> bytes:
    return _encode(
        {
            "type": "status",
            "server_status": change.state,
            "reason": change.reason,
            "feed_verdict": change.feed_verdict,
            "evidence": change.evidence,
            "verdicts": change.verdicts,
            "timestamp": iso_local(change.at),
        }
    )


def skipped(symbol: str, epoch: int, first: int, last: int | None, reason: str) -> bytes:
    """Offsets ``first .. last`` (inclusive) did not reach this client.

    ``last`` is ``None`` when nobody knows any more where that epoch ended.
    """
    return _encode(
        {
            "type": "skipped",
            "symbol": symbol,
            "epoch": epoch,
            "from": first,
            "to": last,
            "reason": reason,
        }
    )


def heartbeat_response(server_status: str, now: float) -> bytes:
    return _encode(
        {
            "type": "heartbeat_response",
            "server_status": server_status,
            "timestamp": iso_local(now),
        }
    )


def error(code: str, message: str) -> bytes:
    return _encode({"type": "error", "code": code, "message": message})


# --- from clients -----------------------------------------------------------------------------

# A message of 64 KiB could name 20,000: milliseconds, again and again, in which nobody gets a price.
_Symbols = Annotated[list[str], msgspec.Meta(max_length=1000)]
# What PostgreSQL can be asked for.
_Whole = Annotated[int, msgspec.Meta(ge=0, lt=10**18)]


class Heartbeat(msgspec.Struct, frozen=True):
    """Asks for a ``heartbeat_response``."""


class Subscribe(msgspec.Struct, frozen=True):
    """Adds symbols and channels to what the client gets."""

    symbols: _Symbols = []
    channels: list[Channel] = []


class Unsubscribe(msgspec.Struct, frozen=True):
    """Takes symbols and channels away."""

    symbols: _Symbols = []
    channels: list[Channel] = []


class Resume(msgspec.Struct, frozen=True):
    """The last tick the client has of ``symbol``; it wants what came after."""

    symbol: str
    epoch: _Whole
    offset: _Whole


class Fault(msgspec.Struct, frozen=True):
    """What was wrong with something a client sent."""

    code: str
    message: str


Request = Heartbeat | Subscribe | Unsubscribe | Resume
_REQUESTS: Final[dict[str, type[Request]]] = {
    "heartbeat": Heartbeat,
    "subscribe": Subscribe,
    "unsubscribe": Unsubscribe,
    "resume": Resume,
}


def parse(text: str | bytes) -> Request | Fault:
    """One message of a client, or what is wrong with it."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return Fault("bad_json", 'The message is not JSON; send for example {"type":"heartbeat"}.')
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str):
        return Fault("bad_message", "A message is a JSON object with a text field 'type'.")
    request = _REQUESTS.get(kind)
    if request is None:
        known = ", ".join(_REQUESTS)
        return Fault("unknown_type", f"Unknown message type {kind[:40]!r}; known: {known}.")
    try:
        return msgspec.convert(value, request)
    except msgspec.ValidationError as problem:
        return Fault("bad_message", f"{kind}: {str(problem)[:200]}.")


def parse_cursor(text: str, symbol: str | None = None) -> Resume | Fault:
    """The value of ``?since=``: ``SYMBOL:EPOCH:OFFSET``; without ``SYMBOL:`` that of the address."""
    parts = text.split(":")
    if len(parts) == 2 and symbol is not None:
        parts = [symbol, *parts]
    numbers = parts[1:]
    # isascii: int() also takes other scripts' digits; the length keeps them in 64 bits.
    whole = all(n.isascii() and n.isdigit() and len(n) <= 18 for n in numbers)
    if len(parts) != 3 or not parts[0] or not whole:
        return Fault(
            "bad_cursor",
            f"since={text[:60]!r} is not SYMBOL:EPOCH:OFFSET, for example USDCOP:1750000000000:42.",
        )
    return Resume(parts[0], int(numbers[0]), int(numbers[1]))


def normalise_symbol(text: str) -> str:
    """``usd/cop`` -> ``USDCOP``: case and the vendor's slash do not matter to clients."""
    return text.strip().upper().replace("/", "")


def _iso_or_none(instant: float | None) -> str | None:
    return None if instant is None else iso_local(instant)
