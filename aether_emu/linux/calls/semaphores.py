"""System V semaphores: semget(2), semop(2), semctl(2), in the order of Linux 6.6 (ipc/sem.c)."""

from __future__ import annotations

import errno
import struct

from aether_emu.errors import Refused
from aether_emu.linux.calls.arguments import is_arm64
from aether_emu.linux.calls.sysv import PERMISSIONS, permissions
from aether_emu.linux.calls.user import read_struct, s32, u32, write_struct
from aether_emu.linux.ipc import semaphores as sem
from aether_emu.linux.ipc.identifiers import NO_WAIT
from aether_emu.linux.ipc.semaphores import Operation, SemaphoreSet, SemaphoreSets, SemaphoreWait
from aether_emu.linux.ipc.undo import Undo
from aether_emu.linux.task.task import Task

_REMOVE, _SET, _STAT, _INFO = 0, 1, 2, 3
_GETPID, _GETVAL, _GETALL, _GETNCNT, _GETZCNT, _SETVAL, _SETALL = range(11, 18)
_STAT_AT, _USAGE, _STAT_ANY = 18, 19, 20
_READABLE, _WRITABLE = 0o444, 0o222
_OPERATION = struct.Struct("<Hhh")


def _sets(task: Task) -> SemaphoreSets:
    return task.process.kernel.with_system_v().semaphores


def sys_semget(task: Task, key: int, size: int, flags: int, *_: int) -> int:
    key, size, flags, sets = s32(key), s32(size), s32(flags), _sets(task)
    if not 0 <= size <= sem.MOST_IN_A_SET:
        raise Refused(errno.EINVAL, f"a set of {size}")

    def check(found: SemaphoreSet) -> None:
        if size > len(found.values):
            raise Refused(errno.EINVAL, f"the set has {len(found.values)}")

    return sets.get(key, flags, lambda: sets.make(key, size, flags), check).identifier


def sys_semop(task: Task, number: int, operations: int, count: int, *_: int) -> int:
    return sys_semtimedop(task, number, operations, count, 0)


def sys_semtimedop(task: Task, number: int, operations: int, count: int, timeout: int, *_: int) -> int:
    wait = task.wait
    if isinstance(wait, SemaphoreWait):
        return _go_on(task, wait)
    limit = read_struct(task.cpu, timeout, "qq") if timeout else None
    count = u32(count)
    if count > sem.MOST_OPERATIONS:
        raise Refused(errno.E2BIG, f"{count} operations")
    if not count or s32(number) < 0:
        raise Refused(errno.EINVAL, "no operations, or a negative number")
    raw = task.cpu.copy_from_user(operations, count * _OPERATION.size)
    wanted = [Operation(*each) for each in _OPERATION.iter_unpack(raw)]
    if limit is not None and (limit[0] < 0 or not 0 <= limit[1] < 10**9):
        raise Refused(errno.EINVAL, f"a timeout of {limit[0]} s and {limit[1]} ns")
    deadline = task.deadline(after=None if limit is None else limit[0] * 10**9 + limit[1])
    found = _sets(task).numbered(s32(number))
    if max(operation.number for operation in wanted) >= len(found.values):
        raise Refused(errno.EFBIG, f"the set has {len(found.values)}")
    found.require(_WRITABLE if any(operation.change for operation in wanted) else _READABLE)
    undo = _undo(task) if any(operation.flags & sem.UNDO for operation in wanted) else None
    pid = task.process.pid
    blocking = found.perform(wanted, pid, undo)
    if blocking is None:
        return 0
    if blocking.flags & NO_WAIT or task.has_waited_until(deadline):
        raise Refused(errno.EAGAIN, f"semaphore {blocking.number} has not the value that is wanted")
    raise SemaphoreWait(task, pid, found, wanted, blocking, undo, deadline)


