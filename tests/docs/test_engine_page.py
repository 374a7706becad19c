"""Each fact about the engine names tests, and they are there."""

from __future__ import annotations

import re

from tests.docs.blocks import ROOT

PAGE = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")


def facts() -> list[list[str]]:
    """The cells of the rows of its tables of facts."""
    tables = PAGE[: PAGE.index("## Where a program can tell")]
    rows = [row.strip("|").split("|") for row in tables.splitlines() if row.startswith("| ")]
    return [row for row in rows if not row[0].startswith(" what the engine")]


def test_every_fact_names_a_test_that_is_there() -> None:
    assert len(facts()) > 25
    for what, _follows, shown in facts():
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", shown)
        assert named, what
        for path, name in named:
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"
