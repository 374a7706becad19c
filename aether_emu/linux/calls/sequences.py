"""membarrier(2) and rseq(2): memory that threads share without locks.

CPUs work one at a time, and see each other's stores at once: every switch is a barrier. What a program
registers here is checked and kept as Linux 6.6 does.
"""

from __future__ import annotations

import errno

from aether_emu.errors import Refused
from aether_emu.linux.calls.user import require_user, s32, u32, write_struct
from aether_emu.linux.task.sequences import Sequences
from aether_emu.linux.task.task import Task

_QUERY, _GLOBAL, _REGISTRATIONS = 0, 1, 0x200
_USES = {0x02: 0x04, 0x08: 0x10, 0x20: 0x40, 0x80: 0x100}  # command -> the one that registers for it
_ALL = 0x3FF
_ANYBODY = 2  # MEMBARRIER_CMD_GLOBAL_EXPEDITED needs no registration of its caller
_OF_RSEQ, _ON_CPU = 0x80, 1
_UNREGISTER = 1
_SIZE, _ALIGNED = 32, 32


def sys_membarrier(task: Task, command: int, flags: int, *_: int) -> int:
    command, flags, process = s32(command), u32(flags), task.process
    if flags and (command != _OF_RSEQ or flags != _ON_CPU):
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    if command == _QUERY:
        return _ALL
    if command == _REGISTRATIONS:
        return process.barriers
    if command in _USES.values():
        process.barriers |= command
    elif command in _USES:
        if command != _ANYBODY and not process.barriers & _USES[command]:
            raise Refused(errno.EPERM, "the process has not registered for it")
    elif command != _GLOBAL:
        raise Refused(errno.EINVAL, f"no command {command}")
    return 0


def sys_rseq(task: Task, address: int, length: int, flags: int, signature: int, *_: int) -> int:
    length, flags, signature = u32(length), s32(flags), u32(signature)
    present = task.sequences
    if flags & _UNREGISTER:
        _unregister(task, address, length, flags, signature)
        return 0
    if flags:
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    if present is not None:
        if (address, length) != (present.address, present.length):
            raise Refused(errno.EINVAL, "another place is registered")
        if signature != present.signature:
            raise Refused(errno.EPERM, "another signature is registered")
        raise Refused(errno.EBUSY, "it is registered")
    if length < _SIZE or address % _ALIGNED:
        raise Refused(errno.EINVAL, "too short, or not aligned")
    require_user(address, length, task.process.abi.user_end)
    task.sequences = Sequences(address, length, signature)
    task.tell_home()
    return 0


def _unregister(task: Task, address: int, length: int, flags: int, signature: int) -> None:
    present = task.sequences
    if flags & ~_UNREGISTER or present is None or (address, length) != (present.address, present.length):
        raise Refused(errno.EINVAL, "it is not registered")
    if signature != present.signature:
        raise Refused(errno.EPERM, "another signature is registered")
    write_struct(task.cpu, address, "II", 0, 0xFFFF_FFFF)
    write_struct(task.cpu, address + 20, "II", 0, 0)
    task.sequences = None
