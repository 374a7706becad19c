"""The page-fault error code as a declared table, and its neutral meaning (Intel SDM 3A 4.7)."""

from __future__ import annotations

from aether_emu.arch.paging import Access, BitField

ERROR_CODE: tuple[BitField, ...] = (
    BitField("P", 0, 1, "the translation was present"),
    BitField("W", 1, 1, "a write"),
    BitField("U", 2, 1, "issued at CPL 3"),
    BitField("RSVD", 3, 1, "a reserved bit was set"),
    BitField("I", 4, 1, "an instruction fetch"),
    BitField("PK", 5, 1, "a protection key forbade it"),
)

PRESENT, WRITE, USER, RESERVED, FETCH, KEY = (1 << i for i in range(6))


def access_of(error_code: int) -> Access:
    """The neutral access that an error code reports."""
    access = Access.EXECUTE if error_code & FETCH else Access.WRITE if error_code & WRITE else Access.READ
    if error_code & USER:
        access |= Access.USER
    if error_code & PRESENT:
        access |= Access.PRESENT
    if error_code & RESERVED:
        access |= Access.MALFORMED
    if error_code & KEY:
        access |= Access.KEY
    return access


# Indexed by the low six bits of the error code: the fault path reads it instead of calling.
ACCESS_OF_ERROR: tuple[int, ...] = tuple(int(access_of(code)) for code in range(64))


def error_of(access: int) -> int:
    """The error code that hardware would push for a neutral access (signal frames need it)."""
    code = 0
    for neutral, bit in (
        (Access.WRITE, WRITE),
        (Access.EXECUTE, FETCH),
        (Access.USER, USER),
        (Access.PRESENT, PRESENT),
        (Access.MALFORMED, RESERVED),
        (Access.KEY, KEY),
    ):
        if access & neutral:
            code |= bit
    return code


VECTOR_DIVIDE, VECTOR_DEBUG, VECTOR_BREAKPOINT, VECTOR_OVERFLOW = 0, 1, 3, 4
VECTOR_INVALID_OPCODE, VECTOR_STACK, VECTOR_PROTECTION, VECTOR_PAGE_FAULT = 6, 12, 13, 14
VECTOR_X87, VECTOR_ALIGNMENT, VECTOR_SIMD = 16, 17, 19
TRAPS = frozenset({VECTOR_DEBUG, VECTOR_BREAKPOINT, VECTOR_OVERFLOW})
"""Exceptions that are reported behind the instruction. The others are faults, at it (Intel SDM 3A 7.5)."""
