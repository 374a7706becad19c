"""What page-table entries mean: one vocabulary for a format's answer and for the specification's.

A `Meaning` has one element a case. `by_specification` reads entries with the walkers of `verify.spec`
below tables that lead to them; `by_attributes` and `by_decoding` put a format's words into the same form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import product

import numpy as np

from aether_emu.arch.arm64.registers import MAIR_VALUE
from aether_emu.arch.paging import (
    Attributes,
    Entry,
    Leaf,
    Malformed,
    MemoryType,
    PageFlags,
    PageTableFormat,
    Table,
)
from aether_emu.arch.x86_64.registers import PAT_VALUE
from aether_emu.verify.cases.cases import Bits, Numbers, Words
from aether_emu.verify.spec import arm64, x86_64

# What the manuals call the types: Intel SDM 3A table 12-10, Arm ARM D19.2 (MAIR_EL1).
_PAT = {
    MemoryType.UNCACHED: 0, MemoryType.WRITE_COMBINING: 1, MemoryType.WRITE_THROUGH: 4,
    MemoryType.WRITE_PROTECTED: 5, MemoryType.WRITE_BACK: 6, MemoryType.UNCACHED_MINUS: 7,
}  # fmt: skip
_MAIR = {
    MemoryType.WRITE_BACK: 0xFF, MemoryType.WRITE_THROUGH: 0xBB, MemoryType.WRITE_COMBINING: 0x44,
    MemoryType.UNCACHED_MINUS: 0x0C, MemoryType.UNCACHED: 0x00, MemoryType.WRITE_PROTECTED: 0xAA,
}  # fmt: skip
_PAT_BYTES = np.array([PAT_VALUE >> 8 * index & 7 for index in range(8)])
_MAIR_BYTES = np.array([MAIR_VALUE >> 8 * index & 0xFF for index in range(8)])

# Entries that restrict nothing, for the way from a table under judgement down to a page (no addresses).
_X86_OPEN = 0x67  # P, W, U, A, D
_ARM_TABLE, _ARM_USER, _ARM_PRIVILEGED = 0b11, 0x743, 0x703  # AF, inner shareable, page; AP[1] or not

RIGHTS = ("user_read", "user_write", "user_execute", "read", "write", "execute")


class Kind(IntEnum):
    """What an entry is to an MMU."""

    NOTHING = 0
    LEAF = 1
    TABLE = 2
    MALFORMED = 3


@dataclass(frozen=True, slots=True)
class Shape:
    """A format's geometry, and what the CPU has switched on that decides how entries are read."""

    isa: str
    shifts: tuple[int, ...]  # level 1 first
    virtual_bits: int
    physical_bits: int
    nxe: bool = True  # x86: EFER.NXE
    pke: bool = True  # x86: CR4.PKE or CR4.PKS

    @property
    def top(self) -> int:
        return len(self.shifts)

    @property
    def page(self) -> int:
        return 1 << self.shifts[0]

    @property
    def codes(self) -> dict[MemoryType, int]:
        """Memory types as the manual encodes them."""
        return _PAT if self.isa == "x86_64" else _MAIR


@dataclass(frozen=True, slots=True)
class Meaning:
    """Rights are those of now: a write that faults to note DIRTY is not permitted.

    `read`, `write`, `execute` are the supervisor's, without SMEP, SMAP, PAN. For a table the rights are
    what it leaves to the leaves of each. `bits` are the offending ones: those that a fault is for, or
    in a leaf or table those that must be 0 and are ignored.
    """

    kind: Numbers
    address: Words
    user_read: Bits
    user_write: Bits
    user_execute: Bits
    read: Bits
    write: Bits
    execute: Bits
    is_global: Bits
    accessed: Bits
    dirty: Bits
    guarded: Bits
    contiguous: Bits
    coherent: Bits  # Arm: inner shareable
    memory: Numbers  # in the manual's code
    key: Numbers
    bits: Words

    def agrees(self, other: Meaning, *, without: Sequence[str] = ()) -> Bits:
        """The cases where both say the same, but for the fields `without`."""
        same = np.full(self.kind.size, True)
        for name in Meaning.__slots__:
            if name not in without:
                same &= getattr(self, name) == getattr(other, name)
        return same

    def in_words(self, index: int) -> str:
        """One case for a person."""
        kind = Kind(int(self.kind[index]))
        if kind is Kind.NOTHING:
            return "nothing"
        if kind is Kind.MALFORMED:
            return f"malformed: {int(self.bits[index]):#x}"
        flags = (*RIGHTS, "is_global", "accessed", "dirty", "guarded", "contiguous", "coherent")
        said = " ".join(name.replace("_", "-") for name in flags if getattr(self, name)[index])
        more = f", must be 0: {int(self.bits[index]):#x}" if self.bits[index] else ""
        if kind is Kind.LEAF:
            more = f", memory {int(self.memory[index]):#x}, key {int(self.key[index])}{more}"
        return f"{kind.name.lower()} {int(self.address[index]):#x}: {said}{more}"


