"""POSIX message queues (mq_overview(7)): names that lead to messages, the highest priority first.

    mq_open --> PosixQueues, by name --> PosixQueue <-- QueueFile, one for each time that it was opened

    a sender finds it full      waits in `senders` with its message, which enters when another one is taken
    a receiver finds nothing    waits in `receivers`, and is given the next message
    others                      hear in `changed` of messages that came and went (poll), or by a signal, once

A queue lives as long as it has a name or somebody has it open. Order and rules are those of Linux 6.6
(ipc/mqueue.c).
"""

from __future__ import annotations

import errno
import os
import stat as modes
from bisect import insort
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from aether_emu.errors import Refused, shown
from aether_emu.linux.abi.signal import SI_MESGQ, SignalInfo
from aether_emu.linux.credentials import FOWNER, SYS_RESOURCE, Actor
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.inodes import Inode
from aether_emu.linux.files.stat import Stat
from aether_emu.linux.ipc import limits
from aether_emu.linux.task.wait import Wait
from aether_emu.records import dataclass
from aether_emu.waiting import Waiter, WaitQueue

SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD = range(3)
PRIORITIES = 32768
_NAME_MAX = 255
_HEAD, _NODE = 48, 48  # bytes of struct msg_msg, and of the node of a priority
_FILE_SIZE = 80  # what stat(2) shows
_EXISTS = fl.O_CREAT | fl.O_EXCL


@dataclass(frozen=True)
class Message:
    """One message."""

    priority: int
    data: bytes


@dataclass(frozen=True)
class Attributes:
    """How many messages a queue holds, and how many bytes each has at most."""

    messages: int
    size: int

    @property
    def charge(self) -> int:
        """Bytes that count against RLIMIT_MSGQUEUE, from the beginning on."""
        return self.messages * (self.size + _HEAD) + min(self.messages, PRIORITIES) * _NODE


class Told(Protocol):
    """A process, as far as it is told of messages."""

    files: Any
    program: Any

    @property
    def pid(self) -> int: ...
    @property
    def is_over(self) -> bool: ...
    def post(self, info: SignalInfo) -> object: ...


@dataclass(frozen=True)
class Registration:
    """Whom the next message into an empty queue is told to, and how (mq_notify(3)).

    Once the process executes another program than `program` it gets no signal.
    """

    process: Told
    notify: int
    signal: int
    value: int
    program: object


class QueueWait(Wait):
    """A task waits at a queue until somebody calls `end`. Of several the lowest `rank` is first."""

    def __init__(self, task: Waiter, queue: PosixQueue, at: WaitQueue, what: str, rank: int) -> None:
        super().__init__((at,), f"{what} message queue {queue.shown}")
        self.task, self.queue, self.rank = task, queue, rank
        self.ended = False
        self.message: Message | None = None

    def end(self, message: Message | None) -> None:
        """It is over: a message has come, or (None) the sender's own has gone."""
        self.ended, self.message = True, message
        self.task.wake()


class SendWait(QueueWait):
    """A task waits for room for its message."""

    def __init__(self, task: Waiter, queue: PosixQueue, rank: int, message: Message) -> None:
        super().__init__(task, queue, queue.senders, "room in", rank)
        self.message = message


class ReceiveWait(QueueWait):
    """A task waits for a message."""

    def __init__(self, task: Waiter, queue: PosixQueue, rank: int) -> None:
        super().__init__(task, queue, queue.receivers, "a message in", rank)


def _waits(queue: WaitQueue) -> list[QueueWait]:
    """Who waits, in the order of their coming. Who is stopped does not."""
    waits = (getattr(waiter, "wait", None) for waiter in queue)
    return [wait for wait in waits if isinstance(wait, QueueWait) and wait.stopped_at is None]


def _first(queue: WaitQueue) -> QueueWait | None:
    return min(_waits(queue), key=lambda wait: wait.rank, default=None)


