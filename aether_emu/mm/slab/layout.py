"""What the bytes of a kernel object say: named fields, each at a fixed place, little-endian.

The layouts are ours. Sizes are those of the fields, so an object is smaller than Linux's of the same name.
"""

from __future__ import annotations

import struct
from typing import Any


class Layout:
    """The fields of one kind of object, in order: ("pid", "i"), ("comm", "16s"), ... in `struct`'s letters.

    Each field stands at a multiple of its size, as a C compiler has it, and the whole is a multiple of 8.
    """

    def __init__(self, name: str, *fields: tuple[str, str]) -> None:
        self.name, at = name, 0
        self.fields: dict[str, tuple[int, struct.Struct]] = {}
        for field, letters in fields:
            one = struct.Struct("<" + letters)
            alignment = 1 if letters.endswith("s") else one.size
            at = -(-at // alignment) * alignment
            self.fields[field] = at, one
            at += one.size
        self.size = at + 7 & -8

    def pack(self, memory: memoryview, at: int, values: dict[str, Any]) -> None:
        """Write the named fields of the object that begins at `memory[at]`; the others stay."""
        for name, value in values.items():
            place, one = self.fields[name]
            one.pack_into(memory, at + place, value)

    def unpack(self, memory: memoryview, at: int) -> dict[str, Any]:
        """All fields of the object that begins at `memory[at]`; bytes without the zeros behind them."""
        told: dict[str, Any] = {}
        for name, (place, one) in self.fields.items():
            (value,) = one.unpack_from(memory, at + place)
            told[name] = value.rstrip(b"\0") if isinstance(value, bytes) else value
        return told
