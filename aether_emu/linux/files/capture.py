"""The files of all processes as plain data, and back: host files are opened again by their guest paths.

What `dup` or `fork` shares stays shared. Pipes, sockets, pseudo-terminals, memory files and tmpfs keep their
contents. What can't be found again by its name is refused (`CaptureError`): an unlinked file of the host
exists only as long as it is open.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, field
from operator import itemgetter
from typing import Any

from aether_emu.errors import Refused, shown
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files import lock_capture, opening, tmp_capture
from aether_emu.linux.files.directory import Located, OpenDirectory
from aether_emu.linux.files.epoll import EpollFile, Interest
from aether_emu.linux.files.fifo import FifoEnd, WaitsForOther
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.holders import holder_of
from aether_emu.linux.files.host_file import HostFile
from aether_emu.linux.files.huge_file import HugeFile
from aether_emu.linux.files.inodes import Inode
from aether_emu.linux.files.listing import Listed
from aether_emu.linux.files.memory_file import Memory, MemoryFile
from aether_emu.linux.files.namespace import Namespace
from aether_emu.linux.files.notices import ProcessFile, SignalFile, TimerFile
from aether_emu.linux.files.open_file import POLLIN, POLLOUT, OpenFile
from aether_emu.linux.files.own_streams import OwnFile, open_stream
from aether_emu.linux.files.ownership import Owner, Tell, set_asynchronous
from aether_emu.linux.files.pipe import EventCounter, Pipe, PipeEnd
from aether_emu.linux.files.place import Place, text
from aether_emu.linux.files.proc import ProcSource
from aether_emu.linux.files.special import Special
from aether_emu.linux.files.stat import Stat
from aether_emu.linux.files.streams import Stream, StreamFile
from aether_emu.linux.files.synthetic import Text, TextFile
from aether_emu.linux.files.tmp_capture import CaptureError, node_of
from aether_emu.linux.files.tmp_nodes import TmpNode
from aether_emu.linux.files.user_faults import UserFaultFile
from aether_emu.linux.ipc.queue_file import QueueFile
from aether_emu.linux.net import capture as net_capture
from aether_emu.linux.net.socket import Socket
from aether_emu.linux.net.unix import UnixSocket
from aether_emu.linux.tty import capture as tty_capture
from aether_emu.records import dataclass
from aether_emu.waiting import WaitQueue

_WAYS = (0, POLLIN, POLLOUT)
_NOTICES = (
    TimerFile.kind,
    ProcessFile.kind,
    SignalFile.kind,
    QueueFile.kind,
    HugeFile.kind,
    UserFaultFile.kind,
)
State = dict[str, Any]
"""Plain data: numbers, bytes, texts, lists and dictionaries of them."""


@dataclass(frozen=True)
class Restored:
    """The processes, the files of `capture`'s `mapped`, each held once for the caller, and its `waited`."""

    processes: list[Files]
    mapped: list[OpenFile]
    waited: list[WaitQueue | None] = field(default_factory=list)


