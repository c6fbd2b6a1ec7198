"""The backup set: one parquet file and its metadata, for people and for other programs.

Invariant: after a crash at any point the set is the old one or the new one. New files are staged and
fsynced first, then the parquet file is renamed, then the metadata. A crash between the two
renames leaves the staged metadata beside the parquet file it describes; the next reader or
writer finishes the rename. Writers of different processes take turns by a lock file.
"""

import asyncio
import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import msgspec
import polars as pl

from enhanced_websocket_service.errors import DataError, L0Error
from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.market.calendar import BAR_SECONDS, TradingCalendar, iso_local
from enhanced_websocket_service.market.source import World, world_of
from enhanced_websocket_service.storage.atomic_file import SHARED, fsync_path, write_durably

from .slots import settled_labels

SCHEMA_VERSION = 1
SCHEMA = pl.Schema(
    {
        "datetime": pl.Datetime("us", "UTC"),
        "symbol": pl.String(),
        "open": pl.Float64(),
        "high": pl.Float64(),
        "low": pl.Float64(),
        "close": pl.Float64(),
        "volume": pl.Int64(),
        "source": pl.String(),
    }
)

READER_TIMEOUT_S = 60.0
_READER = "import polars, sys; polars.read_parquet(sys.argv[1]).write_ipc(sys.stdout.buffer)"


class BackupMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """``<symbol>_m5_backup_metadata.json``. Times are ISO 8601 with offset, America/Bogota."""

    schema_version: int = SCHEMA_VERSION
    symbol: str
    interval: str = "5min"
    provider: str
    source: str
    file: str
    rows: int
    range_start: str | None  # the first bar's open; None: no bars
    range_end: str | None  # the last bar's open
    expected_slots: int  # of the trading days from the first bar's to the last bar's
    missing_slots: list[str]
    completeness_percentage: float  # 0 .. 100
    sha256: str  # of the parquet file
    created_at: str


