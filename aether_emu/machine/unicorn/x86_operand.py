"""Where an x86 instruction's memory operand is (Intel SDM 2A 2.1.5, 2.2.1; SDM 1 3.7.5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from aether_emu.machine.unicorn.x86_blocks import MODRM, PRIMARY, SECONDARY, Instruction
from aether_emu.machine.unicorn.x86_state import Field

MASK = (1 << 64) - 1
_RSP, _RBP = 4, 5
_SEGMENTS = {0x64: "fs_base", 0x65: "gs_base"}  # the others are flat in 64-bit mode, and change nothing


class Operand(NamedTuple):
    """An address. `stack`: through SS, so that what is wrong with it is #SS where it is else #GP."""

    address: int
    stack: bool


def canonical(address: int, bits: int) -> bool:
    """Whether the bits above the highest of `bits` equal it (Intel SDM 1 3.3.7.1)."""
    return (address + (1 << bits - 1) & MASK) >> bits == 0


def operand(
    code: bytes, found: Instruction, pc: int, general: Field, base_of: Callable[[str], int]
) -> Operand | None:
    """The operand of `found`, the first instruction of `code`, at `pc`; None if its ModRM names no memory.

    `general` are the general registers in the order of their numbers; `base_of` reads a segment's base.
    """
    at = _modrm_at(found)
    if at is None or code[at] >> 6 == 3:
        return None
    mod, base = code[at] >> 6, code[at] & 7
    at += 1
    address, stack = 0, False
    if base == 4:
        sib = code[at]
        at += 1
        base = sib & 7
        index = sib >> 3 & 7 | (found.rex & 2) << 2
        if index != 4:
            address = general[index] << (sib >> 6)
        if mod == 0 and base == 5:
            mod, base = 2, -1
    elif mod == 0 and base == 5:
        mod, base, address = 2, -1, pc + found.size
    if base >= 0:
        number = base | (found.rex & 1) << 3
        address += general[number]
        stack = number in (_RSP, _RBP)
    size = (0, 1, 4)[mod]
    address += int.from_bytes(code[at : at + size], "little", signed=True)
    if 0x67 in found.prefixes:
        address &= 0xFFFF_FFFF
    for prefix in found.prefixes:
        if prefix in _SEGMENTS:
            address, stack = address + base_of(_SEGMENTS[prefix]), False
    return Operand(address & MASK, stack)


def _modrm_at(found: Instruction) -> int | None:
    """Where the ModRM byte stands, for an instruction without VEX that has one."""
    at = len(found.prefixes)
    if found.opcode < 0x100:
        return at + 1 if PRIMARY[found.opcode] & MODRM else None
    if found.opcode < 0x10000:
        return at + 2 if SECONDARY[found.opcode & 0xFF] & MODRM else None
    return at + 3  # 0F 38 and 0F 3A: all have one
