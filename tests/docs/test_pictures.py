"""The pictures of the pages show what the code's tables and real runs say now."""

from __future__ import annotations

import pytest

from tests.docs.pictures import DRAWINGS, PICTURES, ROOT


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_picture_is_what_would_be_drawn_now(name: str) -> None:
    drawn = DRAWINGS[name]().source()
    again = "draw it again: python -m tests.docs.pictures"
    assert (PICTURES / f"{name}.svg").read_text(encoding="utf-8") == drawn, again


def test_every_picture_is_drawn_and_shown() -> None:
    assert {path.stem for path in PICTURES.iterdir()} == set(DRAWINGS)
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))
    assert [name for name in DRAWINGS if f"pictures/{name}.svg" not in pages] == []