class PosixQueue:
    """One queue. `number` is its own, `user` is charged for it; `opened` counts its open files."""

    def __init__(self, queues: PosixQueues, number: int, name: bytes, attributes: Attributes) -> None:
        who = queues.actor.credentials
        self.queues, self.number, self.name, self.attributes = queues, number, name, attributes
        self.mode = modes.S_IFREG
        self.uid, self.gid, self.user = who.fsuid, who.fsgid, who.uid
        self.inode: Inode
        self.device = 0
        self.size = _FILE_SIZE
        self.is_named, self.opened = True, 0
        self.messages: list[Message] = []
        self.bytes = 0
        self.registration: Registration | None = None
        self.senders, self.receivers, self.changed = WaitQueue(), WaitQueue(), WaitQueue()

    @property
    def shown(self) -> str:
        """Its name, for people."""
        return shown(b"/" + self.name)

    @property
    def is_full(self) -> bool:
        """Whether a sender must wait."""
        return len(self.messages) >= self.attributes.messages

    # ---- messages

    def send(self, message: Message, pid: int, uid: int) -> None:
        """A message that fits, of process `pid` of user `uid`: whoever waits for one gets it."""
        receiver = _first(self.receivers)
        if receiver is not None:
            receiver.end(message)
        else:
            self._put(message)
            self._notify(pid, uid)
            self.changed.wake()
        self._touch()

    def receive(self) -> Message:
        """Take the first message, of which there is one. A sender that waits puts in its own."""
        message = self.messages.pop(0)
        self.bytes -= len(message.data)
        self._touch()
        sender = _first(self.senders)
        if sender is None:
            self.changed.wake()
        else:
            assert sender.message is not None, "it waits with one"
            self._put(sender.message)
            sender.end(None)
        return message

    def held(self) -> int:
        """Bytes of all its messages, and of those that wait for room."""
        waiting = (wait.message for wait in _waits(self.senders))
        return self.bytes + sum(len(message.data) for message in waiting if message is not None)

    def _put(self, message: Message) -> None:
        insort(self.messages, message, key=lambda each: -each.priority)
        self.bytes += len(message.data)

    def _touch(self) -> None:
        self.inode.atime = self.inode.mtime = self.inode.ctime = self.queues.now()

    # ---- who is told

    def _notify(self, pid: int, uid: int) -> None:
        """The first message is there, and nobody waited for it: tell who is registered, this once."""
        told = self.registration
        if told is None or len(self.messages) != 1:
            return
        self.registration = None
        process = told.process
        if told.notify == SIGEV_SIGNAL and told.signal and process.program is told.program:
            info = SignalInfo(told.signal, SI_MESGQ, pid=pid, uid=uid, value=told.value)
            if not process.is_over:
                try:
                    process.post(info)
                except Refused as refused:  # as many signals wait as may: it is lost
                    assert refused.errno == errno.EAGAIN, "nothing else is refused"

    def register(self, process: Told, notify: int, signal: int, value: int) -> None:
        """mq_notify. Refused(EBUSY)."""
        if self.registration is not None:
            raise Refused(errno.EBUSY, f"process {self.registration.process.pid} is told already")
        self.registration = Registration(process, notify, signal, value, process.program)
        self.looked_at()

    def forget(self, process: Told) -> None:
        """A process is not to be told any more."""
        if self.registration is not None and self.registration.process is process:
            self.registration = None
            self.looked_at()

    def descriptor_closed(self, table: object) -> None:
        """A descriptor of it in `table` is closed, though others may be left: that ends a registration."""
        told = self.registration
        if told is not None and told.process.files.table is table:
            self.registration = None

    def text(self) -> bytes:
        """What reading a descriptor of it shows."""
        told = self.registration
        notify, signal, pid = (0, 0, 0) if told is None else (told.notify, told.signal, told.process.pid)
        signal = signal if notify == SIGEV_SIGNAL else 0
        rows = (self.bytes, notify, signal, pid)
        return b"QSIZE:%-10d NOTIFY:%-5d SIGNO:%-5d NOTIFY_PID:%-6d\n" % rows

    # ---- as a file

    def looked_at(self) -> None:
        """It was read, or who is told was changed."""
        self.inode.atime = self.inode.ctime = self.queues.now()

    def stat(self) -> Stat:
        """Its attributes."""
        node = self.inode
        times = (node.atime, node.mtime, node.ctime)
        owner = (self.uid, self.gid)
        return Stat(self.device, node.number, self.mode, int(self.is_named), *owner, 0, self.size, *times)

    def closed(self) -> None:
        """One open file fewer."""
        self.opened -= 1
        self.end_if_unused()

    def end_if_unused(self) -> None:
        """Without a name and open files it is gone."""
        if not self.is_named and not self.opened:
            del self.queues.all[self.number]


