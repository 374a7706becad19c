"""Page-table formats as a reader of other people's tables needs them: what an entry is, grants and leads to.

A format here says the same about one entry as the specification's walker (`verify.spec`) on its way to
an address, but for all entries of a level at once. Levels count from the page's own, 1, up.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

import numpy as np

from aether_emu.errors import ConfigError
from aether_emu.verify.spec import arm64, x86_64
from aether_emu.verify.tables.notes import Registers

Words = np.ndarray[Any, np.dtype[np.uint64]]
Bits = np.ndarray[Any, np.dtype[np.bool_]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.uint16]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]

NAMES = (
    "x86_64-4level", "x86_64-5level",
    "arm64-4K", "arm64-4K-39bit", "arm64-16K", "arm64-16K-47bit", "arm64-64K", "arm64-64K-42bit",
)  # fmt: skip
_ARM_NAME = re.compile(r"arm64-(4|16|64)K(?:-(\d+)bit)?")
_ONES = (1 << 64) - 1


class Kind(IntEnum):
    """What a present entry is."""

    TABLE = 0
    LEAF = 1
    RESERVED = 2  # it has a reserved bit set, or is an encoding that is reserved
    BEYOND = 3  # its address needs more bits than physical addresses have


class Right(IntFlag):
    """What a leaf grants after all levels above it, and what it says about itself."""

    USER_READ = 1
    USER_WRITE = 2
    USER_EXECUTE = 4
    READ = 8  # by the supervisor
    WRITE = 16
    EXECUTE = 32
    GLOBAL = 64
    ACCESSED = 128
    DIRTY = 256
    CONTIGUOUS = 512


USER = Right.USER_READ | Right.USER_WRITE | Right.USER_EXECUTE
ALLOWED = USER | Right.READ | Right.WRITE | Right.EXECUTE


@dataclass(frozen=True, slots=True)
class Half:
    """The addresses that one root translates, from `base` on."""

    name: str  # of the register that holds the root
    base: int


@dataclass(frozen=True, slots=True)
class Walked:
    """One address, walked by the specification. `entries[k]` is level k+1's, 0 where no walk came."""

    mapped: bool
    fault: str
    physical: int
    size: int
    rights: Right
    memory: int
    entries: list[int]


class Format(ABC):
    """One format with what is known of the registers that govern it."""

    isa: str
    halves: tuple[Half, ...]
    level_names: tuple[str, ...]  # level 1 first
    contiguous: tuple[int, ...]  # entries of a contiguous run by level; 1 where there are none

    def __init__(self, name: str, shifts: tuple[int, ...], top_width: int, registers: Registers) -> None:
        self.name, self.shifts, self.registers = name, shifts, registers
        self.widths = (shifts[0] - 3,) * (len(shifts) - 1) + (top_width,)

    @property
    def levels(self) -> int:
        return len(self.shifts)

    @property
    def page(self) -> int:
        """Bytes of the smallest page."""
        return 1 << self.shifts[0]

    def table_size(self, level: int) -> int:
        """Bytes of a table of that level: the root may be smaller than a page."""
        return 8 << self.widths[level - 1]

    def is_upper(self, addresses: Words) -> Bits:
        """Whether addresses are in the half that kernels use."""
        return np.asarray(addresses >> np.uint64(63) != 0)

    @abstractmethod
    def root(self, register: int) -> int:
        """The table's physical address in CR3 or TTBRn."""

    @abstractmethod
    def kinds(self, entries: Words, level: int) -> tuple[Bytes, Words]:
        """The `Kind` of each present entry, and the bits that make it RESERVED or BEYOND."""

    @abstractmethod
    def next_tables(self, entries: Words) -> Words:
        """Where table entries lead."""

    @abstractmethod
    def frames(self, entries: Words, level: int) -> Words:
        """Where leaves lead."""

    @abstractmethod
    def narrowed(self, locks: Bytes, entries: Words) -> Bytes:
        """`locks` (what the levels above forbid; 0 at the root), and what these table entries forbid."""

    @abstractmethod
    def rights(self, locks: Bytes, leaves: Words) -> Flags:
        """The `Right`s of leaves under what the levels above forbid."""

    @abstractmethod
    def memory(self, leaves: Words, level: int) -> Bytes:
        """Which memory type leaves choose: the index into IA32_PAT or MAIR_EL1, shareability above it."""

    @abstractmethod
    def memory_name(self, memory: int) -> str:
        """A memory type for people; by its index where the register is not known."""

    @abstractmethod
    def is_cached(self, memory: int) -> bool | None:
        """Whether such memory is cached, as RAM is; None where the register is not known."""

    @abstractmethod
    def walk(self, fetch: Callable[[int, Words], Words], roots: list[int], address: int) -> Walked:
        """Walk one address by the specification. `fetch` is asked for (level, addresses of entries)."""


