"""System V message queues (msgsnd(2)): messages with types, taken in order or by type.

    a sender finds no room    waits in `senders`, and tries again when there is enough for its message
    a receiver finds nothing  waits in `receivers`, and is given the first message that it asked for

Order and rules are those of Linux 6.6 (ipc/msg.c).
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from aether_emu.errors import OutOfFrames, Refused
from aether_emu.linux.credentials import Actor
from aether_emu.linux.ipc import objects
from aether_emu.linux.ipc.identifiers import Identifiers, Memory, Shared
from aether_emu.linux.task.wait import Restart, Wait
from aether_emu.mm.physical import Physical
from aether_emu.records import dataclass
from aether_emu.waiting import Waiter, WaitQueue

MOST_QUEUES, LARGEST, MOST_BYTES = 32000, 8192, 16384
"""Linux's MSGMNI, MSGMAX, MSGMNB."""
_COST = 48  # bytes of kernel memory for a message, beside what it says


class Message:
    """One message of a type. While a queue has it, its bytes stand in the machine's memory: in `bytes`."""

    __slots__ = ("_data", "bytes", "size", "type")

    def __init__(self, kind: int, data: bytes) -> None:
        self.type, self._data, self.size = kind, data, len(data)
        self.bytes = objects.Bytes(None, 0)

    @property
    def data(self) -> bytes:
        """What it says."""
        return self.bytes.read(self.size, objects.HEAD) if self.bytes.pieces else self._data

    def keep(self, physical: Physical | None, queue: int) -> None:
        """Take memory for it, whose queue is the object at an address. Raises OutOfFrames."""
        taken = objects.Bytes(physical, objects.HEAD + self.size)
        taken.take()
        head = bytearray(objects.HEAD)
        objects.MESSAGE.pack(memoryview(head), 0, {"type": self.type, "size": self.size, "queue": queue})
        taken.write(bytes(head) + self._data)
        self.bytes = taken
        if taken.pieces:
            self._data = b""

    def leave(self) -> None:
        """It is nobody's but its receiver's from now on."""
        self._data = self.data
        self.bytes.free()


@dataclass(frozen=True)
class Wanted:
    """Which message a receiver asks for: any; of `type`, or any but those; of the lowest up to `type`."""

    how: str
    type: int = 0

    def accepts(self, message: Message) -> bool:
        """Whether it may be this one."""
        match self.how:
            case "equal":
                return message.type == self.type
            case "other":
                return message.type != self.type
            case "up to":
                return message.type <= self.type
        return True

    def __str__(self) -> str:
        shown = {"equal": f"of type {self.type}", "other": f"not of type {self.type}"}
        return shown.get(self.how, f"of a type up to {self.type}" if self.how == "up to" else "")


ANY = Wanted("any")


