"""``docs/reference/fault-matrix.md``, made of the cells that the tests judge by.

python -m tests.e2e.matrix.table            writes it
"""

from pathlib import Path

from .catalogue import BACK_OFF_S, CLOCK, PARTS, REST, STREAM, VENDOR_WITHIN_S, WITHIN_S, Cell

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "fault-matrix.md"

_HEAD = """\
# When a part does not do its work

Written by `python -m tests.e2e.matrix.table` from what `tests/e2e/matrix` judges by: do not edit it.
Every row is a test on real processes. While it lasts, `/health` is not `healthy`, and a line of its
`problems` says which part and why; its HTTP status stays 200 outside ERROR and SHUTDOWN. Afterwards it is
`healthy` again within the longest wait between two attempts ({back:g} s) and the time that the backlog
takes; no tick is lost or doubled.

"""


def page() -> str:
    """The whole document."""
    own = [cell for cells in PARTS.values() for cell in cells]
    lines = [
        _HEAD.format(back=BACK_OFF_S),
        f"## Within {WITHIN_S:g} seconds of the machine\n",
        *_rows(own),
        "",
        f"## Within {VENDOR_WITHIN_S / 60:g} minutes of the session\n",
        *_rows([*STREAM, *REST, *CLOCK]),
        "",
    ]
    return "\n".join(lines)


def _rows(cells: list[Cell]) -> list[str]:
    rows = ["| part | way | done by | `/health` |", "|---|---|---|---|"]
    for cell in cells:
        told = "stays healthy: the work is done" if cell.silent else "names it"
        rows.append(f"| {cell.hop} | {cell.way} | {cell.how} | {told} |")
    return rows


if __name__ == "__main__":
    PAGE.write_text(page())
