"""The clients of a moment, counted. Pure."""

from collections.abc import Collection, Sequence

from .client import Client
from .models import ClientCounts


def count_clients(
    clients: Collection[Client], symbols: Sequence[str], **totals: int
) -> ClientCounts:
    """For ``/status``.

    :param totals: the fields of ``ClientCounts`` that count since the start.
    """
    modes = {"every": 0, "latest": 0, "bars": 0}
    for client in clients:
        modes[client.interest.mode] += 1
    return ClientCounts(
        connected=len(clients),
        by_mode=modes,
        by_symbol={
            symbol: sum(symbol in client.interest.symbols for client in clients)
            for symbol in symbols
        },
        slow=sum(client.congested for client in clients),
        **totals,
    )
