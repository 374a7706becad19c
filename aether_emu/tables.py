"""Page tables alone, without any program: for those who want to know what an encoding means.

    from aether_emu import PageFlags, tables

    memory = bytearray(1 << 20)                         # or an mmap: physical memory from `base` on
    table = tables.PageTables("x86_64-4level", memory)
    table.map(0x40_0000, 0x8000, flags=PageFlags.READ | PageFlags.WRITE | PageFlags.USER)
    print(table.walk(0x40_0123))                        # every level, decoded
    print(table.execute(0x40_0123, "write"))            # a real store, by the emulated MMU
    table.write(0x40_0000, 1, table.read(0x40_0000, 1) & ~2)
    print(table.execute(0x40_0123, "write"))            # page fault, error code 0x7 (P W U) at 0x400123

The bytes in the buffer are all there is: nothing is remembered beside them, so tables that somebody else
wrote, or that were changed by hand, are walked and executed as they are. `verify` judges whole images.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from aether_emu.address import PhysAddr
from aether_emu.arch.arm64 import syndrome as arm_syndrome
from aether_emu.arch.arm64.stage1 import ArmFormat
from aether_emu.arch.paging import Attributes, Leaf, MemoryType, PageFlags, PageTableFormat
from aether_emu.arch.x86_64 import syndrome as x86_syndrome
from aether_emu.arch.x86_64.stage1 import X86Format
from aether_emu.errors import (
    AddressError,
    ConfigError,
    EncodingError,
    MachineError,
    MappingError,
    OutOfFrames,
    whole,
)
from aether_emu.mm.tables.walk import Mapped, Walk, walk
from aether_emu.rules import format_size

if TYPE_CHECKING:
    import mmap

    from aether_emu.machine.probe.arm64 import ArmProber
    from aether_emu.machine.probe.x86_64 import X86Prober

FORMATS = (
    "x86_64-4level", "x86_64-5level", "arm64-4K", "arm64-4K-39bit",
    "arm64-16K", "arm64-16K-36bit", "arm64-16K-47bit", "arm64-64K", "arm64-64K-42bit",
)  # fmt: skip
"""The names of `aether pt --format`, less those of 52-bit addresses (LPA, LPA2), which no engine here has."""
_NAME = re.compile(r"x86_64-([45])level|arm64-(4|16|64)K(?:-(\d\d)bit)?")
_USER_PAGE = PageFlags.READ | PageFlags.WRITE | PageFlags.USER | PageFlags.ACCESSED | PageFlags.DIRTY
_KINDS = ("read", "write", "fetch")
_MMU = {"read": 1, "write": 2, "fetch": 4}
_ABORTS = {
    0x00: "address size fault",
    0x04: "translation fault",
    0x08: "access flag fault",
    0x0C: "permission fault",
}


def format_named(name: str, *, physical_bits: int | None = None) -> PageTableFormat:
    """A format by its name, with addresses of the emulated CPU's width or another. Raises ConfigError."""
    parts = _NAME.fullmatch(name) if isinstance(name, str) and name in FORMATS else None
    if parts is None:
        raise ConfigError("format", name, "one of " + ", ".join(FORMATS))
    if physical_bits is not None:
        physical_bits = whole("physical_bits", physical_bits, "a whole number of bits")
    try:
        if parts[1]:
            return X86Format(int(parts[1]), 40 if physical_bits is None else physical_bits)
        granule, bits = int(parts[2]) << 10, int(parts[3] or 48)
        return ArmFormat(granule, bits, 48 if physical_bits is None else physical_bits)
    except EncodingError as error:
        raise ConfigError("physical_bits", physical_bits, str(error)) from None


@dataclass(frozen=True, slots=True)
class X86Controls:
    """CR0.WP, CR4.SMEP, SMAP and PKE, EFER.NXE, EFLAGS.AC and PKRU for one access (Intel SDM 3A 4.6)."""

    wp: bool = True
    smep: bool = True
    smap: bool = True
    pke: bool = False
    nxe: bool = True
    ac: bool = False
    pkru: int = 0


@dataclass(frozen=True, slots=True)
class ArmControls:
    """SCTLR_EL1.WXN and PSTATE.PAN for one access (Arm ARM D8.4)."""

    wxn: bool = False
    pan: bool = True


@dataclass(frozen=True, slots=True)
class Reached:
    """The access went through, to this physical address."""

    physical: PhysAddr

    def __str__(self) -> str:
        return f"reached {self.physical:#x}"