def _go_on(task: Task, wait: SemaphoreWait) -> int:
    """The result of operations that were waited for, unless they are waited for still."""
    if wait.status is not None:
        return wait.status
    if task.has_waited_until(wait.deadline) and not task.signals.interrupts():
        raise Refused(errno.EAGAIN, "the timeout is over")
    raise wait


def _undo(task: Task) -> Undo:
    if task.undo is None:
        task.undo = Undo()
    return task.undo


def sys_semctl(task: Task, number: int, at: int, command: int, argument: int, *_: int) -> int:
    number, at, command, sets = s32(number), s32(at), s32(command), _sets(task)
    if number < 0:
        raise Refused(errno.EINVAL, "a negative number")
    if command in (_INFO, _USAGE):
        return _limits(task, sets, argument, used=command == _USAGE)
    if command in (_STAT, _STAT_AT, _STAT_ANY):
        return _tell(task, sets, number, command, argument)
    if command in (_SET, _REMOVE):
        wanted = read_struct(task.cpu, argument, PERMISSIONS) if command == _SET else ()
        found = sets.numbered(number)
        found.require_owner()
        if command == _REMOVE:
            found.destroy()
        else:
            found.change(wanted[1], wanted[2], wanted[5], sets.now())
        return 0
    if command == _SETVAL:
        return _set_value(task, sets, number, at, s32(argument))
    if not _GETPID <= command <= _SETALL:
        raise Refused(errno.EINVAL, f"no command {command}")
    found = sets.numbered(number)
    found.require(_WRITABLE if command == _SETALL else _READABLE)
    if command == _GETALL:
        task.cpu.copy_to_user(argument, struct.pack(f"<{len(found.values)}H", *found.values))
        return 0
    if command == _SETALL:
        values = struct.unpack(
            f"<{len(found.values)}H", task.cpu.copy_from_user(argument, 2 * len(found.values))
        )
        if max(values) > sem.HIGHEST:
            raise Refused(errno.ERANGE, f"a value of {max(values)}")
        found.set_values(dict(enumerate(values)), task.process.pid)
        return 0
    _require_member(found, at)
    if command == _GETVAL:
        return found.values[at]
    if command == _GETPID:
        return found.changers[at]
    return found.count_waiting(at, for_zero=command == _GETZCNT)


def _require_member(found: SemaphoreSet, at: int) -> None:
    if not 0 <= at < len(found.values):
        raise Refused(errno.EINVAL, f"no semaphore {at} of {len(found.values)}")


def _set_value(task: Task, sets: SemaphoreSets, number: int, at: int, value: int) -> int:
    if not 0 <= value <= sem.HIGHEST:
        raise Refused(errno.ERANGE, f"a value of {value}")
    found = sets.numbered(number)
    _require_member(found, at)
    found.require(_WRITABLE)
    found.set_values({at: value}, task.process.pid)
    return 0


def _limits(task: Task, sets: SemaphoreSets, address: int, *, used: bool) -> int:
    """struct seminfo."""
    most, in_all, operations = sem.MOST_SETS, sem.MOST_IN_ALL, sem.MOST_OPERATIONS
    last = (len(sets), sem.HIGHEST, sets.used) if used else (20, sem.HIGHEST, sem.HIGHEST)
    limits = (in_all, most, in_all, in_all, sem.MOST_IN_A_SET, operations, operations)
    write_struct(task.cpu, address, "10i", *limits, *last)
    return sets.highest


def _tell(task: Task, sets: SemaphoreSets, number: int, command: int, address: int) -> int:
    """struct semid64_ds, which has room for later on x86_64 (Linux: asm/sembuf.h)."""
    found = sets.numbered(number) if command == _STAT else sets.at(number)
    if command != _STAT_ANY:
        found.require(_READABLE)
    layout = "<qqQ16x" if is_arm64(task) else "<q8xq8xQ16x"
    rest = struct.pack(layout, found.operation_time, found.change_time, len(found.values))
    task.cpu.copy_to_user(address, permissions(found) + rest)
    return 0 if command == _STAT else found.identifier
