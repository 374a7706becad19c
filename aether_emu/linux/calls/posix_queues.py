"""POSIX message queues: mq_open(3) and its relatives, as Linux 6.6 has them (ipc/mqueue.c)."""

from __future__ import annotations

import errno
from typing import TypeVar

from aether_emu.clock import LAST_NS
from aether_emu.errors import Refused
from aether_emu.linux.abi.signal import SIGNALS
from aether_emu.linux.calls.arguments import open_flags, read_path
from aether_emu.linux.calls.user import read_struct, s32, u32, write_struct
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.ipc.posix_queues import (
    PRIORITIES,
    SIGEV_NONE,
    SIGEV_SIGNAL,
    SIGEV_THREAD,
    Attributes,
    Message,
    PosixQueue,
    QueueWait,
    ReceiveWait,
    SendWait,
)
from aether_emu.linux.ipc.queue_file import QueueFile
from aether_emu.linux.task.resource_limits import RLIMIT_MSGQUEUE
from aether_emu.linux.task.scheduling import DEADLINE, REAL_TIME
from aether_emu.linux.task.task import Task

_SECOND = 10**9
_ATTRIBUTES = "4q32x"  # struct mq_attr: flags, messages and bytes at most, messages that there are
_EVENT = "Qii48x"  # struct sigevent, as far as it is read
_COOKIE_SIZE = 32
_ORDINARY, _FIRST_REAL_TIME = 120, 99  # Linux's prio of nice 0, and of real-time priority 0
W = TypeVar("W", bound=QueueWait)


def sys_mq_open(task: Task, name: int, flags: int, mode: int, attributes: int, *_: int) -> int:
    wanted = None
    if attributes:
        _flags, messages, size, _there = read_struct(task.cpu, attributes, _ATTRIBUTES)
        wanted = Attributes(messages, size)
    path, flags = read_path(task, name), open_flags(task, u32(flags))
    files, queues = task.files, task.process.kernel.with_posix_queues()
    files.table.require_room()
    queue = queues.find(path)
    if queue is not None:
        queues.require_right(queue, flags)
    elif not flags & fl.O_CREAT:
        raise Refused(errno.ENOENT, "no queue has this name")
    else:
        most = task.process.limits[RLIMIT_MSGQUEUE][0]
        queue = queues.make(path, mode & ~files.mask, wanted, most)
        found = files.namespace.nameless_stat(0)
        queue.inode, queue.device = files.namespace.inodes.created(), found.dev
    if flags & fl.O_DIRECT:
        raise Refused(errno.EINVAL, "no storage is behind a queue")
    return files.table.install(QueueFile(queue, flags), cloexec=True)


def sys_mq_unlink(task: Task, name: int, *_: int) -> int:
    task.process.kernel.with_posix_queues().unlink(read_path(task, name))
    return 0


def _file(task: Task, fd: int) -> QueueFile:
    file = task.files.table.file(s32(fd))
    if not isinstance(file, QueueFile):
        raise Refused(errno.EBADF, f"a {file.kind} is no message queue")
    return file


def _deadline(task: Task, address: int) -> int | None:
    """When the call gives up, in virtual ns; None is never. EINVAL, EFAULT."""
    if not address:
        return None
    seconds, rest = read_struct(task.cpu, address, "qq")
    if seconds < 0 or not 0 <= rest < _SECOND:
        raise Refused(errno.EINVAL, "no such time")
    kernel = task.process.kernel
    kernel.observe_time()
    length = min(seconds * _SECOND + rest, LAST_NS) - kernel.clock.realtime_ns
    return task.deadline(after=max(0, length))


def _rank(task: Task) -> int:
    """Who is served first: Linux's prio."""
    scheduling = task.scheduling
    if scheduling.policy == DEADLINE:
        return -1
    if scheduling.policy in REAL_TIME:
        return _FIRST_REAL_TIME - scheduling.priority
    return _ORDINARY + scheduling.nice


def _over(task: Task, kind: type[W]) -> W | None:
    """The wait that somebody has ended; None for a call that waits still, or begins.

    Refused(ETIMEDOUT) once its time is up, even if another thread has closed the descriptor meanwhile.
    """
    wait = task.wait
    if not isinstance(wait, kind) or wait.ended:
        return wait if isinstance(wait, kind) else None
    if task.has_waited_until(wait.deadline) and not task.signals.interrupts():
        raise Refused(errno.ETIMEDOUT, "the time is over")
    return None


