"""The files of all processes as plain data, and back: host files are opened again by their guest paths.

What `dup` or `fork` shares stays shared. Pipes, memory files and tmpfs keep their contents. What can't be
found again by its name is refused (`CaptureError`): an unlinked file exists only as long as it is open.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple
from typing import Any

from aether_emu.errors import Refused, shown
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files import lock_capture, opening, tmp_capture
from aether_emu.linux.files.directory import Located, OpenDirectory
from aether_emu.linux.files.epoll import EpollFile, Interest
from aether_emu.linux.files.fifo import FifoEnd
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.holders import holder_of
from aether_emu.linux.files.host_file import HostFile
from aether_emu.linux.files.inodes import Inode
from aether_emu.linux.files.listing import Listed
from aether_emu.linux.files.memory_file import Memory, MemoryFile
from aether_emu.linux.files.namespace import Namespace
from aether_emu.linux.files.notices import ProcessFile, SignalFile, TimerFile
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.files.own_streams import OwnFile, open_stream
from aether_emu.linux.files.ownership import Owner, Tell, set_asynchronous
from aether_emu.linux.files.pipe import EventCounter, Pipe, PipeEnd
from aether_emu.linux.files.place import text
from aether_emu.linux.files.proc import ProcSource
from aether_emu.linux.files.stat import Stat
from aether_emu.linux.files.streams import Stream, StreamFile
from aether_emu.linux.files.synthetic import Text, TextFile
from aether_emu.linux.files.tmp_capture import CaptureError, node_of
from aether_emu.linux.net.socket import AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, Socket
from aether_emu.records import dataclass

_FAMILIES = {
    AF_UNIX: "a unix socket",
    AF_INET: "an internet socket",
    AF_INET6: "an internet socket",
    AF_NETLINK: "a netlink socket",
}
_NOTICES = (TimerFile.kind, ProcessFile.kind, SignalFile.kind)
State = dict[str, Any]
"""Plain data: numbers, bytes, texts, lists and dictionaries of them."""


@dataclass(frozen=True)
class Restored:
    """The processes, and the files of `capture`'s `mapped`, each held once for the caller."""

    processes: list[Files]
    mapped: list[OpenFile]


def capture(processes: Sequence[Files], mapped: Sequence[OpenFile] = ()) -> State:
    """Everything about the files of `processes`, which share a namespace.

    `mapped` are files that memory areas hold, whether or not a descriptor is left.
    """
    seen = _Seen(processes)
    tables = list(dict.fromkeys(files.table for files in processes))
    standings = list(dict.fromkeys(files.standing for files in processes))
    described = {
        "processes": [[tables.index(files.table), standings.index(files.standing)] for files in processes],
        "tables": [
            {
                "limit": table.limit,
                "descriptors": [
                    [fd, seen.index(descriptor.file), descriptor.cloexec]
                    for fd, descriptor in table.descriptors.items()
                ],
            }
            for table in tables
        ],
        "standings": [
            {
                "cwd": seen.index(standing.cwd),
                "root": None if standing.root is None else seen.index(standing.root),
                "mask": standing.mask,
            }
            for standing in standings
        ],
    }
    held = [seen.index(file) for file in mapped]
    locks = lock_capture.capture(processes[0].namespace.locks, tables, seen.number) if processes else []
    files = [_describe(file, seen) for file in seen.files]  # which grows on the way: sets have members
    if processes:
        _refuse_names(processes[0].namespace)
    in_memory = [node for node in map(node_of, seen.files) if node is not None]
    console = processes[0].namespace.terminals.console if processes else None
    return {
        "console": None if console is None else console.capture(),
        "tmpfs": tmp_capture.capture(processes[0].namespace, in_memory) if processes else {},
        "inodes": processes[0].namespace.inodes.capture() if processes else {},
        "mapped": held,
        "locks": locks,
        "pipes": [{"stat": list(astuple(pipe.stat)), **pipe.capture()} for pipe in seen.pipes],
        "memories": [_describe_memory(file) for file in seen.memories],
        "files": files,
        **described,
    }


