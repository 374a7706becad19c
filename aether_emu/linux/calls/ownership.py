"""fcntl(2) with F_SETOWN, F_SETSIG and their relatives: who is told by a signal that a file may be ready.

What tells, and whom, is in `files.ownership` and `task.owners`. Rules are those of Linux 6.6 (fs/fcntl.c).
"""

from __future__ import annotations

import errno
from functools import partial

from aether_emu.errors import Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.calls.terminals import terminal_of
from aether_emu.linux.calls.user import read_struct, s32, write_struct
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.files.ownership import F_OWNER_PGRP, F_OWNER_PID, F_OWNER_TID, Owner
from aether_emu.linux.task.owners import receivers, tell_owner
from aether_emu.linux.task.task import Task

_F_SETOWN, _F_GETOWN, _F_SETSIG, _F_GETSIG = 8, 9, 10, 11
_F_SETOWN_EX, _F_GETOWN_EX, _F_GETOWNER_UIDS = 15, 16, 17
_SETTING = (0x8901, 0x8902)  # FIOSETOWN, SIOCSPGRP
_LOWEST = -(1 << 31)


def control(task: Task, file: OpenFile, command: int, argument: int) -> int:
    """fcntl(2) with one of `descriptors.OWNERSHIP`."""
    owner = _owner(task, file)
    if command == _F_SETOWN:
        _own(task, owner, s32(argument))
    elif command == _F_GETOWN:
        return _shown(task, owner)
    elif command == _F_SETSIG:
        if not 0 <= s32(argument) <= sig.SIGNALS:
            raise Refused(errno.EINVAL, f"no signal {s32(argument)}")
        owner.signal = s32(argument)
    elif command == _F_GETSIG:
        return owner.signal
    elif command == _F_SETOWN_EX:
        kind, number = read_struct(task.cpu, argument, "ii")
        if kind not in (F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP):
            raise Refused(errno.EINVAL, f"no kind of owner {kind}")
        _set(task, owner, kind, number)
    elif command == _F_GETOWN_EX:
        write_struct(task.cpu, argument, "ii", owner.kind, abs(_shown(task, owner)))
    else:
        assert command == _F_GETOWNER_UIDS, "there are no others"
        write_struct(task.cpu, argument, "II", owner.uid, owner.euid)
    return 0


def control_socket(task: Task, file: OpenFile, request: int, argument: int) -> int:
    """ioctl(2) with one of `descriptors.SOCKET_OWNERSHIP`."""
    owner = _owner(task, file)
    if request in _SETTING:
        _own(task, owner, read_struct(task.cpu, argument, "i")[0])
    else:
        write_struct(task.cpu, argument, "i", _shown(task, owner))
    return 0


def own_terminal(task: Task, file: OpenFile) -> None:
    """Who is in front at a terminal owns it, or who asks, unless somebody was named already."""
    owner, foreground = _owner(task, file), terminal_of(file).foreground
    if not owner.number:
        number = foreground or task.process.pid
        _set(task, owner, F_OWNER_PGRP if foreground else F_OWNER_PID, number)


def _owner(task: Task, file: OpenFile) -> Owner:
    if file.owner is None:
        file.owner = Owner(partial(tell_owner, task.process.registry))
    return file.owner


def _own(task: Task, owner: Owner, who: int) -> None:
    """A process, or a group by a negative number; 0 is nobody."""
    if who == _LOWEST:
        raise Refused(errno.EINVAL, "no group has that number")
    _set(task, owner, F_OWNER_PGRP if who < 0 else F_OWNER_PID, abs(who))


def _set(task: Task, owner: Owner, kind: int, number: int) -> None:
    if number and not (number > 0 and task.process.registry.is_used(number)):
        raise Refused(errno.ESRCH, f"nobody has the number {number}")
    owner.become(kind, number, task.credentials.uid, task.credentials.euid)


def _shown(task: Task, owner: Owner) -> int:
    """Its number while there is such a one, that of a group below 0."""
    registry, number = task.process.registry, owner.number
    if owner.kind == F_OWNER_PGRP:
        return -number if any(receivers(registry, owner)) else 0
    there = number in registry.processes or (owner.kind == F_OWNER_TID and number in registry.tasks)
    return number if there else 0