class PosixQueues:
    """All queues of a machine: by name, and `all` that live by number. `now` is in ns since 1970.

    Messages take an eighth of the machine's memory at most.
    """

    def __init__(self, actor: Actor, now: Callable[[], int], ram: int) -> None:
        self.actor, self.now, self._most_bytes = actor, now, ram // 8
        self.by_name: dict[bytes, PosixQueue] = {}
        self.all: dict[int, PosixQueue] = {}
        self.next = 1

    def find(self, name: bytes) -> PosixQueue | None:
        """The queue with this name. Refused: ENOENT for none, EACCES for one that no queue can have."""
        if not name:
            raise Refused(errno.ENOENT, "an empty name")
        if name in (b".", b"..") or b"/" in name:
            raise Refused(errno.EACCES, f"{shown(name)} is no name of a queue")
        if len(name) > _NAME_MAX:
            raise Refused(errno.ENAMETOOLONG, f"a name of {len(name)} bytes")
        return self.by_name.get(name)

    def require_right(self, queue: PosixQueue, flags: int) -> None:
        """Refused unless a queue that exists may be opened so."""
        if flags & _EXISTS == _EXISTS:
            raise Refused(errno.EEXIST, f"{queue.shown} exists")
        access = flags & fl.O_ACCMODE
        if access == fl.O_ACCMODE:
            raise Refused(errno.EINVAL, "for writing only and for both")
        wanted = (os.R_OK, os.W_OK, os.R_OK | os.W_OK)[access]
        if not self.actor.credentials.permits(queue.mode, queue.uid, queue.gid, wanted):
            raise Refused(errno.EACCES, f"mode {queue.mode & 0o7777:o} of {queue.shown} doesn't allow it")

    def make(self, name: bytes, mode: int, wanted: Attributes | None, most: int) -> PosixQueue:
        """A new queue of a user whose queues take up to `most` bytes. Refused: ENOSPC, EINVAL, EMFILE."""
        who = self.actor.credentials
        if len(self.all) >= limits.QUEUES_MAX and not who.has(SYS_RESOURCE):
            raise Refused(errno.ENOSPC, f"there are {limits.QUEUES_MAX} queues")
        attributes = self._allowed(wanted)
        if self.charged(who.uid) + attributes.charge > most:
            raise Refused(errno.EMFILE, f"RLIMIT_MSGQUEUE: the queues of a user take {most} bytes at most")
        queue = PosixQueue(self, self.next, name, attributes)
        queue.mode |= mode & 0o7777
        self.next += 1
        self.all[queue.number] = self.by_name[name] = queue
        return queue

    def _allowed(self, wanted: Attributes | None) -> Attributes:
        if wanted is None:
            return Attributes(limits.MSG_DEFAULT, limits.MSGSIZE_DEFAULT)
        most, largest = limits.MSG_MAX, limits.MSGSIZE_MAX
        if self.actor.credentials.has(SYS_RESOURCE):
            most, largest = limits.HARD_MSG_MAX, limits.HARD_MSGSIZE_MAX
        if not 0 < wanted.messages <= most or not 0 < wanted.size <= largest:
            raise Refused(errno.EINVAL, f"{wanted.messages} messages of {wanted.size} bytes")
        return wanted

    def charged(self, uid: int) -> int:
        """Bytes that a user's queues take."""
        return sum(queue.attributes.charge for queue in self.all.values() if queue.user == uid)

    def require_memory(self, size: int) -> None:
        """Refused(ENOMEM) unless a message of so many bytes may be held beside all others."""
        if size + sum(queue.held() for queue in self.all.values()) > self._most_bytes:
            raise Refused(errno.ENOMEM, f"messages hold {self._most_bytes} bytes of memory at most")

    def unlink(self, name: bytes) -> None:
        """mq_unlink(3). They are in a sticky directory of root's: Refused(EPERM) for another's queue."""
        queue, who = self.find(name), self.actor.credentials
        if queue is None:
            raise Refused(errno.ENOENT, f"no queue has the name {shown(name)}")
        if who.fsuid not in (queue.uid, 0) and not who.has(FOWNER):
            raise Refused(errno.EPERM, f"{queue.shown} is another user's")
        del self.by_name[name]
        queue.is_named = False
        queue.inode.ctime = self.now()
        queue.end_if_unused()

    def place(self, queues: Iterable[PosixQueue]) -> None:
        """Captured ones are there again."""
        for queue in queues:
            self.all[queue.number] = queue
            if queue.is_named:
                self.by_name[queue.name] = queue
