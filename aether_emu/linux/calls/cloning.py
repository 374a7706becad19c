"""fork(2), vfork(2), clone(2), clone3(2): new tasks, in processes of their own or in their maker's.

A new task has its maker's registers, but for the result 0 and, if asked for, another stack and thread
pointer. The scheduler finds it among the registry's arrivals. Refusals and their order are Linux 6.6's
(copy_process).
"""

from __future__ import annotations

import errno
import struct
from contextlib import suppress

from aether_emu.errors import OutOfFrames, Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.calls.arguments import is_arm64
from aether_emu.linux.calls.notices import install_pidfd
from aether_emu.linux.calls.user import s32, writable, write_struct
from aether_emu.linux.calls.user_fault_events import settle
from aether_emu.linux.credentials import CHECKPOINT_RESTORE, SYS_ADMIN, SYS_RESOURCE
from aether_emu.linux.files.files import Files
from aether_emu.linux.ipc.undo import Undo
from aether_emu.linux.task import family
from aether_emu.linux.task.body import Body
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.registry import LAST
from aether_emu.linux.task.resource_limits import RLIM_INFINITY, RLIMIT_NPROC
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Wait
from aether_emu.machine.cpu import UserFault
from aether_emu.records import dataclass

_VM, _FS, _FILES, _SIGHAND, _PIDFD = 0x100, 0x200, 0x400, 0x800, 0x1000
_VFORK, _PARENT, _THREAD, _SETTLS = 0x4000, 0x8000, 0x1_0000, 0x8_0000
_PARENT_SETTID, _CHILD_CLEARTID, _DETACHED, _CHILD_SETTID = 0x10_0000, 0x20_0000, 0x40_0000, 0x100_0000
_NEW_TIME, _NEW_NS, _CLEAR_SIGHAND, _INTO_CGROUP = 0x80, 0x2_0000, 1 << 32, 1 << 33
_NEW_USER, _NEW_PID = 0x1000_0000, 0x2000_0000
_UNDO = 0x4_0000  # CLONE_SYSVSEM
_NAMESPACES = 0x7E02_0000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_SIGNAL = 0xFF
_KNOWN = 0x1_FFFF_FFFF & ~_SIGNAL
_ARGUMENTS = 64  # the smallest struct clone_args (CLONE_ARGS_SIZE_VER0)
_FIELDS = 11
_DEEPEST = 32  # MAX_PID_NS_LEVEL


@dataclass(frozen=True)
class _Request:
    """What is asked for. `stack` is the first stack pointer; addresses may be 0.

    `number` is the one that the new task must get; None is any.
    """

    flags: int
    exit_signal: int
    stack: int = 0
    tls: int = 0
    parent_tid: int = 0
    child_tid: int = 0
    pidfd: int = 0
    number: int | None = None


def sys_fork(task: Task, *_: int) -> int:
    return _clone(task, _Request(0, sig.SIGCHLD))


def sys_vfork(task: Task, *_: int) -> int:
    return _clone(task, _Request(_VFORK | _VM, sig.SIGCHLD))


def sys_clone(task: Task, flags: int, stack: int, parent: int, d: int, e: int, *_: int) -> int:
    """clone(2). The last two arguments change places between the ISAs."""
    tls, child = (d, e) if is_arm64(task) else (e, d)
    flags &= 0xFFFF_FFFF
    asked = _Request(flags & ~_SIGNAL, flags & _SIGNAL, stack, tls, parent, child, parent)
    if flags & _PIDFD and flags & (_PARENT_SETTID | _DETACHED):
        raise Refused(errno.EINVAL, "one place for two answers")
    return _clone(task, asked)


def sys_clone3(task: Task, arguments: int, size: int, *_: int) -> int:
    if task.progress:  # the child may have written over the arguments meanwhile
        return _vforked(task, task.progress[0])
    if size < _ARGUMENTS:
        raise Refused(errno.EINVAL, "the arguments are too short")
    if size > 4096:
        raise Refused(errno.E2BIG, "the arguments are too long")
    given = task.cpu.copy_from_user(arguments, size)
    if any(given[8 * _FIELDS :]):
        raise Refused(errno.E2BIG, "arguments that nobody knows")
    fields = [int.from_bytes(given[at : at + 8], "little") for at in range(0, 8 * _FIELDS, 8)]
    flags, pidfd, child, parent, signal, stack, length, tls, set_tid, set_tid_size, cgroup = fields
    if set_tid_size > _DEEPEST or bool(set_tid) != bool(set_tid_size):
        raise Refused(errno.EINVAL, f"{set_tid_size} numbers")
    if signal & ~_SIGNAL or signal > sig.SIGNALS:
        raise Refused(errno.EINVAL, f"signal {signal}")
    if flags & _INTO_CGROUP and (cgroup >= 1 << 31 or size < 8 * _FIELDS):
        raise Refused(errno.EINVAL, "no cgroup is named")
    numbers = struct.unpack(f"<{set_tid_size}i", task.cpu.copy_from_user(set_tid, 4 * set_tid_size))
    if flags & ~(_KNOWN | _CLEAR_SIGHAND | _INTO_CGROUP) or flags & (_DETACHED | _SIGNAL & ~_NEW_TIME):
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    if signal and flags & (_THREAD | _PARENT):
        raise Refused(errno.EINVAL, "threads and siblings tell nobody by a signal of their own")
    if bool(stack) != bool(length) or stack + length > task.process.abi.user_end:
        raise Refused(errno.EINVAL, "a stack without length, or a length without stack")
    if flags & _SIGHAND and flags & _CLEAR_SIGHAND:
        raise Refused(errno.EINVAL, "handlers are shared or cleared")
    if flags & _PIDFD and flags & _PARENT_SETTID and pidfd == parent:
        raise Refused(errno.EINVAL, "one place for two answers")
    _check(flags)
    number = _chosen(task, numbers) if numbers else None
    return _clone(task, _Request(flags, signal, stack + length, tls, parent, child, pidfd, number))


