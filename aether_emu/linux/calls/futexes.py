"""futex(2): waiting at a word of memory until another task says that it changed. Locks are in `pi_futexes`.

Operations, refusals and their order are those of Linux 6.6 (kernel/futex/).
"""

from __future__ import annotations

import errno
import operator
from collections.abc import Callable

from aether_emu.clock import LAST_NS
from aether_emu.errors import Refused
from aether_emu.linux.calls import pi_futexes
from aether_emu.linux.calls.futex_words import move, wake, word
from aether_emu.linux.calls.time import MONOTONIC, REALTIME
from aether_emu.linux.calls.user import read_struct, s32, u32, write_struct
from aether_emu.linux.task.futex import FutexWait
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Restart

_WAIT, _WAKE, _REQUEUE, _CMP_REQUEUE, _WAKE_OP, _LOCK_PI, _UNLOCK_PI, _TRYLOCK_PI = 0, 1, 3, 4, 5, 6, 7, 8
_WAIT_BITSET, _WAKE_BITSET, _WAIT_REQUEUE_PI, _CMP_REQUEUE_PI, _LOCK_PI2 = range(9, 14)
_TIMED = (_WAIT, _LOCK_PI, _LOCK_PI2, _WAIT_BITSET, _WAIT_REQUEUE_PI)
_ON_EITHER_CLOCK = (_WAIT_BITSET, _WAIT_REQUEUE_PI, _LOCK_PI2)
_PRIVATE, _CLOCK_REALTIME = 128, 256
_EVERY_BIT = 0xFFFF_FFFF
_SECOND = 10**9
_SIZE_U32, _MOST_WORDS = 2, 128


def sys_futex(
    task: Task, address: int, operation: int, value: int, timeout: int, second: int, third: int
) -> int:
    """futex(2). Where an operation has no time, `timeout` is a second count."""
    if task.progress and not task.was_stopped:
        return _go_on(task)
    operation = s32(operation)
    command, realtime = operation & ~(_PRIVATE | _CLOCK_REALTIME), bool(operation & _CLOCK_REALTIME)
    deadline = None
    if timeout and command in _TIMED:
        on = REALTIME if realtime or command == _LOCK_PI else MONOTONIC
        deadline = _deadline(task, timeout, None if command == _WAIT else on)
    if realtime and command not in _ON_EITHER_CLOCK:
        raise Refused(errno.ENOSYS, f"futex operation {command} chooses no clock")
    private, value, third = bool(operation & _PRIVATE), u32(value), u32(third)
    if command in (_WAIT, _WAIT_BITSET):
        return _wait(task, address, value, deadline, _EVERY_BIT if command == _WAIT else third, private)
    if command in (_WAKE, _WAKE_BITSET):
        return _wake(task, address, s32(value), _EVERY_BIT if command == _WAKE else third, private)
    if command in (_REQUEUE, _CMP_REQUEUE, _CMP_REQUEUE_PI):
        expected = None if command == _REQUEUE else third
        counts = s32(value), s32(timeout)
        locks = command == _CMP_REQUEUE_PI
        return _requeue(task, (address, second), counts, expected, locks=locks, private=private)
    if command == _WAKE_OP:
        return _wake_op(task, (address, second), (s32(value), s32(timeout)), third, private)
    if command in (_LOCK_PI, _LOCK_PI2, _TRYLOCK_PI):
        return pi_futexes.lock(task, address, deadline, private, trying=command == _TRYLOCK_PI)
    if command == _UNLOCK_PI:
        return pi_futexes.unlock(task, address, private)
    if command == _WAIT_REQUEUE_PI:
        return pi_futexes.wait_to_lock(task, (address, second), value, deadline, private)
    raise Refused(errno.ENOSYS, f"futex operation {command}")


def sys_futex_waitv(
    task: Task, waiters: int, count: int, flags: int, timeout: int, clock: int, *_: int
) -> int:
    """futex_waitv(2): the index of a word that was woken."""
    if task.progress and not task.was_stopped:
        return _go_on(task, tells_index=True)
    count, clock = u32(count), s32(clock)
    if u32(flags) or not 0 < count <= _MOST_WORDS or not waiters:
        raise Refused(errno.EINVAL, f"{count} words")
    deadline = None
    if timeout:
        if clock not in (REALTIME, MONOTONIC):
            raise Refused(errno.EINVAL, f"clock {clock}")
        deadline = _deadline(task, timeout, clock)
    asked = []
    for index in range(count):
        value, address, how, reserved = read_struct(task.cpu, waiters + 24 * index, "QQII")
        if how & ~(_SIZE_U32 | _PRIVATE) or reserved or not how & _SIZE_U32:
            raise Refused(errno.EINVAL, f"flags {how:#x}")
        asked.append((address, u32(value), bool(how & _PRIVATE)))
    words = [word(task, address, private=private) for address, _value, private in asked]
    for address, value, _private in asked:
        _expect(task, address, value)
    if task.has_waited_until(deadline):
        raise Refused(errno.ETIMEDOUT, "the time is over")
    raise FutexWait(
        [each.to_wait() for each in words],
        [each.address for each in words],
        deadline,
        _EVERY_BIT,
        restart=Restart.BY_ACTION,
    )


