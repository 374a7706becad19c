"""From a frame to every place where it is mapped, in more than one address space."""

from __future__ import annotations

from aether_emu.address import VirtAddr
from aether_emu.arch.paging import Access
from aether_emu.mm import mapping, rmap
from aether_emu.mm.fault import RESOLVED
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.protection import Protection
from aether_emu.mm.remap import MREMAP_FIXED, MREMAP_MAYMOVE
from aether_emu.mm.space import AddressSpace
from tests.mm.board import Board, fault_in
from tests.mm.calls import RW, mmap, mremap

USER_WRITE = int(Access.USER | Access.WRITE)
AT = 0x100_0000


def frame_at(board: Board, space: AddressSpace, va: int) -> int:
    """The frame that an entry shows, present or held."""
    found = space.table.find(va)
    assert found is not None
    return board.frames.number(found.entry & board.format.address_mask)


def places(board: Board, frame: int) -> list[tuple[object, int]]:
    found = list(rmap.mappings(board.physical, frame))
    assert all(isinstance(shown.address, VirtAddr) for shown in found)
    return [(shown.space, shown.address) for shown in found]


def two_spaces_with_shared_memory(board: Board) -> tuple[AddressSpace, AddressSpace, SharedMemory]:
    """The same object at AT in one space, and from its second page on at twice AT in another."""
    first, second = board.space(), board.space()
    memory = SharedMemory(board.physical, 4)
    page = board.format.page_size
    first.insert(first.new_area(AT, AT + 4 * page, RW, shared=True, backing=memory))
    second.insert(second.new_area(2 * AT, 2 * AT + 3 * page, RW, shared=True, backing=memory, offset=1))
    return first, second, memory


def test_a_shared_page_is_found_from_its_frame_in_two_spaces(plain: Board, page: int) -> None:
    first, second, _memory = two_spaces_with_shared_memory(plain)
    assert fault_in(first, AT + 2 * page, USER_WRITE) is RESOLVED
    frame = frame_at(plain, first, AT + 2 * page)
    assert places(plain, frame) == [(first, AT + 2 * page)]
    assert fault_in(second, 2 * AT + page, USER_WRITE) is RESOLVED
    assert frame_at(plain, second, 2 * AT + page) == frame
    assert places(plain, frame) == [(first, AT + 2 * page), (second, 2 * AT + page)]


def test_a_page_of_an_object_is_taken_from_every_space_at_once(plain: Board, page: int) -> None:
    first, second, memory = two_spaces_with_shared_memory(plain)
    for number in range(4):
        fault_in(first, AT + number * page, USER_WRITE)
        if number:
            fault_in(second, 2 * AT + (number - 1) * page, USER_WRITE)
    rmap.unmap(memory, 1, 2)
    shown = [first.table.find(AT + number * page) is not None for number in range(4)]
    assert shown == [True, False, False, True]
    shown = [second.table.find(2 * AT + number * page) is not None for number in range(3)]
    assert shown == [False, False, True]


def test_a_private_page_is_found_where_mremap_took_it(plain: Board, page: int) -> None:
    space = plain.space()
    mmap(space, AT, 4)
    fault_in(space, AT + page, USER_WRITE)
    frame = frame_at(plain, space, AT + page)
    assert mremap(space, AT, 4, 4, MREMAP_MAYMOVE | MREMAP_FIXED, 3 * AT) == 3 * AT
    assert places(plain, frame) == [(space, 3 * AT + page)]
    mmap(space, AT, 4)  # a new area where the page was made shows another one under the same index
    fault_in(space, AT + page, USER_WRITE)
    other = frame_at(plain, space, AT + page)
    assert plain.frames.index[other] == plain.frames.index[frame]
    assert places(plain, frame) == [(space, 3 * AT + page)]
    assert places(plain, other) == [(space, AT + page)]


def test_a_page_that_nobody_may_access_is_still_found(plain: Board, page: int) -> None:
    space = plain.space()
    mmap(space, AT, 2)
    fault_in(space, AT, USER_WRITE)
    frame = frame_at(plain, space, AT)
    mapping.protect_memory(space, AT, page, Protection.NONE)
    assert places(plain, frame) == [(space, AT)]


def test_frames_that_belong_to_no_object_lead_nowhere(plain: Board) -> None:
    space = plain.space()
    mmap(space, AT, 1)
    fault_in(space, AT, int(Access.USER | Access.READ))
    assert plain.frames.kind[frame_at(plain, space, AT)] == Kind.ZERO
    assert places(plain, plain.physical.zero_frame) == []
    assert places(plain, plain.frames.number(space.table.root)) == []


def test_a_thousand_areas_of_one_object_are_not_looked_through(plain: Board, page: int) -> None:
    """An object whose every second page is another area answers for one page with one area."""
    space = plain.space()
    mmap(space, AT, 2000)
    for number in range(0, 2000, 2):
        mapping.protect_memory(space, AT + number * page, page, Protection.READ)
    assert len(space.areas) == 2000
    index = AT // page + 777
    (shown,) = space.family.windows.over(index, index + 1)
    assert (shown.start, shown.end) == (AT + 777 * page, AT + 778 * page)
