"""What is said of a symbol's liveness: the verdict, its evidence, its numbers and its history. Pure."""

from typing import Literal

import msgspec

Verdict = Literal["live", "quiet", "suspect", "dead", "closed"]
SampleResult = Literal["agrees", "differs", "unclear", "late", "failed", "refused"]
"""What became of a REST price asked to compare with: one the socket brought; none of them; asked too
soon to tell; overtaken by a price; no answer; no credit."""


class Sample(msgspec.Struct, frozen=True, gc=False):
    """A REST price asked during a silence."""

    price: float
    asked_at: float
    agrees: bool  # with a price the socket brought
    counts: bool  # late enough that the socket would have brought it


class Change(msgspec.Struct, frozen=True, gc=False):
    """A verdict of the history."""

    verdict: Verdict
    evidence: str
    at: float


class DeadSpan(msgspec.Struct, frozen=True, gc=False):
    """A stretch for which the stream was not to be believed; instants in unix seconds UTC."""

    start: float  # the last proof of life: a new price with a young stamp
    found_at: float  # when the verdict became ``dead``
    end: float | None  # the next proof, or the end of the session; ``None``: it lasts
    evidence: str


class SymbolVerdict(msgspec.Struct, frozen=True):
    """The verdict on one symbol, and the numbers behind it; instants in unix seconds UTC."""

    symbol: str
    verdict: Verdict
    evidence: str
    since: float  # when this verdict began
    silence_s: float | None  # since the last price, or since one was due; None: none is due
    suspect_after_s: float
    usual_silence_s: float
    usual_gap_s: float
    learned_days: int
    last_price_at: float | None
    last_new_price_at: float | None  # of the last price that proved the stream
    lag_s: (
        float  # how far its stamps steadily lie behind; less a minute where all are whole minutes
    )
    rest_fault: str | None  # why REST is no witness now
    rest_price: float | None
    rest_asked_at: float | None
    samples: dict[str, int]
    history: tuple[Change, ...]
    dead_spans: tuple[DeadSpan, ...] = ()


def is_news(before: str, after: str) -> bool:
    """Between live and quiet a thin market changes by the minute: no news for anybody."""
    plain = {"quiet": "live"}
    return plain.get(before, before) != plain.get(after, after)
