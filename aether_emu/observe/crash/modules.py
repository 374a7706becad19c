"""The ELF files that a process has mapped, and the names of what lies in them.

They are read as the program could read them, by way of its areas, and may hold anything: sizes are bounded by
the file and by what is here, and whoever asks expects an error. Headers are those of ELF-64 (gABI).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from aether_emu.errors import Refused
from aether_emu.mm.allocation import Area
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.objects.special import SpecialMapping
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.observe.crash.names import readable

_PT_LOAD, _PT_EH_FRAME, _PF_X = 1, 0x6474_E550, 1
_SHT_SYMTAB, _SHT_DYNSYM = 2, 11
_NAMED = (0, 1, 2, 10)  # symbol types: none, object, function, indirect function
_MARK = b"$"  # begins what marks code and data in ARM's object files, and is nobody's name
_MOST_BYTES = 32 << 20  # of a table
_FARTHEST = 1 << 20  # that an address lies behind a symbol without a size
_LONGEST_NAME, _MOST_MARKS = 4096, 16  # those of C++ are long, and undone whole or not at all
_MOST_HEADERS, _MOST_NAMES = 4096, 1 << 20
_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<II6Q")

Read = Callable[[int, int], bytes]
"""Up to so many bytes of a file at an offset."""


class NotElf(Exception):
    """A file is no ELF file, or not one that can be read."""


@dataclass
class Module:
    """One such file as it is mapped: what its addresses say lies `bias` higher in memory.

    `entry` is where it starts, in memory; `unwind_index` is the address there of the index of its unwind
    tables (.eh_frame_hdr), or None.
    """

    name: str
    bias: int
    entry: int
    unwind_index: int | None
    read: Read
    _symbols: _Symbols | None = field(default=None, repr=False)

    def unwind_tables(self) -> tuple[int, int] | None:
        """Address in memory and size of .eh_frame, for a program that has no index of it.

        Raises NotElf, struct.error, Refused.
        """
        sections, names = _sections(self.read)
        text = self.read(names[4], min(names[5], _MOST_NAMES))
        for section in sections:
            if text[section[0] :].startswith(b".eh_frame\0"):
                return section[3] + self.bias, section[5]
        return None

    def symbol(self, address: int) -> tuple[str, int] | None:
        """The name of what lies at an address, and how far the address lies behind its start."""
        if self._symbols is None:
            try:
                self._symbols = _Symbols.of(self.read)
            except (NotElf, Refused, struct.error, ValueError):
                self._symbols = _Symbols.none()
        return self._symbols.find(address - self.bias)


class Modules:
    """The modules of one address space, each looked at when it is first asked for."""

    def __init__(self, space: AddressSpace) -> None:
        self._space = space
        self._known: dict[tuple[int, int], Module | None] = {}

    def at(self, address: int) -> Module | None:
        """The module that an address lies in."""
        area = self._space.areas.find(address)
        if area is None or area.backing is None:
            return None
        key = (area.backing.number, area.start)
        if key not in self._known:
            try:
                self._known[key] = _module(area, self._space.table.format.page_shift)
            except (NotElf, Refused, struct.error, ValueError):
                self._known[key] = None
        return self._known[key]

    def describe(self, address: int, *, returned: bool = False) -> str:
        """Function and file of a code address; `returned` if it lies behind the call that is meant."""
        module, area = self.at(address - returned), self._space.areas.find(address - returned)
        if module is None:
            return (
                f"in {area.name or 'anonymous memory'}" if area is not None else "(nothing is mapped there)"
            )
        found = module.symbol(address - returned)
        where = f"{readable(found[0])}+{found[1] + returned:#x} " if found is not None else ""
        return f"{where}in {module.name}"


def _module(area: Area, page_shift: int) -> Module:
    read = _reader(area)
    head = read(0, 64)
    if head[:4] != b"\x7fELF" or len(head) < 64 or head[4] != 2:
        raise NotElf(area.name)
    start, size, count = struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54)
    if size != _SEGMENT.size:
        raise NotElf(area.name)
    segments = list(_SEGMENT.iter_unpack(_whole(read(start, min(count, _MOST_HEADERS) * size), size)))
    shown = area.offset << page_shift  # the file's offset at the area's start
    executed = bool(area.protection & Protection.EXECUTE)
    biases = {
        executed == bool(flags & _PF_X): area.start - (shown - offset + address)
        for kind, flags, offset, address, _physical, in_file, _in_memory, _align in segments
        if kind == _PT_LOAD and offset & -(1 << page_shift) <= shown < offset + in_file
    }
    if not biases:
        raise NotElf(area.name)
    bias = biases.get(True, biases.get(False, 0))  # a page of the file may show the ends of two segments
    unwind = next((segment[3] for segment in segments if segment[0] == _PT_EH_FRAME), None)
    entry = struct.unpack_from("<Q", head, 24)[0] + bias
    return Module(area.name, bias, entry, None if unwind is None else unwind + bias, read)


def _reader(area: Area) -> Read:
    match area.backing:
        case FileBacking() as backing:
            file = backing.file
            return lambda offset, length: file.read(offset, length) if 0 <= offset < 1 << 62 else b""
        case SpecialMapping() as special:
            image = b"".join(page or b"" for page in special.pages)
            return lambda offset, length: image[offset : offset + length]
    raise NotElf(area.name)


def _whole(data: bytes, size: int) -> bytes:
    """As much of a table as has whole records."""
    return data[: len(data) // size * size]


def _sections(read: Read) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """The section headers of a file, and that of their names. Raises NotElf, struct.error."""
    head = read(0, 64)
    table, (size, count, names) = struct.unpack_from("<Q", head, 40)[0], struct.unpack_from("<HHH", head, 58)
    if size != _SECTION.size:
        raise NotElf("sections of another size")
    sections = list(_SECTION.iter_unpack(_whole(read(table, count * size), size)))
    if names >= len(sections):
        raise NotElf("sections without names")
    return sections, sections[names]


class _Symbols:
    """Named addresses of one file."""

    def __init__(self, table: NDArray[np.void], text: bytes, sections: list[tuple[int, ...]]) -> None:
        """`table` are rows of `_SYMBOL`, `text` is what their names stand in, and `sections` the headers."""
        self._sections = [range(section[3], section[3] + section[5]) for section in sections]
        named = table[(table["section"] != 0) & np.isin(table["info"] & 15, _NAMED) & (table["name"] != 0)]
        # Of several at one address the last one counts: that with the largest size.
        self._table, self._text = named[np.lexsort((named["size"], named["value"]))], text
        self._starts = self._table["value"]

    @classmethod
    def none(cls) -> _Symbols:
        """Those of a file without."""
        return cls(np.zeros(0, _SYMBOL), b"", [])

    @classmethod
    def of(cls, read: Read) -> _Symbols:
        """Those of .symtab, or of .dynsym in a stripped file. Raises NotElf, struct.error, ValueError."""
        sections, _names = _sections(read)
        for wanted in (_SHT_SYMTAB, _SHT_DYNSYM):
            for section in sections:
                if section[1] == wanted and section[6] < len(sections):
                    strings = sections[section[6]]
                    rows = _whole(read(section[4], min(section[5], _MOST_BYTES)), _SYMBOL.itemsize)
                    text = read(strings[4], min(strings[5], _MOST_BYTES))
                    return cls(np.frombuffer(rows, _SYMBOL), text, sections)
        raise NotElf("no symbols")

    def find(self, address: int) -> tuple[str, int] | None:
        """The symbol that an address lies in, or that it follows if that has no size; and how far behind.

        What has no size, as labels of assembly have none, reaches no farther than its section.
        """
        if not 0 <= address < 1 << 64:
            return None
        index = int(np.searchsorted(self._starts, np.uint64(address), "right")) - 1
        if index < 0:
            return None
        for row in self._table[max(0, index - _MOST_MARKS) : index + 1][::-1]:
            offset, size = address - int(row["value"]), int(row["size"])
            at = int(row["name"])
            name = self._text[at : at + _LONGEST_NAME].partition(b"\0")[0]
            if name.startswith(_MARK) or not name:
                continue
            section = int(row["section"])
            around = self._sections[section] if section < len(self._sections) else range(0)
            inside = offset < size or (not size and address in around)
            return (name.decode("utf-8", "replace"), offset) if inside and offset <= _FARTHEST else None
        return None
