"""An open POSIX message queue: what the descriptor that mq_open(3) gives can do as a file."""

from __future__ import annotations

import errno
import os

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import POLLIN, POLLOUT, OpenFile, Seekable
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.linux.ipc.posix_queues import PosixQueue
from aether_emu.waiting import WaitQueue

_MAGIC = 0x19800202


class QueueFile(Seekable):
    """One time that a queue was opened. Reading shows who is told of messages; they are not read so."""

    kind = "message queue"
    hears_of_closing = True

    def __init__(self, queue: PosixQueue, flags: int) -> None:
        super().__init__(flags, queue.stat())
        self.flags |= flags & fl.O_CLOEXEC  # F_GETFL shows it
        self.queue = queue
        queue.opened += 1

    def release(self) -> None:
        """See `OpenFile.release`."""
        self.queue.closed()

    def descriptor_closed(self, table: object) -> None:
        """See `OpenFile.descriptor_closed`."""
        self.queue.descriptor_closed(table)

    def size(self) -> int:
        """See `Seekable.size`."""
        return self.queue.size

    def stat(self) -> Stat:
        """See `OpenFile.stat`."""
        return self.queue.stat()

    def statfs(self) -> StatFs:
        """See `OpenFile.statfs`."""
        return StatFs(_MAGIC, os.minor(self.queue.device), blocks=0, free=0, read_only=False)

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return b"/" + self.queue.name + (b"" if self.queue.is_named else b" (deleted)")

    def pread(self, count: int, offset: int) -> bytes:
        """See `OpenFile.pread`."""
        text = self.queue.text()[offset : offset + count]
        self.queue.looked_at()
        return text

    def write(self, data: bytes) -> int:
        """See `OpenFile.write`."""
        raise Refused(errno.EINVAL, "a message queue can't be written")

    def pwrite(self, data: bytes, offset: int) -> int:
        """See `OpenFile.pwrite`."""
        raise Refused(errno.EINVAL, "a message queue can't be written")

    def truncate(self, size: int) -> None:
        """See `OpenFile.truncate`: Linux lets the size be set, which means nothing."""
        if not self.writable:
            raise Refused(errno.EINVAL, "it is not open for writing")
        self.queue.size = size

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """See `OpenFile.allocate`."""
        raise Refused(errno.EOPNOTSUPP, "a message queue has no space to allocate")

    def queues(self, events: int) -> tuple[WaitQueue, ...]:
        """See `OpenFile.queues`."""
        return (self.queue.changed,)

    def poll(self) -> int:
        """See `OpenFile.poll`. However it was opened, it tells whether there are messages, and room."""
        return (POLLIN if self.queue.messages else 0) | (0 if self.queue.is_full else POLLOUT)

    def reopen(self, flags: int) -> OpenFile:
        """See `OpenFile.reopen`."""
        return QueueFile(self.queue, flags)

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {"queue": self.queue.number}
