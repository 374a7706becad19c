"""ARM64 entries, bit by bit: positions as the manual prints them, and every combination there and back.

The positions below are this file's own reading of Arm ARM D8.3 (stage 1, EL1&0, no LPA, LPA2 or PIE) and of
D8.5 for DBM. Nothing is imported from the codec but the codec.
"""

from __future__ import annotations

from functools import reduce
from itertools import product
from operator import or_

import pytest

from aether_emu.arch.arm64.stage1 import ArmFormat
from aether_emu.arch.paging import (
    Absent,
    Attributes,
    Held,
    HeldKind,
    Leaf,
    Malformed,
    MemoryType,
    PageFlags,
    Reach,
    Table,
)
from aether_emu.errors import EncodingError

R, W, X, U = PageFlags.READ, PageFlags.WRITE, PageFlags.EXECUTE, PageFlags.USER
G, A, D, BTI = PageFlags.GLOBAL, PageFlags.ACCESSED, PageFlags.DIRTY, PageFlags.GUARDED
K, M = 1 << 10, 1 << 20

# (granule, address width): (shift, index bits, the architecture's level, leaf, contiguous), leaf level first.
GEOMETRIES: dict[tuple[int, int], tuple[tuple[int, int, str, bool, int], ...]] = {
    (4 * K, 39): ((12, 9, "L3", True, 16), (21, 9, "L2", True, 16), (30, 9, "L1", True, 16)),
    (4 * K, 48): (
        (12, 9, "L3", True, 16),
        (21, 9, "L2", True, 16),
        (30, 9, "L1", True, 16),
        (39, 9, "L0", False, 1),
    ),
    (16 * K, 36): ((14, 11, "L3", True, 128), (25, 11, "L2", True, 32)),
    (16 * K, 47): ((14, 11, "L3", True, 128), (25, 11, "L2", True, 32), (36, 11, "L1", False, 1)),
    (16 * K, 48): (
        (14, 11, "L3", True, 128),
        (25, 11, "L2", True, 32),
        (36, 11, "L1", False, 1),
        (47, 1, "L0", False, 1),
    ),
    (64 * K, 42): ((16, 13, "L3", True, 32), (29, 13, "L2", True, 32)),
    (64 * K, 48): ((16, 13, "L3", True, 32), (29, 13, "L2", True, 32), (42, 6, "L1", False, 1)),
}
FORMATS = {shape: ArmFormat(*shape) for shape in GEOMETRIES}
LEAVES = [
    (fmt, number)
    for shape, fmt in FORMATS.items()
    for number, level in enumerate(GEOMETRIES[shape], 1)
    if level[3]
]
OPTIONAL = (W, X, U, G, A, D, BTI)
every_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
every_leaf = pytest.mark.parametrize(("fmt", "level"), LEAVES, ids=lambda part: getattr(part, "name", part))

# MAIR_EL1 as this project programs it: which attribute index is which type.
ATTRIBUTE_INDEX = {
    MemoryType.WRITE_BACK: 0,
    MemoryType.WRITE_THROUGH: 1,
    MemoryType.WRITE_COMBINING: 2,
    MemoryType.UNCACHED_MINUS: 3,
    MemoryType.UNCACHED: 4,
    MemoryType.WRITE_PROTECTED: 5,
}


def bits(*positions: int) -> int:
    return sum(1 << position for position in positions)


def expressible(flags: PageFlags) -> bool:
    """What a descriptor can say: EL1 always reads what it maps, and nobody writes what he cannot read."""
    if not flags & R:
        return bool(flags & X and flags & U and not flags & W)
    return True


EVERY_FLAG = [
    flags
    for chosen in product(*((PageFlags(0), flag) for flag in (R, *OPTIONAL)))
    if expressible(flags := sum(chosen, start=PageFlags(0)))
]


def manual_bits(flags: PageFlags, level: int) -> int:
    """Valid 0, page 1, AP[1] 6, AP[2] 7, SH 9..8, AF 10, nG 11, GP 50, DBM 51, PXN 53, UXN 54; SD is 55."""
    found = bits(0, 8, 9) | (bits(1) if level == 1 else 0)
    found |= bits(6) if flags & U and flags & R else 0
    found |= bits(10) if flags & A else 0
    found |= 0 if flags & G else bits(11)
    found |= bits(50) if flags & BTI else 0
    if flags & W:
        found |= bits(51) | (0 if flags & D else bits(7))  # DBM with AP[2]: writable, and clean
    else:
        found |= bits(7) | (bits(55) if flags & D else 0)
    found |= 0 if flags & X and flags & U else bits(54)
    found |= 0 if flags & X and not flags & U else bits(53)
    return found


# ---- leaves


