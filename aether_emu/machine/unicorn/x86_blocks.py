"""Instructions that a freshly translated x86 block must not run natively, and how to find them.

The engine decodes VEX prefixes but executes them as two-operand SSE: a wrong result without an
error. No CPU model here announces AVX, so such an instruction is #UD, as on a CPU without it.
RDRAND and RDSEED would answer from the host's entropy: they answer from the seed instead. String
I/O touches memory before it asks for the right to, and some privileged ones raise #UD: all are #GP.
LOCK is ignored where it is #UD, and LOCK NEG leaves wrong flags. Some write a part of what they store
before the rest faults, or fault nowhere (`x86_rare`): their memory is asked for first.

    PRIMARY, SECONDARY   what follows each opcode, which is all that an instruction's length takes
    _RULES               the opcodes worth a look, and what the look decides from the whole instruction

An instruction is added by a line in `_RULES`. The tables are also what `x86_scan` walks blocks by in
machine code; it stops at an opcode (or a prefix) that has a rule, and everything else costs no Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from aether_emu.records import dataclass


class Special(Enum):
    """What is to be done instead of executing the instruction."""

    ILLEGAL = 1
    RANDOM = 2
    PRIVILEGED = 3
    TOUCH = 4
    """It executes once what it touches is there."""
    BASE = 5
    """It executes if the new segment base is canonical."""
    NEGATE = 6
    """LOCK NEG, after which the engine's flags are those of another result."""
    FLAGS = 7
    """LAHF or SAHF behind REX, where the engine takes SPL for AH."""


@dataclass(frozen=True, slots=True)
class Found:
    """Where the special instruction stands in the block, how long it is, where its result goes."""

    offset: int
    size: int
    special: Special
    register: int = 0
    width: int = 8


class Instruction(NamedTuple):
    """One instruction's parts. `opcode` begins with its escape bytes: 0xC7, 0x0FC7, 0x0F38C7.

    With VEX it is that of the prefix, 0xC4 or 0xC5, and `vex` the one behind it. `modrm` is 0 without one.
    """

    offset: int
    size: int
    prefixes: bytes
    rex: int
    opcode: int
    modrm: int = 0
    vex: int = 0


# ---- what follows an opcode (Intel SDM 2D, tables; SDM 2A 2.1 and 2.2.1)

BYTE, WORD, OPERAND, FULL, ADDRESS, ENTER, GROUP_3 = range(1, 8)
"""Immediates: 1 byte; 2; 2 or 4 by the operand's size; 2, 4 or 8; an address; a word and a byte; F6 and F7,
of which only the first two of eight operations have one."""
IMMEDIATE, MODRM, LOOK, PREFIX, REX, ESCAPE = 7, 8, 16, 32, 64, 128
"""The bits of an opcode's entry in the tables: its immediate, whether a ModRM byte follows, whether it has
a rule, and what it is instead of an opcode."""

_LETTERS = {
    ".": 0,
    "b": BYTE, "w": WORD, "z": OPERAND, "v": FULL, "a": ADDRESS, "e": ENTER,
    "m": MODRM, "B": MODRM | BYTE, "Z": MODRM | OPERAND, "3": MODRM | GROUP_3,
    "p": PREFIX, "r": REX, "x": ESCAPE, "X": ESCAPE | MODRM, "Y": ESCAPE | MODRM | BYTE,
}  # fmt: skip

