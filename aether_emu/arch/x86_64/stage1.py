"""x86_64 stage-1 page tables: 4 and 5 levels (Intel SDM 3A 4.5, AMD APM 2 5.3).

    63  62..59  58..52    51..M     M-1..12    11..9  8  7    6  5  4    3    2   1   0
    NX  PKEY    software  reserved  address    soft.  G  PAT  D  A  PCD  PWT  U   W   P   level 1
    NX  PKEY    software  reserved  addr (*)   soft.  G  PS=1 D  A  PCD  PWT  U   W   P   2M, 1G leaf
    NX  ignored ignored   reserved  address    ign.   -  PS=0 -  A  PCD  PWT  U   W   P   table

(*) bit 12 of a large leaf is PAT, and the address bits below the leaf's size are reserved.

The present bit clear makes the rest of an entry software's. Here a non-zero one is typed:

    63..12  value      11..5  zero      4..1  kind      0  P=0

Lossless from neutral attributes to bits, but: every present entry is readable, so attributes
without READ are refused; a key other than 0 is refused without protection keys; GUARDED and the
contiguous hint do not exist. From bits to neutral attributes, two PAT encodings of one memory type
become the same type.
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

P = 1 << 0
W = 1 << 1
U = 1 << 2
PWT = 1 << 3
PCD = 1 << 4
A = 1 << 5
D = 1 << 6
PS = 1 << 7
G = 1 << 8
NX = 1 << 63

_SOFTWARE_LOW, _SOFTWARE_HIGH = 9, 52  # three bits, and seven bits
_KEY_SHIFT = 59
_ADDRESS = 0x000F_FFFF_FFFF_F000
_KIND_SHIFT, _VALUE_SHIFT = 1, 12

# The PAT MSR this project programs (Intel SDM 3A 12.12): index = PAT*4 + PCD*2 + PWT.
PAT_LAYOUT: tuple[MemoryType, ...] = (
    MemoryType.WRITE_BACK,
    MemoryType.WRITE_COMBINING,
    MemoryType.UNCACHED_MINUS,
    MemoryType.UNCACHED,
    MemoryType.WRITE_BACK,
    MemoryType.WRITE_PROTECTED,
    MemoryType.UNCACHED_MINUS,
    MemoryType.WRITE_THROUGH,
)
_PAT_INDEX = {kind: PAT_LAYOUT.index(kind) for kind in MemoryType}

# (neutral flag, bit that grants it); EXECUTE is the absence of NX.
_FLAG_BITS: tuple[tuple[PageFlags, int], ...] = (
    (PageFlags.WRITE, W),
    (PageFlags.USER, U),
    (PageFlags.GLOBAL, G),
    (PageFlags.ACCESSED, A),
    (PageFlags.DIRTY, D),
)
# The same as plain numbers: an operation on flags makes an object each time.
_VALUE_BITS = tuple((flag.value, bit) for flag, bit in _FLAG_BITS)
_READ, _EXECUTE, _GUARDED = PageFlags.READ.value, PageFlags.EXECUTE.value, PageFlags.GUARDED.value


class X86Format(PageTableFormat):
    """One paging mode of x86_64. `levels` is 4 or 5, `physical_bits` is MAXPHYADDR (at most 52)."""

    frozen_bits = contiguous_bit = 0
    hardware_accessed = True
    hardware_dirty = True
    present_mask = P
    no_execute_table = NX

    def __init__(
        self, levels: int = 4, physical_bits: int = 40, *, no_execute: bool = True, keys: bool = True
    ) -> None:
        if levels not in (4, 5) or not 32 <= physical_bits <= 52:
            raise EncodingError(
                f"x86_64 has no paging with {levels} levels and {physical_bits} physical bits"
            )
        names = ("PT", "PD", "PDPT", "PML4", "PML5")
        self.name = f"x86_64-{levels}level"
        self.levels = tuple(Level(12 + 9 * i, 9, i < 3, names[i]) for i in range(levels))
        self.physical_bits = physical_bits
        self.no_execute, self.keys = no_execute, keys
        self.address_mask = _ADDRESS & ((1 << physical_bits) - 1)
        self._reserved_high = _ADDRESS & ~self.address_mask | (0 if no_execute else NX)

    def canonical(self, va: int) -> bool:
        """One root serves both halves, so the highest translated bit counts too (Intel SDM 1 3.3.7.1)."""
        return va >> self.virtual_bits - 1 in (0, (1 << 65 - self.virtual_bits) - 1)

    def leaf_bits(self, attributes: Attributes, level: int = 1) -> int:
        flags = int(attributes.flags)
        if not flags & _READ:
            raise EncodingError(f"{self.name}: a present entry is always readable")
        if not self.levels[level - 1].leaf:
            raise EncodingError(f"{self.name}: no leaf at level {level} ({self.level_name(level)})")
        if attributes.key >> 4 or (attributes.key and not self.keys):
            raise EncodingError(f"{self.name}: protection key {attributes.key} does not exist")
        if flags & _GUARDED or attributes.contiguous:
            raise EncodingError(f"{self.name}: there are no guarded pages and no contiguous hint")
        if attributes.software >> 10:
            raise EncodingError(f"{self.name}: 10 software bits, {attributes.software:#x} does not fit")
        bits = P | (PS if level > 1 else 0)
        for flag, bit in _VALUE_BITS:
            if flags & flag:
                bits |= bit
        if not flags & _EXECUTE:
            if not self.no_execute:
                raise EncodingError(f"{self.name}: without EFER.NXE every page is executable")
            bits |= NX
        pat = _PAT_INDEX[attributes.memory]
        bits |= (pat & 1) * PWT | (pat >> 1 & 1) * PCD | (pat >> 2) << (7 if level == 1 else 12)
        software = (attributes.software & 7) << _SOFTWARE_LOW | (attributes.software >> 3) << _SOFTWARE_HIGH
        return bits | software | attributes.key << _KEY_SHIFT

    def table_entry(self, address: int, reach: Reach = Reach.ANY) -> int:
        return address | P | W | (0 if reach is Reach.SUPERVISOR else U)

    def held_entry(self, held: Held) -> int:
        if held.value >> (64 - _VALUE_SHIFT):
            raise EncodingError(f"{self.name}: held value {held.value:#x} needs more than 52 bits")
        return held.value << _VALUE_SHIFT | held.kind.value << _KIND_SHIFT

    def leaf_address(self, entry: int, level: int) -> int:
        return entry & self.address_mask & -self.levels[level - 1].size

    def writable(self, entry: E) -> E:
        return entry >> 1 & 1

    def accessed(self, entry: E) -> E:
        return entry >> 5 & 1

    def dirty(self, entry: E) -> E:
        return entry >> 6 & 1

    def touch(self, entry: E) -> E:
        return entry | A

    def soil(self, entry: E) -> E:
        return entry | D

    def age(self, entry: E) -> E:
        return entry & (WORD ^ A)

    def clean(self, entry: E) -> E:
        return entry & (WORD ^ D)

    def write_protect(self, entry: E) -> E:
        return entry & (WORD ^ W)

    def decode(self, entry: int, level: int) -> Entry:
        if not entry & P:
            return self._decode_absent(entry)
        reserved = entry & self.reserved_mask(entry, level)
        if reserved:
            return Malformed(reserved)
        flags = PageFlags.READ
        for flag, bit in _FLAG_BITS:
            if entry & bit:
                flags |= flag
        if not entry & NX:
            flags |= PageFlags.EXECUTE
        if level > 1 and not entry & PS:
            return Table(
                entry & self.address_mask, flags & ~(PageFlags.GLOBAL | PageFlags.DIRTY)
            )  # ignored bits of a table entry
        pat = bool(entry & PWT) | bool(entry & PCD) << 1 | (entry >> (7 if level == 1 else 12) & 1) << 2
        software = entry >> _SOFTWARE_LOW & 7 | (entry >> _SOFTWARE_HIGH & 0x7F) << 3
        key = entry >> _KEY_SHIFT & 15 if self.keys else 0
        return Leaf(self.leaf_address(entry, level), Attributes(flags, PAT_LAYOUT[pat], key, software))

    def next_table(self, entry: int, level: int) -> int | None:
        if level == 1 or entry & (P | PS) != P or entry & self._reserved_high:
            return None
        return entry & self.address_mask

    def reserved_mask(self, entry: int, level: int) -> int:
        """Bits of a present `entry` that the MMU answers with RSVD (Intel SDM 3A 4.5.4)."""
        mask = self._reserved_high
        if level > 1 and entry & PS:
            if not self.levels[level - 1].leaf:
                return mask | PS
            mask |= (self.levels[level - 1].size - 1) & ~0x1FFF  # below the leaf's size, above PAT
        return mask

    def fields(self, entry: int, level: int) -> tuple[BitField, ...]:
        if level == 1:
            return _PAGE_FIELDS
        return _LARGE_FIELDS[level] if entry & PS else _TABLE_FIELDS

    @staticmethod
    def _decode_absent(entry: int) -> Entry:
        kind = entry >> _KIND_SHIFT & 15
        if kind in _HELD_KINDS and not entry & 0xFE0:
            return Held(_HELD_KINDS[kind], entry >> _VALUE_SHIFT)
        return Absent()


_HELD_KINDS = {kind.value: kind for kind in HeldKind}

# Named as the Intel SDM names them (3A, tables 4-15 to 4-20): RW and US are its R/W and U/S.
_LOW_FIELDS = (
    BitField("P", 0, 1, "present"),
    BitField("RW", 1, 1, "writable"),
    BitField("US", 2, 1, "user"),
    BitField("PWT", 3, 1, "memory type bit 0"),
    BitField("PCD", 4, 1, "memory type bit 1"),
    BitField("A", 5, 1, "accessed"),
)
_LEAF_FIELDS = (
    *_LOW_FIELDS,
    BitField("D", 6, 1, "dirty"),
    BitField("G", 8, 1, "global"),
    BitField("SWL", 9, 3, "software"),
    BitField("SWH", 52, 7, "software"),
    BitField("PK", 59, 4, "protection key"),
    BitField("XD", 63, 1, "no execute"),
)
_PAGE_FIELDS = (
    *_LEAF_FIELDS,
    BitField("PAT", 7, 1, "memory type bit 2"),
    BitField("ADDR", 12, 40, "physical page"),
)
_LARGE_FIELDS = {
    level: (
        *_LEAF_FIELDS,
        BitField("PS", 7, 1, "this is a large leaf"),
        BitField("PAT", 12, 1, "memory type bit 2"),
        BitField("ADDR", shift, 52 - shift, "physical page"),
    )
    for level, shift in ((2, 21), (3, 30), (4, 39), (5, 48))  # from level 4 on PS is reserved
}
_TABLE_FIELDS = (
    *_LOW_FIELDS,
    BitField("ADDR", 12, 40, "physical table"),
    BitField("XD", 63, 1, "no execute"),
)
