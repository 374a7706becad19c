"""Memory of an address space that no CPU runs, read and written through its tables."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aether_emu.mm import mapping
from aether_emu.mm.fault import AccessError, BusError
from aether_emu.mm.mapping import MAP_FIXED, MAP_PRIVATE, MAP_SHARED, Request
from aether_emu.mm.protection import Protection
from aether_emu.mm.user import UserFaulted, UserMemory
from tests.mm.board import Board, GrantedFile
from tests.mm.calls import mmap

AT = 0x100_0000


def test_what_is_written_to_a_space_that_no_cpu_runs_is_what_its_program_finds(board: Board) -> None:
    other, space = board.space(), board.space()
    board.run_on(other)
    page = space.page_size
    mmap(other, AT, 4)
    mmap(space, AT, 4)
    board.cpu.copy_to_user(AT, b"other")
    data = bytes(range(1, 200))
    memory = UserMemory(space)
    memory.write(AT + page - 100, data)
    assert memory.read(AT + page - 101, 201) == b"\0" + data + b"\0"
    assert memory.equals(AT + page - 100, data)
    assert not memory.equals(AT + page - 99, data)
    assert bytes(board.cpu.copy_from_user(AT, 5)) == b"other"
    board.run_on(space)
    assert bytes(board.cpu.copy_from_user(AT + page - 100, len(data))) == data
    board.cpu.copy_to_user(AT, b"by the CPU")
    assert memory.read(AT, 10) == b"by the CPU"


def test_a_refusal_says_how_the_fault_ended_and_what_came_before_is_written(board: Board) -> None:
    space = board.space()
    page = space.page_size
    mmap(space, AT, 1)
    mmap(space, AT + page, 1, Protection.READ)
    memory = UserMemory(space)
    with pytest.raises(UserFaulted) as refused:
        memory.write(AT + page - 2, b"abcd")
    assert refused.value.outcome == AccessError(AT + page, mapped=True)
    assert memory.read(AT + page - 2, 4) == b"ab\0\0"
    with pytest.raises(UserFaulted) as refused:
        memory.read(AT + 2 * page - 1, 2)
    assert refused.value.outcome == AccessError(AT + 2 * page, mapped=False)
    with pytest.raises(UserFaulted):
        memory.read((1 << 64) - 1, 2)


@pytest.mark.parametrize("kind", [MAP_SHARED, MAP_PRIVATE])
def test_pages_of_files_are_read_and_written_where_they_belong(
    board: Board, tmp_path: Path, kind: int
) -> None:
    space, path = board.space(), tmp_path / "file"
    page = space.page_size
    path.write_bytes(b"x" * (page + 10))
    file = GrantedFile(board, path)
    both = Protection.READ | Protection.WRITE
    mapping.map_memory(space, Request(AT, 3 * page, both, kind | MAP_FIXED, file, 0))
    memory = UserMemory(space)
    assert memory.read(AT + page, 12) == b"x" * 10 + b"\0\0"
    memory.write(AT + page + 4, b"hello, file")
    with path.open("rb") as reading:
        written = os.pread(reading.fileno(), 100, page)
    assert written == (b"xxxxhello," if kind == MAP_SHARED else b"x" * 10)
    assert memory.read(AT + page, 10) == b"xxxxhello,"
    with pytest.raises(UserFaulted) as refused:
        memory.read(AT + 2 * page, 1)
    assert refused.value.outcome == BusError(AT + 2 * page)