def nothing(count: int) -> Meaning:
    """Entries that mean nothing to an MMU."""
    no, zero, none = np.zeros(count, bool), np.zeros(count, np.int64), np.zeros(count, np.uint64)
    return Meaning(zero, none, *(no,) * 12, zero, zero, none)


def bit(words: Words, position: int) -> Bits:
    """Whether a bit is set, for each word."""
    return np.asarray((words >> np.uint64(position) & np.uint64(1)) != 0)


def must_be_zero(shape: Shape, level: int, words: Words, table: Bits) -> Words:
    """Arm's RES0 address bits (D8.3.1). Bit 16 of a block is nT, which is none of them."""
    inside = shape.page - 1 & ~0xFFF
    block = (1 << shape.shifts[level - 1]) - 1 & ~0xFFF
    if level > 1:
        block &= ~(1 << 16)
    return np.where(table, words & np.uint64(inside), words & np.uint64(block))


# ---- by the specification


@dataclass(frozen=True, slots=True)
class Path:
    """The way to an entry: `homes[k]` is the table of level k+1, `above[k]` an entry of level k+1.

    `above` matters from one level above the entry's on; `addresses` are virtual, one a case.
    """

    homes: list[int]
    above: list[int]
    addresses: Words


class _Walk:
    """Feeds a walker: the tables above, the words under judgement, and below them an open way to a page."""

    def __init__(self, shape: Shape, level: int, words: Words, path: Path, table: int, page: int) -> None:
        self.shape, self.level, self.words, self.path = shape, level, words, path
        self.table, self.page = table, page
        self.strayed = np.zeros(words.size, bool)
        self.below = np.zeros(words.size, bool)
        self.target = np.zeros(words.size, np.uint64)

    def fetch(self, ours: int, at: Words, cases: Numbers) -> Words:
        table = at & np.uint64(-self.shape.page & (1 << 64) - 1)
        if ours >= self.level:
            self.strayed[cases] |= table != np.uint64(self.path.homes[ours - 1])
            if ours == self.level:
                return self.words[cases]
            return np.full(cases.size, self.path.above[ours - 1], np.uint64)
        if ours == self.level - 1:
            self.below[cases] = True
            self.target[cases] = table
        return np.full(cases.size, self.page if ours == 1 else self.table, np.uint64)


def by_specification(shape: Shape, level: int, words: Words, path: Path) -> Meaning:
    """What the manual makes of entries at `level` at the end of a path."""
    if shape.isa == "x86_64":
        return _by_intel(shape, level, words, path)
    return _by_arm(shape, level, words, path)


