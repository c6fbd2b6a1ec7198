"""Names of where a price came from. Simulated and real rows never mix in one answer."""

from dataclasses import dataclass

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


def is_simulated(source: str | None) -> bool:
    """Whether rows of ``source`` are invented prices."""
    return source is not None and (source == SIMULATOR or source.startswith(f"{SIMULATOR}_"))
