"""Calls into other processes: process_vm_readv(2), process_vm_writev(2), process_madvise(2),
process_mrelease(2), kcmp(2).

They are for whom ptrace(2) would let in (EPERM). Rules and their order are those of Linux 6.6
(mm/process_vm_access.c, kernel/kcmp.c).
"""

from __future__ import annotations

import errno
import struct
from contextlib import nullcontext

from aether_emu.errors import Refused
from aether_emu.linux.calls.memory import stores_by_key
from aether_emu.linux.calls.notices import named
from aether_emu.linux.calls.user import (
    IOV_MAX,
    Piece,
    behind,
    gather,
    read_struct,
    read_vector,
    s32,
    s64,
    scatter,
    total,
    u32,
)
from aether_emu.linux.credentials import SYS_NICE
from aether_emu.linux.files.epoll import EpollFile
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import UserFault
from aether_emu.mm import mapping
from aether_emu.mm.joint import joined
from aether_emu.mm.user import UserMemory

_FILE, _VM, _FILES, _FS, _SIGHAND, _IO, _UNDO, _WATCHED = range(8)
_AT_ONCE = 1 << 16
_REAPED = 1 << 16  # pages of who was killed that go between two looks at whether the run is to end
_HARMLESS = (mapping.MADV_COLD, mapping.MADV_PAGEOUT, mapping.MADV_WILLNEED, mapping.MADV_COLLAPSE)


def sys_process_vm_readv(
    task: Task, pid: int, local: int, locals_: int, remote: int, remotes: int, flags: int
) -> int:
    return _transfer(task, pid, (local, locals_), (remote, remotes), flags, writes=False)


def sys_process_vm_writev(
    task: Task, pid: int, local: int, locals_: int, remote: int, remotes: int, flags: int
) -> int:
    return _transfer(task, pid, (local, locals_), (remote, remotes), flags, writes=True)


def _transfer(
    task: Task, pid: int, local: tuple[int, int], remote: tuple[int, int], flags: int, *, writes: bool
) -> int:
    """Bytes moved; EFAULT only if not even the first could be."""
    if flags:
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    here = read_vector(task.cpu, *local, task.process.abi.user_end)
    if not total(here):
        return 0
    there = _addresses(task, *remote)
    if not total(there):
        return 0
    memory = UserMemory(_reached(task, pid).mm)
    most = min(total(here), total(there))
    (done,) = task.progress or (0,)
    while done < most:
        if done:
            task.checkpoint(done)
        start, length = next(piece for piece in behind(there, done) if piece[1])
        length = min(length, most - done, _AT_ONCE - start % _AT_ONCE)
        moved = (_write if writes else _read)(task, memory, behind(here, done), start, length)
        done += moved
        if moved < length:
            break
    if not done:
        raise UserFault("not even the first byte can be moved")
    return done


def _addresses(task: Task, address: int, count: int) -> list[Piece]:
    """The pieces of the other process's memory, whose addresses nobody has looked at."""
    if count > IOV_MAX:
        raise Refused(errno.EINVAL, f"{count} pieces")
    pieces = list(struct.iter_unpack("<QQ", task.cpu.copy_from_user(address, 16 * count)))
    if any(s64(length) < 0 for _, length in pieces):
        raise Refused(errno.EINVAL, "a negative length")
    return [(start, length) for start, length in pieces]


def _read(task: Task, memory: UserMemory, here: list[Piece], start: int, length: int) -> int:
    found = bytearray()
    for at, count in _pages(start, length, task.process.mm.page_size):
        try:
            found += memory.read(at, count)
        except UserFault:
            break
    return scatter(task.cpu, here, bytes(found)) if found else 0


def _write(task: Task, memory: UserMemory, here: list[Piece], start: int, length: int) -> int:
    done = 0
    for at, count in _pages(start, length, task.process.mm.page_size):
        try:
            data = gather(task.cpu, behind(here, done), count)
            memory.write(at, data)
        except UserFault:
            break
        done += len(data)
        if len(data) < count:
            break
    return done


def _pages(start: int, length: int, page: int) -> list[Piece]:
    pieces, end = [], start + length
    while start < end:
        count = min(page - start % page, end - start)
        pieces.append((start, count))
        start += count
    return pieces


def _reached(task: Task, pid: int) -> Process:
    """The process of a number or a thread's, into which the caller may reach. ESRCH, EPERM."""
    found = _task_of(task, pid).process
    if not task.may_inspect(found, real=True):
        raise Refused(errno.EPERM, "another user's process")
    return found


def _task_of(task: Task, pid: int) -> Task:
    """A living thread by its number. ESRCH."""
    found = task.process.registry.tasks.get(s32(pid))
    if not isinstance(found, Task) or found.is_over:
        raise Refused(errno.ESRCH, f"no task {s32(pid)}")
    return found


# ---- advice


