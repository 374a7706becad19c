"""/proc, seen by one process: every process and thread, their descriptors, and texts that others provide.

    /proc/meminfo, sys/...         `ProcSource.texts`, of the machine
    /proc/self, thread-self        links to those who look
    /proc/PID/...                  `ShownTask.texts`, and what its open files are
    /proc/PID/task/TID/...         the same for each thread
    /proc/TID/...                  found, but not listed, as on Linux

Names are looked up one by one, so a path costs the same however many processes there are.
"""

from __future__ import annotations

import errno
import stat as modes
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.files.region import Region
from aether_emu.linux.files.synthetic import Control, Directory, Link, Node, Text

_FOLDER = modes.S_IFDIR | 0o555
_LONGEST_NUMBER = 10
Provided = Callable[[], bytes] | Text | Control | Region | Link | Directory
"""What is behind a name: a text that everybody may read, called when the file is read, or a node."""


class OpenFiles(Protocol):
    """The files of a process, as /proc shows them."""

    def open_files(self) -> Mapping[int, OpenFile]:
        """Its open files by descriptor."""

    @property
    def working_directory(self) -> OpenFile:
        """Where it stands."""

    @property
    def root(self) -> OpenFile | None:
        """What its / is; None if it is the guest's."""

    def closes_on_exec(self, fd: int) -> bool:
        """Whether execve closes this descriptor."""

    def mount_texts(self) -> Mapping[str, Callable[[], bytes]]:
        """Providers of the texts that the namespace knows (mounts, mountinfo)."""


class ShownTask(Protocol):
    """A process or thread in /proc.

    `texts` are what is behind the names in its folder. `files` is None once it has given them back. `tasks`
    are the threads by number; a thread in its process's folder has none. `is_gone` is true once nobody has
    the number any more: whoever holds the folder open finds nothing in it.
    """

    @property
    def texts(self) -> Mapping[str, Provided]: ...
    @property
    def files(self) -> OpenFiles | None: ...
    @property
    def is_gone(self) -> bool: ...
    @property
    def tasks(self) -> Mapping[int, ShownTask]: ...


class ProcSource(Protocol):
    """What is behind /proc for one process.

    `pid` and `tid` are the process and the thread that look. `texts` maps paths below /proc to what is there:
    "meminfo", "sys/vm/overcommit_memory".
    """

    @property
    def pid(self) -> int: ...
    @property
    def tid(self) -> int: ...
    @property
    def texts(self) -> Mapping[str, Provided]: ...

    def numbers(self) -> Iterable[int]:
        """The processes, zombies among them."""

    def find(self, number: int) -> ShownTask | None:
        """The process or thread with that number."""

    @property
    def system(self) -> Mapping[str, Provided]:
        """The same of /sys, of which only the machine is shown."""


class Viewer(OpenFiles, Protocol):
    """The process that looks at /proc."""

    @property
    def proc(self) -> ProcSource:
        """Who it is."""


def proc_tree(viewer: Viewer | None) -> Directory:
    """/proc for `viewer`; empty for nobody."""
    if viewer is None:
        return Directory(dict, _FOLDER)
    root = _Root(viewer.proc)
    return Directory(lambda: root, _FOLDER)


def sys_tree(viewer: Viewer | None) -> Directory:
    """/sys, likewise."""
    tree: _Tree = {}
    for name, provided in {} if viewer is None else viewer.proc.system.items():
        _plant(tree, name.encode().split(b"/"), _node(provided))
    nodes = _nodes(tree)
    return Directory(lambda: nodes, _FOLDER)


