"""Other people's page tables of ARM64, all entries of a level at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from aether_emu.errors import ConfigError
from aether_emu.verify.spec import arm64
from aether_emu.verify.spec.fields import decode
from aether_emu.verify.tables.formats import (
    ONES,
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

_PXN_LOCK, _UXN_LOCK, _USER_LOCK, _WRITE_LOCK = 1, 2, 4, 8  # a table descriptor's bits 59 to 62
_DEVICES = {0x0: "Device-nGnRnE", 0x4: "Device-nGnRE", 0x8: "Device-nGRE", 0xC: "Device-GRE"}
_SHARES = ("", "?", " outer", " inner")
_WIDTHS = {4: (39, 48, 52), 16: (36, 47, 48, 52), 64: (42, 48, 52)}
"""Widths of addresses that kernels use, by granule in KiB; 52 bits of 4K and 16K need LPA2 (D8.1)."""

_CONTIGUOUS = {4: (16, 16, 16), 16: (128, 32), 64: (32, 32)}
"""Entries of a contiguous run, by granule, level 1 first (D8.7.1)."""


class Arm(Format):
    """VMSAv8-64 stage 1 (Arm ARM D8.3); TTBR0_EL1 and TTBR1_EL1 with one granule and width.

    `wide`: descriptors of 52-bit addresses, by LPA where pages have 64K, else by LPA2. Without it, bits
    that would then belong to an address are refused when they are set: nobody knows what they mean.
    """

    isa = "arm64"

    def __init__(
        self, name: str, granule: int, virtual_bits: int, registers: Registers, *, wide: bool = False
    ) -> None:
        widths = tuple(bits for bits in _WIDTHS[granule] if wide or bits < 52 or granule == 64)
        if virtual_bits not in widths:
            raise ConfigError("format", name, f"widths of a {granule}K granule are {widths}")
        first = (granule << 10).bit_length() - 1
        shifts = tuple(range(first, virtual_bits, first - 3))
        self.address_bits = 52 if wide else 48
        super().__init__(name, shifts, virtual_bits - shifts[-1], registers)
        self.contiguous = (*_CONTIGUOUS[granule], *(1,) * len(shifts))[: len(shifts)]
        bits = registers.physical_bits or self.address_bits
        refused = 0 if wide else 0xF << 12 if granule == 64 else 3 << 48
        self.mode = arm64.Mode(
            first, (virtual_bits, virtual_bits), bits, wide=wide, encryption=self.encryption, refused=refused
        )
        self.halves = (Half("TTBR0_EL1", 0), Half("TTBR1_EL1", -(1 << virtual_bits) & ONES))
        self.level_names = tuple(f"L{3 - k}" for k in range(len(shifts)))
        self._shareable = granule == 64 or not wide
        self._blocks = tuple(4 - level for level in arm64.blocks_of(self.mode))

    def root(self, register: int) -> int:
        if not self.mode.wide:
            return register & (1 << 48) - 2 & ~self.encryption
        # D19.2.155: the table's address has its bits 51 to 48 in bits 5 to 2.
        return (register & (1 << 48) - (1 << 6) | (register >> 2 & 0xF) << 48) & ~self.encryption

    def kinds(self, entries: Words, level: int) -> tuple[Bytes, Words]:
        second = bit(entries, 1)
        if level == 1:
            kinds = np.where(second, Kind.LEAF, Kind.RESERVED).astype(np.uint8)
        else:
            block = Kind.LEAF if level in self._blocks else Kind.RESERVED
            kinds = np.where(second, Kind.TABLE, block).astype(np.uint8)
        stray = entries & np.uint64(self.mode.refused)
        wrong = np.where(kinds == Kind.RESERVED, np.uint64(2), stray)
        kinds[stray != 0] = Kind.RESERVED
        beyond = self.next_tables(entries) & np.uint64((1 << 52) - (1 << self.mode.physical_bits))
        kinds[(beyond != 0) & (kinds != Kind.RESERVED)] = Kind.BEYOND
        return kinds, np.where(kinds == Kind.RESERVED, wrong, beyond)

    def addresses(self, entries: Words) -> Words:
        return arm64.output_address(entries, self.mode)

    def narrowed(self, locks: Bytes, entries: Words) -> Bytes:
        return locks | (entries >> np.uint64(59) & np.uint64(15)).astype(np.uint8)

    def rights(self, locks: Bytes, leaves: Words) -> Flags:
        user = bit(leaves, 6) & (locks & _USER_LOCK == 0)
        write = ~bit(leaves, 7) & (locks & _WRITE_LOCK == 0)
        user_execute = ~bit(leaves, 54) & (locks & _UXN_LOCK == 0)
        execute = ~bit(leaves, 53) & (locks & _PXN_LOCK == 0) & ~(user & write)
        if self.registers.wxn:
            user_execute, execute = user_execute & ~(user & write), execute & ~write
        return flags(
            (Right.USER_READ, user),
            (Right.USER_WRITE, user & write),
            (Right.USER_EXECUTE, user_execute),
            (Right.READ, np.ones_like(user)),
            (Right.WRITE, write),
            (Right.EXECUTE, execute),
            (Right.GLOBAL, ~bit(leaves, 11)),
            (Right.ACCESSED, bit(leaves, 10)),
            (Right.DIRTY, write),
            (Right.CONTIGUOUS, bit(leaves, 52)),
        )

    def types(self, leaves: Words, level: int) -> Bytes:
        if not self._shareable:  # TCR_EL1.SHn says it of all, and Linux has inner shareable there
            return (leaves >> np.uint64(2) & np.uint64(7) | np.uint64(3 << 3)).astype(np.uint8)
        share = leaves >> np.uint64(8) & np.uint64(3)
        return (leaves >> np.uint64(2) & np.uint64(7) | share << np.uint64(3)).astype(np.uint8)

    def _attribute(self, memory: int) -> int | None:
        mair = self.registers.memory_types
        return None if mair is None else mair >> 8 * (memory & 7) & 0xFF

    def type_name(self, memory: int) -> str:
        attribute, share = self._attribute(memory), _SHARES[memory >> 3]
        if attribute is None:
            return f"Attr{memory & 7}{share}"
        if attribute & 0xF0 == 0:
            return _DEVICES.get(attribute, f"Device-{attribute:#x}")
        if attribute == 0x44:
            return "Normal-NC"  # always outer shareable, whatever SH says
        kinds = {0xFF: "WB", 0xBB: "WT", 0xEE: "WB-RA", 0xAA: "WT-RA"}
        return f"Normal-{kinds.get(attribute, f'{attribute:#x}')}{share}"

    def is_type_cached(self, memory: int) -> bool | None:
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
        fault = {
            arm64.Ended.MAPPED: "" if found.accessed[0] else f"access flag fault, level {at}",
            arm64.Ended.TRANSLATION: f"translation fault, level {at}",
            arm64.Ended.ADDRESS_SIZE: f"address size fault, level {at}",
            arm64.Ended.RESERVED: f"reserved bits {self.mode.refused:#x} are not all 0, level {at}: they are "
            f"address bits in {self.name}-lpa{'' if self._shareable and self.page == 1 << 16 else '2'}",
        }[ended]
        user, write = bool(found.user_data[0]), bool(found.writable[0])
        wxn = bool(self.registers.wxn)
        rights = rights_of(
            (Right.USER_READ, user), (Right.USER_WRITE, user and write),
            (Right.USER_EXECUTE, bool(found.user_execute[0]) and not (wxn and user and write)),
            (Right.READ, True), (Right.WRITE, write),
            (Right.EXECUTE, bool(found.privileged_execute[0]) and not (write and (user or wxn))),
            (Right.GLOBAL, bool(found.is_global[0])), (Right.ACCESSED, bool(found.accessed[0])),
        )  # fmt: skip
        mapped = ended is arm64.Ended.MAPPED
        memory = self.marked(int(found.memory[0]) | int(found.shareability[0]) << 3, found.entries[at])
        size = 1 << int(found.shift[0])
        return Walked(mapped, fault, int(found.physical[0]), size, rights, memory)

    def fields(self, entry: int, level: int, *, leaf: bool) -> str:
        return decode(self.isa, entry, level, leaf=leaf, shareable=self._shareable)
