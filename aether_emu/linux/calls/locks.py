"""fcntl(F_SETLK) and its relatives, and flock(2): locks on files among guest processes."""

from __future__ import annotations

import errno
import struct
from collections.abc import Hashable

from aether_emu.errors import Refused
from aether_emu.linux.calls.user import s32
from aether_emu.linux.files.locks import END, F_RDLCK, F_UNLCK, F_WRLCK, Lock
from aether_emu.linux.files.open_file import LARGEST_OFFSET, OpenFile, Seekable
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Wait
from aether_emu.waiting import WaitQueue

F_GETLK, F_SETLK, F_SETLKW, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 5, 6, 7, 36, 37, 38
LOCK_COMMANDS = (F_GETLK, F_SETLK, F_SETLKW, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW)
_OF_OPEN_FILES, _QUERIES, _WAITING = LOCK_COMMANDS[3:], (F_GETLK, F_OFD_GETLK), (F_SETLKW, F_OFD_SETLKW)
_FLOCK = struct.Struct("<hh4xqqi4x")
_SEEK_SET, _SEEK_CUR, _SEEK_END = range(3)
_LOCK_SH, _LOCK_EX, _LOCK_NB, _LOCK_UN, _LOCK_MAND = 1, 2, 4, 8, 32
_LONGEST_RING = 10  # Linux MAX_DEADLK_ITERATIONS


class LockWait(Wait):
    """A process waits for a lock that `blocker` holds."""

    def __init__(self, queue: WaitQueue, owner: Hashable, blocker: Hashable) -> None:
        super().__init__((queue,), "a lock on a file")
        self.owner, self.blocker = owner, blocker


def lock_range(task: Task, fd: int, command: int, address: int) -> int:
    """fcntl(2) with one of LOCK_COMMANDS, on the `struct flock` at `address`."""
    files = task.files
    file = files.table.file(fd)
    raw = task.cpu.copy_from_user(address, _FLOCK.size)
    kind, whence, start, length, pid = _FLOCK.unpack(raw)
    of_file, query = command in _OF_OPEN_FILES, command in _QUERIES
    if of_file and pid:
        raise Refused(errno.EINVAL, "an open file's lock has no process")
    if query and kind not in (F_RDLCK, F_WRLCK):
        raise Refused(errno.EINVAL, f"lock type {kind}")
    begin, end = _range(file, whence, start, length)
    if kind not in (F_RDLCK, F_WRLCK, F_UNLCK):
        raise Refused(errno.EINVAL, f"lock type {kind}")
    owner: Hashable = file if of_file else files.table
    wanted = Lock(owner, kind, begin, end, -1 if of_file else task.process.pid)
    locks = files.namespace.locks
    if query:
        found = locks.conflict(file, wanted)
        answer = struct.pack("<h", F_UNLCK) + raw[2:] if found is None else _shown(found)
        task.cpu.copy_to_user(address, answer)
        return 0
    if (kind == F_RDLCK and not file.readable) or (kind == F_WRLCK and not file.writable):
        raise Refused(errno.EBADF, "the descriptor is not open for such a lock")
    found = locks.conflict(file, wanted) if kind != F_UNLCK else None
    if found is not None:
        if command not in _WAITING:
            raise Refused(errno.EAGAIN, "another process has locked it")
        if not of_file:
            _refuse_ring(task, owner, found.owner)
        raise LockWait(locks.queue(file), owner, found.owner)
    files.watch_locks(file)
    locks.put(file, wanted)
    return 0


def _range(file: OpenFile, whence: int, start: int, length: int) -> tuple[int, int]:
    """The range of a `struct flock` (Linux flock64_to_posix_lock). Refused(EINVAL, EOVERFLOW)."""
    if whence == _SEEK_SET:
        base = 0
    elif whence == _SEEK_CUR:
        base = file.position
    elif whence == _SEEK_END:
        base = file.size() if isinstance(file, Seekable) else 0
    else:
        raise Refused(errno.EINVAL, f"from {whence}")
    begin = base + start
    if begin > LARGEST_OFFSET or begin + length - 1 > LARGEST_OFFSET:
        raise Refused(errno.EOVERFLOW, f"a range from {begin} on")
    if begin < 0 or begin + min(length, 0) < 0:
        raise Refused(errno.EINVAL, f"a range from {begin} on, {length} bytes long")
    if length < 0:
        return begin + length, begin
    return begin, begin + length if length else END


def _shown(lock: Lock) -> bytes:
    length = 0 if lock.end == END else lock.end - lock.start
    return _FLOCK.pack(lock.kind, _SEEK_SET, lock.start, length, lock.pid)


def _refuse_ring(task: Task, owner: Hashable, blocker: Hashable) -> None:
    """Refused(EDEADLK) if who has the lock waits, in the end, for the one who wants it."""
    others = task.files.namespace.locks.waiters()
    waits = [other.wait for other in others if isinstance(other, Task)]
    waiting = {wait.owner: wait.blocker for wait in waits if isinstance(wait, LockWait)}
    waiting.pop(owner, None)
    for _ in range(_LONGEST_RING):
        if blocker is owner:
            raise Refused(errno.EDEADLK, "processes would wait for each other's locks")
        if blocker not in waiting:
            return
        blocker = waiting[blocker]


def sys_flock(task: Task, fd: int, operation: int, *_: int) -> int:
    """flock(2). Another lock in place of one that is held: that one is given up first, as on Linux."""
    files, operation = task.files, s32(operation)
    if operation & _LOCK_MAND:
        return (
            0  # mandatory locks, which Linux ignores since 5.18, whatever else is asked and of whatever file
        )
    if operation & ~_LOCK_NB not in (_LOCK_SH, _LOCK_EX, _LOCK_UN):
        raise Refused(errno.EINVAL, f"flock operation {operation}")
    file, locks = files.table.file(s32(fd)), files.namespace.locks
    if operation & _LOCK_UN:
        locks.unlock_whole(file)
        return 0
    exclusive = bool(operation & _LOCK_EX)
    if locks.holds_whole(file, exclusive):
        return 0
    locks.unlock_whole(file)
    if locks.is_taken(file, exclusive):
        if operation & _LOCK_NB:
            raise Refused(errno.EAGAIN, "another open file has locked it")
        raise Wait((locks.queue(file),), "a lock on a file")
    files.watch_locks(file)
    locks.lock_whole(file, exclusive)
    return 0
