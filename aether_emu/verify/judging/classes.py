"""Words by class, none left to chance: each bit of an address alone, and everything that is not present.

The widest address shows whether a mask is a bit short or long, but only at the bit in question; what is
not present means something to software alone, and each bit of it counts.
"""

from __future__ import annotations

import numpy as np

from aether_emu.arch.paging import (
    Absent,
    Attributes,
    Entry,
    Held,
    HeldKind,
    Leaf,
    PageFlags,
    PageTableFormat,
    Reach,
)
from aether_emu.errors import EncodingError
from aether_emu.verify.cases.cases import Words
from aether_emu.verify.judging.judged import Judged, compare, tell
from aether_emu.verify.judging.readings import Kind, by_specification, nothing

_BITS = 64
_RANDOM = 256  # absent words by chance
_PLAIN = Attributes(
    PageFlags.READ | PageFlags.WRITE | PageFlags.EXECUTE | PageFlags.ACCESSED | PageFlags.DIRTY
)


def every_bit(judged: Judged, level: int) -> Words:
    """A leaf and a table at no address and at the last one, and each with one bit the other way."""
    fmt = judged.fmt
    last = (1 << judged.shape.physical_bits) - 1
    words = []
    if fmt.levels[level - 1].leaf:
        size = fmt.levels[level - 1].size
        words += [fmt.leaf_entry(address, _PLAIN, level) for address in (0, last & -size)]
    if level > 1:
        words += [fmt.table_entry(address) for address in (0, last & -judged.shape.page)]
    flips = np.concatenate([np.zeros(1, np.uint64), np.uint64(1) << np.arange(_BITS, dtype=np.uint64)])
    return np.asarray((np.array(words, np.uint64)[:, None] ^ flips).ravel())


def every_address_bit(judged: Judged, level: int) -> int:
    """Leaves at each address of one bit, and of all bits but one: where the manual finds the page."""
    fmt, shape, spec = judged.fmt, judged.shape, judged.fmt.levels[level - 1]
    if not spec.leaf:
        return 0
    whole = (1 << shape.physical_bits) - spec.size
    places = [1 << place for place in range(spec.shift, shape.physical_bits)]
    addresses = [0, whole, *places, *(whole ^ place for place in places)]
    words = np.array([fmt.leaf_entry(address, _PLAIN, level) for address in addresses], np.uint64)
    meant = by_specification(shape, level, words, judged.path(words.size))
    right = (meant.kind == Kind.LEAF) & (meant.address == np.array(addresses, np.uint64))
    decoded = [fmt.decode(word, level) for word in words.tolist()]
    same = [
        isinstance(one, Leaf) and one.address == place for one, place in zip(decoded, addresses, strict=True)
    ]
    done = tell(
        judged, f"every address bit: {spec.name} leaf", level, words, right,
        lambda at: hex(addresses[at]), meant.in_words,
    )  # fmt: skip
    return done + tell(
        judged, f"every address bit: {spec.name} leaf, read back", level, words, np.array(same),
        lambda at: hex(addresses[at]), lambda at: repr(decoded[at]),
    )  # fmt: skip


# ---- what is not present


def not_present(judged: Judged, level: int) -> int:
    """Held entries are absent to an MMU and keep what they were given; nothing else is taken for one."""
    fmt, name = judged.fmt, judged.fmt.level_name(level)
    held = [Held(kind, value) for kind in HeldKind for value in _values(fmt)]
    words = np.array([0, *map(fmt.held_entry, held)], np.uint64)
    meant = by_specification(judged.shape, level, words, judged.path(words.size))
    done = compare(judged, f"held: {name} entry", level, words, nothing(words.size), meant)
    wanted: list[Entry] = [Absent(), *held]
    decoded = [fmt.decode(word, level) for word in words.tolist()]
    same = np.array([one == other for one, other in zip(wanted, decoded, strict=True)])
    done += tell(
        judged, f"held: {name} entry, read back", level, words, same,
        lambda at: repr(wanted[at]), lambda at: repr(decoded[at]),
    )  # fmt: skip
    done += _absent(judged, level, words)
    wide = [Held(kind, value) for kind in HeldKind for value in (_most(fmt) + 1, 1 << _BITS - 1, -1)]
    refused = np.array([_refuses(fmt, one) for one in wide])
    feature = f"held: {name} entry, values that do not fit"
    return done + tell(judged, feature, level, np.zeros(refused.size, np.uint64), refused, "refused", "taken")


