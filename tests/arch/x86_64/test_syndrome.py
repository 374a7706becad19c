"""The page-fault error code, bit by bit, against the table that silicon and the engine agree on."""

from __future__ import annotations

import pytest

from aether_emu.arch.paging import Access
from aether_emu.arch.x86_64 import syndrome

R, W, X, U = Access.READ, Access.WRITE, Access.EXECUTE, Access.USER
P, MALFORMED, KEY = Access.PRESENT, Access.MALFORMED, Access.KEY

# What the situations of Intel SDM 3A 4.7 push, written out.
CANONICAL = [
    ("absent, user read", 0x04, R | U),
    ("absent, user write", 0x06, W | U),
    ("absent, user fetch", 0x14, X | U),
    ("absent, supervisor read", 0x00, R),
    ("absent, supervisor write", 0x02, W),
    ("absent, supervisor fetch", 0x10, X),
    ("read-only, user write", 0x07, W | U | P),
    ("read-only, supervisor write under WP", 0x03, W | P),
    ("no-execute, user fetch", 0x15, X | U | P),
    ("no-execute or SMEP, supervisor fetch", 0x11, X | P),
    ("supervisor page, user read", 0x05, R | U | P),
    ("SMAP, supervisor read", 0x01, R | P),
    ("key denies access, user read", 0x25, R | U | P | KEY),
    ("key denies writes, user write", 0x27, W | U | P | KEY),
    ("key denies writes, supervisor write", 0x23, W | P | KEY),
    ("reserved bit, user read", 0x0D, R | U | P | MALFORMED),
    ("reserved bit, user write", 0x0F, W | U | P | MALFORMED),
    ("reserved bit, user fetch", 0x1D, X | U | P | MALFORMED),
]


@pytest.mark.parametrize(("what", "code", "access"), CANONICAL, ids=[row[0] for row in CANONICAL])
def test_an_error_code_means_what_the_manual_says(what: str, code: int, access: Access) -> None:
    assert syndrome.access_of(code) == access
    assert syndrome.ACCESS_OF_ERROR[code] == int(access)
    assert syndrome.error_of(access) == code


def test_every_code_names_exactly_one_kind_of_access() -> None:
    assert len(syndrome.ACCESS_OF_ERROR) == 64
    for code in range(64):
        kind = Access(syndrome.ACCESS_OF_ERROR[code]) & (R | W | X)
        assert kind == (X if code >> 4 & 1 else W if code >> 1 & 1 else R)


def test_codes_come_back_from_their_meaning_except_a_fetch_that_also_writes() -> None:
    for code in range(64):
        fetches_and_writes = code & 0x12 == 0x12  # no access does both; the fetch wins
        assert syndrome.error_of(syndrome.ACCESS_OF_ERROR[code]) == (
            code & ~2 if fetches_and_writes else code
        )


def test_the_table_of_fields_covers_the_six_bits_that_are_decoded() -> None:
    assert [field.name for field in syndrome.ERROR_CODE] == ["P", "W", "U", "RSVD", "I", "PK"]
    assert sum(field.mask for field in syndrome.ERROR_CODE) == 0x3F
    bits = (syndrome.PRESENT, syndrome.WRITE, syndrome.USER, syndrome.RESERVED, syndrome.FETCH, syndrome.KEY)
    assert [field.mask for field in syndrome.ERROR_CODE] == list(bits)


def test_vectors_are_the_manuals() -> None:
    """Intel SDM 3A table 6-1."""
    assert {name: getattr(syndrome, name) for name in dir(syndrome) if name.startswith("VECTOR_")} == {
        "VECTOR_DIVIDE": 0,
        "VECTOR_DEBUG": 1,
        "VECTOR_BREAKPOINT": 3,
        "VECTOR_OVERFLOW": 4,
        "VECTOR_INVALID_OPCODE": 6,
        "VECTOR_STACK": 12,
        "VECTOR_PROTECTION": 13,
        "VECTOR_PAGE_FAULT": 14,
        "VECTOR_X87": 16,
        "VECTOR_ALIGNMENT": 17,
        "VECTOR_SIMD": 19,
    }
