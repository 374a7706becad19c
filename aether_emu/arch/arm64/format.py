"""VMSAv8-64 stage-1 tables with the 4 KiB granule and 48-bit addresses (Arm ARM D8.3).

    63  62..59  58..55    54   53   52    51   50  47..12   11  10  9..8  7..6  5   4..2   1  0
    -   ignored software  UXN  PXN  cont  DBM  GP  address  nG  AF  SH    AP    NS  AttrIx T  V
    NSTable APTable UXNTable PXNTable in 63..59 of a table descriptor

V=0 is invalid and leaves the rest to software; T tells a table (levels 2 to 4 here, Arm's 2 to 0)
from a block, and must be 1 in a level-1 page. AP[1] is user access, AP[2] read-only. A non-zero
invalid entry is typed, as on every format here:

    63..12  value      11..5  zero      4..1  kind      0  V=0

Lossless from neutral attributes to bits, but: DIRTY has no bit of its own (a writable leaf counts
as dirty), a key other than 0 is refused, and execution is always refused to the privilege that the
USER flag does not name.
"""

from __future__ import annotations

from aether_emu.arch.paging import (
    Absent,
    Attributes,
    BitField,
    Entry,
    Held,
    HeldKind,
    Leaf,
    Level,
    Malformed,
    MemoryType,
    PageFlags,
    PageTableFormat,
    Table,
)
from aether_emu.errors import EncodingError

VALID = 1 << 0
TABLE = 1 << 1
USER = 1 << 6  # AP[1]
READ_ONLY = 1 << 7  # AP[2]
INNER_SHAREABLE = 3 << 8
ACCESSED = 1 << 10
NOT_GLOBAL = 1 << 11
PXN = 1 << 53
UXN = 1 << 54

_ADDRESS = 0x0000_FFFF_FFFF_F000
_ATTR_SHIFT = 2
_SOFTWARE_SHIFT = 55
_KIND_SHIFT, _VALUE_SHIFT = 1, 12
_AP_TABLE_USER, _AP_TABLE_READ_ONLY = 1 << 61, 1 << 62
_UXN_TABLE, _PXN_TABLE = 1 << 60, 1 << 59

# AttrIndx values, in the order that `registers.MAIR_VALUE` programs.
_ATTR_INDEX = {
    MemoryType.WRITE_BACK: 0,
    MemoryType.WRITE_THROUGH: 1,
    MemoryType.WRITE_COMBINING: 2,  # Normal non-cacheable
    MemoryType.UNCACHED_MINUS: 3,  # Device-GRE
    MemoryType.UNCACHED: 4,  # Device-nGnRnE
    MemoryType.WRITE_PROTECTED: 5,  # Normal, read-allocate only
}
_MEMORY_OF = {index: kind for kind, index in _ATTR_INDEX.items()}
_HELD_KINDS = {kind.value: kind for kind in HeldKind}


