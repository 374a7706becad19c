"""Calls on descriptors other than moving data: making, duplicating and closing them, control, sizes."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

from aether_emu.errors import Refused
from aether_emu.linux.cached_files import connect_cache
from aether_emu.linux.calls.arguments import is_arm64, open_flags, reader
from aether_emu.linux.calls.locks import LOCK_COMMANDS, lock_range
from aether_emu.linux.calls.user import read_string, s32, s64, u32, write_struct
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.host_file import HostData
from aether_emu.linux.files.open_file import LARGEST_OFFSET
from aether_emu.linux.files.region import RegionFile
from aether_emu.linux.files.stat import encode_statfs
from aether_emu.linux.files.synthetic import USER_FAULTS, DeviceFile, TextFile
from aether_emu.linux.mappable import rewriting
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import UserFault

_MOST_ENTRIES = 1 << 20  # bytes of directory entries in one call
_DIRENT_HEAD = 19  # bytes before the name in struct linux_dirent64
_F_GETFL, _F_SETFL = 3, 4
OWNERSHIP = (8, 9, 10, 11, 15, 16, 17)
"""F_SETOWN, F_GETOWN, F_SETSIG, F_GETSIG, F_SETOWN_EX, F_GETOWN_EX, F_GETOWNER_UIDS."""
SOCKET_OWNERSHIP = (0x8901, 0x8902, 0x8903, 0x8904)
"""FIOSETOWN, SIOCSPGRP, FIOGETOWN, SIOCGPGRP."""
_FIOASYNC = 0x5452
_OF_FILES = ord("f")  # the type of PAGEMAP_SCAN
_MFD_NAME_MAX = 249
_SYNC_FILE_RANGE_KNOWN = 7
_CLOSE_RANGE_UNSHARE = 2
_ADVICE = range(6)  # POSIX_FADV_NORMAL to POSIX_FADV_NOREUSE
_WILL_NEED, _DO_NOT_NEED = 3, 4


# ---- making and closing


def sys_close(task: Task, fd: int, *_: int) -> int:
    task.files.close(s32(fd))
    return 0


def sys_close_range(task: Task, first: int, last: int, flags: int, *_: int) -> int:
    if u32(flags) & _CLOSE_RANGE_UNSHARE and task.shares_descriptors:
        task.unshare_files(table=True, standing=False)
    task.files.close_range(u32(first), u32(last), u32(flags) & ~_CLOSE_RANGE_UNSHARE)
    return 0


def sys_dup(task: Task, fd: int, *_: int) -> int:
    return task.files.dup(s32(fd))


def sys_dup2(task: Task, fd: int, target: int, *_: int) -> int:
    return task.files.dup2(s32(fd), s32(target))


def sys_dup3(task: Task, fd: int, target: int, flags: int, *_: int) -> int:
    return task.files.dup3(s32(fd), s32(target), s32(flags))


def sys_pipe(task: Task, result: int, *_: int) -> int:
    return sys_pipe2(task, result, 0)


def sys_pipe2(task: Task, result: int, flags: int, *_: int) -> int:
    pair = task.files.pipe(open_flags(task, s32(flags)))
    try:
        write_struct(task.cpu, result, "ii", *pair)
    except UserFault:
        for fd in pair:
            task.files.close(fd)
        raise
    return 0


def sys_eventfd(task: Task, initial: int, *_: int) -> int:
    return sys_eventfd2(task, initial, 0)


def sys_eventfd2(task: Task, initial: int, flags: int, *_: int) -> int:
    return task.files.eventfd(u32(initial), s32(flags))


def sys_memfd_create(task: Task, name: int, flags: int, *_: int) -> int:
    try:
        text = read_string(task.cpu, name, _MFD_NAME_MAX + 1)
    except Refused:
        raise Refused(errno.EINVAL, "the name is too long") from None
    return task.files.memfd_create(text, u32(flags), task.process.kernel.physical)


# ---- control


def sys_fcntl(task: Task, fd: int, command: int, argument: int, *_: int) -> int:
    fd, command = s32(fd), s32(command)
    if command in LOCK_COMMANDS:
        return lock_range(task, fd, command, argument)
    if command in OWNERSHIP:
        from aether_emu.linux.calls import ownership  # noqa: PLC0415  # few programs ask for signals

        return ownership.control(task, task.files.table.file(fd), command, argument)
    value = s32(argument)
    if command == _F_SETFL:
        value = open_flags(task, value)
    result = task.files.fcntl(fd, command, value)
    if command == _F_SETFL and value & fl.FASYNC:
        _own_terminal(task, fd)
    return fl.to_arm64(result) if command == _F_GETFL and is_arm64(task) else result


def sys_ioctl(task: Task, fd: int, request: int, argument: int, *_: int) -> int:
    file = task.files.table.file(s32(fd))
    if file.is_terminal:
        from aether_emu.linux.calls import terminals  # noqa: PLC0415  # few programs have one

        result = terminals.control(task, s32(fd), file, u32(request), argument)
        if u32(request) == _FIOASYNC:
            _own_terminal(task, s32(fd))
        return result
    if file.is_socket and u32(request) in SOCKET_OWNERSHIP:
        from aether_emu.linux.calls import ownership  # noqa: PLC0415  # as said

        return ownership.control_socket(task, file, u32(request), argument)
    if file.kind == "userfaultfd":
        from aether_emu.linux.calls import user_faults  # noqa: PLC0415  # as said

        return user_faults.control(task, file, u32(request), argument)
    if isinstance(file, DeviceFile) and file.number == USER_FAULTS:
        from aether_emu.linux.calls import user_faults  # noqa: PLC0415  # as said

        return user_faults.control_device(task, u32(request), argument)
    if isinstance(file, RegionFile) and file.scans and u32(request) >> 8 & 0xFF == _OF_FILES:
        from aether_emu.linux.calls import pagemap  # noqa: PLC0415  # as said

        return pagemap.control(task, file, u32(request), argument)
    if isinstance(file, TextFile) and file.areas is not None and u32(request) >> 8 & 0xFF == _OF_FILES:
        from aether_emu.linux.calls import procmap  # noqa: PLC0415  # as said

        return procmap.control(task, file.areas, u32(request), argument)
    answer = task.files.ioctl(s32(fd), u32(request), lambda size: task.cpu.copy_from_user(argument, size))
    if answer:
        task.cpu.copy_to_user(argument, answer)
    return 0


def _own_terminal(task: Task, fd: int) -> None:
    """A terminal that gets O_ASYNC and has no owner gets one."""
    file = task.files.table.file(fd)
    if file.is_terminal and file.flags & fl.FASYNC:
        from aether_emu.linux.calls import ownership  # noqa: PLC0415  # as said

        ownership.own_terminal(task, file)


# ---- positions and sizes


def sys_lseek(task: Task, fd: int, offset: int, whence: int, *_: int) -> int:
    return task.files.lseek(s32(fd), s64(offset), u32(whence))


def sys_ftruncate(task: Task, fd: int, size: int, *_: int) -> int:
    task.files.ftruncate(s32(fd), s64(size))
    return 0


def sys_fallocate(task: Task, fd: int, mode: int, offset: int, length: int, *_: int) -> int:
    change = rewriting(task.process.kernel, task.files.table.file(s32(fd)))
    try:
        task.files.fallocate(s32(fd), s32(mode), s64(offset), s64(length))
    finally:
        if change is not None:
            change.done()
    return 0


# ---- storage


def sys_fsync(task: Task, fd: int, *_: int) -> int:
    task.files.fsync(s32(fd))
    return 0


def sys_fdatasync(task: Task, fd: int, *_: int) -> int:
    return sys_fsync(task, fd)


def sys_sync(task: Task, *_: int) -> int:
    """sync(2), of the files that are open for writing: no others on the host are the guest's."""
    for descriptor in task.files.table.descriptors.values():
        if isinstance(descriptor.file, HostData) and descriptor.file.writable:
            descriptor.file.write_back()
    return 0


