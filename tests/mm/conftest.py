"""The machines that tests of `mm` run on: the real engine in each ISA and granule, and a reference CPU.

board    all of them, and the reference CPU with the invented format
engine   those that execute
plain    the reference CPU, with x86_64's format and with the invented one: for rules about addresses
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aether_emu.mm.space import AddressSpace
from tests.mm.board import ENGINES, FORMATS, Board, user_end
from tests.mm.calls import Make
from tests.mm.counted import Counted


@pytest.fixture(params=FORMATS)
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    """A board of any kind. Taking it apart checks that nothing leaked and no rule was broken."""
    made = Board(FORMATS[request.param], execute=request.param in ENGINES)
    yield made
    made.close()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Board]:
    """A board that executes."""
    made = Board(ENGINES[request.param], execute=True)
    yield made
    made.close()


@pytest.fixture(params=["x86_64", "invented"])
def plain(request: pytest.FixtureRequest) -> Iterator[Board]:
    """A format on a CPU that forgets nothing: for rules that are the same on every format."""
    made = Board(FORMATS[request.param])
    yield made
    made.close()


@pytest.fixture
def page(plain: Board) -> int:
    """Bytes of a page of `plain`."""
    return plain.format.page_size


@pytest.fixture
def top(plain: Board) -> int:
    """Where the user's half of `plain` ends."""
    return user_end(plain.format)


@pytest.fixture
def make(plain: Board) -> Make:
    """Makes address spaces on `plain`, the last of which its CPU runs in. Keywords as `Limits`."""

    def made(**limits: Any) -> AddressSpace:
        space = plain.space(**limits)
        plain.run_on(space)
        return space

    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.fixture(params=FORMATS)
def counted(request: pytest.FixtureRequest, path: Path) -> Iterator[Counted]:
    made = Counted(path, request.param)
    yield made
    made.check()
    made.board.close()


@pytest.fixture
def one(path: Path) -> Iterator[Counted]:
    """On one format: for what does not depend on it."""
    made = Counted(path)
    yield made
    made.check()
    made.board.close()
