"""The build ID in a note of an ELF file: what the kernel tells of a mapped one (Linux: lib/buildid.c)."""

from __future__ import annotations

import struct
from collections.abc import Callable

_HEADER = struct.Struct("<4s5B7x2HI3QI6H")
_SEGMENT = struct.Struct("<2I6Q")
_NOTE = struct.Struct("<3I")
_MAGIC, _CLASS_64, _PT_NOTE, _BUILD_ID = b"\x7fELF", 2, 4, 3
_MOST_SEGMENTS = 256
_LONGEST = 20  # bytes


def build_id(read: Callable[[int, int], bytes]) -> bytes:
    """The build ID of a 64-bit file whose bytes `read(offset, length)` gives; nothing if it has none."""
    magic, kind, *rest = _HEADER.unpack(read(0, _HEADER.size))
    if magic != _MAGIC or kind != _CLASS_64:
        return b""
    table, count = rest[8], rest[13]
    for number in range(min(count, _MOST_SEGMENTS)):
        what, _flags, offset, _va, _pa, size, _memory, _align = _SEGMENT.unpack(
            read(table + number * _SEGMENT.size, _SEGMENT.size)
        )
        if what == _PT_NOTE and (found := _in_notes(read, offset, offset + size)):
            return found
    return b""


def _in_notes(read: Callable[[int, int], bytes], at: int, end: int) -> bytes:
    """The build ID among the notes of a part of the file."""
    while end - at >= _NOTE.size:
        name_size, size, kind = _NOTE.unpack(read(at, _NOTE.size))
        name, data = at + _NOTE.size, at + _NOTE.size + (name_size + 3 & -4)
        if kind == _BUILD_ID and name_size == 4 and 0 < size <= _LONGEST and read(name, 4) == b"GNU\0":
            return read(data, size)
        at = data + (size + 3 & -4)
    return b""
