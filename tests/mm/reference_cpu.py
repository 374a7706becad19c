"""A CPU that executes nothing but translates as the worst MMU might: no stale entry ever goes by itself.

It walks the tables of whatever format it is given, keeps each translation it made until somebody flushes it,
and remembers which table pages its walks went through. So a forgotten flush is a wrong byte here, a frame
freed too early is caught by `holds`, and a live entry that became another live one (which formats with
break-before-make forbid) is written down when the page is flushed, or walked again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

from aether_emu.arch.paging import Access, Leaf, Malformed, PageFlags, PageTableFormat, Table
from aether_emu.machine.aperture import Aperture
from aether_emu.machine.cpu import Cpu, Exit, Trap, UserFault
from aether_emu.machine.ram import Ram

_NEEDS = {
    Access.READ: PageFlags.READ,
    Access.WRITE: PageFlags.WRITE,
    Access.EXECUTE: PageFlags.EXECUTE,
}
_RESTRICTING = PageFlags.WRITE | PageFlags.USER | PageFlags.EXECUTE
_TRIES = 4


@dataclass(frozen=True)
class Translation:
    """What the TLB keeps of a page."""

    address: int
    size: int
    flags: PageFlags


class ReferenceCpu(Cpu):
    """User accesses at `root`, one byte string at a time. `flushes` lists what was flushed, in order."""

    isa = "reference"

    def __init__(self, fmt: PageTableFormat, ram: Ram, aperture: Aperture) -> None:
        self.format, self._ram, self._aperture = fmt, ram, aperture
        self.root = 0
        self.tlb: dict[int, Translation] = {}
        self.walked: set[int] = set()  # physical addresses of tables since the last full flush
        self.flushes: list[tuple[str, int]] = []
        self.broken_rules: list[str] = []
        self.on_fault = lambda _va, _access: None
        self.on_system_call = lambda *_arguments: None
        self.on_trap = self._unexpected
        self.resolve: Callable[[int, int], bool] = lambda _va, _access: False
        self.on_rewrite = None
        self.return_work = None

    @staticmethod
    def _unexpected(trap: Trap) -> None:
        raise AssertionError(f"a CPU that executes nothing had a trap: {trap}")

    def holds(self, physical: int) -> bool:
        """Whether a translation or a walk could still lead to the page at `physical`."""
        size = self.format.page_size
        inside = any(t.address <= physical < t.address + max(t.size, size) for t in self.tlb.values())
        return inside or physical in self.walked

    # ---- translation

    def set_root(self, root: int) -> None:
        self.root = root
        self.tlb.clear()
        self.walked.clear()

    def flush_page(self, va: int) -> None:
        self.flushes.append(("page", va))
        self._note_change(va)
        self.tlb.pop(va >> self.format.page_shift, None)

    def flush_all(self) -> None:
        self.flushes.append(("all", 0))
        for page in self.tlb:
            self._note_change(page << self.format.page_shift)
        self.tlb.clear()
        self.walked.clear()

    def flush_code(self) -> None:
        self.flushes.append(("code", 0))

    def translate(self, va: int, access: Access) -> int | Access:
        """The physical address, or the access with what a fault adds to it."""
        known = self.tlb.get(va >> self.format.page_shift)
        needs = _NEEDS[access] | PageFlags.USER
        if known is None or known.flags & needs != needs:
            self._note_change(va)
            self.tlb.pop(va >> self.format.page_shift, None)
            walked = self._walk(va)
            if not isinstance(walked, Translation):
                return access | walked | Access.USER
            if walked.flags & needs != needs:
                return access | Access.PRESENT | Access.USER
            known = self.tlb[va >> self.format.page_shift] = walked
        return known.address + (va & known.size - 1)

    def _walk(self, va: int) -> Translation | Access:
        table, granted = self.root, _RESTRICTING
        for number in range(self.format.top, 0, -1):
            self.walked.add(table)
            level = self.format.levels[number - 1]
            index = va >> level.shift & level.entries - 1
            entry = self._ram.words[(table - self._ram.base >> 3) + index]
            match self.format.decode(entry, number):
                case Table(address, flags):
                    table, granted = address, granted & flags
                case Leaf(address, attributes):
                    flags = attributes.flags & ~(_RESTRICTING & ~granted)
                    return Translation(address, level.size, flags)
                case Malformed():
                    return Access.PRESENT | Access.MALFORMED
                case _:
                    break
        return Access(0)

    def _note_change(self, va: int) -> None:
        """Break before make: what is cached must be gone from the table, or still stand there."""
        known = self.tlb.get(va >> self.format.page_shift)
        if known is None or not self.format.frozen_bits:
            return
        now = self._walk(va)
        if isinstance(now, Translation) and now.address != known.address:
            self.broken_rules.append(f"{va:#x} went from {known.address:#x} to {now.address:#x} alive")

    # ---- user memory

    def copy_from_user(self, va: int, length: int) -> bytes:
        return b"".join(
            ctypes.string_at(self._host(at, Access.READ), count) for at, count in self._pages(va, length)
        )

    def copy_to_user(self, va: int, data: bytes | bytearray | memoryview) -> None:
        for at, count in self._pages(va, len(data)):
            ctypes.memmove(self._host(at, Access.WRITE), bytes(data[at - va : at - va + count]), count)

    def fetch(self, va: int) -> None:
        """What fetching an instruction at `va` needs. Raises UserFault."""
        self._host(va, Access.EXECUTE)

    def _pages(self, va: int, length: int) -> list[tuple[int, int]]:
        size, parts = self.format.page_size, []
        while length:
            count = min(length, size - (va & size - 1))
            parts.append((va, count))
            va, length = va + count, length - count
        return parts

    def _host(self, va: int, access: Access) -> int:
        for _ in range(_TRIES):
            answer = self.translate(va, access)
            if not isinstance(answer, Access):
                ram = self._ram
                if ram.base <= answer < ram.base + ram.size:
                    return ram.host_address + answer - ram.base
                assert self._aperture.base <= answer < self._aperture.base + self._aperture.size
                return self._aperture.host_address + answer - self._aperture.base
            if not self.resolve(va, int(answer)):
                raise UserFault(f"{va:#x} cannot be accessed")
        raise AssertionError(f"{va:#x} faults again and again")

    # ---- what a CPU that executes has

    def run(self, budget: int | None = None) -> Exit:
        raise AssertionError("this CPU executes nothing")

    def stop(self) -> None:
        raise AssertionError("this CPU executes nothing")

    def interrupt(self) -> None:
        raise AssertionError("this CPU executes nothing")

    @property
    def blocks(self) -> int:
        return 0

    def count_blocks(self) -> None:
        """There are none."""

    def read(self, name: str) -> int:
        raise KeyError(name)

    def write(self, name: str, value: int) -> None:
        raise KeyError(name)

    @property
    def pc(self) -> int:
        return 0

    @pc.setter
    def pc(self, value: int) -> None:
        raise AssertionError("this CPU executes nothing")

    @property
    def sp(self) -> int:
        return 0

    @sp.setter
    def sp(self, value: int) -> None:
        raise AssertionError("this CPU executes nothing")

    def registers(self) -> dict[str, int]:
        return {}

    def load_registers(self, values: dict[str, int]) -> None:
        assert not values

    def close(self) -> None:
        self.tlb.clear()
