"""A page-table format that no processor has: what proves that `mm` knows formats only through their data.

    63  62  61..60  59..40    39..14   13..10    9  8..6  5     4  3   2     1   0
    P   T   key     reserved  address  software  A  type  USER  D  nG  EXEC  -   READ-ONLY

16 KiB pages, three levels of 7, 8 and 9 bits (38 bits of address), leaves of 16 KiB and 8 MiB. Almost
everything is the other way round from x86_64: presence is the top bit, writing is the absence of a bit,
execution the presence of one, T marks a table and its absence a leaf. The MMU updates neither A nor D,
and a live entry may not become another live one. Bits 6 and 7 of a memory type are malformed.

An entry without P that is not zero is held: value in 56..14, kind in 3..0.
"""

from __future__ import annotations

from aether_emu.arch.paging import (
    WORD,
    Absent,
    Attributes,
    BitField,
    E,
    Entry,
    Held,
    HeldKind,
    Leaf,
    Level,
    Malformed,
    MemoryType,
    PageFlags,
    PageTableFormat,
    Reach,
    Table,
)
from aether_emu.errors import EncodingError

P, T = 1 << 63, 1 << 62
READ_ONLY, EXEC, NOT_GLOBAL, D, USER, A = 1 << 0, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 9
_ADDRESS = (1 << 40) - (1 << 14)
_RESERVED = (1 << 60) - (1 << 40) | 1 << 1
_GRANTED = ((PageFlags.EXECUTE, EXEC), (PageFlags.DIRTY, D), (PageFlags.USER, USER), (PageFlags.ACCESSED, A))
_DENIED = ((PageFlags.WRITE, READ_ONLY), (PageFlags.GLOBAL, NOT_GLOBAL))
_KINDS = {kind.value: kind for kind in HeldKind}


class InventedFormat(PageTableFormat):
    """The one mode there is."""

    name = "invented"
    levels = (Level(14, 9, True, "page"), Level(23, 8, True, "block"), Level(31, 7, False, "root"))
    address_mask = _ADDRESS
    present_mask = P
    physical_bits = 40
    frozen_bits = _ADDRESS | T
    contiguous_bit = 0
    hardware_accessed = False
    hardware_dirty = False

    def leaf_bits(self, attributes: Attributes, level: int = 1) -> int:
        if not self.levels[level - 1].leaf or not attributes.flags & PageFlags.READ:
            raise EncodingError(f"{self.name}: no such leaf at level {level}")
        if attributes.key >> 2 or attributes.software >> 4:
            raise EncodingError(f"{self.name}: the key or the software bits do not fit")
        if attributes.flags & PageFlags.GUARDED or attributes.contiguous:
            raise EncodingError(f"{self.name}: no guarded pages, no contiguous hint")
        bits = P | attributes.key << 60 | attributes.software << 10 | attributes.memory << 6
        for flag, bit in _GRANTED:
            bits |= bit if attributes.flags & flag else 0
        for flag, bit in _DENIED:
            bits |= 0 if attributes.flags & flag else bit
        return bits

    def table_entry(self, address: int, reach: Reach = Reach.ANY) -> int:
        return address | P | T | EXEC | (0 if reach is Reach.SUPERVISOR else USER)

    def held_entry(self, held: Held) -> int:
        if held.value >> 44:
            raise EncodingError(f"{self.name}: a held value has 44 bits")
        return held.value << 14 | held.kind.value

    def leaf_address(self, entry: int, level: int) -> int:
        return entry & _ADDRESS & -self.levels[level - 1].size

    def writable(self, entry: E) -> E:
        return entry & 1 ^ 1

    def accessed(self, entry: E) -> E:
        return entry >> 9 & 1

    def dirty(self, entry: E) -> E:
        return entry >> 4 & 1

    def touch(self, entry: E) -> E:
        return entry | A

    def soil(self, entry: E) -> E:
        return entry | D

    def age(self, entry: E) -> E:
        return entry & (WORD ^ A)

    def clean(self, entry: E) -> E:
        return entry & (WORD ^ D)

    def write_protect(self, entry: E) -> E:
        return entry | READ_ONLY

    def decode(self, entry: int, level: int) -> Entry:
        if not entry & P:
            kind = _KINDS.get(entry & 0xF)
            return Held(kind, entry >> 14) if kind and not entry & 0x3FF0 and not entry >> 58 else Absent()
        if entry & _RESERVED:
            return Malformed(entry & _RESERVED)
        flags = PageFlags.READ
        for flag, bit in _GRANTED:
            flags |= flag if entry & bit else PageFlags(0)
        for flag, bit in _DENIED:
            flags |= PageFlags(0) if entry & bit else flag
        if entry & T:
            return Malformed(T) if level == 1 else Table(entry & _ADDRESS, flags)
        misplaced = entry & _ADDRESS & self.levels[level - 1].size - 1
        kind_of_memory = entry >> 6 & 7
        if not self.levels[level - 1].leaf or misplaced or kind_of_memory >= len(MemoryType):
            return Malformed(misplaced or entry & (T | 7 << 6))
        memory, key, software = MemoryType(kind_of_memory), entry >> 60 & 3, entry >> 10 & 15
        return Leaf(self.leaf_address(entry, level), Attributes(flags, memory, key, software))

    def fields(self, entry: int, level: int) -> tuple[BitField, ...]:
        return (
            BitField("RO", 0, 1, "read-only"),
            BitField("ADDR", 14, 26, "page or table"),
            BitField("P", 63, 1, "present"),
        )
