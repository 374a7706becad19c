"""A file may hold anything where Linux does not look: the report comes all the same."""

from __future__ import annotations

import random
import re
import struct
from pathlib import Path

import pytest

from tests.observe.crash.crashing import CRASH, crashed, functions

_SECTIONS = 40  # offset of e_shoff
_ISAS = ("x86_64", "arm64")


def _sections(data: bytes) -> list[tuple[int, ...]]:
    start, count = struct.unpack_from("<Q", data, _SECTIONS)[0], struct.unpack_from("<H", data, 60)[0]
    return [struct.unpack_from("<IIQQQQIIQQ", data, start + 64 * index) for index in range(count)]


def _named(data: bytes, name: bytes) -> tuple[int, int]:
    """(offset, size) of a section."""
    sections = _sections(data)
    names = sections[struct.unpack_from("<H", data, 62)[0]][4]
    (found,) = [one for one in sections if data[names + one[0] :].startswith(name + b"\0")]
    return found[4], found[5]


def _run(data: bytearray, isa: str, cwd: Path, way: str = "null") -> dict[str, list[str]]:
    program = cwd / "crash"
    program.write_bytes(data)
    program.chmod(0o755)
    sections = crashed(program, isa, cwd, way)
    assert {"", "Backtrace", "Code", "Registers", "Walk", "Areas"} <= set(sections)
    assert not any("cannot be shown" in line for lines in sections.values() for line in lines)
    return sections


@pytest.mark.parametrize("isa", _ISAS)
@pytest.mark.parametrize(
    "patch",
    [
        (_SECTIONS, struct.pack("<Q", (1 << 64) - 1)),
        (_SECTIONS, struct.pack("<Q", 1 << 40)),
        (58, struct.pack("<HHH", 64, 0xFFFF, 0xFFFF)),
        (58, struct.pack("<HHH", 1, 3, 1)),
    ],
)
def test_section_headers_that_lead_nowhere(isa: str, patch: tuple[int, bytes], tmp_path: Path) -> None:
    data = bytearray((CRASH / isa / "crash").read_bytes())
    data[patch[0] : patch[0] + len(patch[1])] = patch[1]
    assert functions(_run(data, isa, tmp_path))[:2] == ["?", "?"]


@pytest.mark.parametrize("isa", _ISAS)
@pytest.mark.parametrize("name", [b".symtab", b".strtab", b".eh_frame", b".eh_frame_hdr"])
def test_tables_of_noise(isa: str, name: bytes, tmp_path: Path) -> None:
    good = (CRASH / isa / "crash").read_bytes()
    offset, size = _named(good, name)
    for seed in range(3):
        data = bytearray(good)
        data[offset : offset + size] = random.Random(seed).randbytes(size)
        _run(data, isa, tmp_path)


@pytest.mark.parametrize("isa", _ISAS)
def test_unwind_tables_with_single_wrong_bytes(isa: str, tmp_path: Path) -> None:
    good = (CRASH / isa / "crash").read_bytes()
    chance = random.Random(5)
    for name in (b".eh_frame", b".eh_frame_hdr"):
        offset, size = _named(good, name)
        for _ in range(8):
            data = bytearray(good)
            for _ in range(4):
                data[offset + chance.randrange(size)] = chance.randrange(256)
            _run(data, isa, tmp_path, chance.choice(("null", "jump")))


def test_names_that_would_move_the_cursor_are_escaped(tmp_path: Path) -> None:
    data = bytearray((CRASH / "x86_64/crash").read_bytes())
    start, size = _named(bytes(data), b".strtab")
    at = bytes(data).index(b"\0null\0", start, start + size) + 1
    data[at : at + 4] = b"\x1b[2J"
    text = "".join(_run(data, "x86_64", tmp_path)["Backtrace"])
    assert "\x1b" not in text
    assert r"\x1b[2J+0x" in text


def test_frame_pointers_lead_back_where_there_are_no_tables(tmp_path: Path) -> None:
    """The arm64 compiler keeps them. The innermost function calls nobody, and has its caller in x30."""
    data = bytearray((CRASH / "arm64/crash").read_bytes())
    offset, size = _named(bytes(data), b".eh_frame_hdr")
    data[offset : offset + size] = bytes(size)
    sections = _run(data, "arm64", tmp_path)
    assert functions(sections)[:3] == ["null", "main", "start"]
    ways = [re.search(r"\(by ([a-z ]+)\)", line) for line in sections["Backtrace"][1:]]
    assert [way and way[1] for way in ways] == ["return address", "frame pointer", "frame pointer"]