class _Root(Mapping[bytes, Node]):
    """What is in /proc, by name."""

    def __init__(self, source: ProcSource) -> None:
        self._source = source
        tree: _Tree = {
            b"self": Link(lambda: b"%d" % source.pid),
            b"thread-self": Link(lambda: b"%d/task/%d" % (source.pid, source.tid)),
            b"mounts": Link(lambda: b"self/mounts"),
            b"net": Link(lambda: b"self/net"),
            b"filesystems": Text(
                lambda: b"nodev\tsysfs\nnodev\ttmpfs\nnodev\tproc\nnodev\tdevpts\nnodev\thugetlbfs\n\text4\n"
            ),
        }
        for name, provided in source.texts.items():
            _plant(tree, name.encode().split(b"/"), _node(provided))
        self._fixed = _nodes(tree)

    def __getitem__(self, name: bytes) -> Node:
        fixed = self._fixed.get(name)
        if fixed is not None:
            return fixed
        if name.isdigit() and not name.startswith(b"0") and len(name) < _LONGEST_NUMBER:
            shown = self._source.find(int(name))
            if shown is not None:
                return _task_folder(shown)
        raise KeyError(name)

    def __iter__(self) -> Iterator[bytes]:
        yield from self._fixed
        for number in self._source.numbers():
            yield b"%d" % number

    def __len__(self) -> int:
        return sum(1 for _ in self)


_Tree = dict[bytes, "Node | _Tree"]


def _plant(tree: _Tree, parts: list[bytes], node: Node) -> None:
    for part in parts[:-1]:
        below = tree.setdefault(part, {})
        assert isinstance(below, dict), f"/proc has a file where {parts} needs a directory"
        tree = below
    tree[parts[-1]] = node


def _nodes(tree: _Tree) -> dict[bytes, Node]:
    return {name: _folder(node) if isinstance(node, dict) else node for name, node in tree.items()}


def _folder(tree: _Tree) -> Directory:
    nodes = _nodes(tree)
    return Directory(lambda: nodes, _FOLDER)


def _node(provided: Provided) -> Node:
    return Text(provided) if callable(provided) else provided


# ---- one process or thread


def _task_folder(shown: ShownTask) -> Directory:
    return Directory(lambda: _task_nodes(shown), _FOLDER)


def _task_nodes(shown: ShownTask) -> dict[bytes, Node]:
    if shown.is_gone:
        return {}
    tree: _Tree = {}
    for name, provided in shown.texts.items():
        _plant(tree, name.encode().split(b"/"), _node(provided))
    nodes = _nodes(tree)
    files = shown.files
    mounts = {} if files is None else files.mount_texts()
    nodes |= {name.encode(): Text(provide) for name, provide in mounts.items()}
    nodes[b"fd"] = Directory(lambda: _descriptors(shown), modes.S_IFDIR | 0o500)
    nodes[b"fdinfo"] = Directory(lambda: _descriptor_texts(shown), _FOLDER)
    nodes[b"cwd"] = Link(_nowhere) if files is None else _link_to(files.working_directory, 0o777)
    root = None if files is None else files.root
    if root is None:
        nodes[b"root"] = Link(_nowhere if files is None else lambda: b"/")
    else:
        nodes[b"root"] = _link_to(root, 0o777)
    if shown.tasks:
        nodes[b"task"] = Directory(lambda: _threads(shown), _FOLDER)
    return nodes


def _nowhere() -> bytes:
    raise Refused(errno.ENOENT, "the process has given it back")


def _threads(shown: ShownTask) -> dict[bytes, Node]:
    return {b"%d" % number: _task_folder(thread) for number, thread in shown.tasks.items()}


def _link_to(file: OpenFile, permissions: int) -> Link:
    """A magic link: whoever follows it comes to the file itself, with the rights of its grant."""
    return Link(file.link, file, modes.S_IFLNK | permissions)


def _descriptors(shown: ShownTask) -> dict[bytes, Node]:
    files = {} if shown.files is None else shown.files.open_files()
    return {
        b"%d" % fd: _link_to(file, (0o500 if file.readable else 0) | (0o300 if file.writable else 0))
        for fd, file in files.items()
    }


def _descriptor_texts(shown: ShownTask) -> dict[bytes, Node]:
    if shown.files is None:
        return {}
    files = shown.files.open_files()
    return {b"%d" % fd: Text(_about(shown.files, fd, file)) for fd, file in files.items()}


def _about(files: OpenFiles, fd: int, file: OpenFile) -> Callable[[], bytes]:
    def text() -> bytes:
        stat, closes = file.stat(), fl.O_CLOEXEC if files.closes_on_exec(fd) else 0
        return (
            b"pos:\t%d\nflags:\t0%o\nmnt_id:\t%d\nino:\t%d\n"
            % (
                *(file.position, file.flags | closes),
                *(file.statfs().number + 20, stat.ino),
            )
            + file.details()
        )

    return text
