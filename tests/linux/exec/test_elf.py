"""What is refused before anything is mapped, and in which words."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from aether_emu.errors import ProgramError
from aether_emu.linux.exec.elf import Image, read_image
from tests.linux.exec.crafted import (
    CODE,
    DYNAMIC,
    EXECUTE,
    GNU_PROPERTY,
    GNU_STACK,
    INTERP,
    ISAS,
    NOTE,
    PROGRAMS,
    READ,
    WRITE,
    Header,
    crafted,
    data_header,
)


def _read(tmp_path: Path, content: bytes) -> Image:
    (tmp_path / "p").write_bytes(content)
    with (tmp_path / "p").open("rb") as file:
        return read_image(file, "p")


def _refusal(tmp_path: Path, content: bytes) -> str:
    with pytest.raises(ProgramError) as caught:
        _read(tmp_path, content)
    assert caught.value.exit_status == 126
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _note(name: bytes, kind: int, description: bytes) -> bytes:
    padded = name + bytes(-len(name) % 4)
    return struct.pack("<III", len(name), len(description), kind) + padded + description


def _property(kind: int, value: int) -> bytes:
    return struct.pack("<IIII", kind, 4, value, 0)


def _needing(levels: int) -> bytes:
    """A GNU property note: x86 features used first, then the ISA levels needed."""
    return _note(b"GNU\0", 5, _property(0xC0000002, 3) + _property(0xC0008002, levels))


@pytest.mark.parametrize("isa", ISAS)
def test_a_program_says_its_isa_entry_and_segments(tmp_path: Path, isa: str) -> None:
    headers = [Header(), Header(flags=READ | WRITE, address=0x500000, memory_size=0x3000)]
    image = _read(tmp_path, crafted(headers, isa=isa))
    assert (image.isa, image.entry, image.position_independent) == (isa, 0x400000 + CODE, False)
    assert (image.span(4096), image.high, image.header_count) == (0x103000, 0x503000, 2)
    assert [segment.memory_size for segment in image.segments] == [0x1000, 0x3000]
    assert _read(tmp_path, crafted(headers, isa=isa, kind=3)).position_independent


@pytest.mark.parametrize("isa", ISAS)
def test_every_guest_program_is_accepted(isa: str) -> None:
    programs = sorted((PROGRAMS / isa).iterdir())
    assert programs
    for program in programs:
        with program.open("rb") as file:
            assert read_image(file, program.name).isa == isa


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({4: 1, 18: 3}, "32-bit"),
        ({4: 1, 54: 32}, "32-bit"),  # the x32 ABI
        ({5: 2, 18: 0, 19: 62}, "big-endian"),
        ({0: 0}, "not an ELF program"),
        ({16: 1}, "not a program"),  # a relocatable object
        ({16: 4}, "not a program"),  # a core file
        ({54: 32}, "program header table"),
    ],
)
def test_a_header_that_names_another_kind_of_file(tmp_path: Path, change: dict[int, int], words: str) -> None:
    content = bytearray(crafted())
    for at, value in change.items():
        content[at] = value
    assert words in _refusal(tmp_path, bytes(content))


@pytest.mark.parametrize(
    ("machine", "name"), [(243, "RISCV"), (3, "386"), (8, "MIPS"), (40, "ARM"), (0x1234, "4660")]
)
def test_another_machine_is_named(tmp_path: Path, machine: int, name: str) -> None:
    words = _refusal(tmp_path, crafted(machine=machine))
    assert f"is for {name}; only x86_64 and arm64 programs run here" in words


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an ELF program"),
        (b"\x7fEL", "not an ELF program"),
        (b"\x7fELF", "cut off"),
        (b"#!/bin/sh\nexit 0\n", "script"),
        (b"MZ\x90\0" * 64, "not an ELF program"),
    ],
)
def test_a_file_that_is_no_elf_program(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in _refusal(tmp_path, content)


@pytest.mark.parametrize("place", [4, 5, 6, 7, 8, 9, 15, 20, 40, 48, 52, 58, 60, 62])
def test_what_linux_does_not_read_of_the_header_may_be_anything(tmp_path: Path, place: int) -> None:
    """Class, byte order, versions, the OS's ABI, padding, flags, sizes of headers, and all of sections."""
    content = bytearray(crafted())
    content[place] ^= 0xFF
    assert _read(tmp_path, bytes(content)) == _read(tmp_path, crafted())


def test_a_truncation_is_refused_only_if_it_takes_program_headers(tmp_path: Path) -> None:
    content = (PROGRAMS / "x86_64" / "hello").read_bytes()
    whole = _read(tmp_path, content)
    needed = 64 + 56 * whole.header_count
    for length in range(0, needed, 7):
        _refusal(tmp_path, content[:length])
    _refusal(tmp_path, content[: needed - 1])
    assert _read(tmp_path, content[:needed]) == whole


_TOP = 1 << 64


