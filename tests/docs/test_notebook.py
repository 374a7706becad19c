"""The notebook runs from its first cell to its last, and shows what it was kept with."""

from __future__ import annotations

from pathlib import Path

import nbformat

from tests.docs.blocks import furnish
from tests.docs.notebook import NOTEBOOK, executed, shown


def test_the_notebook_shows_what_it_was_kept_with(tmp_path: Path) -> None:
    furnish(tmp_path)
    kept = nbformat.read(NOTEBOOK, as_version=4)
    assert shown(executed(tmp_path)) == shown(kept)
    assert all(shown(kept)[1:]), "only the first cell has nothing to show"
