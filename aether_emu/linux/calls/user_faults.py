"""userfaultfd(2), ioctl_userfaultfd(2): a program answers the faults of its own memory.

Refusals and their order are those of Linux 6.8 (fs/userfaultfd.c). Addresses and lengths are in bytes and
whole pages. A control that stops part of the way tells how far it came in its own argument, as there.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

from aether_emu.errors import Refused
from aether_emu.linux.calls.user import s32
from aether_emu.linux.credentials import SYS_PTRACE
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.files.user_faults import API, FEATURES, UserFaultFile
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import UserFault
from aether_emu.mm import userfault
from aether_emu.mm.allocation import USER_MINOR, USER_MISSING, USER_WP, Area

_USER_MODE_ONLY = 1
_MODES = {1: USER_MISSING, 2: USER_WP, 4: USER_MINOR}
_REGISTER, _UNREGISTER, _WAKE, _COPY, _ZEROPAGE, _WRITEPROTECT, _CONTINUE = 0, 1, 2, 3, 4, 6, 7
_API = 0x3F
_OF_API = 1 << _REGISTER | 1 << _UNREGISTER | 1 << _API
_DONT_WAKE = 1
_BATCH = 256  # pages between two looks at whether the run is to end
_COPY_WP, _PROTECT_WP, _PROTECT_DONT_WAKE, _CONTINUE_WP = 2, 1, 2, 2


def _request(number: int, size: int, direction: int = 3) -> int:
    return direction << 30 | size << 16 | 0xAA << 8 | number


def sys_userfaultfd(task: Task, flags: int, *_: int) -> int:
    flags = s32(flags)
    if flags & ~(fl.O_CLOEXEC | fl.O_NONBLOCK | _USER_MODE_ONLY):
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    only = bool(flags & _USER_MODE_ONLY)
    if not only and not task.credentials.has(SYS_PTRACE):
        raise Refused(errno.EPERM, "faults of system calls are answered with CAP_SYS_PTRACE alone")
    files, kernel = task.files, task.process.kernel
    files.table.require_room()
    stat = files.namespace.nameless_stat(0o600)
    file = UserFaultFile(
        task.process.mm,
        lambda: kernel.entry.task.tid,
        flags & fl.O_NONBLOCK,
        stat,
        programs_only=only,
    )
    return files.table.install(file, cloexec=bool(flags & fl.O_CLOEXEC))


def control(task: Task, file: OpenFile, request: int, argument: int) -> int:
    """ioctl(2) on a userfaultfd."""
    assert isinstance(file, UserFaultFile), "its kind"
    if request == _request(_API, 24):
        return _choose(task, file, argument)
    action = _ACTIONS.get(request)
    if file.features is None or action is None:
        raise Refused(errno.EINVAL, f"request {request:#x}, or no features were chosen before")
    action(task, file, argument)
    return 0


def _choose(task: Task, file: UserFaultFile, argument: int) -> int:
    """UFFDIO_API: the features that the program wants, once."""
    api, features, _ = struct.unpack("<3Q", task.cpu.copy_from_user(argument, 24))
    if api != API or features & ~FEATURES or file.features is not None:
        task.cpu.copy_to_user(argument, bytes(24))
        raise Refused(errno.EINVAL, f"API {api:#x}, features {features:#x}, or chosen already")
    task.cpu.copy_to_user(argument, struct.pack("<3Q", API, FEATURES, _OF_API))
    file.features = features
    return 0


def _range(task: Task, file: UserFaultFile, start: int, length: int) -> int:
    """The end of a range that may be named. EINVAL; ESRCH if the program is gone."""
    space = file.space
    bad = (start | length) & space.page_size - 1 or not length
    if bad or start < space.limits.user_base or start + length > space.limits.user_end:
        raise Refused(errno.EINVAL, f"{length:#x} bytes at {start:#x} are no range")
    if not space.users:
        raise Refused(errno.ESRCH, "the program is gone")
    return start + length


def _register(task: Task, file: UserFaultFile, argument: int) -> None:
    start, length, modes = struct.unpack("<3Q", task.cpu.copy_from_user(argument, 24))
    if not modes or modes & ~7:
        raise Refused(errno.EINVAL, f"mode {modes:#x}")
    end = _range(task, file, start, length)
    flags = sum(flag for bit, flag in _MODES.items() if modes & bit)
    userfault.watch(file.space, start, end, flags, file)
    able = 1 << _WAKE | 1 << _COPY | 1 << _ZEROPAGE
    able |= (1 << _WRITEPROTECT if flags & USER_WP else 0) | (1 << _CONTINUE if flags & USER_MINOR else 0)
    task.cpu.copy_to_user(argument + 24, struct.pack("<Q", able))


def _unregister(task: Task, file: UserFaultFile, argument: int) -> None:
    start, length = struct.unpack("<2Q", task.cpu.copy_from_user(argument, 16))
    end = _range(task, file, start, length)
    areas = file.space.areas.overlapping(start, end)
    if not areas or any(area.watcher not in (None, file) for area in areas):
        raise Refused(errno.EINVAL, "nothing is mapped there, or somebody else watches it")
    userfault.unwatch(file.space, start, end, file)
    file.wake(start, end)


def _wake(task: Task, file: UserFaultFile, argument: int) -> None:
    start, length = struct.unpack("<2Q", task.cpu.copy_from_user(argument, 16))
    file.wake(start, _range(task, file, start, length))


def _each_page(
    task: Task,
    file: UserFaultFile,
    start: int,
    length: int,
    told: int,
    act: Callable[[Area, int, int], None],
    *,
    wake: bool,
) -> None:
    """Let `act` answer page after page, and tell at `told` how many bytes were, or the first refusal."""
    end, page = _range(task, file, start, length), file.space.page_size
    area = file.space.areas.find(start)
    if area is None or area.watcher is not file or end > area.end:
        raise Refused(errno.ENOENT, "nobody watches all of it")
    (done,), refused = task.progress or (0,), None
    for at in range(start + done, end, page):
        if not done % (_BATCH * page):
            task.checkpoint(done)
        try:
            act(area, at, done)
        except Refused as error:
            refused = error
            break
        done += page
    result = done if done or refused is None else -refused.errno
    task.cpu.copy_to_user(told, struct.pack("<q", result))
    if done and wake:
        file.wake(start, start + done)
    if refused is not None:
        raise refused if not done else Refused(errno.EAGAIN, "some of it was done")


def _copy(task: Task, file: UserFaultFile, argument: int) -> None:
    to, source, length, mode = struct.unpack("<4Q", task.cpu.copy_from_user(argument, 32))
    page = file.space.page_size
    if mode & ~(_DONT_WAKE | _COPY_WP) or source + length > 1 << 64 or length <= 0:
        raise Refused(errno.EINVAL, f"mode {mode:#x}")

    def act(area: Area, at: int, done: int) -> None:
        if mode & _COPY_WP and not area.flags & USER_WP:
            raise Refused(errno.EINVAL, "it is not watched for writes")
        try:
            data = task.cpu.copy_from_user(source + done, page)
        except UserFault:
            raise Refused(errno.EFAULT, "no such page to copy from") from None
        userfault.copy(file.space, area, at, data)
        if mode & _COPY_WP:
            userfault.protect(file.space, at, at + page, on=True)

    _each_page(task, file, to, length, argument + 32, act, wake=not mode & _DONT_WAKE)


def _zero(task: Task, file: UserFaultFile, argument: int) -> None:
    start, length, mode = struct.unpack("<3Q", task.cpu.copy_from_user(argument, 24))
    if mode & ~_DONT_WAKE:
        raise Refused(errno.EINVAL, f"mode {mode:#x}")

    def act(area: Area, at: int, _done: int) -> None:
        if userfault.in_object(area, at, file.space.page_size.bit_length() - 1):
            raise Refused(errno.EEXIST, "there is a page already")
        userfault.show(file.space, area, at)

    _each_page(task, file, start, length, argument + 24, act, wake=not mode & _DONT_WAKE)


def _continue(task: Task, file: UserFaultFile, argument: int) -> None:
    start, length, mode = struct.unpack("<3Q", task.cpu.copy_from_user(argument, 24))
    if mode & ~_DONT_WAKE:
        raise Refused(errno.EINVAL, f"mode {mode:#x}")

    def act(area: Area, at: int, _done: int) -> None:
        if not area.shared:
            raise Refused(errno.EINVAL, "not shared memory")
        if not userfault.in_object(area, at, file.space.page_size.bit_length() - 1):
            raise Refused(errno.EFAULT, "the object has no such page")
        userfault.show(file.space, area, at)

    _each_page(task, file, start, length, argument + 24, act, wake=not mode & _DONT_WAKE)


def _write_protect(task: Task, file: UserFaultFile, argument: int) -> None:
    start, length, mode = struct.unpack("<3Q", task.cpu.copy_from_user(argument, 24))
    on = bool(mode & _PROTECT_WP)
    if mode & ~(_PROTECT_WP | _PROTECT_DONT_WAKE) or (on and mode & _PROTECT_DONT_WAKE):
        raise Refused(errno.EINVAL, f"mode {mode:#x}")
    end = _range(task, file, start, length)
    areas = file.space.areas.overlapping(start, end)
    if not areas or any(not area.flags & USER_WP or area.watcher is not file for area in areas):
        raise Refused(errno.ENOENT, "nobody watches it for writes")
    for area in areas:
        userfault.protect(file.space, max(area.start, start), min(area.end, end), on=on)
    if not on and not mode & _PROTECT_DONT_WAKE:
        file.wake(start, end)


_ACTIONS: dict[int, Callable[[Task, UserFaultFile, int], None]] = {
    _request(_REGISTER, 32): _register,
    _request(_UNREGISTER, 16, 2): _unregister,
    _request(_WAKE, 16, 2): _wake,
    _request(_COPY, 40): _copy,
    _request(_ZEROPAGE, 32): _zero,
    _request(_WRITEPROTECT, 24): _write_protect,
    _request(_CONTINUE, 32): _continue,
}
"""By the whole request: its number, the size of its argument, and the direction (_IOR: 2, _IOWR: 3)."""