def _sleep(task: Task, file: OpenFile, wait: QueueWait, deadline: int | None) -> None:
    """Wait, unless the descriptor does not (EAGAIN) or time is up (ETIMEDOUT)."""
    if file.flags & fl.O_NONBLOCK:
        raise Refused(errno.EAGAIN, f"O_NONBLOCK is set, and there is not {wait.what}")
    if task.has_waited_until(deadline) and not task.signals.interrupts():
        raise Refused(errno.ETIMEDOUT, "the time is over")
    wait.deadline = deadline
    raise wait


def sys_mq_timedsend(
    task: Task, fd: int, address: int, size: int, priority: int, timeout: int, *_: int
) -> int:
    if _over(task, SendWait) is not None:
        return 0
    deadline, priority = _deadline(task, timeout), u32(priority)
    if priority >= PRIORITIES:
        raise Refused(errno.EINVAL, f"priority {priority}")
    file = _file(task, fd)
    if not file.writable:
        raise Refused(errno.EBADF, f"descriptor {s32(fd)} is not open for sending")
    queue = file.queue
    if size > queue.attributes.size:
        raise Refused(errno.EMSGSIZE, f"{size} bytes, of {queue.attributes.size}")
    queue.queues.require_memory(size)
    message = Message(priority, task.cpu.copy_from_user(address, size))
    if queue.is_full:
        _sleep(task, file, SendWait(task, queue, _rank(task), message), deadline)
    queue.send(message, task.process.pid, task.credentials.uid)
    return 0


def sys_mq_timedreceive(
    task: Task, fd: int, address: int, size: int, priority: int, timeout: int, *_: int
) -> int:
    over = _over(task, ReceiveWait)
    if over is not None:
        assert over.message is not None, "nothing else ends it"
        return _deliver(task, over.message, address, priority)
    deadline = _deadline(task, timeout)
    file = _file(task, fd)
    if not file.readable:
        raise Refused(errno.EBADF, f"descriptor {s32(fd)} is not open for receiving")
    queue = file.queue
    if size < queue.attributes.size:
        raise Refused(errno.EMSGSIZE, f"{size} bytes, messages may have {queue.attributes.size}")
    if not queue.messages:
        _sleep(task, file, ReceiveWait(task, queue, _rank(task)), deadline)
    return _deliver(task, queue.receive(), address, priority)


def _deliver(task: Task, message: Message, address: int, priority: int) -> int:
    """Write a message, which is lost if that fails."""
    if priority:
        write_struct(task.cpu, priority, "I", message.priority)
    task.cpu.copy_to_user(address, message.data)
    return len(message.data)


def sys_mq_notify(task: Task, fd: int, event: int, *_: int) -> int:
    process = task.process
    if not event:
        _file(task, fd).queue.forget(process)
        return 0
    value, signal, notify = read_struct(task.cpu, event, _EVENT)
    if notify not in (SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD):
        raise Refused(errno.EINVAL, f"no notification {notify}")
    if notify == SIGEV_SIGNAL and not 0 <= signal <= SIGNALS:
        raise Refused(errno.EINVAL, f"no signal {signal}")
    if notify == SIGEV_THREAD:
        _refuse_socket(task, signal, value)
    _file(task, fd).queue.register(process, notify, signal, value)
    return 0


def _refuse_socket(task: Task, fd: int, cookie: int) -> None:
    """SIGEV_THREAD tells by a netlink socket, of which there are none."""
    task.cpu.copy_from_user(cookie, _COOKIE_SIZE)
    if task.files.table.file(fd).is_socket:
        raise Refused(errno.EINVAL, "no netlink socket")
    raise Refused(errno.ENOTSOCK, "no socket")


def sys_mq_getsetattr(task: Task, fd: int, new: int, old: int, *_: int) -> int:
    flags = read_struct(task.cpu, new, _ATTRIBUTES)[0] if new else 0
    if flags & ~fl.O_NONBLOCK:
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    file = _file(task, fd)
    before = _shown(file.queue, file.flags & fl.O_NONBLOCK)
    if new:
        file.flags = file.flags & ~fl.O_NONBLOCK | flags
        file.queue.looked_at()
    if old:
        write_struct(task.cpu, old, _ATTRIBUTES, *before)
    return 0


def _shown(queue: PosixQueue, flags: int) -> tuple[int, int, int, int]:
    return flags, queue.attributes.messages, queue.attributes.size, len(queue.messages)
