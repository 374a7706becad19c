"""The page on system calls says what the code does."""

from __future__ import annotations

from tests.programs.call_list import PAGE, page


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(), "write it again with: python -m tests.programs.call_list"


def test_the_page_knows_calls_of_one_isa_only() -> None:
    lines = page().splitlines()
    assert "| `open` | 2 |  |" in lines
    assert "| `openat` | 257 | 56 |" in lines
    assert not any(line.startswith("| `fork`") and "ENOSYS" in line for line in lines)
