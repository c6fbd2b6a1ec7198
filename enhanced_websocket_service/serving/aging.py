"""Finds clients for which something waits too long, at no cost per message.

A byte's age is not stored anywhere. But when more is unsent than was written since an earlier look, something
that was unsent then still is: so one number and one instant per client that holds something back are enough.
"""

import asyncio
from collections.abc import Callable, Iterable

from .client import Client

_AT_ONCE = 512
"""Clients looked at in one turn of the loop: 10,000 in a row would delay a message by milliseconds."""


class AgeWatch:
    """Looks at every client twice in ``age_s`` (real seconds), as long as there are any.

    :param clients: those of this moment.
    :param too_old: called for one of which something waits for ``age_s`` or longer.
    :param taken: called for such a one when nothing waits any more.
    """

    def __init__(
        self,
        age_s: float,
        clients: Callable[[], Iterable[Client]],
        too_old: Callable[[Client], None],
        taken: Callable[[Client], None],
    ) -> None:
        self._age_s = age_s
        self._clients, self._too_old, self._taken = clients, too_old, taken
        self._round: list[Client] = []
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, or go on; harmless when repeated. It ends by itself with the last client."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._age_s / 2, self._turn)

    def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        if not self._round:
            self._round = list(self._clients())
            if not self._round:
                return
        batch, self._round = self._round[:_AT_ONCE], self._round[_AT_ONCE:]
        now = loop.time()
        for client in batch:
            if client.open:
                self._look(client, now)
        turns_left = -(-len(self._round) // _AT_ONCE)
        self._timer = loop.call_later(self._age_s / 2 / (turns_left + 1), self._turn)

    def _look(self, client: Client, now: float) -> None:
        outlet = client.outlet
        unsent = 0 if outlet.direct is not None else outlet.buffered()
        if unsent == 0:
            client.mark = None
            if client.aged:
                client.aged = False
                self._taken(client)
            return
        written = client.written_in_all
        if client.mark is None or unsent <= written - client.mark[1]:
            client.mark = (now, written)  # what is unsent now is younger than this look
        elif now - client.mark[0] >= self._age_s and not client.congested:
            client.aged = True
            self._too_old(client)
