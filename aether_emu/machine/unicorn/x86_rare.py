"""Rare x86 instructions whose faults the engine reports late, wrongly, or not at all.

Some write (or read) much, and the engine finds only in the middle that a page is missing: what they did so
far stays done. Cache flushes never fault there, and `enter` never looks at the page that it leaves to the
stack. `accesses` names what such an instruction touches, in the order in which a CPU reports what it cannot
have; whoever runs the CPU asks for these before the instruction executes. Where the manual leaves the order
open (long stores say their last byte first), it is Intel's, as recorded by the tests.

`protection_kind` says what a #GP of the engine is on a CPU, for the engine has no #SS.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from aether_emu.machine.cpu import TrapKind
from aether_emu.machine.unicorn.x86_blocks import Instruction
from aether_emu.machine.unicorn.x86_operand import MASK, Operand, canonical
from aether_emu.machine.unicorn.x86_state import Field

_RSP, _RBP, _RDI = 4, 5, 7
_PAGE = 0xFFF
_ENTER, _GROUP_15, _MASKED_STORE = 0xC8, 0x0FAE, 0x0FF7
_LEAVE = 0xC9
_OTHER_ADDRESS = frozenset({0x64, 0x65, 0x67})
_FXSAVE, _FXRSTOR, _XSAVE, _XRSTOR, _XSAVEOPT, _CLFLUSH = 0, 1, 4, 5, 6, 7
_LEGACY_AREA, _XSAVE_AREA = 512, 576  # with the header; no state beyond SSE is announced
# Operands of x87 instructions by (opcode, ModRM.reg): bytes with 32-bit fields, with 16-bit ones, a store?
_X87 = {
    (0xD9, 4): (28, 14, False),  # FLDENV
    (0xD9, 6): (28, 14, True),  # FNSTENV
    (0xDD, 4): (108, 94, False),  # FRSTOR
    (0xDD, 6): (108, 94, True),  # FNSAVE
    (0xDF, 6): (10, 10, True),  # FBSTP
}
_FBSTP = (0xDF, 6)
# Opcodes that use the stack besides their ModRM operand (Intel SDM 1 6.2): they push, or they pop.
_PUSH = frozenset({*range(0x50, 0x58), 0x68, 0x6A, 0x9C, 0xC8, 0xE8, 0x0FA0, 0x0FA8})
_POP = frozenset({*range(0x58, 0x60), 0x8F, 0x9D, 0xC2, 0xC3, 0xCA, 0xCB, 0xCF, 0x0FA1, 0x0FA9})
_GROUP_5 = 0xFF
_GROUP_5_PUSHES = (2, 3, 6)  # CALL, far CALL, PUSH
_CONTROL_MOVES = (0x0F20, 0x0F22)
_CONTROL_REGISTERS = (0, 2, 3, 4, 8)


class Access(NamedTuple):
    """Bytes that an instruction touches at once. `stack`: what is wrong with the address is #SS."""

    address: int
    length: int
    write: bool
    stack: bool = False

    @property
    def parts(self) -> tuple[int, ...]:
        """An address in each page touched: where each page's fault would be."""
        last = self.address + self.length - 1 & MASK
        if (last ^ self.address) & ~_PAGE:
            return self.address, last & ~_PAGE
        return (self.address,)


def accesses(code: bytes, found: Instruction, operand: Operand | None, general: Field) -> Iterator[Access]:
    """What to ask for before `found`, the first instruction of `code`, executes. `operand` is its memory."""
    if found.opcode == _ENTER:
        yield from _enter(code, found, general)
    elif found.opcode == _MASKED_STORE:
        yield from _masked_store(found, general)
    elif operand is not None and found.opcode == _GROUP_15:
        yield from _group_15(found, operand)
    elif operand is not None:
        key = found.opcode, found.modrm >> 3 & 7
        wide, narrow, write = _X87[key]
        length, field = (narrow, 2) if 0x66 in found.prefixes else (wide, 4)
        if key != _FBSTP:
            yield Access(operand.address, field, write, operand.stack)
            yield Access(operand.address + length - 1 & MASK, 1, write, operand.stack)
        yield Access(operand.address, length, write, operand.stack)


def _group_15(found: Instruction, operand: Operand) -> Iterator[Access]:
    address, stack, kind = operand.address, operand.stack, found.modrm >> 3 & 7
    if kind == _CLFLUSH or 0x66 in found.prefixes:  # CLFLUSHOPT, CLWB
        yield Access(address, 1, False, stack)
        return
    legacy = kind in (_FXSAVE, _FXRSTOR)
    if address & (15 if legacy else 63):
        return  # misaligned: the engine's own #GP
    length, write = _LEGACY_AREA if legacy else _XSAVE_AREA, kind in (_FXSAVE, _XSAVE, _XSAVEOPT)
    yield Access(address + length - 1 & MASK, 1, write, stack)
    yield Access(address, length, write, stack)


def _masked_store(found: Instruction, general: Field) -> Iterator[Access]:
    """MASKMOVQ, MASKMOVDQU: whatever the mask, which SDM 2B leaves open; the second half comes first."""
    if _OTHER_ADDRESS & set(found.prefixes):
        return
    address = general[_RDI]
    if 0x66 in found.prefixes:
        yield Access(address + 8 & MASK, 8, True)
    yield Access(address, 8, True)


def _enter(code: bytes, found: Instruction, general: Field) -> Iterator[Access]:
    """ENTER's pushes, and the last byte of the frame that it leaves room for (Intel SDM 2A ENTER)."""
    at = len(found.prefixes) + 1
    room, level = int.from_bytes(code[at : at + 2], "little"), code[at + 2] & 31
    width = 2 if 0x66 in found.prefixes else 8
    stack, frame = general[_RSP], general[_RBP]
    pushes = level + 1 if level else 1
    for number in range(1, pushes + 1):
        if 1 < number < pushes:
            yield Access(frame - width * (number - 1) & MASK, width, False, stack=True)
        yield Access(stack - width * number & MASK, width, True, stack=True)
    yield Access(stack - width * pushes - room & MASK, width, True, stack=True)


def protection_kind(
    found: Instruction | None, operand: Operand | None, general: Field, bits: int
) -> TrapKind:
    """What a general-protection fault without a selector is on a CPU with addresses of `bits` bits."""
    if found is None:
        return TrapKind.PROTECTION
    if found.opcode in _CONTROL_MOVES:
        register = found.modrm >> 3 & 7 | (found.rex & 4) << 1
        return TrapKind.PROTECTION if register in _CONTROL_REGISTERS else TrapKind.ILLEGAL
    if operand is not None and not canonical(operand.address, bits):
        return TrapKind.STACK if operand.stack else TrapKind.PROTECTION
    if not _stack_is_canonical(found, general, bits):
        return TrapKind.STACK
    return TrapKind.PROTECTION


def uses_stack(found: Instruction) -> bool:
    """Whether an instruction pushes or pops, besides what its ModRM names."""
    pushes = found.opcode == _GROUP_5 and found.modrm >> 3 & 7 in _GROUP_5_PUSHES
    return pushes or found.opcode in _PUSH or found.opcode in _POP or found.opcode == _LEAVE


def _stack_is_canonical(found: Instruction, general: Field, bits: int) -> bool:
    pushes = found.opcode in _PUSH or (found.opcode == _GROUP_5 and found.modrm >> 3 & 7 in _GROUP_5_PUSHES)
    if pushes:
        return canonical(general[_RSP] - 8 & MASK, bits)
    if found.opcode == _LEAVE:
        return canonical(general[_RBP], bits)
    return found.opcode not in _POP or canonical(general[_RSP], bits)
