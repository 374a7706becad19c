"""Areas as people read them: the lines of /proc/PID/maps, and the same as records."""

from __future__ import annotations

import os
from functools import cache

from aether_emu.mm.allocation import Area
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.records import dataclass

_LETTERS = (("r", Protection.READ), ("w", Protection.WRITE), ("x", Protection.EXECUTE))


@dataclass(frozen=True, slots=True)
class AreaRecord:
    """One area. `str` makes a line of /proc/PID/maps of it (proc_pid_maps(5)).

    `offset` is in bytes of the file `name`, whose `device` and `inode` are as the program's stat shows them;
    they are 0 where no file is mapped, and `name` is then "" or says what it is: [heap], [stack], [vdso].
    """

    start: int
    end: int
    protection: Protection
    shared: bool
    offset: int
    device: int
    inode: int
    name: str

    @property
    def length(self) -> int:
        """In bytes."""
        return self.end - self.start

    @property
    def permissions(self) -> str:
        """As maps shows them: "r-xp"."""
        return _permissions(int(self.protection), self.shared)

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end

    def __str__(self) -> str:
        device = f"{os.major(self.device):02x}:{os.minor(self.device):02x}"
        where = f"{self.start:08x}-{self.end:08x}"
        head = f"{where} {self.permissions} {self.offset:08x} {device} {self.inode}"
        name = self.name.replace("\n", "\\012")
        return f"{head:<72} {name}" if name else head + " "

    def __repr__(self) -> str:
        name = f" {self.name}" if self.name else ""
        return f"<AreaRecord {self.start:#x}-{self.end:#x} {self.permissions}{name}>"


def record_of(space: AddressSpace, area: Area) -> AreaRecord:
    """An area of `space` as it is now."""
    offset = device = inode = 0
    if isinstance(area.backing, FileBacking):
        offset = area.offset << space.table.format.page_shift
        device, inode = area.backing.identity
    return AreaRecord(area.start, area.end, area.protection, area.shared, offset, device, inode, area.name)


@cache  # there are sixteen
def _permissions(protection: int, shared: bool) -> str:
    flags = "".join(letter if protection & bit else "-" for letter, bit in _LETTERS)
    return flags + ("s" if shared else "p")


class Areas(tuple[AreaRecord, ...]):
    """The areas of a process at one moment, by address. `print` shows them as /proc/PID/maps does."""

    __slots__ = ()

    def at(self, address: int) -> AreaRecord | None:
        """The one that contains an address, or None."""
        return next((record for record in self if address in record), None)

    def named(self, name: str) -> Areas:
        """Those of a name, such as "[heap]" or a file's."""
        return Areas(record for record in self if record.name == name)

    def __str__(self) -> str:
        return "\n".join(map(str, self))
