"""How tasks share the CPU: sched_*(2), nice values, the CPU's number. There is one CPU.

Refusals and their order are Linux 6.6's (kernel/sched/core.c, kernel/sys.c).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import replace

from aether_emu.errors import Refused
from aether_emu.linux.calls.user import read_struct, s32, u32, write_struct
from aether_emu.linux.credentials import SYS_NICE
from aether_emu.linux.task import scheduling as sd
from aether_emu.linux.task.resource_limits import RLIMIT_NICE, RLIMIT_RTPRIO
from aether_emu.linux.task.scheduling import Scheduling
from aether_emu.linux.task.task import Task

_RESET_ON_FORK = 0x4000_0000
_RESETS, _KEEP_POLICY, _KEEP_PARAMETERS = 0x01, 0x08, 0x10  # SCHED_FLAG_*
_KNOWN_FLAGS, _CLAMPS = 0x7F, 0x60
_PROCESS, _GROUP, _USER = range(3)
_SMALLEST, _LARGEST, _ATTRIBUTES = 48, 4096, "IIQiIQQQII"
_MOST = 99
_SHORTEST_RUN, _SHORTEST_PERIOD, _LONGEST_PERIOD = 1 << 10, 100_000, (1 << 22) * 1000  # ns
_TIMESLICE = 100_000_000  # of SCHED_RR, in ns


def _find(task: Task, tid: int) -> Task:
    """The task of a number, 0 is the caller. ESRCH."""
    tid = s32(tid)
    found = task.process.registry.tasks.get(tid) if tid else task
    if not isinstance(found, Task) or found.is_over:
        raise Refused(errno.ESRCH, f"no task {tid}")
    return found


# ---- policies


def sys_sched_yield(task: Task, *_: int) -> int:
    task.yield_cpu()
    return 0


def sys_sched_getscheduler(task: Task, tid: int, *_: int) -> int:
    if s32(tid) < 0:
        raise Refused(errno.EINVAL, "a negative number")
    how = _find(task, tid).scheduling
    return how.policy | (_RESET_ON_FORK if how.resets else 0)


def sys_sched_setscheduler(task: Task, tid: int, policy: int, parameters: int, *_: int) -> int:
    if s32(policy) < 0:
        raise Refused(errno.EINVAL, "a negative policy")
    return _set_policy(task, tid, u32(policy), parameters)


def sys_sched_setparam(task: Task, tid: int, parameters: int, *_: int) -> int:
    return _set_policy(task, tid, None, parameters)


def _set_policy(task: Task, tid: int, policy: int | None, parameters: int) -> int:
    if not parameters or s32(tid) < 0:
        raise Refused(errno.EINVAL, "no parameters, or a negative number")
    (priority,) = read_struct(task.cpu, parameters, "i")
    other = _find(task, tid)
    how = other.scheduling
    if policy is None:
        wanted = replace(how, priority=priority)
    else:
        resets = bool(policy & _RESET_ON_FORK)
        wanted = replace(how, policy=policy & ~_RESET_ON_FORK, priority=priority, resets=resets)
    _change(task, other, wanted)
    return 0


def sys_sched_getparam(task: Task, tid: int, result: int, *_: int) -> int:
    if not result or s32(tid) < 0:
        raise Refused(errno.EINVAL, "nowhere to tell it, or a negative number")
    write_struct(task.cpu, result, "i", _find(task, tid).scheduling.priority)
    return 0


def _is_deadline(runtime: int, deadline: int, period: int) -> bool:
    """Whether these ns are ones by which a task could be scheduled (Linux: __checkparam_dl)."""
    period = period or deadline
    fits = _SHORTEST_RUN <= runtime <= deadline <= period < 1 << 63
    return fits and _SHORTEST_PERIOD <= period <= _LONGEST_PERIOD


def _change(task: Task, other: Task, wanted: Scheduling, times: tuple[int, int, int] = (0, 0, 0)) -> None:
    """Let `other` be scheduled so. EINVAL for what is no policy, or of `times` that are no deadline;
    EPERM, see `_require_right`.
    """
    if wanted.policy not in sd.POLICIES or not 0 <= wanted.priority <= _MOST:
        raise Refused(errno.EINVAL, f"no policy {wanted.policy} with priority {wanted.priority}")
    if (wanted.policy in sd.REAL_TIME) != bool(wanted.priority):
        raise Refused(errno.EINVAL, "real-time policies alone have a priority, and need one")
    if wanted.policy == sd.DEADLINE:
        if not _is_deadline(*times):
            raise Refused(errno.EINVAL, "no run within a deadline within a period")
        raise Refused(errno.EPERM, "there are no deadlines here")
    if not task.credentials.has(SYS_NICE):
        _require_same_owner(task, other)
        _require_right(task, other.scheduling, wanted)
    other.set_scheduling(wanted)


def _require_same_owner(task: Task, other: Task) -> None:
    """EPERM unless it is the caller's user's, or the caller may change everybody's scheduling."""
    who, owner = task.credentials, other.credentials
    if who.euid not in (owner.euid, owner.uid) and not who.has(SYS_NICE):
        raise Refused(errno.EPERM, "another user's task")


