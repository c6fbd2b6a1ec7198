"""What a journal directory needs before it is appended to again: its lock, identity and a clean end."""

import fcntl
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from enhanced_websocket_service.errors import JournalError

from .atomic_file import replace_file
from .journal_reader import IDENTITY, read_header, read_identity, segment_numbers, segment_path
from .segment import HEADER_SIZE, Damage, Header, scan, seed

log = structlog.get_logger(__name__)


def lock(directory: Path) -> int:
    """Own ``directory`` until the returned descriptor is closed or the process ends.

    :raises JournalError: another process owns it.
    """
    fd = os.open(directory / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise JournalError(
            f"The journal in {directory} belongs to a running process (pid {owner}): stop it, or "
            "give this one another STATE_DIR."
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def identity(directory: Path) -> uuid.UUID:
    """The journal's identity, made when the directory is new."""
    known = read_identity(directory)
    journal_id = known or uuid.uuid4()
    path = directory / IDENTITY
    if known is None or not path.exists():
        replace_file(path, f"{journal_id}\n".encode())
    return journal_id


@dataclass(slots=True)
class Remains:
    """Where an earlier process left the journal."""

    highest: int = 0  # the highest segment number ever used
    previous: tuple[int, int] = (0, 0)  # the last segment with records, and where they end
    records: int = 0
    damage: list[Damage] = field(default_factory=list)
    void: list[Path] = field(default_factory=list)  # segments without any record: to be deleted


def repair(directory: Path, journal_id: uuid.UUID) -> Remains:
    """Cut the torn tail off the newest segment with records; find where to go on.

    Numbers are never used again, even those of segments without a record: after a loss of power
    the database may know more of a segment than the disk does.

    :raises JournalError: the segments are another journal's, or a newer version's.
    """
    remains = Remains()
    numbers = segment_numbers(directory)
    remains.highest = numbers[-1] if numbers else 0
    headless_records = 0
    for number in reversed(numbers):
        header = read_header(directory, number)
        if header is not None and header.journal_id != journal_id:
            raise JournalError(
                f"{segment_path(directory, number)} belongs to journal {header.journal_id}, the "
                f"directory to {journal_id}: two journals were mixed; move one of them away."
            )
        end, count = _cut_torn_tail(directory, number, header, journal_id, remains.damage)
        if count and not remains.previous[0]:
            remains.previous = (number, end)
        if header is not None:
            if not remains.previous[0]:
                remains.previous = (header.previous_number, header.previous_end)
                remains.void.append(segment_path(directory, number))
            remains.records = header.first_record + count + headless_records
            return remains
        headless_records += count
        if not count:
            remains.void.append(segment_path(directory, number))
    remains.records = headless_records
    return remains


def _cut_torn_tail(
    directory: Path,
    number: int,
    header: Header | None,
    journal_id: uuid.UUID,
    damage: list[Damage],
) -> tuple[int, int]:
    """Cut behind the last intact record of a segment; its end and how many records it has."""
    with segment_path(directory, number).open("r+b") as file:
        content = file.read()
        data = content[HEADER_SIZE:]
        start = seed(journal_id, number)
        found = scan(data, HEADER_SIZE, start, final=True, limit=len(content) + 1)
        end = HEADER_SIZE + found.consumed
        if found.payloads and found.gaps and found.gaps[-1][1] == len(data):
            end = HEADER_SIZE + found.gaps.pop()[0]
        elif not found.payloads and header is not None:
            found.gaps, end = [], HEADER_SIZE
        if end < len(content):
            file.truncate(end)
            os.fsync(file.fileno())
            lost = len(content) - end
            log.warning("Cut a torn tail off the journal", segment=number, offset=end, bytes=lost)
    found_damage = [] if header is not None else [Damage(number, 0, HEADER_SIZE, "damaged header")]
    for begin, finish in found.gaps:
        found_damage.append(Damage(number, HEADER_SIZE + begin, finish - begin, "no intact record"))
    for one in found_damage:
        log.error("The journal is damaged; what is intact is kept", damage=str(one))
    damage += found_damage
    return end, len(found.payloads)
