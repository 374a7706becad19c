"""What is in a directory, wherever it is: names of the host, of the machine's memory, of mounts below."""

from __future__ import annotations

import os
import stat as modes

from aether_emu.errors import shown
from aether_emu.linux.files.host import by_descriptor, refusals
from aether_emu.linux.files.mounts import PROC_MAGIC
from aether_emu.linux.files.namespace import Namespace, number_of
from aether_emu.linux.files.place import GuestPath, Place, text
from aether_emu.linux.files.rights import of_a_process
from aether_emu.linux.files.synthetic import Directory
from aether_emu.linux.files.tmp_nodes import TmpDirectory
from aether_emu.records import dataclass

_NAMES_PER_LOOK = 4096


@dataclass(frozen=True)
class Listed:
    """One line of a directory: a name, its inode number and its `DT_*` type."""

    name: bytes
    number: int
    kind: int


def listed(namespace: Namespace, place: Place) -> list[Listed]:
    """What is in a directory: `.` and `..`, then all names in byte order."""
    kinds: dict[bytes, tuple[tuple[int, int] | GuestPath, int]] = {}
    numbers: dict[bytes, int] = {}
    if place.status is not None:
        kinds = _list_host(namespace, place)
    elif isinstance(place.node, TmpDirectory):
        kinds = {name: (node.key, node.mode) for name, node in place.node.entries.items()}
        numbers = {name: node.inode.number for name, node in place.node.entries.items()}
    elif isinstance(place.node, Directory):
        kinds = {name: ((*place.path, name), node.mode) for name, node in place.node.children().items()}
    kinds.update((name, (node.key, node.mode)) for name, node in namespace.specials.inside(place.key))
    for name in namespace.mounts.names_below(place.path):
        path = (*place.path, name)
        mount = namespace.mounts.at(path)
        if mount is not None:
            root = namespace.root_of(mount, None)
            kinds[name] = (root.key, root.mode)
            numbers[name] = namespace.inode(root).number
        elif name not in kinds or not modes.S_ISDIR(kinds[name][1]):
            kinds[name] = (path, modes.S_IFDIR)
    here = namespace.inode(place).number
    lines = [
        Listed(b".", here, modes.S_IFDIR >> 12),
        Listed(b"..", _above(namespace, place), modes.S_IFDIR >> 12),
    ]
    by_number = place.mount.kind == PROC_MAGIC
    for index, name in enumerate(sorted(kinds, key=_as_number if by_number else None)):
        if index % _NAMES_PER_LOOK == 0:
            namespace.look()
        key, mode = kinds[name]
        if place.status is None and of_a_process(place.mount, (*place.path, name)):
            number = number_of((*place.path, name))
        else:
            number = numbers.get(name) or namespace.inodes.of(key).number
        lines.append(Listed(name, number, modes.S_IFMT(mode) >> 12))
    return lines


def _list_host(namespace: Namespace, place: Place) -> dict[bytes, tuple[tuple[int, int] | GuestPath, int]]:
    assert place.status is not None
    found: dict[bytes, tuple[tuple[int, int] | GuestPath, int]] = {}
    with refusals(f"directory {shown(text(place.path))}"):
        fd = os.open(by_descriptor(place.fd), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with os.scandir(fd) as entries:
                for index, item in enumerate(entries):
                    if index % _NAMES_PER_LOOK == 0:
                        namespace.look()
                    name = os.fsencode(item.name)
                    found[name] = ((place.status.st_dev, item.inode()), _type_of(item))
        finally:
            os.close(fd)
    return found


def _above(namespace: Namespace, place: Place) -> int:
    above = place.path[:-1]
    mount = namespace.mounts.at(above)
    if isinstance(place.node, TmpDirectory) and place.node.parent is not None:
        return place.node.parent.inode.number
    if mount is not None:
        return namespace.inode(namespace.root_of(mount, None)).number
    if place.status is None or namespace.mounts.at(place.path) is not None:
        return namespace.inodes.of(above).number
    try:
        status = os.stat(b"..", dir_fd=place.fd)
    except OSError:  # a directory may be listed that can't be searched
        return namespace.inodes.of(above).number
    return namespace.inodes.of((status.st_dev, status.st_ino)).number


def _as_number(name: bytes) -> tuple[int, bytes]:
    """Numbers in ascending order, behind what is none."""
    return (len(name) if name.isdigit() else 0, name)


def _type_of(item: os.DirEntry[str]) -> int:
    """The file type of a host directory's entry, in the place that `st_mode` has it."""
    if item.is_symlink():
        return modes.S_IFLNK
    if item.is_dir(follow_symlinks=False):
        return modes.S_IFDIR
    if item.is_file(follow_symlinks=False):
        return modes.S_IFREG
    return modes.S_IFMT(item.stat(follow_symlinks=False).st_mode)
