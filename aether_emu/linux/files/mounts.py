"""What the guest was granted, and at which guest path each grant begins."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from aether_emu.linux.files.proc import Viewer
from aether_emu.linux.files.synthetic import Node
from aether_emu.records import dataclass

_FIRST_MINOR = 32

EXT4_MAGIC = 0xEF53
TMPFS_MAGIC = 0x01021994
PROC_MAGIC = 0x9FA0
DEVPTS_MAGIC = 0x1CD1
SYSFS_MAGIC = 0x62656572
HUGETLBFS_MAGIC = 0x958458F6
_NAMES = {
    EXT4_MAGIC: b"ext4",
    TMPFS_MAGIC: b"tmpfs",
    PROC_MAGIC: b"proc",
    DEVPTS_MAGIC: b"devpts",
    SYSFS_MAGIC: b"sysfs",
    HUGETLBFS_MAGIC: b"hugetlbfs",
}


@dataclass(frozen=True)
class Bind:
    """A grant: the host's file or directory `host` appears as `guest` (absolute), read-only by default."""

    host: Path
    guest: str
    writable: bool = False


@dataclass(frozen=True, eq=False)
class Mount:
    """A tree in the namespace: a granted host object (`fd`, O_PATH), or synthetic (`make` gives its root)."""

    number: int
    path: tuple[bytes, ...]
    kind: int
    writable: bool
    fd: int = -1
    make: Callable[[Viewer | None], Node] | None = None

    @property
    def dev(self) -> int:
        """`st_dev` of everything in it."""
        return os.makedev(0, _FIRST_MINOR + self.number)

    @property
    def kind_name(self) -> bytes:
        """The file system's name in /proc/mounts."""
        return _NAMES[self.kind]


class MountTable:
    """All mounts by canonical path, and the directories that must exist to reach them."""

    def __init__(self) -> None:
        self._by_path: dict[tuple[bytes, ...], Mount] = {}
        self._below: dict[tuple[bytes, ...], set[bytes]] = {}

    def add(self, mount: Mount) -> None:
        """Mount, hiding what was there."""
        self._by_path[mount.path] = mount
        for depth in range(len(mount.path)):
            self._below.setdefault(mount.path[:depth], set()).add(mount.path[depth])

    def at(self, path: tuple[bytes, ...]) -> Mount | None:
        """The mount whose root is `path`."""
        return self._by_path.get(path)

    def leads_to_mount(self, path: tuple[bytes, ...]) -> bool:
        """Whether a mount lies below `path`."""
        return path in self._below

    def names_below(self, path: tuple[bytes, ...]) -> list[bytes]:
        """The names directly below `path` that are mounts or lead to some, sorted."""
        return sorted(self._below.get(path, ()))

    def pins(self, path: tuple[bytes, ...]) -> bool:
        """Whether `path` can't be removed or renamed (EBUSY): it is a mount or leads to one."""
        return path in self._by_path or path in self._below

    def all(self) -> list[Mount]:
        """Every mount in the order of their paths."""
        return [self._by_path[path] for path in sorted(self._by_path)]

    def table_text(self) -> bytes:
        """/proc/mounts."""
        lines = []
        for m in self.all():
            mode = b"rw" if m.writable else b"ro"
            lines.append(
                b"%s %s %s %s,nosuid,relatime 0 0\n" % (m.kind_name, _escaped(m.path), m.kind_name, mode)
            )
        return b"".join(lines)

    def info_text(self) -> bytes:
        """/proc/self/mountinfo (proc_pid_mountinfo(5))."""
        lines = []
        for m in self.all():
            mode = b"rw" if m.writable else b"ro"
            ids = b"%d %d %d:%d" % (m.number + 20, 1, os.major(m.dev), os.minor(m.dev))
            fields = (ids, _escaped(m.path), mode, m.kind_name, m.kind_name, mode)
            lines.append(b"%s / %s %s,nosuid,relatime - %s %s %s\n" % fields)
        return b"".join(lines)


def _escaped(path: tuple[bytes, ...]) -> bytes:
    """A path as mount tables show it (getmntent(3))."""
    return escaped(b"/" + b"/".join(path))


def escaped(name: bytes) -> bytes:
    """A name in a table: what separates fields is octal."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in name)