def _absent(judged: Judged, level: int, made: Words) -> int:
    """Words that are not present: held is only what the format makes so itself, the rest maps nothing."""
    fmt, rng = judged.fmt, judged.rng
    single = np.uint64(1) << np.arange(1, _BITS, dtype=np.uint64)
    near = (made[rng.integers(0, made.size, 64)][:, None] ^ single).ravel()
    random = rng.integers(0, 1 << _BITS, _RANDOM, dtype=np.uint64) & np.uint64((1 << _BITS) - 2)
    low = np.arange(0, fmt.page_size, 2, dtype=np.uint64)[: 1 << 11]
    words = np.concatenate([single, near, random, low])
    decoded = [fmt.decode(word, level) for word in words.tolist()]
    right = [_made_so(fmt, one, word) for one, word in zip(decoded, words.tolist(), strict=True)]
    followed = [fmt.next_table(word, level) is None for word in words.tolist()]
    return tell(
        judged, f"absent: {fmt.level_name(level)} entry", level, words, np.array(right) & np.array(followed),
        "absent, for no held entry is made like this", lambda at: repr(decoded[at]),
    )  # fmt: skip


def _made_so(fmt: PageTableFormat, decoded: Entry, word: int) -> bool:
    if isinstance(decoded, Held):
        return not _refuses(fmt, decoded) and fmt.held_entry(decoded) == word
    return isinstance(decoded, Absent)


def _most(fmt: PageTableFormat) -> int:
    """The largest value that a held entry keeps: what is above the page's offset."""
    return (1 << _BITS - fmt.page_shift) - 1


def _values(fmt: PageTableFormat) -> list[int]:
    most = _most(fmt)
    return [0, most, 0xABCDE, *(1 << place for place in range(most.bit_length()))]


def _refuses(fmt: PageTableFormat, held: Held) -> bool:
    try:
        fmt.held_entry(held)
    except EncodingError:
        return True
    return False


# ---- data


_LEAVES: dict[str, dict[int, tuple[int, ...]]] = {
    "x86_64": {12: (1, 1, 1)},
    "arm64": {12: (16, 16, 16), 14: (128, 32), 16: (32, 32)},
}
"""By ISA and page: the levels that may hold leaves, and how many a contiguous hint joins (D8.3.1, D8.7.1)."""


def data(judged: Judged, level: int) -> int:
    """The masks and sizes that a format declares say what its entries say."""
    fmt, shape, spec = judged.fmt, judged.shape, judged.fmt.levels[level - 1]
    words, right, said = [], [], []

    def expect(name: str, word: int, same: bool) -> None:
        words.append(word)
        right.append(same)
        said.append(name)

    table = fmt.table_entry(0)
    expect("present_mask", fmt.present_mask, fmt.present_mask == 1)
    below = shape.shifts[level - 2] if level > 1 else 3
    width = shape.shifts[0] - 3 if level < shape.top else shape.virtual_bits - spec.shift
    expect("bits and entries", spec.bits, spec.bits == width and spec.entries == 1 << width)
    expect("shift and size", spec.shift, spec.size == 1 << spec.shift and spec.shift > below)
    runs = _LEAVES[shape.isa][shape.shifts[0]]
    expect("leaf", level, spec.leaf == (level <= len(runs)))
    expect("contiguous", spec.contiguous, spec.contiguous == (*runs, 1, 1, 1, 1)[level - 1])
    if level > 1:
        last = (1 << shape.physical_bits) - shape.page
        expect("next_table", table, fmt.next_table(fmt.table_entry(last), level) == last)
        for reach in Reach:
            expect("reach", table, fmt.next_table(fmt.table_entry(last, reach), level) == last)
    if level == 1:
        last = (1 << shape.physical_bits) - spec.size
        leaf = fmt.leaf_entry(last, _PLAIN)
        expect("address_mask", fmt.address_mask, leaf & fmt.address_mask == last)
        expect("address_mask", fmt.address_mask, not fmt.leaf_bits(_PLAIN) & fmt.address_mask)
    if spec.contiguous > 1:
        hint = Attributes(_PLAIN.flags, contiguous=True)
        changed = fmt.leaf_bits(hint, level) ^ fmt.leaf_bits(_PLAIN, level)
        expect("contiguous_bit", fmt.contiguous_bit, changed == fmt.contiguous_bit != 0)
    return tell(
        judged, f"data: {spec.name}", level, np.array(words, np.uint64), np.array(right),
        lambda at: f"{said[at]} as the entries have it", "otherwise",
    )  # fmt: skip
