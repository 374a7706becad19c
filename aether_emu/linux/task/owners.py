"""Signals to who owns an open file (Linux 6.6: send_sigio in fs/fcntl.c)."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from aether_emu.errors import Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.signal import SignalInfo
from aether_emu.linux.files.ownership import F_OWNER_PGRP, F_OWNER_TID, Owner
from aether_emu.linux.task.process import Member, Process
from aether_emu.linux.task.registry import Registry

_BANDS = (0x41, 0x304, 0x441, 0x8, 0x82, 0x18)
"""The poll(2) events of POLL_IN, POLL_OUT, POLL_MSG, POLL_ERR, POLL_PRI, POLL_HUP."""
_WITH_OWN_CODES = (sig.SIGILL, sig.SIGFPE, sig.SIGSEGV, sig.SIGBUS, sig.SIGTRAP, sig.SIGCHLD, sig.SIGSYS)
"""Signals whose codes mean something else already."""


def receivers(registry: Registry[Process, Member], owner: Owner) -> Iterator[tuple[Process, Member | None]]:
    """The processes that are told, each with the thread of it that is meant, if one is."""
    number = owner.number
    if owner.kind == F_OWNER_PGRP:
        yield from ((process, None) for process in registry.group(number))
        return
    task = registry.tasks.get(number)
    process = task.process if task is not None else registry.processes.get(number)
    if process is not None:
        yield process, task if owner.kind == F_OWNER_TID else None


def tell_owner(registry: Registry[Process, Member], owner: Owner, descriptor: int, reason: int) -> None:
    """Send an owner the signal that it asked for: that `reason` has come to what it knows as `descriptor`.

    A signal other than SIGIO tells which descriptor it is about; what finds no room comes as SIGIO.
    """
    if not owner.number:
        return
    for process, task in list(receivers(registry, owner)):
        who = process.credentials if task is None else task.credentials
        if process.is_over or (owner.euid and not {owner.euid, owner.uid} & {who.suid, who.uid}):
            continue
        if owner.signal:
            code = sig.SI_SIGIO if owner.signal in _WITH_OWN_CODES else reason
            info = SignalInfo(owner.signal, code, value=_BANDS[reason - 1], file=descriptor)
            if _post(process, task, info):
                continue
        _post(process, task, SignalInfo(sig.SIGIO, sig.SI_KERNEL))


def _post(process: Process, task: Member | None, info: SignalInfo) -> bool:
    """Whether there was room for it."""
    try:
        if task is None:
            process.post(info)
        else:
            task.signals.post(info)
    except Refused as refused:
        assert refused.errno == errno.EAGAIN, "nothing else is refused"
        return False
    return True
