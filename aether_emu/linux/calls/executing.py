"""execve(2) and execveat(2)."""

from __future__ import annotations

import errno

from aether_emu.errors import Refused
from aether_emu.linux.calls.arguments import read_optional_path, read_path
from aether_emu.linux.calls.user import read_string, read_struct, s32
from aether_emu.linux.exec.replace import replace_program
from aether_emu.linux.files import flags as fl
from aether_emu.linux.task.process import RLIMIT_STACK
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Unfinished

_LONGEST = 32 * 4096  # MAX_ARG_STRLEN
_LARGEST = 6 << 20  # three quarters of _STK_LIM
_LEAST = 128 << 10  # ARG_MAX


def sys_execve(task: Task, path: int, arguments: int, environment: int, *_: int) -> None:
    _execute(task, fl.AT_FDCWD, path, arguments, environment, 0)


def sys_execveat(
    task: Task, fd: int, path: int, arguments: int, environment: int, flags: int, *_: int
) -> None:
    _execute(task, s32(fd), path, arguments, environment, s32(flags))


def _execute(task: Task, fd: int, path: int, arguments: int, environment: int, flags: int) -> None:
    if flags & ~(fl.AT_EMPTY_PATH | fl.AT_SYMLINK_NOFOLLOW):
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    if not task.progress:
        raise Unfinished(1)  # the CPU gets another address space: not inside its callback
    name = read_optional_path(task, path, flags) if flags else read_path(task, path)
    argv, envp = _strings(task, arguments), _strings(task, environment)
    most = max(min(task.process.limits[RLIMIT_STACK][0] // 4, _LARGEST), _LEAST)
    if sum(len(text) + 1 for text in (*argv, *envp)) + 8 * (len(argv) + len(envp)) > most:
        raise Refused(errno.E2BIG, f"arguments and environment take more than {most} bytes")
    replace_program(task, fd, name, argv or [b""], envp, flags)


def _strings(task: Task, address: int) -> list[bytes]:
    """An array of strings that ends with a null pointer; none at all behind a null pointer itself."""
    texts: list[bytes] = []
    while address:
        (pointer,) = read_struct(task.cpu, address, "Q")
        if not pointer:
            break
        try:
            texts.append(read_string(task.cpu, pointer, _LONGEST))
        except Refused:
            raise Refused(errno.E2BIG, "a string is too long") from None
        address += 8
        if len(texts) > _LARGEST // 8:
            raise Refused(errno.E2BIG, "too many strings")
    return texts