def capture(
    processes: Sequence[Files], mapped: Sequence[OpenFile] = (), waited: Sequence[WaitQueue] = ()
) -> State:
    """Everything about the files of `processes`, which share a namespace.

    `mapped` are files that memory areas hold, whether or not a descriptor is left. `waited` are queues in
    which somebody stands: those that belong to open files are found again.
    """
    if not processes:
        return {"processes": []}
    namespace, seen = processes[0].namespace, _Seen(processes)
    tables = list(dict.fromkeys(files.table for files in processes))
    standings = list(dict.fromkeys(files.standing for files in processes))
    described = {
        "processes": [
            [
                *(tables.index(files.table), standings.index(files.standing)),
                [[task, seen.index(each.file), each.cloexec] for task, each in files.openings.items()],
            ]
            for files in processes
        ],
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
    seen.explore(namespace)
    opened = [node for node in map(_node_of, seen.files) if node is not None]
    console, terminals = namespace.terminals.console, namespace.terminals.made
    return {
        "console": None if console is None else console.capture(),
        "terminals": [] if terminals is None else tty_capture.capture(terminals),
        "tmpfs": tmp_capture.capture(namespace, opened, seen.shared),
        "inodes": namespace.inodes.capture(),
        "mapped": held,
        "locks": lock_capture.capture(namespace.locks, tables, seen.number),
        "pipes": [{"stat": list(astuple(pipe.stat)), **pipe.capture()} for pipe in seen.pipes],
        "net": net_capture.capture(namespace, seen.sockets, seen.socket, seen.index),
        "memories": [_describe_memory(file) for file in seen.memories],
        "files": [_describe(file, seen) for file in seen.files],
        "waited": _names_of(waited, seen.files) if waited else [],
        **described,
    }


def _names_of(queues: Sequence[WaitQueue], files: Sequence[OpenFile]) -> list[list[int] | None]:
    """For each queue: the number of an open file, and which of its queues it is; None if it is of none."""
    wanted, names = {id(queue) for queue in queues}, dict[int, list[int]]()
    for number, file in enumerate(files):
        for way in _WAYS:
            for index, queue in enumerate(_queues(file, way)):
                if id(queue) in wanted:
                    names.setdefault(id(queue), [number, way, index])
    return [names.get(id(queue)) for queue in queues]


def _queues(file: OpenFile, way: int) -> Sequence[WaitQueue]:
    """Its queues for some events, or (0) those of who waits in open(2), or for the answer to a fault."""
    if not way:
        if isinstance(file, UserFaultFile):
            return file.asking()
        return (file.pipe.opened,) if isinstance(file, FifoEnd) else ()
    if isinstance(file, Socket) and way == POLLIN:
        return file.queues_in_call(way)
    return () if isinstance(file, SignalFile) else file.queues(way)  # a signalfd has those of who asks


def _node_of(file: OpenFile) -> TmpNode | Special | None:
    """What is in memory only, of which an open file is."""
    return file.node if isinstance(file, FifoEnd) else node_of(file)


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
    _restore_terminals(state, namespace, streams)
    restoring = _Restoring(state, namespace, streams, notice, tell)
    try:
        tables: dict[int, Files] = {}
        standings: dict[int, Files] = {}
        for (table, standing, _openings), source in zip(state["processes"], sources, strict=True):
            files = _sharing(namespace, source, tables.get(table), standings.get(standing))
            tables.setdefault(table, files)
            standings.setdefault(standing, files)
            made(len(processes), files)
            processes.append(files)
        for index, files in tables.items():
            restoring.fill_table(files, state["tables"][index])
        for index, files in standings.items():
            restoring.place(files, state["standings"][index])
        for files, (_table, _standing, openings) in zip(processes, state["processes"], strict=True):
            restoring.go_on_opening(files, openings)
        mapped = [restoring.file(index, processes[0]) for index in state["mapped"]]
        first = processes[0]
        locks = first.namespace.locks
        lock_capture.restore(state["locks"], locks, tables, lambda index: restoring.file(index, first))
        restoring.finish(first)
        for file in mapped:
            file.hold()
        return Restored(processes, mapped, restoring.queues(first))
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


def _restore_terminals(state: State, namespace: Namespace, streams: Mapping[str, Stream]) -> None:
    """Make the pairs, and the console, which has a number that none of them has."""
    names = namespace.terminals
    console = names.find_console(streams) if state["console"] is not None else None
    if console is not None:
        console.restore(state["console"])
    if state["terminals"]:
        tty_capture.make(state["terminals"], names.all)
    if state["console"] is None:
        names.find_console(streams)


class _Seen:
    """Everything met so far, numbered in the order of first sight."""

    def __init__(self, processes: Sequence[Files]) -> None:
        self._processes = processes
        self.files: list[OpenFile] = []
        self.pipes: list[Pipe] = []
        self.sockets: list[Socket] = []
        self.memories: list[MemoryFile] = []
        self._numbers: dict[int, int] = {}
        self._numbers_of_sockets: dict[Socket, int] = {}

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

    def socket(self, socket: Socket) -> int:
        """The number of a socket, whether or not somebody has it open."""
        if socket not in self._numbers_of_sockets:
            self._numbers_of_sockets[socket] = len(self.sockets)
            self.sockets.append(socket)
        return self._numbers_of_sockets[socket]

    def explore(self, namespace: Namespace) -> None:
        """Meet what open files lead to: members of sets, sockets, and open files that are sent by them."""
        for socket in net_capture.known_by_name(namespace):
            self.socket(socket)
        for _name, special in namespace.specials.all():
            self.shared(special.socket)
        files = sockets = 0
        while files < len(self.files) or sockets < len(self.sockets):
            for file in self.files[files:]:
                files += 1
                if isinstance(file, Socket):
                    self.socket(file)
                elif isinstance(file, EpollFile):
                    for _, member, _ in file.members():
                        self.index(member)
            for socket in self.sockets[sockets:]:
                sockets += 1
                for other in net_capture.known_to(socket):
                    self.socket(other)
                for file in net_capture.passed_to(socket):
                    self.index(file)

    def number(self, file: OpenFile) -> int | None:
        """Its number, None if it was not met."""
        return self._numbers.get(id(file))

    def refusal(self, kind: str, file: OpenFile) -> CaptureError:
        """That a file of this kind is open, and who has it."""
        holder = holder_of(self._processes, file)
        return CaptureError(f"{kind} is open as {holder}: its state can't be captured")

    def shared(self, thing: Pipe | Memory | Socket | None) -> int | None:
        """The number of what several may have open; None of nothing."""
        if thing is None:
            return None
        return self.socket(thing) if isinstance(thing, Socket) else self._numbers[id(thing)]


def _describe(file: OpenFile, seen: _Seen) -> State:
    if not file.capturable:
        raise seen.refusal(file.name_of_one, file)
    described: State = {"kind": file.kind, "flags": file.flags, "position": file.position, **file.capture()}
    if file.owner is not None:
        told = [each.get(file) for each in file.listeners()] if file.flags & fl.FASYNC else []
        described["owner"] = [*file.owner.capture(), next((fd for fd in told if fd is not None), None)]
    node = node_of(file)
    if node is not None:
        return {**described, "tmpfs": tmp_capture.describe_open(file, node)}
    if isinstance(file, PipeEnd):
        described["pipe"] = seen.shared(file.pipe)
    elif isinstance(file, Socket):
        described["socket"] = seen.socket(file)
    elif isinstance(file, MemoryFile):
        described["memory"], described["is_writer"] = seen.shared(file.memory), file.is_writer
    elif isinstance(file, EventCounter | TextFile) or file.kind == StreamFile.kind:
        described["stat"] = list(astuple(file.stat()))
    elif isinstance(file, EpollFile):
        described["stat"] = list(astuple(file.stat()))
        described["members"] = [
            [fd, seen.index(f), *astuple(interest), file.place_of((fd, f))]
            for fd, f, interest in file.members()
        ]
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
        self._sockets = net_capture.make(state["net"], namespace)
        self._places: list[tuple[int, EpollFile, tuple[int, OpenFile]]] = []
        for described in state["pipes"]:
            pipe = Pipe(Stat(*described["stat"]), namespace.pipes)
            pipe.restore(described)
            self._pipes.append(pipe)
        for number, described in state["tmpfs"]["nodes"]:
            if described["kind"] == "special":
                self._give_contents(tmp_capture.special(self._nodes, number), described)

    def _give_contents(self, special: Special, described: State) -> None:
        if described["pipe"] is not None:
            special.pipe = self._pipes[described["pipe"]]
        if described["socket"] is not None:
            socket = self._sockets[described["socket"]]
            assert isinstance(socket, UnixSocket), "others have no names"
            special.socket = socket

    def finish(self, viewer: Files) -> None:
        """All is open: what is in it, and who stands before whom in the queues of files."""
        net_capture.connect(
            self._state["net"], self._namespace, self._sockets, lambda index: self.file(index, viewer)
        )
        if self._state["terminals"]:
            tty_capture.restore(self._state["terminals"], self._namespace.terminals.all)
        for pipe, described in zip(self._pipes, self._state["pipes"], strict=True):
            pipe.openings = list(described["openings"])
        for place, file, key in sorted(self._places, key=itemgetter(0)):
            file.stand_last(key, place)

    def queues(self, viewer: Files) -> list[WaitQueue | None]:
        """Those that were named."""
        names = self._state["waited"]
        return [name and _queues(self.file(name[0], viewer), name[1])[name[2]] for name in names]

    def go_on_opening(self, files: Files, openings: Sequence[Sequence[int]]) -> None:
        """Tasks wait in open(2) for the other sides of named pipes."""
        for task, index, cloexec in openings:
            file = self.file(index, files)
            assert isinstance(file, FifoEnd), "nothing else has another side"
            files.begin_opening(task, WaitsForOther(file, bool(cloexec)))

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
                for fd, member, events, data, place in described["members"]:
                    self._namespace.watches.add()
                    key = fd, self.file(member, viewer)
                    file.join(*key, Interest(events, data))
                    self._places.append((place, file, key))
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
        if "fifo" in described:
            return self._fifo(described)
        if kind == "pipe":
            return PipeEnd(self._pipes[described["pipe"]], flags)
        if kind == Socket.kind:
            return self._sockets[described["socket"]]
        if "pty" in described:
            return tty_capture.reopen(described, self._namespace.terminals.all)
        if kind == "eventfd":
            return EventCounter(described["value"], described["semaphore"], flags, Stat(*described["stat"]))
        if kind == "stream":
            return self._stream(described)
        if kind == "memory":
            memory = MemoryFile(self._memory(described["memory"]).memory, flags)
            if described["is_writer"]:
                memory.begin_writing()
            return memory
        if kind == EpollFile.kind:
            return EpollFile(Stat(*described["stat"]), self._namespace.watches)
        if kind in _NOTICES and self._notice is not None:
            return self._notice(described, viewer)
        if kind == TextFile.kind:
            return self._text(described, viewer)
        return self._find(described, viewer)

    def _fifo(self, described: State) -> FifoEnd:
        name = described["fifo"]
        node, mount = (
            tmp_capture.special(self._nodes, name["node"]),
            self._namespace.mounts.at(tuple(name["mount"])),
        )
        if mount is None:
            raise CaptureError(
                f"{shown(text(tuple(name['mount'])))} is no grant now: a named pipe is open there"
            )
        place = Place(mount, tuple(name["path"]), node=node, inode=node.inode)
        file = FifoEnd(self._namespace, place, node, described["flags"])
        file.dentry.detached = name["detached"]
        file.go_on(*described["opening"])
        return file

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
        if isinstance(file, HostFile):
            file.failures_known = described["failures_known"]
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
