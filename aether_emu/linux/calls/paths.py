"""Calls that make, find, rename and remove names: open(2), mkdir(2), rename(2) and their relatives."""

from __future__ import annotations

import errno
import struct

from aether_emu.errors import Refused
from aether_emu.linux.calls.family import FileFamily
from aether_emu.linux.calls.user import s32, u32
from aether_emu.linux.files import flags as fl

_AT_REMOVEDIR = 0x200
_HOW_SIZE = 24  # struct open_how, version 0
_HOW_MOST = 4096
_RESOLVE_KNOWN = 0x3F
_OPEN_MODE = 0o7777
_MODE_T = 0xFFFF  # umode_t


class PathCalls(FileFamily):
    """The calls that take names."""

    # ---- opening

    def sys_open(self, path: int, flags: int, mode: int, *_: int) -> int:
        return self._open(fl.AT_FDCWD, path, flags, mode)

    def sys_openat(self, dirfd: int, path: int, flags: int, mode: int, *_: int) -> int:
        return self._open(s32(dirfd), path, flags, mode)

    def sys_creat(self, path: int, mode: int, *_: int) -> int:
        return self._files.open(
            fl.AT_FDCWD, self._path(path), fl.O_CREAT | fl.O_WRONLY | fl.O_TRUNC, mode & _OPEN_MODE
        )

    def _open(self, dirfd: int, path: int, flags: int, mode: int) -> int:
        return self._files.open(dirfd, self._path(path), self._open_flags(u32(flags)), mode & _OPEN_MODE)

    def sys_openat2(self, dirfd: int, path: int, how: int, size: int, *_: int) -> int:
        """openat2(2): flags, mode and resolve are checked strictly; what a longer struct adds is zero."""
        if size < _HOW_SIZE:
            raise Refused(errno.EINVAL, f"struct open_how of {size} bytes")
        if size > _HOW_MOST:
            raise Refused(errno.E2BIG, f"struct open_how of {size} bytes")
        raw = self._cpu.copy_from_user(how, size)
        if any(raw[_HOW_SIZE:]):
            raise Refused(errno.E2BIG, "struct open_how asks for more than is known")
        flags, mode, resolve = struct.unpack_from("<QQQ", raw)
        known = self._open_flags(flags) if flags >> 32 == 0 else -1
        if known & ~fl.KNOWN_OPEN_FLAGS or resolve & ~_RESOLVE_KNOWN:
            raise Refused(errno.EINVAL, f"flags {flags:#x}, resolve {resolve:#x}")
        if resolve & fl.RESOLVE_BENEATH and resolve & fl.RESOLVE_IN_ROOT:
            raise Refused(errno.EINVAL, "beneath and in a root")
        if mode & ~(_OPEN_MODE if known & (fl.O_CREAT | fl.O_TMPFILE_BIT) else 0):
            raise Refused(errno.EINVAL, f"mode {mode:o}")
        if known & fl.O_PATH and known & ~(fl.O_PATH | fl.O_DIRECTORY | fl.O_NOFOLLOW | fl.O_CLOEXEC):
            raise Refused(errno.EINVAL, "O_PATH with other flags")
        return self._files.open(s32(dirfd), self._path(path), known, mode, resolve)

    # ---- the working directory

    def sys_getcwd(self, buffer: int, size: int, *_: int) -> int:
        text = self._files.getcwd() + b"\0"
        if size < len(text):
            raise Refused(errno.ERANGE, f"{len(text)} bytes are needed")
        self._cpu.copy_to_user(buffer, text)
        return len(text)

    def sys_chdir(self, path: int, *_: int) -> int:
        self._files.chdir(self._path(path))
        return 0

    def sys_fchdir(self, fd: int, *_: int) -> int:
        self._files.fchdir(s32(fd))
        return 0

    def sys_umask(self, mask: int, *_: int) -> int:
        return self._files.umask(s32(mask))

    # ---- links

    def sys_readlink(self, path: int, buffer: int, size: int, *_: int) -> int:
        return self._read_link(fl.AT_FDCWD, path, buffer, size)

    def sys_readlinkat(self, dirfd: int, path: int, buffer: int, size: int, *_: int) -> int:
        return self._read_link(s32(dirfd), path, buffer, size)

    def _read_link(self, dirfd: int, path: int, buffer: int, size: int) -> int:
        if s32(size) <= 0:
            raise Refused(errno.EINVAL, f"a buffer of {s32(size)} bytes")
        target = self._files.readlink(dirfd, self._path(path), s32(size))
        self._cpu.copy_to_user(buffer, target)
        return len(target)

    def sys_symlink(self, target: int, path: int, *_: int) -> int:
        return self.sys_symlinkat(target, fl.AT_FDCWD, path)

    def sys_symlinkat(self, target: int, dirfd: int, path: int, *_: int) -> int:
        self._files.symlink(self._path(target), s32(dirfd), self._path(path))
        return 0

    def sys_link(self, old: int, new: int, *_: int) -> int:
        return self.sys_linkat(fl.AT_FDCWD, old, fl.AT_FDCWD, new, 0)

    def sys_linkat(self, old_dirfd: int, old: int, new_dirfd: int, new: int, flags: int, *_: int) -> int:
        source, target = self._path(old), self._path(new)
        self._files.link(s32(old_dirfd), source, s32(new_dirfd), target, s32(flags))
        return 0

    # ---- making and removing

    def sys_mkdir(self, path: int, mode: int, *_: int) -> int:
        return self.sys_mkdirat(fl.AT_FDCWD, path, mode)

    def sys_mkdirat(self, dirfd: int, path: int, mode: int, *_: int) -> int:
        self._files.mkdir(s32(dirfd), self._path(path), mode & _MODE_T)
        return 0

    def sys_mknod(self, path: int, mode: int, *_: int) -> int:
        return self.sys_mknodat(fl.AT_FDCWD, path, mode)

    def sys_mknodat(self, dirfd: int, path: int, mode: int, *_: int) -> int:
        self._files.mknod(s32(dirfd), self._path(path), mode & _MODE_T)
        return 0

    def sys_unlink(self, path: int, *_: int) -> int:
        self._files.unlink(fl.AT_FDCWD, self._path(path))
        return 0

    def sys_rmdir(self, path: int, *_: int) -> int:
        self._files.rmdir(fl.AT_FDCWD, self._path(path))
        return 0

    def sys_unlinkat(self, dirfd: int, path: int, flags: int, *_: int) -> int:
        if s32(flags) & ~_AT_REMOVEDIR:
            raise Refused(errno.EINVAL, f"flags {u32(flags):#x}")
        remove = self._files.rmdir if flags & _AT_REMOVEDIR else self._files.unlink
        remove(s32(dirfd), self._path(path))
        return 0

    def sys_rename(self, old: int, new: int, *_: int) -> int:
        return self.sys_renameat2(fl.AT_FDCWD, old, fl.AT_FDCWD, new, 0)

    def sys_renameat(self, old_dirfd: int, old: int, new_dirfd: int, new: int, *_: int) -> int:
        return self.sys_renameat2(old_dirfd, old, new_dirfd, new, 0)

    def sys_renameat2(self, old_dirfd: int, old: int, new_dirfd: int, new: int, flags: int, *_: int) -> int:
        source, target = self._path(old), self._path(new)
        self._files.rename(s32(old_dirfd), source, s32(new_dirfd), target, u32(flags))
        return 0
