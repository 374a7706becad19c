"""A CPU that executes nothing but translates as the worst MMU might: no stale entry ever goes by itself.

It walks the tables of whatever format it is given, keeps each translation it made until somebody flushes it,
and remembers which table pages its walks went through. So a forgotten flush is a wrong byte here, a frame
freed too early is caught by `holds`, and a live entry that became another live one (which formats with
break-before-make forbid) is written down when the page is flushed, or walked again.

Where the format says that hardware keeps accessed and dirty state, this CPU writes it into the tables, and
trusts what it cached of it; where not, it faults when the state that an access would leave is not there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from aether_emu.arch.paging import Access, Leaf, Malformed, PageFlags, PageTableFormat, Table
from aether_emu.machine.cpu import Cpu, Exit, Saved, Trap, UserFault
from aether_emu.machine.memory.aperture import Aperture
from aether_emu.machine.memory.ram import Ram

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
    path: tuple[tuple[int, int], ...]  # (slot, entry) of each entry read, from the root on


class ReferenceCpu(Cpu):
    """User accesses at `root`, one byte string at a time. `flushes` lists what was flushed, in order.

    `tags`: whether it keeps what it holds of other roots, dropping as x86_64 or as ARM64 has it.
    """

    tags: Literal["", "pcids", "asids"] = ""
    isa = "reference"
    one_root = False
    stop_call = (0, 0)

    def __init__(self, fmt: PageTableFormat, ram: Ram, aperture: Aperture) -> None:
        self.format, self._ram, self._aperture = fmt, ram, aperture
        self.root = self.tag = 0
        self.tlb: dict[int, Translation] = {}
        self.kept: dict[int, dict[int, Translation]] = {}  # what it holds under other tags
        self.walked: set[int] = set()  # physical addresses of tables since the last full flush
        self.flushes: list[tuple[str, int]] = []
        self.watched: list[tuple[int, int]] = []
        self.broken_rules: list[str] = []
        self.on_fault = lambda _va, _access: None
        self.on_system_call = lambda *_arguments: None
        self.on_trap = self._unexpected
        self.resolve: Callable[[int, int], bool] = lambda _va, _access: False
        self.on_rewrite = None
        self.holds_code = lambda _physical: True
        self.return_work = None

    @staticmethod
    def _unexpected(trap: Trap) -> None:
        raise AssertionError(f"a CPU that executes nothing had a trap: {trap}")

    def holds(self, physical: int) -> bool:
        """Whether a translation or a walk could still lead to the page at `physical`."""
        size = self.format.page_size
        inside = any(t.address <= physical < t.address + max(t.size, size) for t in self.tlb.values())
        return inside or physical in self.walked

    # ---- bring-up (it has no supervisor)

    @staticmethod
    def text_page() -> bytes:
        raise NotImplementedError

    @staticmethod
    def data_page(va: int, number: int = 0) -> bytes:
        raise NotImplementedError

    def boot(self, root: int, text: int, data: int) -> None:
        raise NotImplementedError

    # ---- translation

    def set_root(self, root: int, tag: int = 0, *, keep: bool = False) -> None:
        self.kept[self.tag] = self.tlb
        if not self.tags or (not keep and self.tags == "asids"):
            self.kept.clear()
        elif not keep:
            self.kept.pop(tag, None)
        self.root, self.tag = root, tag
        self.tlb = self.kept.pop(tag, {})
        self.walked.clear()

    def flush_tag(self, tag: int, va: int | None = None) -> None:
        tlb = self.tlb if tag == self.tag else self.kept.get(tag, {})
        if va is None:
            tlb.clear()
        else:
            tlb.pop(va >> self.format.page_shift, None)

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

    def working_set(self, pages: int) -> None:
        """There is always room."""

    def forget_code(self) -> None:
        raise NotImplementedError

    def flush_code(self) -> None:
        self.flushes.append(("code", 0))

    def watch_stores(self, pa: int, length: int) -> None:
        self.watched.append((pa, length))

    def translate(self, va: int, access: Access) -> int | Access:
        """The physical address, or the access with what a fault adds to it."""
        known = self.tlb.get(va >> self.format.page_shift)
        needs = _NEEDS[access] | PageFlags.USER
        noted = PageFlags.ACCESSED | (PageFlags.DIRTY if access & Access.WRITE else PageFlags(0))
        if known is None or known.flags & (needs | noted) != needs | noted:
            self._note_change(va)
            self.tlb.pop(va >> self.format.page_shift, None)
            walked = self._walk(va)
            if not isinstance(walked, Translation):
                return access | walked | Access.USER
            if walked.flags & needs != needs or self._must_be_noted(walked, noted):
                return access | Access.PRESENT | Access.USER
            known = self.tlb[va >> self.format.page_shift] = self._note(walked, noted)
        return known.address + (va & known.size - 1)

    def _must_be_noted(self, walked: Translation, noted: PageFlags) -> PageFlags:
        """What an access would leave behind, and only software can write down."""
        fmt, missing = self.format, noted & ~walked.flags
        hardware = PageFlags.ACCESSED if fmt.hardware_accessed else PageFlags(0)
        return missing & ~(hardware | (PageFlags.DIRTY if fmt.hardware_dirty else PageFlags(0)))

    def _note(self, walked: Translation, noted: PageFlags) -> Translation:
        """Set in the leaf what the access leaves behind; nothing is written that stands there already."""
        if walked.flags & noted == noted:
            return walked
        slot, entry = walked.path[-1]
        entry = self.format.touch(entry)
        if noted & PageFlags.DIRTY:
            entry = self.format.soil(entry)
        self._ram.words[slot] = entry
        return replace(walked, flags=walked.flags | noted, path=(*walked.path[:-1], (slot, entry)))

    def _walk(self, va: int) -> Translation | Access:
        table, granted = self.root, _RESTRICTING
        path: list[tuple[int, int]] = []
        for number in range(self.format.top, 0, -1):
            self.walked.add(table)
            level = self.format.levels[number - 1]
            index = va >> level.shift & level.entries - 1
            slot = (table - self._ram.base >> 3) + index
            entry = self._ram.words[slot]
            path.append((slot, entry))
            match self.format.decode(entry, number):
                case Table(address, flags):
                    table, granted = address, granted & flags
                case Leaf(address, attributes):
                    flags = attributes.flags & ~(_RESTRICTING & ~granted)
                    return Translation(address, level.size, flags, tuple(path))
                case Malformed():
                    return Access.PRESENT | Access.MALFORMED
                case _:
                    break
        return Access(0)

    def _note_change(self, va: int) -> None:
        """Break before make: what is cached must be gone from the tables, or still stand there.

        Of an entry that is not present any more, what is below it does not matter.
        """
        known = self.tlb.get(va >> self.format.page_shift)
        fmt = self.format
        for slot, entry in known.path if known is not None and fmt.frozen_bits else ():
            now = self._ram.words[slot]
            if not now & fmt.present_mask:
                return
            if (now ^ entry) & fmt.frozen_bits:
                self.broken_rules.append(f"{va:#x} went from {entry:#x} to {now:#x} alive")
                return

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
    def interrupted(self) -> bool:
        return False

    def take_interrupt(self) -> bool:
        return False

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

    def cut(self, instructions: int) -> None:
        raise AssertionError("this CPU executes nothing")

    @property
    def cut_left(self) -> int:
        return 0

    def limit(self, budget: int) -> None:
        raise AssertionError("this CPU executes nothing")

    def save(self, into: Saved | None = None) -> Saved:
        raise AssertionError("this CPU executes nothing")

    def restore(self, saved: Saved) -> None:
        raise AssertionError("this CPU executes nothing")

    def registers(self) -> dict[str, int]:
        return {}

    def load_registers(self, values: dict[str, int]) -> None:
        assert not values

    def close(self) -> None:
        self.tlb.clear()
