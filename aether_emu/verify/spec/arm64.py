"""VMSAv8-64 stage 1 of the EL1&0 regime by the Arm ARM (DDI 0487 K.a), chapter D8, on arrays.

With LPA, LVA and LPA2; without HAFDBS, 128-bit descriptors and the second stage. `translate` walks (D8.2,
D8.3), `judge` says what an access makes of the translation (D8.4: permissions; D8.5.1: access flag; D8.15:
faults and their order). Levels here are Arm's: 0 to 3, the page at 3; with LPA2 and addresses of 52 bits
they begin at -1 for pages of 4K.
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
"""(Arm's level, physical addresses of descriptors of that level, the cases they belong to) -> descriptors."""


class Ended(IntEnum):
    """How a walk ends; all but MAPPED are faults of the walk itself."""

    MAPPED = 0
    TRANSLATION = 1
    ADDRESS_SIZE = 2
    RESERVED = 3  # a descriptor has a bit of `Mode.refused`: no fault of a CPU's, but where a reader stops


class Access(IntEnum):
    """What an instruction does to the address."""

    READ = 0
    WRITE = 1
    FETCH = 2


_ONES = (1 << 64) - 1
_BLOCKS = {12: (1, 2), 14: (2,), 16: (2,)}  # levels with block descriptors, by granule (D8.3.1)
_MORE_BLOCKS = {12: (0,), 14: (1,), 16: (1,)}  # and with 52-bit addresses


@dataclass(frozen=True, slots=True)
class Mode:
    """TCR_EL1 (D19.2.147): TG, TnSZ as widths, IPS as a width, TBIn, EPDn and HPDn for n in 0, 1."""

    granule_shift: int = 12
    virtual_bits: tuple[int, int] = (48, 48)
    physical_bits: int = 48
    top_byte_ignored: tuple[bool, bool] = (False, False)
    walk_disabled: tuple[bool, bool] = (False, False)
    hierarchy_disabled: tuple[bool, bool] = (False, False)
    blocks: tuple[int, ...] | None = None  # levels with block descriptors; None: the granule's (D8.3.1)
    wide: bool = False  # descriptors of 52-bit addresses: LPA with pages of 64K, else TCR_EL1.DS (LPA2)
    shareability: tuple[int, int] = (3, 3)  # SHn: with DS descriptors have none
    encryption: int = 0  # an address bit that selects no memory, as in Arm CCA's realms
    refused: int = 0  # descriptor bits that end a walk RESERVED


@dataclass(frozen=True, slots=True)
class Controls:
    """What decides about an access: SCTLR_EL1.WXN, PSTATE.PAN, PSTATE.UAO; bools, or one a case."""

    wxn: Bits | bool = False
    pan: Bits | bool = False
    uao: Bits | bool = False


@dataclass(frozen=True, slots=True)
class Translation:
    """One element a case. Where the walk did not end MAPPED, only `ended`, `level`, `entries` mean something.

    `level` is the one a fault reports. `entries[k]` is what was read at Arm's level k, 0 elsewhere. Where
    walks begin at level -1 that one is `entries[4]`.
    The four rights are after the hierarchical bits (D8.4.3); `shift` is the page's size.
    """

    ended: Numbers
    level: Numbers
    physical: Words
    shift: Numbers
    user_data: Bits  # AP[1]: EL0 may read
    writable: Bits  # not AP[2]
    user_execute: Bits  # not UXN
    privileged_execute: Bits  # not PXN
    is_global: Bits
    accessed: Bits
    memory: Numbers  # AttrIndx
    shareability: Numbers
    entries: list[Words]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an access ends in. `status` is DFSC or IFSC (D19.2.37), 0 with no fault; `write` its WnR."""

    fault: Bits
    status: Numbers
    write: Bits


def _bit(words: Words, position: int) -> Bits:
    return np.asarray((words >> np.uint64(position) & np.uint64(1)) != 0)


def _mask(high: int, low: int) -> np.uint64:
    """Bits high..low; none when high is below low."""
    return np.uint64((1 << high + 1) - (1 << low) if high >= low else 0)


def output_address(words: Words, mode: Mode) -> Words:
    """The address in descriptors, from the granule's bit up (D8.3.1; where the upper bits are: R_LPA, DS)."""
    g = mode.granule_shift
    if not mode.wide:
        return words & _mask(47, g)
    if g == 16:  # bits 15 to 12 are bits 51 to 48
        return words & _mask(47, g) | (words & _mask(15, 12)) << np.uint64(36)
    return words & _mask(49, g) | (words & _mask(9, 8)) << np.uint64(42)  # bits 9 and 8 are bits 51 and 50


def blocks_of(mode: Mode) -> tuple[int, ...]:
    """The levels that may hold block descriptors (D8.3.1)."""
    if mode.blocks is not None:
        return mode.blocks
    g = mode.granule_shift
    return _MORE_BLOCKS[g] + _BLOCKS[g] if mode.wide else _BLOCKS[g]


def translate(fetch: Fetch, roots: tuple[int, int], addresses: Words, mode: Mode) -> Translation:
    """Walk each address from TTBR0_EL1 or TTBR1_EL1, whose table addresses are `roots` (D8.2.4)."""
    n, g = addresses.size, mode.granule_shift
    stride = g - 3
    upper = _bit(addresses, 55)
    width = _of_half(upper, mode.virtual_bits).astype(np.int64)
    walking = _is_walked(addresses, width, mode)
    start = 4 - -(-(width - g) // stride)
    offset_in = addresses & _below(width)
    ended = np.full(n, Ended.TRANSLATION, np.int64)
    level_at = np.zeros(n, np.int64)
    physical, shift, leaf = np.zeros(n, np.uint64), np.zeros(n, np.int64), np.zeros(n, np.uint64)
    highest = min(int(start.min()), 0) if n else 0
    entries = [np.zeros(n, np.uint64) for _ in range(4 - highest)]
    locks = np.zeros(n, np.uint64)  # hierarchical bits of the tables on the way
    hierarchy = ~_of_half(upper, mode.hierarchy_disabled).astype(bool)
    table = _of_half(upper, roots).astype(np.uint64)
    for level in range(highest, 4):
        here = walking & (start <= level)
        if not here.any():
            continue
        at = g + stride * (3 - level)
        index = np.where(
            start == level, offset_in >> np.uint64(at), offset_in >> np.uint64(at) & _mask(stride - 1, 0)
        )
        entry = np.zeros(n, np.uint64)
        cases = here.nonzero()[0]
        entry[cases] = fetch(level, (table + (index << np.uint64(3)))[cases], cases)
        entries[level] = entry  # level -1 is the last one
        level_at[here] = level
        is_table, is_leaf, output, fault = _descriptors(entry, level, mode)
        ended = np.where(fault != Ended.TRANSLATION, fault, ended)
        ended[is_leaf] = Ended.MAPPED
        inside = np.uint64((1 << at) - 1)
        physical = np.where(is_leaf, output & ~inside | addresses & inside, physical)
        shift[is_leaf] = at
        leaf = np.where(is_leaf, entry, leaf)
        locks |= np.where(is_table & hierarchy, entry & _mask(62, 59), np.uint64(0))
        table = np.where(is_table, output, table)
        walking = (walking & (start > level)) | is_table
    return Translation(
        ended,
        level_at,
        physical,
        shift,
        _bit(leaf, 6) & ~_bit(locks, 61),
        ~_bit(leaf, 7) & ~_bit(locks, 62),
        ~_bit(leaf, 54) & ~_bit(locks, 60),
        ~_bit(leaf, 53) & ~_bit(locks, 59),
        ~_bit(leaf, 11),
        _bit(leaf, 10),
        (leaf >> np.uint64(2) & np.uint64(7)).astype(np.int64),
        _of_half(upper, mode.shareability).astype(np.int64)
        if mode.wide and g != 16
        else (leaf >> np.uint64(8) & np.uint64(3)).astype(np.int64),
        entries,
    )


def _of_half(upper: Bits, pair: tuple[Any, Any]) -> np.ndarray[Any, Any]:
    """What holds for each address: the first for the lower half, the second for the upper one."""
    return np.asarray(np.where(upper, pair[1], pair[0]))


def _is_walked(addresses: Words, width: Numbers, mode: Mode) -> Bits:
    """Which addresses are in the range of a table whose walks are not disabled (D8.2.4)."""
    upper = _bit(addresses, 55)
    # The bits from the width up to 63, or to 55 where the top byte is ignored, must all equal bit 55.
    top = np.where(_of_half(upper, mode.top_byte_ignored), 56, 64).astype(np.int64)
    checked = _below(top) & ~_below(width)
    in_range = (addresses & checked) == np.where(upper, np.uint64(_ONES), np.uint64(0)) & checked
    walked: Bits = in_range & ~_of_half(upper, mode.walk_disabled).astype(bool)
    return walked


def _descriptors(entry: Words, level: int, mode: Mode) -> tuple[Bits, Bits, Words, Numbers]:
    """Which entries of a level are tables, which are leaves (D8.3.1), where they lead, and the other faults.

    The fault is TRANSLATION where there is no other, as in entries that are not valid.
    """
    valid, second = _bit(entry, 0), _bit(entry, 1)
    is_table = valid & second & np.bool_(level < 3)
    is_leaf = valid & (second if level == 3 else ~second & np.bool_(level in blocks_of(mode)))
    output = output_address(entry, mode) & np.uint64(_ONES & ~mode.encryption)
    refused = (is_table | is_leaf) & (entry & np.uint64(mode.refused) != 0)
    too_far = (is_table | is_leaf) & ~refused & ((output & _mask(51, mode.physical_bits)) != 0)
    fault = np.where(refused, Ended.RESERVED, np.where(too_far, Ended.ADDRESS_SIZE, Ended.TRANSLATION))
    good = ~(too_far | refused)
    return is_table & good, is_leaf & good, output, fault


def branch_target(addresses: Words, mode: Mode) -> Words:
    """Where a branch to an address fetches from: without the tag, where the top byte is ignored (D1.3.1)."""
    upper = _bit(addresses, 55)
    ignored = np.where(upper, mode.top_byte_ignored[1], mode.top_byte_ignored[0])
    tag = np.uint64(0xFF << 56)
    return np.where(ignored, np.where(upper, addresses | tag, addresses & ~tag), addresses)


def _below(positions: Numbers) -> Words:
    """A word for each position, of all bits below it (positions up to 64)."""
    full = np.uint64((1 << 64) - 1)
    return np.where(
        positions >= 64, full, (np.uint64(1) << np.minimum(positions, 63).astype(np.uint64)) - np.uint64(1)
    )


def judge(
    found: Translation, access: Numbers, by_user: Bits, controls: Controls, unprivileged: Bits | bool = False
) -> Verdict:
    """What each access (an `Access`; `by_user` at EL0) ends in.

    `unprivileged` marks LDTR and STTR at EL1, which are judged as EL0's unless PSTATE.UAO is 1 (D8.4.1).
    """
    write, fetch = access == Access.WRITE, access == Access.FETCH
    as_user = by_user | (np.asarray(unprivileged) & ~np.asarray(controls.uao))
    wxn = np.asarray(controls.wxn)
    user_write = found.user_data & found.writable
    # D8.4.1 and D8.4.2: data accesses.
    user_denied = np.where(write, ~user_write, ~found.user_data)
    privileged_denied = write & ~found.writable | found.user_data & np.asarray(controls.pan)
    # D8.4.2: what EL0 can write, EL1 never executes; WXN forbids executing what is writable at that level.
    user_fetch = found.user_execute & ~(wxn & user_write)
    privileged_fetch = found.privileged_execute & ~user_write & ~(wxn & found.writable)
    denied = np.where(
        fetch,
        np.where(by_user, ~user_fetch, ~privileged_fetch),
        np.where(as_user, user_denied, privileged_denied),
    )
    mapped = found.ended == Ended.MAPPED
    kind = np.where(found.ended == Ended.TRANSLATION, 0b000100, 0b000000)
    kind = np.where(mapped & ~found.accessed, 0b001000, kind)
    kind = np.where(mapped & found.accessed & denied, 0b001100, kind)
    fault = ~mapped | ~found.accessed | denied
    # D19.2.37: level -1 has codes of its own.
    kind = np.where(found.level < 0, np.where(kind == 0, 0b101001, 0b101011), kind | found.level)
    return Verdict(fault, np.where(fault, kind, 0).astype(np.int64), fault & write)
