"""The memory calls in pages of 4 KiB, as the tests of their rules make them."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from aether_emu.errors import Refused
from aether_emu.mm import mapping
from aether_emu.mm.address_space import AddressSpace
from aether_emu.mm.mapping import MAP_ANONYMOUS, MAP_PRIVATE, Remap, Request
from aether_emu.mm.protection import Protection

RW = Protection.READ | Protection.WRITE
ANONYMOUS = MAP_PRIVATE | MAP_ANONYMOUS
PAGE = 4096
TOP = (1 << 47) - PAGE
Make = Callable[..., AddressSpace]


def mmap(space: AddressSpace, at: int, pages: int, protection: int = RW, flags: int = ANONYMOUS) -> int:
    return mapping.map_memory(space, Request(at, pages * PAGE, protection, flags, None, 0))


def mremap(space: AddressSpace, at: int, old: int, new: int, flags: int = 0, target: int = 0) -> int:
    """Lengths in pages."""
    return mapping.remap_memory(space, Remap(at, old * PAGE, new * PAGE, flags, target))


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(Refused) as refused:
        action()
    return errno.errorcode[refused.value.errno]


def areas(space: AddressSpace) -> list[tuple[int, int]]:
    """(first page, pages) of each area."""
    return [(area.start // PAGE, area.length // PAGE) for area in space.areas]
