"""Permissions of areas: what a program asks for, what an entry grants, what a fault is denied."""

from __future__ import annotations

from dataclasses import replace
from enum import IntFlag
from functools import cache

from aether_emu.arch.paging import Access, Attributes, Held, HeldKind, MemoryType, PageFlags, PageTableFormat
from aether_emu.records import dataclass


class Protection(IntFlag):
    """The PROT_* bits of mmap, with Linux's values."""

    NONE = 0
    READ = 1
    WRITE = 2
    EXECUTE = 4


_KINDS = Access.READ | Access.WRITE | Access.EXECUTE
READABLE = Protection.READ | Protection.WRITE | Protection.EXECUTE


@cache
def denied_accesses(protection: Protection) -> int:
    """The `Access` bits that an area of this protection refuses. Any permission implies reading.

    A protection key refuses whatever the area says: looking again would find nothing to repair.
    """
    denied = int(_KINDS | Access.MALFORMED | Access.KEY)
    if protection & READABLE:
        denied &= ~Access.READ
    if protection & Protection.WRITE:
        denied &= ~Access.WRITE
    if protection & Protection.EXECUTE:
        denied &= ~Access.EXECUTE
    return int(denied)  # the steps above made an enum of it, whose operators are slow on the fault path


@dataclass(frozen=True, slots=True)
class LeafBits:
    """The bits of user leaves for one protection: an entry is `address | bits`.

    `read` never permits writing. `write` is `read` where the protection does not permit it. Both
    come accessed, `write` dirty too, so that the first access needs no second look. `clean` is `write`
    before the first write, for shared pages that were only read. PROT_NONE has held entries, which
    remember by `NOTED_ACCESSED` and `NOTED_DIRTY` of their value what the leaf had noted.
    `large` is `read` for the levels from 2 on, 0 where the format has no leaf, `large_write` is `write`, and
    `large_clean` is `clean`.
    """

    read: int
    write: int
    clean: int
    present: bool
    large: tuple[int, ...] = ()
    large_write: tuple[int, ...] = ()
    large_clean: tuple[int, ...] = ()

    def read_at(self, level: int) -> int:
        """`read` for a leaf of this level."""
        return self.large[level - 2] if level > 1 else self.read

    def write_at(self, level: int) -> int:
        """`write` for a leaf of this level."""
        return self.large_write[level - 2] if level > 1 else self.write

    def clean_at(self, level: int) -> int:
        """`clean` for a leaf of this level."""
        return self.large_clean[level - 2] if level > 1 else self.clean


_USER_MARK, _CLEAN_MARK = 2, 4  # bits of a leaf's software bits


@cache
def user_mark(fmt: PageTableFormat) -> int:
    """The bit of a leaf that says: whoever asked for it hears of the next write (userfaultfd)."""
    return _mark(fmt, _USER_MARK)


@cache
def clean_mark(fmt: PageTableFormat) -> int:
    """The bit of a leaf that says: nobody wrote to the page since that was last asked (`mm.soft_dirty`).

    A leaf that has it permits no writing.
    """
    return _mark(fmt, _CLEAN_MARK)


def _mark(fmt: PageTableFormat, software: int) -> int:
    plain = PageFlags.READ | PageFlags.USER
    return fmt.leaf_bits(Attributes(plain, software=software)) ^ fmt.leaf_bits(Attributes(plain))


NOTED_ACCESSED, NOTED_DIRTY, NOTED_CLEAN = 1 << 40, 1 << 41, 1 << 42  # beyond every frame number
NOTED_USER = 1 << 43


@cache
def noted(fmt: PageTableFormat) -> tuple[int, int, int]:
    """The bits of a NO_ACCESS entry that remember ACCESSED, DIRTY and the clean mark."""
    nothing = fmt.held_entry(Held(HeldKind.NO_ACCESS, 0))
    return (
        fmt.held_entry(Held(HeldKind.NO_ACCESS, NOTED_ACCESSED)) ^ nothing,
        fmt.held_entry(Held(HeldKind.NO_ACCESS, NOTED_DIRTY)) ^ nothing,
        fmt.held_entry(Held(HeldKind.NO_ACCESS, NOTED_CLEAN)) ^ nothing,
    )


@cache
def user_note(fmt: PageTableFormat) -> int:
    """The bit of a NO_ACCESS or SWAP entry that remembers `user_mark`."""
    nothing = fmt.held_entry(Held(HeldKind.NO_ACCESS, 0))
    return fmt.held_entry(Held(HeldKind.NO_ACCESS, NOTED_USER)) ^ nothing


def takes_notes(fmt: PageTableFormat, entry: int, level: int) -> bool:
    """Whether an entry is held, and of a kind that remembers what the leaf had noted."""
    held = fmt.decode(entry, level)
    return isinstance(held, Held) and held.kind in (HeldKind.NO_ACCESS, HeldKind.SWAP)


def is_clean(fmt: PageTableFormat, entry: int) -> bool:
    """Whether the entry of a page in memory has the clean mark, or the note of it."""
    return bool(entry & (clean_mark(fmt) if entry & fmt.present_mask else noted(fmt)[2]))


def is_told(fmt: PageTableFormat, entry: int) -> bool:
    """Whether the entry of a page in memory has the mark of `user_mark`, or the note of it."""
    return bool(entry & (user_mark(fmt) if entry & fmt.present_mask else user_note(fmt)))


def with_clean(fmt: PageTableFormat, bits: LeafBits, *, clean: bool) -> int:
    """`bits.read`, or what holds a page that nobody may touch: with the clean mark or its note, or not."""
    mark = clean_mark(fmt) if bits.present else noted(fmt)[2]
    return bits.read | mark if clean else bits.read & ~mark


def tracked(fmt: PageTableFormat, bits: LeafBits) -> LeafBits:
    """The same bits where it matters who writes: all but `write` has the clean mark, and is not writable."""
    if not bits.present:
        return bits
    read, mark = bits.read | clean_mark(fmt), clean_mark(fmt)
    large = tuple(each and each | mark for each in bits.large)
    return replace(bits, read=read, clean=read, large=large, large_clean=large)


def leaf_bits(
    fmt: PageTableFormat, protection: Protection, key: int = 0, memory: MemoryType = MemoryType.WRITE_BACK
) -> LeafBits:
    """The entry bits for a protection, a protection key and a memory type, computed once for an area."""
    if not protection & READABLE:
        held = fmt.held_entry(Held(HeldKind.NO_ACCESS, 0))
        large = (held,) * (fmt.top - 1)
        return LeafBits(held, held, held, False, large, large, large)
    flags = PageFlags.READ | PageFlags.USER | PageFlags.ACCESSED
    if protection & Protection.EXECUTE:
        flags |= PageFlags.EXECUTE
    read, large = _bits(fmt, flags, key, memory)
    if not protection & Protection.WRITE:
        return LeafBits(read, read, read, True, large, large, large)
    write, large_write = _bits(fmt, flags | PageFlags.WRITE | PageFlags.DIRTY, key, memory)
    large_clean = tuple(each and fmt.clean(each) for each in large_write)
    return LeafBits(read, write, fmt.clean(write), True, large, large_write, large_clean)


def _bits(
    fmt: PageTableFormat, flags: PageFlags, key: int, memory: MemoryType
) -> tuple[int, tuple[int, ...]]:
    """The bits of a leaf of level 1, and of those from level 2 on; 0 where the format has none."""
    first, *rest = (
        fmt.leaf_bits(Attributes(flags, memory, key), level) if fmt.levels[level - 1].leaf else 0
        for level in range(1, fmt.top + 1)
    )
    return first, tuple(rest)