def _chosen(task: Task, numbers: tuple[int, ...]) -> int:
    """The number that a new task must get (`set_tid`): Linux's alloc_pid."""
    if len(numbers) > 1 or not 0 < numbers[0] <= LAST:
        raise Refused(errno.EINVAL, f"numbers {numbers}")
    if not (task.credentials.has(CHECKPOINT_RESTORE) or task.credentials.has(SYS_ADMIN)):
        raise Refused(errno.EPERM, "only the superuser chooses numbers")
    if task.process.registry.is_used(numbers[0]):
        raise Refused(errno.EEXIST, f"there is a {numbers[0]} already")
    return numbers[0]


def _check(flags: int) -> None:
    """Raise what copy_process refuses before it copies anything."""
    if flags & _FS and flags & (_NEW_NS | _NEW_USER):
        raise Refused(errno.EINVAL, "a file system of its own, and shared")
    if flags & _THREAD and not flags & _SIGHAND:
        raise Refused(errno.EINVAL, "threads share their handlers")
    if flags & _SIGHAND and not flags & _VM:
        raise Refused(errno.EINVAL, "who shares handlers shares memory")
    if flags & _THREAD and flags & (_NEW_USER | _NEW_PID):
        raise Refused(errno.EINVAL, "threads are in the namespaces of their process")
    if flags & _PIDFD and flags & _THREAD:
        raise Refused(errno.EINVAL, "a thread has no pidfd")
    if flags & _INTO_CGROUP:
        raise Refused(errno.EBADF, "no descriptor is a cgroup's")
    if flags & (_NAMESPACES | _NEW_TIME):
        raise Refused(errno.EPERM, "there are no namespaces")


def _clone(task: Task, asked: _Request) -> int:
    if task.progress:
        return _vforked(task, task.progress[0])
    _check(asked.flags)
    registry = task.process.registry
    _require_room(task)
    if asked.flags & _PIDFD:
        task.files.table.require_room()
        if writable(task.cpu, [(asked.pidfd, 4)], 4) < 4:
            raise UserFault("the pidfd cannot be told")
    body = _body(task)
    try:
        made = _made(task, asked, body)
    except BaseException:
        body.free()
        raise
    if asked.flags & _PIDFD:
        write_struct(task.cpu, asked.pidfd, "i", install_pidfd(task, made.process, 0))
    _prepare(task, made, asked)
    registry.arrivals.append(made)
    task.stop()  # so that the scheduler sees it
    if asked.flags & _VFORK:
        made.process.uses_parents_memory = True
        return _vforked(task, made.tid)
    return settle(task, made.tid, made) if task.process.mm.untold else made.tid


def _body(task: Task) -> Body:
    """What the new task is in memory. Refused(ENOMEM)."""
    physical = task.process.kernel.physical
    try:
        return physical.with_room(lambda: Body(physical.slabs))
    except OutOfFrames:
        raise Refused(errno.ENOMEM, "no memory is left for another task") from None


def _made(task: Task, asked: _Request, body: Body) -> Task:
    """The new task, in its maker's process or in one of its own."""
    if not asked.flags & _THREAD:
        return _process_of(task, asked, body)
    made = Task(task.process, asked.number or task.process.registry.number(), body)
    made.files = task.files
    if asked.flags & (_FILES | _FS) != _FILES | _FS:
        made.files = _files_of(task, task.process, asked.flags)
    return made


def _require_room(task: Task) -> None:
    """Refused(EAGAIN) when the user has as many tasks as RLIMIT_NPROC admits. Root is not counted."""
    limit, who = task.process.limits[RLIMIT_NPROC][0], task.credentials
    is_free = limit == RLIM_INFINITY or not who.uid or who.has(SYS_RESOURCE) or who.has(SYS_ADMIN)
    if not is_free and _tasks_of(task, who.uid) >= limit:
        raise Refused(errno.EAGAIN, f"the user has {limit} tasks already")


