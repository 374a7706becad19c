"""userfaultfd(2), ioctl_userfaultfd(2): a program answers the faults of its own memory.

Refusals and their order are those of Linux 6.18 (fs/userfaultfd.c). Addresses and lengths are in bytes and
whole pages. A control that stops part of the way tells how far it came in its own argument, as there.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Any

from aether_emu.errors import Refused
from aether_emu.linux.calls.arguments import wait_for
from aether_emu.linux.calls.user import Piece, behind, s32, scatter, total
from aether_emu.linux.credentials import SYS_PTRACE
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import POLLIN, OpenFile
from aether_emu.linux.files.stat import Stat
from aether_emu.linux.files.user_faults import API, EVENT_FORK, FEATURES, MESSAGE, UserFaultFile
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import UserFault
from aether_emu.mm import userfault
from aether_emu.mm.allocation import USER_FAULTS, USER_MINOR, USER_MISSING, USER_WP, Area
from aether_emu.mm.space import AddressSpace

_USER_MODE_ONLY = 1
_MODES = {1: USER_MISSING, 2: USER_WP, 4: USER_MINOR}
_REGISTER, _UNREGISTER, _WAKE, _COPY, _ZEROPAGE, _MOVE, _WRITEPROTECT, _CONTINUE, _POISON = range(9)
_API = 0x3F
_OF_API = 1 << _REGISTER | 1 << _UNREGISTER | 1 << _API
_NEW = 0xAA00  # USERFAULTFD_IOC_NEW
_DONT_WAKE = 1
_BATCH = 256  # pages between two looks at whether the run is to end
_PROTECTED = 1 << 16  # likewise, while stores are forbidden or permitted
_COPY_WP, _PROTECT_WP, _PROTECT_DONT_WAKE, _CONTINUE_WP, _MOVE_HOLES = 2, 1, 2, 2, 2


def _request(number: int, size: int, direction: int = 3) -> int:
    return direction << 30 | size << 16 | 0xAA << 8 | number


def sys_userfaultfd(task: Task, flags: int, *_: int) -> int:
    flags = s32(flags)
    free = flags & _USER_MODE_ONLY or task.process.kernel.user_faults_for_all
    if not free and not task.credentials.has(SYS_PTRACE):
        raise Refused(errno.EPERM, "faults of system calls are answered with CAP_SYS_PTRACE alone")
    return open_new(task, flags)


def open_new(task: Task, flags: int) -> int:
    """A new one, for a task that may have it: by the call, or by /dev/userfaultfd."""
    if flags & ~(fl.O_CLOEXEC | fl.O_NONBLOCK | _USER_MODE_ONLY):
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    only = bool(flags & _USER_MODE_ONLY)
    files, kernel = task.files, task.process.kernel
    files.table.require_room()
    stat = files.namespace.nameless_stat(0o600)
    file = UserFaultFile(
        task.process.mm,
        lambda: kernel.entry.task.tid,
        flags & fl.O_NONBLOCK,
        stat,
        programs_only=only,
        cloexec=bool(flags & fl.O_CLOEXEC),
    )
    return files.table.install(file, cloexec=bool(flags & fl.O_CLOEXEC))


def restored(described: dict[str, Any], space: AddressSpace, kernel: Kernel) -> UserFaultFile:
    """One as it was captured, of this address space."""
    file = UserFaultFile(
        space,
        lambda: kernel.entry.task.tid,
        described["flags"],
        Stat(*described["stat"]),
        programs_only=described["programs_only"],
        cloexec=described["cloexec"],
    )
    file.go_on(described)
    return file


def control_device(task: Task, request: int, argument: int) -> int:
    """ioctl(2) on /dev/userfaultfd: whoever has it open needs no other right. The argument is the flags."""
    if request != _NEW:
        raise Refused(errno.EINVAL, f"request {request:#x}")
    return open_new(task, s32(argument))


def control(task: Task, file: OpenFile, request: int, argument: int) -> int:
    """ioctl(2) on a userfaultfd."""
    assert isinstance(file, UserFaultFile), "its kind"
    if request == _request(_API, 24):
        return _choose(task, file, argument)
    action = _ACTIONS.get(request)
    if file.features is None or action is None:
        raise Refused(errno.EINVAL, f"request {request:#x}, or no features were chosen before")
    number = request & 0xFF
    if file.is_changing and number in _TOLD:
        told = _TOLD[number]
        if told is not None:
            task.cpu.copy_to_user(argument + told, struct.pack("<q", -errno.EAGAIN))
        raise Refused(errno.EAGAIN, "an event was not read: what is answered might be gone")
    action(task, file, argument)
    return 0


def _choose(task: Task, file: UserFaultFile, argument: int) -> int:
    """UFFDIO_API: the features that the program wants, once."""
    api, features, _ = struct.unpack("<3Q", task.cpu.copy_from_user(argument, 24))
    refused = None
    if api != API:
        refused = Refused(errno.EINVAL, f"API {api:#x}")
    elif features & EVENT_FORK and not task.credentials.has(SYS_PTRACE):
        refused = Refused(errno.EPERM, "only CAP_SYS_PTRACE hears of forks")
    elif features & ~FEATURES or file.features is not None:
        refused = Refused(errno.EINVAL, f"features {features:#x}, or chosen already")
    if refused is not None:
        task.cpu.copy_to_user(argument, bytes(24))
        raise refused
    task.cpu.copy_to_user(argument, struct.pack("<3Q", API, FEATURES, _OF_API))
    file.features = features
    return 0


def read(task: Task, file: OpenFile, pieces: list[Piece]) -> int:
    """read(2): faults first, then events, as many as have room. The child of a fork gets a descriptor.

    A message that cannot be written is lost, as on Linux.
    """
    assert isinstance(file, UserFaultFile), "its kind"
    wanted, done = total(pieces), 0
    file.require_room(wanted)
    try:
        while wanted - done >= MESSAGE:
            message = file.next_fault() or _event(task, file)
            if message is None:
                if done:
                    break
                wait_for(file.wait_for(POLLIN))
                raise AssertionError("it waits")
            moved = scatter(task.cpu, behind(pieces, done) if done else pieces, message)
            if moved < MESSAGE:
                raise UserFault("a message cannot be written")
            done += MESSAGE
    except (Refused, UserFault):
        if not done:
            raise
    return done


def _event(task: Task, file: UserFaultFile) -> bytes | None:
    """The message of the next event, which counts as read: whoever brought it about goes on."""
    event = file.next_event()
    if event is None:
        return None
    data = event.data
    if event.child is not None:
        data = task.files.table.install(event.child, cloexec=event.child.cloexec), 0, 0
    file.has_read(event)
    return struct.pack("<B7x3Q", event.kind, *data)


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
    able = 1 << _WAKE | 1 << _COPY | 1 << _POISON
    if not any(area.huge_size for area in file.space.areas.overlapping(start, end)):
        able |= 1 << _ZEROPAGE | 1 << _MOVE
    able |= (1 << _WRITEPROTECT if flags & USER_WP else 0) | (1 << _CONTINUE if flags & USER_MINOR else 0)
    task.cpu.copy_to_user(argument + 24, struct.pack("<Q", able))


def _unregister(task: Task, file: UserFaultFile, argument: int) -> None:
    start, length = struct.unpack("<2Q", task.cpu.copy_from_user(argument, 16))
    end = _range(task, file, start, length)
    areas = file.space.areas.overlapping(start, end)
    if not areas or any(not _may_leave(file, area) for area in areas):
        raise Refused(errno.EINVAL, "nothing is mapped there, or somebody else watches it")
    userfault.require_uncut(areas[0], start)
    userfault.unwatch(file.space, start, end, file)
    file.wake(start, end)


def _may_leave(file: UserFaultFile, area: Area) -> bool:
    mine = area.watcher is None or area.watcher is file
    return mine and userfault.watchable(area, area.flags & USER_FAULTS, file)


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
    end = _range(task, file, start, length)
    try:
        area = _answered(file, start, end)
    except Refused as error:
        task.cpu.copy_to_user(told, struct.pack("<q", -error.errno))
        raise
    page = area.huge_size or file.space.page_size
    (done,), refused = task.progress or (0,), None
    for at in range(start + done, end, page):
        if page > file.space.page_size or not done % (_BATCH * page):
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


def _answered(file: UserFaultFile, start: int, end: int) -> Area:
    """The area whose pages of a range are about to be answered. ENOENT, EINVAL."""
    area = file.space.areas.find(start)
    if area is None or area.watcher is not file or end > area.end:
        raise Refused(errno.ENOENT, "nobody watches all of it")
    if not userfault.fillable(area):
        raise Refused(errno.EINVAL, "its pages are not made by answers")
    userfault.require_uncut(area, start, end)
    return area


def _copy(task: Task, file: UserFaultFile, argument: int) -> None:
    to, source, length, mode = struct.unpack("<4Q", task.cpu.copy_from_user(argument, 32))
    if mode & ~(_DONT_WAKE | _COPY_WP) or source + length > 1 << 64 or length <= 0:
        raise Refused(errno.EINVAL, f"mode {mode:#x}")

    def act(area: Area, at: int, done: int) -> None:
        if mode & _COPY_WP and not area.flags & USER_WP:
            raise Refused(errno.EINVAL, "it is not watched for writes")
        page = area.huge_size or file.space.page_size

        def read() -> bytes:
            try:
                return task.cpu.copy_from_user(source + done, page)
            except UserFault:
                raise Refused(errno.EFAULT, "no such page to copy from") from None

        userfault.copy(file.space, area, at, read)
        if mode & _COPY_WP:
            userfault.protect(file.space, at, at + page, on=True)

    _each_page(task, file, to, length, argument + 32, act, wake=not mode & _DONT_WAKE)


def _zero(task: Task, file: UserFaultFile, argument: int) -> None:
    start, length, mode = struct.unpack("<3Q", task.cpu.copy_from_user(argument, 24))
    if mode & ~_DONT_WAKE:
        raise Refused(errno.EINVAL, f"mode {mode:#x}")

    def act(area: Area, at: int, _done: int) -> None:
        if area.huge_size:
            raise Refused(errno.EINVAL, "there is no huge page of zeros for every size")
        userfault.zero(file.space, area, at)

    _each_page(task, file, start, length, argument + 24, act, wake=not mode & _DONT_WAKE)


def _continue(task: Task, file: UserFaultFile, argument: int) -> None:
    start, length, mode = struct.unpack("<3Q", task.cpu.copy_from_user(argument, 24))
    if mode & ~(_DONT_WAKE | _CONTINUE_WP):
        raise Refused(errno.EINVAL, f"mode {mode:#x}")

    def act(area: Area, at: int, _done: int) -> None:
        if not (area.shared or area.huge_size) or (mode & _CONTINUE_WP and not area.flags & USER_WP):
            raise Refused(errno.EINVAL, "not shared memory, or not watched for writes")
        if not userfault.in_object(area, at, file.space.page_size.bit_length() - 1):
            raise Refused(errno.EFAULT, "the object has no such page")
        userfault.show(file.space, area, at)
        if mode & _CONTINUE_WP:
            userfault.protect(file.space, at, at + (area.huge_size or file.space.page_size), on=True)

    _each_page(task, file, start, length, argument + 24, act, wake=not mode & _DONT_WAKE)


def _poison(task: Task, file: UserFaultFile, argument: int) -> None:
    start, length, mode = struct.unpack("<3Q", task.cpu.copy_from_user(argument, 24))
    if mode & ~_DONT_WAKE:
        raise Refused(errno.EINVAL, f"mode {mode:#x}")

    def act(area: Area, at: int, _done: int) -> None:
        userfault.poison(file.space, area, at)

    _each_page(task, file, start, length, argument + 24, act, wake=not mode & _DONT_WAKE)


def _move(task: Task, file: UserFaultFile, argument: int) -> None:
    """UFFDIO_MOVE: pages of the caller's own memory, which are nowhere else afterwards."""
    to, source, length, mode = struct.unpack("<4Q", task.cpu.copy_from_user(argument, 32))
    space = file.space
    if space is not task.process.mm:
        raise Refused(errno.EINVAL, "another program's memory")
    _range(task, file, to, length)
    _range(task, file, source, length)
    if mode & ~(_DONT_WAKE | _MOVE_HOLES):
        raise Refused(errno.EINVAL, f"mode {mode:#x}")
    try:
        userfault.require_movable(space, to, source, length, file)
    except Refused as refused:
        task.cpu.copy_to_user(argument + 32, struct.pack("<q", -refused.errno))
        raise

    def act(_area: Area, at: int, done: int) -> None:
        space.physical.with_room(
            lambda: userfault.move(space, at, source + done, holes=bool(mode & _MOVE_HOLES))
        )

    _each_page(task, file, to, length, argument + 32, act, wake=not mode & _DONT_WAKE)