def restore(
    state: State,
    namespace: Namespace,
    sources: Sequence[ProcSource],
    streams: Mapping[str, Stream],
    made: Callable[[int, Files], None] = lambda index, files: None,
    notice: Callable[[State, Files], OpenFile] | None = None,
    tell: Tell = lambda owner, descriptor, reason: None,
) -> Restored:
    """What `capture` described, in a fresh namespace with the same grants.

    `sources` are the processes' /proc sources in the same order, `streams` the standard streams by name.
    `made` is told of each process's files while they are still empty: what is open in /proc looks for them.
    `notice` makes a file that tells of time, processes or signals for who has it open; `tell` signals the
    owner of a file.
    """
    processes: list[Files] = []
    if not state["processes"]:
        return Restored(processes, [])
    namespace.inodes.restore(state["inodes"])
    console = namespace.terminals.find_console(streams)
    if console is not None and state["console"] is not None:
        console.restore(state["console"])
    restoring = _Restoring(state, namespace, streams, notice, tell)
    try:
        tables: dict[int, Files] = {}
        standings: dict[int, Files] = {}
        for (table, standing), source in zip(state["processes"], sources, strict=True):
            files = _sharing(namespace, source, tables.get(table), standings.get(standing))
            tables.setdefault(table, files)
            standings.setdefault(standing, files)
            made(len(processes), files)
            processes.append(files)
        for index, files in tables.items():
            restoring.fill_table(files, state["tables"][index])
        for index, files in standings.items():
            restoring.place(files, state["standings"][index])
        mapped = [restoring.file(index, processes[0]) for index in state["mapped"]]
        first = processes[0]
        locks = first.namespace.locks
        lock_capture.restore(state["locks"], locks, tables, lambda index: restoring.file(index, first))
        for file in mapped:
            file.hold()
        return Restored(processes, mapped)
    except BaseException:
        for files in processes:
            files.close_all()
        raise
    finally:
        restoring.let_go()


def _sharing(namespace: Namespace, source: ProcSource, table: Files | None, standing: Files | None) -> Files:
    """A process's files, with the table and the standing of others that are there already."""
    theirs = None if table is None else table.table
    where = None if standing is None else standing.standing
    for shared in (theirs, where):
        if shared is not None:
            shared.users += 1
    return Files(namespace, source, table=theirs, standing=where)


def _refuse_names(namespace: Namespace) -> None:
    """Raise CaptureError while a named pipe or socket has a name in a directory of the host."""
    for name, special in namespace.specials.all():
        sort = "pipe" if special.is_fifo else "socket"
        raise CaptureError(f"there is a named {sort}, {shown(name)}: its state can't be captured")


class _Seen:
    """Everything met so far, numbered in the order of first sight."""

    def __init__(self, processes: Sequence[Files]) -> None:
        self._processes = processes
        self.files: list[OpenFile] = []
        self.pipes: list[Pipe] = []
        self.memories: list[MemoryFile] = []
        self._numbers: dict[int, int] = {}

    def index(self, file: OpenFile) -> int:
        if id(file) not in self._numbers:
            self._numbers[id(file)] = len(self.files)
            self.files.append(file)
            if isinstance(file, PipeEnd) and id(file.pipe) not in self._numbers:
                self._numbers[id(file.pipe)] = len(self.pipes)
                self.pipes.append(file.pipe)
            if (
                isinstance(file, MemoryFile)
                and node_of(file) is None
                and id(file.memory) not in self._numbers
            ):
                self._numbers[id(file.memory)] = len(self.memories)
                self.memories.append(file)
        return self._numbers[id(file)]

    def number(self, file: OpenFile) -> int | None:
        """Its number, None if it was not met."""
        return self._numbers.get(id(file))

    def refusal(self, kind: str, file: OpenFile) -> CaptureError:
        """That a file of this kind is open, and who has it."""
        holder = holder_of(self._processes, file)
        return CaptureError(f"{kind} is open as {holder}: its state can't be captured")

    def shared(self, thing: Pipe | Memory) -> int:
        return self._numbers[id(thing)]


