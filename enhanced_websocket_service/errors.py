"""Every error this package raises on purpose.

::

    EwsError
    ├── ConfigurationError          settings, flags, unusable paths (exit code 2)
    │   └── WrongWorld              real prices where ours are simulated, or the other way round
    ├── InvalidTransition           a state change the table in service/states.py forbids
    ├── DataError                   a file or row that cannot be used as given
    ├── L0Error                     history is absent, stale or incomplete
    │   └── PartlyDone              of some symbols; a command did what it could
    ├── BusUnavailable              Redis cannot be reached, or refuses; retry later
    ├── EmbeddedError               the private PostgreSQL or Valkey cannot be started or stopped
    ├── StorageError
    │   ├── JournalError            a short or failed write, a directory that cannot be used
    │   ├── NotAllowed              PostgreSQL refuses for want of a right
    │   ├── UnfitTables             tables that cannot hold what is written; their owner can mend them
    │   ├── RowsAltered             what a table holds is not what was written there
    │   ├── DatabaseUnavailable     PostgreSQL cannot be reached; retry later
    │   └── EpochFenced             a newer instance of the service owns this database
    └── VendorError
        ├── VendorUnavailable       time-out, connection, 5xx, an answer that is not JSON
        ├── InvalidKey              401: the key is wrong; never retry it
        ├── NotEntitled             403, or 404 with a plan's wording
        ├── CreditsExhausted        429; ``scope`` says minute or day
        ├── NoData                  400 "No data is available": an answer, not a fault
        ├── UnknownSymbol           404 without a plan's wording
        ├── UnfitPrices             too large or too small for the tables
        └── BadRequest              any other 4xx: our request is wrong

Messages name what failed, where, and what to do. They never contain a key or a password.
"""

from typing import Literal


def sentences(*texts: str) -> str:
    """``texts`` one after the other, each with a full stop at its end."""
    return " ".join(one if one.endswith((".", "!", "?")) else f"{one}." for one in texts)


class EwsError(Exception):
    """Base of every error raised on purpose by this package."""


class ConfigurationError(EwsError):
    """Unusable settings; ``faults`` holds one sentence for each of them."""

    def __init__(self, *faults: str) -> None:
        self.faults = faults
        super().__init__("\n".join(faults))


class InvalidTransition(EwsError):
    """A state change that the table of allowed transitions does not contain."""


class DataError(EwsError):
    """A file or a row that cannot be used as given."""


class L0Error(EwsError):
    """The historical data is absent, stale or incomplete."""


class PartlyDone(L0Error):
    """A command over several symbols failed for some of them; ``results`` are those of the others."""

    def __init__(self, message: str, results: tuple[object, ...]) -> None:
        self.results = results
        super().__init__(message)


class BusUnavailable(EwsError):
    """Redis cannot be reached, or refuses what it is asked."""


class EmbeddedError(EwsError):
    """The private PostgreSQL or Valkey cannot be started, found or stopped."""


class StorageError(EwsError):
    """Base of everything that can go wrong between a tick and a durable row."""


class JournalError(StorageError):
    """The journal could not be opened, written, fsynced or read."""


class NotAllowed(StorageError):
    """The role that the service connects as lacks a right; PostgreSQL does not tell which."""


class UnfitTables(StorageError):
    """Tables of the database cannot hold what the service writes; names each with its column and a cure."""


class RowsAltered(StorageError):
    """A table of the database keeps out or changes what is written: a trigger of its owner's does."""


class DatabaseUnavailable(StorageError):
    """PostgreSQL cannot be reached or answered with an error worth retrying."""


class EpochFenced(StorageError):
    """A newer instance owns this database; this one must stop writing."""


class WrongWorld(ConfigurationError, StorageError):
    """A database, a Redis or a folder holds prices of the other world: real ones where ours are
    simulated, or the other way round. At the start a wrong setting, in a running service a place
    that may not be written to.
    """


class VendorError(EwsError):
    """The vendor answered with an error, or not at all."""


class UnfitPrices(VendorError):
    """The vendor's prices of a symbol are too large or too small for the tables; nothing mends that."""


class VendorUnavailable(VendorError):
    """Time-out, refused connection, 5xx, or an answer that is not JSON; retry later."""


class InvalidKey(VendorError):
    """401: the vendor does not know this key; it is disabled until the next start."""


class NotEntitled(VendorError):
    """403, or 404 with a plan's wording: the plan of the key does not include the request."""


class CreditsExhausted(VendorError):
    """429: no credits left for the wall-clock minute or the UTC day (``scope``)."""

    def __init__(self, message: str, scope: Literal["minute", "day"]) -> None:
        self.scope = scope
        super().__init__(message)


class NoData(VendorError):
    """400 with "No data is available": the window is empty. An answer, not a fault."""


class UnknownSymbol(VendorError):
    """404: the vendor does not know the symbol."""


class BadRequest(VendorError):
    """Any other 4xx: the request itself is wrong; repeating it changes nothing."""
