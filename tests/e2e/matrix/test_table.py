"""The page says what the tests judge by."""

from .table import PAGE, page


def test_the_page_is_in_step() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.e2e.matrix.table"
