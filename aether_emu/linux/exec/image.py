"""The segments of an ELF file become mappings, in the order and by the rules of Linux's fs/binfmt_elf.c.

    first segment         decides where a position-independent image goes: it reserves room for all of them
    each one, in order    the file's pages in place, the rest of the last one cleared, zero pages behind it
    a later one           replaces what stands in its way, page by page

Zero pages are readable and writable whatever the segment permits, and executable if that is. What is left
of the last page of the file is cleared where the segment lets it be written; else it shows the file. Pages of
the file behind its end are mapped like all others: touching one is SIGBUS.
"""

from __future__ import annotations

import errno
from itertools import pairwise

from aether_emu.errors import ProgramError, Refused, shown
from aether_emu.linux.exec.elf import Image, Segment
from aether_emu.linux.mappable import MappedFile
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import UserFault
from aether_emu.mm import mapping
from aether_emu.mm.mapping import MAP_ANONYMOUS, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_PRIVATE
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.records import dataclass

_SMALLEST_PAGE = 4096  # with these, programs may rely on what Linux makes of such a page
_RW = Protection.READ | Protection.WRITE
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Loaded:
    """One ELF file in memory: what was added to its addresses, and its parsed image."""

    image: Image
    bias: int
    name: bytes

    @property
    def entry(self) -> int:
        return self.image.entry + self.bias & _MASK

    @property
    def end(self) -> int:
        return self.image.high + self.bias & _MASK

    @property
    def headers(self) -> int:
        """Where the program headers are in memory: the last segment that holds their beginning says it."""
        found, offset = 0, self.image.header_offset
        for segment in self.image.segments:
            if segment.offset <= offset < segment.offset + segment.file_size:
                found = segment.address + offset - segment.offset
        return found + self.bias & _MASK


def map_program(task: Task, image: Image, file: MappedFile, base: int, name: bytes) -> Loaded:
    """Map a program: at its own addresses, or at `base` if it has an interpreter, else where there is room.

    Raises Refused and ProgramError.
    """
    space = task.process.mm
    if not image.position_independent or not image.segments:
        return _map_all(task, Loaded(image, 0, name), file, MAP_FIXED_NOREPLACE)
    align = max(image.align, space.page_size)
    if image.interpreter is None and align > space.mmap_base // 2:
        align = space.page_size  # no room has such an address, and Linux then takes what there is
    if image.interpreter is not None:
        place = base
    elif align == space.page_size:
        return _map_anywhere(task, image, file, name)
    else:
        place, room = _find_room(task, image, file), space.page_up(image.span(space.page_size))
        space.unmap(place, place + room)
    bias = _bias(image, space, place & -align)
    return _map_all(task, Loaded(image, bias, name), file, MAP_FIXED_NOREPLACE)


def map_interpreter(task: Task, image: Image, file: MappedFile, name: bytes) -> Loaded:
    """Map the program that starts another one. Raises Refused and ProgramError."""
    if not image.segments:
        raise Refused(errno.EINVAL, "has nothing to load")
    if image.position_independent:
        return _map_anywhere(task, image, file, name)
    return _map_all(task, Loaded(image, 0, name), file, MAP_FIXED)


def _bias(image: Image, space: AddressSpace, place: int) -> int:
    """What puts the first segment's page at `place`."""
    return place - (image.segments[0].address & -space.page_size) & _MASK


def _map_anywhere(task: Task, image: Image, file: MappedFile, name: bytes) -> Loaded:
    _check_granule(task.process.mm, image, name)
    place = _find_room(task, image, file)
    loaded = Loaded(image, _bias(image, task.process.mm, place), name)
    for segment in image.segments[1:]:
        _map_segment(task, segment, loaded.bias, file, MAP_FIXED)
    return loaded


def _find_room(task: Task, image: Image, file: MappedFile) -> int:
    """Map the first segment, with room for all of them, where a mapping without a hint goes."""
    space = task.process.mm
    bias = _bias(image, space, 0)
    return _map_segment(task, image.segments[0], bias, file, 0, room=image.span(space.page_size))


def _map_all(task: Task, loaded: Loaded, file: MappedFile, flags: int) -> Loaded:
    """Map each segment at its place; `flags` say what the first does to what is there already."""
    image, space = loaded.image, task.process.mm
    _check_granule(space, image, loaded.name)
    room = image.span(space.page_size) if image.position_independent and image.segments else 0
    for segment in image.segments:
        _map_segment(task, segment, loaded.bias, file, flags, room=room)
        flags, room = MAP_FIXED, 0
    return loaded