def _bit(words: Words, position: int) -> Bits:
    return np.asarray(words >> np.uint64(position) & np.uint64(1) != 0)


def _flags(*parts: tuple[Right, Bits]) -> Flags:
    flags = np.zeros(parts[0][1].shape, np.uint16)
    for right, where in parts:
        flags |= where.astype(np.uint16) * np.uint16(right)
    return flags


_PAT_NAMES = {0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB", 7: "UC-"}  # Intel SDM 3A table 12-10
_NO_USER, _NO_WRITE, _NO_EXECUTE = 1, 2, 4  # what x86_64 levels forbid


class X86(Format):
    """x86_64 with 4 or 5 levels (Intel SDM 3A 4.5)."""

    isa = "x86_64"
    contiguous = (1,) * 5

    def __init__(self, name: str, levels: int, registers: Registers) -> None:
        super().__init__(name, tuple(12 + 9 * k for k in range(levels)), 9, registers)
        self.mode = x86_64.Mode(levels, registers.physical_bits or 52, registers.nxe is not False)
        self.halves = (Half("CR3", 0),)
        self.level_names = ("PT", "PD", "PDPT", "PML4", "PML5")[:levels]
        self._address = np.uint64((1 << self.mode.physical_bits) - (1 << 12))

    def root(self, register: int) -> int:
        return register & (1 << 52) - (1 << 12)

    def kinds(self, entries: Words, level: int) -> tuple[Bytes, Words]:
        bad = x86_64.reserved_bits(entries, level, self.mode)
        leaf = np.ones(entries.shape, bool) if level == 1 else _bit(entries, 7) & np.bool_(level < 4)
        kinds = np.where(leaf, Kind.LEAF, Kind.TABLE).astype(np.uint8)
        if bad.any():
            beyond = bad & np.uint64((1 << 52) - (1 << self.mode.physical_bits)) != 0
            kinds[bad != 0] = Kind.RESERVED
            kinds[beyond] = Kind.BEYOND
        return kinds, bad

    def next_tables(self, entries: Words) -> Words:
        return entries & self._address

    def frames(self, entries: Words, level: int) -> Words:
        return entries & self._address & np.uint64(_ONES & -(1 << self.shifts[level - 1]))

    def narrowed(self, locks: Bytes, entries: Words) -> Bytes:
        # U/S is bit 2, R/W bit 1, XD bit 63: the last to bit 2, beside the two others upside down.
        grants = entries.astype(np.uint8)
        user, write = grants >> np.uint8(2) & np.uint8(1), grants & np.uint8(2)
        execute = (entries >> np.uint64(61)).astype(np.uint8) & np.uint8(_NO_EXECUTE)
        return np.asarray(locks | (user | write) ^ np.uint8(_NO_USER | _NO_WRITE) | execute)

    def rights(self, locks: Bytes, leaves: Words) -> Flags:
        locks = self.narrowed(locks, leaves)
        user, write, execute = (locks & lock == 0 for lock in (_NO_USER, _NO_WRITE, _NO_EXECUTE))
        smep = np.bool_(bool(self.registers.smep))
        return _flags(
            (Right.USER_READ, user),
            (Right.USER_WRITE, user & write),
            (Right.USER_EXECUTE, user & execute),
            (Right.READ, np.ones_like(user)),
            (Right.WRITE, write),  # with CR0.WP
            (Right.EXECUTE, execute & ~(user & smep)),
            (Right.GLOBAL, _bit(leaves, 8)),
            (Right.ACCESSED, _bit(leaves, 5)),
            (Right.DIRTY, _bit(leaves, 6)),
        )

    def memory(self, leaves: Words, level: int) -> Bytes:
        # 4.9.2: PAT is bit 7 in a page's entry and bit 12 in a larger leaf's; PCD and PWT are bits 4 and 3.
        low = leaves.astype(np.uint16)
        pat = low >> np.uint16(7 if level == 1 else 12) & np.uint16(1)
        return (low >> np.uint16(3) & np.uint16(3) | pat << np.uint16(2)).astype(np.uint8)

    def memory_name(self, memory: int) -> str:
        pat = self.registers.memory_types
        return f"PAT{memory}" if pat is None else _PAT_NAMES.get(pat >> 8 * memory & 7, f"PAT{memory}")

    def is_cached(self, memory: int) -> bool | None:
        pat = self.registers.memory_types
        return None if pat is None else pat >> 8 * memory & 7 in (4, 5, 6)

    def walk(self, fetch: Callable[[int, Words], Words], roots: list[int], address: int) -> Walked:
        found = x86_64.translate(
            lambda level, at, _cases: fetch(level, at), roots[0], np.array([address], np.uint64), self.mode
        )
        ended, level = x86_64.Ended(int(found.ended[0])), int(found.level[0])
        name = self.level_names[level - 1] if level else ""
        fault = {
            x86_64.Ended.MAPPED: "",
            x86_64.Ended.ABSENT: f"not present in the {name}: page fault, error code bit P is 0",
            x86_64.Ended.RESERVED: f"reserved bits in the {name}: page fault, error code bits P, RSVD are 1",
            x86_64.Ended.NON_CANONICAL: "not canonical: general protection or stack fault, no walk",
        }[ended]
        user, write, execute = bool(found.user[0]), bool(found.writable[0]), not found.no_execute[0]
        smep = bool(self.registers.smep)
        rights = _rights(
            (Right.USER_READ, user), (Right.USER_WRITE, user and write),
            (Right.USER_EXECUTE, user and execute), (Right.READ, True), (Right.WRITE, write),
            (Right.EXECUTE, execute and not (user and smep)),
            (Right.GLOBAL, bool(found.is_global[0])), (Right.DIRTY, bool(found.dirty[0])),
        )  # fmt: skip
        entries = [int(words[0]) for words in found.entries]
        size = 1 << int(found.shift[0])
        return Walked(not fault, fault, int(found.physical[0]), size, rights, int(found.memory[0]), entries)


def _rights(*parts: tuple[Right, bool]) -> Right:
    return Right(sum(right for right, granted in parts if granted))


_PXN_LOCK, _UXN_LOCK, _USER_LOCK, _WRITE_LOCK = 1, 2, 4, 8  # a table descriptor's bits 59 to 62
_DEVICES = {0x0: "Device-nGnRnE", 0x4: "Device-nGnRE", 0x8: "Device-nGRE", 0xC: "Device-GRE"}
_SHARES = ("", "?", " outer", " inner")
_GEOMETRIES = {4: ((39, 48), (2, 3), (16, 16, 16, 1)), 16: ((36, 47, 48), (2,), (128, 32, 1, 1)),
               64: ((42, 48), (2,), (32, 32, 1, 1))}  # fmt: skip
"""By granule in KiB: widths of addresses, levels that may hold blocks (D8.3.1), contiguous runs (D8.7.1)."""


class Arm(Format):
    """VMSAv8-64 stage 1 (Arm ARM D8.3); TTBR0_EL1 and TTBR1_EL1 with one granule and width."""

    isa = "arm64"

    def __init__(self, name: str, granule: int, virtual_bits: int, registers: Registers) -> None:
        widths, self._blocks, self.contiguous = _GEOMETRIES[granule]
        if virtual_bits not in widths:
            raise ConfigError("format", name, f"widths of a {granule}K granule are {widths}")
        first = (granule << 10).bit_length() - 1
        shifts = tuple(range(first, virtual_bits, first - 3))
        super().__init__(name, shifts, virtual_bits - shifts[-1], registers)
        bits = registers.physical_bits or 48
        self.mode = arm64.Mode(first, (virtual_bits, virtual_bits), bits)
        self.halves = (Half("TTBR0_EL1", 0), Half("TTBR1_EL1", -(1 << virtual_bits) & _ONES))
        self.level_names = tuple(f"L{3 - k}" for k in range(len(shifts)))
        self._output = np.uint64((1 << 48) - (1 << first))
        self._beyond = np.uint64((1 << 48) - (1 << bits))

    def root(self, register: int) -> int:
        return register & (1 << 48) - 2

    def kinds(self, entries: Words, level: int) -> tuple[Bytes, Words]:
        second = _bit(entries, 1)
        if level == 1:
            kinds = np.where(second, Kind.LEAF, Kind.RESERVED).astype(np.uint8)
        else:
            block = Kind.LEAF if level in self._blocks else Kind.RESERVED
            kinds = np.where(second, Kind.TABLE, block).astype(np.uint8)
        beyond = entries & self._beyond
        kinds[(beyond != 0) & (kinds != Kind.RESERVED)] = Kind.BEYOND
        return kinds, np.where(kinds == Kind.RESERVED, np.uint64(2), beyond)

    def next_tables(self, entries: Words) -> Words:
        return entries & self._output

    def frames(self, entries: Words, level: int) -> Words:
        return entries & self._output & np.uint64(_ONES & -(1 << self.shifts[level - 1]))

    def narrowed(self, locks: Bytes, entries: Words) -> Bytes:
        return locks | (entries >> np.uint64(59) & np.uint64(15)).astype(np.uint8)

    def rights(self, locks: Bytes, leaves: Words) -> Flags:
        user = _bit(leaves, 6) & (locks & _USER_LOCK == 0)
        write = ~_bit(leaves, 7) & (locks & _WRITE_LOCK == 0)
        user_execute = ~_bit(leaves, 54) & (locks & _UXN_LOCK == 0)
        execute = ~_bit(leaves, 53) & (locks & _PXN_LOCK == 0) & ~(user & write)
        if self.registers.wxn:
            user_execute, execute = user_execute & ~(user & write), execute & ~write
        return _flags(
            (Right.USER_READ, user),
            (Right.USER_WRITE, user & write),
            (Right.USER_EXECUTE, user_execute),
            (Right.READ, np.ones_like(user)),
            (Right.WRITE, write),
            (Right.EXECUTE, execute),
            (Right.GLOBAL, ~_bit(leaves, 11)),
            (Right.ACCESSED, _bit(leaves, 10)),
            (Right.DIRTY, write),
            (Right.CONTIGUOUS, _bit(leaves, 52)),
        )

    def memory(self, leaves: Words, level: int) -> Bytes:
        share = leaves >> np.uint64(8) & np.uint64(3)
        return (leaves >> np.uint64(2) & np.uint64(7) | share << np.uint64(3)).astype(np.uint8)

    def _attribute(self, memory: int) -> int | None:
        mair = self.registers.memory_types
        return None if mair is None else mair >> 8 * (memory & 7) & 0xFF

    def memory_name(self, memory: int) -> str:
        attribute, share = self._attribute(memory), _SHARES[memory >> 3]
        if attribute is None:
            return f"Attr{memory & 7}{share}"
        if attribute & 0xF0 == 0:
            return _DEVICES.get(attribute, f"Device-{attribute:#x}")
        if attribute == 0x44:
            return "Normal-NC"  # always outer shareable, whatever SH says
        kinds = {0xFF: "WB", 0xBB: "WT", 0xEE: "WB-RA", 0xAA: "WT-RA"}
        return f"Normal-{kinds.get(attribute, f'{attribute:#x}')}{share}"

    def is_cached(self, memory: int) -> bool | None:
        attribute = self._attribute(memory)
        return None if attribute is None else attribute & 0xF0 != 0 and attribute != 0x44

    def walk(self, fetch: Callable[[int, Words], Words], roots: list[int], address: int) -> Walked:
        found = arm64.translate(
            lambda level, at, _cases: fetch(4 - level, at),
            (roots[0], roots[1]),
            np.array([address], np.uint64),
            self.mode,
        )
        ended, at = arm64.Ended(int(found.ended[0])), int(found.level[0])
        entries = [int(words[0]) for words in found.entries[::-1]][: self.levels]
        fault = {
            arm64.Ended.MAPPED: "" if found.accessed[0] else f"access flag fault, level {at}",
            arm64.Ended.TRANSLATION: f"translation fault, level {at}",
            arm64.Ended.ADDRESS_SIZE: f"address size fault, level {at}",
        }[ended]
        user, write = bool(found.user_data[0]), bool(found.writable[0])
        wxn = bool(self.registers.wxn)
        rights = _rights(
            (Right.USER_READ, user), (Right.USER_WRITE, user and write),
            (Right.USER_EXECUTE, bool(found.user_execute[0]) and not (wxn and user and write)),
            (Right.READ, True), (Right.WRITE, write),
            (Right.EXECUTE, bool(found.privileged_execute[0]) and not (write and (user or wxn))),
            (Right.GLOBAL, bool(found.is_global[0])), (Right.ACCESSED, bool(found.accessed[0])),
        )  # fmt: skip
        memory = int(found.memory[0]) | int(found.shareability[0]) << 3
        mapped = ended is arm64.Ended.MAPPED
        size = 1 << int(found.shift[0])
        return Walked(mapped, fault, int(found.physical[0]), size, rights, memory, entries)


def format_of(name: str, registers: Registers | None = None) -> Format:
    """The format of that name under what is known of the registers. ConfigError for a name there is not."""
    registers = Registers() if registers is None else registers
    if name in ("x86_64-4level", "x86_64-5level"):
        return X86(name, int(name[7]), registers)
    parts = _ARM_NAME.fullmatch(name)
    if parts is None:
        raise ConfigError("format", name, "one of " + ", ".join(NAMES))
    return Arm(name, int(parts[1]), int(parts[2] or 48), registers)
