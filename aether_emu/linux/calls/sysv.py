"""What calls of System V memory, semaphores and queues have in common: struct ipc64_perm, time, memory."""

from __future__ import annotations

import struct

from aether_emu.linux.ipc.identifiers import Memory, Shared
from aether_emu.linux.task.task import Task

PERMISSIONS = "iIIIII"
"""What IPC_SET reads of it: key, uid, gid, creator's uid and gid, mode."""


def permissions(one: Shared) -> bytes:
    """As IPC_STAT tells it: 48 bytes."""
    owners = (one.uid, one.gid, one.creator_uid, one.creator_gid, one.mode)
    return struct.pack("<i5IHHxxxxQQ", one.key, *owners, one.sequence & 0xFFFF, 0, 0, 0)


def seconds(task: Task) -> int:
    """The wall-clock time in s since 1970."""
    return task.process.kernel.clock.realtime_ns // 10**9


def memory(task: Task) -> Memory:
    """What semaphores and messages of a machine may take of the kernel's memory."""
    kernel = task.process.kernel
    if kernel.ipc_memory is None:
        kernel.ipc_memory = Memory(kernel.config.ram)
    return kernel.ipc_memory