class MessageQueue(Shared):
    """One queue. `sender` and `receiver` were the last processes; times are in s since 1970."""

    layout = objects.QUEUE

    def __init__(self, queues: MessageQueues, key: int, number: int, mode: int) -> None:
        super().__init__(queues.actor, key, number, mode)
        self.queues = queues
        self.most_bytes = MOST_BYTES
        self.messages: list[Message] = []
        self.bytes = 0
        self.sender = self.receiver = 0
        self.send_time = self.receive_time = 0
        self.senders, self.receivers = WaitQueue(), WaitQueue()
        self.physical = queues.memory.physical

    def has_room(self, size: int) -> bool:
        """Whether a message of so many bytes fits."""
        return size + self.bytes <= self.most_bytes and len(self.messages) < self.most_bytes

    def send(self, message: Message, pid: int) -> None:
        """A message that fits: whoever waits for it gets it. Refused(ENOMEM), OutOfFrames."""
        self.queues.memory.take(_COST + message.size)
        try:
            message.keep(self.physical, self.kernel_object)
        except OutOfFrames:
            self.queues.memory.give_back(_COST + message.size)
            raise
        self.sender, self.send_time = pid, self.queues.now()
        for wait in self._waiting_receivers():
            if not wait.wanted.accepts(message):
                continue
            if wait.most < message.size:
                wait.end(-errno.E2BIG)
                continue
            self.receiver, self.receive_time = wait.pid, self.queues.now()
            self.queues.memory.give_back(_COST + message.size)
            message.leave()
            wait.message = message
            self._note()
            wait.end(0)
            return
        self.messages.append(message)
        self.bytes += message.size
        self._note()

    def _note(self) -> None:
        last, counts = {"lspid": self.sender, "lrpid": self.receiver}, (len(self.messages), self.bytes)
        self.note(**last, qnum=counts[0], cbytes=counts[1], qbytes=self.most_bytes)

    def find(self, wanted: Wanted) -> Message | None:
        """The message that a receiver gets; it stays."""
        fitting = [message for message in self.messages if wanted.accepts(message)]
        if wanted.how == "up to":
            return min(fitting, key=lambda message: message.type, default=None)
        return fitting[0] if fitting else None

    def take(self, message: Message, pid: int) -> None:
        """Process `pid` has received it: there may be room again."""
        self.messages = [each for each in self.messages if each is not message]
        self.bytes -= message.size
        self.queues.memory.give_back(_COST + message.size)
        message.leave()
        self.receiver, self.receive_time = pid, self.queues.now()
        self._note()
        self.wake_senders()

    def wake_senders(self) -> None:
        """Those whose message would fit now."""
        for waiter in self.senders:
            wait = getattr(waiter, "wait", None)
            if isinstance(wait, SendWait) and self.has_room(wait.size):
                waiter.wake()

    def wake_receivers(self) -> None:
        """Who waits to receive looks again, since it may no longer be permitted to."""
        self.receivers.wake()

    def _waiting_receivers(self) -> list[ReceiveWait]:
        """Who waits to receive, in the order of their coming. Who is stopped does not."""
        waits = [getattr(waiter, "wait", None) for waiter in self.receivers]
        return [wait for wait in waits if isinstance(wait, ReceiveWait) and wait.stopped_at is None]

    def destroy(self) -> None:
        """IPC_RMID: whoever waits gets EIDRM."""
        self.queues.forget(self)
        for message in self.messages:
            self.queues.memory.give_back(_COST + message.size)
        self.give_memory_back()
        self.messages, self.bytes = [], 0
        self.receivers.wake()
        self.senders.wake()

    def give_memory_back(self) -> None:
        """Nobody has it any more."""
        for message in self.messages:
            message.leave()
        self.disembody()


class SendWait(Wait):
    """A task waits for room for a message of `size` bytes."""

    def __init__(self, queue: MessageQueue, size: int) -> None:
        what = f"room for {size} bytes in message queue {queue.identifier}"
        super().__init__((queue.senders,), what, restart=Restart.WITHOUT_HANDLER)
        self.queue, self.size = queue, size


class ReceiveWait(Wait):
    """A task of process `pid` waits for a message of `most` bytes at most; who gives it one calls `end`."""

    def __init__(self, task: Waiter, pid: int, queue: MessageQueue, wanted: Wanted, most: int) -> None:
        what = f"a message {wanted} in message queue {queue.identifier}".replace("  ", " ")
        super().__init__((queue.receivers,), what, restart=Restart.WITHOUT_HANDLER)
        self.task, self.pid, self.queue, self.wanted, self.most = task, pid, queue, wanted, most
        self.status: int | None = None
        self.message: Message | None = None

    def end(self, status: int) -> None:
        """It is over, with a message or an errno below 0."""
        self.status = status
        self.task.wake()


class MessageQueues(Identifiers[MessageQueue]):
    """All queues of a machine."""

    def __init__(self, actor: Actor, now: Callable[[], int], memory: Memory) -> None:
        super().__init__(actor, now, MOST_QUEUES)
        self.memory = memory

    def make(self, key: int, mode: int) -> MessageQueue:
        """A new queue. Refused(ENOSPC), OutOfFrames."""
        made = MessageQueue(self, key, self.take_number(), mode)
        made.embody(qbytes=made.most_bytes)
        return self.add(made)


def require_size(size: int) -> None:
    """Refused(EINVAL) for a message that is too large for any queue."""
    if not 0 <= size <= LARGEST:
        raise Refused(errno.EINVAL, f"a message of {size} bytes")
