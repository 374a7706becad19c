"""Numbers, limits, threads' bookkeeping, randomness, and the end of a process."""

from __future__ import annotations

import errno
import struct

from aether_emu.errors import Refused
from aether_emu.linux.abi import RELEASE
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.calls.arguments import is_arm64
from aether_emu.linux.calls.jobs import find_process
from aether_emu.linux.calls.user import (
    read_string,
    read_struct,
    require_user,
    s32,
    scatter,
    u32,
    write_struct,
)
from aether_emu.linux.credentials import SYS_RESOURCE
from aether_emu.linux.files.open_file import MOST_PER_CALL
from aether_emu.linux.task.ended import Ended
from aether_emu.linux.task.process import PER_LINUX32, PER_MASK, UNAME26
from aether_emu.linux.task.resource_limits import RLIMIT_CPU, RLIMIT_NOFILE, RLIMITS
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.usage import Usage
from aether_emu.machine.cpu import UserFault

_ARCH_SET_GS, _ARCH_SET_FS, _ARCH_GET_FS, _ARCH_GET_GS = 0x1001, 0x1002, 0x1003, 0x1004
_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
_PR_SET_NAME, _PR_GET_NAME = 15, 16
_GRND_KNOWN = 7
_ROBUST_HEAD = 24
_SELF, _CHILDREN, _THREAD = 0, -1, 1


# ---- the end


def sys_exit(task: Task, code: int, *_: int) -> int:
    """exit(2): the end of one task; the last one ends the process."""
    if all(other.is_over for other in task.process.tasks if other is not task):
        return sys_exit_group(task, code)
    task.end()
    return 0


def sys_exit_group(task: Task, code: int, *_: int) -> int:
    task.clear_number()
    task.process.end(Ended(code=code & 0xFF))
    return 0


# ---- numbers


def sys_getpid(task: Task, *_: int) -> int:
    return task.process.pid


def sys_gettid(task: Task, *_: int) -> int:
    return task.tid


def sys_getppid(task: Task, *_: int) -> int:
    return task.process.parent_pid


def sys_uname(task: Task, result: int, *_: int) -> int:
    personality, machine, release = task.process.personality, task.process.abi.machine, RELEASE
    if personality & PER_MASK == PER_LINUX32:
        machine = "i686"
    if personality & UNAME26:  # for programs that expect a 2.6: the minor number is added to 60
        release = f"2.6.{60 + int(RELEASE.split('.')[1])}"
    fields = ("Linux", task.process.config.hostname, release, "#1 SMP aether_emu", machine, "(none)")
    task.cpu.copy_to_user(result, b"".join(text.encode()[:64].ljust(65, b"\0") for text in fields))
    return 0


def sys_personality(task: Task, wanted: int, *_: int) -> int:
    """personality(2): kept. Bits that say how the next program is started find no execve here."""
    before = task.process.personality
    if u32(wanted) & PER_MASK == PER_LINUX32 and is_arm64(task):
        raise Refused(errno.EINVAL, "the CPU executes no 32-bit programs")
    if u32(wanted) != 0xFFFF_FFFF:
        task.process.personality = u32(wanted)
    return before


# ---- threads


def sys_set_tid_address(task: Task, address: int, *_: int) -> int:
    task.clear_child_tid = address
    return task.tid


def sys_set_robust_list(task: Task, head: int, length: int, *_: int) -> int:
    """Kept with the task: `task.robust` walks the list when it ends."""
    if length != _ROBUST_HEAD:
        raise Refused(errno.EINVAL, "the list head has another size")
    task.robust_list = (head, length)
    return 0


def sys_get_robust_list(task: Task, tid: int, head: int, length: int, *_: int) -> int:
    other = task.process.registry.tasks.get(s32(tid)) if s32(tid) else task
    if not isinstance(other, Task):
        raise Refused(errno.ESRCH, f"no task {s32(tid)}")
    if not task.may_inspect(other.process, real=True):
        raise Refused(errno.EPERM, "another user's thread")
    write_struct(task.cpu, length, "Q", _ROBUST_HEAD)
    write_struct(task.cpu, head, "Q", other.robust_list[0])
    return 0


def sys_arch_prctl(task: Task, code: int, address: int, *_: int) -> int:
    cpu = task.cpu
    operation = s32(code)
    if operation in (_ARCH_SET_FS, _ARCH_SET_GS):
        if address >= task.process.abi.user_end:
            raise Refused(errno.EPERM, "the base is no user address")
        cpu.write("fs_base" if operation == _ARCH_SET_FS else "gs_base", address)
    elif operation in (_ARCH_GET_FS, _ARCH_GET_GS):
        base = cpu.read("fs_base" if operation == _ARCH_GET_FS else "gs_base")
        write_struct(cpu, address, "Q", base)
    else:
        raise Refused(errno.EINVAL, f"no operation {operation:#x}")
    return 0


def _change_identity(task: Task, option: int, arguments: tuple[int, int, int, int]) -> int:
    """The options of prctl(2) that are about who a task is."""
    from aether_emu.linux.calls.identities import PRCTL  # noqa: PLC0415  # few change it

    if option not in PRCTL:
        raise Refused(errno.EINVAL, f"no option {option}")
    return PRCTL[option](task, arguments)


