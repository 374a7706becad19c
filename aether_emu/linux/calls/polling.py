"""poll(2), select(2) and their relatives.

Timeouts are in virtual time. When nothing is ready the task waits in the queues of all files asked for,
at most until the timeout has passed. A signal that the mask of the call lets in ends it (EINTR).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

from aether_emu.errors import Refused
from aether_emu.linux.calls.user import read_struct, s32, u32, write_struct
from aether_emu.linux.files.epoll import EpollFile, Waited, polled, sources
from aether_emu.linux.files.open_file import POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT
from aether_emu.linux.task.process import STICKY_TIMEOUTS
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Restart, Wait
from aether_emu.machine.cpu import UserFault

_ALWAYS = POLLERR | POLLHUP
_SET_SIZE = 8
_SECOND = 10**9
_FOREVER = 1 << 63  # nanoseconds; Linux's KTIME_MAX
_POLLFD = struct.Struct("<iHH")
_WORD_BITS = 64
_DESCRIPTORS_PER_LOOK = 32
T = TypeVar("T")
# Events that select counts as readable, writable and exceptional (Linux fs/select.c).
_SELECTED = (POLLIN | POLLHUP | POLLERR, POLLOUT | POLLERR, 0)
_SELECT_WAITS = (POLLIN | _ALWAYS, POLLOUT | _ALWAYS, _ALWAYS)


class _Shown(NamedTuple):
    """Where the call writes what is left of its timeout: seconds, and a rest in units of so many ns."""

    address: int
    unit: int


# ---- poll


def sys_poll(task: Task, fds: int, count: int, timeout: int, *_: int) -> int:
    milliseconds = s32(timeout)
    return _poll(task, fds, u32(count), milliseconds * 10**6 if milliseconds >= 0 else None, None, None)


def sys_ppoll(task: Task, fds: int, count: int, timeout: int, mask: int, mask_size: int, *_: int) -> int:
    limit = read_timespec(task, timeout)
    shown = _Shown(timeout, 1) if timeout else None
    return _poll(task, fds, u32(count), limit, read_mask(task, mask, mask_size), shown)


def _poll(
    task: Task, fds: int, count: int, timeout: int | None, mask: int | None, shown: _Shown | None
) -> int:
    """`timeout` in ns, None for ever."""
    if count > task.files.table.limit:
        raise Refused(errno.EINVAL, f"{count} descriptors")
    wanted = [(fd, events) for fd, events, _ in _POLLFD.iter_unpack(task.cpu.copy_from_user(fds, 8 * count))]
    found = [_events(task, fd, events) for fd, events in _with_looks(task, wanted)]
    ready = sum(map(bool, found))
    deadline = task.deadline(after=timeout)
    if not ready:
        asked = [(fd, events | _ALWAYS) for fd, events in wanted if fd >= 0]
        wait_for_any(task, _files(task, asked), mask, deadline, shown=shown)
    answer = b"".join(_POLLFD.pack(*entry, events) for entry, events in zip(wanted, found, strict=True))
    task.cpu.copy_to_user(fds, answer)
    _tell_left(task, shown, deadline)
    return ready


def _with_looks(task: Task, descriptors: Sequence[T]) -> Iterator[T]:
    """Descriptors to look at, which may take long if they are sets of many: the run may end in between."""
    for index, descriptor in enumerate(descriptors):
        if index % _DESCRIPTORS_PER_LOOK == 0:
            task.checkpoint()
        yield descriptor


def _events(task: Task, fd: int, wanted: int) -> int:
    """What poll answers for one entry."""
    return 0 if fd < 0 else _polled(task, fd) & (wanted | _ALWAYS | POLLNVAL)


def _polled(task: Task, fd: int) -> int:
    """The events that hold on a descriptor now; POLLNVAL if it is not open."""
    try:
        return polled(task.files.table.file(fd))
    except Refused:
        return POLLNVAL


# ---- select


def sys_select(
    task: Task, count: int, reading: int, writing: int, special: int, timeout: int, *_: int
) -> int:
    limit = None
    if timeout:
        seconds, microseconds = read_struct(task.cpu, timeout, "qq")
        more, microseconds = divmod(microseconds, 10**6) if microseconds >= 0 else (0, -1)
        limit = _limit(seconds + more, microseconds * 1000)
    deadline = task.deadline(after=limit)
    shown = _Shown(timeout, 1000) if timeout else None
    return _select(task, count, (reading, writing, special), deadline, None, shown)


def sys_pselect6(
    task: Task, count: int, reading: int, writing: int, special: int, timeout: int, mask: int
) -> int:
    limit = read_timespec(task, timeout)
    blocked = read_mask(task, *read_struct(task.cpu, mask, "QQ")) if mask else None
    deadline = task.deadline(after=limit)
    shown = _Shown(timeout, 1) if timeout else None
    return _select(task, count, (reading, writing, special), deadline, blocked, shown)


def _select(
    task: Task,
    count: int,
    addresses: tuple[int, int, int],
    deadline: int | None,
    mask: int | None,
    shown: _Shown | None,
) -> int:
    count = s32(count)
    if count < 0:
        raise Refused(errno.EINVAL, f"{count} descriptors")
    count = min(count, task.files.table.limit)
    size = -(-count // _WORD_BITS) * (_WORD_BITS // 8)
    asked = [_set(task, address, size, count) for address in addresses]
    events = {fd: _polled(task, fd) for fd in _with_looks(task, sorted(set().union(*asked)))}
    if any(bits & POLLNVAL for bits in events.values()):
        raise Refused(errno.EBADF, "a descriptor of the sets is not open")
    found = [[fd for fd in fds if events[fd] & bits] for fds, bits in zip(asked, _SELECTED, strict=True)]
    ready = sum(map(len, found))
    if not ready:
        waits = zip(asked, _SELECT_WAITS, strict=True)
        files = _files(task, [(fd, bits) for fds, bits in waits for fd in fds])
        wait_for_any(task, files, mask, deadline, shown=shown)
    for address, fds in zip(addresses, found, strict=True):
        if address:
            task.cpu.copy_to_user(address, _fd_set(fds, size))
    _tell_left(task, shown, deadline)
    return ready


def _set(task: Task, address: int, size: int, count: int) -> list[int]:
    """The descriptors below `count` in an fd_set."""
    if not address:
        return []
    chunks = enumerate(task.cpu.copy_from_user(address, size))
    chosen = [8 * at + bit for at, byte in chunks if byte for bit in range(8) if byte >> bit & 1]
    return [fd for fd in chosen if fd < count]


# ---- time and waiting


def read_timespec(task: Task, address: int) -> int | None:
    """A timeout in ns, or None for ever."""
    return _limit(*read_struct(task.cpu, address, "qq")) if address else None


def _limit(seconds: int, nanoseconds: int) -> int | None:
    if seconds < 0 or not 0 <= nanoseconds < _SECOND:
        raise Refused(errno.EINVAL, f"a timeout of {seconds} s and {nanoseconds} ns")
    timeout = seconds * _SECOND + nanoseconds
    return timeout if timeout < _FOREVER else None


def read_mask(task: Task, address: int, size: int) -> int | None:
    """The signals that a call blocks instead of the usual ones: EINVAL for another size, EFAULT."""
    if not address:
        return None
    if size != _SET_SIZE:
        raise Refused(errno.EINVAL, f"a signal set of {size} bytes")
    return int(read_struct(task.cpu, address, "Q")[0])


def wait_for_any(
    task: Task,
    waited: list[Waited],
    mask: int | None,
    deadline: int | None,
    *,
    restart: Restart = Restart.WITHOUT_HANDLER,
    shown: _Shown | None = None,
) -> None:
    """Nothing is ready: wait for one of several files. Returns when `deadline` has passed.

    The call's own mask is blocked while it waits. EINTR if a signal is pending that this lets in.
    """
    if mask is not None and task.signals.suspended_mask is None:
        task.signals.suspend(mask)
    if task.has_waited_until(deadline) and not task.signals.interrupts():
        task.signals.end_suspension()
        return
    queues = [queue for file, events in waited for queue in file.queues(events)]
    behind = sources(waited) or waited
    nothing = not behind or isinstance(behind[0].file, EpollFile)
    what = "an event" if nothing else behind[0].file.name_of_one
    if task.signals.interrupts():
        _tell_left(task, shown, deadline)
    if shown is not None and task.process.personality & STICKY_TIMEOUTS:
        restart = Restart.NEVER  # nobody would know how long to wait on
    raise Wait(queues, what, deadline=deadline, restart=restart, pauses=shown is not None)


def _left(task: Task, deadline: int | None) -> int:
    """What is left of a timeout, in ns."""
    return 0 if deadline is None else max(0, deadline - task.process.kernel.clock.now_ns)


def _tell_left(task: Task, shown: _Shown | None, deadline: int | None) -> None:
    """Write what is left of a timeout, if the personality lets it. A bad address is ignored."""
    if shown is None or task.process.personality & STICKY_TIMEOUTS:
        return
    seconds, nanoseconds = divmod(_left(task, deadline), _SECOND)
    with suppress(UserFault):
        write_struct(task.cpu, shown.address, "qq", seconds, nanoseconds // shown.unit)


def _files(task: Task, wanted: list[tuple[int, int]]) -> list[Waited]:
    """The files of (descriptor, events)."""
    return [Waited(task.files.table.file(fd), events) for fd, events in wanted]


def _fd_set(fds: list[int], size: int) -> bytes:
    """An fd_set of `size` bytes."""
    raw = bytearray(size)
    for fd in fds:
        raw[fd >> 3] |= 1 << (fd & 7)
    return bytes(raw)