def _by_intel(shape: Shape, level: int, words: Words, path: Path) -> Meaning:
    walk = _Walk(shape, level, words, path, _X86_OPEN, _X86_OPEN)
    mode = x86_64.Mode(shape.top, shape.physical_bits, shape.nxe)
    found = x86_64.translate(walk.fetch, path.homes[-1], path.addresses, mode)
    leaf = (found.ended == x86_64.Ended.MAPPED) & (found.level == level) & ~walk.strayed
    table = walk.below & ~walk.strayed
    malformed = (found.ended == x86_64.Ended.RESERVED) & (found.level == level) & ~walk.strayed
    there = leaf | table
    rights = {}
    for name, (user, access) in zip(RIGHTS, product((True, False), x86_64.Access), strict=True):
        kinds, users = np.full(words.size, int(access)), np.full(words.size, user)
        rights[name] = there & ~x86_64.judge(found, kinds, users, x86_64.Controls(), mode).fault
    no = np.zeros(words.size, bool)
    inside = path.addresses & np.uint64((1 << shape.shifts[level - 1]) - 1)
    return Meaning(
        _kinds(leaf, table, malformed),
        np.where(leaf, found.physical - inside, np.where(table, walk.target, np.uint64(0))),
        **rights,
        is_global=leaf & found.is_global,
        accessed=there & bit(words, 5),  # 4.8
        dirty=leaf & found.dirty,
        guarded=no,
        contiguous=no,
        coherent=no,
        memory=np.where(leaf, _PAT_BYTES[found.memory], 0),
        key=np.where(leaf, found.key, 0) if shape.pke else np.zeros(words.size, np.int64),
        bits=np.where(malformed, x86_64.reserved_bits(words, level, mode), np.uint64(0)),
    )


def _by_arm(shape: Shape, level: int, words: Words, path: Path) -> Meaning:
    def walked(page: int) -> tuple[_Walk, arm64.Translation]:
        walk = _Walk(shape, level, words, path, _ARM_TABLE, page)
        root = path.homes[-1]
        found = arm64.translate(
            lambda theirs, at, cases: walk.fetch(4 - theirs, at, cases), (root, root), path.addresses, mode
        )
        return walk, replace(found, accessed=np.full(words.size, True))

    mode = arm64.Mode(shape.shifts[0], (shape.virtual_bits,) * 2, shape.physical_bits)
    walk, found = walked(_ARM_USER)
    _again, privileged = walked(_ARM_PRIVILEGED)
    here = (found.level == 4 - level) & ~walk.strayed
    leaf = (found.ended == arm64.Ended.MAPPED) & here
    table = walk.below & ~walk.strayed
    malformed = ~leaf & ~table & here & bit(words, 0)
    there = leaf | table
    rights = {}
    for name, (user, access) in zip(RIGHTS, product((True, False), arm64.Access), strict=True):
        kinds, users = np.full(words.size, int(access)), np.full(words.size, user)
        seen = found if user else privileged
        rights[name] = there & ~arm64.judge(seen, kinds, users, arm64.Controls()).fault
    beyond = words & np.uint64((1 << 48) - (1 << shape.physical_bits))
    typed = found.ended == arm64.Ended.ADDRESS_SIZE  # else the type is wrong
    is_table = bit(words, 1) & np.bool_(level > 1)
    ignored = must_be_zero(shape, level, words, is_table)
    more = np.where(leaf, bit(words, 5).astype(np.uint64) << np.uint64(5), np.uint64(0))  # NS
    more |= np.where(table, words & np.uint64(1 << 63), np.uint64(0))  # NSTable
    inside = path.addresses & np.uint64((1 << shape.shifts[level - 1]) - 1)
    # Dirty state in software: AP[2] clear, or bit 55, which Arm leaves to software.
    dirty = ~bit(words, 7) | bit(words, 55)
    return Meaning(
        _kinds(leaf, table, malformed),
        np.where(leaf, found.physical - inside, np.where(table, walk.target, np.uint64(0))),
        **rights,
        is_global=leaf & found.is_global,
        accessed=leaf & bit(words, 10),
        dirty=leaf & dirty,
        guarded=leaf & bit(words, 50),
        contiguous=leaf & bit(words, 52),
        coherent=leaf & (found.shareability == 3),
        memory=np.where(leaf, _MAIR_BYTES[found.memory], 0),
        key=np.zeros(words.size, np.int64),
        bits=np.where(
            there,
            ignored | more,
            np.where(malformed, np.where(typed, beyond | ignored, words & np.uint64(3)), np.uint64(0)),
        ),
    )


def _kinds(leaf: Bits, table: Bits, malformed: Bits) -> Numbers:
    kinds = np.where(leaf, Kind.LEAF, np.where(table, Kind.TABLE, Kind.NOTHING))
    return np.where(malformed, Kind.MALFORMED, kinds).astype(np.int64)


# ---- by a format


