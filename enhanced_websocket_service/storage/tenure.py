"""Which records of the journal may be stored: those journaled while this instance held the fence, or by an
earlier process, before anybody else could claim it. Kept in STATE_DIR, for a restart to know the same.

Positions, not times: a mark is put behind the last record whenever the fence is gained, confirmed, no longer
certain, or lost. What lies between two marks without the fence is kept in the journal and told, never
stored. Owns ``STATE_DIR/fence.json``; what PostgreSQL says is ``fence``'s, when it is asked
``service.leadership``'s. Synchronous.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Final
from uuid import UUID

import msgspec
import structlog

from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.calendar import iso_local

from .atomic_file import replace_file
from .fence import LEASE_S
from .journal import Journal
from .journal_reader import segment_numbers
from .segment import Position

log = structlog.get_logger(__name__)

FILE: Final = "fence.json"
PART: Final = "fence file"
KEPT: Final = "records of a lost fence"
"""Parts of ``Failures``."""
_LATE_S: Final = 1.0
"""A mark that comes later than this was held up, and records may have got in front of it."""


class KeptBack(msgspec.Struct, frozen=True):
    """Records ``first`` .. ``end`` (exclusive; ``None``: it goes on) that are not stored."""

    first: Position
    end: Position | None
    epoch: int
    winner: str
    since: float  # real unix seconds
    collected: bool = True  # prices are among them; else only what a standby noted

    def count(self, until: Position) -> int:
        return max(0, (self.end or until).record - self.first.record)


class _Saved(msgspec.Struct):
    owner: str
    held: bool  # this STATE_DIR was the last, as far as it knows, to hold the fence
    undecided: Position | None
    kept_back: list[KeptBack]


def kept_back(journal: Path, owner: UUID) -> list[KeptBack]:
    """What of the journal in ``STATE_DIR/journal`` is not stored; nothing where that is not known."""
    try:
        saved = msgspec.json.decode((journal.parent / FILE).read_bytes(), type=_Saved)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return []
    return saved.kept_back if saved.owner == str(owner) else []


class Tenure:
    """Told by whoever asks PostgreSQL; asked by the writer.

    :param journal: just opened: what is in it is of earlier processes.
    :param failures: told of a file that cannot be used, and of records that are kept back.
    """

    def __init__(self, state_dir: Path, journal: Journal, failures: Failures) -> None:
        self._journal = journal
        self._path = state_dir / FILE
        self._failures = failures
        saved = self._load()
        begin = journal.end
        self.held_last = saved.held
        self._kept = [
            msgspec.structs.replace(one, end=begin) if one.end is None else one
            for one in saved.kept_back
        ]
        self._undecided = saved.undecided  # from here on nobody knows whose the fence was
        self._decided = (
            self._undecided or begin
        )  # everything before is stored, whoever has the fence
        self._epoch: int | None = None
        self._confirmed_at = 0.0  # monotonic: sent then, and answered
        self._changed = asyncio.Event()
        self.on_refused: Callable[[], None] = lambda: None
        """Told when a transaction found that the fence is another's."""
        self._tell_kept()

    @property
    def epoch(self) -> int | None:
        """Under which we hold the fence, as far as PostgreSQL has told; ``None``: we do not."""
        return self._epoch

    @property
    def owner(self) -> str:
        """Whose the fence is to be: this journal's."""
        return str(self._journal.journal_id)

    @property
    def limit(self) -> Position | None:
        """Where storing ends for now; ``None``: nowhere."""
        return None if self._epoch is not None else self._decided

    @property
    def undecided(self) -> Position | None:
        """From where on nobody knows whose the fence was; ``None``: it is known."""
        return self._undecided

    def needs_fence(self, end: Position) -> bool:
        """Whether records before ``end`` may be stored only while the fence is ours."""
        return end.record > self._decided.record

    def gap_at(self, position: Position) -> KeptBack | None:
        """What is kept back from ``position`` on."""
        return next(
            (
                one
                for one in self._kept
                if one.end is not None and one.first.record <= position.record < one.end.record
            ),
            None,
        )

    def room(self, position: Position) -> int:
        """How many records from ``position`` on may be stored before something is kept back."""
        stops = [one.first.record for one in self._kept if one.first.record > position.record]
        if self.limit is not None:
            stops.append(self.limit.record)
        return max(0, min(stops) - position.record) if stops else 1 << 62

    async def wait(self) -> None:
        """Return once what may be stored has changed."""
        await self._changed.wait()

    def began(self, epoch: int, sent_at: float, *, kept_back: bool, winner: str = "") -> None:
        """The fence is ours under ``epoch``.

        :param sent_at: monotonic; when it was asked for.
        :param kept_back: what is undecided was journaled while another may have held it, ``winner``.
        """
        end = self._journal.end
        if kept_back:
            self._keep_back(end, winner)
        self._decided, self._undecided = end, None
        self._kept = [
            msgspec.structs.replace(one, end=end) if one.end is None else one for one in self._kept
        ]
        self._epoch, self._confirmed_at, self.held_last = epoch, sent_at, True
        self._save()
        self._tell()

    def presume(self) -> None:
        """We collect, and PostgreSQL cannot be asked: what comes is undecided."""
        self._undecided = self._undecided or self._decided
        self._save()

    def confirmed(self, end: Position, sent_at: float) -> None:
        """It was still ours when all before ``end`` had been journaled."""
        self._decided, self._confirmed_at = end, sent_at
        if self._undecided is not None:
            self._undecided = None
            self._save()

    def expire(self) -> None:
        """``LEASE_S`` have passed without a word: from here on another may have claimed the fence."""
        if self._epoch is None or self._undecided is not None:
            return
        late = monotonic() - self._confirmed_at > LEASE_S + _LATE_S
        self._undecided = self._decided if late else self._journal.end
        self._save()

    def refused(self) -> None:
        """A transaction found the fence another's: nothing more of ours is stored until it is known whose."""
        self.lost("another instance")
        self.on_refused()

    def lost(self, winner: str) -> None:
        """The fence is ``winner``'s: what we journaled while it was surely ours is stored all the same."""
        if self._epoch is None and self._undecided is None:
            self._overtaken(winner)
            return
        epoch, self._epoch = self._epoch or 0, None
        self._decided = self._undecided or self._journal.end
        self._undecided = None
        self.held_last = False
        # real time: for people
        self._kept.append(KeptBack(self._decided, None, epoch, winner, time.time()))
        self._save()
        self._tell()

    def released(self) -> None:
        """The fence is nobody's: what we journaled under it is stored."""
        self._epoch = None
        self._decided = self._undecided or self._journal.end
        self._save()
        self._tell()

    def _overtaken(self, winner: str) -> None:
        """We did not hold it; ``winner`` may be who took it from us, when it was not known yet."""
        named = [
            msgspec.structs.replace(one, winner=winner) if one.end is None else one
            for one in self._kept
        ]
        if not any(one.end is None for one in named):
            # What a standby notes has an epoch above the winner's: should it die before it claims, the next
            # process must not store it over what the winner stored.
            since = time.time()  # real time: for people
            place = KeptBack(self._decided, None, 0, winner, since, collected=False)
            if named and not named[-1].collected and named[-1].end == self._decided:
                # A supervisor may start a standby again and again.
                place = msgspec.structs.replace(place, first=named.pop().first)
            named.append(place)
        if self.held_last or named != self._kept:
            self.held_last, self._kept = False, named
            self._save()
            self._tell()

    def _keep_back(self, end: Position, winner: str) -> None:
        if end.record > self._decided.record and not any(one.end is None for one in self._kept):
            collected = self._undecided is not None
            # real time: for people
            self._kept.append(KeptBack(self._decided, end, 0, winner, time.time(), collected))

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._tell_kept()

    def _tell_kept(self) -> None:
        there = segment_numbers(self._journal.directory)
        self._kept = [
            one
            for one in self._kept
            if one.end is None or any(one.first.segment <= n <= one.end.segment for n in there)
        ]
        told = [one for one in self._kept if one.collected]
        count = sum(one.count(self._journal.end) for one in told)
        if not count:
            self._failures.succeeded(KEPT)
            return
        last = told[-1]
        self._failures.failed(
            KEPT,
            f"{count} records that were journaled while {last.winner} collected (the last such time began "
            f"{iso_local(int(last.since))}) are in the journal alone, not in PostgreSQL. Look at them with "
            f"`journal inspect --dir {self._journal.directory}` and `journal export`, as long as they are "
            "kept (JOURNAL_KEEP_HOURS).",
        )

    def _load(self) -> _Saved:
        owner = str(self._journal.journal_id)
        nothing = _Saved(owner, held=False, undecided=None, kept_back=[])
        try:
            saved = msgspec.json.decode(self._path.read_bytes(), type=_Saved)
        except FileNotFoundError:
            return nothing
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._failures.failed(
                PART,
                f"{self._path} cannot be used ({error}); without PostgreSQL nobody can say whether this "
                "instance was the last to collect. It is replaced when the fence is claimed.",
            )
            return nothing
        end = self._journal.end.record
        places = [saved.undecided, *(one.first for one in saved.kept_back)]
        if saved.owner != owner or any(one and not 0 <= one.record <= end for one in places):
            # Another journal's, or an older copy of this one was put back: its places mean nothing here.
            return nothing
        return saved

    def _save(self) -> None:
        saved = _Saved(
            str(self._journal.journal_id), self.held_last, self._undecided, list(self._kept)
        )
        try:
            replace_file(self._path, msgspec.json.encode(saved))
        except OSError as error:
            self._failures.failed(
                PART, f"{self._path} cannot be written: {error.strerror or error}."
            )
        else:
            self._failures.succeeded(PART)
