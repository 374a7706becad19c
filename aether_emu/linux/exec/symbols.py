"""The symbols of a program, from its own file: names of functions and data, and where they are in memory."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO, Protocol

from aether_emu.errors import ProgramError, Refused, shown, whole
from aether_emu.linux.exec.elf import read_image
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.host_file import HostData
from aether_emu.mm.protection import Protection
from aether_emu.records import dataclass

_SECTION, _SYMBOL = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ")
_TABLES = (2, 11)  # SHT_SYMTAB, SHT_DYNSYM
_MOST = 1 << 26  # bytes of a table, or of its names
_FUNCTIONS_AND_DATA = (0, 1, 2)  # STT_NOTYPE, STT_OBJECT, STT_FUNC


class Executed(Protocol):
    """A program that was loaded, see `process.Program`."""

    @property
    def path(self) -> bytes: ...
    @property
    def code(self) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function or datum: `size` bytes from `address` on; 0 where the file does not say."""

    name: str
    address: int
    size: int


class Symbols(Mapping[str, int]):
    """Name -> address of what a program defines, and by `at` what stands at an address."""

    def __init__(self, symbols: Iterable[Symbol] = ()) -> None:
        self._by_name = {symbol.name: symbol for symbol in symbols}
        self._in_order = sorted(self._by_name.values(), key=lambda symbol: (symbol.address, symbol.size))
        self._starts = [symbol.address for symbol in self._in_order]

    def __getitem__(self, name: str) -> int:
        return self._by_name[name].address

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def at(self, address: int) -> Symbol | None:
        """The one that begins last of those which contain `address`; one without a size ends at the next.

        None for an address of nothing that has a name. Raises ConfigError for no whole number.
        """
        place = bisect_right(self._starts, whole("address", address))
        nearest = self._starts[place - 1] if place else 0
        for symbol in reversed(self._in_order[:place]):
            unsized = not symbol.size and symbol.address == nearest
            if unsized or address < symbol.address + symbol.size:
                return symbol
        return None

    def __repr__(self) -> str:
        return f"<Symbols: {len(self)}>"


def symbols_of(files: Files, program: Executed) -> Symbols:
    """What the program defines, from its file; its interpreter and libraries aside.

    Empty for a stripped program, a file that is gone, and one that is no sound ELF file.
    """
    try:
        fd = files.open(fl.AT_FDCWD, program.path, fl.O_RDONLY)
    except Refused:
        return Symbols()
    try:
        file = files.table.file(fd)
        if not isinstance(file, HostData):
            return Symbols()
        with open(file.host_fd, "rb", closefd=False) as stream:
            stream.seek(0)
            image = read_image(stream, shown(program.path))
            code = [s.address for s in image.segments if s.protection & Protection.EXECUTE]
            bias = program.code[0] - min(code, default=0) if code else 0
            mask = (1 << 64) - 1
            return Symbols(Symbol(name, value + bias & mask, size) for name, value, size in _symbols(stream))
    except (ProgramError, struct.error, OSError):
        return Symbols()
    finally:
        files.close(fd)


def _symbols(file: BinaryIO) -> list[tuple[str, int, int]]:
    """(name, value, size) of each defined symbol. Raises struct.error for what is cut off."""
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
        for name, info, _other, section, value, extent in _SYMBOL.iter_unpack(_bytes(file, at, length)):
            end = names.find(b"\0", name)
            if section and name and end > name and info & 15 in _FUNCTIONS_AND_DATA:
                found.append((shown(names[name:end]), value, extent))
    return found


def _bytes(file: BinaryIO, offset: int, length: int) -> bytes:
    if length > _MOST or offset >= 1 << 63:
        return b""
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise struct.error("cut off")
    return data