_PRIMARY = (
    "mmmmbz..mmmmbz.x"  # 00  ADD, OR; 0F leads to the second table
    "mmmmbz..mmmmbz.."  # 10  ADC, SBB
    "mmmmbzp.mmmmbzp."  # 20  AND, SUB
    "mmmmbzp.mmmmbzp."  # 30  XOR, CMP
    "rrrrrrrrrrrrrrrr"  # 40
    "................"  # 50  PUSH, POP
    "...mppppzZbB...."  # 60  MOVSXD, PUSH, IMUL, string I/O
    "bbbbbbbbbbbbbbbb"  # 70  Jcc
    "BZBBmmmmmmmmmmmm"  # 80  group 1, TEST, XCHG, MOV, LEA, POP
    "................"  # 90  XCHG and others
    "aaaa....bz......"  # A0  MOV of an address, strings, TEST
    "bbbbbbbbvvvvvvvv"  # B0  MOV of an immediate
    "BBw...BZe.w..b.."  # C0  shifts, RET, VEX, MOV, ENTER, LEAVE, INT
    "mmmm....mmmmmmmm"  # D0  shifts, x87
    "bbbbbbbbzz.b...."  # E0  LOOP, JRCXZ, port I/O, CALL, JMP
    "p.pp..33......mm"  # F0  prefixes, groups 3 to 5
)
_SECONDARY = (
    "mmmm.........m.B"  # 00  system; 3DNow!
    "mmmmmmmmmmmmmmmm"  # 10  SSE moves, NOP
    "mmmm....mmmmmmmm"  # 20  control registers, SSE conversions
    "........X.Y....."  # 30  0F 38 and 0F 3A lead to opcodes that all have the same form
    "mmmmmmmmmmmmmmmm"  # 40  CMOVcc
    "mmmmmmmmmmmmmmmm"  # 50
    "mmmmmmmmmmmmmmmm"  # 60
    "BBBBmmm.mm..mmmm"  # 70  PSHUF, shifts by an immediate
    "zzzzzzzzzzzzzzzz"  # 80  Jcc
    "mmmmmmmmmmmmmmmm"  # 90  SETcc
    "...mBm.....mBmmm"  # A0  BT, SHLD, SHRD, group 15
    "mmmmmmmmmmBmmmmm"  # B0  CMPXCHG, MOVZX, group 8
    "mmBmBBBm........"  # C0  XADD, CMPPS, PINSRW, PEXTRW, SHUFPS, group 9, BSWAP
    "mmmmmmmmmmmmmmmm"  # D0
    "mmmmmmmmmmmmmmmm"  # E0
    "mmmmmmmmmmmmmmmm"  # F0
)

OPERAND_SIZE, ADDRESS_SIZE, REX_W = 1, 2, 4
"""Prefixes that change an immediate's length, as bits of an index."""


def _immediate_size(kind: int, prefixes: int) -> int:
    narrow = prefixes & (OPERAND_SIZE | REX_W) == OPERAND_SIZE
    match kind:
        case 3:
            return 2 if narrow else 4
        case 4:
            return 8 if prefixes & REX_W else 2 if narrow else 4
        case 5:
            return 4 if prefixes & ADDRESS_SIZE else 8
    return {BYTE: 1, WORD: 2, ENTER: 3}.get(kind, 0)


IMMEDIATE_SIZES = bytes(_immediate_size(kind, prefixes) for kind in range(8) for prefixes in range(8))
"""Bytes of an immediate, by its kind times eight and the prefixes before it."""


# ---- what is special

Rule = Callable[[Instruction], Found | None]

_SSE4A = 0x0F78  # EXTRQ and INSERTQ by immediates, the one with 66, the other with F2 (AMD APM 4)
# VEX-encoded general-register instructions (BMI1, BMI2): correct in the engine and announced.
_BMI = frozenset({0x0F38F2, 0x0F38F3, 0x0F38F5, 0x0F38F6, 0x0F38F7, 0x0F3AF0})


def _always(special: Special) -> Rule:
    return lambda found: Found(found.offset, found.size, special)


def _vex(found: Instruction) -> Found | None:
    if found.rex or (found.opcode == 0xC4 and found.vex in _BMI):
        return None  # behind REX the engine itself raises #UD
    return Found(found.offset, found.size, Special.ILLEGAL)


def _only_measured(_found: Instruction) -> Found | None:
    """Executed as it is, but its length depends on more than the tables say."""
    return None


def _group_9(found: Instruction) -> Found | None:
    """RDRAND and RDSEED among CMPXCHG8B and others."""
    if found.modrm < 0xF0 or 0xF3 in found.prefixes:  # with F3 it is RDPID
        return None
    width = 8 if found.rex & 8 else 2 if 0x66 in found.prefixes else 4
    register = found.modrm & 7 | (found.rex & 1) << 3
    return Found(found.offset, found.size, Special.RANDOM, register, width)