def sys_prctl(task: Task, option: int, argument: int, c: int, d: int, e: int, *_: int) -> int:
    option = s32(option)
    if option == _PR_SET_NAME:
        task.name = _read_name(task, argument)
    elif option == _PR_GET_NAME:
        task.cpu.copy_to_user(argument, task.name.ljust(16, b"\0"))
    elif option == _PR_SET_PDEATHSIG and argument <= sig.SIGNALS:
        task.death_signal = argument
    elif option == _PR_GET_PDEATHSIG:
        write_struct(task.cpu, argument, "i", task.death_signal)
    elif option == _PR_SET_CHILD_SUBREAPER:
        task.process.reaps_orphans = bool(argument)
    elif option == _PR_GET_CHILD_SUBREAPER:
        write_struct(task.cpu, argument, "i", task.process.reaps_orphans)
    else:
        return _change_identity(task, option, (argument, c, d, e))
    return 0


def _read_name(task: Task, address: int) -> bytes:
    try:
        return read_string(task.cpu, address, 16)
    except Refused:  # a longer name is cut, not refused
        return task.cpu.copy_from_user(address, 15)


# ---- resources


def sys_prlimit64(task: Task, pid: int, resource: int, new: int, old: int, *_: int) -> int:
    wanted = read_struct(task.cpu, new, "QQ") if new else None
    process = find_process(task, pid)
    who, owner = task.credentials, process.credentials
    if process is not task.process and not who.is_all_of(owner) and not who.has(SYS_RESOURCE):
        raise Refused(errno.EPERM, "another user's process")
    resource = u32(resource)
    if resource >= RLIMITS:
        raise Refused(errno.EINVAL, f"no resource {resource}")
    before = process.limits[resource]
    if wanted is not None:
        soft, hard = wanted
        if soft > hard:
            raise Refused(errno.EINVAL, "the soft limit is over the hard one")
        # What limits those who may raise it is the table of descriptors itself (fs.nr_open).
        if hard > before[1] and (resource == RLIMIT_NOFILE or not who.has(SYS_RESOURCE)):
            raise Refused(errno.EPERM, "the hard limit cannot grow")
        process.limits[resource] = (soft, hard)
        process.limits.apply(resource)
        if resource == RLIMIT_CPU:
            task.end_turn()
    if old:
        write_struct(task.cpu, old, "QQ", *before)
    return 0


def sys_getrlimit(task: Task, resource: int, result: int, *_: int) -> int:
    return sys_prlimit64(task, 0, resource, 0, result)


def sys_setrlimit(task: Task, resource: int, new: int, *_: int) -> int:
    return sys_prlimit64(task, 0, resource, new, 0)


def sys_getrusage(task: Task, who: int, result: int, *_: int) -> int:
    who, process = s32(who), task.process
    if who not in (_SELF, _CHILDREN, _THREAD):
        raise Refused(errno.EINVAL, "nobody to account for")
    process.kernel.observe_time()
    if who == _CHILDREN:
        used = process.usage_of_children
    elif who == _SELF:
        used = process.used()
    else:
        used = task.used()
    waits = task.waits if who == _THREAD else sum(member.waits for member in process.tasks)
    peak = process.kernel.peak_memory() if who != _CHILDREN or used.time else 0
    task.cpu.copy_to_user(result, encode_usage(used, peak, waits))
    return 0


def encode_usage(used: Usage, peak: int, waits: int = 0) -> bytes:
    """struct rusage, with `peak` bytes of memory."""
    times = [part for time in (used.time - used.system, used.system) for part in divmod(time // 1000, 10**6)]
    fields = [*times, peak >> 10, 0, 0, 0, used.faults, used.major, *[0] * 8]
    fields[16:18] = waits or used.waits, used.preemptions
    return struct.pack("<18q", *fields)


def sys_sysinfo(task: Task, result: int, *_: int) -> int:
    kernel = task.process.kernel
    page, buddy = task.process.mm.page_size, kernel.physical.buddy
    total, free = buddy.total * page, buddy.free_frames * page
    swap = kernel.swap_bytes()
    uptime = kernel.observe_time() // 10**9
    packed = struct.pack("<q3Q6QHHI2QI4x", uptime, 0, 0, 0, total, free, 0, 0, *swap, 1, 0, 0, 0, 0, 1)
    task.cpu.copy_to_user(result, packed)
    return 0


def sys_getrandom(task: Task, address: int, length: int, flags: int, *_: int) -> int:
    if u32(flags) & ~_GRND_KNOWN or u32(flags) & 6 == 6:
        raise Refused(errno.EINVAL, "unknown flags")
    require_user(address, length, task.process.abi.user_end)
    length = min(length, MOST_PER_CALL)
    stream = task.process.kernel.streams.stream("getrandom")
    (done,) = task.progress or (0,)
    while done < length:
        task.checkpoint(done)
        part = stream.bytes(min(1 << 16, length - done))
        written = scatter(task.cpu, [(address + done, len(part))], part)
        done += written
        if written < len(part):
            if not done:
                raise UserFault(f"{address:#x} cannot be written")
            break
    return done
