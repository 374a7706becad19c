"""System V message queues: msgget(2), msgsnd(2), msgrcv(2), msgctl(2), as Linux 6.6 has them (ipc/msg.c)."""

from __future__ import annotations

import errno
import struct

from aether_emu.errors import Refused
from aether_emu.linux.calls.sysv import PERMISSIONS, permissions
from aether_emu.linux.calls.user import read_struct, s32, s64, write_struct
from aether_emu.linux.credentials import SYS_RESOURCE
from aether_emu.linux.ipc import messages as msg
from aether_emu.linux.ipc.identifiers import NO_WAIT
from aether_emu.linux.ipc.messages import (
    ANY,
    Message,
    MessageQueue,
    MessageQueues,
    ReceiveWait,
    SendWait,
    Wanted,
    require_size,
)
from aether_emu.linux.task.task import Task

_REMOVE, _SET, _STAT, _INFO, _STAT_AT, _USAGE, _STAT_ANY = 0, 1, 2, 3, 11, 12, 13
_NO_ERROR, _EXCEPT, _COPY = 0o10000, 0o20000, 0o40000
_READABLE, _WRITABLE = 0o444, 0o222
_LARGEST_TYPE = (1 << 63) - 1
_WHATEVER = (1 << 31) - 1
_SET_LAYOUT = PERMISSIONS + "24x40xQ"  # as far as IPC_SET reads struct msqid64_ds


def _queues(task: Task) -> MessageQueues:
    return task.process.kernel.with_system_v().messages


def sys_msgget(task: Task, key: int, flags: int, *_: int) -> int:
    key, flags, queues = s32(key), s32(flags), _queues(task)
    return queues.get(key, flags, lambda: queues.make(key, flags), lambda _found: None).identifier


def sys_msgsnd(task: Task, number: int, address: int, size: int, flags: int, *_: int) -> int:
    (kind,) = read_struct(task.cpu, address, "q")
    require_size(s64(size))
    if s32(number) < 0 or kind < 1:
        raise Refused(errno.EINVAL, f"number {s32(number)}, type {kind}")
    data = task.cpu.copy_from_user(address + 8, size)
    wait = task.wait
    queue = wait.queue if isinstance(wait, SendWait) else _queues(task).numbered(s32(number))
    if queue.removed:
        raise Refused(errno.EIDRM, "the queue was removed")
    queue.require(_WRITABLE)
    if not queue.has_room(size):
        if s32(flags) & NO_WAIT:
            raise Refused(errno.EAGAIN, "the queue is full")
        raise SendWait(queue, size)
    queue.send(Message(kind, data), task.process.pid)
    return 0


def _wanted(kind: int, flags: int) -> Wanted:
    """What msgrcv asks for (convert_mode)."""
    if not kind:
        return ANY
    if kind < 0:
        return Wanted("up to", min(-kind, _LARGEST_TYPE))
    return Wanted("other" if flags & _EXCEPT else "equal", kind)


def sys_msgrcv(task: Task, number: int, address: int, size: int, kind: int, flags: int, *_: int) -> int:
    number, flags, kind = s32(number), s32(flags), s64(kind)
    wait = task.wait
    if isinstance(wait, ReceiveWait) and wait.status is not None:
        if wait.message is None:
            return wait.status
        return _deliver(task, wait.message, address, size)
    if number < 0 or s64(size) < 0:
        raise Refused(errno.EINVAL, f"number {number}, {s64(size)} bytes")
    if flags & _COPY:
        return _copy(task, number, address, size, kind, flags)
    wanted = _wanted(kind, flags)
    queue = wait.queue if isinstance(wait, ReceiveWait) else _queues(task).numbered(number)
    if isinstance(wait, ReceiveWait) and queue.removed:
        raise Refused(errno.EIDRM, "the queue was removed")
    queue.require(_READABLE)
    found = queue.find(wanted)
    if found is None:
        if flags & NO_WAIT:
            raise Refused(errno.ENOMSG, "there is no such message")
        most = _WHATEVER if flags & _NO_ERROR else size
        raise ReceiveWait(task, task.process.pid, queue, wanted, most)
    if size < len(found.data) and not flags & _NO_ERROR:
        raise Refused(errno.E2BIG, f"the message has {len(found.data)} bytes")
    queue.take(found, task.process.pid)
    return _deliver(task, found, address, size)