def sys_syncfs(task: Task, fd: int, *_: int) -> int:
    task.files.table.file(s32(fd))
    return sys_sync(task)


def sys_sync_file_range(task: Task, fd: int, offset: int, length: int, flags: int, *_: int) -> int:
    """sync_file_range(2). The whole file goes to the disk."""
    file = task.files.table.file(s32(fd))
    if u32(flags) & ~_SYNC_FILE_RANGE_KNOWN or min(s64(offset), s64(length), s64(offset + length)) < 0:
        raise Refused(errno.EINVAL, f"flags {u32(flags):#x} or a negative range")
    if not isinstance(file, HostData):
        raise Refused(errno.ESPIPE, f"a {file.kind} is on no storage")
    if u32(flags):
        file.sync()
    return 0


def sys_fadvise64(task: Task, fd: int, offset: int, length: int, advice: int, *_: int) -> int:
    """posix_fadvise(2). The host caches as it sees fit: advice concerns pages that count as memory."""
    file = task.files.table.file(s32(fd))
    if not file.seekable:
        raise Refused(errno.ESPIPE, f"a {file.kind} has no positions")
    if s32(advice) not in _ADVICE or s64(length) < 0:
        raise Refused(errno.EINVAL, f"advice {s32(advice)}, length {s64(length)}")
    cached = connect_cache(task.process.kernel)
    if cached is not None and isinstance(file, HostData):
        part = (file.key, max(0, s64(offset)), s64(length) or None)
        if s32(advice) == _WILL_NEED:
            cached.will_need(*part)
        elif s32(advice) == _DO_NOT_NEED:
            cached.forget(*part)
    return 0