def _describe(file: OpenFile, seen: _Seen) -> State:
    if isinstance(file, FifoEnd):
        raise seen.refusal("a named pipe", file)
    if isinstance(file, Socket):
        raise seen.refusal(_FAMILIES.get(file.family, "a socket"), file)
    if file.is_terminal and not isinstance(file, StreamFile):
        raise seen.refusal("a pseudo-terminal", file)
    described: State = {"kind": file.kind, "flags": file.flags, "position": file.position, **file.capture()}
    if file.owner is not None:
        told = [each.get(file) for each in file.listeners()] if file.flags & fl.FASYNC else []
        described["owner"] = [*file.owner.capture(), next((fd for fd in told if fd is not None), None)]
    node = node_of(file)
    if node is not None:
        return {**described, "tmpfs": tmp_capture.describe_open(file, node)}
    if isinstance(file, PipeEnd):
        described["pipe"] = seen.shared(file.pipe)
    elif isinstance(file, MemoryFile):
        described["memory"] = seen.shared(file.memory)
    elif isinstance(file, EventCounter | TextFile) or file.kind == StreamFile.kind:
        described["stat"] = list(astuple(file.stat()))
    elif isinstance(file, EpollFile):
        described["stat"] = list(astuple(file.stat()))
        described["members"] = [[fd, seen.index(f), *astuple(interest)] for fd, f, interest in file.members()]
        described["line"] = [[fd, seen.index(f)] for fd, f in file.line]
    elif isinstance(file, HostFile | Located):
        _require_name(file, seen)
    return described


def _describe_memory(file: MemoryFile) -> State:
    memory = file.memory
    return {
        "name": memory.name,
        "stat": list(astuple(memory.stat)),
        "inode": list(astuple(memory.inode)),
        "contents": memory.capture(),
    }


def _require_name(file: HostFile | Located, seen: _Seen) -> None:
    """Refuse unless the file is what its guest path leads to."""
    place = file.place()
    if place.node is not None:
        return
    try:
        with file.namespace.lookup(file.namespace.root(), text(place.path), follow=False) as found:
            same = found.key == place.key
    except Refused:
        same = False
    if file.dentry.detached or not same:
        name = shown(text(file.dentry.path))
        raise seen.refusal(f"{name}, which no longer has this name,", file)


def _gone() -> bytes:
    raise Refused(errno.ESRCH, "the process is gone")


