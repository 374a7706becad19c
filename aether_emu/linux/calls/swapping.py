"""swapon(2) and swapoff(2), of the one swap area that a machine has.

It goes off when all its pages have a place in memory again. The order of refusals is Linux 6.6's
(mm/swapfile.c).
"""

from __future__ import annotations

import errno

from aether_emu.errors import Refused
from aether_emu.linux.calls.arguments import read_path
from aether_emu.linux.calls.user import s32
from aether_emu.linux.credentials import SYS_ADMIN
from aether_emu.linux.files import flags as fl
from aether_emu.linux.task.task import Task
from aether_emu.mm.swap.area import SwapArea
from aether_emu.mm.swap.off import switch_off

_PRIORITY, _PREFER, _DISCARD, _DISCARD_ONCE, _DISCARD_PAGES = 0x7FFF, 0x8000, 0x10000, 0x20000, 0x40000
_FLAGS = _PRIORITY | _PREFER | _DISCARD | _DISCARD_ONCE | _DISCARD_PAGES


def _named(task: Task, path: int) -> SwapArea:
    """The area that a call names."""
    if not task.credentials.has(SYS_ADMIN):
        raise Refused(errno.EPERM, "not for who has no CAP_SYS_ADMIN")
    name, swap = read_path(task, path), task.process.kernel.physical.swap
    if swap is not None and name == swap.name.encode():
        return swap
    task.files.stat(fl.AT_FDCWD, name)  # ENOENT and its kin
    raise Refused(errno.EINVAL, "that is no swap area")


def sys_swapoff(task: Task, path: int, *_: int) -> int:
    swap = _named(task, path)
    if not swap.on:
        raise Refused(errno.EINVAL, "it is off")
    if not switch_off(task.process.kernel.physical, swap, task.checkpoint):
        raise Refused(errno.ENOMEM, "memory does not hold what is in it")
    return 0


def sys_swapon(task: Task, path: int, flags: int, *_: int) -> int:
    if s32(flags) & ~_FLAGS:
        raise Refused(errno.EINVAL, "unknown flags")
    swap = _named(task, path)
    if swap.on:
        raise Refused(errno.EBUSY, "it is on")
    swap.on = True
    return 0
