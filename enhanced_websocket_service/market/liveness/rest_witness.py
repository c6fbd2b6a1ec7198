"""Whether REST itself can be believed: it may be frozen or late, too. Pure.

A REST price that no price of the socket explains accuses the socket. When the socket then goes on by
itself, with a new price and without a reconnect, the accusation was false. Enough of them, and it is REST
that is wrong.
"""

from typing import Final

from .rest_agreement import same_price

FALSE_ACCUSATIONS: Final = 3
"""One may be a race, two may be one lull."""
FALSE_FOR_S: Final = 30.0
"""They must lie so far apart, in seconds: the lag of REST that is believed, and a margin."""


class RestWitness:
    """The REST prices of one symbol that nothing explained, until one agrees again."""

    def __init__(self) -> None:
        self._open: list[tuple[float, float]] = []  # of the silence under way: asked, price
        self._refuted: list[tuple[float, float]] = []

    @property
    def fault(self) -> str | None:
        """What is wrong with REST, or ``None``: it is believed."""
        refuted = self._refuted
        if len(refuted) < FALSE_ACCUSATIONS or refuted[-1][0] - refuted[0][0] < FALSE_FOR_S:
            return None
        span = refuted[-1][0] - refuted[0][0]
        price = refuted[-1][1]
        if all(same_price(price, one) for _, one in refuted):
            repeats = f"REST repeats {price:g} in {len(refuted)} answers over {span:.0f} s"
            return f"{repeats}, while the stream moves"
        strange = (
            f"{len(refuted)} REST prices over {span:.0f} s are none of the stream's at the time"
        )
        return f"{strange}, while the stream moves"

    def answered(self, price: float, asked_at: float, *, agrees: bool, counts: bool) -> None:
        """REST said ``price``; ``agrees``: the socket brought it; ``counts``: it would have, by then."""
        if agrees:
            self._open.clear()
            self._refuted.clear()
        elif counts:
            self._open.append((asked_at, price))
            del self._open[:-FALSE_ACCUSATIONS]

    def silence_over(self, *, by_itself: bool) -> None:
        """A new price has come; ``by_itself``: on the same connection, which nobody had given up."""
        if by_itself:
            self._refuted += self._open
            # The oldest one tells for how long.
            del self._refuted[1 : -3 * FALSE_ACCUSATIONS]
        self._open.clear()
