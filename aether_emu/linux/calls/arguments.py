"""How the arguments of file calls name files, and how a call waits for one."""

from __future__ import annotations

import errno
from typing import NoReturn

from aether_emu.errors import Refused
from aether_emu.linux.abi.signal import SI_USER, SIGPIPE, SignalInfo
from aether_emu.linux.calls.user import read_string, s32
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import OpenFile, WouldBlock
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Wait


def read_path(task: Task, address: int) -> bytes:
    """A path argument. EFAULT, ENAMETOOLONG; an empty one is the callee's to refuse."""
    return read_string(task.cpu, address)


def read_optional_path(task: Task, address: int, flags: int) -> bytes:
    """A path argument that may be NULL where AT_EMPTY_PATH allows an empty one (Linux 6.11)."""
    return b"" if not address and flags & fl.AT_EMPTY_PATH else read_path(task, address)


def reader(task: Task, fd: int) -> OpenFile:
    """The open file that a call reads from: EBADF if there is none or not for reading."""
    file = task.files.table.file(s32(fd))
    if not file.readable:
        raise Refused(errno.EBADF, f"descriptor {s32(fd)} is not open for reading")
    return file


def writer(task: Task, fd: int) -> OpenFile:
    """The open file that a call writes to: EBADF if there is none or not for writing."""
    file = task.files.table.file(s32(fd))
    if not file.writable:
        raise Refused(errno.EBADF, f"descriptor {s32(fd)} is not open for writing")
    return file


def is_arm64(task: Task) -> bool:
    """Whether the guest's ISA numbers and lays out things its own way."""
    return task.process.abi.isa == "arm64"


def open_flags(task: Task, flags: int) -> int:
    """O_* flags of the guest's ISA in the numbering of `linux.files`."""
    return fl.from_arm64(flags) if is_arm64(task) else flags


def broken_pipe(task: Task) -> None:
    """Nobody reads any more: post SIGPIPE, which is delivered before the program sees EPIPE."""
    process = task.process
    task.signals.post(SignalInfo(SIGPIPE, SI_USER, pid=process.pid, uid=task.credentials.uid))


def wait_for(reason: WouldBlock, done: int = 0) -> NoReturn:
    """Wait for a file that can't move bytes now; `done` bytes of the call are moved already."""
    queues = reason.file.queues(reason.events)
    answer = done or -errno.EINTR
    raise Wait(queues, reason.file.name_of_one, progress=(done,), interrupted=answer)


def untagged(task: Task, address: int) -> int:
    """Linux's untagged_addr: without the tag byte of a pointer to the low half. Only arm64 has one."""
    return address & (1 << 56) - 1 if is_arm64(task) and not address >> 55 & 1 else address