def test_segments_come_as_the_file_has_them(tmp_path: Path) -> None:
    """In its order, with whatever numbers: those that cannot be mapped are refused when they are mapped."""
    high, low = Header(address=0x500000), Header(align=3, file_size=_TOP - 1, memory_size=7)
    image = _read(tmp_path, crafted([high, low, Header(memory_size=0, file_size=0), Header(kind=GNU_STACK)]))
    assert [(s.address, s.file_size, s.memory_size, s.align) for s in image.segments] == [
        (0x500000, 0x1000, 0x1000, 0x1000),
        (0x400000, _TOP - 1, 7, 3),
        (0x400000, 0, 0, 0x1000),
    ]
    assert _read(tmp_path, crafted([Header(kind=GNU_STACK)])).segments == ()


def test_the_largest_power_of_two_is_the_alignment(tmp_path: Path) -> None:
    headers = [Header(align=align) for align in (0, 0x1000, 1 << 21, (1 << 22) + 1, _TOP - 1)]
    assert _read(tmp_path, crafted(headers)).align == 1 << 21
    assert _read(tmp_path, crafted([Header(align=3)])).align == 0


@pytest.mark.parametrize("count", [0, 1171, 65535])
def test_a_number_of_program_headers_that_cannot_be(tmp_path: Path, count: int) -> None:
    assert "program header table" in _refusal(tmp_path, crafted(count=count))


@pytest.mark.parametrize("offset", [0xFFF, 0x1000, 1 << 63, _TOP - 56])
def test_program_headers_outside_the_file(tmp_path: Path, offset: int) -> None:
    assert "cut off" in _refusal(tmp_path, crafted(header_offset=offset))


@pytest.mark.parametrize("name", [b"\0", b"", b"/lib/ld.so", b"/" * 4096 + b"\0"])
def test_an_interpreter_name_that_is_none(tmp_path: Path, name: bytes) -> None:
    headers = [Header(), data_header(INTERP, len(name))]
    assert "interpreter name" in _refusal(tmp_path, crafted(headers, data=name[:0x700]))


def test_an_interpreter_name_ends_at_its_first_nul(tmp_path: Path) -> None:
    headers = [Header(), data_header(INTERP, 5)]
    assert _read(tmp_path, crafted(headers, data=b"/a\0b\0")).interpreter == b"/a"


def test_as_many_program_headers_as_linux_takes(tmp_path: Path) -> None:
    """65,536 bytes of them (load_elf_phdrs)."""
    content = crafted(count=1170, header_offset=0x1000) + Header().packed() * 1170
    assert len(_read(tmp_path, content).segments) == 1170


def test_the_first_interpreter_counts(tmp_path: Path) -> None:
    first, second = data_header(INTERP, 3), data_header(INTERP, 3).but(offset=0x903)
    image = _read(tmp_path, crafted([Header(), first, second], data=b"/a\0/b\0"))
    assert image.interpreter == b"/a"


@pytest.mark.parametrize("kind", [NOTE, GNU_PROPERTY])
@pytest.mark.parametrize(("levels", "words"), [(4, "x86-64-v3"), (8, "x86-64-v4"), (0xF, "x86-64-v4")])
def test_a_program_that_needs_avx_is_told_so(tmp_path: Path, kind: int, levels: int, words: str) -> None:
    note = _needing(levels)
    assert words in _refusal(tmp_path, crafted([Header(), data_header(kind, len(note))], data=note))


def test_the_note_is_found_behind_another(tmp_path: Path) -> None:
    notes = _note(b"Linux\0", 1, b"12345678") + _needing(4)
    assert "needs AVX" in _refusal(tmp_path, crafted([Header(), data_header(NOTE, len(notes))], data=notes))


def test_what_is_no_note_is_not_read_as_one(tmp_path: Path) -> None:
    note = _needing(4)
    image = crafted([Header(), data_header(DYNAMIC, len(note))], data=note)
    assert _read(tmp_path, image).isa == "x86_64"


@pytest.mark.parametrize(
    "note",
    [
        _needing(3),  # baseline and v2
        _note(b"GNU\0", 5, _property(0xC0010002, 4)),  # used, not needed
        _note(b"ABC\0", 5, _property(0xC0008002, 4)),
        _note(b"GNU\0", 3, _property(0xC0008002, 4)),
        struct.pack("<III", 0xFFFFFFFF, 0xFFFFFFFF, 5) + b"GNU\0",
        struct.pack("<III", 4, 0xFFFFFFFF, 5) + b"GNU\0" + struct.pack("<II", 0xC0008002, 0xFFFFFFF0),
        b"\0" * 5,
    ],
)
def test_other_notes_and_garbage_do_not_hinder_a_program(tmp_path: Path, note: bytes) -> None:
    assert _read(tmp_path, crafted([Header(), data_header(NOTE, len(note))], data=note)).isa == "x86_64"


def test_an_x86_note_means_nothing_to_arm64(tmp_path: Path) -> None:
    note = _needing(4)
    assert _read(tmp_path, crafted([Header(), data_header(NOTE, len(note))], isa="arm64", data=note))


@pytest.mark.parametrize(("flags", "executable"), [(READ | WRITE, False), (READ | WRITE | EXECUTE, True)])
def test_the_stack_is_executable_on_request(tmp_path: Path, flags: int, executable: bool) -> None:
    headers = [Header(), Header(GNU_STACK, flags, file_size=0, memory_size=0)]
    assert _read(tmp_path, crafted(headers)).executable_stack is executable
