"""The memory calls in pages, whatever their size, as the tests of their rules make them."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from aether_emu.errors import Refused
from aether_emu.mm import mapping
from aether_emu.mm.mapping import MAP_ANONYMOUS, MAP_PRIVATE, Request
from aether_emu.mm.protection import Protection
from aether_emu.mm.remap import Remap, remap_memory
from aether_emu.mm.space import AddressSpace

RW = Protection.READ | Protection.WRITE
ANONYMOUS = MAP_PRIVATE | MAP_ANONYMOUS
Make = Callable[..., AddressSpace]


def mmap(space: AddressSpace, at: int, pages: int, protection: int = RW, flags: int = ANONYMOUS) -> int:
    return mapping.map_memory(space, Request(at, pages * space.page_size, protection, flags, None, 0))


def mremap(space: AddressSpace, at: int, old: int, new: int, flags: int = 0, target: int = 0) -> int:
    """Lengths in pages."""
    page = space.page_size
    return remap_memory(space, Remap(at, old * page, new * page, flags, target))


def mapped(space: AddressSpace, at: int, pages: int) -> bytes:
    """For each page, 1 where the table has an entry."""
    table = space.table
    return bytes(table.find(at + page * space.page_size) is not None for page in range(pages))


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(Refused) as refused:
        action()
    return errno.errorcode[refused.value.errno]


def areas(space: AddressSpace) -> list[tuple[int, int]]:
    """(start, pages) of each area."""
    return [(area.start, area.length // space.page_size) for area in space.areas]
