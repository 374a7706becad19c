"""Other people's page tables of x86_64, all entries of a level at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from aether_emu.verify.spec import x86_64
from aether_emu.verify.spec.fields import decode
from aether_emu.verify.tables.formats import (
    Bytes,
    Flags,
    Format,
    Half,
    Kind,
    Right,
    Walked,
    Words,
    bit,
    flags,
    rights_of,
)
from aether_emu.verify.tables.notes import Registers

_PAT_NAMES = {0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB", 7: "UC-"}  # Intel SDM 3A table 12-10
_NO_USER, _NO_WRITE, _NO_EXECUTE = 1, 2, 4  # what x86_64 levels forbid


class X86(Format):
    """x86_64 with 4 or 5 levels (Intel SDM 3A 4.5)."""

    isa = "x86_64"
    contiguous = (1,) * 5
    address_bits = 52

    def __init__(self, name: str, levels: int, registers: Registers) -> None:
        super().__init__(name, tuple(12 + 9 * k for k in range(levels)), 9, registers)
        bits = registers.physical_bits or 52
        self.mode = x86_64.Mode(levels, bits, registers.nxe is not False, self.encryption)
        self.halves = (Half("CR3", 0),)
        self.level_names = ("PT", "PD", "PDPT", "PML4", "PML5")[:levels]

    def root(self, register: int) -> int:
        return register & (1 << 52) - (1 << 12) & ~self.encryption

    def kinds(self, entries: Words, level: int) -> tuple[Bytes, Words]:
        bad = x86_64.reserved_bits(entries, level, self.mode)
        leaf = np.ones(entries.shape, bool) if level == 1 else bit(entries, 7) & np.bool_(level < 4)
        kinds = np.where(leaf, Kind.LEAF, Kind.TABLE).astype(np.uint8)
        if bad.any():
            beyond = bad & np.uint64((1 << 52) - (1 << self.mode.physical_bits)) != 0
            kinds[bad != 0] = Kind.RESERVED
            kinds[beyond] = Kind.BEYOND
        return kinds, bad

    def addresses(self, entries: Words) -> Words:
        return entries & np.uint64((1 << 52) - (1 << 12))

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
        return flags(
            (Right.USER_READ, user),
            (Right.USER_WRITE, user & write),
            (Right.USER_EXECUTE, user & execute),
            (Right.READ, np.ones_like(user)),
            (Right.WRITE, write),  # with CR0.WP
            (Right.EXECUTE, execute & ~(user & smep)),
            (Right.GLOBAL, bit(leaves, 8)),
            (Right.ACCESSED, bit(leaves, 5)),
            (Right.DIRTY, bit(leaves, 6)),
        )

    def types(self, leaves: Words, level: int) -> Bytes:
        # 4.9.2: PAT is bit 7 in a page's entry and bit 12 in a larger leaf's; PCD and PWT are bits 4 and 3.
        low = leaves.astype(np.uint16)
        pat = low >> np.uint16(7 if level == 1 else 12) & np.uint16(1)
        return (low >> np.uint16(3) & np.uint16(3) | pat << np.uint16(2)).astype(np.uint8)

    def type_name(self, memory: int) -> str:
        pat = self.registers.memory_types
        return f"PAT{memory}" if pat is None else _PAT_NAMES.get(pat >> 8 * memory & 7, f"PAT{memory}")

    def is_type_cached(self, memory: int) -> bool | None:
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
        rights = rights_of(
            (Right.USER_READ, user), (Right.USER_WRITE, user and write),
            (Right.USER_EXECUTE, user and execute), (Right.READ, True), (Right.WRITE, write),
            (Right.EXECUTE, execute and not (user and smep)),
            (Right.GLOBAL, bool(found.is_global[0])), (Right.DIRTY, bool(found.dirty[0])),
        )  # fmt: skip
        size = 1 << int(found.shift[0])
        memory = self.marked(int(found.memory[0]), found.entries[level - 1])
        return Walked(not fault, fault, int(found.physical[0]), size, rights, memory)

    def fields(self, entry: int, level: int, *, leaf: bool) -> str:
        return decode(self.isa, entry, level, leaf=leaf)
