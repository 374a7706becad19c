"""The symbols of a program, from its own file: names of functions and data, and where they are in memory."""

from __future__ import annotations

import struct
from typing import BinaryIO

from aether_emu.errors import ProgramError, Refused, shown
from aether_emu.linux.exec.elf import read_image
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.host_file import HostData
from aether_emu.linux.task.process import Process
from aether_emu.mm.protection import Protection

_SECTION, _SYMBOL = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ")
_TABLES = (2, 11)  # SHT_SYMTAB, SHT_DYNSYM
_MOST = 1 << 26  # bytes of a table, or of its names
_FUNCTIONS_AND_DATA = (0, 1, 2)  # STT_NOTYPE, STT_OBJECT, STT_FUNC


def symbols_of(process: Process) -> dict[str, int]:
    """Name -> address of what the program defines; its interpreter and libraries aside.

    Empty for a stripped program, a file that is gone, and one that is no sound ELF file.
    """
    files = process.files
    try:
        fd = files.open(fl.AT_FDCWD, process.program.path, fl.O_RDONLY)
    except Refused:
        return {}
    try:
        file = files.table.file(fd)
        if not isinstance(file, HostData):
            return {}
        with open(file.host_fd, "rb", closefd=False) as stream:
            stream.seek(0)
            image = read_image(stream, shown(process.program.path))
            code = [s.address for s in image.segments if s.protection & Protection.EXECUTE]
            bias = process.program.code[0] - min(code, default=0) if code else 0
            return {name: value + bias & (1 << 64) - 1 for name, value in _symbols(stream)}
    except (ProgramError, struct.error, OSError):
        return {}
    finally:
        files.close(fd)


def _symbols(file: BinaryIO) -> list[tuple[str, int]]:
    """(name, value) of each defined symbol. Raises struct.error for what is cut off."""
    file.seek(0)
    header = file.read(64)
    offset, size, count = *struct.unpack_from("<Q", header, 40), *struct.unpack_from("<HH", header, 58)
    if size != _SECTION.size:
        return []
    sections = list(_SECTION.iter_unpack(_bytes(file, offset, size * count)))
    found = []
    for _, kind, _, _, at, length, link, _, _, entry in sections:
        if kind not in _TABLES or entry != _SYMBOL.size or not 0 < link < count:
            continue
        names = _bytes(file, sections[link][4], sections[link][5])
        for name, info, _other, section, value, _size in _SYMBOL.iter_unpack(_bytes(file, at, length)):
            end = names.find(b"\0", name)
            if section and name and end > name and info & 15 in _FUNCTIONS_AND_DATA:
                found.append((shown(names[name:end]), value))
    return found


def _bytes(file: BinaryIO, offset: int, length: int) -> bytes:
    if length > _MOST or offset >= 1 << 63:
        return b""
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise struct.error("cut off")
    return data
