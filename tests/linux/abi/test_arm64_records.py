"""Chains of records in an arm64 signal frame that Linux accepts, and those it refuses."""

from __future__ import annotations

import struct

import pytest

from aether_emu.linux.abi.arm64_records import (
    ESR_MAGIC,
    EXTRA_MAGIC,
    FPSIMD_MAGIC,
    FPSIMD_SIZE,
    RESERVED,
    BadRecords,
    find_fpsimd,
)

BASE = 0x10_0000
EXTRA_SIZE, ROOM, END = 32, 1024, 16


def find(extra_at: int) -> int:
    """Look for the FPSIMD record of a chain whose extra record begins at `extra_at` of the reserved space."""
    memory = bytearray(2 * RESERVED)
    struct.pack_into("<II", memory, 0, FPSIMD_MAGIC, FPSIMD_SIZE)
    filler = extra_at - FPSIMD_SIZE  # an ESR record may have any size
    if filler:
        struct.pack_into("<II", memory, FPSIMD_SIZE, ESR_MAGIC, filler)
    more = BASE + extra_at + EXTRA_SIZE + END
    struct.pack_into("<IIQI", memory, extra_at, EXTRA_MAGIC, EXTRA_SIZE, more, ROOM)
    return find_fpsimd(lambda at, length: bytes(memory[at - BASE :][:length]), BASE, BASE, 1 << 48)


def test_an_extra_record_needs_room_for_an_end_behind_it() -> None:
    """The end must lie in the reserved space, and not only where it would be found."""
    assert find(FPSIMD_SIZE) == BASE
    assert find(RESERVED - EXTRA_SIZE - END) == BASE
    with pytest.raises(BadRecords, match="not the last one"):
        find(RESERVED - EXTRA_SIZE)