def _go_on(task: Task, *, tells_index: bool = False) -> int:
    """The call has waited: it was woken, its time is over, or a signal ends it. Memory is not looked at."""
    wait = task.wait
    assert wait is not None, "what has progress has waited"
    if wait.woken:
        return wait.progress[1] if tells_index else 0
    if task.has_waited_until(wait.deadline):
        raise Refused(errno.ETIMEDOUT, "nobody woke it")
    raise wait


def _deadline(task: Task, address: int, clock: int | None) -> int | None:
    """When the wait gives up, in virtual ns; None is never. The time is on `clock`, or from now on."""
    seconds, rest = read_struct(task.cpu, address, "qq")
    if seconds < 0 or not 0 <= rest < _SECOND:
        raise Refused(errno.EINVAL, "no such time")
    length = min(seconds * _SECOND + rest, LAST_NS)
    if clock is not None:
        since_start, machine = task.process.kernel.observe_time(), task.process.kernel.clock
        length = max(0, length - (machine.realtime_ns if clock == REALTIME else since_start))
    return task.deadline(after=length)


def _expect(task: Task, address: int, value: int) -> None:
    if read_struct(task.cpu, address, "I")[0] != value:
        raise Refused(errno.EAGAIN, "the value has changed")


def _wait(task: Task, address: int, value: int, deadline: int | None, bits: int, private: bool) -> int:
    """Wait as long as the word is `value`."""
    if not bits:
        raise Refused(errno.EINVAL, "no bit is waited for")
    at = word(task, address, private=private)
    _expect(task, address, value)
    if task.has_waited_until(deadline):
        raise Refused(errno.ETIMEDOUT, "the time is over")
    raise FutexWait([at.to_wait()], [address], deadline, bits)


def _wake(task: Task, address: int, most: int, bits: int, private: bool) -> int:
    """Wake up to `most` tasks that wait there for one of `bits`. Returns how many."""
    if not bits:
        raise Refused(errno.EINVAL, "no bit is woken")
    return wake(word(task, address, private=private), most, bits)


def _requeue(
    task: Task, addresses: tuple[int, int], counts: tuple[int, int], expected: int | None, *,
    locks: bool, private: bool,
) -> int:  # fmt: skip
    """Wake the first of those that wait at one word and let others wait at a second. How many that were.

    With `locks` the second is a lock: one who waited to get it (`pi_futexes.wait_to_lock`) gets it if it is
    free.
    """
    most, moved = counts
    if most < 0 or moved < 0 or (locks and (addresses[0] == addresses[1] or most != 1)):
        raise Refused(errno.EINVAL, f"{most} to wake, {moved} to move")
    source = word(task, addresses[0], private=private)
    target = word(task, addresses[1], private=private, writes=locks)
    if locks and source.key == target.key:
        raise Refused(errno.EINVAL, "one word under two addresses")
    if expected is not None:
        _expect(task, addresses[0], expected)
    done = 0
    for waiter, wait in source.waiting():
        if done >= most + moved:
            break
        if wait.locks != (target.key if locks else None):
            raise Refused(errno.EINVAL, "it does not wait for that")
        if locks:
            pi_futexes.hand_over(task, waiter, source, addresses[1], target)
        elif done < most:
            wait.woken_by(source.to_wait())
            waiter.wake()
        else:
            move(waiter, wait, source, target)
        done += 1
    return done


_CHANGES: tuple[Callable[[int, int], int], ...] = (
    lambda _old, by: by, operator.add, operator.or_, lambda old, by: old & ~by, operator.xor,
)  # fmt: skip
_COMPARISONS: tuple[Callable[[int, int], bool], ...] = (
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
)  # fmt: skip


def _wake_op(
    task: Task, addresses: tuple[int, int], counts: tuple[int, int], encoded: int, private: bool
) -> int:
    """Change the second word, wake at the first, and at the second too if what it held compares so."""
    first = word(task, addresses[0], private=private)
    second = word(task, addresses[1], private=private, writes=True)
    change, comparison = encoded >> 28 & 7, encoded >> 24 & 15
    by, limit = (s32((encoded >> shift & 0xFFF) << 20) >> 20 for shift in (12, 0))
    if encoded >> 31:  # FUTEX_OP_OPARG_SHIFT
        by = 1 << (by & 31)
    (old,) = read_struct(task.cpu, addresses[1], "i")
    if change >= len(_CHANGES):
        raise Refused(errno.ENOSYS, f"operation {change}")
    write_struct(task.cpu, addresses[1], "I", u32(_CHANGES[change](old, by)))
    if comparison >= len(_COMPARISONS):
        raise Refused(errno.ENOSYS, f"comparison {comparison}")
    woken = wake(first, counts[0], _EVERY_BIT)
    if _COMPARISONS[comparison](old, limit):
        woken += wake(second, counts[1], _EVERY_BIT)
    return woken
