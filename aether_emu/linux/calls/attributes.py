"""Calls that show and set what a file is: stat(2), access(2), chmod(2), chown(2), times, xattr(7)."""

from __future__ import annotations

import errno
from collections.abc import Callable

from aether_emu.errors import Refused
from aether_emu.linux.calls.family import FileFamily
from aether_emu.linux.calls.user import read_string, read_struct, s32, s64, u32
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.stat import Stat, encode_statfs, encode_statx

_STATX_RESERVED = 0x8000_0000
_AT_STATX_SYNC_TYPE = 0x6000
_AT_SET = fl.AT_SYMLINK_NOFOLLOW | fl.AT_EMPTY_PATH
_SECOND = 10**9
_UTIME_NOW, _UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
_PERMISSIONS = 0o7777
_XATTR_NAME_MAX = 255
_XATTR_CREATE, _XATTR_REPLACE = 1, 2

Times = tuple[int | None, int | None]
"""Access and modification time in nanoseconds since 1970; None stays as it is."""


class AttributeCalls(FileFamily):
    """The calls on attributes of files."""

    # ---- showing

    def sys_stat(self, path: int, result: int, *_: int) -> int:
        return self._stat(result, self._files.stat(fl.AT_FDCWD, self._path(path)))

    def sys_lstat(self, path: int, result: int, *_: int) -> int:
        return self._stat(result, self._files.stat(fl.AT_FDCWD, self._path(path), fl.AT_SYMLINK_NOFOLLOW))

    def sys_newfstatat(self, dirfd: int, path: int, result: int, flags: int, *_: int) -> int:
        flags = s32(flags)
        return self._stat(result, self._files.stat(s32(dirfd), self._optional_path(path, flags), flags))

    def _stat(self, result: int, stat: Stat) -> int:
        self._cpu.copy_to_user(result, self._process.abi.encode_stat(stat))
        return 0

    def sys_statx(self, dirfd: int, path: int, flags: int, mask: int, result: int, *_: int) -> int:
        """statx(2): always all basic attributes, whatever the mask asks for, which Linux allows."""
        flags = s32(flags)
        if mask & _STATX_RESERVED or flags & _AT_STATX_SYNC_TYPE == _AT_STATX_SYNC_TYPE:
            raise Refused(errno.EINVAL, f"mask {u32(mask):#x}, flags {flags:#x}")
        stat = self._files.stat(s32(dirfd), self._optional_path(path, flags), flags)
        self._cpu.copy_to_user(result, encode_statx(stat))
        return 0

    def sys_statfs(self, path: int, result: int, *_: int) -> int:
        self._cpu.copy_to_user(result, encode_statfs(self._files.statfs(self._path(path))))
        return 0

    def sys_access(self, path: int, mode: int, *_: int) -> int:
        return self.sys_faccessat2(fl.AT_FDCWD, path, mode, 0)

    def sys_faccessat(self, dirfd: int, path: int, mode: int, *_: int) -> int:
        return self.sys_faccessat2(dirfd, path, mode, 0)

    def sys_faccessat2(self, dirfd: int, path: int, mode: int, flags: int, *_: int) -> int:
        self._files.access(s32(dirfd), self._path(path), s32(mode), s32(flags))
        return 0

    # ---- mode, owner, size

    def sys_chmod(self, path: int, mode: int, *_: int) -> int:
        return self.sys_fchmodat2(fl.AT_FDCWD, path, mode, 0)

    def sys_fchmodat(self, dirfd: int, path: int, mode: int, *_: int) -> int:
        return self.sys_fchmodat2(dirfd, path, mode, 0)

    def sys_fchmodat2(self, dirfd: int, path: int, mode: int, flags: int, *_: int) -> int:
        _check_flags(flags)
        self._files.chmod(s32(dirfd), self._path(path), mode & _PERMISSIONS, u32(flags))
        return 0

    def sys_fchmod(self, fd: int, mode: int, *_: int) -> int:
        self._files.fchmod(s32(fd), mode & _PERMISSIONS)
        return 0

    def sys_chown(self, path: int, uid: int, gid: int, *_: int) -> int:
        return self.sys_fchownat(fl.AT_FDCWD, path, uid, gid, 0)

    def sys_lchown(self, path: int, uid: int, gid: int, *_: int) -> int:
        return self.sys_fchownat(fl.AT_FDCWD, path, uid, gid, fl.AT_SYMLINK_NOFOLLOW)

    def sys_fchownat(self, dirfd: int, path: int, uid: int, gid: int, flags: int, *_: int) -> int:
        _check_flags(flags)
        self._files.chown(s32(dirfd), self._path(path), u32(uid), u32(gid), u32(flags))
        return 0

    def sys_fchown(self, fd: int, uid: int, gid: int, *_: int) -> int:
        self._files.table.file(s32(fd))
        self._files.chown(s32(fd), b"", u32(uid), u32(gid), fl.AT_EMPTY_PATH)
        return 0

    def sys_truncate(self, path: int, size: int, *_: int) -> int:
        if s64(size) < 0:
            raise Refused(errno.EINVAL, f"size {s64(size)}")
        self._files.truncate(self._path(path), s64(size))
        return 0

    # ---- times

    def sys_utime(self, path: int, times: int, *_: int) -> int:
        """utime(2): struct utimbuf, whole seconds."""
        if times:
            atime, mtime = (int(t) * _SECOND for t in read_struct(self._cpu, times, "qq"))
        else:
            atime = mtime = self._files.namespace.now()
        self._files.utimens(fl.AT_FDCWD, self._path(path), atime, mtime)
        return 0

    def sys_utimes(self, path: int, times: int, *_: int) -> int:
        return self.sys_futimesat(fl.AT_FDCWD, path, times)

    def sys_futimesat(self, dirfd: int, path: int, times: int, *_: int) -> int:
        """futimesat(2): two struct timeval."""
        chosen: Times = (self._files.namespace.now(),) * 2
        if times:
            fields = [int(field) for field in read_struct(self._cpu, times, "qqqq")]
            if not all(0 <= microseconds < 10**6 for microseconds in fields[1::2]):
                raise Refused(errno.EINVAL, f"microseconds {fields[1::2]}")
            chosen = (fields[0] * _SECOND + fields[1] * 1000, fields[2] * _SECOND + fields[3] * 1000)
        return self._set_times(dirfd, path, chosen, 0)

    def sys_utimensat(self, dirfd: int, path: int, times: int, flags: int, *_: int) -> int:
        """utimensat(2): two struct timespec, with UTIME_NOW and UTIME_OMIT; a NULL path is `dirfd` itself."""
        now = self._files.namespace.now()
        chosen: Times = (now, now)
        if times:
            seconds1, rest1, seconds2, rest2 = read_struct(self._cpu, times, "qqqq")
            chosen = (_moment(seconds1, rest1, now), _moment(seconds2, rest2, now))
            if chosen == (None, None):
                return 0
        return self._set_times(dirfd, path, chosen, s32(flags))

    def _set_times(self, dirfd: int, path: int, times: Times, flags: int) -> int:
        if not path and s32(dirfd) != fl.AT_FDCWD:
            if flags:
                raise Refused(errno.EINVAL, f"flags {flags:#x} without a path")
            self._files.table.file(s32(dirfd))
            self._files.utimens(s32(dirfd), b"", *times, fl.AT_EMPTY_PATH)
            return 0
        _check_flags(flags)
        self._files.utimens(s32(dirfd), self._path(path), *times, flags)
        return 0

    # ---- extended attributes: the guest's file systems have none

    def sys_getxattr(self, path: int, name: int, *_: int) -> int:
        return self._no_attribute(self._named(path, follow=True), name)

    def sys_lgetxattr(self, path: int, name: int, *_: int) -> int:
        return self._no_attribute(self._named(path, follow=False), name)

    def sys_fgetxattr(self, fd: int, name: int, *_: int) -> int:
        return self._no_attribute(self._opened(fd), name)

    def sys_setxattr(self, path: int, name: int, _value: int, _size: int, flags: int, *_: int) -> int:
        return self._no_attribute(self._named(path, follow=True), name, flags)

    def sys_lsetxattr(self, path: int, name: int, _value: int, _size: int, flags: int, *_: int) -> int:
        return self._no_attribute(self._named(path, follow=False), name, flags)

    def sys_fsetxattr(self, fd: int, name: int, _value: int, _size: int, flags: int, *_: int) -> int:
        return self._no_attribute(self._opened(fd), name, flags)

    def sys_removexattr(self, path: int, name: int, *_: int) -> int:
        return self._no_attribute(self._named(path, follow=True), name)

    def sys_lremovexattr(self, path: int, name: int, *_: int) -> int:
        return self._no_attribute(self._named(path, follow=False), name)

    def sys_fremovexattr(self, fd: int, name: int, *_: int) -> int:
        return self._no_attribute(self._opened(fd), name)

    def sys_listxattr(self, path: int, *_: int) -> int:
        self._named(path, follow=True)()
        return 0

    def sys_llistxattr(self, path: int, *_: int) -> int:
        self._named(path, follow=False)()
        return 0

    def sys_flistxattr(self, fd: int, *_: int) -> int:
        self._opened(fd)()
        return 0

    def _named(self, path: int, *, follow: bool) -> Callable[[], object]:
        """Find a file by its path, or be refused."""
        flags = 0 if follow else fl.AT_SYMLINK_NOFOLLOW
        return lambda: self._files.stat(fl.AT_FDCWD, self._path(path), flags)

    def _opened(self, fd: int) -> Callable[[], object]:
        return lambda: self._files.table.file(s32(fd))

    def _no_attribute(self, find: Callable[[], object], name: int, flags: int = 0) -> int:
        """EOPNOTSUPP, after everything else that could be wrong."""
        if u32(flags) & ~(_XATTR_CREATE | _XATTR_REPLACE):
            raise Refused(errno.EINVAL, f"flags {u32(flags):#x}")
        try:
            text = read_string(self._cpu, name, _XATTR_NAME_MAX + 1)
        except Refused:
            text = b""
        if not text:
            raise Refused(errno.ERANGE, "an attribute's name has 1 to 255 bytes")
        find()
        raise Refused(errno.EOPNOTSUPP, "no file has extended attributes")


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
