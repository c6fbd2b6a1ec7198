"""Every fault: its name, what it takes, what it does. A new one is one more entry here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from . import fault_values as values
from .fault_values import (
    NOBODY,
    REST_STATUSES,
    Ahead,
    BadPrint,
    Bursting,
    Dribbling,
    Hanging,
    Refusing,
    RestRefusing,
    Revising,
    Scaling,
    Shuffling,
    Some,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that can go wrong at the vendor."""

    takes: str  # for the message about a bad value
    does: str
    parse: Callable[[Any], Any]  # raises ValueError; null and false are not given to it
    action: bool = False
    off: Any = None

    @property
    def kind(self) -> str:
        return "action" if self.action else "switch"


_LIMITED = {"times": values.times}
_CALLS = {**_LIMITED, "paths": values.paths}
_SYMBOLS = "true, or a list of symbols"
_TIMES = "times (how often)"

FAULTS: Final[dict[str, Fault]] = {
    "mute": Fault(
        _SYMBOLS,
        "sockets stay open and answer pings, no prices",
        values.which,
        off=NOBODY,
    ),
    "mute_from_birth": Fault(
        _SYMBOLS,
        "a socket opened meanwhile is like that for life, without even the last price",
        values.which,
        off=NOBODY,
    ),
    "stall": Fault(
        _SYMBOLS,
        "every open socket goes mute for life (pings are answered); new ones work",
        values.which,
        action=True,
    ),
    "no_pong": Fault("true", "pings are not answered", values.boolean, off=False),
    "half_open": Fault(
        "true",
        "from every open socket nothing is read, to it nothing is written, pongs included, "
        "and it is not closed; clearing the faults resets it",
        values.boolean,
        action=True,
    ),
    "close": Fault(
        "a close code such as 1000, 1001, 1008 or 1011",
        "closes every open socket with this code",
        values.close_code,
        action=True,
    ),
    "drop": Fault("true", "resets every open socket (TCP RST)", values.boolean, action=True),
    "fin": Fault(
        "true",
        "ends every open socket's TCP connection (FIN) without a close frame",
        values.boolean,
        action=True,
    ),
    "refuse_handshake": Fault(
        f'a status 400 .. 599 or "404_plan"; or an object with status, {_TIMES}',
        "answers the WebSocket handshake with this status and the vendor's words",
        values.record(Refusing, {"status": values.handshake_status, **_LIMITED}),
    ),
    "hang_handshake": Fault(
        "true", "the WebSocket handshake is never answered", values.boolean, off=False
    ),
    "fails": Fault(
        "a list of symbols",
        "refuses these symbols in subscribe-status",
        values.symbols,
        off=frozenset(),
    ),
    "garbage_frames": Fault(
        "a number of frames, 1 .. 1000",
        "sends this many frames that are no price to every open socket",
        values.whole(1, 1000),
        action=True,
    ),
    "frozen": Fault(
        _SYMBOLS,
        "streamed prices go on with fresh stamps, but price, bid and ask stay those of the last one before",
        values.which,
        off=NOBODY,
    ),
    "no_bid_ask": Fault("true", "prices come without bid and ask", values.boolean, off=False),
    "string_prices": Fault("true", "prices are JSON strings", values.boolean, off=False),
    "double": Fault(
        f"true, a share of the ticks 0 .. 1; or an object with share, {_TIMES}",
        "ticks are sent twice, exactly",
        values.record(Some, {"share": values.share, **_LIMITED}),
    ),
    "disorder": Fault(
        "seconds 0 .. 300; or an object with within_s, share (of ticks, 0.3)",
        "ticks leave up to so many seconds late, overtaken by others; 0: in another order within "
        "a second",
        values.record(Shuffling, {"within_s": values.whole(0, 300), "share": values.share}),
    ),
    "delay_s": Fault(
        "seconds 0 .. 300, or a list of lowest and highest (each tick draws its own)",
        "ticks leave so long after their stamps",
        values.between(0, 300),
    ),
    "future_s": Fault(
        f"seconds -3600 .. 3600; or an object with seconds, share (of ticks, 1), {_TIMES}",
        "stamps lie so far ahead (+16 was seen), or behind",
        values.record(
            Ahead,
            {"seconds": values.whole(-3600, 3600), "share": values.share, **_LIMITED},
        ),
    ),
    "outlier": Fault(
        f"per cent -99 .. 1000; or an object with pct, share (of ticks, 0.02), {_TIMES}",
        "a tick is followed by a bad print, its price so much off",
        values.record(BadPrint, {"pct": values.real(-99, 1000), "share": values.share, **_LIMITED}),
    ),
    "scale": Fault(
        "a factor 0.0001 .. 10000; or an object with factor, at (a list of stream, price, bars)",
        "all prices times the factor: on the socket, in /price and its like, in /time_series",
        values.record(Scaling, {"factor": values.real(0.0001, 10_000), "at": values.places}),
    ),
    "crossed": Fault(
        f"true, a share of the ticks 0 .. 1; or an object with share, {_TIMES}",
        "bid and ask are exchanged",
        values.record(Some, {"share": values.share, **_LIMITED}),
    ),
    "float32_noise": Fault(
        "true",
        "streamed prices have the noise of 32-bit floats (3271.76001)",
        values.boolean,
        off=False,
    ),
    "burst": Fault(
        "seconds 1 .. 3600; or an object with seconds, rate (ticks a second, 10000), symbols",
        "so many extra ticks from the next second on, without changing any bar",
        values.record(
            Bursting,
            {
                "seconds": values.whole(1, 3600),
                "rate": values.whole(1, 100_000),
                "symbols": values.which,
            },
        ),
        action=True,
    ),
    "slow_frames": Fault(
        "real milliseconds 0.1 .. 60000; or an object with ms, size (bytes, 1)",
        "frames leave in pieces of so many bytes, so long apart",
        values.record(Dribbling, {"ms": values.real(0.1, 60_000), "size": values.whole(1, 65_536)}),
    ),
    "evict": Fault(
        "true",
        "closes the oldest socket of every key with 1008, as a newer connection would",
        values.boolean,
        action=True,
    ),
    "max_connections": Fault(
        "a number 1 .. 100",
        "so many sockets a key may have, whatever the plan; a newer one closes the oldest",
        values.whole(1, 100),
    ),
    "clock_skew_s": Fault(
        "seconds -3600 .. 3600",
        "the vendor's clock is so much ahead, or behind: prices, bars, credit minutes, Date headers "
        "and all",
        values.real(-3600, 3600),
        off=0.0,
    ),
    "rest_status": Fault(
        f"one of {', '.join(REST_STATUSES)}; or an object with status, {_TIMES}, paths (a list)",
        "answers REST calls with this error",
        values.record(RestRefusing, {"status": values.rest_status, **_CALLS}),
    ),
    "status_200_errors": Fault(
        "true", "sends REST errors with HTTP status 200", values.boolean, off=False
    ),
    "rest_timeout": Fault(
        f"true; or an object with {_TIMES}, paths (a list)",
        "REST calls cost their credits and are never answered",
        values.record(Hanging, {"on": values.boolean, **_CALLS}),
    ),
    "rest_delay_ms": Fault(
        "real milliseconds 0 .. 60000, or a list of lowest and highest",
        "REST answers come so much later",
        values.between(0, 60_000),
    ),
    "rest_lag_s": Fault(
        "seconds 0 .. 3600, or a list of lowest and highest (drawn anew every second)",
        "/price, /quote and /exchange_rate show the market as it was so long ago",
        values.between(0, 3600),
    ),
    "rest_frozen": Fault(
        "true",
        "/price, /quote and /exchange_rate repeat the market as it was when one was first asked meanwhile",
        values.boolean,
        off=False,
    ),
    "rest_decimals": Fault(
        "a number 0 .. 11",
        "/price, /quote and /exchange_rate are rounded to so many decimals, whatever is asked for",
        values.whole(0, 11),
    ),
    "rest_float32": Fault(
        "true",
        "/price, /quote and /exchange_rate have the noise of 32-bit floats (3271.76001)",
        values.boolean,
        off=False,
    ),
    "late_candles_s": Fault(
        "seconds 0 .. 3600, or a list of lowest and highest (each bar draws its own)",
        "a finished bar appears so long after its end; the vendor's own habit is 18 .. 180",
        values.between(0, 3600),
    ),
    "revised_candles": Fault(
        "seconds after a bar's end; or an object with until_s, bp (by how much), share (of bars)",
        "until then a finished bar has other prices than later",
        values.record(
            Revising,
            {
                "until_s": values.real(0, 86_400),
                "bp": values.real(0.01, 1000),
                "share": values.share,
            },
        ),
    ),
    "missing_bars": Fault(
        "a share of all bars, 0 .. 1; or a list of opens (ISO 8601, UTC, or unix seconds)",
        "these rows are absent from /time_series, of whatever interval",
        values.lacking,
    ),
    "empty_windows": Fault(
        "true",
        "/time_series answers 400, no data on the specified dates",
        values.boolean,
        off=False,
    ),
}