# Opcodes that LOCK admits with a memory operand, and which operations of a group (Intel SDM 2A LOCK).
_ALL = frozenset(range(8))
_LOCKABLE: Mapping[int, frozenset[int]] = {
    **{row | column: _ALL for row in range(0, 0x38, 8) for column in (0, 1)},  # ADD to XOR; not CMP
    **dict.fromkeys((0x80, 0x81, 0x83), _ALL - {7}),
    **dict.fromkeys((0x86, 0x87, 0x0FAB, 0x0FB0, 0x0FB1, 0x0FB3, 0x0FBB, 0x0FC0, 0x0FC1), _ALL),
    **dict.fromkeys((0xF6, 0xF7), frozenset({2, 3})),
    **dict.fromkeys((0xFE, 0xFF), frozenset({0, 1})),
    0x0FBA: frozenset({5, 6, 7}),
    0x0FC7: frozenset({1}),
}


def _lock(found: Instruction) -> Found | None:
    operation = found.modrm >> 3 & 7
    if found.modrm < 0xC0 and operation in _LOCKABLE.get(found.opcode, ()):
        negates = found.opcode in (0xF6, 0xF7) and operation == 3
        return Found(found.offset, found.size, Special.NEGATE) if negates else None
    return Found(found.offset, found.size, Special.ILLEGAL)


def _behind_rex(found: Instruction) -> Found | None:
    return Found(found.offset, found.size, Special.FLAGS) if found.rex else None


def _memory_form(*operations: int) -> Rule:
    """TOUCH for these operations of a group, with a memory operand."""

    def rule(found: Instruction) -> Found | None:
        if found.modrm >= 0xC0 or found.modrm >> 3 & 7 not in operations:
            return None
        return Found(found.offset, found.size, Special.TOUCH)

    return rule


def _masked_store(found: Instruction) -> Found | None:
    return Found(found.offset, found.size, Special.TOUCH) if found.modrm >= 0xC0 else None


_SAVES_AND_FLUSHES = _memory_form(0, 1, 4, 5, 6, 7)


def _group_15(found: Instruction) -> Found | None:
    """FXSAVE, XSAVE and their like, cache flushes; with F3, WRFSBASE and WRGSBASE."""
    if 0xF2 in found.prefixes:
        return None
    if 0xF3 not in found.prefixes:
        return _SAVES_AND_FLUSHES(found)
    if found.modrm < 0xD0 or found.modrm >= 0xE0 or not found.rex & 8:
        return None
    register = found.modrm & 7 | (found.rex & 1) << 3
    return Found(found.offset, found.size, Special.BASE, register)


_PRIVILEGED = _always(Special.PRIVILEGED)
_RULES: Mapping[int, Rule] = {
    0xC4: _vex,
    0xC5: _vex,
    **dict.fromkeys((*range(0x6C, 0x70), *range(0xE4, 0xE8), *range(0xEC, 0xF0)), _PRIVILEGED),  # INS to OUT
    0x0F33: _PRIVILEGED,  # RDPMC: CR4.PCE is 0
    0x0F35: _PRIVILEGED,  # SYSEXIT
    _SSE4A: _only_measured,
    0x0FC7: _group_9,
    0xF0: _lock,
    0x9E: _behind_rex,  # SAHF
    0x9F: _behind_rex,  # LAHF
    0xC8: _always(Special.TOUCH),  # ENTER
    0xD9: _memory_form(4, 6),  # FLDENV, FNSTENV
    0xDD: _memory_form(4, 6),  # FRSTOR, FNSAVE
    0xDF: _memory_form(6),  # FBSTP
    0x0FAE: _group_15,
    0x0FF7: _masked_store,
}
"""By opcode, of one byte or behind 0F, or by prefix, whose rule is asked for each instruction with it."""


def _table(letters: str, first: int) -> bytes:
    return bytes(
        _LETTERS[letter] | (LOOK if first + number in _RULES else 0) for number, letter in enumerate(letters)
    )


PRIMARY, SECONDARY = _table(_PRIMARY, 0), _table(_SECONDARY, 0x0F00)
"""256 entries each: opcodes of one byte, and those behind 0F."""
assert not any(entry & LOOK and entry & ESCAPE for entry in SECONDARY), "0F 38 and 0F 3A have no rule as such"


