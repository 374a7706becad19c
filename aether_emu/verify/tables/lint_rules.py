"""The rules of `lint`, each a function of a survey."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np

from aether_emu.address import PhysAddr, VirtAddr
from aether_emu.verify.tables.formats import USER, Bits, Right, Words
from aether_emu.verify.tables.survey import Numbers, Odd, Survey

VSYSCALL = 0xFFFF_FFFF_FF60_0000
"""Where Linux on x86_64 maps one user page in the upper half, for old programs."""

_OUTLIERS = 16  # a bit is missing when at most one in so many entries of a run lacks it


class Severity(Enum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """`address` is virtual, of the first of `count` entries, `last` of the last one.

    `entry` is the first entry and `at` where it stands; None for a root, which no entry leads to.
    """

    rule: str
    severity: Severity
    address: VirtAddr
    last: VirtAddr
    count: int
    entry: int | None
    at: PhysAddr | None
    what: str
    why: str


def _virtual(address: np.uint64) -> VirtAddr:
    return VirtAddr(int(address), 64)


Rule = Callable[[Survey], Iterator[Finding]]


def _of_leaves(
    found: Survey, rule: str, severity: Severity, which: Bits | Numbers, what: str, why: str
) -> Iterator[Finding]:
    """One finding for the leaves that `which` chooses, or none."""
    chosen = np.flatnonzero(which) if which.dtype == bool else which
    if not chosen.size:
        return
    leaves, first = found.leaves, int(chosen[0])
    yield Finding(
        rule, severity, _virtual(leaves.address[first]), _virtual(leaves.address[chosen[-1]]),
        int(chosen.size), int(leaves.entry[first]), PhysAddr(int(leaves.at[first])), what, why,
    )  # fmt: skip


_ODD = {
    Odd.RESERVED: (
        "reserved-bits", Severity.ERROR, "{name} entry with reserved bits {bits:#x}",
        "every access below it faults, and another CPU may give the bits a meaning",
    ),
    Odd.BEYOND: (
        "address-too-wide", Severity.ERROR, "{name} entry whose address has bits {bits:#x}, too many",
        "every access below it faults: no memory has such an address",
    ),
    Odd.UNBACKED: (
        "unbacked-table", Severity.ERROR, "{name} table at {bits:#x} is not in the image, or not all of it",
        "what it maps is unknown; a CPU would read whatever is at that address",
    ),
    Odd.LOOP: (
        "table-loop", Severity.WARNING, "{name} entry leads back to the table at {bits:#x}, above it",
        "tables become pages of the address space, with the rights of this entry",
    ),
    Odd.LIMIT: (
        "not-followed", Severity.ERROR, "more tables than the limit: what lies below {bits:#x} was not read",
        "nothing here speaks for the rest of the address space",
    ),
}  # fmt: skip


def oddities(found: Survey) -> Iterator[Finding]:
    """What the survey met on its way, one finding for each kind, level and set of bits."""
    for item in found.odd:
        rule, severity, what, why = _ODD[item.odd]
        groups = np.zeros(item.address.size, np.int64)
        if item.odd in (Odd.RESERVED, Odd.BEYOND):
            groups = np.unique(item.bits, return_inverse=True)[1]
        name = found.tables.format.level_names[min(item.level, found.tables.format.levels) - 1]
        for group in range(int(groups.max()) + 1 if groups.size else 0):
            if group >= _MOST_GROUPS:
                groups = np.where(groups >= group, group, groups)
            chosen = np.flatnonzero(groups == group)
            first = int(chosen[0])
            at = int(item.at[first])
            root = at == (1 << 64) - 1
            yield Finding(
                rule, severity, _virtual(item.address[first]), _virtual(item.address[chosen[-1]]),
                int(chosen.size), None if root else int(item.entry[first]), None if root else PhysAddr(at),
                what.format(name=name, bits=int(item.bits[first])), why,
            )  # fmt: skip
            if group >= _MOST_GROUPS:
                break


_MOST_GROUPS = 64  # garbage has reserved bits in every combination: the rest is one finding


def encryption_bit(found: Survey) -> Iterator[Finding]:
    """An encryption bit that nobody named."""
    root = next((root for root in found.tables.roots if root is not None), None)
    if found.tables.guessed and root is not None:
        yield Finding(
            "encryption-bit", Severity.NOTE, VirtAddr(0), VirtAddr(0), 1, None, None,
            f"{found.tables.title}: all entries of the table at {root:#x} have it, and lead into the image "
            "without it",
            "memory encryption marks pages by an address bit; --encryption-bit names it",
        )  # fmt: skip


def writable_executable(found: Survey) -> Iterator[Finding]:
    """Memory that can be written and executed by the same privilege."""
    rights = found.leaves.rights
    user = (rights & np.uint16(Right.USER_WRITE) != 0) & (rights & np.uint16(Right.USER_EXECUTE) != 0)
    own = (rights & np.uint16(Right.WRITE) != 0) & (rights & np.uint16(Right.EXECUTE) != 0) & ~user
    rule = "writable-executable"
    yield from _of_leaves(
        found, rule, Severity.ERROR, own, "the kernel can write and execute it",
        "one stray or malicious store is code in the kernel",
    )  # fmt: skip
    yield from _of_leaves(
        found, rule, Severity.WARNING, user, "a user can write and execute it",
        "data becomes code; a program that generates code may want it",
    )  # fmt: skip


def user_in_upper_half(found: Survey) -> Iterator[Finding]:
    """Kernel memory that users reach."""
    leaves = found.leaves
    user = (leaves.rights & np.uint16(USER) != 0) & found.tables.format.is_upper(leaves.address)
    vsyscall = (leaves.address == VSYSCALL) & (leaves.rights & np.uint16(Right.USER_WRITE) == 0)
    if found.tables.format.isa == "x86_64":
        yield from _of_leaves(
            found, "user-kernel-memory", Severity.NOTE, user & vsyscall, "Linux's vsyscall page, read-only",
            "old programs call it; vsyscall=none removes it",
        )  # fmt: skip
        user &= ~vsyscall
    for right, verb in (
        (Right.USER_WRITE, "write"),
        (Right.USER_READ, "read"),
        (Right.USER_EXECUTE, "execute"),
    ):
        able = user & (leaves.rights & np.uint16(right) != 0)
        user &= ~able
        yield from _of_leaves(
            found, "user-kernel-memory", Severity.ERROR, able, f"users can {verb} memory of the upper half",
            "the kernel's half is no longer the kernel's",
        )  # fmt: skip


def table_writable(found: Survey) -> Iterator[Finding]:
    """Page tables that are themselves mapped writable."""
    leaves, pages = found.leaves, found.table_pages
    low = np.searchsorted(pages, leaves.physical)
    high = np.searchsorted(pages, leaves.physical + found.sizes())
    holds = high > low
    user = holds & (leaves.rights & np.uint16(Right.USER_WRITE) != 0)
    own = holds & ~user & (leaves.rights & np.uint16(Right.WRITE) != 0)
    yield from _of_leaves(
        found, "table-writable", Severity.ERROR, user, "users can write a page table that is in use",
        "who writes it maps whatever memory they like",
    )  # fmt: skip
    yield from _of_leaves(
        found, "table-writable", Severity.NOTE, own, "the kernel can write page tables that are in use",
        "kernels edit their tables through it; hardened ones map them read-only",
    )  # fmt: skip


def memory_alias(found: Survey) -> Iterator[Finding]:
    """One frame under two memory types."""
    leaves, rules = found.leaves, found.tables.format
    ends = leaves.physical + found.sizes()
    kinds: dict[str, list[int]] = {}
    for memory in np.unique(leaves.memory).tolist():
        kinds.setdefault(rules.memory_name(memory), []).append(memory)
    unions = {}
    for name, members in kinds.items():
        chosen = np.flatnonzero(np.isin(leaves.memory, members))
        unions[name] = (chosen, *_union(leaves.physical[chosen], ends[chosen]))
    names = sorted(unions)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            # Of the two, the leaves of the type that less memory has are told.
            rare, common = sorted(
                (one, other), key=lambda name: int((unions[name][2] - unions[name][1]).sum())
            )
            chosen, (_all, starts, stops) = unions[rare][0], unions[common]
            low = np.searchsorted(stops, leaves.physical[chosen], "right")
            high = np.searchsorted(starts, ends[chosen], "left")
            yield from _of_leaves(
                found, "memory-type-alias", Severity.ERROR, chosen[high > low],
                f"frames mapped as {rare} here, from {int(leaves.physical[chosen[high > low][0]]):#x} on, "
                f"are mapped as {common} elsewhere" if (high > low).any() else "",
                "the architecture does not define what accesses by both addresses see",
            )  # fmt: skip


def _union(starts: Words, ends: Words) -> tuple[Words, Words]:
    """Disjoint ascending ranges that cover the same as the given ones."""
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    apart = np.concatenate([[True], starts[1:] > ends[:-1]])
    last = np.concatenate([apart[1:], [True]])
    return starts[apart], ends[last]


def unbacked(found: Survey) -> Iterator[Finding]:
    """Pages that are not memory of the image."""
    leaves, rules = found.leaves, found.tables.format
    sizes = found.sizes()
    there = found.tables.image.existing(leaves.physical, sizes)
    uncached = np.array([rules.is_cached(memory) is False for memory in range(256)])[leaves.memory]
    rule, gone = "unbacked-page", there == 0
    yield from _of_leaves(
        found, rule, Severity.NOTE, gone & uncached, "uncached pages of no memory in the image",
        "devices are mapped like this",
    )  # fmt: skip
    yield from _of_leaves(
        found, rule, Severity.WARNING, gone & ~uncached, "pages of no memory in the image, not uncached",
        "a device needs an uncached type; memory would be in the image",
    )  # fmt: skip
    yield from _of_leaves(
        found, rule, Severity.NOTE, ~gone & (there < sizes), "large pages that reach past the end of memory",
        "speculation may touch what lies behind",
    )  # fmt: skip


def _same_table(found: Survey, whole: Bits, level: int) -> tuple[Numbers, Numbers]:
    """Leaves of `level` in `whole`, and the group of each: those whose entries fill one aligned table."""
    chosen = np.flatnonzero(whole & (found.leaves.level == level))
    span = np.uint64(found.tables.format.shifts[level - 1] + found.tables.format.widths[level - 1])
    parent = found.leaves.address[chosen] >> span
    group = np.cumsum(np.concatenate([[0], parent[1:] != parent[:-1]])) if chosen.size else parent
    return chosen, group.astype(np.int64)


def split_inconsistent(found: Survey) -> Iterator[Finding]:
    """A table that stands for one large page, whose parts disagree about what a large page has once.

    That is: all its entries are leaves, their frames follow each other from an aligned one on, and they
    differ in memory type or the global bit. Rights may differ: that is what a page is split for.
    """
    leaves, rules = found.leaves, found.tables.format
    every = np.ones(leaves.count, bool)
    for level in range(1, min(rules.levels, 3)):
        chosen, group = _same_table(found, every, level)
        if not chosen.size:
            continue
        entries = 1 << rules.widths[level - 1]
        size = np.uint64(1 << rules.shifts[level - 1])
        first = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
        counts = np.diff(np.concatenate([first, [chosen.size]]))
        full = first[counts == entries]
        rows = chosen[full[:, None] + np.arange(entries)] if full.size else np.zeros((0, entries), np.int64)
        frames = leaves.physical[rows]
        straight = (frames == frames[:, :1] + np.arange(entries, dtype=np.uint64) * size).all(axis=1)
        straight &= frames[:, 0] % (size * np.uint64(entries)) == 0 if full.size else True
        rows = rows[straight]
        for column, what in (
            (leaves.memory, "memory type"),
            (leaves.rights & np.uint16(Right.GLOBAL), "the global bit"),
        ):
            values = column[rows]
            typical = np.median(values, axis=1).astype(values.dtype) if rows.size else values[:, 0]
            odd = values != typical[:, None]
            yield from _of_leaves(
                found, "split-inconsistent", Severity.WARNING, rows[odd],
                f"pages of one split-up large page differ in {what}",
                "the TLB may still hold the large page; the CPU then uses either",
            )  # fmt: skip


def missing_bit(found: Survey) -> Iterator[Finding]:
    """Few entries of one piece of memory without a bit that all the others have.

    A piece is a run of leaves contiguous in addresses and in frames, of one half, one memory type and
    the same rights to write. At most one in 16 may lack the bit.
    """
    leaves = found.leaves
    if leaves.count < _OUTLIERS:
        return
    upper = found.tables.format.is_upper(leaves.address)
    sizes = found.sizes()
    kind = leaves.rights & np.uint16(Right.USER_READ | Right.USER_WRITE | Right.WRITE)
    follows = (leaves.address[1:] == leaves.address[:-1] + sizes[:-1]) & (kind[1:] == kind[:-1])
    follows &= leaves.physical[1:] == leaves.physical[:-1] + sizes[:-1]
    follows &= (leaves.memory[1:] == leaves.memory[:-1]) & (upper[1:] == upper[:-1])
    run = np.concatenate([[0], np.cumsum(~follows)])
    length = np.bincount(run)
    execute = leaves.rights & np.uint16(Right.EXECUTE | Right.USER_EXECUTE) != 0
    not_global = leaves.rights & np.uint16(Right.GLOBAL) == 0
    code = "code may run in the middle of data"
    for lacks, name, rule, where, severity, why in (
        (not_global, "global", "missing-global", upper, Severity.WARNING,
         "it leaves the TLB at every change of address space, unlike its neighbours"),
        (execute, "execute-disable", "missing-nx", upper, Severity.WARNING, code),
        (execute, "execute-disable", "missing-nx", ~upper, Severity.NOTE, code),
    ):  # fmt: skip
        few = np.bincount(run, weights=lacks)
        rare = (few > 0) & (few * _OUTLIERS <= length)
        yield from _of_leaves(
            found, rule, severity, lacks & rare[run] & where,
            f"pages without {name} among pages that have it", why,
        )  # fmt: skip


_ARM_ATTRIBUTES = np.uint64(0x0060_0000_0000_0B7C | 1 << 50)
"""What descriptors of a contiguous run must share (Arm ARM D8.7.1): not AF, dirty state, software bits."""


def contiguous_inconsistent(found: Survey) -> Iterator[Finding]:
    """Contiguous hints whose run is not whole, not contiguous or not alike."""
    leaves, rules = found.leaves, found.tables.format
    hinted = leaves.rights & np.uint16(Right.CONTIGUOUS) != 0
    for level in range(1, rules.levels + 1):
        chosen = np.flatnonzero(hinted & (leaves.level == level))
        length = rules.contiguous[level - 1]
        if not chosen.size or length == 1:
            continue
        size = np.uint64(1 << rules.shifts[level - 1])
        run = leaves.address[chosen] // (size * np.uint64(length))
        starts = np.concatenate([[True], run[1:] != run[:-1]])
        group = np.cumsum(starts) - 1
        head = np.flatnonzero(starts)[group]
        place = leaves.address[chosen] // size % np.uint64(length)
        base = leaves.physical[chosen] - place * size
        words = leaves.entry[chosen]
        # D8.5.5: with DBM, AP[2] is dirty state, which may differ.
        attributes = words & _ARM_ATTRIBUTES | words & ~(words >> np.uint64(51 - 7)) & np.uint64(1 << 7)
        wrong = (base != base[head]) | (base % (size * np.uint64(length)) != 0)
        wrong |= attributes != attributes[head]
        wrong |= np.bincount(group)[group] != length
        bad = np.bincount(group, weights=wrong) > 0
        yield from _of_leaves(
            found, "contiguous-inconsistent", Severity.ERROR, chosen[bad[group]],
            f"{rules.level_names[level - 1]} entries with the contiguous hint, whose run of {length} is not "
            "whole, aligned and alike",
            "the CPU may use any of the run's entries for all of it, or raise a TLB conflict abort",
        )  # fmt: skip


RULES: tuple[Rule, ...] = (
    encryption_bit, writable_executable, user_in_upper_half, table_writable, memory_alias, unbacked,
    split_inconsistent, missing_bit, contiguous_inconsistent,
)  # fmt: skip
