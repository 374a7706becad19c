"""Memory images and page tables made for tests, entry by entry."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from aether_emu.verify.tables.format_names import format_of
from aether_emu.verify.tables.images import Image, image_of

Words = np.ndarray[Any, np.dtype[np.uint64]]

TABLE = {"x86_64": 0x27, "arm64": 0x3}  # present, writable, user, accessed; valid table
PAGE = {"x86_64": 0x67 | 1 << 63, "arm64": 0x0060_0000_0000_0743}
"""Leaves of user data: readable, writable, not executable; ARM64's with AP=01, AF, inner shareable."""
LARGE = {"x86_64": 1 << 7, "arm64": 0}
KERNEL = {"x86_64": 0x163 | 1 << 63, "arm64": 0x0060_0000_0000_0703}
CODE = {"x86_64": 0x121, "arm64": 0x0040_0000_0000_0783}
"""Kernel text: read-only, executable by the supervisor, global."""


class Crafted:
    """Tables of one format in memory from physical 0 on, growing from the root at page 1."""

    def __init__(self, name: str, pages: int = 64) -> None:
        self.format = format_of(name)
        self.isa = self.format.isa
        self.page_bits, self.kernel_bits, self.code_bits = (
            kind[self.isa] & ~0x300 if "lpa2" in name else kind[self.isa] for kind in (PAGE, KERNEL, CODE)
        )  # of leaves; with LPA2 shareability is none of theirs
        self.words = np.zeros(pages * self.format.page // 8, np.uint64)
        self.root = self.format.page
        self.root1 = 2 * self.format.page
        self.next = 3 * self.format.page

    def table_of(self, va: int, level: int) -> int:
        """The table in which the entry of `level` for an address stands; made if need be."""
        at = self.root1 if self.isa == "arm64" and va >> 63 else self.root
        for above in range(self.format.levels, level, -1):
            slot = self.slot(at, va, above)
            if not self.words[slot]:
                self.words[slot] = self.next | TABLE[self.isa]
                self.next += self.format.page
            at = int(self.words[slot]) & (1 << 48) - self.format.page
        return at

    def slot(self, table: int, va: int, level: int) -> int:
        index = va >> self.format.shifts[level - 1] & (1 << self.format.widths[level - 1]) - 1
        return table // 8 + index

    def put(self, va: int, entry: int, level: int = 1) -> int:
        """Set one entry; the physical address where it stands."""
        slot = self.slot(self.table_of(va, level), va, level)
        self.words[slot] = entry
        return 8 * slot

    def leaf(self, va: int, pa: int, bits: int | None = None, level: int = 1) -> int:
        """Map one page, or a large one at a higher level."""
        flags = self.page_bits if bits is None else bits
        if level > 1:
            flags = flags | LARGE["x86_64"] if self.isa == "x86_64" else flags & ~2
        return self.put(va, pa | flags, level)

    @property
    def image(self) -> Image:
        return image_of(self.words)

    @property
    def options(self) -> dict[str, Any]:
        """What `walk`, `lint` and `open_tables` want besides the image."""
        both = {"root1": self.root1} if self.isa == "arm64" else {}
        return {"root": self.root, "format": self.format.name, **both}


def elf_core(
    segments: Sequence[tuple[int, bytes, int]], *, machine: int = 62, notes: bytes = b"", kind: int = 4,
    skew: int = 0, many: bool = False,
) -> bytes:  # fmt: skip
    """An ELF core of (physical address, contents, size in memory). `skew` misaligns the contents by bytes.

    `many` puts the number of program headers where files with 65,535 of them and more have it.
    """
    count = len(segments) + bool(notes)
    at = 64 + 56 * count + 64 * many
    headers, body = b"", notes
    if notes:
        headers += struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(notes), 0, 0)
    body += bytes(-len(at.to_bytes(8, "little") + body) % 8 + skew)
    for address, data, size in segments:
        headers += struct.pack("<IIQQQQQQ", 1, 7, at + len(body), 0, address, len(data), size, 0)
        body += data
    section = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, count, 0, 0) if many else b""
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", kind, machine, 1, 0, 64, 64 + 56 * count if many else 0, 0, 64, 56,
        0xFFFF if many else count, 64 if many else 0, int(many), 0,
    )  # fmt: skip
    return header + headers + section + body


def lime(ranges: Sequence[tuple[int, bytes]]) -> bytes:
    """A LiME image of (physical address, contents)."""
    return b"".join(
        struct.pack("<IIQQQ", 0x4C694D45, 1, address, address + len(data) - 1, 0) + data
        for address, data in ranges
    )


def note(name: bytes, kind: int, data: bytes) -> bytes:
    """One ELF note."""
    name += b"\0"
    padded = name.ljust(-(-len(name) // 4) * 4, b"\0") + data.ljust(-(-len(data) // 4) * 4, b"\0")
    return struct.pack("<III", len(name), len(data), kind) + padded


def qemu_note(cr3: int, cr4: int) -> bytes:
    """QEMU's note of one x86_64 CPU (target/i386/arch_dump.c: QEMUCPUState)."""
    return note(
        b"QEMU", 0, struct.pack("<II", 1, 440).ljust(392, b"\0") + struct.pack("<6Q", 0, 0, 0, cr3, cr4, 0)
    )
