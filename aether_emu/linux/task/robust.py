"""What a thread leaves behind: locks that it held are passed on, or marked as their owner's who died.

    struct robust_list_head    first entry, offset from an entry to its lock's word, entry that is about to be
                               linked or unlinked
    an entry                   the next one; bit 0 says that its lock inherits priorities

The program keeps the list (set_robust_list(2)); the kernel walks it when the thread ends, and believes
nothing in it: an address that cannot be read ends the walk (Linux: exit_robust_list).
"""

from __future__ import annotations

import struct
from contextlib import suppress

from aether_emu.linux.task.futex import OWNER, OWNER_DIED, WAITERS, FutexWait
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import UserFault
from aether_emu.mm.objects.protocol import NotReady
from aether_emu.mm.user import UserMemory

_MOST = 2048  # ROBUST_LIST_LIMIT
_HEAD = "<QqQ"


def leave_locks(task: Task) -> None:
    """Let go of everything that `task` holds: it ends, or executes another program."""
    head, _length = task.robust_list
    task.robust_list = (0, 0)
    if head:
        with suppress(UserFault, NotReady):
            _walk(task, head)
    _leave_inheriting(task)


def _walk(task: Task, head: int) -> None:
    memory = UserMemory(task.process.mm)
    entry, offset, pending = struct.unpack(_HEAD, memory.read(head, 24))
    left = _MOST
    try:
        while entry & ~1 != head and left:
            (following,) = struct.unpack("<Q", memory.read(entry & ~1, 8))
            if entry & ~1 != pending & ~1:
                _leave(task, memory, (entry & ~1) + offset, inherits=bool(entry & 1), pending=False)
            entry, left = following, left - 1
    finally:
        if pending & ~1:
            _leave(task, memory, (pending & ~1) + offset, inherits=bool(pending & 1), pending=True)


def _leave(task: Task, memory: UserMemory, address: int, *, inherits: bool, pending: bool) -> None:
    """Mark the lock whose word is at `address`, if it is the task's, and wake one who waits for it."""
    address &= (1 << 64) - 1
    if address & 3:
        raise UserFault(f"{address:#x} is no word")
    (value,) = struct.unpack("<I", memory.read(address, 4))
    if pending and not inherits and not value:  # unlocked already, but nobody was woken yet
        _wake_one(task, address)
    elif value & OWNER == task.tid:
        memory.write(address, struct.pack("<I", value & WAITERS | OWNER_DIED))
        if value & WAITERS and not inherits:
            _wake_one(task, address)


def _wake_one(task: Task, address: int) -> None:
    futexes = task.process.kernel.futexes
    queue = futexes.waiting(futexes.key(task.process.mm, address, private=False))
    for waiter in queue or ():
        if isinstance(waiter, Task) and isinstance(waiter.wait, FutexWait):
            if queue is not None:
                waiter.wait.woken_by(queue)
            waiter.wake()
            break


def _leave_inheriting(task: Task) -> None:
    """Locks with priority inheritance that others wait for go to who waits longest (exit_pi_state_list)."""
    for queue in task.process.kernel.futexes.locks():
        waiters = [each for each in queue if isinstance(each, Task) and isinstance(each.wait, FutexWait)]
        if not waiters:
            continue
        heir = waiters[0]
        assert isinstance(heir.wait, FutexWait), "chosen so"
        memory, address = UserMemory(heir.process.mm), heir.wait.addresses[0]
        with suppress(UserFault, NotReady):
            (value,) = struct.unpack("<I", memory.read(address, 4))
            if (
                heir.wait.locks is None
                or value & OWNER not in (task.tid, 0)
                or not value & (OWNER | OWNER_DIED)
            ):
                continue
            more = WAITERS if len(waiters) > 1 else 0
            memory.write(address, struct.pack("<I", heir.tid | OWNER_DIED | more))
            heir.wake()