def _map_segment(
    task: Task, segment: Segment, bias: int, file: MappedFile, flags: int, *, room: int = 0
) -> int:
    """Map one segment and return the address of its first page. `room` is what to reserve at once."""
    space = task.process.mm
    try:
        _check_size(space, segment)
        within = segment.address & space.page_size - 1
        start = segment.address + bias & _MASK & -space.page_size
        if not segment.file_size:
            if segment.memory_size:
                _map_zeros(space, start, start + within + segment.memory_size, segment.protection)
            return start
        start = _map_file(space, segment, start, file, flags, room)
        file_end = start + within + segment.file_size
        if segment.memory_size > segment.file_size:
            _clear_tail(task, file_end, segment.protection)
            end = start + within + segment.memory_size
            _map_zeros(space, space.page_up(file_end), end, segment.protection)
        return start
    except Refused as refused:
        place = f"a segment at {segment.address:#x}"
        if refused.errno == errno.EEXIST:
            raise Refused(errno.EEXIST, f"{place} lies where the stack goes, or the program") from refused
        why = str(refused).partition(": ")[2]
        raise Refused(refused.errno, f"{place}: {why}") from refused


def _check_size(space: AddressSpace, segment: Segment) -> None:
    end = space.limits.user_end
    if segment.file_size > segment.memory_size:
        raise Refused(errno.EINVAL, "more file bytes than memory")
    if segment.address >= end or segment.memory_size > end - segment.address:
        raise Refused(errno.EINVAL, "outside the user address space")


def _map_file(
    space: AddressSpace, segment: Segment, start: int, file: MappedFile, flags: int, room: int
) -> int:
    within = segment.address & space.page_size - 1
    length = space.page_up(within + segment.file_size)
    offset = segment.offset - within
    if offset & space.page_size - 1:
        raise Refused(errno.EINVAL, "not page aligned in the file")
    wanted = max(space.page_up(room), length)
    request = mapping.Request(start, wanted, int(segment.protection), MAP_PRIVATE | flags, file, offset)
    place = mapping.map_memory(space, request)
    if wanted > length:
        space.unmap(place + length, place + wanted)
    return place


def _clear_tail(task: Task, file_end: int, protection: Protection) -> None:
    """To the end of the page, not of the segment: glibc's ld.so allocates from what is left of it."""
    rest = -file_end & task.process.mm.page_size - 1
    if not rest or not protection & Protection.WRITE:
        return
    try:
        task.cpu.copy_to_user(file_end, bytes(rest))
    except UserFault as fault:
        if task.process.is_over:  # no memory was left
            raise
        raise Refused(errno.EFAULT, "the page where its zeros begin is not in the file") from fault


def _map_zeros(space: AddressSpace, start: int, end: int, protection: Protection) -> None:
    """Zero pages from the page `start` on."""
    end = space.page_up(end)
    if end > start:
        permitted = int(_RW | protection & Protection.EXECUTE)
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        mapping.map_memory(space, mapping.Request(start, end - start, permitted, flags, None, 0))


def _check_granule(space: AddressSpace, image: Image, name: bytes) -> None:
    """Refuse an image whose segments were laid out for smaller pages than these.

    Of a page that two segments share, the later one decides. That is well where it permits and shows all
    that the earlier one has in that page.
    """
    page = space.page_size
    if page == _SMALLEST_PAGE:
        return
    said, kib = shown(name), f"{page >> 10}K"
    if any((s.address - s.offset) & page - 1 for s in image.segments if s.file_size):
        raise ProgramError(f"{said}: its segments are not aligned to pages of {kib} (see --granule)")
    for low, high in pairwise(image.segments):
        if not _meet(low, high, page) or _meet(low, high, _SMALLEST_PAGE):
            continue
        if low.protection & ~high.protection:
            raise ProgramError(
                f"{said}: two segments with different permissions share a page of {kib} (see --granule)"
            )
        if low.memory_size > low.file_size or low.address - low.offset != high.address - high.offset:
            raise ProgramError(
                f"{said}: two segments with different contents share a page of {kib} (see --granule)"
            )


def _meet(one: Segment, other: Segment, page: int) -> bool:
    """Whether two segments have a page in common."""
    low, high = sorted((one, other), key=lambda segment: segment.address)
    return high.address & -page < (low.address + low.memory_size + page - 1 & -page)
