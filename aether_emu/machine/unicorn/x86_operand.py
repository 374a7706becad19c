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


# What operands of one byte are told by: the lowest bit of the opcode (Intel SDM 2D B.1.4.3).
_BYTE_OR_FULL = frozenset(
    {row | column for row in range(0, 0x40, 8) for column in range(4)}
    | {0x80, 0x81, *range(0x84, 0x8C), 0xC0, 0xC1, 0xC6, 0xC7, *range(0xD0, 0xD4), 0xF6, 0xF7, 0xFE}
)
_FULL = frozenset({0x69, 0x6B, 0x83, *range(0x0F40, 0x0F50), 0x0FAF, 0x0FB1, 0x0FC1})
_STACK_OPERANDS = frozenset({0x8F})
_GROUP_5 = 0xFF
_VECTOR_MOVES = frozenset({0x0F10, 0x0F11, 0x0F28, 0x0F29, 0x0F6F, 0x0F7F, 0x0FE7, 0x0F2B})


def length(found: Instruction) -> int:
    """Bytes of the memory operand, or 1 where this does not know the opcode."""
    wide = 8 if found.rex & 8 else 2 if 0x66 in found.prefixes else 4
    opcode = found.opcode
    if opcode == _GROUP_5:
        return wide if found.modrm >> 3 & 7 < 2 else 8
    if opcode in _BYTE_OR_FULL:
        return wide if opcode & 1 else 1
    if opcode in _FULL:
        return wide
    if opcode in _VECTOR_MOVES:
        scalar = opcode < 0x0F12
        return 4 if scalar and 0xF3 in found.prefixes else 8 if scalar and 0xF2 in found.prefixes else 16
    return 8 if opcode in _STACK_OPERANDS else 1
