"""``/_sim/...``: what a test asks of the simulator itself. No part of the vendor's protocol."""

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from enhanced_websocket_service.errors import ConfigurationError

from .answers import Answer, Request, json_answer
from .faults import BadFault, FaultBoard, described
from .ledger import RequestLedger
from .model import spelled
from .rest import RestVendor
from .stream import PriceStream

PREFIX = "/_sim/"
NDJSON_TYPE = "application/x-ndjson"


class Control:
    """Answers the control paths.

    ``calls`` counts the vendor's REST calls by path, ``answers`` by HTTP status; ``requests`` has
    each of them.
    """

    def __init__(
        self,
        stream: PriceStream,
        rest: RestVendor,
        faults: FaultBoard,
        now: Callable[[], float],
    ) -> None:
        self._stream = stream
        self._rest = rest
        self._faults = faults
        self._now = now
        self.calls: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.requests = RequestLedger()

    def answer(self, request: Request) -> Answer:
        match request.method, request.path.removeprefix(PREFIX):
            case "GET", "faults":
                return json_answer(
                    {
                        "faults": self._faults.shown(),
                        "known": described(),
                        "script": self._stream.agenda.shown(),
                    }
                )
            case "POST", "faults":
                return self._set_faults(request.body)
            case "DELETE", "faults":
                self._stream.clear()
                return json_answer({"faults": self._faults.shown()})
            case "GET", "status":
                return json_answer(self.status())
            case "GET", "requests":
                return json_answer({"requests": self.requests.entries()})
            case "GET", "sent":
                return self._sent(request.params)
        return _refused(
            404,
            "The control paths are GET, POST and DELETE /_sim/faults, GET /_sim/status, "
            "GET /_sim/requests and GET /_sim/sent.",
        )

    def status(self) -> dict[str, Any]:
        now = self._now()
        return {
            "now": now,
            "datetime": datetime.fromtimestamp(now, UTC).isoformat(),
            "clients": self._stream.shown(),
            **self._stream.door.shown(),
            "sent": {symbol: one.counts() for symbol, one in self._stream.ledgers.items()},
            "calls": dict(self.calls),
            "answers": dict(self.answers),
            "credits": self._rest.ledger.shown(now + self._faults.clock_skew_s),
            "faults": self._faults.shown(),
        }

    def _set_faults(self, body: bytes) -> Answer:
        try:
            wanted = msgspec.json.decode(body)
            self._stream.inject(wanted)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _refused(400, f"the body is not JSON: {error}")
        except BadFault as error:
            return _refused(400, str(error))
        return json_answer({"faults": self._faults.shown()})

    def _sent(self, params: Mapping[str, str]) -> Answer:
        ledgers = self._stream.ledgers
        try:
            symbol = spelled(params["symbol"]) if "symbol" in params else next(iter(ledgers))
            start, end = _instant(params, "start"), _instant(params, "end")
        except (ValueError, ConfigurationError) as error:
            return _refused(400, str(error))
        if symbol not in ledgers:
            return _refused(404, f"{symbol} is not simulated; there are {', '.join(ledgers)}.")
        resent = params.get("resent", "true").lower() not in ("0", "false", "no")
        entries = list(ledgers[symbol].entries(start, end, resent=resent))
        if params.get("format", "json").lower() == "ndjson":
            return Answer(200, msgspec.json.Encoder().encode_lines(entries), NDJSON_TYPE)
        return json_answer(entries)


def _instant(params: Mapping[str, str], name: str) -> float | None:
    """Unix seconds or ISO 8601 (UTC where it has no offset)."""
    text = params.get(name, "").strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        # A plus sign in a query string arrives as a space.
        parsed = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError as error:
        raise ValueError(
            f"{name}={text!r} is neither unix seconds nor an ISO 8601 time."
        ) from error
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def _refused(status: int, detail: str) -> Answer:
    return json_answer({"error": "simulator", "detail": detail}, status)
