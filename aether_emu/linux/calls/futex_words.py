"""The words of memory that futex(2) names: who waits at one, and waking or moving them."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from aether_emu.errors import Refused
from aether_emu.linux.calls.user import read_struct, require_user, write_struct
from aether_emu.linux.task.futex import Futexes, FutexWait, Key
from aether_emu.linux.task.task import Task
from aether_emu.records import dataclass
from aether_emu.waiting import WaitQueue


@dataclass(frozen=True, slots=True)
class Word:
    """A word by its key, and by its address in the memory of who makes the call."""

    futexes: Futexes
    key: Key
    address: int

    def to_wait(self) -> WaitQueue:
        """The queue to wait in."""
        return self.futexes.queue(self.key)

    def to_lock(self) -> WaitQueue:
        """The queue to wait in for a lock that the kernel passes on."""
        return self.futexes.lock_queue(self.key)

    def waiting(self) -> Iterator[tuple[Task, FutexWait]]:
        """Who waits there, the longest-waiting first."""
        for waiter in self.futexes.waiting(self.key) or ():
            if isinstance(waiter, Task) and isinstance(waiter.wait, FutexWait):
                yield waiter, waiter.wait


def word(task: Task, address: int, *, private: bool, writes: bool = False) -> Word:
    """The word at an address. EINVAL if it is not aligned, EFAULT outside the user half.

    A shared one is named by what is mapped there: EFAULT if that cannot be read, or written if it `writes`.
    """
    if address & 3:
        raise Refused(errno.EINVAL, "a futex is aligned to four bytes")
    require_user(address, 4, task.process.abi.user_end)
    if not private:
        value = read_struct(task.cpu, address, "I")
        if writes:
            write_struct(task.cpu, address, "I", *value)
    futexes = task.process.kernel.futexes
    return Word(futexes, futexes.key(task.process.mm, address, private=private), address)


def wake(word: Word, most: int, bits: int) -> int:
    """Wake the first `most` that wait there for one of `bits`: at least one, as Linux. Returns how many.

    EINVAL when one of them waits for a lock.
    """
    woken = 0
    for waiter, wait in word.waiting():
        if wait.locks is not None:
            raise Refused(errno.EINVAL, "a lock is unlocked, not woken")
        if not wait.bits & bits:
            continue
        wait.woken_by(word.to_wait())
        waiter.wake()
        woken += 1
        if woken >= most:
            break
    return woken


def move(waiter: Task, wait: FutexWait, source: Word, target: Word) -> None:
    """Let a task that waits at `source` wait at `target` instead."""
    before = source.to_wait()
    after = target.to_wait() if wait.locks is None else target.to_lock()
    before.remove(waiter)
    wait.move(before, after, target.address)
    waiter.begins_to_wait()
    after.add(waiter)
