"""Tmpfs trees as plain data, and back: every node by its inode number, those without a name too."""

from __future__ import annotations

import stat as modes
from collections.abc import Callable, Iterable
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from aether_emu.errors import AetherError
from aether_emu.linux.files.directory import Located, OpenDirectory, PathOnly
from aether_emu.linux.files.hugetlbfs import HugeNode, HugeOpen
from aether_emu.linux.files.inodes import Inode
from aether_emu.linux.files.listing import Listed
from aether_emu.linux.files.memory_file import MemoryFile
from aether_emu.linux.files.namespace import Namespace
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.files.place import Place
from aether_emu.linux.files.special import Special
from aether_emu.linux.files.tmp_nodes import TmpDirectory, Tmpfs, TmpLink, TmpNode, attribute_size
from aether_emu.linux.files.tmpfs import TmpFile, TmpMemory, TmpOpen

if TYPE_CHECKING:
    from aether_emu.linux.files.pipe import Pipe
    from aether_emu.linux.net.unix import UnixSocket

State = dict[str, Any]
Nodes = dict[int, "TmpNode | Special"]
Number = Callable[["Pipe | UnixSocket | None"], "int | None"]


class CaptureError(AetherError):
    """An open file can't be described so that it could be opened again, or is not found again."""


def node_of(file: OpenFile) -> TmpNode | None:
    """The node in a tmpfs that an open file is of."""
    if isinstance(file, MemoryFile):
        return file.memory.node if isinstance(file.memory, TmpMemory) else None
    if isinstance(file, HugeOpen):
        return file.node
    node = file.place().node if isinstance(file, Located) else None
    return node if isinstance(node, TmpNode) else None


def describe_open(file: OpenFile, node: TmpNode) -> State:
    """Where an open file is, besides what all have. What only a mapping has is shown by no name."""
    where: State = {"node": node.inode.number, "fs": list(node.fs.path)}
    if isinstance(file, TmpOpen | HugeOpen | Located):
        return {**where, "path": list(file.dentry.path), "detached": file.dentry.detached}
    return {**where, "path": [*node.fs.path, b"#%d" % node.inode.number], "detached": True}


def reopen(namespace: Namespace, nodes: Nodes, described: State) -> OpenFile:
    """The open file of which `described` holds `describe_open`'s as "tmpfs". Raises CaptureError."""
    where, flags = described["tmpfs"], described["flags"]
    node, mount = nodes[where["node"]], namespace.mounts.at(tuple(where["fs"]))
    assert mount is not None, "`restore` has looked"
    place = Place(mount, tuple(where["path"]), node=node, inode=node.inode)
    file: TmpOpen | HugeOpen | Located
    if described["kind"] == PathOnly.kind:
        file = PathOnly(namespace, place, -1, flags)
    elif described["kind"] == OpenDirectory.kind:
        file = OpenDirectory(namespace, place, -1, flags)
        if described["listing"] is not None:
            file.keep([Listed(*line) for line in described["listing"]])
    elif isinstance(node, HugeNode):
        file = HugeOpen(namespace, place, node, flags)
    else:
        assert isinstance(node, TmpFile), "a regular file"
        file = TmpOpen(namespace, place, node, flags)
    file.dentry.detached = where["detached"]
    return file


def capture(namespace: Namespace, opened: Iterable[TmpNode | Special], number: Number) -> State:
    """Every tmpfs, named pipes and sockets wherever they are, and the nodes in `opened`, which may have no
    name. `number` tells that of a pipe or a socket.
    """
    found: Nodes = {}
    roots, elsewhere = (fs.root for fs in namespace.tmpfs), (each for _, each in namespace.specials.all())
    ahead: list[TmpNode | Special] = [*roots, *elsewhere, *opened]
    while ahead:
        node = ahead.pop()
        if node.inode.number not in found:
            found[node.inode.number] = node
            if isinstance(node, TmpDirectory):
                ahead += node.entries.values()
    return {
        "roots": [[list(fs.path), fs.root.inode.number] for fs in namespace.tmpfs],
        "nodes": [[inode, _describe(found[inode], number)] for inode in sorted(found)],
        "specials": namespace.specials.capture(),
    }


