"""ELF files made byte by byte, and one bounded run of whatever a file holds."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aether_emu.config import Config
from aether_emu.errors import ProgramError
from aether_emu.grants import Grants
from aether_emu.linux.files.streams import BufferStream
from aether_emu.system import Machine

PROGRAMS = Path(__file__).parents[3] / "guest" / "bin"
ISAS = ("x86_64", "arm64")
LOAD, DYNAMIC, INTERP, NOTE = 1, 2, 3, 4
GNU_STACK, GNU_PROPERTY = 0x6474E551, 0x6474E553
READ, WRITE, EXECUTE = 4, 2, 1
_MACHINES = {"x86_64": 62, "arm64": 183}
# exit(7): mov edi, 7; mov eax, 60; syscall / mov x0, #7; mov x8, #93; svc #0
_EXIT_7 = {
    "x86_64": bytes.fromhex("bf07000000b83c0000000f05"),
    "arm64": bytes.fromhex("e00080d2a80b80d2010000d4"),
}
# exit(read(0, sp - 64, 16))
READ_STDIN = {
    "x86_64": bytes.fromhex("31ff488d7424c0ba1000000031c00f0589c7b83c0000000f05"),
    "arm64": bytes.fromhex("000080d2e10301d1020280d2e80780d2010000d4a80b80d2010000d4"),
}
# exit(-openat(AT_FDCWD, argv[1], O_RDONLY)): the errno, or 253 for descriptor 3
OPEN_ARGUMENT = {
    "x86_64": bytes.fromhex("488b742410bf9cffffff31d2b8010100000f0589c7f7dfb83c0000000f05"),
    "arm64": bytes.fromhex("e10b40f9600c8092020080d2080780d2010000d4e00300cba80b80d2010000d4"),
}
OPENED = 253
CODE = 0x800


@dataclass(frozen=True)
class Header:
    """A program header, by default of the one page that holds the code."""

    kind: int = LOAD
    flags: int = READ | EXECUTE
    offset: int = 0
    address: int = 0x400000
    file_size: int = 0x1000
    memory_size: int = 0x1000
    align: int = 0x1000

    def but(self, **fields: int) -> Header:
        """The same with other fields."""
        return replace(self, **fields)

    def packed(self) -> bytes:
        """`Elf64_Phdr`."""
        sizes = self.file_size, self.memory_size, self.align
        return struct.pack("<II6Q", self.kind, self.flags, self.offset, self.address, self.address, *sizes)


def crafted(
    headers: Sequence[Header] = (Header(),),
    *,
    isa: str = "x86_64",
    kind: int = 2,
    entry: int = 0x400000 + CODE,
    data: bytes = b"",
    count: int | None = None,
    header_offset: int = 64,
    machine: int | None = None,
    code: bytes | None = None,
) -> bytes:
    """A file of one page: headers, at `CODE` some code (by default an exit with status 7), at 0x900 `data`.

    `count` is e_phnum, where it is not to be the truth.
    """
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    number = _MACHINES[isa] if machine is None else machine
    counted = len(headers) if count is None else count
    head = ident + struct.pack(
        "<HHIQQQIHHHHHH", kind, number, 1, entry, header_offset, 0, 0, 64, 56, counted, 64, 0, 0
    )
    body = bytearray(0x1000)
    table = head + b"".join(header.packed() for header in headers)
    assert len(table) <= CODE, "too many headers for one page"
    body[: len(table)] = table
    code = _EXIT_7[isa] if code is None else code
    body[CODE : CODE + len(code)] = code
    body[0x900 : 0x900 + len(data)] = data
    return bytes(body)


def data_header(kind: int, length: int) -> Header:
    """A header that describes `data`."""
    return Header(kind, READ, 0x900, 0x400900, length, length, 8)


def outcome(path: Path, isa: str, *, blocks: int = 4000, options: Mapping[str, object] | None = None) -> str:
    """Run a file for at most so many blocks: "exit N", "signal N", "budget", or "refused: why".

    Any other exception, a frame that is not given back included, comes through.
    """
    config = Config.load(overrides={"ram": "8M", "aperture": "4M", **(options or {})})
    machine = Machine(isa, config=config)
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    try:
        machine.load(path, ["program"], grants=Grants(cwd=path.parent), streams=streams)
        ended = machine.run_for(blocks)
    except ProgramError as error:
        assert "\n" not in str(error)
        assert error.exit_status in (126, 127)
        return f"refused: {error}"
    finally:
        machine.close()
    if ended is None:
        return "budget"
    return f"signal {ended.signal}" if ended.signal else f"exit {ended.code}"
