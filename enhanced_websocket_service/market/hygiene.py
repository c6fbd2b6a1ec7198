"""What was odd about the quotes of a symbol, counted. Pure.

Everything the vendor sends is somewhere: quotes = ticks + rejected + resent + unchanged + held now,
but for a batch that the journal could not take.
"""

from dataclasses import dataclass, field
from typing import Any

from .calendar import iso_local
from .tick import Rejection


@dataclass(slots=True)
class TickHygiene:
    """Totals of one symbol since the start of the process."""

    quotes: int = 0  # whatever came
    ticks: int = 0  # accepted
    repeated: int = 0  # equal to the tick before in stamp, price, bid and ask
    out_of_order: int = 0  # stamped before a tick that came earlier
    late: int = 0  # after their bar was beyond revision
    future: int = 0  # stamped too far ahead of our clock
    outside_session: int = 0  # stamped outside the session
    crossed: int = 0  # ask below bid
    float32_noise: int = 0  # prices like 4179.95996, for 4179.96
    confirmed: int = 0  # held, then agreed with
    resent: int = 0  # last prices sent again after a subscription; no ticks
    unchanged: int = 0  # REST prices equal to the last one; no ticks
    rejected: dict[str, int] = field(default_factory=dict)
    last_rejected: Rejection | None = None

    def reject(self, one: Rejection) -> None:
        self.rejected[one.reason] = self.rejected.get(one.reason, 0) + 1
        self.last_rejected = one

    def oddities(self) -> dict[str, int]:
        """The counts of ticks that are stored and yet odd, by kind."""
        return {
            "repeated": self.repeated,
            "out_of_order": self.out_of_order,
            "late": self.late,
            "future": self.future,
            "outside_session": self.outside_session,
            "crossed": self.crossed,
            "float32_noise": self.float32_noise,
            "confirmed": self.confirmed,
        }

    def shown(self) -> dict[str, Any]:
        """As plain JSON values."""
        last = self.last_rejected
        return {
            "quotes": self.quotes,
            "ticks": self.ticks,
            **self.oddities(),
            "resent": self.resent,
            "unchanged": self.unchanged,
            "rejected": dict(self.rejected),
            "last_rejected": None
            if last is None
            else {
                "reason": last.reason,
                "price": last.price,
                "received_at": iso_local(last.received_at),
            },
        }