# ---- decoding

_SIZE_PREFIXES = {0x66: OPERAND_SIZE, 0x67: ADDRESS_SIZE}
_SPACES = {1: 0x0F00, 2: 0x0F3800, 3: 0x0F3A00}
"""What VEX.mmmmm stands for (Intel SDM 2A 2.3.6.1)."""


@lru_cache(maxsize=4096)  # a program meets few of them, again and again
def first_special(code: bytes) -> Found | None:
    """The first special instruction of a block, in execution order."""
    return next((found for found in map(_judge, instructions(code)) if found is not None), None)


def special_at(code: bytes, offset: int) -> Found | None:
    """What is special about the block's instruction at `offset`, if anything."""
    try:
        instruction = _decode(code, offset)
    except IndexError:
        return None
    return _judge(instruction) if offset + instruction.size <= len(code) else None


def has_rule(instruction: Instruction) -> bool:
    """Whether a prefix or the opcode has a rule: without one, the instruction is not special."""
    return any(key in _RULES for key in (*instruction.prefixes, instruction.opcode))


def _judge(instruction: Instruction) -> Found | None:
    for key in (*instruction.prefixes, instruction.opcode):
        rule = _RULES.get(key)
        found = None if rule is None else rule(instruction)
        if found is not None:
            return found
    return None


@lru_cache(maxsize=4096)
def first_instruction(code: bytes) -> Instruction | None:
    """The instruction that the bytes begin with, unless their end cuts it off."""
    return next(instructions(code), None)


def instructions(code: bytes) -> Iterator[Instruction]:
    """The instructions of a block, up to the first that its end cuts off.

    For instructions that are undefined, or of the supervisor alone, the length may be another than the
    engine's: those end a block.
    """
    at = 0
    while at < len(code):
        try:
            found = _decode(code, at)
        except IndexError:
            return
        at += found.size
        if at > len(code):
            return
        yield found


def _decode(code: bytes, start: int) -> Instruction:
    """The instruction at `start`. Raises IndexError when the bytes that tell its length are not all there."""
    at, rex, sizes = start, 0, 0
    while (entry := PRIMARY[code[at]]) & (PREFIX | REX):
        rex = code[at] if entry & REX else 0  # without effect unless it stands right before the opcode
        sizes = sizes & ~REX_W | (REX_W if rex & 8 else 0) | _SIZE_PREFIXES.get(code[at], 0)
        at += 1
    prefixes, opcode, vex, modrm = code[start:at], code[at], 0, 0
    at += 1
    if opcode in (0xC4, 0xC5):
        space = _SPACES.get(code[at] & 31, 0x0F00) if opcode == 0xC4 else 0x0F00
        at += 2 if opcode == 0xC4 else 1
        vex = space | code[at]
        entry = SECONDARY[vex & 0xFF if space == 0x0F00 else space >> 8 & 0xFF]
        at += 1
    elif entry & ESCAPE:
        opcode, entry = 0x0F00 | code[at], SECONDARY[code[at]]
        at += 1
        if entry & ESCAPE:
            opcode = opcode << 8 | code[at]
            at += 1
    immediate = entry & IMMEDIATE
    if entry & MODRM:
        modrm = code[at]
        at += _operand_size(code, at)
        if immediate == GROUP_3:
            immediate = 0 if modrm & 0x30 else OPERAND if opcode & 1 else BYTE
        elif opcode == _SSE4A and (0x66 in prefixes or 0xF2 in prefixes):
            immediate = WORD  # two of a byte
    at += IMMEDIATE_SIZES[immediate << 3 | sizes]
    return Instruction(start, at - start, prefixes, rex, opcode, modrm, vex)


def _operand_size(code: bytes, at: int) -> int:
    """Bytes of the ModRM at `at` with its SIB and displacement (Intel SDM 2A table 2-2)."""
    mod, base, size = code[at] >> 6, code[at] & 7, 1
    if mod == 3:
        return size
    if base == 4:
        base, size = code[at + 1] & 7, 2
    if mod == 1:
        return size + 1
    return size + 4 if mod == 2 or base == 5 else size
