"""Programs of a few instructions on a machine of their own: code at START, read-write zeros at DATA."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from aether_emu.config import Config
from aether_emu.grants import Grants
from aether_emu.linux.files.streams import BufferStream
from aether_emu.system import Machine
from tests.guests.running import ISAS
from tests.linux.exec.crafted import CODE, EXECUTE, READ, WRITE, Header, crafted
from tests.machine.unicorn import bare_arm64, flat_guest

START, DATA, DATA_SIZE = 0x400000 + CODE, 0x60_0000, 0x4000
every_isa = pytest.mark.parametrize("isa", ISAS)
_HEADERS = (
    Header(flags=READ | EXECUTE),
    Header(flags=READ | WRITE, address=DATA, file_size=0, memory_size=DATA_SIZE),
)
EXIT = {
    "x86_64": "mov eax, 231; syscall",
    "arm64": "mov x8, #94; svc #0",
}
"""exit_group with what the first argument's register holds."""


def assembled(isa: str, source: str, address: int = START) -> bytes:
    """Machine code of `source`, to stand at `address`."""
    assemble = flat_guest.assemble if isa == "x86_64" else bare_arm64.assemble
    return assemble(source, address)


def streams(stdin: bytes = b"") -> dict[str, BufferStream]:
    """Its input, and places for its output."""
    return {"stdin": BufferStream(stdin), "stdout": BufferStream(), "stderr": BufferStream()}


def written(folder: Path, isa: str, source: str) -> Path:
    """The program as a file in `folder`."""
    path = folder / "program"
    path.write_bytes(crafted(_HEADERS, isa=isa, code=assembled(isa, source)))
    path.chmod(0o755)
    return path


@contextlib.contextmanager
def loaded(
    folder: Path, isa: str, source: str | Mapping[str, str], *, stdin: bytes = b"", **options: object
) -> Iterator[Machine]:
    """A machine with the program loaded; nothing of it may be left at the end."""
    text = source if isinstance(source, str) else source[isa]
    config = Config.load(overrides={"ram": "8M", "aperture": "4M", **options})
    machine = Machine(isa, config=config)
    try:
        path = written(folder, isa, text)
        machine.load(path, ["program"], grants=Grants(cwd=folder), streams=streams(stdin))
        yield machine
    finally:
        machine.close()


def with_symbols(image: bytes, symbols: Mapping[str, tuple[int, int]]) -> bytes:
    """An ELF file with a symbol table: name -> (address, size) of its functions (gABI 4, "Symbol Table")."""
    names, table = b"\0", bytes(24)
    for name, (address, size) in symbols.items():
        table += struct.pack("<IBBHQQ", len(names), 0x12, 0, 1, address, size)
        names += name.encode() + b"\0"
    at = -(-len(image) // 8) * 8
    section = struct.Struct("<IIQQQQIIQQ")
    headers = bytes(section.size)
    headers += section.pack(0, 2, 0, 0, at, len(table), 2, 1, 8, 24)
    headers += section.pack(0, 3, 0, 0, at + len(table), len(names), 0, 0, 1, 0)
    whole = bytearray(image.ljust(at, b"\0") + table + names + headers)
    struct.pack_into("<Q", whole, 40, at + len(table) + len(names))
    struct.pack_into("<HHH", whole, 58, section.size, 3, 0)
    return bytes(whole)
