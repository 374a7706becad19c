"""futex(2): waiting at a word of memory until another task says that it changed."""

from __future__ import annotations

import errno

from aether_emu.errors import Refused
from aether_emu.linux.calls.user import read_struct, require_user, s32, u32
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Wait
from aether_emu.waiting import Waiter

_WAIT, _WAKE, _REQUEUE, _CMP_REQUEUE, _WAKE_OP, _WAIT_BITSET, _WAKE_BITSET = 0, 1, 3, 4, 5, 9, 10
_PRIVATE = 128
_FLAGS = _PRIVATE | 256  # and CLOCK_REALTIME
_EVERY_BIT = 0xFFFF_FFFF
_SECOND = 10**9


def sys_futex(
    task: Task, address: int, operation: int, value: int, timeout: int, _second: int, bits: int
) -> int:
    """futex(2): FUTEX_WAIT and FUTEX_WAKE, with bit sets. Requeueing and WAKE_OP find nobody waiting."""
    kind = s32(operation) & ~_FLAGS
    waits = kind in (_WAIT, _WAIT_BITSET)
    seconds, rest = read_struct(task.cpu, timeout, "qq") if waits and timeout else (0, 0)
    if seconds < 0 or not 0 <= rest < _SECOND:
        raise Refused(errno.EINVAL, "no such time")
    if address & 3:
        raise Refused(errno.EINVAL, "a futex is aligned to four bytes")
    require_user(address, 4, task.process.abi.user_end)
    private = bool(operation & _PRIVATE)
    bits = u32(bits) if kind in (_WAIT_BITSET, _WAKE_BITSET) else _EVERY_BIT
    if not bits:
        raise Refused(errno.EINVAL, "no bit is waited for or woken")
    if kind in (_WAKE, _WAKE_BITSET, _REQUEUE, _CMP_REQUEUE, _WAKE_OP):
        if not private:  # a shared one is named by what is mapped there
            read_struct(task.cpu, address, "I")
        return _wake(task, address, s32(value), bits, private) if kind in (_WAKE, _WAKE_BITSET) else 0
    if not waits:
        raise Refused(errno.ENOSYS, f"futex operation {kind}")
    length = seconds * _SECOND + rest
    if timeout and kind == _WAIT_BITSET and task.wait is None:  # an absolute time
        length = max(0, length - task.process.kernel.observe_time())
    deadline = task.deadline(after=length if timeout else None)
    return _wait(task, address, u32(value), deadline, bits, private)


def _wait(task: Task, address: int, value: int, deadline: int | None, bits: int, private: bool) -> int:
    """Wait as long as the word is `value`. Returns 0 once woken, without a look at the word again."""
    if task.wait is not None and task.wait.woken:
        return 0
    if read_struct(task.cpu, address, "I")[0] != value:
        raise Refused(errno.EAGAIN, "the value has changed")
    if task.has_waited_until(deadline):
        raise Refused(errno.ETIMEDOUT, "nobody woke it")
    futexes = task.process.kernel.futexes
    queue = futexes.queue(futexes.key(task.process.mm, address, private=private))
    raise Wait((queue,), "a futex", deadline=deadline, progress=(bits,))


def _wake(task: Task, address: int, most: int, bits: int, private: bool) -> int:
    """Wake up to `most` tasks that wait there for one of `bits`. Returns how many."""
    futexes = task.process.kernel.futexes
    queue = futexes.waiting(futexes.key(task.process.mm, address, private=private))

    def asked(waiter: Waiter) -> bool:
        return isinstance(waiter, Task) and bool(waiter.progress and waiter.progress[0] & bits)

    return 0 if queue is None else queue.wake(max(0, most), asked)
