"""SSE instructions for whose 4 or 8 bytes of memory the engine loads 16, and their results.

At the end of the last page that a program may read, such a load faults where the instruction itself would
not. Only then is the instruction done here. What it does to the exception flags of MXCSR is left out, as the
engine leaves it out.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import NamedTuple

from aether_emu.machine.unicorn.x86_blocks import Instruction

LOADED = 16
"""Bytes that the engine loads."""
_DAZ = 1 << 6  # MXCSR: denormal operands count as zeros (Intel SDM 1 10.2.3)
_ROUNDING = 13  # lowest of its two bits
_USE_MXCSR = 4  # bit of ROUNDSS's immediate
_ROUND: tuple[Callable[[float], float], ...] = (round, math.floor, math.ceil, math.trunc)


class _Format(NamedTuple):
    """An IEEE 754 format: its width, its fraction's, and the codes of `struct` for a number and its bits."""

    bits: int
    fraction: int
    number: str
    word: str

    @property
    def exponent(self) -> int:
        return (1 << self.bits - 1) - (1 << self.fraction)

    def is_nan(self, word: int) -> bool:
        return word & self.exponent == self.exponent and word & (1 << self.fraction) - 1 != 0

    def quiet(self, word: int) -> int:
        return word | 1 << self.fraction - 1

    def without_denormal(self, word: int, mxcsr: int) -> int:
        return word & 1 << self.bits - 1 if mxcsr & _DAZ and not word & self.exponent else word

    def value(self, word: int) -> float:
        number: float = struct.unpack(self.number, struct.pack(self.word, word))[0]
        return number

    def encoded(self, number: float) -> int:
        word: int = struct.unpack(self.word, struct.pack(self.number, number))[0]
        return word


_SINGLE, _DOUBLE = _Format(32, 23, "<f", "<I"), _Format(64, 52, "<d", "<Q")


def _widened(word: int, mxcsr: int) -> int:
    """A single as a double (Intel SDM 2A CVTPS2PD)."""
    if _SINGLE.is_nan(word):
        sign, fraction = word >> 31, word & (1 << 23) - 1
        return _DOUBLE.quiet(sign << 63 | _DOUBLE.exponent | fraction << 29)
    return _DOUBLE.encoded(_SINGLE.value(_SINGLE.without_denormal(word, mxcsr)))


def _rounded(fmt: _Format, word: int, immediate: int, mxcsr: int) -> int:
    """A number rounded to an integral one (Intel SDM 2B ROUNDSD)."""
    if fmt.is_nan(word):
        return fmt.quiet(word)
    number = fmt.value(fmt.without_denormal(word, mxcsr))
    if math.isinf(number):
        return word
    mode = mxcsr >> _ROUNDING & 3 if immediate & _USE_MXCSR else immediate & 3
    return fmt.encoded(math.copysign(_ROUND[mode](number), number))


def _halves(data: int) -> tuple[int, int]:
    return data & 0xFFFF_FFFF, data >> 32


def _cvtps2pd(data: int, _old: int, _immediate: int, mxcsr: int) -> int:
    low, high = (_widened(word, mxcsr) for word in _halves(data))
    return high << 64 | low


def _cvtdq2pd(data: int, _old: int, _immediate: int, _mxcsr: int) -> int:
    low, high = (_DOUBLE.encoded(float(word - ((word & 1 << 31) << 1))) for word in _halves(data))
    return high << 64 | low


def _roundss(data: int, old: int, immediate: int, mxcsr: int) -> int:
    return old >> 32 << 32 | _rounded(_SINGLE, data, immediate, mxcsr)


def _roundsd(data: int, old: int, immediate: int, mxcsr: int) -> int:
    return old >> 64 << 64 | _rounded(_DOUBLE, data, immediate, mxcsr)


class Operation(NamedTuple):
    """`size` bytes of memory; `result` of them, the old destination, the last byte of code, and MXCSR."""

    size: int
    result: Callable[[int, int, int, int], int]


_OPERATIONS = {
    (0, 0x0F5A): Operation(8, _cvtps2pd),
    (0xF3, 0x0FE6): Operation(8, _cvtdq2pd),
    (0x66, 0x0F3A0A): Operation(4, _roundss),
    (0x66, 0x0F3A0B): Operation(8, _roundsd),
}
"""By mandatory prefix and opcode."""


def operation(found: Instruction) -> Operation | None:
    """What `found` does, if it is one of them."""
    repeats = [prefix for prefix in found.prefixes if prefix in (0xF2, 0xF3)]
    prefix = repeats[-1] if repeats else 0x66 if 0x66 in found.prefixes else 0
    return _OPERATIONS.get((prefix, found.opcode))
