"""The crash program with other code, names or headers than its compiler gave it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from tests.machine.unicorn import bare_arm64, flat_guest
from tests.observe.crash.crashing import CRASH, crashed

_SECTIONS = 40  # offset of e_shoff
_ASSEMBLE: dict[str, Callable[[str], bytes]] = {"x86_64": flat_guest.assemble, "arm64": bare_arm64.assemble}


class Altered:
    """A copy of the program in memory."""

    def __init__(self, isa: str) -> None:
        self.isa = isa
        self.data = bytearray((CRASH / isa / "crash").read_bytes())

    def run(self, cwd: Path, way: str = "null") -> dict[str, list[str]]:
        """The report of its crash."""
        program = cwd / "crash"
        program.write_bytes(self.data)
        program.chmod(0o755)
        return crashed(program, self.isa, cwd, way)

    def _sections(self) -> list[tuple[int, tuple[int, ...]]]:
        """(offset of the header, its fields) of each."""
        start, count = (
            struct.unpack_from("<Q", self.data, _SECTIONS)[0],
            struct.unpack_from("<H", self.data, 60)[0],
        )
        offsets = [start + 64 * index for index in range(count)]
        return [(offset, struct.unpack_from("<IIQQQQIIQQ", self.data, offset)) for offset in offsets]

    def section(self, name: bytes) -> int:
        """A section's number."""
        sections = self._sections()
        names = sections[struct.unpack_from("<H", self.data, 62)[0]][1][4]
        (found,) = [
            number
            for number, (_, header) in enumerate(sections)
            if self.data[names + header[0] :].startswith(name + b"\0")
        ]
        return found

    def symbol(self, name: bytes) -> int:
        """Offset in the file of a symbol."""
        table, text = (self._sections()[self.section(each)][1] for each in (b".symtab", b".strtab"))
        for at in range(table[4], table[4] + table[5], 24):
            start = text[4] + struct.unpack_from("<I", self.data, at)[0]
            if self.data[start:].startswith(name + b"\0"):
                return at
        raise LookupError(name)

    def without_tables(self) -> Altered:
        """With unwind tables that nobody finds."""
        _, header = self._sections()[self.section(b".eh_frame_hdr")]
        self.data[header[4] : header[4] + header[5]] = bytes(header[5])
        return self

    def renamed(self, name: bytes, other: bytes) -> Altered:
        """With another name for a symbol."""
        offset, header = self._sections()[self.section(b".strtab")]
        text = bytes(self.data[header[4] : header[4] + header[5]])
        struct.pack_into("<I", self.data, self.symbol(name), len(text))
        struct.pack_into("<QQ", self.data, offset + 24, len(self.data), len(text) + len(other) + 1)
        self.data += text + other + b"\0"
        return self

    def coded(self, source: str) -> Altered:
        """With other code in `null`."""
        _, header = self._sections()[self.section(b".text")]
        value = struct.unpack_from("<Q", self.data, self.symbol(b"null") + 8)[0]
        code = _ASSEMBLE[self.isa](source)
        at = header[4] + value - header[3]
        self.data[at : at + len(code)] = code
        return self
