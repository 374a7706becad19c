"""Calls on extended attributes: getxattr(2), setxattr(2), listxattr(2), removexattr(2), their relatives."""

from __future__ import annotations

import errno

from aether_emu.errors import Refused
from aether_emu.linux.calls.arguments import read_path
from aether_emu.linux.calls.user import read_string, s32, u32
from aether_emu.linux.files import xattr
from aether_emu.linux.files.tmp_nodes import TmpNode
from aether_emu.linux.task.task import Task

_NAME_MAX = 255
_SIZE_MAX = 1 << 16


def sys_getxattr(task: Task, path: int, name: int, value: int, size: int, *_: int) -> int:
    return _get(task, _named(task, path, follow=True), name, value, size)


def sys_lgetxattr(task: Task, path: int, name: int, value: int, size: int, *_: int) -> int:
    return _get(task, _named(task, path, follow=False), name, value, size)


def sys_fgetxattr(task: Task, fd: int, name: int, value: int, size: int, *_: int) -> int:
    return _get(task, _opened(task, fd), name, value, size)


def sys_setxattr(task: Task, path: int, name: int, value: int, size: int, flags: int, *_: int) -> int:
    return _set(task, _named(task, path, follow=True), name, value, size, flags)


def sys_lsetxattr(task: Task, path: int, name: int, value: int, size: int, flags: int, *_: int) -> int:
    return _set(task, _named(task, path, follow=False), name, value, size, flags)


def sys_fsetxattr(task: Task, fd: int, name: int, value: int, size: int, flags: int, *_: int) -> int:
    return _set(task, _opened(task, fd), name, value, size, flags)


def sys_removexattr(task: Task, path: int, name: int, *_: int) -> int:
    return _remove(task, _named(task, path, follow=True), name)


def sys_lremovexattr(task: Task, path: int, name: int, *_: int) -> int:
    return _remove(task, _named(task, path, follow=False), name)


def sys_fremovexattr(task: Task, fd: int, name: int, *_: int) -> int:
    return _remove(task, _opened(task, fd), name)


def sys_listxattr(task: Task, path: int, names: int, size: int, *_: int) -> int:
    return _give(task, xattr.names(_named(task, path, follow=True)), names, size)


def sys_llistxattr(task: Task, path: int, names: int, size: int, *_: int) -> int:
    return _give(task, xattr.names(_named(task, path, follow=False)), names, size)


def sys_flistxattr(task: Task, fd: int, names: int, size: int, *_: int) -> int:
    return _give(task, xattr.names(_opened(task, fd)), names, size)


def _named(task: Task, path: int, *, follow: bool) -> TmpNode | None:
    return task.files.with_attributes(read_path(task, path), follow=follow)


def _opened(task: Task, fd: int) -> TmpNode | None:
    return task.files.open_with_attributes(s32(fd))


def _get(task: Task, node: TmpNode | None, name: int, value: int, size: int) -> int:
    return _give(task, xattr.get(node, _read_name(task, name)), value, size)


def _set(task: Task, node: TmpNode | None, name: int, value: int, size: int, flags: int) -> int:
    flags = u32(flags)
    if flags & ~(xattr.XATTR_CREATE | xattr.XATTR_REPLACE):
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    wanted = _read_name(task, name)
    if size > _SIZE_MAX:
        raise Refused(errno.E2BIG, f"an attribute of {size} bytes")
    xattr.put(node, wanted, task.cpu.copy_from_user(value, size) if size else b"", flags)
    return 0


def _remove(task: Task, node: TmpNode | None, name: int) -> int:
    xattr.remove(node, _read_name(task, name))
    return 0


def _read_name(task: Task, name: int) -> bytes:
    try:
        text = read_string(task.cpu, name, _NAME_MAX + 1)
    except Refused:
        text = b""
    if not text:
        raise Refused(errno.ERANGE, "an attribute's name has 1 to 255 bytes")
    return text


def _give(task: Task, answer: bytes, where: int, size: int) -> int:
    """Copy it out; a size of 0 asks only how long it is."""
    if size:
        if size < len(answer):
            raise Refused(errno.ERANGE, f"{len(answer)} bytes are needed")
        task.cpu.copy_to_user(where, answer)
    return len(answer)
