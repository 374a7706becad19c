"""Calls that make, find, rename and remove names: open(2), mkdir(2), rename(2) and their relatives."""

from __future__ import annotations

import errno
import struct

from aether_emu.errors import Refused
from aether_emu.linux.calls.arguments import open_flags, read_path
from aether_emu.linux.calls.user import s32, u32
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.fifo import WaitsForOther
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Wait

_AT_REMOVEDIR = 0x200
_HOW_SIZE = 24  # struct open_how, version 0
_HOW_MOST = 4096
_RESOLVE_KNOWN = 0x3F
_OPEN_MODE = 0o7777
_MODE_T = 0xFFFF  # umode_t


# ---- opening


def sys_open(task: Task, path: int, flags: int, mode: int, *_: int) -> int:
    return _open(task, fl.AT_FDCWD, path, flags, mode)


def sys_openat(task: Task, dirfd: int, path: int, flags: int, mode: int, *_: int) -> int:
    return _open(task, s32(dirfd), path, flags, mode)


def sys_creat(task: Task, path: int, mode: int, *_: int) -> int:
    return _open(task, fl.AT_FDCWD, path, fl.O_CREAT | fl.O_WRONLY | fl.O_TRUNC, mode)


def _open(task: Task, dirfd: int, path: int, flags: int, mode: int) -> int:
    return _open_path(task, dirfd, path, open_flags(task, u32(flags)), mode & _OPEN_MODE)


def _open_path(task: Task, dirfd: int, path: int, flags: int, mode: int, resolve: int = 0) -> int:
    """Open a file; a named pipe waits for its other side."""
    files = task.files
    waits_for = files.opening_of(task.tid)
    if waits_for is None:
        try:
            fd = files.open(dirfd, read_path(task, path), flags, mode, resolve)
            if files.table.held(fd).is_terminal:
                from aether_emu.linux.calls import terminals  # noqa: PLC0415  # few programs have one

                terminals.opened(task, files.table.held(fd), flags)
            return fd
        except WaitsForOther as opening:
            waits_for = files.begin_opening(task.tid, opening)
    if not waits_for.waits_for_other:
        return files.finish_opening(task.tid)
    if task.signals.interrupts():
        files.give_up_opening(task.tid)
    raise Wait((waits_for.pipe.opened,), "the other side of a named pipe")


def sys_openat2(task: Task, dirfd: int, path: int, how: int, size: int, *_: int) -> int:
    """openat2(2): flags, mode and resolve are checked strictly; what a longer struct adds is zero."""
    if size < _HOW_SIZE:
        raise Refused(errno.EINVAL, f"struct open_how of {size} bytes")
    if size > _HOW_MOST:
        raise Refused(errno.E2BIG, f"struct open_how of {size} bytes")
    raw = task.cpu.copy_from_user(how, size)
    if any(raw[_HOW_SIZE:]):
        raise Refused(errno.E2BIG, "struct open_how asks for more than is known")
    flags, mode, resolve = struct.unpack_from("<QQQ", raw)
    known = open_flags(task, flags) if flags >> 32 == 0 else -1
    if known & ~fl.KNOWN_OPEN_FLAGS or resolve & ~_RESOLVE_KNOWN:
        raise Refused(errno.EINVAL, f"flags {flags:#x}, resolve {resolve:#x}")
    if resolve & fl.RESOLVE_BENEATH and resolve & fl.RESOLVE_IN_ROOT:
        raise Refused(errno.EINVAL, "beneath and in a root")
    if mode & ~(_OPEN_MODE if known & (fl.O_CREAT | fl.O_TMPFILE_BIT) else 0):
        raise Refused(errno.EINVAL, f"mode {mode:o}")
    if known & fl.O_PATH and known & ~(fl.O_PATH | fl.O_DIRECTORY | fl.O_NOFOLLOW | fl.O_CLOEXEC):
        raise Refused(errno.EINVAL, "O_PATH with other flags")
    return _open_path(task, s32(dirfd), path, known, mode, resolve)


# ---- the working directory


def sys_getcwd(task: Task, buffer: int, size: int, *_: int) -> int:
    text = task.files.getcwd() + b"\0"
    if size < len(text):
        raise Refused(errno.ERANGE, f"{len(text)} bytes are needed")
    task.cpu.copy_to_user(buffer, text)
    return len(text)


