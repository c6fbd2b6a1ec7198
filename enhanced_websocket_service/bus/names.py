"""What the keys and the channel of the service are called in Redis."""

from dataclasses import dataclass
from typing import Final

SIMULATED_PREFIX: Final = "simulated:"
"""Before every name that an instance with invented prices uses in a Redis that it does not own: other
services read the requester's names, and trade on what they find there.
"""


@dataclass(frozen=True, slots=True)
class RedisNames:
    """The names of one instance.

    :param prefix: stands before each of them.
    """

    prefix: str = ""

    @property
    def channel(self) -> str:
        """Each price is published here: ``market_data:realtime``."""
        return f"{self.prefix}market_data:realtime"

    @property
    def epoch(self) -> str:
        """The highest epoch that has begun."""
        return f"{self.prefix}ews:epoch"

    @property
    def collector(self) -> str:
        """Which instance collects, while it does: JSON with ``owner``, ``name`` and ``epoch``."""
        return f"{self.prefix}ews:collector"

    @property
    def world(self) -> str:
        """``real`` or ``simulated``: whose prices stand under the names with this prefix."""
        return f"{self.prefix}ews:world"

    @property
    def probe(self) -> str:
        """A key and a channel for nobody: whether the server does its work while there are no prices."""
        return f"{self.prefix}ews:probe"

    def price(self, symbol: str) -> str:
        """The latest price of ``symbol``: ``usdcop:latest_price``."""
        return f"{self.prefix}{symbol.lower()}:latest_price"

    def stream(self, kind: str, symbol: str) -> str:
        """The stream of ``ticks`` or ``bars``: ``ews:ticks:USDCOP``."""
        return f"{self.prefix}ews:{kind}:{symbol}"

    def lease(self, fingerprint: str) -> str:
        """Who streams with an API key; the fingerprint tells nothing about the key."""
        return f"{self.prefix}ews:lease:{fingerprint}"