class _Restoring:
    """Open files by their number in the state, made at first need and held until all is restored."""

    def __init__(
        self,
        state: State,
        namespace: Namespace,
        streams: Mapping[str, Stream],
        notice: Callable[[State, Files], OpenFile] | None,
        tell: Tell,
    ) -> None:
        self._notice, self._tell = notice, tell
        self._state, self._namespace, self._streams = state, namespace, streams
        self._files: dict[int, OpenFile] = {}
        self._memories: dict[int, MemoryFile] = {}
        self._nodes = tmp_capture.restore(state["tmpfs"], namespace)
        self._pipes: list[Pipe] = []
        for described in state["pipes"]:
            pipe = Pipe(Stat(*described["stat"]), namespace.pipes)
            pipe.restore(described)
            self._pipes.append(pipe)

    def let_go(self) -> None:
        for file in (*self._files.values(), *self._memories.values()):
            file.let_go()

    def fill_table(self, files: Files, described: State) -> None:
        files.table.limit = described["limit"]
        for fd, index, cloexec in described["descriptors"]:
            files.table.place(fd, self.file(index, files), cloexec=cloexec)

    def place(self, files: Files, described: State) -> None:
        files.standing.stand_in(self._located(described["cwd"], files))
        if described["root"] is not None:
            files.standing.begin_at(self._located(described["root"], files))
        files.standing.mask = described["mask"]

    def _located(self, index: int, viewer: Files) -> Located:
        file = self.file(index, viewer)
        assert isinstance(file, Located), "a directory to stand in is a place"
        return file

    def file(self, index: int, viewer: Files) -> OpenFile:
        if index not in self._files:
            described = self._state["files"][index]
            file = self._make(described, viewer)
            file.hold()
            if file.kind != StreamFile.kind or described.get("reopened"):
                file.position = described["position"]  # a stream that is given anew stands where it was put
            self._files[index] = file
            if "owner" in described:
                self._give_owner(file, *described["owner"])
            if isinstance(file, EpollFile):
                for fd, member, *interest in described["members"]:
                    self._namespace.watches.add()
                    file.join(fd, self.file(member, viewer), Interest(*interest))
                for fd, member in described["line"]:
                    file.enlist((fd, self.file(member, viewer)))
        return self._files[index]

    def _give_owner(self, file: OpenFile, *owner: int) -> None:
        *fields, descriptor = owner
        file.owner = Owner(self._tell, *fields)
        if descriptor is not None:
            set_asynchronous(file, descriptor, on=True)

    def _make(self, described: State, viewer: Files) -> OpenFile:
        kind, flags = described["kind"], described["flags"]
        if "tmpfs" in described:
            return tmp_capture.reopen(self._namespace, self._nodes, described)
        if kind == "pipe":
            return PipeEnd(self._pipes[described["pipe"]], flags)
        if kind == "eventfd":
            return EventCounter(described["value"], described["semaphore"], flags, Stat(*described["stat"]))
        if kind == "stream":
            return self._stream(described)
        if kind == "memory":
            return self._memory(described["memory"]).reopen(flags)
        if kind == EpollFile.kind:
            return EpollFile(Stat(*described["stat"]), self._namespace.watches)
        if kind in _NOTICES and self._notice is not None:
            return self._notice(described, viewer)
        if kind == TextFile.kind:
            return self._text(described, viewer)
        return self._find(described, viewer)

    def _stream(self, described: State) -> OpenFile:
        """The stream of that name, as whatever is given now."""
        name, flags, stat = described["name"], described["flags"], Stat(*described["stat"])
        stream = self._streams[name]
        console = self._namespace.terminals.console if stream.terminal_size() is not None else None
        file = open_stream(self._namespace, name, stream, console, (flags, stat, described["path"]))
        if not described.get("reopened") or not isinstance(file, OwnFile):
            return file
        file.hold()
        try:
            return file.reopen(flags)
        finally:
            file.let_go()

    def _find(self, described: State, viewer: Files) -> OpenFile:
        """Open again by guest path."""
        path = described["path"]
        try:
            with self._namespace.lookup(
                self._namespace.root(viewer), path, follow=False, viewer=viewer
            ) as place:
                file = opening.open_place(self._namespace, place, described["flags"])
        except Refused as refusal:
            raise CaptureError(f"{shown(path)} can't be opened again: {refusal}") from None
        if isinstance(file, OpenDirectory) and described["listing"] is not None:
            file.keep([Listed(*line) for line in described["listing"]])
        return file

    def _text(self, described: State, viewer: Files) -> TextFile:
        """With the contents it had. If it was a process's that is gone, no more can be read of it (ESRCH)."""
        namespace, path = self._namespace, described["path"]
        root = namespace.root(viewer)
        node: object = None
        with suppress(Refused), namespace.lookup(root, path, follow=False, viewer=viewer) as place:
            node = place.node
        if not isinstance(node, Text):
            node = Text(_gone)
        with namespace.lookup(root, b"/proc", viewer=viewer) as place:
            fs = namespace.statfs(place.mount)
        stat, content = Stat(*described["stat"]), described["content"]
        return TextFile(path, node, described["flags"], stat, fs, namespace, content)

    def _memory(self, index: int) -> MemoryFile:
        if index not in self._memories:
            described = self._state["memories"][index]
            memory = Memory(
                self._namespace, described["name"], Inode(*described["inode"]), Stat(*described["stat"])
            )
            file = self._memories[index] = MemoryFile(memory, fl.O_RDWR)
            file.hold()
            memory.restore(described["contents"])
        return self._memories[index]
