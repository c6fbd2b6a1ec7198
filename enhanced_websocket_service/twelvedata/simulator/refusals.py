"""What the vendor says when faults make it refuse: REST calls and handshakes. Pure."""

from typing import Final

from .answers import BAD_KEY, PRICING, TEXT_TYPE, Answer, Refusal, json_answer
from .credits import Plan, out_of_credits

PLAN_GATE: Final = (
    "This symbol is available starting with the Grow or Venture plan. Consider upgrading now at "
    f"{PRICING}"
)
_GATEWAY: Final = ("502", "503", "504", "520")
_DAY: Final = 800  # where the plan has no limit a day


def text_answer(status: str) -> Answer | None:
    """A gateway's answer, which is no JSON; ``None`` when the vendor itself answers."""
    if status not in _GATEWAY:
        return None
    return Answer(int(status), f"error code: {status}".encode(), TEXT_TYPE)


def rest_refusal(status: str, plan: Plan) -> Refusal:
    """The vendor's words for one of ``fault_values.REST_STATUSES`` that is no gateway's."""
    match status:
        case "401":
            return Refusal(401, BAD_KEY)
        case "403":
            return _exclusive("This endpoint")
        case "404_plan":
            return Refusal(404, PLAN_GATE)
        case "429_minute":
            return out_of_credits("minute", plan.per_minute + 1, plan.per_minute)
        case "429_day":
            limit = plan.per_day or _DAY
            return out_of_credits("day", limit + 1, limit)
        case _:
            return Refusal(500, "Internal server error")


def handshake_refusal(status: int | str, plan: Plan, path: str) -> Answer:
    """The answer to a WebSocket handshake in the place of 101."""
    plain = text_answer(str(status))
    if plain is not None:
        return plain
    match status:
        case 401:
            refusal = Refusal(401, BAD_KEY)
        case 403:
            refusal = _exclusive(path)
        case 404:
            return NOT_FOUND
        case "404_plan":
            refusal = Refusal(404, PLAN_GATE)
        case 429:
            refusal = out_of_credits("minute", plan.per_minute + 1, plan.per_minute)
        case 500:
            refusal = Refusal(500, "Internal server error")
        case _:
            refusal = Refusal(int(status), "Handshake refused")
    return json_answer(refusal.envelope(), refusal.code)


NOT_FOUND: Final = Answer(404, b'{"message":"404 page not found","code":404}')


def _exclusive(what: str) -> Refusal:
    return Refusal(
        403,
        f"{what} is available exclusively with pro or ultra or venture or enterprise plans. "
        f"Consider upgrading your API Key now at {PRICING}",
    )
