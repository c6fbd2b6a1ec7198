"""The vendor's wording: answers, error envelopes and number formats. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

JSON_TYPE = "application/json; charset=utf-8"
CSV_TYPE = "text/csv"  # exactly: the vendor's own client does not recognise it with a charset
TEXT_TYPE = "text/plain; charset=utf-8"

PRICING = "https://twelvedata.com/pricing"

NO_DATA = "No data is available on the specified dates. Try setting different start/end dates."
UNKNOWN_SYMBOL = (
    "**symbol** or **figi** parameter is missing or invalid. Please provide a valid symbol "
    "according to API documentation: https://twelvedata.com/docs#reference-data"
)
BAD_KEY = (
    "**apikey** parameter is incorrect or not specified. You can get your free API key instantly "
    f"following this link: {PRICING}. If you believe that everything is correct, you can contact us "
    "at https://twelvedata.com/contact/customer"
)


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, already taken apart. Parameter names are lower case."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer."""

    status: int
    body: bytes
    content_type: str = JSON_TYPE
    headers: tuple[tuple[str, str], ...] = ()


class Refusal(Exception):
    """The vendor's "no": it leaves the simulator as an error envelope, not as an exception."""

    def __init__(self, code: int, message: str, meta: Mapping[str, str] | None = None) -> None:
        self.code = code
        self.message = message
        self.meta = meta
        super().__init__(message)

    def envelope(self) -> dict[str, Any]:
        body: dict[str, Any] = {"code": self.code, "message": self.message, "status": "error"}
        if self.meta is not None:
            body["meta"] = dict(self.meta)
        return body


def json_answer(
    body: object, status: int = 200, headers: tuple[tuple[str, str], ...] = ()
) -> Answer:
    return Answer(status, msgspec.json.encode(body), JSON_TYPE, headers)


def invalid(parameter: str, value: object, supported: str) -> Refusal:
    """400 in the style of the vendor's message about intervals."""
    return Refusal(400, f"Invalid **{parameter}** provided: {value}. Supported {supported}")


def number(value: float, dp: int, *, forming: bool = False) -> str:
    """A price as text with ``dp`` decimals; -1 is the vendor's choice.

    The vendor pads finished rows to five decimals and trims the forming one, so the number of
    decimals varies inside one answer. No digit is ever lost.
    """
    if dp >= 0:
        return f"{value:.{dp}f}"
    exact = f"{value:.6f}"
    if not forming and exact.endswith("0"):
        return exact[:-1]
    return exact.rstrip("0").removesuffix(".")


def whole(params: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """A whole number among the parameters, or a 400."""
    text = params.get(name, "").strip()
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise invalid(name, text, f"values: from {low} to {high}")
    return value


def decimals(params: Mapping[str, str], default: int) -> int:
    """The ``dp`` parameter: -1 (automatic) .. 11."""
    return whole(params, "dp", default, -1, 11)


def flag(params: Mapping[str, str], name: str) -> bool:
    """A boolean parameter; absent is false."""
    return params.get(name, "").strip().lower() in ("true", "1", "yes")
