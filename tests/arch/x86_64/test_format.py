"""x86_64 entries, bit by bit: positions as the manual prints them, and every combination there and back.

The masks below are this file's own reading of Intel SDM 3A tables 4-14 to 4-20 (MAXPHYADDR bits of
address, 63 = XD, 62..59 = protection key, 58..52 ignored). Nothing is imported from the codec but the codec.
"""

from __future__ import annotations

from functools import reduce
from itertools import product
from operator import or_

import pytest

from aether_emu.arch.paging import (
    Absent,
    Attributes,
    Held,
    HeldKind,
    Leaf,
    Malformed,
    MemoryType,
    PageFlags,
    Table,
)
from aether_emu.arch.x86_64.stage1 import X86Format
from aether_emu.errors import EncodingError

R, W, X, U = PageFlags.READ, PageFlags.WRITE, PageFlags.EXECUTE, PageFlags.USER
G, A, D = PageFlags.GLOBAL, PageFlags.ACCESSED, PageFlags.DIRTY
XD = 1 << 63
LEAVES = {1: 4 << 10, 2: 2 << 20, 3: 1 << 30}
FORMATS = [X86Format(4), X86Format(5)]
OPTIONAL = (W, X, U, G, A, D)
EVERY_FLAG = [
    PageFlags.READ | sum(chosen, start=PageFlags(0))
    for chosen in product(*((PageFlags(0), flag) for flag in OPTIONAL))
]

PS = 1 << 7


def manual_bits(flags: PageFlags) -> int:
    """A leaf's flag bits by the manual: P R/W U/S A D G at 0 1 2 5 6 8, and XD at 63 if not executable."""
    positions = ((R, 0), (W, 1), (U, 2), (A, 5), (D, 6), (G, 8))
    return sum(1 << bit for flag, bit in positions if flags & flag) | (0 if flags & X else XD)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_each_flag_is_the_bit_the_manual_gives_it(fmt: X86Format) -> None:
    for level, flags in product(LEAVES, EVERY_FLAG):
        expected = manual_bits(flags) | (PS if level > 1 else 0)
        assert fmt.leaf_bits(Attributes(flags), level) == expected, (level, flags)


# PAT.PCD.PWT index of each type under Linux's PAT (index 0..7: WB WC UC- UC WB WP UC- WT).
PAT_INDEX = {
    MemoryType.WRITE_BACK: 0,
    MemoryType.WRITE_COMBINING: 1,
    MemoryType.UNCACHED_MINUS: 2,
    MemoryType.UNCACHED: 3,
    MemoryType.WRITE_PROTECTED: 5,
    MemoryType.WRITE_THROUGH: 7,
}


@pytest.mark.parametrize(("level", "pat_bit"), [(1, 7), (2, 12), (3, 12)])
@pytest.mark.parametrize("memory", MemoryType)
def test_a_memory_type_is_its_pat_index_with_pat_at_bit_7_or_12(
    level: int, pat_bit: int, memory: MemoryType
) -> None:
    index = PAT_INDEX[memory]
    expected = (index & 1) << 3 | (index >> 1 & 1) << 4 | (index >> 2) << pat_bit
    plain = X86Format().leaf_bits(Attributes(R | X), level)
    assert X86Format().leaf_bits(Attributes(R | X, memory), level) ^ plain == expected


@pytest.mark.parametrize("level", LEAVES)
@pytest.mark.parametrize("key", range(16))
def test_a_protection_key_is_bits_62_to_59(level: int, key: int) -> None:
    fmt = X86Format()
    assert (
        fmt.leaf_bits(Attributes(R | X, key=key), level) ^ fmt.leaf_bits(Attributes(R | X), level)
        == key << 59
    )


@pytest.mark.parametrize("level", LEAVES)
@pytest.mark.parametrize("bit", range(10))
def test_software_bits_are_11_to_9_and_58_to_52(level: int, bit: int) -> None:
    fmt = X86Format()
    where = (*range(9, 12), *range(52, 59))[bit]
    software = fmt.leaf_bits(Attributes(R | X, software=1 << bit), level)
    assert software ^ fmt.leaf_bits(Attributes(R | X), level) == 1 << where


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_every_combination_comes_back_from_its_bits(fmt: X86Format) -> None:
    """64 flag combinations, 6 memory types, 16 keys, 3 leaf sizes; software bits all clear and all set."""
    for level, size in LEAVES.items():
        address = (1 << 40) - size
        for flags, memory, key in product(EVERY_FLAG, MemoryType, range(16)):
            attributes = Attributes(flags, memory, key, 0x3FF if key & 1 else 0)
            entry = fmt.leaf_entry(address, attributes, level)
            assert entry == address | fmt.leaf_bits(attributes, level)
            assert fmt.decode(entry, level) == Leaf(address, attributes)
            assert fmt.leaf_address(entry, level) == address
            assert fmt.decode(fmt.write_protect(entry), level) == Leaf(
                address, Attributes(flags & ~W, memory, key, attributes.software)
            )