class BackupSet:
    """The two files of one symbol in ``directory``. Work on files runs in a thread."""

    def __init__(self, directory: Path, symbol: str, calendar: TradingCalendar) -> None:
        name = symbol.lower()
        self.directory, self.symbol = directory, symbol
        self.parquet = directory / f"{name}_m5_complete_backup.parquet"
        self.metadata = directory / f"{name}_m5_backup_metadata.json"
        self._staged_parquet = directory / f".{self.parquet.name}.next"
        self._staged_metadata = directory / f".{self.metadata.name}.next"
        self._lock = directory / f".{name}_m5_backup.lock"
        self._calendar = calendar

    @property
    def exists(self) -> bool:
        """Whether there is a set, as far as can be seen."""
        return _is_there(self.metadata) and _is_there(self.parquet)

    def world(self) -> World | None:
        """Whose bars the set holds; ``None``: there is none. One that does not say so counts as real."""
        try:
            content = self.metadata.read_bytes()
            return world_of(msgspec.json.decode(content, type=BackupMetadata).source)
        except FileNotFoundError:
            return "real" if _is_there(self.parquet) else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            return "real"
        except OSError:
            return None  # what cannot be read cannot be replaced, either

    async def write(
        self, bars: Sequence[Bar], *, provider: str, source: str, now: float
    ) -> BackupMetadata:
        """Replace the set by ``bars``. Raises ``L0Error`` when the files cannot be written.

        Cancelled, the thread still finishes: the set is then the new one.
        """
        return await asyncio.to_thread(self._write, bars, provider, source, now)

    async def read(self) -> tuple[pl.DataFrame, BackupMetadata]:
        """The set as it is. Raises ``DataError`` when it is absent or does not verify."""
        return await asyncio.to_thread(self._read)

    async def read_metadata(self) -> BackupMetadata:
        """The metadata alone. Raises ``DataError`` when absent or not of this schema."""
        return await asyncio.to_thread(self._read_metadata)

    async def rows(self, *, doubted: bool) -> pl.DataFrame | None:
        """The rows as far as they can be read; ``None`` when they cannot.

        :param doubted: the file may be damaged. It is then read by a process of its own: decoding
            garbage can end the process that does it.
        """
        return await asyncio.to_thread(self._rows, doubted)

    async def verify(self) -> list[str]:
        """What is wrong with the set, one sentence each; empty when file and metadata agree."""
        return await asyncio.to_thread(self._verify)

    async def lacks(self, bars: Sequence[Bar]) -> bool:
        """Whether one of ``bars`` is absent from the set, or another there; a set that does not verify
        has none.

        What the set has beyond them is no fault: it may be the only copy.
        """
        return await asyncio.to_thread(self._lacks, bars)

    def _lacks(self, bars: Sequence[Bar]) -> bool:
        if not bars:
            return False
        try:
            frame, _ = self._read()
        except DataError:
            return True
        return not to_frame(bars).join(frame, on=SCHEMA.names(), how="anti").is_empty()

    def _write(self, bars: Sequence[Bar], provider: str, source: str, now: float) -> BackupMetadata:
        ordered = sorted(bars, key=lambda bar: bar.open_time)
        frame = to_frame(ordered)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._recover_locked()
                try:
                    frame.write_parquet(self._staged_parquet, compression="zstd")
                    fsync_path(self._staged_parquet)
                    metadata = self._describe(ordered, provider, source, now)
                    document = msgspec.json.format(msgspec.json.encode(metadata), indent=2)
                    write_durably(self._staged_metadata, document + b"\n", SHARED)
                    fsync_path(self.directory)
                    self._staged_parquet.replace(self.parquet)
                    self._staged_metadata.replace(self.metadata)
                    fsync_path(self.directory)
                except (OSError, pl.exceptions.PolarsError):
                    # A disk that is full must not be made fuller by what was staged.
                    self._recover_locked()
                    raise
        except (OSError, pl.exceptions.PolarsError) as error:
            raise L0Error(unwritable(self.directory, error)) from error
        return metadata

    def _describe(
        self, bars: Sequence[Bar], provider: str, source: str, now: float
    ) -> BackupMetadata:
        expected: list[int] = []
        if bars:
            days = self._calendar.trading_days(
                self._calendar.local_date(bars[0].open_time),
                self._calendar.local_date(bars[-1].open_time),
            )
            expected = [slot for day in days for slot in settled_labels(self._calendar, day, now)]
        have = {bar.open_time for bar in bars}
        missing = [slot for slot in expected if slot not in have]
        share = (len(expected) - len(missing)) / len(expected) if expected else 0.0
        return BackupMetadata(
            symbol=self.symbol,
            provider=provider,
            source=source,
            file=self.parquet.name,
            rows=len(bars),
            range_start=iso_local(bars[0].open_time) if bars else None,
            range_end=iso_local(bars[-1].open_time) if bars else None,
            expected_slots=len(expected),
            missing_slots=[iso_local(slot) for slot in missing],
            completeness_percentage=round(100 * share, 4),
            sha256=file_sha256(self._staged_parquet),
            created_at=datetime.fromtimestamp(now, self._calendar.zone).isoformat(
                timespec="seconds"
            ),
        )

    def _read_metadata(self) -> BackupMetadata:
        self._recover()
        try:
            return msgspec.json.decode(self.metadata.read_bytes(), type=BackupMetadata)
        except FileNotFoundError as error:
            raise DataError(
                f"There is no backup metadata at {self.metadata}. Run `l0 backfill`."
            ) from error
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(
                f"The backup metadata {self.metadata} cannot be used: {error}. Run `l0 incremental` "
                "to write the set anew."
            ) from error

    def _read(self) -> tuple[pl.DataFrame, BackupMetadata]:
        metadata = self._read_metadata()
        problems = self._problems(metadata)
        if problems:
            raise DataError(" ".join(problems))
        return pl.read_parquet(self.parquet), metadata

    def _rows(self, doubted: bool) -> pl.DataFrame | None:
        try:
            if not doubted:
                return pl.read_parquet(self.parquet)
            reader = subprocess.run(  # noqa: S603 our own interpreter, our own file
                [sys.executable, "-c", _READER, str(self.parquet)],
                capture_output=True,
                timeout=READER_TIMEOUT_S,
                check=True,
            )
            frame = pl.read_ipc(reader.stdout)
        except (OSError, subprocess.SubprocessError, pl.exceptions.PolarsError):
            return None
        return frame if frame.schema == SCHEMA else None

    def _verify(self) -> list[str]:
        try:
            return self._problems(self._read_metadata())
        except DataError as error:
            return [str(error)]

    def _problems(self, metadata: BackupMetadata) -> list[str]:
        try:
            if file_sha256(self.parquet) != metadata.sha256:
                return [
                    f"The SHA-256 of {self.parquet} is not the one in {self.metadata.name}: one of "
                    "them was changed or belongs to another set."
                ]
            frame = pl.read_parquet(self.parquet)
        except FileNotFoundError:
            return [f"There is no backup at {self.parquet}. Run `l0 backfill`."]
        except (OSError, pl.exceptions.PolarsError) as error:
            return [f"The backup {self.parquet} cannot be read: {error}"]
        if frame.schema != SCHEMA:
            return [f"The columns of {self.parquet} are not those of this version: {frame.schema}"]
        problems = []
        if frame.height != metadata.rows:
            problems.append(
                f"{self.parquet} has {frame.height} rows, its metadata says {metadata.rows}."
            )
        stamps = frame.get_column("datetime")
        if frame.height and not (stamps.is_sorted() and stamps.is_unique().all()):
            problems.append(f"The rows of {self.parquet} are not in order, or some are doubled.")
        if frame.height and _iso_ends(stamps) != (metadata.range_start, metadata.range_end):
            problems.append(f"The range of {self.parquet} is not the one in its metadata.")
        return problems

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # Read-only: enough for a lock, and all that another user may do with the file.
        descriptor = os.open(self._lock, os.O_RDONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _recover(self) -> None:
        """Finish what a crashed writer began; nothing to do, and no lock taken, otherwise."""
        if not _is_there(self._staged_metadata):
            return
        try:
            with self._locked():
                self._recover_locked()
        except OSError as error:
            raise DataError(
                f"The backup set in {self.directory} was interrupted while being replaced and "
                f"cannot be finished: {error}. Run `l0 incremental` as a user who may write there."
            ) from error

    def _recover_locked(self) -> None:
        try:
            staged = msgspec.json.decode(self._staged_metadata.read_bytes(), type=BackupMetadata)
            if staged.sha256 == file_sha256(self.parquet):
                self._staged_metadata.replace(self.metadata)
                fsync_path(self.directory)
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            pass  # nothing staged, torn staging, or no set yet: the old state stands
        self._staged_parquet.unlink(missing_ok=True)
        self._staged_metadata.unlink(missing_ok=True)


def unwritable(directory: Path, error: Exception) -> str:
    """What to tell of a folder that takes no backup files: one sentence, whichever file it was seen at."""
    why = (error.strerror if isinstance(error, OSError) else None) or error
    return (
        f"BACKUP_DIR: cannot write the backup set in {directory}: {why}. Make the folder writable "
        f"for user {os.getuid()} and give it room, or set BACKUP_DIR."
    )


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except OSError:  # also of a folder that cannot be looked into, where Path.exists raises
        return False
    return True


def to_frame(bars: Sequence[Bar]) -> pl.DataFrame:
    """``bars`` as the table of the backup, in the order given."""
    return pl.DataFrame(
        {
            "datetime": [bar.open_time * 1_000_000 for bar in bars],
            "symbol": [bar.symbol for bar in bars],
            "open": [bar.open for bar in bars],
            "high": [bar.high for bar in bars],
            "low": [bar.low for bar in bars],
            "close": [bar.close for bar in bars],
            "volume": [bar.volume for bar in bars],
            "source": [bar.source for bar in bars],
        },
        schema={**SCHEMA, "datetime": pl.Int64()},
    ).with_columns(pl.col("datetime").cast(SCHEMA["datetime"]))


def to_bars(frame: pl.DataFrame) -> list[Bar]:
    """The bars of a backup's table."""
    return [
        Bar(
            symbol=row["symbol"],
            interval_s=BAR_SECONDS,
            open_time=int(row["datetime"].timestamp()),
            open=row["open"],
            high=row["high"],
            low=row["low"],
            close=row["close"],
            volume=row["volume"],
            source=row["source"],
            revision=0,
            status="reconciled",
        )
        for row in frame.iter_rows(named=True)
    ]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hex. Raises ``OSError``."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _iso_ends(stamps: pl.Series) -> tuple[str, str]:
    first, last = stamps.item(0), stamps.item(-1)
    return iso_local(first.timestamp()), iso_local(last.timestamp())