def _deliver(task: Task, message: Message, address: int, size: int) -> int:
    """Write a message, which is lost if that fails."""
    data = message.data[:size]
    write_struct(task.cpu, address, "q", message.type)
    task.cpu.copy_to_user(address + 8, data)
    return len(data)


def _copy(task: Task, number: int, address: int, size: int, at: int, flags: int) -> int:
    """MSG_COPY: the message at a place in the queue, which stays."""
    if flags & _EXCEPT or not flags & NO_WAIT:
        raise Refused(errno.EINVAL, "MSG_COPY goes with IPC_NOWAIT, and without MSG_EXCEPT")
    room = min(size, msg.LARGEST)
    task.cpu.copy_from_user(address, room)
    queue = _queues(task).numbered(number)
    queue.require(_READABLE)
    if not 0 <= at < len(queue.messages):
        raise Refused(errno.ENOMSG, f"there is no message {at}")
    found = queue.messages[at]
    if size < len(found.data) and not flags & _NO_ERROR:
        raise Refused(errno.E2BIG, f"the message has {len(found.data)} bytes")
    if len(found.data) > room:
        raise Refused(errno.EINVAL, "no room for a copy")
    return _deliver(task, found, address, size)


def sys_msgctl(task: Task, number: int, command: int, buffer: int, *_: int) -> int:
    number, command, queues = s32(number), s32(command), _queues(task)
    if number < 0 or command < 0:
        raise Refused(errno.EINVAL, "a negative number")
    if command in (_INFO, _USAGE):
        return _limits(task, queues, buffer, used=command == _USAGE)
    if command in (_STAT, _STAT_AT, _STAT_ANY):
        return _tell(task, queues, number, command, buffer)
    if command not in (_SET, _REMOVE):
        raise Refused(errno.EINVAL, f"no command {command}")
    wanted = read_struct(task.cpu, buffer, _SET_LAYOUT) if command == _SET else ()
    queue = queues.numbered(number)
    queue.require_owner()
    if command == _REMOVE:
        queue.destroy()
    else:
        _change(task, queue, *wanted)
    return 0


def _change(task: Task, queue: MessageQueue, *wanted: int) -> None:
    """IPC_SET."""
    _key, uid, gid, _creator, _creators_group, mode, most = wanted
    if most > msg.MOST_BYTES and not task.credentials.has(SYS_RESOURCE):
        raise Refused(errno.EPERM, f"more than {msg.MOST_BYTES} bytes")
    queue.change(uid, gid, mode, queue.queues.now())
    queue.most_bytes = most
    queue.note(qbytes=most)
    queue.receivers.wake()  # they may no longer be permitted to
    queue.wake_senders()


def _limits(task: Task, queues: MessageQueues, address: int, *, used: bool) -> int:
    """struct msginfo."""
    if used:
        there = queues.all()
        counted = (sum(len(each.messages) for each in there), sum(each.bytes for each in there))
        pool, headers, in_all = len(there), *counted
    else:
        pool, headers = msg.MOST_QUEUES * msg.MOST_BYTES // 1024, msg.MOST_BYTES
        in_all = msg.MOST_BYTES
    limits = (msg.LARGEST, msg.MOST_BYTES, msg.MOST_QUEUES, 16, in_all)
    write_struct(task.cpu, address, "7iHxx", pool, headers, *limits, 0xFFFF)
    return queues.highest


def _tell(task: Task, queues: MessageQueues, number: int, command: int, address: int) -> int:
    """struct msqid64_ds."""
    queue = queues.numbered(number) if command == _STAT else queues.at(number)
    if command != _STAT_ANY:
        queue.require(_READABLE)
    times = (queue.send_time, queue.receive_time, queue.change_time)
    counts = (queue.bytes, len(queue.messages), queue.most_bytes)
    rest = struct.pack("<3q3Qii16x", *times, *counts, queue.sender, queue.receiver)
    task.cpu.copy_to_user(address, permissions(queue) + rest)
    return 0 if command == _STAT else queue.identifier
