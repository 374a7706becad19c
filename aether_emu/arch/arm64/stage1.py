"""VMSAv8-64 stage-1 tables: granules of 4, 16 and 64 KiB, no LPA (Arm ARM D8.3).

    63  62..59  58..56    55  54   53   52    51   50  47..s    11  10  9..8  7..6  5   4..2   1  0
    -   ignored software  SD  UXN  PXN  cont  DBM  GP  address  nG  AF  SH    AP    NS  AttrIx T  V
    NSTable APTable UXNTable PXNTable in 63..59 of a table descriptor; s is the granule's shift

V=0 is invalid and leaves the rest to software; T tells a table from a block, and must be 1 in a
page. AP[1] is user access, AP[2] read-only. A non-zero invalid entry is typed, as on every format
here:

    63..s  value      s-1..5  zero      4..1  kind      0  V=0

ACCESSED is AF. Writing and DIRTY follow what hardware management of dirty state does (Arm ARM
D8.5.5), which here is software's: DBM says that writing is permitted, AP[2] set beside it that nobody
wrote yet. SD, a software bit, keeps DIRTY where writing is no longer permitted.

Lossless from neutral attributes to bits, but: a key other than 0 is refused, and execution is always
refused to the privilege that the USER flag does not name. From bits to neutral attributes: a leaf
without DBM that permits writing counts as dirty, and SH and NS are not shown.
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

VALID = 1 << 0
TABLE = 1 << 1
USER = 1 << 6  # AP[1]
READ_ONLY = 1 << 7  # AP[2]
INNER_SHAREABLE = 3 << 8
ACCESSED = 1 << 10
NOT_GLOBAL = 1 << 11
GUARDED = 1 << 50
DBM = 1 << 51
CONTIGUOUS = 1 << 52
PXN = 1 << 53
UXN = 1 << 54
SOFT_DIRTY = 1 << 55
PXN_TABLE, UXN_TABLE = 1 << 59, 1 << 60
NO_USER_TABLE, READ_ONLY_TABLE = 1 << 61, 1 << 62  # APTable

_OUTPUT = 0x0000_FFFF_FFFF_F000
_ATTR_SHIFT, _SOFTWARE_SHIFT, _KIND_SHIFT = 2, 56, 1
_NT = 1 << 16  # FEAT_BBM's hint in a block: not part of the address

# granule -> (address widths, how many levels up from the page may hold blocks, contiguous entries by level)
GRANULES: dict[int, tuple[tuple[int, ...], int, tuple[int, ...]]] = {
    4 << 10: ((39, 48), 2, (16, 16, 16)),
    16 << 10: ((36, 47, 48), 1, (128, 32)),
    64 << 10: ((42, 48), 1, (32, 32)),
}

# AttrIndx values, in the order that `registers.MAIR_VALUE` programs. 6 and 7 are Device-nGnRnE too.
_ATTR_INDEX = {
    MemoryType.WRITE_BACK: 0,
    MemoryType.WRITE_THROUGH: 1,
    MemoryType.WRITE_COMBINING: 2,  # Normal non-cacheable
    MemoryType.UNCACHED_MINUS: 3,  # Device-GRE
    MemoryType.UNCACHED: 4,  # Device-nGnRnE
    MemoryType.WRITE_PROTECTED: 5,  # Normal, read-allocate only
}
_MEMORY = (*_ATTR_INDEX, MemoryType.UNCACHED, MemoryType.UNCACHED)
_HELD_KINDS = {kind.value: kind for kind in HeldKind}


class ArmFormat(PageTableFormat):
    """One translation regime's geometry. EncodingError for a geometry that the granule does not give.

    `granule` is the page's bytes; `virtual_bits` the width of addresses in either half; `physical_bits`
    the output size that TCR_EL1.IPS announces (an address beyond it is an address size fault).
    """

    hardware_accessed = False
    hardware_dirty = False
    present_mask = VALID
    contiguous_bit = CONTIGUOUS

    def __init__(self, granule: int = 4096, virtual_bits: int = 48, physical_bits: int = 44) -> None:
        widths, blocks, contiguous = GRANULES.get(granule, ((), 0, ()))
        if virtual_bits not in widths or not 32 <= physical_bits <= 48:
            raise EncodingError(
                f"arm64 has no granule of {granule} bytes with {virtual_bits} virtual and {physical_bits} "
                "physical bits"
            )
        shift = granule.bit_length() - 1
        index = shift - 3
        self.name = f"arm64-{granule >> 10}K" + (f"-{virtual_bits}bit" if virtual_bits != 48 else "")
        self.levels = tuple(
            Level(
                at,
                min(index, virtual_bits - at),
                number <= blocks,
                f"L{3 - number}",
                contiguous[number] if number <= blocks else 1,
            )
            for number, at in enumerate(range(shift, virtual_bits, index))
        )
        self.physical_bits = physical_bits
        self.address_mask = _OUTPUT & -granule
        self.frozen_bits = self.address_mask | TABLE | 7 << _ATTR_SHIFT | NOT_GLOBAL | CONTIGUOUS
        self._reserved = _OUTPUT & (-(1 << physical_bits) | granule - 1)
        self._kind_zero = granule - 1 & -0x20

    # ---- encoding

    def leaf_bits(self, attributes: Attributes, level: int = 1) -> int:
        self._refuse(attributes, level)
        flags = attributes.flags
        user = bool(flags & PageFlags.USER)
        bits = VALID | INNER_SHAREABLE | _ATTR_INDEX[attributes.memory] << _ATTR_SHIFT
        bits |= TABLE if level == 1 else 0
        bits |= USER if user and flags & PageFlags.READ else 0
        bits |= DBM if flags & PageFlags.WRITE else READ_ONLY
        if flags & PageFlags.WRITE and not flags & PageFlags.DIRTY:
            bits |= READ_ONLY
        elif flags & PageFlags.DIRTY and not flags & PageFlags.WRITE:
            bits |= SOFT_DIRTY
        bits |= ACCESSED if flags & PageFlags.ACCESSED else 0
        bits |= 0 if flags & PageFlags.GLOBAL else NOT_GLOBAL
        bits |= GUARDED if flags & PageFlags.GUARDED else 0
        bits |= CONTIGUOUS if attributes.contiguous else 0
        execute = bool(flags & PageFlags.EXECUTE)
        bits |= 0 if execute and user else UXN
        bits |= 0 if execute and not user else PXN
        return bits | attributes.software << _SOFTWARE_SHIFT

    def _refuse(self, attributes: Attributes, level: int) -> None:
        flags, spec = attributes.flags, self.levels[level - 1]
        if not spec.leaf:
            raise EncodingError(f"{self.name}: no leaf at level {level} ({spec.name})")
        if not flags & PageFlags.READ and not flags & PageFlags.EXECUTE:
            raise EncodingError(f"{self.name}: a valid entry permits reading or executing")
        if not flags & PageFlags.READ and not flags & PageFlags.USER:
            raise EncodingError(f"{self.name}: what the supervisor executes it can read")
        if flags & PageFlags.WRITE and not flags & PageFlags.READ:
            raise EncodingError(f"{self.name}: what can be written can be read")
        if attributes.key:
            raise EncodingError(f"{self.name}: there are no protection keys")
        if attributes.software >> 3:
            raise EncodingError(f"{self.name}: 3 software bits, {attributes.software:#x} does not fit")

    def table_entry(self, address: int, reach: Reach = Reach.ANY) -> int:
        if reach is Reach.ANY:
            return address | TABLE | VALID
        locks = PXN_TABLE if reach is Reach.USER else UXN_TABLE | NO_USER_TABLE
        return address | locks | TABLE | VALID

    def held_entry(self, held: Held) -> int:
        if held.value >> (64 - self.page_shift):
            bits = 64 - self.page_shift
            raise EncodingError(f"{self.name}: held value {held.value:#x} needs more than {bits} bits")
        return held.value << self.page_shift | held.kind.value << _KIND_SHIFT

    # ---- decoding

    def leaf_address(self, entry: int, level: int) -> int:
        return entry & self.address_mask & -self.levels[level - 1].size

    def decode(self, entry: int, level: int) -> Entry:
        if not entry & VALID:
            kind = entry >> _KIND_SHIFT & 15
            if kind in _HELD_KINDS and not entry & self._kind_zero:
                return Held(_HELD_KINDS[kind], entry >> self.page_shift)
            return Absent()
        spec = self.levels[level - 1]
        table = level > 1 and bool(entry & TABLE)
        if not table and (not spec.leaf or (level == 1 and not entry & TABLE)):
            return Malformed(entry & (TABLE | VALID))
        reserved = entry & self._reserved
        if not table:
            reserved |= entry & _OUTPUT & spec.size - 1 & (~_NT if level > 1 else -1)
        if reserved:
            return Malformed(reserved)
        if table:
            return _table(entry & self.address_mask, entry)
        return Leaf(
            self.leaf_address(entry, level),
            Attributes(
                _leaf_flags(entry),
                _MEMORY[entry >> _ATTR_SHIFT & 7],
                0,
                entry >> _SOFTWARE_SHIFT & 7,
                bool(entry & CONTIGUOUS),
            ),
        )

    def next_table(self, entry: int, level: int) -> int | None:
        if level == 1 or entry & (TABLE | VALID) != TABLE | VALID or entry & self._reserved:
            return None
        return entry & self.address_mask

    def fields(self, entry: int, level: int) -> tuple[BitField, ...]:
        spec, table = self.levels[level - 1], level > 1 and bool(entry & TABLE)
        low = self.page_shift if table else spec.shift
        address = BitField("ADDR", low, 48 - low, "physical table" if table else "physical page")
        return (*_TABLE_FIELDS, address) if table else (*_LEAF_FIELDS, address)

    # ---- what a leaf remembers

    def writable(self, entry: E) -> E:
        return (entry >> 51 | entry >> 7 ^ 1) & 1

    def accessed(self, entry: E) -> E:
        return entry >> 10 & 1

    def dirty(self, entry: E) -> E:
        return (entry >> 55 | entry >> 7 ^ 1) & 1

    def touch(self, entry: E) -> E:
        return entry | ACCESSED

    def soil(self, entry: E) -> E:
        """Writing is permitted by DBM: AP[2] goes, as hardware would have it. Else SD keeps the fact."""
        managed = entry >> 51 & 1
        soiled: E = entry & ~(managed << 7) | (entry >> 7 & (managed ^ 1)) << 55
        return soiled

    def age(self, entry: E) -> E:
        return entry & (WORD ^ ACCESSED)

    def clean(self, entry: E) -> E:
        cleaned: E = (entry | (entry >> 51 & 1) << 7) & (WORD ^ SOFT_DIRTY)
        return cleaned

    def write_protect(self, entry: E) -> E:
        protected: E = (entry | (entry >> 7 & 1 ^ 1) << 55 | READ_ONLY) & (WORD ^ DBM)
        return protected


def _leaf_flags(entry: int) -> PageFlags:
    user = bool(entry & USER) or not entry & UXN
    flags = PageFlags(0)
    if entry & USER or not user:
        flags |= PageFlags.READ
    if flags & PageFlags.READ and (entry & DBM or not entry & READ_ONLY):
        flags |= PageFlags.WRITE
    if entry & SOFT_DIRTY or not entry & READ_ONLY:
        flags |= PageFlags.DIRTY
    if not entry & (UXN if user else PXN):
        flags |= PageFlags.EXECUTE
    for flag, bit in ((PageFlags.ACCESSED, ACCESSED), (PageFlags.GUARDED, GUARDED)):
        flags |= flag if entry & bit else PageFlags(0)
    if user:
        flags |= PageFlags.USER
    if not entry & NOT_GLOBAL:
        flags |= PageFlags.GLOBAL
    return flags


def _table(address: int, entry: int) -> Table:
    """What a table descriptor leaves possible below it (APTable, UXNTable, PXNTable: Arm ARM D8.3.2)."""
    both = PageFlags.READ | PageFlags.WRITE | PageFlags.USER
    if entry & NO_USER_TABLE:
        both &= ~PageFlags.USER
    if entry & READ_ONLY_TABLE:
        both &= ~PageFlags.WRITE
    user = both if entry & UXN_TABLE else both | PageFlags.EXECUTE
    supervisor = both if entry & PXN_TABLE else both | PageFlags.EXECUTE
    return Table(address, user, supervisor)


# Named as the Arm ARM names them (D8.3.1, D8.3.2); V and T are its bits 0 and 1, SD and SW our software's.
_LEAF_FIELDS = (
    BitField("V", 0, 1, "valid"),
    BitField("T", 1, 1, "page, not block"),
    BitField("AttrIndx", 2, 3, "index into MAIR"),
    BitField("NS", 5, 1, "non-secure"),
    BitField("AP", 6, 2, "user access (1), read-only (2)"),
    BitField("SH", 8, 2, "shareability"),
    BitField("AF", 10, 1, "accessed"),
    BitField("nG", 11, 1, "not global"),
    BitField("GP", 50, 1, "guarded page (BTI)"),
    BitField("DBM", 51, 1, "writable, dirty once read-only is off"),
    BitField("Contiguous", 52, 1, "contiguous hint"),
    BitField("PXN", 53, 1, "no execution at EL1"),
    BitField("UXN", 54, 1, "no execution at EL0"),
    BitField("SD", 55, 1, "software: dirty"),
    BitField("SW", 56, 3, "software"),
)
_TABLE_FIELDS = (
    BitField("V", 0, 1, "valid"),
    BitField("T", 1, 1, "table, not block"),
    BitField("PXNTable", 59, 1, "no execution at EL1 below"),
    BitField("UXNTable", 60, 1, "no execution at EL0 below"),
    BitField("APTable", 61, 2, "no user access (1), no writing (2) below"),
    BitField("NSTable", 63, 1, "non-secure below"),
)