def _require_right(task: Task, before: Scheduling, wanted: Scheduling) -> None:
    """EPERM for what an ordinary user cannot ask for."""
    most = task.process.limits[RLIMIT_RTPRIO][0]
    if wanted.policy in sd.REAL_TIME:
        if wanted.policy != before.policy and not most:
            raise Refused(errno.EPERM, "RLIMIT_RTPRIO admits no real-time policy")
        if wanted.priority > before.priority and wanted.priority > most:
            raise Refused(errno.EPERM, f"RLIMIT_RTPRIO admits priority {most} at most")
    elif wanted.nice < before.nice and not _may_be(task, wanted.nice):
        raise Refused(errno.EPERM, "a lower nice value")
    if before.policy == sd.IDLE != wanted.policy and not _may_be(task, before.nice):
        raise Refused(errno.EPERM, "it is only to run when nobody else does")
    if before.resets and not wanted.resets:
        raise Refused(errno.EPERM, "its children are to be ordinary tasks")


def _may_be(task: Task, nice: int) -> bool:
    """Whether RLIMIT_NICE admits a nice value (Linux: can_nice)."""
    return task.credentials.has(SYS_NICE) or sd.MOST_NICE + 1 - nice <= task.process.limits[RLIMIT_NICE][0]


def sys_sched_setattr(task: Task, tid: int, attributes: int, flags: int, *_: int) -> int:
    if not attributes or s32(tid) < 0 or u32(flags):
        raise Refused(errno.EINVAL, "no attributes, a negative number or flags")
    (size,) = read_struct(task.cpu, attributes, "I")
    size = size or _SMALLEST
    known = struct.calcsize("<" + _ATTRIBUTES)
    given = (
        task.cpu.copy_from_user(attributes, size) if _SMALLEST <= size <= _LARGEST else b"\1" * (known + 1)
    )
    if any(given[known:]):
        write_struct(task.cpu, attributes, "I", known)
        raise Refused(errno.E2BIG, "attributes that nobody knows")
    _size, policy, how, nice, priority, *times, _low, _high = struct.unpack(
        "<" + _ATTRIBUTES, given[:known].ljust(known, b"\0")
    )
    if (how & _CLAMPS and size < known) or s32(policy) < 0:
        raise Refused(errno.EINVAL, "no such policy, or no room for what is asked")
    other = _find(task, tid)
    before = other.scheduling
    if how & ~_KNOWN_FLAGS:
        raise Refused(errno.EINVAL, f"flags {how:#x}")
    if how & _CLAMPS:
        raise Refused(errno.EOPNOTSUPP, "the CPU has one speed")
    if how & _KEEP_PARAMETERS:
        nice, priority = before.nice, before.priority
    nice = min(max(nice, sd.LEAST_NICE), sd.MOST_NICE)
    policy = before.policy if how & _KEEP_POLICY else policy
    if policy in sd.REAL_TIME:
        nice = before.nice
    run, deadline, period = times
    wanted = Scheduling(policy, priority, nice, bool(how & _RESETS))
    _change(task, other, wanted, (run, deadline, period))
    return 0


