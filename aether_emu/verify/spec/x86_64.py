"""x86_64 paging by the Intel SDM, volume 3A chapter 4 (August 2024 order of sections), on arrays.

`translate` walks (4.5.4, 4.5.5), `judge` says what an access makes of the translation (4.6, 4.7), and
which accessed and dirty flags it leaves (4.8). Levels count from the page table: 1 PT, 2 PD, 3 PDPT,
4 PML4, 5 PML5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

Words = np.ndarray[Any, np.dtype[np.uint64]]
Bits = np.ndarray[Any, np.dtype[np.bool_]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]

Fetch = Callable[[int, Words, Numbers], Words]
"""(level, physical addresses of entries of that level, the cases they belong to) -> the entries."""


class Ended(IntEnum):
    """How a walk ends."""

    MAPPED = 0
    ABSENT = 1  # an entry's present flag is 0
    RESERVED = 2  # an entry has a reserved bit set (4.5.4)
    NON_CANONICAL = 3  # bits above the width do not repeat its highest bit (Vol. 1, 3.3.7.1)


class Access(IntEnum):
    """What an instruction does to the address."""

    READ = 0
    WRITE = 1
    FETCH = 2


@dataclass(frozen=True, slots=True)
class Mode:
    """What decides how entries are read: CR4.LA57, MAXPHYADDR, IA32_EFER.NXE."""

    levels: int = 4
    physical_bits: int = 52
    nxe: bool = True
    encryption: int = 0  # the address bit that selects no memory (SME, SEV: APM 2 7.10; TDX: shared)

    @property
    def virtual_bits(self) -> int:
        return 12 + 9 * self.levels


@dataclass(frozen=True, slots=True)
class Controls:
    """What decides about an access. Each a bool, or an array of one bool a case; `pkru` likewise a number."""

    wp: Bits | bool = True  # CR0.WP
    smep: Bits | bool = False  # CR4.SMEP
    smap: Bits | bool = False  # CR4.SMAP
    pke: Bits | bool = False  # CR4.PKE
    ac: Bits | bool = False  # EFLAGS.AC, or an implicit supervisor access never has it
    pkru: Words | int = 0


@dataclass(frozen=True, slots=True)
class Translation:
    """One element a case. Where the walk did not end MAPPED, only `ended`, `level`, `entries` mean something.

    `entries[k]` is what was read at level k+1, 0 where the walk did not come. `shift` is the page's size.
    `memory` is the index into IA32_PAT (4.9.2), `key` the protection key (4.6.2).
    """

    ended: Numbers
    level: Numbers
    physical: Words
    shift: Numbers
    user: Bits
    writable: Bits
    no_execute: Bits
    is_global: Bits
    accessed: Bits
    dirty: Bits
    memory: Numbers
    key: Numbers
    entries: list[Words]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an access ends in: `fault`, with the error code that #PF pushes (4.7), or success.

    `general_protection` marks the non-canonical ones, whose #GP has error code 0. `after[k]` is the entry
    of level k+1 with the flags that a successful access leaves in it (4.8).
    """

    fault: Bits
    general_protection: Bits
    error: Words
    after: list[Words]


def _bit(words: Words, position: int) -> Bits:
    return np.asarray((words >> np.uint64(position) & np.uint64(1)) != 0)


def _field(high: int, low: int) -> int:
    """A mask of bits high..low; 0 when there are none."""
    return (1 << high + 1) - (1 << low) if high >= low else 0


def reserved_bits(entries: Words, level: int, mode: Mode) -> Words:
    """The reserved bits that are set in present entries (4.5.4: tables 4-15 to 4-20)."""
    always = _field(51, mode.physical_bits) & ~mode.encryption
    if not mode.nxe:
        always |= 1 << 63
    found = entries & np.uint64(always)
    if level in (4, 5):
        return found | entries & np.uint64(1 << 7)
    if level in (2, 3):
        low = {2: _field(20, 13), 3: _field(29, 13)}[level]
        large = _bit(entries, 7)
        return found | np.where(large, entries & np.uint64(low), np.uint64(0))
    return found


