"""Calls that show and set what a file is: stat(2), access(2), chmod(2), chown(2), times."""

from __future__ import annotations

import errno

from aether_emu.errors import Refused
from aether_emu.linux.calls.arguments import read_optional_path, read_path
from aether_emu.linux.calls.user import read_struct, s32, s64, u32
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.stat import Stat, encode_statfs, encode_statx
from aether_emu.linux.task.task import Task

_STATX_RESERVED = 0x8000_0000
_AT_STATX_SYNC_TYPE = 0x6000
_AT_SET = fl.AT_SYMLINK_NOFOLLOW | fl.AT_EMPTY_PATH
_SECOND = 10**9
_UTIME_NOW, _UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
_PERMISSIONS = 0o7777

Times = tuple[int | None, int | None]
"""Access and modification time in nanoseconds since 1970; None stays as it is."""


# ---- showing


def sys_stat(task: Task, path: int, result: int, *_: int) -> int:
    return _stat(task, result, task.files.stat(fl.AT_FDCWD, read_path(task, path)))


def sys_lstat(task: Task, path: int, result: int, *_: int) -> int:
    return _stat(task, result, task.files.stat(fl.AT_FDCWD, read_path(task, path), fl.AT_SYMLINK_NOFOLLOW))


def sys_newfstatat(task: Task, dirfd: int, path: int, result: int, flags: int, *_: int) -> int:
    flags = s32(flags)
    return _stat(task, result, task.files.stat(s32(dirfd), read_optional_path(task, path, flags), flags))


def _stat(task: Task, result: int, stat: Stat) -> int:
    task.cpu.copy_to_user(result, task.process.abi.encode_stat(stat))
    return 0


def sys_statx(task: Task, dirfd: int, path: int, flags: int, mask: int, result: int, *_: int) -> int:
    """statx(2): always all basic attributes, whatever the mask asks for, which Linux allows."""
    flags = s32(flags)
    if mask & _STATX_RESERVED or flags & _AT_STATX_SYNC_TYPE == _AT_STATX_SYNC_TYPE:
        raise Refused(errno.EINVAL, f"mask {u32(mask):#x}, flags {flags:#x}")
    stat = task.files.stat(s32(dirfd), read_optional_path(task, path, flags), flags)
    task.cpu.copy_to_user(result, encode_statx(stat))
    return 0


def sys_statfs(task: Task, path: int, result: int, *_: int) -> int:
    task.cpu.copy_to_user(result, encode_statfs(task.files.statfs(read_path(task, path))))
    return 0


def sys_access(task: Task, path: int, mode: int, *_: int) -> int:
    return sys_faccessat2(task, fl.AT_FDCWD, path, mode, 0)


def sys_faccessat(task: Task, dirfd: int, path: int, mode: int, *_: int) -> int:
    return sys_faccessat2(task, dirfd, path, mode, 0)


def sys_faccessat2(task: Task, dirfd: int, path: int, mode: int, flags: int, *_: int) -> int:
    task.files.access(s32(dirfd), read_path(task, path), s32(mode), s32(flags))
    return 0


# ---- mode, owner, size


def sys_chmod(task: Task, path: int, mode: int, *_: int) -> int:
    return sys_fchmodat2(task, fl.AT_FDCWD, path, mode, 0)


def sys_fchmodat(task: Task, dirfd: int, path: int, mode: int, *_: int) -> int:
    return sys_fchmodat2(task, dirfd, path, mode, 0)


def sys_fchmodat2(task: Task, dirfd: int, path: int, mode: int, flags: int, *_: int) -> int:
    _check_flags(flags)
    task.files.chmod(s32(dirfd), read_path(task, path), mode & _PERMISSIONS, u32(flags))
    return 0


def sys_fchmod(task: Task, fd: int, mode: int, *_: int) -> int:
    task.files.fchmod(s32(fd), mode & _PERMISSIONS)
    return 0


def sys_chown(task: Task, path: int, uid: int, gid: int, *_: int) -> int:
    return sys_fchownat(task, fl.AT_FDCWD, path, uid, gid, 0)