def sys_readahead(task: Task, fd: int, offset: int, count: int, *_: int) -> int:
    """readahead(2): advice too."""
    file = reader(task, fd)
    if not isinstance(file, HostData):
        raise Refused(errno.EINVAL, f"descriptor {s32(fd)} is no regular file")
    cached = connect_cache(task.process.kernel)
    if cached is not None:
        cached.will_need(file.key, max(0, s64(offset)), min(count, LARGEST_OFFSET))
    return 0


# ---- description


def sys_fstat(task: Task, fd: int, result: int, *_: int) -> int:
    task.cpu.copy_to_user(result, task.process.abi.encode_stat(task.files.fstat(s32(fd))))
    return 0


def sys_fstatfs(task: Task, fd: int, result: int, *_: int) -> int:
    task.cpu.copy_to_user(result, encode_statfs(task.files.fstatfs(s32(fd))))
    return 0


# ---- directories


def sys_getdents64(task: Task, fd: int, buffer: int, size: int, *_: int) -> int:
    return _entries(task, fd, buffer, size, lambda entry: entry)


def sys_getdents(task: Task, fd: int, buffer: int, size: int, *_: int) -> int:
    """getdents(2): the name comes earlier, and the type is the entry's last byte."""
    return _entries(
        task, fd, buffer, size, lambda entry: entry[:18] + entry[_DIRENT_HEAD:] + entry[18:_DIRENT_HEAD]
    )


def _entries(task: Task, fd: int, buffer: int, size: int, layout: Callable[[bytes], bytes]) -> int:
    """Deliver whole entries; those that meet a bad address are read again by the next call."""
    file = task.files.table.file(s32(fd))
    data = task.files.getdents64(s32(fd), min(u32(size), _MOST_ENTRIES))
    done = 0
    while done < len(data):
        (length,) = struct.unpack_from("<H", data, done + 16)
        try:
            task.cpu.copy_to_user(buffer + done, layout(data[done : done + length]))
        except UserFault:
            file.position -= _entries_in(data[done:])
            if not done:
                raise
            break
        done += length
    return done


def _entries_in(data: bytes) -> int:
    """How many directory entries there are in `data`."""
    count = at = 0
    while at < len(data):
        at += int(struct.unpack_from("<H", data, at + 16)[0])
        count += 1
    return count