def sys_process_madvise(
    task: Task, fd: int, vector: int, count: int, advice: int, flags: int, *_: int
) -> int:
    """Bytes advised, which are fewer than asked for where a later piece was refused.

    Of its own memory a process may give any advice (Linux from 6.13 on), of another's what changes no
    contents, with CAP_SYS_NICE. All pieces have one flush, where their advice can wait for that.
    """
    if u32(flags):
        raise Refused(errno.EINVAL, f"flags {u32(flags):#x}")
    pieces = read_vector(task.cpu, vector, count, task.process.abi.user_end)
    found, advice = named(task, fd), s32(advice)
    if found.mm is not task.process.mm:
        if not task.may_inspect(found, real=False):
            raise Refused(errno.EACCES, "another user's process")
        if advice not in _HARMLESS:
            raise Refused(errno.EINVAL, f"advice {advice} is not given to others")
        if not task.credentials.has(SYS_NICE):
            raise Refused(errno.EPERM, "needs CAP_SYS_NICE")
    if not any(length for _start, length in pieces):
        return 0  # whatever the advice is
    ranges = [(start, start + found.mm.page_up(length)) for start, length in pieces]
    waits = advice in mapping.FLUSH_LATER and not any(
        mapping.has_pool_pages(found.mm, *each) for each in ranges
    )
    with joined(found.mm) if waits else nullcontext():
        return _advised(task, found, pieces, advice)


def _advised(task: Task, found: Process, pieces: list[Piece], advice: int) -> int:
    number, advised = task.progress or (0, 0)
    by_key = stores_by_key(task) if found.mm is task.process.mm else None
    for start, length in pieces[number:]:
        task.checkpoint(number, advised)
        try:
            mapping.advise_memory(found.mm, start, length, advice, by_key)
        except Refused:
            if not advised:
                raise
            return advised
        number, advised = number + 1, advised + length
    return advised


def sys_process_mrelease(task: Task, fd: int, flags: int, *_: int) -> int:
    """process_mrelease(2): the private memory of a process that was killed goes before it ends itself.

    EINVAL for one that lives, or whose memory another that lives has too; ESRCH for one that has none.
    """
    if u32(flags):
        raise Refused(errno.EINVAL, f"flags {u32(flags):#x}")
    found, (position,) = named(task, fd), task.progress or (0,)
    if found.released:
        if position:
            return 0  # it has ended meanwhile
        raise Refused(errno.ESRCH, "it has no memory")
    space = found.mm
    sharing = [each for each in found.registry.processes.values() if not each.released and each.mm is space]
    if any(each.ended is None for each in sharing):
        raise Refused(errno.EINVAL, "it has not been killed")
    step = _REAPED * space.page_size
    for area in list(space.areas):
        kept = area.shared or area.huge_size or (area.backing is not None and area.backing.whole)
        for low in range(max(area.start, position), 0 if kept else area.end, step):
            task.checkpoint(low)
            space.discard(area, low, min(low + step, area.end))
    return 0


# ---- comparing


def sys_kcmp(task: Task, one: int, two: int, kind: int, first: int, second: int, *_: int) -> int:
    """kcmp(2): 0 for the same, 1 and 2 for which comes first: in the order in which they were asked for."""
    tasks = [_task_of(task, number) for number in (one, two)]
    if not all(task.may_inspect(each.process, real=True) for each in tasks):
        raise Refused(errno.EPERM, "another user's process")
    kind = s32(kind)
    if kind == _FILE:
        files = [each.files.table.held(s32(u32(fd))) for each, fd in zip(tasks, (first, second), strict=True)]
        return _compared(task, *files)
    if kind == _IO:  # which no task has
        return 0
    if kind == _UNDO:
        undos = [each.undo for each in tasks if each.undo is not None]
        return _compared(task, *undos) if len(undos) == 2 else len(undos)
    if kind == _WATCHED:
        return _compared_target(task, tasks[0], tasks[1], first, second)
    if kind == _VM:
        return _compared(task, *(each.process.mm for each in tasks))
    if kind == _FILES:
        return _compared(task, *(each.files.table for each in tasks))
    if kind == _FS:
        return _compared(task, *(each.files.standing for each in tasks))
    if kind == _SIGHAND:
        if tasks[0].process.signals.actions is tasks[1].process.signals.actions:
            return 0
        return 1 + (tasks[0].process.pid > tasks[1].process.pid)
    raise Refused(errno.EINVAL, f"no kind {kind}")


def _compared_target(task: Task, one: Task, two: Task, fd: int, slot: int) -> int:
    """KCMP_EPOLL_TFD: a file of the one, and what an epoll set of the other watches as a descriptor.

    Of several that it knew by that number one is meant: `skipped` says which.
    """
    set_fd, target, skipped = read_struct(task.cpu, slot, "3I")
    file = one.files.table.held(s32(u32(fd)))
    found = two.files.table.held(s32(set_fd))
    if not isinstance(found, EpollFile):
        raise Refused(errno.EINVAL, f"a {found.kind} watches nothing")
    watched = [member for number, member, _interest in found.members() if number == s32(target)]
    if skipped >= len(watched):
        raise Refused(errno.ENOENT, f"it watches no descriptor {target}")
    return _compared(task, file, watched[skipped])


def _compared(task: Task, one: object, two: object) -> int:
    order = task.process.kernel.compared
    first, second = (order.setdefault(each, len(order)) for each in (one, two))
    return 0 if one is two else 1 if first < second else 2