def by_attributes(shape: Shape, addresses: Words, asked: Sequence[Attributes], *, noted: Bits) -> Meaning:
    """What leaves with these attributes promise; `noted`: their first write needs no fault any more."""
    n = len(asked)
    flags = np.array([int(one.flags) for one in asked], np.int64)
    no = np.zeros(n, bool)
    arm = shape.isa == "arm64"
    codes = shape.codes
    return Meaning(
        np.full(n, int(Kind.LEAF), np.int64),
        addresses,
        **_leaf_rights(arm, flags, noted),
        is_global=_has(flags, PageFlags.GLOBAL),
        accessed=_has(flags, PageFlags.ACCESSED),
        dirty=_has(flags, PageFlags.DIRTY),
        guarded=_has(flags, PageFlags.GUARDED),
        contiguous=np.array([one.contiguous for one in asked], bool),
        coherent=~no if arm else no,
        memory=np.array([codes[one.memory] for one in asked], np.int64),
        key=np.array([one.key for one in asked], np.int64),
        bits=np.zeros(n, np.uint64),
    )


def _has(flags: Numbers, flag: PageFlags) -> Bits:
    return np.asarray((flags & int(flag)) != 0)


def _leaf_rights(arm: bool, flags: Numbers, noted: Bits) -> dict[str, Bits]:
    """Who may do what now. Arm: executing is for the privilege that USER names alone (see its format)."""
    read, write = _has(flags, PageFlags.READ), _has(flags, PageFlags.WRITE) & noted
    user, execute = _has(flags, PageFlags.USER), _has(flags, PageFlags.EXECUTE)
    return {
        "user_read": user & read,
        "user_write": user & write,
        "user_execute": user & execute,
        "read": read | user,
        "write": write,
        "execute": execute & ~user if arm else execute,
    }


def _table_rights(arm: bool, flags: Numbers, supervisor: Numbers) -> dict[str, Bits]:
    """What tables leave. Arm: APTable takes reading and writing from users, executing is UXNTable's."""
    user, execute = _has(flags, PageFlags.USER), _has(flags, PageFlags.EXECUTE)
    return {
        "user_read": user & _has(flags, PageFlags.READ),
        "user_write": user & _has(flags, PageFlags.WRITE),
        "user_execute": execute if arm else user & execute,
        "read": _has(supervisor, PageFlags.READ),
        "write": _has(supervisor, PageFlags.WRITE),
        "execute": _has(supervisor, PageFlags.EXECUTE),
    }


def by_decoding(fmt: PageTableFormat, shape: Shape, words: Words, decoded: Sequence[Entry]) -> Meaning:
    """What a format takes entries for."""
    n, arm = words.size, shape.isa == "arm64"
    kinds = {Leaf: Kind.LEAF, Table: Kind.TABLE, Malformed: Kind.MALFORMED}
    kind = np.array([kinds.get(type(one), Kind.NOTHING) for one in decoded], np.int64)
    leaf, table = kind == Kind.LEAF, kind == Kind.TABLE
    nobody = Attributes(PageFlags(0))
    attributes = [one.attributes if isinstance(one, Leaf) else nobody for one in decoded]
    addresses = [one.address if isinstance(one, Leaf | Table) else 0 for one in decoded]
    # Where noting DIRTY changes nothing it was noted.
    noted = np.full(n, True) if fmt.hardware_dirty else np.asarray(fmt.soil(words) == words)
    said = by_attributes(shape, np.array(addresses, np.uint64), attributes, noted=noted)
    left = np.array([int(one.flags) if isinstance(one, Table) else 0 for one in decoded], np.int64)
    supervisor = np.array(
        [
            int(one.flags if one.supervisor is None else one.supervisor) if isinstance(one, Table) else 0
            for one in decoded
        ],
        np.int64,
    )
    leaves = {name: getattr(said, name) & leaf for name in RIGHTS}
    tables = _table_rights(arm, left, supervisor)
    return replace(
        said,
        kind=kind,
        **{name: np.where(table, tables[name], leaves[name]) for name in RIGHTS},
        accessed=said.accessed & leaf | table & _has(left, PageFlags.ACCESSED),
        memory=np.where(leaf, said.memory, 0),
        bits=np.array([one.bits if isinstance(one, Malformed) else 0 for one in decoded], np.uint64),
    )
