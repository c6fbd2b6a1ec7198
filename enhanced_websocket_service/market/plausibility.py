"""How much has to be said for a price before it is believed. Pure.

A price inside the band needs nothing. One outside it needs others of its level, and some changes need a
witness of another kind, because a wrong unit, a wrong symbol or a stuck source repeats itself for as long as
one listens to it alone: ``docs/decisions/0034-witnesses.md``.
"""

from collections.abc import Collection
from typing import Final, Literal, NamedTuple

from .tick import Quote, quantise

Kind = Literal["stream", "rest", "stored", "bar"]
"""Where a price is from: the vendor's socket, its current REST price, the last stored bar, or the vendor's
own 5-minute bar. Two of one kind are one witness."""
Why = Literal["first", "scale", "leap", "move"]
"""Why a price is doubted: there is no other at all, it differs by a power of ten, it is further away than
the pair ever moved, or it is outside the band."""

USUAL_MOVE: Final = 0.2
"""Further than by this part of the last price no pair moves at once, unless its stored history says so."""
SCALES: Final = (1e-3, 1e-2, 1e-1, 1e1, 1e2, 1e3)
SCALE_TOLERANCE: Final = 0.2
"""How far from a power of ten a change may be and still look like one of scale, as a part of it."""
AGREEMENT_NEEDED: Final = 2
"""How many later prices must agree with a held one before a move outside the band is believed."""

ANOTHER_KIND: Final[Collection[Why]] = frozenset({"first", "scale", "leap"})
"""Doubts that more prices of the same kind do not settle."""


Said = tuple[int, float, float | None, float | None]
"""Stamp, price, bid and ask, rounded: a quote that says the same again is the same witness."""


def said(quote: Quote) -> Said:
    bid, ask = quote.bid, quote.ask
    return (
        quote.timestamp,
        quantise(quote.price),
        None if bid is None else quantise(bid),
        None if ask is None else quantise(ask),
    )


class Doubt(NamedTuple):
    """The held quotes of a symbol, for those who look for a witness.

    ``stamp`` and ``since`` are those of the first one: the vendor's and our clock, unix seconds UTC.
    """

    symbol: str
    why: Why
    price: float  # of the first held quote
    last: float | None  # what it is measured by; ``None``: nothing is known
    kinds: frozenset[Kind]
    stamp: int
    since: float
    newest: int  # the stamp of ``last``; 0: it has none
    quotes: int

    @property
    def key(self) -> tuple[int, float, float]:
        """The same for as long as it is about the same quote."""
        return (self.stamp, self.since, self.price)

    @property
    def needs_another_kind(self) -> bool:
        return self.why in ANOTHER_KIND


class BarWitness(NamedTuple):
    """The close of a finished bar that opens at ``opens`` and ends at ``ends``, unix seconds UTC.

    ``asked``: the vendor was asked for it now; else it is the last one stored.
    """

    close: float
    opens: int
    ends: int
    asked: bool


def kind_of(quote: Quote) -> Kind:
    return "rest" if quote.source.endswith("_rest") else "stream"


def is_scale(ratio: float) -> bool:
    """Whether ``ratio`` is near a power of ten other than 1."""
    return any(abs(ratio / scale - 1.0) <= SCALE_TOLERANCE for scale in SCALES)


def why_doubted(price: float, last: float | None, largest: float = USUAL_MOVE) -> Why:
    """Why a price outside the band of ``last`` is doubted.

    :param largest: the largest move between neighbouring prices of the pair that is believed without
        more ado, as a part of the earlier one.
    """
    if last is None:
        return "first"
    if is_scale(price / last):
        return "scale"
    return "leap" if abs(price - last) > largest * last else "move"


def is_enough(why: Why, distinct: int, kinds: Collection[Kind], rest_prices: int) -> bool:
    """Whether held quotes that agree settle the doubt about the first of them.

    :param distinct: how many different quotes they are: a frame that is delivered again is no witness.
    :param rest_prices: how many REST prices are among them.
    """
    if len(kinds) > 1:
        return True
    if why in ANOTHER_KIND:
        return False
    return distinct > AGREEMENT_NEEDED or rest_prices > 1


class HeldState(NamedTuple):
    """What ``HeldQuotes`` needs to be as it was."""

    quotes: tuple[Quote, ...]
    kinds: frozenset[Kind]
    rest_prices: int
    disputed: bool


class HeldQuotes:
    """Quotes of one level that wait for a witness, in order of arrival, and what spoke for them so far."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.quotes: list[Quote] = []
        self.kinds: frozenset[Kind] = frozenset()
        self.rest_prices = 0  # of this level, be they quotes or answers
        self.disputed = False  # a witness agreed neither with them nor with the last price
        self._distinct: set[Said] = set()

    def __len__(self) -> int:
        return len(self.quotes)

    @property
    def distinct(self) -> int:
        return len(self._distinct)

    @property
    def agreeing(self) -> int:
        """How many different prices of this level were seen, whatever their kind."""
        return max(self.distinct, self.rest_prices)

    def is_double(self, quote: Quote) -> bool:
        """Whether an equal quote is held."""
        return said(quote) in self._distinct

    def add(self, quote: Quote) -> None:
        kind = kind_of(quote)
        if kind == "rest":
            self.rest_prices += 1
        if kind not in self.kinds:
            self.kinds |= {kind}
        self.quotes.append(quote)
        self._distinct.add(said(quote))

    def answered(self, kind: Kind) -> None:
        """A price that is no quote agrees with them."""
        self.rest_prices += kind == "rest"
        self.kinds |= {kind}

    def take(self) -> list[Quote]:
        """All of them; none is held any more."""
        taken = self.quotes
        self.clear()
        return taken

    def state(self) -> HeldState:
        return HeldState(tuple(self.quotes), self.kinds, self.rest_prices, self.disputed)

    def go_back(self, state: HeldState | None) -> None:
        self.clear()
        if state is not None:
            for quote in state.quotes:
                self.add(quote)
            _, self.kinds, self.rest_prices, self.disputed = state