def _describe(node: TmpNode | Special, number: Number) -> State:
    if isinstance(node, Special):
        pipe = node.pipe if node.pipe is not None and (node.pipe.readers or node.pipe.writers) else None
        return {
            **{"kind": "special", "mode": node.mode, "links": node.links, "key": list(node.key)},
            **{"inode": list(astuple(node.inode)), "owner": [node.uid, node.gid]},
            **{"pipe": number(pipe), "socket": number(node.socket)},
        }
    described: State = {
        **{"mode": node.mode, "uid": node.uid, "gid": node.gid, "links": node.links},
        **{"fs": list(node.fs.path), "inode": list(astuple(node.inode))},
        "attributes": [list(pair) for pair in node.attributes.items()],
    }
    if isinstance(node, TmpDirectory):
        entries = [[name, entry.inode.number] for name, entry in node.entries.items()]
        return {**described, "kind": "directory", "entries": entries}
    if isinstance(node, TmpLink):
        return {**described, "kind": "link", "target": node.target}
    if isinstance(node, HugeNode):
        contents = node.contents.capture()
        return {**described, "kind": "huge file", "linkable": node.linkable, "contents": contents}
    assert isinstance(node, TmpFile), "the kinds of nodes"
    contents = node.memory.capture()
    return {**described, "kind": "file", "linkable": node.linkable, "contents": contents}


def restore(state: State, namespace: Namespace) -> Nodes:
    """Put what `capture` described into a fresh namespace's tmpfs. Raises CaptureError if one is missing."""
    places: dict[tuple[bytes, ...], Tmpfs] = {fs.path: fs for fs in namespace.tmpfs}
    for path, _root in state["roots"]:
        if tuple(path) not in places:
            shown = "/" + b"/".join(path).decode(errors="backslashreplace")
            raise CaptureError(f"{shown} was in the machine's memory, and now a grant is there")
        places[tuple(path)].inodes_used = 0
    nodes = {number: _make(described, namespace, places) for number, described in state["nodes"]}
    for number, described in state["nodes"]:
        node = nodes[number]
        if isinstance(node, TmpDirectory):
            for name, number_below in described["entries"]:
                below = nodes[number_below]
                node.put(name, below)
                if isinstance(below, Special):
                    below.links += 1
                    if below.links == 1:
                        node.fs.take_inode()
    for number, described in state["nodes"]:
        nodes[number].links = described["links"]
    for path, root in state["roots"]:
        node = nodes[root]
        assert isinstance(node, TmpDirectory), "a root is a directory"
        places[tuple(path)].root = node
    namespace.make_mount_points()
    namespace.specials.restore(state["specials"], lambda number: special(nodes, number))
    return nodes


def special(nodes: Nodes, number: int) -> Special:
    """The named pipe or socket with this inode."""
    found = nodes[number]
    assert isinstance(found, Special), "it is one"
    return found


def _make(
    described: State, namespace: Namespace, places: dict[tuple[bytes, ...], Tmpfs]
) -> TmpNode | Special:
    if described["kind"] == "special":
        key, inode = tuple(described["key"]), Inode(*described["inode"])
        return namespace.specials.restored(described["mode"], key, inode, *described["owner"])
    fs, inode = places[tuple(described["fs"])], Inode(*described["inode"])
    permissions = modes.S_IMODE(described["mode"])
    node: TmpNode
    if described["kind"] == "directory":
        node = TmpDirectory(fs, permissions, None, inode)
    elif described["kind"] == "link":
        node = TmpLink(fs, described["target"], inode)
    elif described["kind"] == "huge file":
        node = HugeNode(fs, permissions, inode)
        node.linkable = described["linkable"]
        node.restore(described["contents"], named=bool(described["links"]))
    else:
        node = TmpFile(fs, namespace, permissions, inode)
        node.linkable = described["linkable"]
        node.memory.restore(described["contents"])
        if described["links"]:
            node.memory.hold()
    node.uid, node.gid = described["uid"], described["gid"]
    for name, value in described["attributes"]:
        node.attributes[name] = value
        fs.account.memory_used += attribute_size((name, value))
    return node