def sys_chdir(task: Task, path: int, *_: int) -> int:
    task.files.chdir(read_path(task, path))
    return 0


def sys_fchdir(task: Task, fd: int, *_: int) -> int:
    task.files.fchdir(s32(fd))
    return 0


def sys_umask(task: Task, mask: int, *_: int) -> int:
    return task.files.umask(s32(mask))


# ---- links


def sys_readlink(task: Task, path: int, buffer: int, size: int, *_: int) -> int:
    return _read_link(task, fl.AT_FDCWD, path, buffer, size)


def sys_readlinkat(task: Task, dirfd: int, path: int, buffer: int, size: int, *_: int) -> int:
    return _read_link(task, s32(dirfd), path, buffer, size)


def _read_link(task: Task, dirfd: int, path: int, buffer: int, size: int) -> int:
    if s32(size) <= 0:
        raise Refused(errno.EINVAL, f"a buffer of {s32(size)} bytes")
    target = task.files.readlink(dirfd, read_path(task, path), s32(size))
    task.cpu.copy_to_user(buffer, target)
    return len(target)


def sys_symlink(task: Task, target: int, path: int, *_: int) -> int:
    return sys_symlinkat(task, target, fl.AT_FDCWD, path)


def sys_symlinkat(task: Task, target: int, dirfd: int, path: int, *_: int) -> int:
    task.files.symlink(read_path(task, target), s32(dirfd), read_path(task, path))
    return 0


def sys_link(task: Task, old: int, new: int, *_: int) -> int:
    return sys_linkat(task, fl.AT_FDCWD, old, fl.AT_FDCWD, new, 0)


def sys_linkat(task: Task, old_dirfd: int, old: int, new_dirfd: int, new: int, flags: int, *_: int) -> int:
    source, target = read_path(task, old), read_path(task, new)
    task.files.link(s32(old_dirfd), source, s32(new_dirfd), target, s32(flags))
    return 0


# ---- making and removing


def sys_mkdir(task: Task, path: int, mode: int, *_: int) -> int:
    return sys_mkdirat(task, fl.AT_FDCWD, path, mode)


def sys_mkdirat(task: Task, dirfd: int, path: int, mode: int, *_: int) -> int:
    task.files.mkdir(s32(dirfd), read_path(task, path), mode & _MODE_T)
    return 0


def sys_mknod(task: Task, path: int, mode: int, *_: int) -> int:
    return sys_mknodat(task, fl.AT_FDCWD, path, mode)


def sys_mknodat(task: Task, dirfd: int, path: int, mode: int, *_: int) -> int:
    task.files.mknod(s32(dirfd), read_path(task, path), mode & _MODE_T)
    return 0


def sys_unlink(task: Task, path: int, *_: int) -> int:
    task.files.unlink(fl.AT_FDCWD, read_path(task, path))
    return 0


def sys_rmdir(task: Task, path: int, *_: int) -> int:
    task.files.rmdir(fl.AT_FDCWD, read_path(task, path))
    return 0


def sys_unlinkat(task: Task, dirfd: int, path: int, flags: int, *_: int) -> int:
    if s32(flags) & ~_AT_REMOVEDIR:
        raise Refused(errno.EINVAL, f"flags {u32(flags):#x}")
    remove = task.files.rmdir if flags & _AT_REMOVEDIR else task.files.unlink
    remove(s32(dirfd), read_path(task, path))
    return 0


def sys_rename(task: Task, old: int, new: int, *_: int) -> int:
    return sys_renameat2(task, fl.AT_FDCWD, old, fl.AT_FDCWD, new, 0)


def sys_renameat(task: Task, old_dirfd: int, old: int, new_dirfd: int, new: int, *_: int) -> int:
    return sys_renameat2(task, old_dirfd, old, new_dirfd, new, 0)


def sys_renameat2(task: Task, old_dirfd: int, old: int, new_dirfd: int, new: int, flags: int, *_: int) -> int:
    source, target = read_path(task, old), read_path(task, new)
    task.files.rename(s32(old_dirfd), source, s32(new_dirfd), target, u32(flags))
    return 0
