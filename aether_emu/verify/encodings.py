"""An encoder under judgement: does each entry that a format makes mean, by the manual, what was asked for?

    encode   every leaf of a product of neutral attributes, below tables of the format's own making, walked
             by the specification: address, size, rights, accessed, dirty, global, memory type, key
    decode   random words at every level: what the format takes them for, against the specification

The judge of both is `verify.spec`; the format may be anybody's. Cases are counted like any others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from aether_emu.arch.arm64.registers import MAIR_VALUE
from aether_emu.arch.paging import (
    Attributes,
    Entry,
    Held,
    HeldKind,
    Leaf,
    Malformed,
    MemoryType,
    PageFlags,
    PageTableFormat,
    Reach,
    Table,
)
from aether_emu.arch.x86_64.registers import PAT_VALUE
from aether_emu.errors import EncodingError
from aether_emu.verify.cases import Bits, Numbers, Words
from aether_emu.verify.comparison import Case, Tally
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
_AT_ONCE = 10_000  # cases that are judged together
_TABLES = 1 << 20  # where the tables of a path are, one page of 64K each


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a leaf says, one element a case; whoever says it. Where a case is no leaf, only `leaf` counts."""

    leaf: Bits
    table: Bits
    malformed: Bits
    address: Words
    size: Numbers
    user: Bits
    write: Bits  # by who may, without a fault that notes DIRTY first
    execute: Bits  # by the privilege that `user` names
    is_global: Bits
    accessed: Bits
    dirty: Bits
    memory: Numbers  # in the manual's code
    key: Numbers


