"""The records of an arm64 signal frame: a chain in the context's reserved space, ended by a zero one.

Each begins with a magic number and its size in bytes (Linux arch/arm64/include/uapi/asm/sigcontext.h). A
program may move them, and may put more of them behind the reserved space, with an *extra* record that says
so. Of what the kernel knows, this CPU has FPSIMD state alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

RESERVED = 4096
"""Bytes of the reserved space."""
FPSIMD_MAGIC, ESR_MAGIC, EXTRA_MAGIC = 0x4650_8001, 0x4553_5201, 0x4558_5401
FPSIMD_SIZE, ESR_SIZE = 528, 16
FRAME_LIMIT = 256 << 10
"""Bytes from the start of a frame that its records may reach (SIGFRAME_MAXSZ)."""
_HEADER, _EXTRA_SIZE, _TERMINATOR, _ALIGNMENT = 8, 32, 16, 16

Read = Callable[[int, int], bytes]
"""Bytes of user memory at an address. Raises UserFault."""


class BadRecords(Exception):
    """A chain that Linux does not accept."""


def encode_records(state: dict[str, int], syndrome: int) -> bytes:
    """The chain that a handler finds; without a syndrome there is no ESR record."""
    chain = struct.pack("<IIII", FPSIMD_MAGIC, FPSIMD_SIZE, state["fpsr"], state["fpcr"])
    chain += b"".join(state[f"v{i}"].to_bytes(16, "little") for i in range(32))
    if syndrome:
        chain += struct.pack("<IIQ", ESR_MAGIC, ESR_SIZE, syndrome)
    return chain + bytes(_HEADER)


def decode_fpsimd(record: bytes) -> dict[str, int]:
    """The registers of an FPSIMD record."""
    fpsr, fpcr = struct.unpack_from("<II", record, _HEADER)
    values = {"fpsr": fpsr, "fpcr": fpcr}
    for i in range(32):
        values[f"v{i}"] = int.from_bytes(record[16 * (i + 1) : 16 * (i + 2)], "little")
    return values


def find_fpsimd(read: Read, frame: int, base: int, user_end: int) -> int:
    """The address of the one FPSIMD record of the frame whose reserved space begins at `base`.

    Raises BadRecords for a chain without one, or with anything that Linux refuses, and UserFault.
    """
    found, offset, limit, extra = 0, 0, RESERVED, False
    while True:
        if limit - offset < _HEADER or offset % _ALIGNMENT:
            raise BadRecords("a record lies askew or at the end")
        at = base + offset
        magic, size = struct.unpack("<II", read(at, _HEADER))
        if limit - offset < size:
            raise BadRecords("a record is longer than its space")
        if not magic and not size:
            break
        if magic == EXTRA_MAGIC and not extra and size >= _EXTRA_SIZE:
            base, limit = _follow(read, frame, at, size, limit - offset - size, user_end)
            offset, extra = 0, True
            continue
        if magic == FPSIMD_MAGIC and not found:
            found, found_size = at, size
        elif magic != ESR_MAGIC:
            raise BadRecords(f"no record of magic {magic:#x} is expected here")
        if size < _HEADER:
            raise BadRecords("a record is shorter than its header")
        offset += size
    if not found or found_size != FPSIMD_SIZE:
        raise BadRecords("not one whole FPSIMD record")
    return found


def _follow(read: Read, frame: int, at: int, size: int, left: int, user_end: int) -> tuple[int, int]:
    """Where the records behind the reserved space are, and how many bytes; `left` are behind this one."""
    where, length = struct.unpack("<QI", read(at + _HEADER, 12))
    behind = at + size
    if left < _TERMINATOR or any(read(behind, _HEADER)):
        raise BadRecords("an extra record is not the last one")
    start = behind + _TERMINATOR
    if where != start or where % _ALIGNMENT or length % _ALIGNMENT:
        raise BadRecords("more records do not follow at once")
    if length > frame + FRAME_LIMIT - start or where + length > user_end:
        raise BadRecords("too many records")
    return where, length
