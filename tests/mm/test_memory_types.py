"""One frame has one memory type: conflicts are refused, and the direct map follows on live memory."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from aether_emu.address import PhysAddr
from aether_emu.arch.paging import Access, Leaf, MemoryType, PageTableFormat
from aether_emu.computer import lowest_kernel_base
from aether_emu.errors import ConfigError, Refused
from aether_emu.mm.allocation import LOCKED, AreaFlags
from aether_emu.mm.fault import RESOLVED
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.locking import lock_memory
from aether_emu.mm.mapping import (
    MAP_LOCKED,
    MAP_PRIVATE,
    MAP_SHARED,
    Request,
    advise_memory,
    map_memory,
    protect_memory,
)
from aether_emu.mm.objects.device import DeviceMemory
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from tests.mm.board import ENGINES, Board, fault_in

READ_WRITE = Protection.READ | Protection.WRITE
BASE, STORE = 0x40_0000, int(Access.USER | Access.WRITE)
OTHERS = [each for each in MemoryType if each is not MemoryType.WRITE_BACK]


@pytest.fixture(params=ENGINES)
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    board = Board(ENGINES[request.param], execute=True)
    yield board
    board.close()


def type_at(fmt: PageTableFormat, table: object, va: int) -> MemoryType:
    found = table.find(va)  # type: ignore[attr-defined]
    leaf = fmt.decode(found.entry, found.level)
    assert isinstance(leaf, Leaf), f"{va:#x} is mapped"
    return leaf.attributes.memory


def end(board: Board, space: AddressSpace) -> None:
    board.spaces.remove(space)
    space.destroy()


def direct(board: Board, device: DeviceMemory) -> set[MemoryType]:
    half, page = board.kernel_half, board.format.page_size
    assert half is not None
    start = lowest_kernel_base(board.format) + device.address
    return {type_at(board.format, half.table, start + n * page) for n in range(device.pages)}


@pytest.mark.parametrize("memory", OTHERS, ids=lambda each: each.name)
def test_both_addresses_of_a_frame_get_its_type_and_lose_it(board: Board, memory: MemoryType) -> None:
    device = DeviceMemory(board.physical, "thing", 3, memory)
    assert direct(board, device) == {memory}
    space = board.space()
    space.map_device(device, BASE, 3 * space.page_size, memory)
    for page in range(3):
        fault_in(space, BASE + page * space.page_size, STORE)
        assert type_at(board.format, space.table, BASE + page * space.page_size) is memory
    protect_memory(space, BASE, space.page_size, Protection.READ)
    assert type_at(board.format, space.table, BASE) is memory
    end(board, space)
    first, half = device.first, board.kernel_half
    device.close()
    assert half is not None
    va = lowest_kernel_base(board.format) + board.frames.address(first)
    assert type_at(board.format, half.table, va) is MemoryType.WRITE_BACK
    assert board.frames.kind[first] == Kind.FREE


def test_another_type_for_the_same_frames_is_refused(board: Board) -> None:
    device = DeviceMemory(board.physical, "thing", 2, MemoryType.UNCACHED)
    space, page = board.space(), board.format.page_size
    with pytest.raises(Refused, match="uncached for thing, not write-combining") as refused:
        space.map_device(device, BASE, page, MemoryType.WRITE_COMBINING)
    assert refused.value.errno == errno.EINVAL
    assert not list(space.areas)
    with pytest.raises(Refused, match="other wants write-through frames that are uncached for thing") as busy:
        board.physical.memory_types.reserve(device.first + 1, 2, MemoryType.WRITE_THROUGH, "other")
    assert busy.value.errno == errno.EBUSY
    board.physical.memory_types.reserve(device.first, 1, MemoryType.UNCACHED, "the same")
    board.physical.memory_types.release(device.first, 1)
    assert direct(board, device) == {MemoryType.UNCACHED}
    end(board, space)
    device.close()


def test_frames_that_a_program_shows_stay_write_back(board: Board) -> None:
    space = board.space()
    space.insert(space.new_area(BASE, BASE + space.page_size, READ_WRITE))
    fault_in(space, BASE, STORE)
    found = space.table.find(BASE)
    assert found is not None
    frame = board.frames.number(board.format.leaf_address(found.entry, 1))
    with pytest.raises(Refused, match="frames that a program shows write-back") as refused:
        board.physical.memory_types.reserve(frame, 1, MemoryType.UNCACHED, "late")
    assert refused.value.errno == errno.EBUSY
    with pytest.raises(Refused, match="is RAM, of no device"):
        space.map_device(board.frames.address(frame), BASE, space.page_size)
    end(board, space)


def test_what_is_no_device_or_no_range_of_it_is_refused(board: Board) -> None:
    device = DeviceMemory(board.physical, "thing", 2, MemoryType.UNCACHED)
    space, page = board.space(), board.format.page_size
    for what, address, size in (
        (device, BASE + 1, page),
        (device, BASE, 3 * page),
        (device, BASE, 0),
        (device.address + page, BASE, 2 * page),
        (device.address + 8, BASE, page),
        (1 << 45, BASE, page),
    ):
        with pytest.raises(Refused) as refused:
            space.map_device(what, address, size)
        assert refused.value.errno == errno.EINVAL
    with pytest.raises(ConfigError):
        space.map_device(device, BASE, page, "uncached")  # type: ignore[arg-type]
    end(board, space)
    device.close()


class Opened:
    """A device, open to read and write."""

    readable = writable = True
    huge_size = 0
    in_memory = False

    def __init__(self, device: DeviceMemory) -> None:
        self._device = device

    def may_store(self, _protection: int) -> bool:
        return True

    def open_backing(self, *, shared_writable: bool) -> DeviceMemory:
        return self._device


def test_a_device_is_shown_shared_and_a_fork_shows_it_too(board: Board) -> None:
    device = DeviceMemory(board.physical, "thing", 2, MemoryType.WRITE_COMBINING)
    space, page = board.space(), board.format.page_size
    with pytest.raises(Refused, match="shared or not at all"):
        map_memory(space, Request(0, page, 3, MAP_PRIVATE, Opened(device), 0))
    at = map_memory(space, Request(0, 2 * page, 3, MAP_SHARED, Opened(device), 0))
    assert fault_in(space, at, STORE) == RESOLVED
    child = space.fork()
    fault_in(child, at + page, STORE)
    assert type_at(board.format, child.table, at + page) is MemoryType.WRITE_COMBINING
    device.bytes[page : page + 2] = b"hi"
    assert bytes(device.bytes[page : page + 2]) == b"hi"
    child.destroy()
    end(board, space)
    device.close()
    assert not (board.frames.kind_array == Kind.RESERVED).any()


def test_a_device_takes_the_advice_that_linux_takes_for_one(board: Board) -> None:
    """As for the buffers of perf_event_open(2), which are VM_IO and VM_PFNMAP too."""
    device = DeviceMemory(board.physical, "thing", 2, MemoryType.WRITE_COMBINING)
    space, page = board.space(), board.format.page_size
    at = map_memory(space, Request(0, 2 * page, 3, MAP_SHARED | MAP_LOCKED, Opened(device), 0))
    assert fault_in(space, at, STORE) == RESOLVED
    device.bytes[:2] = b"hi"
    refused = {}
    for advice in (*range(5), *range(8, 26), 102, 103):
        try:
            advise_memory(space, at, 2 * page, advice)
        except Refused as error:
            refused[advice] = error.errno
    taken = {0, 1, 2, 3, 10, 12, 13, 14, 15, 16, 19}
    assert refused == {
        advice: errno.ENODEV if advice == 9 else errno.EINVAL
        for advice in (*range(5), *range(8, 26), 102, 103)
        if advice not in taken
    }
    lock_memory(space, at, 2 * page, LOCKED)
    area = space.areas.find(at)
    assert area is not None and area.flags & AreaFlags.NO_DUMP and not area.flags & LOCKED
    assert space.account.locked == 0
    assert space.table.find(at) is not None and bytes(device.bytes[:2]) == b"hi"
    end(board, space)
    device.close()


def test_addresses_may_be_of_their_kinds(board: Board) -> None:
    device = DeviceMemory(board.physical, "thing", 2, MemoryType.UNCACHED)
    space, page = board.space(), board.format.page_size
    first = space.map_device(device, BASE, page)
    second = space.map_device(PhysAddr(device.address + page), first + page, page)
    assert (first, second) == (BASE, BASE + page)
    for address in (first, second):
        fault_in(space, address, STORE)
        assert type_at(board.format, space.table, address) is MemoryType.UNCACHED
    assert all(type(area.start) is int for area in space.areas)
    end(board, space)
    device.close()