@dataclass(frozen=True, slots=True)
class NoMemory:
    """It translated to a physical address where the buffer is not."""

    physical: PhysAddr

    def __str__(self) -> str:
        return f"translated to {self.physical:#x}, outside the memory"


@dataclass(frozen=True, slots=True)
class Faulted:
    """The MMU refused: `code` is x86's error code or Arm's syndrome, `address` what CR2 or FAR has."""

    isa: str
    code: int
    address: int

    def __str__(self) -> str:
        if self.isa == "x86_64":
            names = " ".join(field.name for field in x86_syndrome.ERROR_CODE if field.get(self.code))
            return f"page fault, error code {self.code:#x} ({names or 'not present'}) at {self.address:#x}"
        kind = "instruction" if self.code >> 26 in _FETCHES else "data"
        status = self.code & 0x3F
        what, level = _ABORTS.get(status & 0x3C, f"fault status {status:#x}"), status & 3
        store = ", store" if kind == "data" and self.code & arm_syndrome.WNR else ""
        return f"{kind} abort, {what}, level {level}{store} (ESR {self.code:#x}) at {self.address:#x}"


@dataclass(frozen=True, slots=True)
class Excepted:
    """Another exception came of it: x86's vector (13 for a non-canonical address), or the engine's number."""

    isa: str
    vector: int

    def __str__(self) -> str:
        return f"exception {self.vector}"


Tried = Reached | Faulted | NoMemory | Excepted
_FETCHES = (arm_syndrome.EC_FETCH_LOWER, arm_syndrome.EC_FETCH_SAME)


def _require_kind(name: str, value: object, kind: type[Enum]) -> None:
    if not isinstance(value, kind):
        raise ConfigError(name, value, f"members of {kind.__name__}")


class _Memory:
    """Somebody's buffer as physical memory from `base` on."""

    def __init__(self, buffer: bytearray | memoryview | mmap.mmap, base: int) -> None:
        self.base = base
        self.words = memoryview(buffer).cast("B").cast("Q")
        self.array = np.frombuffer(self.words, np.uint64)

    @property
    def size(self) -> int:
        return self.words.nbytes


