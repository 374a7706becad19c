"""Cache maintenance in a loop over lines, as compilers' `__clear_cache` has it: the lines of a page at once.

Each such instruction traps. A program that clears a buffer of megabytes would trap for each line of 64 bytes;
with this it does for each page. The loop is recognised by its four instructions when its first one traps:

    dc cvau, xN  (or another one by address)
    add xN, xN, xM  (or #bytes)
    cmp xE, xN; b.hi  (or cmp xN, xE; b.lo)

After the trap xN is that of the last turn in the page, and the rest of the loop is executed. Nobody can see
that but in time: the turns that are left out take none.
"""

from __future__ import annotations

import struct
from typing import Protocol

LOOP = 16
"""Bytes of its code."""

_ADD, _ADD_MASK = 0x8B000000, 0xFFE0FC00  # ADD (shifted register), 64 bits, not shifted (Arm ARM C6.2.5)
_ADD_IMMEDIATE, _ADD_IMMEDIATE_MASK = 0x91000000, 0xFFC00000  # ADD (immediate), 64 bits, not shifted (C6.2.4)
_CMP, _CMP_MASK = 0xEB00001F, 0xFFE0FC1F  # CMP (shifted register), 64 bits, not shifted (C6.2.66)
_BACK_IF_HIGHER, _BACK_IF_LOWER = 0x54FFFFA8, 0x54FFFFA3  # B.HI and B.LO by three instructions back (C6.2.27)
_ZERO_REGISTER = 31


class Registers(Protocol):
    """General registers, x0 to x30."""

    def __getitem__(self, number: int, /) -> int: ...


def last_line(code: bytes, general: Registers, page_size: int) -> int | None:
    """The address of the loop's last turn in the page that it is in, by its code and the registers.

    None where the code is no such loop, or this is the last turn.
    """
    maintenance: int
    maintenance, add, compare, branch = struct.unpack("<4I", code)
    moving = maintenance & 31
    if moving == _ZERO_REGISTER or add & 0x3FF != moving << 5 | moving:
        return None
    if add & _ADD_MASK == _ADD:
        by = add >> 16 & 31
        step = 0 if by in (_ZERO_REGISTER, moving) else general[by]
    elif add & _ADD_IMMEDIATE_MASK == _ADD_IMMEDIATE:
        step = add >> 10 & 0xFFF
    else:
        return None
    left, right = compare >> 5 & 31, compare >> 16 & 31
    expected = {_BACK_IF_HIGHER: right, _BACK_IF_LOWER: left}.get(branch)
    end = left if expected == right else right
    if compare & _CMP_MASK != _CMP or expected != moving or end in (_ZERO_REGISTER, moving):
        return None
    address = general[moving]
    stop = min(general[end], (address | page_size - 1) + 1)
    if not step or stop <= address + step:
        return None
    return address + (stop - address - 1) // step * step
