"""Areas as people read them: the lines of /proc/PID/maps, and the same as records."""

from __future__ import annotations

import os
from functools import cache, lru_cache

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
        return _line(self.start, self.end, self.permissions, self.offset, self.device, self.inode, self.name)

    def __repr__(self) -> str:
        name = f" {self.name}" if self.name else ""
        return f"<AreaRecord {self.start:#x}-{self.end:#x} {self.permissions}{name}>"


def record_of(space: AddressSpace, area: Area) -> AreaRecord:
    """An area of `space` as it is now."""
    offset, device, inode = _file_of(space, area)
    return AreaRecord(area.start, area.end, area.protection, area.shared, offset, device, inode, area.name)


def line_of(space: AddressSpace, area: Area) -> str:
    """The line of /proc/PID/maps for an area as it is now: that of its record, which is not made."""
    permissions = _permissions(area.protection, area.shared)
    if area.backing is None and not area.name:  # most of thousands of areas are such
        return f"{area.start:08x}-{area.end:08x} {permissions} 00000000 00:00 0 "
    return _line(area.start, area.end, permissions, *_file_of(space, area), area.name)


def _file_of(space: AddressSpace, area: Area) -> tuple[int, int, int]:
    """What a record says of the file: offset, device, inode."""
    if not isinstance(area.backing, FileBacking):
        return 0, 0, 0
    return area.offset << space.table.format.page_shift, *area.backing.identity


def _line(start: int, end: int, permissions: str, offset: int, device: int, inode: int, name: str) -> str:
    head = f"{start:08x}-{end:08x} {permissions} {offset:08x} {_device(device)} {inode}"
    if not name:
        return head + " "
    if "\n" in name:
        name = name.replace("\n", "\\012")
    return f"{head:<72} {name}"


@lru_cache  # a machine has few
def _device(device: int) -> str:
    return f"{os.major(device):02x}:{os.minor(device):02x}"


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