@every_leaf
def test_each_flag_is_the_bit_the_manual_gives_it(fmt: ArmFormat, level: int) -> None:
    for flags in EVERY_FLAG:
        assert fmt.leaf_bits(Attributes(flags), level) == manual_bits(flags, level), flags


@every_leaf
@pytest.mark.parametrize("memory", MemoryType)
def test_a_memory_type_is_its_index_into_mair_at_bits_4_to_2(
    fmt: ArmFormat, level: int, memory: MemoryType
) -> None:
    plain = fmt.leaf_bits(Attributes(R), level)
    assert fmt.leaf_bits(Attributes(R, memory), level) ^ plain == ATTRIBUTE_INDEX[memory] << 2


@every_leaf
def test_software_has_bits_58_to_56_and_the_contiguous_hint_is_bit_52(fmt: ArmFormat, level: int) -> None:
    plain = fmt.leaf_bits(Attributes(R), level)
    for software in range(8):
        assert fmt.leaf_bits(Attributes(R, software=software), level) ^ plain == software << 56
    assert fmt.leaf_bits(Attributes(R, contiguous=True), level) ^ plain == bits(52)


@every_leaf
def test_every_combination_comes_back_from_its_bits(fmt: ArmFormat, level: int) -> None:
    """All flags that a descriptor can say, 6 memory types, the hint; software bits all clear and all set."""
    size = fmt.levels[level - 1].size
    address = (1 << 44) - size
    for flags, memory, contiguous in product(EVERY_FLAG, MemoryType, (False, True)):
        attributes = Attributes(flags, memory, 0, 7 if contiguous else 0, contiguous)
        entry = fmt.leaf_entry(address, attributes, level)
        assert entry == address | fmt.leaf_bits(attributes, level)
        assert fmt.decode(entry, level) == Leaf(address, attributes)
        assert fmt.leaf_address(entry, level) == address


@every_leaf
def test_dirty_state_by_hand(fmt: ArmFormat, level: int) -> None:
    """Arm ARM D8.5.5: with DBM, AP[2] set is writable-clean and AP[2] clear writable-dirty."""
    for user in (0, bits(6)):
        common = bits(0, 10, 11, 53, 54) | (bits(1) if level == 1 else 0) | user
        for ap2, dbm, soft, flags in (
            (1, 1, 0, W),
            (0, 1, 0, W | D),
            (1, 0, 0, PageFlags(0)),
            (1, 0, 1, D),  # ours: what may no longer be written was written once
            (0, 0, 0, W | D),  # nobody here makes it: hardware without DBM would let it be written
        ):
            entry = common | ap2 << 7 | dbm << 51 | soft << 55
            decoded = fmt.decode(entry, level)
            assert isinstance(decoded, Leaf)
            assert decoded.attributes.flags & (W | D) == flags
            assert (fmt.writable(entry), fmt.dirty(entry)) == (bool(flags & W), bool(flags & D))


def test_the_three_ways_to_keep_dirty_state() -> None:
    """A store soils a DBM leaf by clearing AP[2]; cleaning sets it; losing DBM moves the fact to bit 55."""
    fmt = ArmFormat()
    clean = fmt.leaf_bits(Attributes(R | W | U | A))
    assert fmt.soil(clean) == clean ^ bits(7)
    assert fmt.clean(fmt.soil(clean)) == clean
    assert fmt.write_protect(clean) == clean ^ bits(51)
    assert fmt.write_protect(fmt.soil(clean)) == clean ^ bits(51, 55)
    assert fmt.clean(fmt.write_protect(fmt.soil(clean))) == fmt.write_protect(clean)
    read_only = fmt.leaf_bits(Attributes(R | U | A))
    assert fmt.soil(read_only) == read_only | bits(55)
    assert fmt.age(read_only) == read_only ^ bits(10)
    assert fmt.touch(fmt.age(read_only)) == read_only


def test_the_two_unused_attribute_indexes_are_device_memory() -> None:
    fmt = ArmFormat()
    for index in (6, 7):
        decoded = fmt.decode(bits(0, 1, 7, 10, 53, 54) | index << 2, 1)
        assert isinstance(decoded, Leaf)
        assert decoded.attributes.memory is MemoryType.UNCACHED


# ---- tables