def sys_sched_getattr(task: Task, tid: int, result: int, size: int, flags: int, *_: int) -> int:
    if not result or s32(tid) < 0 or not _SMALLEST <= u32(size) <= _LARGEST or u32(flags):
        raise Refused(errno.EINVAL, "nowhere to tell it, a negative number, a wrong size or flags")
    how = _find(task, tid).scheduling
    size = min(u32(size), struct.calcsize("<" + _ATTRIBUTES))
    nice = 0 if how.policy in sd.REAL_TIME else how.nice
    values = (size, how.policy, _RESETS if how.resets else 0, nice, how.priority, 0, 0, 0, 0, 0)
    task.cpu.copy_to_user(result, struct.pack("<" + _ATTRIBUTES, *values)[:size])
    return 0


def sys_sched_get_priority_max(task: Task, policy: int, *_: int) -> int:
    return _bound(policy, _MOST)


def sys_sched_get_priority_min(task: Task, policy: int, *_: int) -> int:
    return _bound(policy, 1)


def _bound(policy: int, of_real_time: int) -> int:
    if s32(policy) not in sd.POLICIES:
        raise Refused(errno.EINVAL, f"no policy {s32(policy)}")
    return of_real_time if s32(policy) in sd.REAL_TIME else 0


def sys_sched_rr_get_interval(task: Task, tid: int, result: int, *_: int) -> int:
    if s32(tid) < 0:
        raise Refused(errno.EINVAL, "a negative number")
    round_robin = _find(task, tid).scheduling.policy == sd.ROUND_ROBIN
    write_struct(task.cpu, result, "qq", 0, _TIMESLICE if round_robin else 0)
    return 0


# ---- the CPU


def sys_sched_getaffinity(task: Task, tid: int, size: int, result: int, *_: int) -> int:
    size = u32(size)
    if not size or size & 7:
        raise Refused(errno.EINVAL, "a mask has whole words")
    _find(task, tid)
    write_struct(task.cpu, result, "Q", 1)
    return 8


def sys_sched_setaffinity(task: Task, tid: int, size: int, mask: int, *_: int) -> int:
    wanted = task.cpu.copy_from_user(mask, min(u32(size), 8))
    _find(task, tid)
    if not wanted or not wanted[0] & 1:
        raise Refused(errno.EINVAL, "no CPU of the mask exists")
    return 0


def sys_getcpu(task: Task, cpu: int, node: int, *_: int) -> int:
    for address in (cpu, node):
        if address:
            write_struct(task.cpu, address, "I", 0)
    return 0


# ---- nice values


def _those(task: Task, which: int, who: int) -> Iterator[Task]:
    """The tasks that getpriority(2) means. EINVAL."""
    registry, which, who = task.process.registry, s32(which), s32(who)
    if which not in (_PROCESS, _GROUP, _USER):
        raise Refused(errno.EINVAL, "no such target")
    if which == _PROCESS:
        found = [registry.tasks.get(who) if who else task]
    elif which == _GROUP:
        members = registry.group(who or task.process.group)
        found = [each for process in members for each in process.tasks]
    else:
        uid = who & 0xFFFF_FFFF or task.credentials.uid
        found = [each for each in registry.tasks.values() if each.credentials.uid == uid]
    for other in found:
        if isinstance(other, Task) and not other.is_over:
            yield other


def sys_getpriority(task: Task, which: int, who: int, *_: int) -> int:
    """The least nice of them, as 20 less its value, for a result below 0 is an error."""
    levels = [sd.MOST_NICE + 1 - other.scheduling.nice for other in _those(task, which, who)]
    if not levels:
        raise Refused(errno.ESRCH, "there is none")
    return max(levels)


def sys_setpriority(task: Task, which: int, who: int, nice: int, *_: int) -> int:
    nice = min(max(s32(nice), sd.LEAST_NICE), sd.MOST_NICE)
    found = list(_those(task, which, who))
    if not found:
        raise Refused(errno.ESRCH, "there is none")
    refused = False
    for other in found:
        _require_same_owner(task, other)
        if nice < other.scheduling.nice and not _may_be(task, nice):
            refused = True
        else:
            other.set_scheduling(replace(other.scheduling, nice=nice))
    if refused:
        raise Refused(errno.EACCES, "RLIMIT_NICE admits no value so low")
    return 0