def sys_lchown(task: Task, path: int, uid: int, gid: int, *_: int) -> int:
    return sys_fchownat(task, fl.AT_FDCWD, path, uid, gid, fl.AT_SYMLINK_NOFOLLOW)


def sys_fchownat(task: Task, dirfd: int, path: int, uid: int, gid: int, flags: int, *_: int) -> int:
    _check_flags(flags)
    task.files.chown(s32(dirfd), read_path(task, path), u32(uid), u32(gid), u32(flags))
    return 0


def sys_fchown(task: Task, fd: int, uid: int, gid: int, *_: int) -> int:
    task.files.table.file(s32(fd))
    task.files.chown(s32(fd), b"", u32(uid), u32(gid), fl.AT_EMPTY_PATH)
    return 0


def sys_truncate(task: Task, path: int, size: int, *_: int) -> int:
    if s64(size) < 0:
        raise Refused(errno.EINVAL, f"size {s64(size)}")
    task.files.truncate(read_path(task, path), s64(size))
    return 0


# ---- times


def sys_utime(task: Task, path: int, times: int, *_: int) -> int:
    """utime(2): struct utimbuf, whole seconds."""
    if times:
        atime, mtime = (int(t) * _SECOND for t in read_struct(task.cpu, times, "qq"))
    else:
        atime = mtime = task.files.namespace.now()
    task.files.utimens(fl.AT_FDCWD, read_path(task, path), atime, mtime, touches=not times)
    return 0


def sys_utimes(task: Task, path: int, times: int, *_: int) -> int:
    return sys_futimesat(task, fl.AT_FDCWD, path, times)


def sys_futimesat(task: Task, dirfd: int, path: int, times: int, *_: int) -> int:
    """futimesat(2): two struct timeval."""
    chosen: Times = (task.files.namespace.now(),) * 2
    if times:
        fields = [int(field) for field in read_struct(task.cpu, times, "qqqq")]
        if not all(0 <= microseconds < 10**6 for microseconds in fields[1::2]):
            raise Refused(errno.EINVAL, f"microseconds {fields[1::2]}")
        chosen = (fields[0] * _SECOND + fields[1] * 1000, fields[2] * _SECOND + fields[3] * 1000)
    return _set_times(task, dirfd, path, chosen, 0, touches=not times)


def sys_utimensat(task: Task, dirfd: int, path: int, times: int, flags: int, *_: int) -> int:
    """utimensat(2): two struct timespec, with UTIME_NOW and UTIME_OMIT; a NULL path is `dirfd` itself."""
    now = task.files.namespace.now()
    chosen: Times = (now, now)
    touches = not times
    if times:
        seconds1, rest1, seconds2, rest2 = read_struct(task.cpu, times, "qqqq")
        chosen = (_moment(seconds1, rest1, now), _moment(seconds2, rest2, now))
        touches = rest1 == rest2 == _UTIME_NOW
        if chosen == (None, None):
            return 0
    return _set_times(task, dirfd, path, chosen, s32(flags), touches=touches)


def _set_times(task: Task, dirfd: int, path: int, times: Times, flags: int, *, touches: bool) -> int:
    if not path and s32(dirfd) != fl.AT_FDCWD:
        if flags:
            raise Refused(errno.EINVAL, f"flags {flags:#x} without a path")
        task.files.table.file(s32(dirfd))
        task.files.utimens(s32(dirfd), b"", *times, fl.AT_EMPTY_PATH, touches=touches)
        return 0
    _check_flags(flags)
    task.files.utimens(s32(dirfd), read_path(task, path), *times, flags, touches=touches)
    return 0


# ---- arguments


def _check_flags(flags: int) -> None:
    if u32(flags) & ~_AT_SET:
        raise Refused(errno.EINVAL, f"flags {u32(flags):#x}")


def _moment(seconds: int, rest: int, now: int) -> int | None:
    """A struct timespec of utimensat in nanoseconds; None for UTIME_OMIT."""
    if rest == _UTIME_OMIT:
        return None
    if rest == _UTIME_NOW:
        return now
    if not 0 <= rest < _SECOND:
        raise Refused(errno.EINVAL, f"{rest} nanoseconds")
    return seconds * _SECOND + rest
