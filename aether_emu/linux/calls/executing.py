"""execve(2) and execveat(2)."""

from __future__ import annotations

import errno
import struct

from aether_emu.errors import Refused
from aether_emu.linux.calls.arguments import read_optional_path
from aether_emu.linux.calls.user import read_string, s32
from aether_emu.linux.exec.replace import executed_name, replace_program
from aether_emu.linux.exec.stack import room_for_strings
from aether_emu.linux.files import flags as fl
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Unfinished

_LONGEST = 32 * 4096  # MAX_ARG_STRLEN
_MOST = 1 << 20  # addresses: they would not fit, whatever the limit of the stack
_PAGE = 4096


def sys_execve(task: Task, path: int, arguments: int, environment: int, *_: int) -> None:
    _execute(task, fl.AT_FDCWD, path, arguments, environment, 0)


def sys_execveat(
    task: Task, fd: int, path: int, arguments: int, environment: int, flags: int, *_: int
) -> None:
    _execute(task, s32(fd), path, arguments, environment, s32(flags))


def _execute(task: Task, fd: int, path: int, arguments: int, environment: int, flags: int) -> None:
    if not task.progress:
        raise Unfinished(1)  # the CPU gets another address space: not inside its callback
    name = read_optional_path(task, path, flags)
    if not name and not flags & fl.AT_EMPTY_PATH:
        raise Refused(errno.ENOENT, "no name")
    argv, envp = _addresses(task, arguments), _addresses(task, environment)
    room = room_for_strings(task, len(argv), len(envp)) - len(executed_name(fd, name)) - 1
    variables, room = _strings(task, envp, room)
    words, _ = _strings(task, argv, room)
    if flags & ~(fl.AT_EMPTY_PATH | fl.AT_SYMLINK_NOFOLLOW):
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    replace_program(task, fd, name, words or [b""], variables, flags)


def _addresses(task: Task, address: int) -> list[int]:
    """An array of addresses that ends with a null pointer; none at all behind a null pointer itself."""
    found: list[int] = []
    while address:
        room = (_PAGE - address % _PAGE) & ~7 or 8  # never ask for a page that the array may not reach
        piece = struct.unpack(f"<{room // 8}Q", task.cpu.copy_from_user(address, room))
        if 0 in piece:
            return found + list(piece[: piece.index(0)])
        found += piece
        address += room
        if len(found) > _MOST:
            raise Refused(errno.E2BIG, "too many strings")
    return found


def _strings(task: Task, addresses: list[int], room: int) -> tuple[list[bytes], int]:
    """The strings, read from the last to the first as Linux does, and the room that is left then. E2BIG."""
    texts: list[bytes] = []
    for address in reversed(addresses):
        try:
            texts.append(read_string(task.cpu, address, _LONGEST))
        except Refused:
            raise Refused(errno.E2BIG, "a string is too long") from None
        room -= len(texts[-1]) + 1
        if room < 0:
            raise Refused(errno.E2BIG, "arguments and environment take too much of the stack")
    return texts[::-1], room
