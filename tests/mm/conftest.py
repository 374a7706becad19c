"""The machines that tests of `mm` run on: the real engine, and a reference CPU with an invented format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from aether_emu.arch.x86_64.format import X86Format
from aether_emu.mm.address_space import AddressSpace
from tests.mm.board import Board
from tests.mm.calls import Make
from tests.mm.invented_format import InventedFormat


@pytest.fixture(params=["engine", "invented"])
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    """A board of either kind. Taking it apart checks that nothing leaked and no rule was broken."""
    made = Board(X86Format(), execute=True) if request.param == "engine" else Board(InventedFormat())
    yield made
    made.close()


@pytest.fixture
def plain() -> Iterator[Board]:
    """x86_64's format on a CPU that forgets nothing: for rules that are the same on every format."""
    made = Board(X86Format())
    yield made
    made.close()


@pytest.fixture
def make(plain: Board) -> Make:
    """Makes address spaces on `plain`, the last of which its CPU runs in. Keywords as `Limits`."""

    def made(**limits: Any) -> AddressSpace:
        space = plain.space(**limits)
        plain.run_on(space)
        return space

    return made