class ArmFormat(PageTableFormat):
    """Stage 1, 4 KiB granule, four levels."""

    break_before_make = True
    hardware_accessed = False
    hardware_dirty = False
    present_mask = VALID
    address_mask = _ADDRESS

    def __init__(self, physical_bits: int = 44) -> None:
        self.name = "arm64-4K"
        names = ("L3", "L2", "L1", "L0")
        self.levels = tuple(Level(12 + 9 * i, 9, i < 3, names[i]) for i in range(4))
        self.physical_bits = physical_bits

    def leaf_bits(self, attributes: Attributes, level: int = 1) -> int:
        flags = attributes.flags
        if not self.levels[level - 1].leaf:
            raise EncodingError(f"{self.name}: no leaf at level {level} ({self.level_name(level)})")
        if not flags & PageFlags.READ and not flags & PageFlags.EXECUTE:
            raise EncodingError(f"{self.name}: a valid entry permits reading or executing")
        if flags & PageFlags.WRITE and not flags & PageFlags.READ:
            raise EncodingError(f"{self.name}: what can be written can be read")
        if attributes.key:
            raise EncodingError(f"{self.name}: there are no protection keys")
        if attributes.software >> 4:
            raise EncodingError(f"{self.name}: 4 software bits, {attributes.software:#x} does not fit")
        user = bool(flags & PageFlags.USER)
        bits = VALID | INNER_SHAREABLE | _ATTR_INDEX[attributes.memory] << _ATTR_SHIFT
        bits |= TABLE if level == 1 else 0
        bits |= USER if user and flags & PageFlags.READ else 0
        bits |= 0 if flags & PageFlags.WRITE else READ_ONLY
        bits |= ACCESSED if flags & PageFlags.ACCESSED else 0
        bits |= 0 if flags & PageFlags.GLOBAL else NOT_GLOBAL
        execute = bool(flags & PageFlags.EXECUTE)
        bits |= 0 if execute and user else UXN
        bits |= 0 if execute and not user else PXN
        return bits | attributes.software << _SOFTWARE_SHIFT

    def table_entry(self, address: int) -> int:
        return address | TABLE | VALID

    def held_entry(self, held: Held) -> int:
        if held.value >> (64 - _VALUE_SHIFT):
            raise EncodingError(f"{self.name}: held value {held.value:#x} needs more than 52 bits")
        return held.value << _VALUE_SHIFT | held.kind.value << _KIND_SHIFT

    def leaf_address(self, entry: int, level: int) -> int:
        return entry & _ADDRESS & -self.levels[level - 1].size

    def write_protect(self, entry: int) -> int:
        return entry | READ_ONLY

    def decode(self, entry: int, level: int) -> Entry:
        if not entry & VALID:
            kind = entry >> _KIND_SHIFT & 15
            if kind in _HELD_KINDS and not entry & 0xFE0:
                return Held(_HELD_KINDS[kind], entry >> _VALUE_SHIFT)
            return Absent()
        if level > 1 and entry & TABLE:
            return Table(entry & _ADDRESS, _table_flags(entry))
        if not self.levels[level - 1].leaf or (level == 1 and not entry & TABLE):
            return Malformed(entry & (TABLE | VALID))
        reserved = self.levels[level - 1].size - 1 & _ADDRESS & ~(1 << 16)  # bit 16 is nT
        if entry & reserved:
            return Malformed(entry & reserved)
        attr = entry >> _ATTR_SHIFT & 7
        if attr not in _MEMORY_OF:
            return Malformed(7 << _ATTR_SHIFT)
        return Leaf(
            self.leaf_address(entry, level),
            Attributes(_leaf_flags(entry), _MEMORY_OF[attr], 0, entry >> _SOFTWARE_SHIFT & 15),
        )

    def fields(self, entry: int, level: int) -> tuple[BitField, ...]:
        return _FIELDS

    def next_table(self, entry: int, level: int) -> int | None:
        if level == 1 or entry & (TABLE | VALID) != TABLE | VALID:
            return None
        return entry & _ADDRESS


def _leaf_flags(entry: int) -> PageFlags:
    user = bool(entry & USER) or not entry & UXN
    flags = PageFlags(0)
    if entry & USER or not user:
        flags |= PageFlags.READ
    if not entry & READ_ONLY and flags & PageFlags.READ:
        flags |= PageFlags.WRITE | PageFlags.DIRTY
    if not entry & (UXN if user else PXN):
        flags |= PageFlags.EXECUTE
    if user:
        flags |= PageFlags.USER
    if not entry & NOT_GLOBAL:
        flags |= PageFlags.GLOBAL
    if entry & ACCESSED:
        flags |= PageFlags.ACCESSED
    return flags


def _table_flags(entry: int) -> PageFlags:
    """What a table descriptor leaves possible below it (APTable, UXNTable)."""
    flags = PageFlags.READ | PageFlags.WRITE | PageFlags.USER | PageFlags.EXECUTE
    if entry & _AP_TABLE_USER:
        flags &= ~PageFlags.USER
    if entry & _AP_TABLE_READ_ONLY:
        flags &= ~PageFlags.WRITE
    if entry & _UXN_TABLE:
        flags &= ~PageFlags.EXECUTE
    return flags


_FIELDS = (
    BitField("V", 0, 1, "valid"),
    BitField("T", 1, 1, "table, or level-1 page"),
    BitField("ATTR", 2, 3, "index into MAIR"),
    BitField("NS", 5, 1, "non-secure"),
    BitField("AP1", 6, 1, "user access"),
    BitField("AP2", 7, 1, "read-only"),
    BitField("SH", 8, 2, "shareability"),
    BitField("AF", 10, 1, "accessed"),
    BitField("NG", 11, 1, "not global"),
    BitField("ADDR", 12, 36, "physical table or page"),
    BitField("GP", 50, 1, "guarded page (BTI)"),
    BitField("DBM", 51, 1, "dirty bit modifier"),
    BitField("CONT", 52, 1, "contiguous hint"),
    BitField("PXN", 53, 1, "no execution at EL1"),
    BitField("UXN", 54, 1, "no execution at EL0"),
    BitField("SW", 55, 4, "software"),
)
