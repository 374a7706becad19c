"""epoll_create(2), epoll_ctl(2), epoll_wait(2). The set itself is `files.epoll`; for time see `polling`."""

from __future__ import annotations

import errno
import struct

from aether_emu.errors import Refused
from aether_emu.linux.calls.arguments import is_arm64
from aether_emu.linux.calls.polling import read_mask, read_timespec, wait_for_any
from aether_emu.linux.calls.user import require_user, s32, writable
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.epoll import EPOLL_CTL_DEL, EpollFile, Waited
from aether_emu.linux.files.open_file import POLLIN
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Restart
from aether_emu.machine.cpu import UserFault

_MOST_EVENTS = ((1 << 31) - 1) // 12


_EVENT, _EVENT_ARM64 = struct.Struct("<IQ"), struct.Struct("<I4xQ")  # packed on x86_64 alone


def _event(task: Task) -> struct.Struct:
    return _EVENT_ARM64 if is_arm64(task) else _EVENT


def sys_epoll_create(task: Task, size: int, *_: int) -> int:
    if s32(size) <= 0:
        raise Refused(errno.EINVAL, f"size {s32(size)}")
    return sys_epoll_create1(task, 0)


def sys_epoll_create1(task: Task, flags: int, *_: int) -> int:
    if s32(flags) & ~fl.O_CLOEXEC:
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    table = task.files.table
    table.require_room()
    namespace = task.files.namespace
    made = EpollFile(namespace.nameless_stat(0o600), namespace.watches)
    fd = table.install(made, cloexec=bool(flags & fl.O_CLOEXEC))
    return fd


def sys_epoll_ctl(task: Task, epfd: int, operation: int, fd: int, event: int, *_: int) -> int:
    events, data, layout = 0, 0, _event(task)
    if s32(operation) != EPOLL_CTL_DEL:
        events, data = layout.unpack(task.cpu.copy_from_user(event, layout.size))
    table = task.files.table
    outer, file = table.file(s32(epfd)), table.file(s32(fd))
    if not isinstance(outer, EpollFile):
        raise Refused(errno.EINVAL, f"descriptor {s32(epfd)} is no epoll set")
    outer.control(s32(operation), s32(fd), file, events, data)
    return 0


def sys_epoll_wait(task: Task, epfd: int, events: int, most: int, timeout: int, *_: int) -> int:
    return sys_epoll_pwait(task, epfd, events, most, timeout, 0, 0)


def sys_epoll_pwait(
    task: Task, epfd: int, events: int, most: int, timeout: int, mask: int, mask_size: int
) -> int:
    milliseconds = s32(timeout)
    limit = milliseconds * 10**6 if milliseconds >= 0 else None
    return _epoll_wait(task, epfd, events, s32(most), limit, read_mask(task, mask, mask_size))


def sys_epoll_pwait2(
    task: Task, epfd: int, events: int, most: int, timeout: int, mask: int, mask_size: int
) -> int:
    limit = read_timespec(task, timeout)
    return _epoll_wait(task, epfd, events, s32(most), limit, read_mask(task, mask, mask_size))


def _epoll_wait(task: Task, epfd: int, address: int, most: int, timeout: int | None, mask: int | None) -> int:
    if not 0 < most <= _MOST_EVENTS:
        raise Refused(errno.EINVAL, f"room for {most} events")
    require_user(address, most * _event(task).size, task.process.abi.user_end)
    watched = task.files.table.file(s32(epfd))
    if not isinstance(watched, EpollFile):
        raise Refused(errno.EINVAL, f"descriptor {s32(epfd)} is no epoll set")
    if watched.poll():
        return _report(task, watched, address, most)
    deadline = task.deadline(after=timeout)
    if task.has_waited_until(deadline):
        return 0
    wait_for_any(task, [Waited(watched, POLLIN)], mask, deadline, restart=Restart.NEVER)
    return 0


def _report(task: Task, watched: EpollFile, address: int, most: int) -> int:
    """Write what is ready; only as much is taken off the set as can be written."""
    layout = _event(task)
    size = layout.size
    room = writable(task.cpu, [(address, size * min(most, len(watched)))], most * size) // size
    if not room:
        raise UserFault("not even one event can be written")
    found = watched.ready(room)
    task.cpu.copy_to_user(address, b"".join(layout.pack(*event) for event in found))
    return len(found)
