"""Instructions that a freshly translated x86 block must not run natively.

The engine decodes VEX prefixes but executes them as two-operand SSE: a wrong result without an
error. No CPU model here announces AVX, so such an instruction is #UD, as on a CPU without it.
RDRAND and RDSEED would answer from the host's entropy: they answer from the seed instead. String
I/O touches memory before it asks for the right to, and some privileged ones raise #UD: all are #GP.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

_PREFIXES = frozenset(b"\xf2\xf3\x66\x67\x2e\x36\x3e\x26\x64\x65\xf0")
# VEX-encoded general-register instructions (BMI1, BMI2): correct in the engine and announced.
_BMI = frozenset({(2, 0xF2), (2, 0xF3), (2, 0xF5), (2, 0xF6), (2, 0xF7), (3, 0xF0)})

_PORT_IO = frozenset(b"\x6c\x6d\x6e\x6f\xe4\xe5\xe6\xe7\xec\xed\xee\xef")  # ins, outs, in, out
_PRIVILEGED = (b"\x0f\x33", b"\x0f\x35")  # rdpmc (CR4.PCE is 0), sysexit


class Special(Enum):
    """What is to be done instead of executing the instruction."""

    ILLEGAL = 1
    RANDOM = 2
    PRIVILEGED = 3


@dataclass(frozen=True, slots=True)
class Found:
    """Where the special instruction stands in the block, how long it is, where its result goes."""

    offset: int
    size: int
    special: Special
    register: int = 0
    width: int = 8


@cache
def _decoder() -> Any:
    from capstone import CS_ARCH_X86, CS_MODE_64, Cs  # noqa: PLC0415  # most programs never need it

    return Cs(CS_ARCH_X86, CS_MODE_64)


_SUSPICIOUS = re.compile(rb"[\xc4\xc5\x6c-\x6f\xe4-\xe7\xec-\xef]|\x0f[\x33\x35\xc7]")


def suspicious(code: bytes) -> bool:
    """Whether the bytes could hold a special instruction at all (one in a few blocks)."""
    return _SUSPICIOUS.search(code) is not None


def first_special(code: bytes, address: int) -> Found | None:
    """The first special instruction of a block, in execution order."""
    for start, size, _mnemonic, _operands in _decoder().disasm_lite(code, address):
        offset = start - address
        found = _classify(code[offset : offset + size], offset)
        if found is not None:
            return found
    return None


def _classify(instruction: bytes, offset: int) -> Found | None:
    size = len(instruction)
    at, rex, narrow = 0, 0, False
    while at < size and instruction[at] in _PREFIXES:
        narrow |= instruction[at] == 0x66
        at += 1
    if at < size and instruction[at] & 0xF0 == 0x40:
        rex = instruction[at]
        at += 1
    rest = instruction[at:]
    if rest[0] in _PORT_IO or rest in _PRIVILEGED:
        return Found(offset, size, Special.PRIVILEGED)
    if len(rest) >= 3 and rest[0] == 0xC5 and not rex:
        return Found(offset, size, Special.ILLEGAL)
    if len(rest) >= 4 and rest[0] == 0xC4 and not rex:
        if (rest[1] & 0x1F, rest[3]) in _BMI:
            return None
        return Found(offset, size, Special.ILLEGAL)
    if len(rest) == 3 and rest[:2] == b"\x0f\xc7" and rest[2] >> 6 == 3 and rest[2] >> 3 & 7 in (6, 7):
        if b"\xf3" in instruction[:at]:
            return None  # RDPID
        width = 8 if rex & 8 else 2 if narrow else 4
        return Found(offset, size, Special.RANDOM, (rest[2] & 7) | (rex & 1) << 3, width)
    return None
