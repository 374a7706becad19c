"""Memory that is only looked at: nothing is brought, nothing is counted, no entry changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aether_emu.arch.x86_64.stage1 import X86Format
from aether_emu.mm import mapping
from aether_emu.mm.mapping import MAP_ANONYMOUS, MAP_FIXED, MAP_SHARED, Request
from aether_emu.mm.protection import Protection
from aether_emu.observe.peek import PeekMemory, Unreadable
from tests.mm.board import FORMATS, Board, GrantedFile
from tests.mm.calls import mapped, mmap

AT = 0x100_0000


@pytest.fixture
def board() -> Iterator[Board]:
    """A board with x86_64's tables."""
    made = Board(FORMATS["x86_64"])
    assert isinstance(made.format, X86Format)
    yield made
    made.close()


def test_untouched_memory_is_zeros_and_stays_untouched(board: Board) -> None:
    space = board.space()
    mmap(space, AT, 2)
    before = list(board.physical.counters.n)
    assert PeekMemory(space).read(AT + 4000, 200) == bytes(200)
    assert board.physical.counters.n == before
    assert mapped(space, AT, 2) == b"\0\0"


def test_what_was_written_is_seen_across_pages(board: Board) -> None:
    space = board.space()
    mmap(space, AT, 3)
    board.run_on(space)
    board.cpu.copy_to_user(AT + 4090, b"over the edge\0")
    memory = PeekMemory(space)
    assert memory.read(AT + 4090, 13) == b"over the edge"
    assert memory.string(AT + 4090, 100) == (b"over the edge", True)
    assert memory.string(AT + 4090, 4) == (b"over", False)


def test_a_file_that_nobody_has_touched_is_read_up_to_its_last_page(board: Board, tmp_path: Path) -> None:
    space = board.space()
    (tmp_path / "file").write_bytes(b"x" * 4096 + b"tail")
    file = GrantedFile(board, tmp_path / "file", writable=False)
    mapping.map_memory(space, Request(AT, 3 * 4096, Protection.READ, MAP_SHARED | MAP_FIXED, file, 0))
    memory = PeekMemory(space)
    assert memory.read(AT + 4090, 12) == b"xxxxxxtail\0\0"
    assert mapped(space, AT, 3) == b"\0\0\0"
    assert len(memory.read_up_to(AT, 3 * 4096)) == 2 * 4096
    with pytest.raises(Unreadable):
        memory.read(AT + 8190, 4)


def test_shared_memory_gets_no_frame_by_a_look(board: Board) -> None:
    space = board.space()
    request = Request(AT, 8192, Protection.READ | Protection.WRITE, MAP_SHARED | MAP_ANONYMOUS, None, 0)
    start = mapping.map_memory(space, request)
    free = board.buddy.free_frames
    assert PeekMemory(space).read(start, 100) == bytes(100)
    assert board.buddy.free_frames == free


def test_protection_counts_unless_the_look_is_forced(board: Board) -> None:
    space = board.space()
    mmap(space, AT, 1)
    board.run_on(space)
    board.cpu.copy_to_user(AT, b"secret")
    mapping.protect_memory(space, AT, 4096, Protection.NONE)
    with pytest.raises(Unreadable):
        PeekMemory(space).read(AT, 6)
    assert PeekMemory(space, forced=True).read(AT, 6) == b"secret"


def test_a_hole_ends_what_can_be_read(board: Board) -> None:
    space = board.space()
    mmap(space, AT, 1)
    memory = PeekMemory(space)
    assert memory.read_up_to(AT + 4000, 1000) == bytes(96)
    assert memory.read_up_to((1 << 64) - 4, 8) == b""
    with pytest.raises(Unreadable):
        memory.string(AT + 8192, 10)