def test_the_two_doubled_pat_indexes_decode_to_one_memory_type() -> None:
    fmt = X86Format()
    write_back = fmt.leaf_bits(Attributes(R | X))
    assert fmt.decode(write_back | 1 << 7, 1) == Leaf(0, Attributes(R | X))
    assert fmt.decode(write_back | 1 << 7 | 1 << 4, 1) == Leaf(
        0, Attributes(R | X, MemoryType.UNCACHED_MINUS)
    )


# ---- tables


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_a_table_entry_restricts_nothing(fmt: X86Format) -> None:
    for level in range(2, fmt.top + 1):
        entry = fmt.table_entry(0xAB_CDEF_F000)
        assert entry == 0xAB_CDEF_F007  # P R/W U/S, and XD clear
        assert fmt.decode(entry, level) == Table(0xAB_CDEF_F000, R | W | U | X)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_a_table_entry_says_what_it_restricts_and_nothing_of_the_ignored_bits(fmt: X86Format) -> None:
    ignored = 1 << 6 | 0xF << 8 | 0x7FF << 52  # D's place, 11..8, and 62..52
    for level, (flags, bits) in product(
        range(2, fmt.top + 1),
        ((R | X, 1), (R | W | X, 3), (R | U | X, 5), (R | W | U, XD | 7), (R | X | A, 0x21)),
    ):
        assert fmt.decode(0x7000 | bits | ignored, level) == Table(0x7000, flags)


def test_a_level_1_entry_is_never_a_table() -> None:
    assert isinstance(X86Format().decode(0x7001, 1), Leaf)


# ---- reserved bits (Intel SDM 3A 4.5.4)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("width", range(32, 53))
def test_every_reserved_bit_alone_is_malformed_with_exactly_that_bit(levels: int, width: int) -> None:
    fmt = X86Format(levels, width)
    for level in range(1, levels + 1):
        reserved = set(range(width, 52))
        if level > 1:
            if level in LEAVES:
                below_size = set(range(13, LEAVES[level].bit_length() - 1))
                assert malformed_bits(fmt, 1 | PS, level) == reserved | below_size
            else:
                assert fmt.decode(1 | PS, level) == Malformed(PS)
        assert malformed_bits(fmt, 1, level) == reserved | ({7} if level > 3 else set())


def malformed_bits(fmt: X86Format, entry: int, level: int) -> set[int]:
    """The bits that turn the well-formed `entry` into one that is malformed by exactly that bit."""
    found = set()
    for bit in range(64):
        if entry >> bit & 1 or (bit == 7 and level in (2, 3)):
            continue
        decoded = fmt.decode(entry | 1 << bit, level)
        if isinstance(decoded, Malformed):
            assert decoded.bits == 1 << bit
            found.add(bit)
    return found


@pytest.mark.parametrize("level", range(1, 6))
def test_several_reserved_bits_are_all_reported(level: int) -> None:
    fmt = X86Format(5, 40)
    high = 0xFFF << 40
    large = {2: 0xFF << 13, 3: 0x1FFFF << 13}.get(level, 0)
    assert fmt.decode(~0 & (1 << 64) - 1, level) == Malformed(high | large | (PS if level > 3 else 0))


@pytest.mark.parametrize("level", range(1, 5))
def test_without_nxe_the_xd_bit_is_reserved(level: int) -> None:
    fmt = X86Format(4, 40, no_execute=False)
    assert fmt.decode(0x1000 | XD | 1, level) == Malformed(XD)
    assert not isinstance(fmt.decode(0x1001, level), Malformed)


def test_reserved_bits_do_not_count_in_an_absent_entry() -> None:
    assert X86Format().decode(0xFFF << 40, 1) == Absent()


# ---- what software keeps in entries that are not present


@pytest.mark.parametrize("kind", HeldKind)
@pytest.mark.parametrize("value", [0, 1, 0xABC, (1 << 40) - 1, (1 << 52) - 1])
def test_held_entries_come_back(kind: HeldKind, value: int) -> None:
    fmt = X86Format()
    entry = fmt.held_entry(Held(kind, value))
    assert entry
    assert not entry & fmt.present_mask
    for level in range(1, 5):
        assert fmt.decode(entry, level) == Held(kind, value)


