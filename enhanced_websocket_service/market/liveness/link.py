"""The state of the connection that should bring a symbol's prices. Pure."""

from typing import Final, Literal

Link = Literal["stopped", "connecting", "waiting", "up", "down"]

NOTHING_RUNS: Final = "nothing runs"


class LinkState:
    """Whether there is a connection, since when, and whether anything has failed since the last proof."""

    def __init__(self) -> None:
        self.kind: Link = "stopped"
        self.said = NOTHING_RUNS  # why the link is not up
        self.connected_at = 0.0
        self.told_since = 0.0  # from here on the socket tells every price
        self.brought = False  # at least one price on this connection
        self.failed = False  # and no price has proved the stream since

    @property
    def is_up(self) -> bool:
        return self.kind == "up"

    def up(self, at: float) -> None:
        """A connection is there and the symbol subscribed, or about to be."""
        self.kind, self.said = "up", ""
        self.connected_at = self.told_since = at
        self.brought = False

    def down(self, why: str) -> None:
        """No connection, or the symbol is not streamed to us."""
        self.kind, self.said = "down", why
        self.failed = True

    def connecting(self, why: str, *, waiting: bool) -> None:
        """A connection is being made or, ``waiting``, must not be made yet."""
        if waiting or not self.failed:
            self.kind, self.said = ("waiting" if waiting else "connecting"), why

    def stopped(self) -> None:
        """The session's feed is over."""
        self.kind, self.said = "stopped", NOTHING_RUNS
        self.failed = False

    def heard(self, at: float) -> None:
        """The socket brought a price."""
        if not self.brought:
            self.brought = True
            self.told_since = at
