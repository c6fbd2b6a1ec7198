"""Names of where a price came from. Simulated and real rows never mix in one answer."""

from dataclasses import dataclass
from typing import Literal

from enhanced_websocket_service.errors import WrongWorld

World = Literal["real", "simulated"]
"""Whether prices are a vendor's or invented. A place that holds prices belongs to one of the two."""

REAL_PROVIDER = "twelvedata"
SIMULATOR = "simulator"


@dataclass(frozen=True, slots=True)
class Provider:
    """The vendor behind the configured addresses, and the source names of its rows."""

    name: str = REAL_PROVIDER

    @property
    def bars(self) -> str:
        """Bars the vendor built itself."""
        return self.name

    @property
    def websocket(self) -> str:
        """Ticks from its socket, and bars whose first tick came from there."""
        return f"{self.name}_websocket"

    @property
    def rest(self) -> str:
        """Ticks from polled quotes, and bars whose first tick came from there."""
        return f"{self.name}_rest"

    @property
    def simulated(self) -> bool:
        return is_simulated(self.name)

    @property
    def world(self) -> World:
        return world_of(self.name)


def is_simulated(source: str | None) -> bool:
    """Whether rows of ``source`` are invented prices."""
    return source is not None and (source == SIMULATOR or source.startswith(f"{SIMULATOR}_"))


def world_of(source: str | None) -> World:
    """The world of rows of ``source``. Rows without one were written by other programs, so they are real."""
    return "simulated" if is_simulated(source) else "real"


def check_world(found: World | None, ours: World, place: str, remedy: str) -> None:
    """Whether an instance of world ``ours`` may write into ``place``, which belongs to ``found``.

    :param found: ``None``: to nobody yet.
    :param place: names the place for people, at the beginning of a sentence.
    :param remedy: what to do instead, a sentence.
    :raises WrongWorld: it may not.
    """
    if found not in (None, ours):
        raise WrongWorld(
            f"{place} holds {found} prices, but the prices of this instance are {ours}: the two are "
            f"never mixed, and nothing was written there. {remedy}"
        )