def test_a_held_value_of_more_than_52_bits_is_refused() -> None:
    with pytest.raises(EncodingError, match="52 bits"):
        X86Format().held_entry(Held(HeldKind.SWAP, 1 << 52))
    with pytest.raises(EncodingError):
        X86Format().held_entry(Held(HeldKind.SWAP, -1))


def test_no_access_keeps_the_address_where_a_leaf_keeps_it() -> None:
    fmt = X86Format()
    leaf = fmt.leaf_entry(0x12_3456_7000, Attributes(R | U))
    kept = leaf & fmt.address_mask | fmt.held_entry(Held(HeldKind.NO_ACCESS, 0))
    assert fmt.decode(kept, 1) == Held(HeldKind.NO_ACCESS, 0x12_3456_7000 >> 12)


def test_zero_is_absent_and_so_is_what_nobody_wrote() -> None:
    fmt = X86Format()
    for entry in (0, 0xF << 1, 1 << 5, 1 << 11, 0x1000):
        assert fmt.decode(entry, 1) == Absent()


# ---- refusals


@pytest.mark.parametrize(
    ("attributes", "level"),
    [
        (Attributes(W | X), 1),  # present entries are always readable
        (Attributes(R | X), 4),  # no 512G leaves
        (Attributes(R | X, key=16), 1),
        (Attributes(R | X, software=1 << 10), 1),
    ],
)
def test_what_the_format_cannot_say_is_refused(attributes: Attributes, level: int) -> None:
    with pytest.raises(EncodingError):
        X86Format().leaf_bits(attributes, level)


def test_without_keys_or_xd_they_are_refused() -> None:
    plain = X86Format(no_execute=False, keys=False)
    for attributes in (Attributes(R), Attributes(R | X, key=1)):
        with pytest.raises(EncodingError):
            plain.leaf_bits(attributes)
    assert plain.decode(1 | 15 << 59, 1) == Leaf(0, Attributes(R | X))  # the bits are ignored then


@pytest.mark.parametrize(
    ("address", "level"), [(0x800, 1), (0x1000, 2), (0x20_0000, 3), (1 << 40, 1), (-4096, 1)]
)
def test_a_leaf_address_must_fit(address: int, level: int) -> None:
    with pytest.raises(EncodingError, match="no address"):
        X86Format(4, 40).leaf_entry(address, Attributes(R | X), level)


@pytest.mark.parametrize(("levels", "bits"), [(3, 40), (6, 40), (4, 31), (4, 53)])
def test_modes_that_do_not_exist_are_refused(levels: int, bits: int) -> None:
    with pytest.raises(EncodingError):
        X86Format(levels, bits)


# ---- shape and printing


def test_four_levels_translate_48_bits_and_five_57() -> None:
    for fmt, bits in zip(FORMATS, (48, 57), strict=True):
        assert (fmt.virtual_bits, fmt.page_size, fmt.leaf_sizes()) == (bits, 4096, tuple(LEAVES.values()))
        assert [fmt.level_name(n) for n in range(1, fmt.top + 1)] == ["PT", "PD", "PDPT", "PML4", "PML5"][
            : fmt.top
        ]


@pytest.mark.parametrize("level", range(1, 6))
def test_the_fields_of_an_entry_do_not_overlap(level: int) -> None:
    fmt = X86Format(5)
    for entry in (1, 1 | PS):
        masks = [f.mask for f in fmt.fields(entry, level)]
        assert sum(masks) == reduce(or_, masks)


@pytest.mark.parametrize(
    ("entry", "level", "text"),
    [
        (0, 1, "PT 0x0000000000000000 absent"),
        (0x5002, 1, "PT 0x0000000000005002 SWAP 0x5"),
        (0x8000_0000_0000_7067, 1, "PT 0x8000000000007067 P RW US A D XD -> 0x7000"),
        (0x7027, 2, "PD 0x0000000000007027 P RW US A -> 0x7000"),
        (0x60_10E3, 2, "PD 0x00000000006010e3 P RW A D PS PAT -> 0x600000"),
        (0x60_30E3, 2, "PD 0x00000000006030e3 P RW A D PS PAT reserved 0x2000"),
    ],
)
def test_an_entry_is_described_by_what_it_is(entry: int, level: int, text: str) -> None:
    assert X86Format().describe(entry, level) == text