@every_format
@pytest.mark.parametrize(
    ("reach", "locks", "user", "supervisor"),
    [
        (Reach.ANY, 0, R | W | U | X, R | W | U | X),
        (Reach.USER, bits(59), R | W | U | X, R | W | U),  # PXNTable
        (Reach.SUPERVISOR, bits(60, 61), R | W, R | W | X),  # UXNTable, APTable[0]
    ],
    ids=lambda part: part.name if isinstance(part, Reach) else "",
)
def test_a_table_locks_out_whom_it_does_not_serve(
    fmt: ArmFormat, reach: Reach, locks: int, user: PageFlags, supervisor: PageFlags
) -> None:
    address = (1 << 44) - fmt.page_size
    entry = fmt.table_entry(address, reach)
    assert entry == address | bits(0, 1) | locks
    for level in range(2, fmt.top + 1):
        assert fmt.decode(entry, level) == Table(address, user, supervisor)
        assert fmt.next_table(entry, level) == address


@every_format
def test_the_second_ap_bit_of_a_table_takes_writing_from_everybody(fmt: ArmFormat) -> None:
    everything = R | U | X
    assert fmt.decode(bits(0, 1, 62), 2) == Table(0, everything, everything)


@every_format
def test_a_table_ignores_what_the_manual_calls_ignored(fmt: ArmFormat) -> None:
    """Bits 11..2, 58..51 and NSTable."""
    everything = R | W | U | X
    ignored = bits(*range(2, 12), *range(51, 59), 63)
    for level in range(2, fmt.top + 1):
        assert fmt.decode(fmt.table_entry(0) | ignored, level) == Table(0, everything, everything)


# ---- what is malformed


@every_format
def test_blocks_stand_at_exactly_the_levels_that_have_them(fmt: ArmFormat) -> None:
    for level, spec in enumerate(fmt.levels, 1):
        block = bits(0, 6, 7, 10, 53, 54)
        if level == 1:
            assert fmt.decode(block, 1) == Malformed(bits(0))  # bit 1 must be set in a page
            assert isinstance(fmt.decode(block | bits(1), 1), Leaf)
        elif spec.leaf:
            assert isinstance(fmt.decode(block, level), Leaf)
        else:
            assert fmt.decode(block, level) == Malformed(bits(0))
            with pytest.raises(EncodingError, match="no leaf"):
                fmt.leaf_bits(Attributes(R), level)


@every_format
@pytest.mark.parametrize("width", [32, 36, 40, 44, 48])
def test_every_reserved_address_bit_alone_is_malformed_with_exactly_that_bit(
    fmt: ArmFormat, width: int
) -> None:
    """Beyond the output size (an address size fault); below the granule; below a block, but for nT at 16."""
    narrow = ArmFormat(fmt.page_size, fmt.virtual_bits, width)
    beyond, below = set(range(width, 48)), set(range(12, narrow.page_shift))
    for level, spec in enumerate(narrow.levels, 1):
        assert malformed(narrow, bits(0, 1), level) == beyond | below
        if level > 1 and spec.leaf:
            assert malformed(narrow, bits(0), level) == beyond | set(range(12, spec.shift)) - {16}


def malformed(fmt: ArmFormat, entry: int, level: int) -> set[int]:
    """The bits that turn the well-formed `entry` into one that is malformed by exactly that bit."""
    found = set()
    for bit in range(2, 64):
        decoded = fmt.decode(entry | 1 << bit, level)
        if isinstance(decoded, Malformed):
            assert decoded.bits == 1 << bit
            assert fmt.next_table(entry | 1 << bit, level) is None
            found.add(bit)
    return found


def test_several_reserved_bits_are_all_reported() -> None:
    fmt = ArmFormat(16 * K, 48, 40)
    assert fmt.decode((1 << 64) - 1, 1) == Malformed(bits(12, 13, *range(40, 48)))


@every_format
def test_reserved_bits_do_not_count_in_an_invalid_entry(fmt: ArmFormat) -> None:
    assert fmt.decode(0xF << 44, 1) == Absent()


# ---- what software keeps in entries that are not valid


@every_format
@pytest.mark.parametrize("kind", HeldKind)
def test_held_entries_come_back(fmt: ArmFormat, kind: HeldKind) -> None:
    widest = 64 - fmt.page_shift
    for value in (0, 1, 0xABC, (1 << 32) - 1, (1 << widest) - 1):
        entry = fmt.held_entry(Held(kind, value))
        assert entry == value << fmt.page_shift | kind.value << 1
        for level in range(1, fmt.top + 1):
            assert fmt.decode(entry, level) == Held(kind, value)
    for value in (1 << widest, -1):
        with pytest.raises(EncodingError, match=f"{widest} bits"):
            fmt.held_entry(Held(kind, value))


@every_format
def test_zero_is_absent_and_so_is_what_nobody_wrote(fmt: ArmFormat) -> None:
    for entry in (0, 0xF << 1, 1 << 5, 1 << fmt.page_shift - 1, 1 << fmt.page_shift):
        assert fmt.decode(entry, 1) == Absent()