def translate(fetch: Fetch, root: Words | int, addresses: Words, mode: Mode) -> Translation:
    """Walk each linear address from the physical `root` (CR3 without its low bits and its top bit)."""
    n, width = addresses.size, mode.virtual_bits
    sign = (addresses.astype(np.int64) >> np.int64(width - 1)).astype(np.int64)
    canonical = (sign == 0) | (sign == -1)
    ended = np.where(canonical, Ended.ABSENT, Ended.NON_CANONICAL).astype(np.int64)
    level_at = np.zeros(n, np.int64)
    physical, shift = np.zeros(n, np.uint64), np.zeros(n, np.int64)
    user, writable = np.ones(n, bool), np.ones(n, bool)
    no_execute = np.zeros(n, bool)
    leaf = np.zeros(n, np.uint64)
    entries = [np.zeros(n, np.uint64) for _ in range(mode.levels)]
    walking = canonical.copy()
    accessed = np.ones(n, bool)
    table = np.broadcast_to(np.asarray(root, np.uint64), (n,)) & np.uint64(_field(51, 12) & ~mode.encryption)
    address_bits = np.uint64(_field(mode.physical_bits - 1, 12) & ~mode.encryption)
    for level in range(mode.levels, 0, -1):
        at = 12 + 9 * (level - 1)
        index = addresses >> np.uint64(at) & np.uint64(511)
        entry = np.zeros(n, np.uint64)
        cases = walking.nonzero()[0]
        entry[cases] = fetch(level, (table + (index << np.uint64(3)))[cases], cases)
        entries[level - 1] = entry
        level_at[walking] = level
        walking = walking & _bit(entry, 0)  # where it is 0 the walk ends ABSENT, as it was set before
        bad = walking & (reserved_bits(entry, level, mode) != 0)
        ended[bad] = Ended.RESERVED
        walking = walking & ~bad
        user &= _bit(entry, 2) | ~walking
        writable &= _bit(entry, 1) | ~walking
        no_execute |= _bit(entry, 63) & walking
        accessed &= _bit(entry, 5) | ~walking
        is_leaf = walking & (_bit(entry, 7) if level in (2, 3) else np.full(n, level == 1))
        ended[is_leaf] = Ended.MAPPED
        offset = np.uint64((1 << at) - 1)
        found = entry & address_bits & ~offset | addresses & offset
        physical = np.where(is_leaf, found, physical)
        shift[is_leaf] = at
        leaf = np.where(is_leaf, entry, leaf)
        table = entry & address_bits
        walking = walking & ~is_leaf
    pat = np.where(shift == 12, _bit(leaf, 7), _bit(leaf, 12))
    memory = _bit(leaf, 3).astype(np.int64) | _bit(leaf, 4).astype(np.int64) << 1 | pat.astype(np.int64) << 2
    key = (leaf >> np.uint64(59) & np.uint64(15)).astype(np.int64)
    return Translation(
        ended, level_at, physical, shift, user, writable, no_execute, _bit(leaf, 8), accessed, _bit(leaf, 6),
        memory, key, entries,
    )  # fmt: skip


def judge(found: Translation, access: Numbers, by_user: Bits, controls: Controls, mode: Mode) -> Verdict:
    """What each access (an `Access`; `by_user` at CPL 3, else as an explicit supervisor access) ends in."""
    mapped = found.ended == Ended.MAPPED
    write, fetch = access == Access.WRITE, access == Access.FETCH
    data = ~fetch
    wp, pke = np.asarray(controls.wp), np.asarray(controls.pke)
    # 4.6.1, data and instruction accesses by mode and by address.
    by_supervisor = ~by_user
    denied = by_user & ~found.user
    denied |= by_user & write & ~found.writable
    denied |= by_supervisor & write & ~found.writable & wp
    denied |= by_supervisor & found.user & data & np.asarray(controls.smap) & ~np.asarray(controls.ac)
    denied |= by_supervisor & found.user & fetch & np.asarray(controls.smep)
    denied |= fetch & found.no_execute & mode.nxe
    # 4.6.2, protection keys: data accesses to user-mode addresses.
    pkru = np.broadcast_to(np.asarray(controls.pkru, np.uint64), found.key.shape)
    access_disable = _pkru_bit(pkru, found.key, 0)
    write_disable = _pkru_bit(pkru, found.key, 1) & write & (by_user | wp)
    by_key = mapped & pke & data & found.user & (access_disable | write_disable)
    reserved = found.ended == Ended.RESERVED
    non_canonical = found.ended == Ended.NON_CANONICAL
    fault = ~mapped | denied | by_key
    # 4.7, the error code: P, W/R, U/S, RSVD, I/D, PK.
    tells_fetch = fetch & (np.asarray(controls.smep) | mode.nxe)
    error = (mapped | reserved).astype(np.uint64)
    for position, flag in ((1, write), (2, by_user), (3, reserved), (4, tells_fetch), (5, by_key)):
        error |= flag.astype(np.uint64) << np.uint64(position)
    error = np.where(fault & ~non_canonical, error, np.uint64(0))
    after = []
    for number, entry in enumerate(found.entries, 1):
        used = ~fault & (entry != 0)
        flags = np.where(used, np.uint64(1 << 5), np.uint64(0))
        leaf_here = used & write & (found.level == number)
        after.append(entry | flags | np.where(leaf_here, np.uint64(1 << 6), np.uint64(0)))
    return Verdict(fault, non_canonical, error, after)


def _pkru_bit(pkru: Words, key: Numbers, which: int) -> Bits:
    return _bit(pkru >> (np.uint64(2) * key.astype(np.uint64)), which)
