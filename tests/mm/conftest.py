"""The machines that tests of `mm` run on: the real engine, and a reference CPU with an invented format."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aether_emu.arch.x86_64.format import X86Format
from tests.mm.board import Board
from tests.mm.invented_format import InventedFormat


@pytest.fixture(params=["engine", "invented"])
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    """A board of either kind. Taking it apart checks that nothing leaked and no rule was broken."""
    made = Board(X86Format(), execute=True) if request.param == "engine" else Board(InventedFormat())
    yield made
    made.close()