# ---- refusals


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        (Attributes(W | U), "permits reading or executing"),
        (Attributes(X), "executes it can read"),
        (Attributes(W | X | U), "written can be read"),
        (Attributes(PageFlags(0)), "permits reading or executing"),
        (Attributes(R, key=1), "keys"),
        (Attributes(R, software=8), "software"),
    ],
)
def test_what_the_format_cannot_say_is_refused(attributes: Attributes, why: str) -> None:
    for fmt in FORMATS.values():
        with pytest.raises(EncodingError, match=why):
            fmt.leaf_bits(attributes)


@pytest.mark.parametrize(
    ("granule", "address", "level"),
    [
        (4 * K, 2 * K, 1),
        (4 * K, 4 * K, 2),
        (4 * K, 2 * M, 3),
        (16 * K, 4 * K, 1),
        (16 * K, 2 * M, 2),
        (64 * K, 16 * K, 1),
        (64 * K, 32 * M, 2),
        (64 * K, 1 << 44, 1),
        (4 * K, -4096, 1),
    ],
)
def test_a_leaf_address_must_fit(granule: int, address: int, level: int) -> None:
    with pytest.raises(EncodingError, match="no address"):
        ArmFormat(granule).leaf_entry(address, Attributes(R), level)


@pytest.mark.parametrize(
    ("granule", "virtual", "physical"),
    [
        *((granule, width, 44) for granule in (4 * K, 16 * K, 64 * K) for width in (35, 40, 46, 49, 52)),
        (4 * K, 42, 44),
        (4 * K, 47, 44),
        (16 * K, 39, 44),
        (64 * K, 39, 44),
        (64 * K, 47, 44),
        (8 * K, 48, 44),
        (0, 48, 44),
        (4 * K, 48, 31),
        (4 * K, 48, 52),
    ],
)
def test_geometries_that_do_not_exist_are_refused(granule: int, virtual: int, physical: int) -> None:
    with pytest.raises(EncodingError, match="no granule"):
        ArmFormat(granule, virtual, physical)


# ---- shape and printing


@pytest.mark.parametrize("shape", GEOMETRIES, ids=str)
def test_the_geometry_is_the_manuals(shape: tuple[int, int]) -> None:
    fmt = FORMATS[shape]
    assert (fmt.page_size, fmt.virtual_bits) == shape
    assert [
        (level.shift, level.bits, level.name, level.leaf, level.contiguous) for level in fmt.levels
    ] == list(GEOMETRIES[shape])
    assert fmt.address_mask == bits(*range(fmt.page_shift, 48))
    assert fmt.frozen_bits == fmt.address_mask | bits(1, 2, 3, 4, 11, 52)  # Arm ARM R_WHZWS
    assert (fmt.present_mask, fmt.contiguous_bit) == (1, bits(52))


def test_names_tell_formats_apart() -> None:
    assert len({fmt.name for fmt in FORMATS.values()}) == len(FORMATS)
    assert ArmFormat().name == "arm64-4K"
    assert ArmFormat(16 * K, 47).name == "arm64-16K-47bit"


@every_format
def test_the_fields_of_an_entry_are_apart_and_cover_what_the_codec_sets(fmt: ArmFormat) -> None:
    for level, spec in enumerate(fmt.levels, 1):
        entries = [fmt.table_entry(0, reach) for reach in Reach] if level > 1 else []
        if spec.leaf:
            everything = Attributes(R | BTI, MemoryType.WRITE_PROTECTED, software=7, contiguous=True)
            entries.append(fmt.leaf_entry(spec.size, everything, level))
        for entry in entries:
            masks = [field.mask for field in fmt.fields(entry, level)]
            assert sum(masks) == reduce(or_, masks)
            assert not entry & ~sum(masks)


@pytest.mark.parametrize(
    ("granule", "entry", "level", "text"),
    [
        (4 * K, 0, 1, "L3 0x0000000000000000 absent"),
        (4 * K, 0x5002, 1, "L3 0x0000000000005002 SWAP 0x5"),
        (
            4 * K,
            0x0068_0000_0000_7743,
            1,
            "L3 0x0068000000007743 V T AP=0x1 SH=0x3 AF DBM PXN UXN -> 0x7000",
        ),
        (64 * K, 0x0800_0000_0003_0003, 2, "L2 0x0800000000030003 V T PXNTable -> 0x30000"),
        (
            16 * K,
            0x0070_0000_0600_0781,
            2,
            "L2 0x0070000006000781 V AP=0x2 SH=0x3 AF Contiguous PXN UXN -> 0x6000000",
        ),
    ],
)
def test_an_entry_is_described_by_what_it_is(granule: int, entry: int, level: int, text: str) -> None:
    assert ArmFormat(granule).describe(entry, level) == text
