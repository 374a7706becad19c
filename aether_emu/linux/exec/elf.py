"""ELF64 programs: what the loader needs of a file, checked, or one line that says what is wrong.

pyelftools parses the headers; nothing it says is believed before it is checked against the file's
size and the address space. The checks refuse what Linux refuses with ENOEXEC, and more: a program
that needs AVX by its GNU property note is told so before it starts.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO

from elftools.common.exceptions import ELFError, ELFParseError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile

from aether_emu.errors import ProgramError
from aether_emu.mm.protection import Protection

MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "arm64"}
_MOST_HEADERS = 512
_HIGHEST = 1 << 48  # of any ISA; the loader knows the exact end
_X86_ISA_1_NEEDED = 0xC000_8002
_V3, _V4 = 4, 8  # x86-64-v3 needs AVX, v4 AVX-512


@dataclass(frozen=True, slots=True)
class Segment:
    """One PT_LOAD: file bytes `[offset, offset+file_size)` at `address`, zeros up to `memory_size`."""

    address: int
    offset: int
    file_size: int
    memory_size: int
    protection: Protection
    align: int


@dataclass(frozen=True, slots=True)
class Image:
    """A program that can be loaded. `interpreter` is its PT_INTERP path, or None."""

    isa: str
    entry: int
    position_independent: bool
    segments: tuple[Segment, ...]
    header_count: int
    header_offset: int
    interpreter: bytes | None
    executable_stack: bool

    @property
    def low(self) -> int:
        """The first address of the lowest segment."""
        return min(segment.address for segment in self.segments)

    @property
    def high(self) -> int:
        """The end of the highest segment."""
        return max(segment.address + segment.memory_size for segment in self.segments)

    @property
    def align(self) -> int:
        """The largest alignment that a segment asks for."""
        return max(segment.align for segment in self.segments)


def read_image(file: BinaryIO, name: str) -> Image:
    """Parse and check an open ELF file. Raises ProgramError (exit status 126)."""

    def refuse(why: str) -> ProgramError:
        return ProgramError(f"{name}: {why}")

    head = file.read(64)
    file.seek(0)
    if head[:2] == b"#!":
        raise refuse("is a script; run its interpreter with the script as an argument")
    if head[:4] != b"\x7fELF":
        raise refuse("is not an ELF program")
    if len(head) < 64:
        raise refuse("the ELF header is cut off")
    if head[4] != 2:
        raise refuse("is a 32-bit program; only 64-bit programs run here")
    if head[5] != 1:
        raise refuse("is a big-endian program; only little-endian programs run here")
    size = os.fstat(file.fileno()).st_size
    try:
        return _read(ELFFile(file), size, refuse)
    except ProgramError:
        raise
    except (ELFError, ELFParseError, ConstructError, UnicodeError, ValueError, KeyError, TypeError,
            IndexError, OverflowError, AttributeError, AssertionError, struct.error) as error:  # fmt: skip
        raise refuse(f"is a damaged ELF file ({type(error).__name__})") from error


def _read(elf: Any, size: int, refuse: Any) -> Image:
    kind, machine = elf["e_type"], elf["e_machine"]
    if kind not in ("ET_EXEC", "ET_DYN"):
        raise refuse("is an ELF file, but not a program")
    isa = MACHINES.get(machine)
    if isa is None:
        raise refuse(f"is for {str(machine).removeprefix('EM_')}; only x86_64 and arm64 programs run here")
    count = elf["e_phnum"]
    if elf["e_phentsize"] != 56 or not 0 < count <= _MOST_HEADERS:
        raise refuse("has an unusable program header table")
    if elf["e_phoff"] + 56 * count > size:
        raise refuse("the program headers are cut off")
    segments: list[Segment] = []
    interpreter, executable_stack = None, False
    for header in elf.iter_segments():
        match header["p_type"]:
            case "PT_LOAD":
                if header["p_memsz"]:
                    segments.append(_segment(header, size, refuse))
            case "PT_INTERP" if interpreter is None:  # Linux takes the first
                interpreter = _interpreter(elf, header, size, refuse)
            case "PT_GNU_STACK":
                executable_stack = bool(header["p_flags"] & 1)
            case "PT_NOTE" | "PT_GNU_PROPERTY":
                _check_properties(elf, header, size, refuse)
    if not segments:
        raise refuse("has nothing to load")
    if any(b.address <= a.address for a, b in pairwise(segments)):
        raise refuse("its segments are not in ascending order")
    for low, high in pairwise(segments):
        if low.address + low.memory_size > high.address:
            raise refuse("its segments overlap")
    if segments[-1].address + segments[-1].memory_size - segments[0].address > _HIGHEST >> 1:
        raise refuse("is larger than the address space")
    return Image(
        isa, elf["e_entry"], kind == "ET_DYN", tuple(segments), count, elf["e_phoff"], interpreter,
        executable_stack,
    )  # fmt: skip


def _segment(header: Any, size: int, refuse: Any) -> Segment:
    address, offset = header["p_vaddr"], header["p_offset"]
    file_size, memory_size, align = header["p_filesz"], header["p_memsz"], header["p_align"]
    if file_size > memory_size:
        raise refuse("a segment has more file bytes than memory")
    if offset + file_size > size:
        raise refuse("a segment reaches beyond the end of the file (truncated?)")
    if address + memory_size > _HIGHEST:
        raise refuse(f"a segment at {address:#x} is outside the user address space")
    if (address - offset) & 0xFFF:
        raise refuse("a segment is not page aligned in the file")
    if align & (align - 1) or align > 1 << 30:
        raise refuse(f"a segment has alignment {align:#x}")
    flags = header["p_flags"]
    protection = Protection(bool(flags & 4) | bool(flags & 2) << 1 | (flags & 1) << 2)
    return Segment(address, offset, file_size, memory_size, protection, align)


def _interpreter(elf: Any, header: Any, size: int, refuse: Any) -> bytes:
    length, offset = header["p_filesz"], header["p_offset"]
    if not 2 <= length <= 4096 or offset + length > size:
        raise refuse("has an unusable interpreter name")
    elf.stream.seek(offset)
    name = elf.stream.read(length)
    if not isinstance(name, bytes) or name[-1:] != b"\0" or b"\0" in name[:-1]:
        raise refuse("has an unusable interpreter name")
    return name[:-1]


def _check_properties(elf: Any, header: Any, size: int, refuse: Any) -> None:
    """Refuse a program whose GNU property note says that it needs AVX (x86-64 psABI, ISA_1_NEEDED)."""
    length, offset = header["p_filesz"], header["p_offset"]
    if length > 1 << 16 or offset + length > size:
        return
    elf.stream.seek(offset)
    note = elf.stream.read(length)
    at = 0
    while at + 12 <= len(note):
        name_size, size_of, kind = struct.unpack_from("<III", note, at)
        start = at + 12 + (name_size + 3 & ~3)
        if kind == 5 and note[at + 12 : at + 16] == b"GNU\0":
            needed = _isa_needed(note[start : start + size_of])
            if elf["e_machine"] == "EM_X86_64" and needed & (_V3 | _V4):
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
