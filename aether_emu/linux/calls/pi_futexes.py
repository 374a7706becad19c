"""Locks of futex(2) with priority inheritance: the kernel knows the owner, whose id the word holds.

    word   bits 0 to 29   the owner's thread id, 0 if nobody has it
           bit 30         the owner died with it
           bit 31         somebody waits, so that unlocking takes a system call

Unlocking hands the lock to who waits longest: all priorities are the same here.
"""

from __future__ import annotations

import errno

from aether_emu.errors import Refused
from aether_emu.linux.calls.futex_words import Word, move, word
from aether_emu.linux.calls.user import read_struct, write_struct
from aether_emu.linux.task.futex import OWNER, OWNER_DIED, WAITERS, FutexWait
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Restart

_EVERY_BIT = 0xFFFF_FFFF


def lock(task: Task, address: int, deadline: int | None, private: bool, *, trying: bool) -> int:
    """FUTEX_LOCK_PI, FUTEX_LOCK_PI2, FUTEX_TRYLOCK_PI: become the owner, or wait for that."""
    at = word(task, address, private=private, writes=True)
    if _take(task, task, address, at):
        return 0
    if trying:
        raise Refused(errno.EAGAIN, "somebody else has the lock")
    if task.has_waited_until(deadline):
        raise Refused(errno.ETIMEDOUT, "the time is over")
    raise FutexWait([at.to_lock()], [at.address], deadline, _EVERY_BIT, locks=at.key, restart=Restart.ALWAYS)


def _take(task: Task, taker: Task, address: int, at: Word) -> bool:
    """Give `taker` a lock that nobody has. If another has it, the word says that somebody waits from now on.

    EDEADLK if the taker has it, ESRCH if no task is the owner.
    """
    (value,) = read_struct(task.cpu, address, "I")
    owner = value & OWNER
    if owner == taker.tid:
        raise Refused(errno.EDEADLK, "it has the lock already")
    if not owner and next(at.waiting(), None) is None:
        write_struct(task.cpu, address, "I", value & OWNER_DIED | taker.tid)
        return True
    write_struct(task.cpu, address, "I", value | WAITERS)
    if owner not in task.process.registry.tasks and all(other.tid != owner for other in task.process.tasks):
        raise Refused(errno.ESRCH, f"no task {owner} has the lock")
    return False


def unlock(task: Task, address: int, private: bool) -> int:
    """FUTEX_UNLOCK_PI. EPERM if another has it."""
    (value,) = read_struct(task.cpu, address, "I")
    if value & OWNER != task.tid:
        raise Refused(errno.EPERM, "another has the lock")
    for waiter, _wait in word(task, address, private=private, writes=True).waiting():
        write_struct(task.cpu, address, "I", WAITERS | waiter.tid)
        waiter.wake()
        return 0
    write_struct(task.cpu, address, "I", 0)
    return 0


def wait_to_lock(
    task: Task, addresses: tuple[int, int], value: int, deadline: int | None, private: bool
) -> int:
    """FUTEX_WAIT_REQUEUE_PI: wait at the first word until somebody has it own the lock at the second."""
    if addresses[0] == addresses[1]:
        raise Refused(errno.EINVAL, "one word is no condition and lock")
    locked = word(task, addresses[1], private=private, writes=True)
    at = word(task, addresses[0], private=private)
    if read_struct(task.cpu, addresses[0], "I")[0] != value:
        raise Refused(errno.EAGAIN, "the value has changed")
    if at.key == locked.key:
        raise Refused(errno.EINVAL, "one word under two addresses")
    if task.has_waited_until(deadline):
        raise Refused(errno.ETIMEDOUT, "the time is over")
    raise FutexWait(
        [at.to_wait()], [at.address], deadline, _EVERY_BIT, locks=locked.key, restart=Restart.ALWAYS
    )


def hand_over(task: Task, waiter: Task, source: Word, address: int, locked: Word) -> None:
    """FUTEX_CMP_REQUEUE_PI: `waiter` gets the lock at `address` if nobody has it, else it waits for it."""
    assert isinstance(waiter.wait, FutexWait), "it waits at a word"
    if _take(task, waiter, address, locked):
        waiter.wake()
    else:
        move(waiter, waiter.wait, source, locked)
