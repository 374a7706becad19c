"""What must be true of a machine at any moment, beside the model and by itself.

Tables are followed entry by entry, and frames and slots looked at without touching anything. The model says
which bytes and rights a page has; how frames, mappings, slots and figures must agree holds whatever the
model says.
"""

from __future__ import annotations

import ctypes
import functools
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from aether_emu.arch.paging import Held, HeldKind, Leaf, PageFlags, PageTableFormat
from aether_emu.linux.proc import status
from aether_emu.linux.proc.machine import machine_texts
from aether_emu.linux.proc.memory import read_pagemap
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.task import Task
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.rmap import mappings
from aether_emu.mm.space import AddressSpace
from aether_emu.system import Machine
from tests.mm.whole.model import EXECUTE, READ, WRITE, Page, World

_PRESENT, _SWAPPED, _GUARD, _SOFT_DIRTY = 1 << 63, 1 << 62, 1 << 58, 1 << 55


class Entry(NamedTuple):
    """What stands for one page: its frame or slot, or neither for a guard."""

    frame: int = -1
    slot: int = -1
    rights: int = 0
    guard: bool = False
    large: bool = False


@functools.cache
def _rights(fmt: PageTableFormat, entry: int, level: int) -> int:
    """What an entry permits to programs, whatever frame it shows."""
    decoded = fmt.decode(entry, level)
    if isinstance(decoded, Leaf):
        flags = decoded.attributes.flags
        assert flags & PageFlags.USER
        return READ | WRITE * bool(flags & PageFlags.WRITE) | EXECUTE * bool(flags & PageFlags.EXECUTE)
    assert isinstance(decoded, Held), decoded
    assert decoded.kind == HeldKind.NO_ACCESS
    return 0


def entries(space: AddressSpace, start: int, end: int) -> Iterator[tuple[int, Entry]]:
    """(number of the page, entry) of every page of a range that has one."""
    fmt, frames, swap = space.table.format, space.physical.frames, space.physical.swap
    shift = fmt.page_shift
    assert swap is not None
    for found in space.table.cursor(start, end):
        number, count = found.start >> shift, fmt.levels[found.level - 1].size >> shift
        if swap.entries.holds(found.entry):
            yield number, Entry(slot=swap.entries.slot(found.entry))
            continue
        if found.entry == space.guard:
            yield number, Entry(guard=True)
            continue
        rights = _rights(fmt, found.entry & ~fmt.address_mask, found.level)
        first = frames.number(found.entry & fmt.address_mask & -(count << shift))
        for each in range(count):
            yield number + each, Entry(first + each, -1, rights, large=count > 1)