def _tasks_of(task: Task, uid: int) -> int:
    """How many tasks a user has, zombies among them."""
    registry = task.process.registry
    if not registry.has_several_users:
        return registry.count
    zombies = [process for process in registry.processes.values() if process.released]
    living = sum(task.credentials.uid == uid for task in registry.tasks.values())
    return living + sum(process.credentials.uid == uid for process in zombies)


def _process_of(task: Task, asked: _Request, body: Body) -> Task:
    """The first task of a new process."""
    process, flags = task.process, asked.flags
    try:
        child = process.fork(shares_memory=bool(flags & _VM), number=asked.number)
    except OutOfFrames:
        raise Refused(errno.ENOMEM, "no memory is left for its tables") from None
    child.exit_signal, child.made_by = asked.exit_signal, task.tid
    if flags & _PARENT and process.parent is not None:
        process.children.remove(child)
        family.adopt(process.parent, child)
        child.exit_signal, child.made_by = process.exit_signal, process.made_by
    if flags & _SIGHAND:
        child.signals.actions = process.signals.actions
    elif flags & _CLEAR_SIGHAND:
        child.signals.reset(keeps_ignored=True)
    child.files = _files_of(task, child, flags)
    return Task(child, body=body)


def _files_of(task: Task, owner: Process, flags: int) -> Files:
    """The files of a new task of `owner`, as far as they are its maker's."""
    shown, shares_table, shares_standing = owner.kernel.show(owner), bool(flags & _FILES), bool(flags & _FS)
    return task.files.fork(shown, shares_table=shares_table, shares_standing=shares_standing)


def _prepare(task: Task, made: Task, asked: _Request) -> None:
    """Let the new task begin where its maker stands."""
    flags, process = asked.flags, task.process
    made.name, made.memory_policy = task.name, task.memory_policy
    made.credentials, made.no_new_privileges = task.credentials, task.no_new_privileges
    made.signals.blocked = task.signals.blocked
    made.set_scheduling(task.scheduling.of_child())
    made.affinity, made.home = task.affinity, task.home
    if flags & _UNDO:
        if task.undo is None:
            task.undo = Undo()
        task.undo.users += 1
        made.undo = task.undo
    made.sequences = None if flags & _VM else task.sequences
    if not flags & _VM or flags & _VFORK:
        made.signals.stack = task.signals.stack
    tls = asked.tls if flags & _SETTLS else None
    made.begin_as(task, process.abi.child_registers(task.cpu, asked.stack, tls))
    made.set_child_tid = asked.child_tid if flags & _CHILD_SETTID else 0
    made.clear_child_tid = asked.child_tid if flags & _CHILD_CLEARTID else 0
    if flags & _PARENT_SETTID:
        with suppress(UserFault):  # Linux tells nobody
            write_struct(task.cpu, asked.parent_tid, "i", made.tid)


def _vforked(task: Task, pid: int) -> int:
    """The maker waits until the child has ended, or has a memory of its own. Only SIGKILL ends that."""
    child = task.process.registry.processes.get(pid)
    if not isinstance(child, Process) or not child.uses_parents_memory:
        return pid
    raise _VforkWait(child, pid)


class _VforkWait(Wait):
    """For the child that has its parent's memory."""

    ends_by_signal = ends_by_time = False

    def __init__(self, child: Process, pid: int) -> None:
        super().__init__((child.left_parent,), f"its child {pid}", progress=(pid,))


def sys_unshare(task: Task, flags: int, *_: int) -> int:
    """unshare(2) of descriptors, and of where a task stands. Memory and handlers are a process's."""
    flags = s32(flags)
    if flags & ~(_THREAD | _FS | _FILES | _SIGHAND | _VM | _UNDO | _NAMESPACES | _NEW_TIME):
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    if flags & (_NAMESPACES | _NEW_TIME):
        raise Refused(errno.EPERM, "there are no namespaces")
    process = task.process
    if flags & (_THREAD | _SIGHAND | _VM) and (len(process.tasks) > 1 or _shares(task, flags)):
        raise Refused(errno.EINVAL, "threads share it")
    if flags & (_UNDO | _VM):
        task.leave_semaphores()
    if flags & (_FS | _FILES):
        task.unshare_files(table=bool(flags & _FILES), standing=bool(flags & _FS))
    return 0


def _shares(task: Task, flags: int) -> bool:
    """Whether another process has its memory or handlers (Linux check_unshare_flags)."""
    if flags & _VM and task.process.mm.users > 1:
        return True
    actions = task.process.signals.actions
    others = task.process.registry.processes.values()
    return any(
        isinstance(other, Process) and other is not task.process and other.signals.actions is actions
        for other in others
    )
