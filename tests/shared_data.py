"""Recorded data that is never committed: tests that need it skip with a reason when it is absent."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared(name: str) -> Path:
    """The path of ``../shared/<name>``; skips the calling test when it is not there."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs ../shared/{name}, which is not on this machine")
    return path
