"""Slots the vendor was asked for and does not have.

The database alone cannot tell "never asked" from "asked, and there was none", and thin days stay short
for ever: without this record every run would pay for them again. It lives in a small file beside the
backup. It only saves credits: lost, or unreadable, it is rebuilt by asking again; while it cannot be
written, this process remembers it. It never claims a bar that the database does not have.
"""

import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import structlog

from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.storage.atomic_file import SHARED, replace_file

log = structlog.get_logger(__name__)

SCHEMA_VERSION = 1
FINAL_AFTER_S = 86_400
"""An answer is final for slots that ended at least a day before it: after an outage of its own the
vendor still fills in younger ones, and believing their absence would keep the hole for ever."""


class Absences:
    """The file ``<symbol>_m5_vendor_gaps.json``: local day -> local labels, for one source.

    :param failures: told whether the file can be read and written.
    """

    def __init__(
        self,
        directory: Path,
        symbol: str,
        source: str,
        calendar: TradingCalendar,
        failures: Failures,
    ) -> None:
        self.path = directory / f"{symbol.lower()}_m5_vendor_gaps.json"
        self._symbol, self._source, self._calendar = symbol, source, calendar
        self._failures, self._part = failures, f"vendor gaps file of {symbol}"
        self._unsaved: frozenset[int] | None = None  # the record that the file did not take

    def load(self) -> set[int]:
        """The recorded slots; none when the file is missing, unreadable or of another source."""
        if self._unsaved is not None:
            return set(self._unsaved)
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            self._failures.succeeded(self._part)
            return set()
        except OSError as error:
            self._failures.failed(
                self._part, f"BACKUP_DIR: cannot read {self.path}: {error.strerror or error}."
            )
            return set()
        self._failures.succeeded(self._part)
        try:
            content = json.loads(text)
            if content["source"] != self._source or content["symbol"] != self._symbol:
                return set()
            # Its own: the symbol may have had another calendar when it was written.
            zone = ZoneInfo(content.get("timezone", self._calendar.zone.key))
            return {
                int(datetime.fromisoformat(f"{day}T{label}").replace(tzinfo=zone).timestamp())
                for day, labels in content["absent"].items()
                for label in labels
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning(
                "record of vendor gaps is unusable and will be rebuilt",
                path=str(self.path),
                error=str(error),
            )
            return set()

    def save(self, slots: Iterable[int]) -> None:
        """Replace the record by ``slots``; kept for this process when the file cannot be written."""
        self._unsaved = frozenset(slots)
        self._save(self._unsaved)

    def try_again(self) -> None:
        """Save or read again what could not be, if there is anything."""
        if self._unsaved is not None:
            self._save(self._unsaved)
        elif self._failures.of(self._part) is not None:
            self.load()

    def _save(self, slots: frozenset[int]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, self._document(slots), SHARED)
        except OSError as error:
            self._failures.failed(
                self._part,
                f"BACKUP_DIR: cannot write {self.path}: {error.strerror or error}. Make the folder writable "
                "and give it room, or set BACKUP_DIR.",
            )
        else:
            self._unsaved = None
            self._failures.succeeded(self._part)

    def _document(self, slots: Iterable[int]) -> bytes:
        absent: dict[str, list[str]] = {}
        for slot in sorted(slots):
            local = datetime.fromtimestamp(slot, self._calendar.zone)
            absent.setdefault(local.date().isoformat(), []).append(local.strftime("%H:%M"))
        content = {
            "schema_version": SCHEMA_VERSION,
            "symbol": self._symbol,
            "source": self._source,
            "timezone": str(self._calendar.zone),
            "absent": absent,
        }
        return json.dumps(content, indent=1).encode() + b"\n"