def judge(
    fmt: PageTableFormat, isa: str, count: int, seed: int, tally: Tally, only: str = ""
) -> Iterator[int]:
    """Judge an encoder by about `count` cases each way; yields how many as they are done.

    Features are kept whose name contains `only`.
    """
    rng = np.random.default_rng(seed)
    share = max(1, count // fmt.top)
    account = _Account(tally, only)
    for level in range(1, fmt.top + 1):
        for start in range(0, share, _AT_ONCE):
            part = min(_AT_ONCE, share - start)
            yield _encodings(fmt, isa, level, part, rng, account)
            yield _decodings(fmt, isa, level, part, rng, account)
    yield _not_present(fmt, isa, account)


@dataclass(frozen=True, slots=True)
class _Account:
    """Where cases are counted, and which of them."""

    tally: Tally
    only: str


# ---- encoding


def _encodings(
    fmt: PageTableFormat, isa: str, level: int, count: int, rng: np.random.Generator, account: _Account
) -> int:
    """Leaves at one level, and the tables above them."""
    asked, entries, addresses = [], [], []
    for attributes in _attributes(fmt, rng, count):
        size = fmt.levels[level - 1].size
        address = int(rng.integers(1 << fmt.physical_bits)) & -size
        try:
            entries.append(fmt.leaf_entry(address, attributes, level))
        except EncodingError:
            continue
        asked.append(attributes)
        addresses.append(address)
    if not asked:
        return 0
    words = np.array(entries, np.uint64)
    meant = _meaning(fmt, isa, level, words, [fmt.table_entry(_table(k)) for k in range(fmt.top)])
    wanted = _asked(fmt, isa, level, asked, np.array(addresses, np.uint64))
    name = fmt.level_name(level)
    done = _count(account, f"encode: {name} leaf", level, words, wanted, meant)
    # What is done to leaves later changes what it says, and nothing else.
    granted = np.array([bool(one.flags & PageFlags.WRITE) for one in asked])
    by_software = not fmt.hardware_dirty
    no = np.full(words.size, False)
    for operation, changed, becomes in (
        ("touch", fmt.touch(words), replace(wanted, accessed=~no)),
        ("age", fmt.age(words), replace(wanted, accessed=no)),
        ("soil", fmt.soil(words), replace(wanted, dirty=~no, write=granted if by_software else wanted.write)),
        ("clean", fmt.clean(words), replace(wanted, dirty=no, write=no if by_software else wanted.write)),
        ("write-protect", fmt.write_protect(words), replace(wanted, write=no)),
    ):
        after = _meaning(fmt, isa, level, changed, [fmt.table_entry(_table(k)) for k in range(fmt.top)])
        done += _count(account, f"{operation}: {name} leaf", level, changed, becomes, after)
    same = (fmt.writable(words) != 0) == granted
    done += _tell(account, f"writable: {name} leaf", level, words, same, "as asked", "otherwise")
    noted = ((fmt.accessed(words) != 0) == wanted.accessed) & ((fmt.dirty(words) != 0) == wanted.dirty)
    return done + _tell(account, f"noted: {name} leaf", level, words, noted, "as asked", "otherwise")


def _attributes(fmt: PageTableFormat, rng: np.random.Generator, count: int) -> list[Attributes]:
    """A seeded sample, the same flags for everybody: a format refuses what it cannot say."""
    flags = [
        PageFlags.READ | sum(chosen, PageFlags(0))
        for chosen in product(*((PageFlags(0), flag) for flag in PageFlags if flag is not PageFlags.READ))
    ]
    kinds = list(MemoryType)
    contiguous = any(level.contiguous > 1 for level in fmt.levels)
    made = []
    for number in range(count):
        key = int(rng.integers(16)) if number % 4 == 0 else 0
        made.append(
            Attributes(
                flags[number % len(flags)],
                kinds[int(rng.integers(len(kinds)))],
                key,
                int(rng.integers(8 if number % 2 else 1 << 10)),
                contiguous and number % 8 == 1,
            )
        )
    return made


def _asked(fmt: PageTableFormat, isa: str, level: int, asked: list[Attributes], addresses: Words) -> Meaning:
    """What the attributes promise."""
    n = len(asked)

    def has(flag: PageFlags) -> Bits:
        return np.array([bool(one.flags & flag) for one in asked])

    codes = _PAT if isa == "x86_64" else _MAIR
    write = has(PageFlags.WRITE)
    if not fmt.hardware_dirty:  # software notes the first write
        write &= has(PageFlags.DIRTY)
    return Meaning(
        np.full(n, True),
        np.full(n, False),
        np.full(n, False),
        addresses,
        np.full(n, fmt.levels[level - 1].size),
        has(PageFlags.USER),
        write,
        has(PageFlags.EXECUTE),
        has(PageFlags.GLOBAL),
        has(PageFlags.ACCESSED),
        has(PageFlags.DIRTY),
        np.array([codes[one.memory] for one in asked]),
        np.array([one.key for one in asked]),
    )


def _not_present(fmt: PageTableFormat, isa: str, account: _Account) -> int:
    """Held entries are absent to an MMU, and tables of each reach leave what they promise."""
    held = [fmt.held_entry(Held(kind, value)) for kind in HeldKind for value in (0, 1, 0xABCDE, 1 << 40)]
    words = np.array([0, *held], np.uint64)
    nothing = _nothing(words.size)
    done = 0
    for level in range(1, fmt.top + 1):
        meant = _meaning(fmt, isa, level, words, [fmt.table_entry(_table(k)) for k in range(fmt.top)])
        done += _count(account, "held and absent entries", level, words, nothing, meant)
    flags = PageFlags.READ | PageFlags.WRITE | PageFlags.DIRTY | PageFlags.ACCESSED | PageFlags.EXECUTE
    for reach, user in product(Reach, (True, False)):
        leaf = Attributes(flags | (PageFlags.USER if user else PageFlags(0)))
        entry = np.array([fmt.leaf_entry(0x4000_0000, leaf)], np.uint64)
        tables = [fmt.table_entry(_table(k), reach) for k in range(fmt.top)]
        meant = _meaning(fmt, isa, 1, entry, tables)
        wanted = _asked(fmt, isa, 1, [leaf], np.array([0x4000_0000], np.uint64))
        wanted = _behind(wanted, reach, isa)
        done += _count(account, f"table: {reach.name.lower()}", 1, entry, wanted, meant)
    return done


def _behind(wanted: Meaning, reach: Reach, isa: str) -> Meaning:
    """What tables of a reach leave of a leaf: on x86_64 none keeps the supervisor from executing."""
    user = wanted.user if reach is not Reach.SUPERVISOR else np.full_like(wanted.user, False)
    execute = wanted.execute
    if isa == "arm64":
        lost = wanted.user if reach is Reach.SUPERVISOR else ~wanted.user
        execute = execute if reach is Reach.ANY else execute & ~lost
    return replace(wanted, user=user, execute=execute)


# ---- decoding


def _decodings(
    fmt: PageTableFormat, isa: str, level: int, count: int, rng: np.random.Generator, account: _Account
) -> int:
    """Random words at one level."""
    words = rng.integers(0, 1 << 64, count, dtype=np.uint64)
    words |= np.where(rng.random(count) < 0.9, np.uint64(1), np.uint64(0))
    few = np.uint64((1 << fmt.physical_bits) - 1 & fmt.address_mask | 0xFFF | 0xFFF << 52)
    words = np.where(rng.random(count) < 0.6, words & few, words)
    large = np.uint64(-fmt.levels[level - 1].size & (1 << 64) - 1 | 0xFFF)
    words = np.where(rng.random(count) < 0.6, words & large, words)
    taken = _taken(fmt, isa, level, words)
    meant = _meaning(fmt, isa, level, words, [fmt.table_entry(_table(k)) for k in range(fmt.top)])
    if isa == "arm64":  # reported as malformed, ignored by an MMU (see the format)
        spec = fmt.levels[level - 1]
        ignored = words & np.uint64((1 << 48) - 1 & spec.size - 1 & -4096)
        account.tally.set_aside += int((taken.malformed & meant.leaf & (ignored != 0)).sum())
        res0 = taken.malformed & (meant.leaf | meant.table) & (ignored != 0)
        meant = _malformed_where(meant, res0)
    done = _count(account, f"decode: {fmt.level_name(level)} entry", level, words, taken, meant)
    following = np.array([fmt.next_table(word, level) is not None for word in words.tolist()])
    feature = f"next table: {fmt.level_name(level)} entry"
    return done + _tell(account, feature, level, words, following == taken.table, "table", "not one")


def _taken(fmt: PageTableFormat, isa: str, level: int, words: Words) -> Meaning:
    """What the format takes entries for."""
    decoded: list[Entry] = [fmt.decode(word, level) for word in words.tolist()]
    codes = _PAT if isa == "x86_64" else _MAIR
    leaves = [one if isinstance(one, Leaf) else None for one in decoded]

    def has(flag: PageFlags) -> Bits:
        return np.array([one is not None and bool(one.attributes.flags & flag) for one in leaves])

    write = has(PageFlags.WRITE)
    if not fmt.hardware_dirty:  # where noting DIRTY changes nothing it was noted
        write &= fmt.soil(words) == words
    return Meaning(
        np.array([one is not None for one in leaves]),
        np.array([isinstance(one, Table) for one in decoded]),
        np.array([isinstance(one, Malformed) for one in decoded]),
        np.array([one.address if isinstance(one, Leaf | Table) else 0 for one in decoded], np.uint64),
        np.array([fmt.levels[level - 1].size if one is not None else 0 for one in leaves]),
        has(PageFlags.USER),
        write,
        has(PageFlags.EXECUTE),
        has(PageFlags.GLOBAL),
        has(PageFlags.ACCESSED),
        has(PageFlags.DIRTY),
        np.array([codes[one.attributes.memory] if one is not None else 0 for one in leaves]),
        np.array([one.attributes.key if one is not None else 0 for one in leaves]),
    )


# ---- the specification's reading


def _table(level_below: int) -> int:
    """Where the table of each level of a path is; 0 is the page table's."""
    return _TABLES + (level_below << 16)


def _meaning(fmt: PageTableFormat, isa: str, level: int, words: Words, tables: list[int]) -> Meaning:
    """What entries at `level` mean below the given table entries (`tables[k]` points at level k+1's)."""
    n = words.size
    strayed = np.zeros(n, bool)
    offset = np.zeros(n, np.uint64)

    def fetch(ours: int, at: Words, cases: Numbers) -> Words:
        home = np.uint64(_table(ours - 1) >> 16) == at >> np.uint64(16)
        if ours >= level:
            strayed[cases] |= ~home
            return words[cases] if ours == level else np.full(cases.size, tables[ours - 2], np.uint64)
        below[cases] = True
        offset[cases] = at
        return np.zeros(cases.size, np.uint64)

    below = np.zeros(n, bool)
    addresses = np.zeros(n, np.uint64)
    if isa == "x86_64":
        return _x86_meaning(fmt, level, words, fetch, addresses, below, offset, strayed)
    return _arm_meaning(fmt, level, words, fetch, addresses, below, offset, strayed)


def _x86_meaning(
    fmt: PageTableFormat, level: int, words: Words, fetch: Callable[[int, Words, Numbers], Words],
    addresses: Words, below: Bits, offset: Words, strayed: Bits,
) -> Meaning:  # fmt: skip
    mode = x86_64.Mode(fmt.top, fmt.physical_bits)
    found = x86_64.translate(fetch, _table(fmt.top - 1), addresses, mode)
    leaf = (found.ended == x86_64.Ended.MAPPED) & (found.level == level) & ~strayed
    pat = np.array([PAT_VALUE >> 8 * index & 7 for index in range(8)])
    return Meaning(
        leaf,
        below & ~strayed,
        (found.ended == x86_64.Ended.RESERVED) & (found.level == level),
        np.where(leaf, found.physical, np.where(below, offset, np.uint64(0))),
        np.where(leaf, 1 << found.shift, 0),
        leaf & found.user,
        leaf & found.writable,
        leaf & ~found.no_execute,
        leaf & found.is_global,
        leaf & (words >> np.uint64(5) & np.uint64(1) != 0),  # 4.8
        leaf & found.dirty,
        np.where(leaf, pat[found.memory], 0),
        np.where(leaf, found.key, 0),
    )


def _arm_meaning(
    fmt: PageTableFormat, level: int, words: Words, fetch: Callable[[int, Words, Numbers], Words],
    addresses: Words, below: Bits, offset: Words, strayed: Bits,
) -> Meaning:  # fmt: skip
    bits = fmt.virtual_bits
    mode = arm64.Mode(fmt.page_shift, (bits, bits), fmt.physical_bits)

    def by_arms_level(theirs: int, at: Words, cases: Numbers) -> Words:
        return fetch(4 - theirs, at, cases)

    root = _table(fmt.top - 1)
    found = arm64.translate(by_arms_level, (root, root), addresses, mode)
    here = found.level == 4 - level
    leaf = (found.ended == arm64.Ended.MAPPED) & here & ~strayed
    present = words & np.uint64(1) != 0
    user = leaf & (found.user_data | found.user_execute)
    mair = np.array([MAIR_VALUE >> 8 * index & 0xFF for index in range(8)])
    # Dirty state in software: AP[2] clear, or bit 55, which Arm leaves to software.
    dirty = (words >> np.uint64(7) & np.uint64(1) == 0) | (words >> np.uint64(55) & np.uint64(1) != 0)
    return Meaning(
        leaf,
        below & ~strayed,
        (found.ended != arm64.Ended.MAPPED) & here & present & ~below,
        np.where(leaf, found.physical, np.where(below, offset, np.uint64(0))),
        np.where(leaf, 1 << found.shift, 0),
        user,
        leaf & found.writable & (found.user_data | ~user),
        leaf & np.where(user, found.user_execute, found.privileged_execute),
        leaf & found.is_global,
        leaf & found.accessed,
        leaf & dirty,
        np.where(leaf, mair[found.memory], 0),
        np.zeros(words.size, np.int64),
    )


def _nothing(n: int) -> Meaning:
    no, zero = np.full(n, False), np.zeros(n, np.int64)
    return Meaning(no, no, no, np.zeros(n, np.uint64), zero, no, no, no, no, no, no, zero, zero)


def _malformed_where(meant: Meaning, chosen: Bits) -> Meaning:
    def off(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.where(chosen, np.zeros_like(values), values)

    return Meaning(
        off(meant.leaf), off(meant.table), meant.malformed | chosen, off(meant.address), off(meant.size),
        off(meant.user), off(meant.write), off(meant.execute), off(meant.is_global), off(meant.accessed),
        off(meant.dirty), off(meant.memory), off(meant.key),
    )  # fmt: skip


# ---- accounts


def _count(account: _Account, feature: str, level: int, words: Words, wanted: Meaning, meant: Meaning) -> int:
    same = np.full(words.size, True)
    for name in Meaning.__slots__:
        same &= getattr(wanted, name) == getattr(meant, name)
    return _tell(account, feature, level, words, same, _in_words(wanted), _in_words(meant))


def _tell(
    account: _Account,
    feature: str,
    level: int,
    words: Words,
    same: Bits,
    wanted: str | Callable[[int], str],
    meant: str | Callable[[int], str],
) -> int:
    tally = account.tally
    if account.only not in feature:
        return 0
    cell, n = (feature, "format"), int(words.size)
    tally.cells[cell] += n
    tally.red[cell] += int((~same).sum())
    tally.different += int((~same).sum())
    tally.cases += n
    for index in [*(~same).nonzero()[0][:3].tolist(), 0]:
        expected, observed = (text if isinstance(text, str) else text(index) for text in (meant, wanted))
        case = Case(
            feature, "format", {}, 0, level, (0,) * (level - 1) + (int(words[index]),), expected, observed
        )
        tally.examples.setdefault(cell, case)
        if not same[index]:
            tally.differences.append(case)
    return n


def _in_words(meaning: Meaning) -> Callable[[int], str]:
    def text(index: int) -> str:
        if not meaning.leaf[index]:
            kinds = ("table", meaning.table), ("malformed", meaning.malformed)
            return next((name for name, where in kinds if where[index]), "nothing")
        names = ("user", "write", "execute", "is_global", "accessed", "dirty")
        rights = " ".join(name for name in names if getattr(meaning, name)[index])
        return (
            f"leaf of {int(meaning.size[index]):#x} at {int(meaning.address[index]):#x}, {rights}, "
            f"memory {int(meaning.memory[index]):#x}, key {int(meaning.key[index])}"
        )

    return text
