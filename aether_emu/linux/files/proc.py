"""/proc, seen by one process: its descriptors, and texts that the rest of the personality provides."""

from __future__ import annotations

import stat as modes
from collections.abc import Callable, Mapping
from typing import Protocol

from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.files.region import Region
from aether_emu.linux.files.synthetic import Control, Directory, Link, Node, Text

_LINKS = frozenset({b"exe", b"cwd", b"root"})


class ProcSource(Protocol):
    """What is behind /proc for one process.

    `texts` maps paths below /proc to providers, called when the file is opened: "meminfo", "self/maps",
    "sys/vm/overcommit_memory", "17/stat" for another process; or to a control, for what is written; or to a
    region, for what is read and written by position. What begins with "self/" is this process's; its "exe" is
    a link to the guest path that the provider returns.
    """

    @property
    def pid(self) -> int:
        """The process's number."""

    @property
    def texts(self) -> Mapping[str, Callable[[], bytes] | Control | Region]:
        """Providers and controls by path."""


class Viewer(Protocol):
    """The process that looks at /proc: its source, its open files, where it stands, what is mounted."""

    @property
    def proc(self) -> ProcSource:
        """Who it is."""

    def open_files(self) -> Mapping[int, OpenFile]:
        """Its open files by descriptor."""

    def getcwd(self) -> bytes:
        """Its working directory."""

    def mount_texts(self) -> Mapping[str, Callable[[], bytes]]:
        """Providers of the texts that the namespace knows (mounts, mountinfo, filesystems)."""


def proc_tree(viewer: Viewer | None) -> Directory:
    """/proc for `viewer`; empty for nobody."""
    if viewer is None:
        return Directory(dict, modes.S_IFDIR | 0o555)
    pid = b"%d" % viewer.proc.pid
    tree: _Tree = {b"self": Link(lambda: pid), b"mounts": Link(lambda: b"self/mounts")}
    links = {"self/cwd": viewer.getcwd, "self/root": lambda: b"/"}
    for name, provide in {**links, **viewer.mount_texts(), **viewer.proc.texts}.items():
        first, *rest = name.encode().split(b"/")
        parts = [pid if first == b"self" else first, *rest]
        is_link = len(parts) == 2 and parts[1] in _LINKS
        if isinstance(provide, Control | Region):
            _plant(tree, parts, provide)
        else:
            _plant(tree, parts, Link(provide) if is_link else Text(provide))
    _plant(tree, [pid, b"fd"], Directory(lambda: _descriptors(viewer), modes.S_IFDIR | 0o500))
    return _directory(tree)


_Tree = dict[bytes, "Node | _Tree"]


def _plant(tree: _Tree, parts: list[bytes], node: Node) -> None:
    for part in parts[:-1]:
        below = tree.setdefault(part, {})
        assert isinstance(below, dict), f"/proc has a file where {parts} needs a directory"
        tree = below
    tree[parts[-1]] = node


def _directory(tree: _Tree) -> Directory:
    nodes = {name: _directory(node) if isinstance(node, dict) else node for name, node in tree.items()}
    return Directory(lambda: nodes, modes.S_IFDIR | 0o555)


def _descriptors(viewer: Viewer) -> dict[bytes, Node]:
    return {
        b"%d" % fd: Link(file.link, file, modes.S_IFLNK | 0o700) for fd, file in viewer.open_files().items()
    }
