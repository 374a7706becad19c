"""ELF64 programs: what Linux reads of a file to load it, or one line that says why it loads nothing.

Only what fs/binfmt_elf.c refuses before it starts to map is refused here: a type, a machine, a table of
program headers that cannot be read, a name of an interpreter. The rest of the identification, sections and
sizes of headers mean nothing to Linux. What a segment asks for is judged by whoever maps it (`loader`).
One thing more than Linux: a program that needs AVX by its GNU property note is told so before it starts.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import BinaryIO

from aether_emu.errors import ProgramError
from aether_emu.mm.protection import Protection
from aether_emu.records import dataclass

MACHINES = {62: "x86_64", 183: "arm64"}
_OTHERS = {
    2: "SPARC", 3: "386", 4: "68K", 8: "MIPS", 20: "PPC", 21: "PPC64", 22: "S390", 40: "ARM", 42: "SH",
    43: "SPARCV9", 50: "IA_64", 243: "RISCV", 247: "BPF", 258: "LOONGARCH", 0x9026: "ALPHA",
}  # fmt: skip
_PROGRAMS = (2, 3)  # ET_EXEC, ET_DYN
_INDEPENDENT = 3
_HEADER, _SEGMENT = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<II6Q")
ELF_HEADER = _HEADER.size
"""Bytes of the header at the start of every ELF file."""
_MOST_HEADERS = 65536 // _SEGMENT.size
_LONGEST_NAME = 4096  # PATH_MAX, with the NUL
_PT_LOAD, _PT_INTERP, _PT_NOTE, _PT_GNU_STACK, _PT_GNU_PROPERTY = 1, 3, 4, 0x6474_E551, 0x6474_E553
_X86_64 = 62
_X86_ISA_1_NEEDED = 0xC000_8002
_V3, _V4 = 4, 8  # x86-64-v3 needs AVX, v4 AVX-512

Refuse = Callable[[str], ProgramError]


@dataclass(frozen=True, slots=True)
class Segment:
    """One PT_LOAD as the file has it: any number may stand in any field."""

    address: int
    offset: int
    file_size: int
    memory_size: int
    protection: Protection
    align: int


@dataclass(frozen=True, slots=True)
class Image:
    """A program that may be mapped. `segments` are in the order of the file, which is that of mapping.

    `interpreter` is its PT_INTERP path, or None.
    """

    isa: str
    entry: int
    position_independent: bool
    segments: tuple[Segment, ...]
    header_count: int
    header_offset: int
    interpreter: bytes | None
    executable_stack: bool

    @property
    def high(self) -> int:
        """The end of the segment that ends highest; 0 without segments."""
        return max((segment.address + segment.memory_size for segment in self.segments), default=0)

    @property
    def align(self) -> int:
        """The largest alignment that a segment asks for; what is no power of two asks for none."""
        return max((s.align for s in self.segments if s.align & s.align - 1 == 0), default=0)

    def span(self, page_size: int) -> int:
        """Bytes from the page of the lowest segment to the end of the highest; there is one at least."""
        return self.high - min(segment.address & -page_size for segment in self.segments)


def read_image(file: BinaryIO, name: str) -> Image:
    """Parse an open ELF file. Raises ProgramError (exit status 126)."""

    def refuse(why: str) -> ProgramError:
        return ProgramError(f"{name}: {why}")

    head = file.read(_HEADER.size)
    if head[:2] == b"#!":
        raise refuse("is a script; run its interpreter with the script as an argument")
    if head[:4] != b"\x7fELF":
        raise refuse("is not an ELF program")
    if len(head) < _HEADER.size:
        raise refuse("the ELF header is cut off")
    identification, kind, machine, _version, entry, offset, _, _, _, size, count, *_ = _HEADER.unpack(head)
    if identification[5] == 2 and machine not in MACHINES:
        raise refuse("is a big-endian program; only little-endian programs run here")
    if identification[4] == 1 and (machine not in MACHINES or size != _SEGMENT.size):
        raise refuse("is a 32-bit program; only 64-bit programs run here")
    if kind not in _PROGRAMS:
        raise refuse("is an ELF file, but not a program")
    isa = MACHINES.get(machine)
    if isa is None:
        named = _OTHERS.get(machine, str(machine))
        raise refuse(f"is for {named}; only x86_64 and arm64 programs run here")
    if size != _SEGMENT.size or not 0 < count <= _MOST_HEADERS:
        raise refuse("has an unusable program header table")
    table = _bytes(file, offset, size * count)
    if table is None:
        raise refuse("the program headers are cut off")
    segments: list[Segment] = []
    interpreter, executable_stack = None, False
    for what, flags, at, address, _physical, in_file, in_memory, align in _SEGMENT.iter_unpack(table):
        if what == _PT_LOAD:
            segments.append(Segment(address, at, in_file, in_memory, _protection(flags), align))
        elif what == _PT_INTERP and interpreter is None:  # Linux takes the first
            interpreter = _interpreter(file, at, in_file, refuse)
        elif what == _PT_GNU_STACK:
            executable_stack = bool(flags & 1)
        elif what in (_PT_NOTE, _PT_GNU_PROPERTY) and machine == _X86_64:
            _check_properties(file, at, in_file, refuse)
    return Image(
        isa, entry, kind == _INDEPENDENT, tuple(segments), count, offset, interpreter, executable_stack
    )


def _bytes(file: BinaryIO, offset: int, length: int) -> bytes | None:
    """So many bytes of a file, or None when it does not hold them all."""
    if offset + length > os.fstat(file.fileno()).st_size:
        return None
    file.seek(offset)
    data = file.read(length)
    return data if len(data) == length else None


def _protection(flags: int) -> Protection:
    return Protection(bool(flags & 4) | bool(flags & 2) << 1 | (flags & 1) << 2)


def _interpreter(file: BinaryIO, offset: int, length: int, refuse: Refuse) -> bytes:
    name = _bytes(file, offset, length) if 2 <= length <= _LONGEST_NAME else None
    if name is None or name[-1:] != b"\0":
        raise refuse("has an unusable interpreter name")
    return name[: name.index(b"\0")]


def _check_properties(file: BinaryIO, offset: int, length: int, refuse: Refuse) -> None:
    """Refuse a program whose GNU property note says that it needs AVX (x86-64 psABI, ISA_1_NEEDED)."""
    note = _bytes(file, offset, length) if length <= 1 << 16 else None
    at = 0
    while note is not None and at + 12 <= len(note):
        name_size, size_of, kind = struct.unpack_from("<III", note, at)
        start = at + 12 + (name_size + 3 & ~3)
        if kind == 5 and note[at + 12 : at + 16] == b"GNU\0":
            needed = _isa_needed(note[start : start + size_of])
            if needed & (_V3 | _V4):
                raise refuse(f"needs AVX (x86-64-v{4 if needed & _V4 else 3}), which the emulated CPU lacks")
        at = start + (size_of + 7 & ~7)


def _isa_needed(properties: bytes) -> int:
    at, needed = 0, 0
    while at + 8 <= len(properties):
        kind, size = struct.unpack_from("<II", properties, at)
        if kind == _X86_ISA_1_NEEDED and size == 4 and at + 12 <= len(properties):
            needed |= struct.unpack_from("<I", properties, at + 8)[0]
        at += 8 + (size + 7 & ~7)
    return needed