class PageTables:
    """Page tables of one root in a buffer that stands at physical `base`, in the format of that name.

    Without `root` an empty one is made in the first free page. `root` is the physical address of a table that
    is there. Tables are made in free pages: those with nothing but zeros, which no word of the buffer names
    as an entry would. Raises ConfigError.
    """

    def __init__(
        self,
        format: str = "x86_64-4level",
        memory: bytearray | memoryview | mmap.mmap | None = None,
        *,
        base: int = 0,
        root: int | None = None,
        physical_bits: int | None = None,
    ) -> None:
        self.format = format_named(format, physical_bits=physical_bits)
        page = self.format.page_size
        self.memory = bytearray(1 << 20) if memory is None else memory
        try:
            buffer = memoryview(self.memory)
        except (TypeError, ValueError):  # no buffer, or a closed one
            buffer = memoryview(b"")
        size, base = buffer.nbytes, whole("base", base, "a physical address")
        if buffer.readonly or not buffer.c_contiguous:
            raise ConfigError(
                "memory", type(memory).__name__, "a buffer that can be written, such as a bytearray"
            )
        if not size or size % page or base % page or base < 0:
            allowed = f"whole pages of {format_size(page)} at an address of a page, with at least one"
            raise ConfigError("memory", f"{size} bytes at {base:#x}", allowed)
        if base + size > 1 << min(self.format.physical_bits, 39):
            raise ConfigError(
                "base", hex(base), "such that the memory ends below 512G, and within physical_bits"
            )
        self._lent: _Memory | None = _Memory(self.memory, base)
        self._taken: set[int] = set()
        self.root = self._free_page() if root is None else whole("root", root, "a physical address")
        if self.root % page or not base <= self.root < base + size:
            raise ConfigError("root", hex(self.root), "the address of a page of the memory")
        self._taken.add(self.root)

    @property
    def isa(self) -> str:
        """Whose tables they are."""
        return "x86_64" if isinstance(self.format, X86Format) else "arm64"

    @property
    def _memory(self) -> _Memory:
        if self._lent is None:
            raise MachineError(
                "these page tables are closed: their buffer is let go, new ones can be made in it"
            )
        return self._lent

    def __repr__(self) -> str:
        memory = self._lent
        if memory is None:
            return f"<PageTables {self.format.name}: closed>"
        where = f"{format_size(memory.size)} at {memory.base:#x}"
        return f"<PageTables {self.format.name} at {self.root:#x}, in {where}>"

    def close(self) -> None:
        """Let go of the buffer, so that an mmap can be closed. Safe twice.

        The tables cannot be used any more: MachineError.
        """
        memory, self._lent = self._lent, None
        if memory is not None:
            del memory.array
            memory.words.release()

    # ---- entries

    def address_of(self, va: int, level: int = 1) -> PhysAddr:
        """The physical address of the entry for `va` at `level`: 1 is the level of the smallest pages.

        Raises MappingError where no table leads there.
        """
        if not 1 <= whole("level", level) <= self.format.top:
            raise ConfigError("level", level, f"1 to {self.format.top}, the root's")
        table, at = self.root, self.format.top
        while True:
            spec = self.format.levels[at - 1]
            address = table + 8 * (self._checked(va) >> spec.shift & spec.entries - 1)
            if at == level:
                return PhysAddr(address)
            entry = self._load(address)
            lower = self.format.next_table(entry, at)
            if lower is None:
                raise MappingError(
                    f"{va:#x}: {self.format.describe(entry, at)} leads to no table of level {at - 1}"
                )
            table, at = lower, at - 1

    def read(self, va: int, level: int = 1) -> int:
        """The entry for `va` at `level`, as it is in memory. Raises MappingError as `address_of`."""
        return self._load(self.address_of(va, level))

    def write(self, va: int, level: int, entry: int) -> None:
        """Store that entry, whatever it says: nothing is checked. Raises MappingError as `address_of`."""
        if not 0 <= whole("entry", entry) < 1 << 64:
            raise ConfigError("entry", entry, "64 bits")
        self._memory.words[self._slot(self.address_of(va, level))] = entry

    def walk(self, va: int) -> Walk:
        """Translate by the format's rules, in Python; `print` it for every level's entry.

        Intel SDM 3A 4.5, Arm ARM D8.2. Raises AddressError for no address of the format.
        """
        return walk(self.format, self._memory, self.root, self._checked(va))

    # ---- mappings

    def map(
        self,
        va: int,
        physical: int,
        size: int | None = None,
        flags: PageFlags = _USER_PAGE,
        *,
        memory: MemoryType = MemoryType.WRITE_BACK,
        key: int = 0,
        leaf: int | None = None,
    ) -> None:
        """Map `size` bytes (None: one leaf) from virtual `va` on to physical memory from `physical` on.

        Each leaf has `leaf` bytes (None: the format's page), those `flags`, that type of `memory` and, on
        x86_64, the protection `key`. What is mapped already is mapped anew. A larger leaf that the range
        meets a part of is split: a table of smaller ones takes its place, and the rest of it stays mapped as
        it was. Raises EncodingError, MappingError, AddressError, ConfigError, and OutOfFrames when no page is
        free for a table.
        """
        physical, key = whole("physical", physical, "a physical address"), whole("key", key)
        _require_kind("flags", flags, PageFlags)
        _require_kind("memory", memory, MemoryType)
        sizes = {self.format.levels[level - 1].size: level for level in range(1, self.format.top + 1)}
        leaf = self.format.page_size if leaf is None else whole("leaf", leaf, "a number of bytes")
        if leaf not in self.format.leaf_sizes():
            allowed = ", ".join(map(format_size, self.format.leaf_sizes()))
            raise ConfigError("leaf", format_size(leaf), allowed)
        length = leaf if size is None else whole("size", size, "a number of bytes")
        self._checked(va)
        if (va | physical | length) % leaf or length <= 0:
            raise MappingError(
                f"{va:#x} to {physical:#x}, {length:#x} bytes: not whole leaves of {leaf:#x} bytes"
            )
        attributes = Attributes(flags, memory, key)
        for done in range(0, length, leaf):
            slot = self._slot(self._made(va + done, sizes[leaf]))
            self._memory.words[slot] = self.format.leaf_entry(physical + done, attributes, sizes[leaf])

    def unmap(self, va: int, size: int | None = None) -> None:
        """Clear the leaves of `size` bytes from `va` on, or the one leaf there; tables stay.

        A leaf that reaches out of the range goes as a whole. Raises MappingError where there is none.
        """
        self._change(va, size, lambda _leaf, _level: 0)

    def protect(self, va: int, size: int | None = None, flags: PageFlags = _USER_PAGE) -> None:
        """Give the leaves of `size` bytes from `va` on, or the one leaf there, other flags.

        Address, memory type and key stay. Raises MappingError where there is none, and EncodingError.
        """
        _require_kind("flags", flags, PageFlags)

        def changed(leaf: Leaf, level: int) -> int:
            old = leaf.attributes
            return self.format.leaf_entry(leaf.address, Attributes(flags, old.memory, old.key), level)

        self._change(va, size, changed)

    # ---- the MMU

    def execute(
        self,
        va: int,
        kind: str = "read",
        *,
        user: bool = True,
        controls: X86Controls | ArmControls | None = None,
    ) -> Tried:
        """Have the emulated MMU make one access with a cold TLB.

        `kind` is "read" or "write", of 8 bytes, or "fetch".
        `user` or the supervisor, under `controls`. What the MMU notes in entries stays; bytes that the access
        stores are put back. On x86_64 two entries of the root that are 0 are borrowed meanwhile. Raises
        ConfigError for controls of the other ISA, MappingError for a root without two such entries.
        """
        if not isinstance(user, bool):
            raise ConfigError("user", user, "True, or False for the supervisor")
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ConfigError("kind", kind, ", ".join(_KINDS))
        if not 0 <= whole("va", va, "a virtual address") < 1 << 64:
            raise AddressError("virtual address", va, "it has 64 bits")
        found = walk(self.format, self._memory, self.root, va)
        kept = self._kept(found) if isinstance(found, Mapped) else None
        if self.isa == "x86_64":
            tried = self._execute_x86(va, kind, user, controls, kept)
        else:
            tried = self._execute_arm(va, kind, user, controls, kept)
        return tried

    def _execute_x86(
        self, va: int, kind: str, user: bool, controls: object, kept: tuple[int, int] | None
    ) -> Tried:
        from aether_emu.machine.probe.x86_64 import LANDING_CODE, X86Prober  # noqa: PLC0415  # needs the engine

        chosen = X86Controls() if controls is None else controls
        if not isinstance(chosen, X86Controls):
            raise ConfigError("controls", controls, "X86Controls for x86_64")
        lower, upper = self._spare_slots(va)
        memory = [(self._memory.base, self._memory.array)]
        prober = X86Prober(memory, levels=self.format.top, user_slot=lower, supervisor_slot=upper)
        try:
            prober.configure(wp=chosen.wp, smep=chosen.smep, smap=chosen.smap, pke=chosen.pke, nxe=chosen.nxe)
            root = self._slot(self.root)
            for slot, entry in prober.own_entries.items():
                self._memory.words[root + slot] = entry
            try:
                return self._attempt(
                    prober, va, kind, LANDING_CODE, kept, user=user, ac=chosen.ac, pkru=chosen.pkru
                )
            finally:
                for slot in prober.own_entries:
                    self._memory.words[root + slot] = 0
        finally:
            prober.close()

    def _execute_arm(
        self, va: int, kind: str, user: bool, controls: object, kept: tuple[int, int] | None
    ) -> Tried:
        from aether_emu.machine.probe.arm64 import LANDING_CODE, ArmProber  # noqa: PLC0415  # needs the engine

        chosen = ArmControls() if controls is None else controls
        if not isinstance(chosen, ArmControls):
            raise ConfigError("controls", controls, "ArmControls for arm64")
        page, bits = self.format.page_size, self.format.virtual_bits
        memory = [(self._memory.base, self._memory.array)]
        prober = ArmProber(memory, granule=page, virtual_bits=bits, upper=bool(va >> 55 & 1))
        try:
            prober.configure(wxn=chosen.wxn, tbi=False, epd=False, hpd=False)
            return self._attempt(prober, va, kind, LANDING_CODE, kept, user=user, pan=chosen.pan)
        finally:
            prober.close()

    def _attempt(
        self,
        prober: X86Prober | ArmProber,
        va: int,
        kind: str,
        landing: bytes,
        kept: tuple[int, int] | None,
        **how: bool | int,
    ) -> Tried:
        """One access. `kept` is a word of the target and where it is: it stays what it was."""
        from aether_emu.machine.probe.prober import Happened, Operation  # noqa: PLC0415  # likewise

        memory, size = self._memory, 0
        if kept is not None:
            physical, size = kept[0] - memory.base, kept[1]
            raw = memory.words.cast("B")
            before = bytes(raw[physical : physical + size])
            if kind == "fetch" and size >= len(landing):
                raw[physical : physical + len(landing)] = landing
        addresses = np.array([va], np.uint64)
        try:
            done = prober.run(self.root, addresses, Operation[kind.upper()], **how)  # type: ignore[arg-type]  # each prober's own
            match Happened(int(done.happened[0])):
                case Happened.DONE:
                    return Reached(PhysAddr(prober.translated(va, _MMU[kind])))
                case Happened.FAULT:
                    return Faulted(self.isa, int(done.code[0]), int(done.address[0]))
                case Happened.HOLE:
                    return NoMemory(PhysAddr(int(done.address[0])))
                case _:
                    return Excepted(self.isa, int(done.code[0]))
        finally:
            if size:
                raw[physical : physical + size] = before

    def _kept(self, found: Mapped) -> tuple[int, int] | None:
        """Where the access's 8 bytes are, and how many of them are in the memory and the leaf."""
        at, memory = int(found.address), self._memory
        end = min(memory.base + memory.size, (at & -found.size) + found.size)
        return (at, min(8, end - at)) if memory.base <= at < end else None

    def _spare_slots(self, va: int) -> tuple[int, int]:
        root, taken = self._slot(self.root), va >> self.format.levels[-1].shift & 511
        free = [slot for slot in range(512) if slot != taken and not self._memory.words[root + slot]]
        lower, upper = [slot for slot in free if slot < 256], [slot for slot in free if slot >= 256]
        if not lower or not upper:
            raise MappingError("the root has no entry to spare in each half, which an execution borrows")
        return lower[-1], upper[-1]

    # ---- inside

    def _checked(self, va: int) -> int:
        if not 0 <= whole("va", va, "a virtual address") < 1 << 64 or not self.format.canonical(va):
            fmt = self.format
            raise AddressError("virtual address", va, f"{fmt.name} has {fmt.virtual_bits} bits of one")
        return va

    def _slot(self, address: int) -> int:
        memory = self._memory
        if address % 8 or not memory.base <= address < memory.base + memory.size:
            raise MappingError(f"an entry at {address:#x} is outside the memory")
        return address - memory.base >> 3

    def _load(self, address: int) -> int:
        return int(self._memory.words[self._slot(address)])

    def _made(self, va: int, level: int) -> int:
        """The address of the entry for `va` at `level`; tables on the way are made."""
        for above in range(self.format.top, level, -1):
            at = self.address_of(va, above)
            entry = self._load(at)
            if self.format.next_table(entry, above) is None:
                table = self._free_page()
                decoded = self.format.decode(entry, above)
                if isinstance(decoded, Leaf):
                    self._split(decoded, above, table)
                self._memory.words[self._slot(at)] = self.format.table_entry(table)
        return self.address_of(va, level)

    def _split(self, leaf: Leaf, level: int, table: int) -> None:
        """Fill the empty `table` with what `leaf`, which stands at `level`, maps: leaves of the level below.

        Where there are no leaves of that size (arm64's top levels have none) there are none above either.
        """
        spec, attributes = self.format.levels[level - 2], replace(leaf.attributes, contiguous=False)
        for index in range(spec.entries):
            lower = self.format.leaf_entry(leaf.address + index * spec.size, attributes, level - 1)
            self._memory.words[self._slot(table + 8 * index)] = lower

    def _free_page(self) -> int:
        """A page of zeros that is no table. Raises OutOfFrames."""
        memory, page = self._memory, self.format.page_size
        words = memory.array[np.flatnonzero(memory.array)]
        named = set(np.unique(words & np.uint64(self.format.address_mask & -page)).tolist())
        for address in range(memory.base, memory.base + memory.size, page):
            first = address - memory.base >> 3
            known = address in named or address in self._taken
            if not known and not memory.array[first : first + page // 8].any():
                self._taken.add(address)
                return address
        raise OutOfFrames

    def _change(self, va: int, size: int | None, change: Callable[[Leaf, int], int]) -> None:
        end = self._checked(va) + (1 if size is None else whole("size", size, "a number of bytes"))
        found = 0
        while va < end:
            steps = self.walk(va).steps
            last = steps[-1]
            decoded = self.format.decode(last.entry, last.level)
            spec = self.format.levels[last.level - 1]
            if isinstance(decoded, Leaf):
                self._memory.words[self._slot(int(last.address))] = change(decoded, last.level)
                found += 1
            va = (va | spec.size - 1) + 1
        if not found:
            raise MappingError(f"nothing is mapped below {end:#x} in that range")
