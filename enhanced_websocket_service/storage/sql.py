"""Named statements from the ``.sql`` files beside this module.

A statement begins with ``-- name: its_name`` and ends before the next; ``{other}`` in it stands for
the statement of that name.
"""

import re
from importlib import resources
from typing import Final

_NAME: Final = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)
_REFERENCE: Final = re.compile(r"\{(\w+)\}")


def load(file: str) -> dict[str, str]:
    """The statements of ``file`` by name, references filled in."""
    content = resources.files(__package__).joinpath(file).read_text("utf-8")
    pieces = _NAME.split(content)[1:]
    statements = dict(zip(pieces[::2], (piece.strip() for piece in pieces[1::2]), strict=True))

    def fill(match: re.Match[str]) -> str:
        return _REFERENCE.sub(fill, statements[match[1]])

    return {name: _REFERENCE.sub(fill, text) for name, text in statements.items()}