def _write_protect(task: Task, file: UserFaultFile, argument: int) -> None:
    start, length, mode = struct.unpack("<3Q", task.cpu.copy_from_user(argument, 24))
    on = bool(mode & _PROTECT_WP)
    if mode & ~(_PROTECT_WP | _PROTECT_DONT_WAKE) or (on and mode & _PROTECT_DONT_WAKE):
        raise Refused(errno.EINVAL, f"mode {mode:#x}")
    end, space = _range(task, file, start, length), file.space
    (position,) = task.progress or (start,)
    areas = space.areas.overlapping(position, end)
    if not areas or any(not area.flags & USER_WP or area.watcher is not file for area in areas):
        raise Refused(errno.ENOENT, "nobody watches it for writes")
    for area in areas:
        step = max(_PROTECTED * space.page_size, area.huge_size)
        userfault.require_uncut(area, start, end)
        high = min(area.end, end)
        for low in range(max(area.start, position), high, step):
            task.checkpoint(low)
            userfault.protect(space, low, min(low + step, high), on=on)
    if not on and not mode & _PROTECT_DONT_WAKE:
        file.wake(start, end)


_ACTIONS: dict[int, Callable[[Task, UserFaultFile, int], None]] = {
    _request(_REGISTER, 32): _register,
    _request(_UNREGISTER, 16, 2): _unregister,
    _request(_WAKE, 16, 2): _wake,
    _request(_COPY, 40): _copy,
    _request(_ZEROPAGE, 32): _zero,
    _request(_MOVE, 40): _move,
    _request(_WRITEPROTECT, 24): _write_protect,
    _request(_CONTINUE, 32): _continue,
    _request(_POISON, 32): _poison,
}
"""By the whole request: its number, the size of its argument, and the direction (_IOR: 2, _IOWR: 3)."""
_TOLD = {_COPY: 32, _ZEROPAGE: 24, _MOVE: 32, _WRITEPROTECT: None, _CONTINUE: 24, _POISON: 24}
"""Those that wait for events, and where in their arguments they tell how far they came."""