class Checks:
    """Of one machine and its model. `base` is the number of the window's first page."""

    def __init__(self, machine: Machine, world: World, base: int) -> None:
        self.machine, self.world, self.base = machine, world, base
        self.physical = machine.physical
        self._faults = 0, 0
        self._seen: dict[int, dict[int, Entry]] = {}
        self._slots_cached: dict[int, int] = {}

    def processes(self) -> dict[str, Process]:
        """Those that are alive, by the model's names."""
        living = [each for each in self.machine.processes if each.ended is None and not each.released]
        return dict(zip("ab", living, strict=False))

    def all(self) -> None:
        """Everything."""
        self.physical.tlb.settle()
        self._seen = {space.number: dict(entries(space, 0, space.limits.user_end)) for space in self.spaces()}
        self._slots_cached = self._cached()
        for name, process in self.processes().items():
            self.pages(name, process)
            self.counters(name, process)
        self.frames()
        self.slots()
        self.figures()

    # ---- beside the model

    def pages(self, name: str, process: Process) -> None:
        """Bytes and rights of every page that is anywhere, and that nothing else is."""
        model, seen = self.world.spaces[name], self._seen[process.mm.number]
        for number, entry in seen.items():
            if 0 <= number - self.base < self.world.end:
                page = model.get(number - self.base)
                assert page is not None, f"{name}: page {number - self.base} has {entry}, and is not mapped"
                self._page(name, number - self.base, page, entry)
        for number, page in model.items():
            if self.base + number not in seen:
                self._absent(name, number, page)

    def _page(self, name: str, number: int, page: Page, entry: Entry) -> None:
        where = f"{name}: page {number} with {entry}"
        assert entry.guard == page.guard, f"{where}, guard {page.guard}"
        if entry.guard:
            return
        assert not entry.rights & ~page.protection, f"{where} permits more than {page.protection}"
        assert entry.slot >= 0 or page.protection or not entry.rights, where
        content = self._content(entry)
        if page.blurred:
            return
        expected = self.world.contents(page)
        if content not in expected:
            heads = content[:8].hex(), [each[:8].hex() for each in expected]
            raise AssertionError(f"{where} has {heads[0]}.., not {heads[1]}")
        if page.own is not None and not page.freed:
            page.own = (content,)
        if entry.frame >= 0 and entry.rights & WRITE and not page.shared:
            frames = self.physical.frames
            assert frames.kind[entry.frame] == Kind.ANON, f"{where} may be written, and is not its own"
            assert frames.maps[entry.frame] == 1, f"{where} may be written, and is shared"
            assert not self.physical.is_merged(entry.frame), f"{where} may be written, and is merged"

    def _content(self, entry: Entry) -> bytes:
        swap = self.physical.swap
        assert swap is not None
        if entry.slot >= 0:
            stored = swap.look(entry.slot)
            assert stored is not None
            return bytes(stored)
        frames, aperture = self.physical.frames, self.physical.aperture
        address = frames.address(entry.frame)
        if address < aperture.base:
            return bytes(self.physical.page_bytes(entry.frame))
        return ctypes.string_at(aperture.host_address + address - aperture.base, self.world.size)

    def _absent(self, name: str, number: int, page: Page) -> None:
        """Nothing of its own is lost where nothing stands for it; zeros need nothing."""
        assert not page.guard, f"{name}: the guard of page {number} is lost"
        if page.own is not None and not page.blurred and page.thing is None:
            assert self.world.zero in page.own, f"{name}: page {number} has lost {page.own[0][:8].hex()}"
            page.own = (self.world.zero,)
        elif page.own is not None and not page.blurred:
            assert self.world.behind(page) in page.own, f"{name}: page {number} has lost its own bytes"

    def pagemap(self, name: str, process: Process) -> None:
        """What a process is told of its pages."""
        size, (first, count) = self.world.size, (self.base, self.world.end)
        words = np.frombuffer(read_pagemap(process, 8 * first, 8 * count), "<u8")
        seen = dict(entries(process.mm, first * size, (first + count) * size))
        for number, word in enumerate(words.tolist()):
            entry, page = seen.get(first + number), self.world.spaces[name].get(number)
            assert bool(word & _PRESENT) == (entry is not None and entry.frame >= 0), (name, number, entry)
            assert bool(word & _GUARD) == (page is not None and page.guard), (name, number)
            if entry is not None and entry.slot >= 0:
                assert word & _SWAPPED, (name, number, entry)
            if page is not None and page.soft_dirty and entry is not None and not entry.guard:
                told = word & _SOFT_DIRTY or self.machine.abi.isa != "x86_64" or not self._own(page)
                assert told, f"{name}: page {number} was written, and is not soft-dirty"

    @staticmethod
    def _own(page: Page) -> bool:
        return page.own is not None and not page.freed

    # ---- figures of a process

    def counters(self, name: str, process: Process) -> None:
        """Its sizes in /proc, beside its entries and the model; faults are never taken back."""
        size, space, world = self.world.size, process.mm, self.world
        task = next(iter(process.tasks))
        assert isinstance(task, Task)
        text = status.status_text(process, process.pid, task).decode()
        rows = {line.split(":\t")[0]: line.split(":\t")[1] for line in text.splitlines()}
        told = {key: int(rows[key].split()[0]) * 1024 for key in ("VmRSS", "VmSwap", "VmLck", "VmSize")}
        kinds, seen, cached = self.physical.frames.kind, self._seen[space.number].values(), self._slots_cached
        slots = [entry.slot for entry in seen if entry.slot >= 0]
        resident = sum(
            entry.frame >= 0 and kinds[entry.frame] not in (Kind.ZERO, Kind.HUGETLB) for entry in seen
        )
        assert told["VmRSS"] == resident * size, f"{name}: {told['VmRSS']} of {resident} pages"
        assert told["VmLck"] == world.locked(name) * size, f"{name}: locked {told['VmLck']}"
        window = range(self.base * size, (self.base + world.end) * size)
        mapped = sum(area.length for area in space.areas if area.start in window)
        assert mapped == len(world.spaces[name]) * size, f"{name}: the areas are not the model's"
        assert told["VmSize"] == sum(area.length for area in space.areas)
        in_memory = sum(slot in cached for slot in slots)
        assert (len(slots) - in_memory) * size <= told["VmSwap"] <= len(slots) * size, f"{name}: in swap"
        faults = self.machine.kernel.minor_faults(), self.machine.kernel.major_faults()
        assert faults[0] >= self._faults[0]
        assert faults[1] >= self._faults[1]
        self._faults = faults

    def _cached(self) -> dict[int, int]:
        """The frames that hold what a slot has, by slot."""
        swap, frames = self.physical.swap, self.physical.frames
        assert swap is not None
        used = frames.refs_array.nonzero()[0].tolist()
        return {slot: frame for frame in used if (slot := swap.slot_of(frame)) is not None}

    # ---- frames, mappings, slots

    def spaces(self) -> list[AddressSpace]:
        """Those that still have tables."""
        found = {id(each.mm): each.mm for each in self.machine.processes if not each.released}
        return list(found.values())

    def frames(self) -> None:
        """Every mapping that is counted is an entry, and leads back from the frame; nothing is lost."""
        frames, physical = self.physical.frames, self.physical
        shown: Counter[int] = Counter()
        for seen in self._seen.values():
            shown.update(entry.frame for entry in seen.values() if entry.frame >= 0)
        for frame in (frames.kind_array == Kind.ZERO).nonzero()[0].tolist():
            shown.pop(frame, None)
        kinds = frames.kind_array
        users = np.isin(kinds, [Kind.ANON, Kind.SHARED, Kind.FILE, Kind.HUGETLB]).nonzero()[0].tolist()
        counted = {frame: int(frames.maps[frame]) for frame in users if frames.maps[frame]}
        assert counted == dict(shown), self._difference(counted, shown)
        for frame in (kinds == Kind.ANON).nonzero()[0].tolist():
            assert frames.refs[frame] == frames.maps[frame], f"frame {frame}: {frames.refs[frame]} references"
            assert frames.maps[frame], f"frame {frame} is nobody's"
            if frame % 7 == 0:
                assert len(list(mappings(physical, frame))) == shown[frame], f"the way back from {frame}"
        in_ram = kinds[: physical.ram.size // self.world.size]
        assert physical.buddy.free_frames == int((in_ram == Kind.FREE).sum())
        physical.buddy.check()

    @staticmethod
    def _difference(counted: dict[int, int], shown: Counter[int]) -> str:
        wrong = {f: (counted.get(f, 0), shown[f]) for f in counted.keys() | shown.keys()}
        return f"frame: (counted, entries) { ({f: n for f, n in wrong.items() if n[0] != n[1]}) }"

    def shared(self) -> list[SharedMemory]:
        """Every object of shared memory that there is."""
        return [each for each in self.physical.objects if isinstance(each, SharedMemory)]

    def slots(self) -> None:
        """Every slot in use is named by entries and objects as often as it is counted, or cached."""
        swap, named = self.physical.swap, Counter[int]()
        assert swap is not None
        for seen in self._seen.values():
            named.update(entry.slot for entry in seen.values() if entry.slot >= 0)
        for memory in self.shared():
            named.update(memory.slots_by_page().values())
        wrong = {slot: (n, swap.users(slot)) for slot, n in named.items() if n != swap.users(slot)}
        assert not wrong, f"slots: who names them, who is counted {wrong}"
        cached = self._slots_cached
        assert len(cached) == swap.cached
        assert swap.used == len(named.keys() | cached.keys()), "slots in use that nobody names"
        for slot, frame in cached.items():
            if slot in named:
                assert bytes(self.physical.page_bytes(frame)) == bytes(swap.look(slot) or b""), slot

    def figures(self) -> None:
        """/proc/meminfo beside frames and slots."""
        process = next(iter(self.processes().values()))
        provide = machine_texts(process)["meminfo"]
        assert callable(provide)
        rows = {line.split(":")[0]: line.split(":")[1] for line in provide().decode().splitlines()}
        told = {name: int(row.split()[0]) * 1024 for name, row in rows.items() if row.endswith("kB")}
        size, frames, swap = self.world.size, self.physical.frames, self.physical.swap
        assert swap is not None
        anonymous = int(((frames.kind_array == Kind.ANON) & (frames.maps_array > 0)).sum())
        assert told["AnonPages"] == anonymous * size
        assert told["MemFree"] == self.physical.buddy.free_frames * size
        assert told["SwapTotal"] - told["SwapFree"] in (swap.used * size, (swap.used - swap.cached) * size)
        assert told["SwapCached"] == swap.cached * size
        assert told["PageTables"] == int((frames.kind_array == Kind.TABLE).sum()) * size
        shown = (entry.frame for seen in self._seen.values() for entry in seen.values() if entry.large)
        huge = {frame for frame in shown if frames.kind[frame] == Kind.ANON}
        assert told["AnonHugePages"] == len(huge) * size
