"""/proc/PID/status, stat, statm and limits: a task in numbers, as Linux 6.6 writes them (fs/proc/array.c).

A zombie has given back its memory and files: what is told of those is left out, or 0.
"""

from __future__ import annotations

from collections.abc import Callable

from aether_emu.linux.abi import signal as sig
from aether_emu.linux.proc import smaps
from aether_emu.linux.proc.cpus import as_list, as_mask
from aether_emu.linux.task.job_control import Controlling
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.resource_limits import RLIM_INFINITY, RLIMIT_SIGPENDING
from aether_emu.linux.task.scheduling import ORDINARY, REAL_TIME
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.usage import Usage
from aether_emu.linux.task.wait import PageWait, Unfinished
from aether_emu.mm.space import AddressSpace

_DESCRIPTORS = 64  # room that a table of descriptors has from the start (NR_OPEN_DEFAULT)
_RESOURCES = (
    ("Max cpu time", "seconds"), ("Max file size", "bytes"), ("Max data size", "bytes"),
    ("Max stack size", "bytes"), ("Max core file size", "bytes"), ("Max resident set", "bytes"),
    ("Max processes", "processes"), ("Max open files", "files"), ("Max locked memory", "bytes"),
    ("Max address space", "bytes"), ("Max file locks", "locks"), ("Max pending signals", "signals"),
    ("Max msgqueue size", "bytes"), ("Max nice priority", ""), ("Max realtime priority", ""),
    ("Max realtime timeout", "us"),
)  # fmt: skip

_RLIMIT_RSS = 5
_PTS_MAJOR = 136
TICKS = 100
"""What times in /proc count in: parts of a second (USER_HZ)."""

Rows = tuple[tuple[str, object], ...]


def resident(space: AddressSpace) -> dict[str, int]:
    """Bytes by field, as smaps counts them."""
    return {name: int(counts[0]) for name, counts in smaps.usage(space, [0]).items()}


def _code(process: Process) -> tuple[int, int]:
    """Bytes of the program's own code, and of all other (libraries)."""
    start, end = process.program.code
    everything = sum(area.length for area in process.mm.areas if area.is_code)
    own = min(process.mm.page_up(end) - (start & -process.mm.page_size), everything)
    return own, everything - own


def _stack(space: AddressSpace) -> int:
    return sum(area.length for area in space.areas if area.grows_down)


def state_of(process: Process, task: Task | None) -> str:
    """The letter and the word for what a task does. Without a task it has ended."""
    if task is None or task.is_over:
        return "Z (zombie)"
    if process.stop_signal:
        return "T (stopped)"
    wait = task.wait
    if wait is None or wait.woken or isinstance(wait, Unfinished):
        return "R (running)"
    return "D (disk sleep)" if isinstance(wait, PageWait) else "S (sleeping)"


def threads_of(process: Process) -> int:
    """How many threads it has; its first one counts as long as it is not waited for."""
    return len(process.tasks) + (process.leader is None)


def name_of(process: Process, task: Task | None) -> bytes:
    """What a task is called, or was."""
    return process.name if task is None else task.name


def status_text(process: Process, tid: int, task: Task | None) -> bytes:
    """/proc/PID/status (proc_pid_status(5)) of the thread `tid`, which is `task` while it lives."""
    memory = () if task is None else _memory(process)
    rows = (*_identity(process, tid, task), *memory, *_signals(process, task), *_rights(process, task))
    return "".join(f"{name}:\t{value}\n" for name, value in rows).encode()


def _identity(process: Process, tid: int, task: Task | None) -> Rows:
    pid, who, room = process.pid, process.credentials if task is None else task.credentials, 0
    mask: Rows = ()
    if task is not None:
        highest = max(task.files.table.descriptors, default=0)
        room = max(_DESCRIPTORS, 1 << highest.bit_length())
        mask = (("Umask", f"{task.files.mask:04o}"),)
    return (
        ("Name", _escaped(name_of(process, task))),
        *mask,
        ("State", state_of(process, task)),
        ("Tgid", pid),
        ("Ngid", 0),
        ("Pid", tid),
        ("PPid", process.parent_pid),
        ("TracerPid", 0),
        ("Uid", "\t".join(map(str, (who.uid, who.euid, who.suid, who.fsuid)))),
        ("Gid", "\t".join(map(str, (who.gid, who.egid, who.sgid, who.fsgid)))),
        ("FDSize", room),
        ("Groups", "".join(f"{gid} " for gid in who.groups)),
        ("NStgid", pid),
        ("NSpid", tid),
        ("NSpgid", process.group),
        ("NSsid", process.session),
    )


def _escaped(name: bytes) -> str:
    """As Linux shows a name in a line: a line's end and a backslash are escaped (proc_task_name)."""
    text = name.decode("utf-8", "surrogateescape")
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _peak(process: Process) -> int:
    """The machine's peak. Since clear_refs 5: what the process had then, and what was taken at most since."""
    space = process.mm
    if space.peak_from is None:
        return process.kernel.peak_memory()
    had, frames = space.peak_from
    taken = space.physical.buddy.peak_since() - frames
    return had + (max(taken, 0) << space.table.format.page_shift)


def _memory(process: Process) -> Rows:
    space = process.mm
    counts, (own, others) = resident(space), _code(process)
    most = max(_peak(process), counts["Rss"])
    sizes = (
        ("VmPeak", space.account.most_reserved),
        ("VmSize", space.account.reserved),
        ("VmLck", space.account.locked),
        ("VmPin", 0),
        ("VmHWM", most),
        ("VmRSS", counts["Rss"]),
        ("RssAnon", counts["Anonymous"]),
        ("RssFile", counts["File"]),
        ("RssShmem", counts["Shmem"]),
        ("VmData", space.account.data),
        ("VmStk", _stack(space)),
        ("VmExe", own),
        ("VmLib", others),
        ("VmPTE", space.table.tables * space.page_size),
        ("VmSwap", counts["Own"]),
        ("HugetlbPages", counts["Shared_Hugetlb"] + counts["Private_Hugetlb"]),
    )
    untag = (1 << 56) - 1 if process.abi.isa == "arm64" else (1 << 64) - 1
    return (
        *((name, f"{size >> 10:8d} kB") for name, size in sizes),
        ("CoreDumping", 0),
        ("THP_enabled", int(space.physical.huge is not None and not space.no_huge)),
        ("untag_mask", f"{untag:#x}"),
    )


def _masks(process: Process, task: Task | None) -> dict[str, int]:
    """Signals by the name of their line: pending, blocked, ignored, caught."""
    signals = process.signals

    def actions(chosen: Callable[[int], bool]) -> int:
        return sum(1 << n - 1 for n, a in enumerate(signals.actions) if n and chosen(a.handler))

    return {
        "SigPnd": 0 if task is None else task.signals.pending.mask,
        "ShdPnd": signals.pending.mask,
        "SigBlk": 0 if task is None else task.signals.blocked,
        "SigIgn": actions(lambda handler: handler == sig.SIG_IGN),
        "SigCgt": actions(lambda handler: handler not in (sig.SIG_DFL, sig.SIG_IGN)),
    }


def _signals(process: Process, task: Task | None) -> Rows:
    masks = _masks(process, task).items()
    return (
        ("Threads", threads_of(process)),
        ("SigQ", f"{process.queued_signals}/{process.limits[RLIMIT_SIGPENDING][0]}"),
        *((name, f"{mask:016x}") for name, mask in masks),
    )


def _rights(process: Process, task: Task | None) -> Rows:
    who = process.credentials if task is None else task.credentials
    count = len(process.kernel.cpus)
    allowed = (1 << count) - 1 if task is None else task.affinity
    sets = (
        ("CapInh", who.inheritable),
        ("CapPrm", who.permitted),
        ("CapEff", who.effective),
        ("CapBnd", who.bounding),
        ("CapAmb", who.ambient),
    )
    return (
        *((name, f"{mask:016x}") for name, mask in sets),
        ("NoNewPrivs", 0 if task is None else task.no_new_privileges),
        ("Seccomp", 0),
        ("Seccomp_filters", 0),
        ("Speculation_Store_Bypass", "not vulnerable"),
        ("SpeculationIndirectBranch", "not affected"),
        ("Cpus_allowed", as_mask(allowed, count)),
        ("Cpus_allowed_list", as_list(allowed)),
        ("Mems_allowed", 1),
        ("Mems_allowed_list", 0),
        ("voluntary_ctxt_switches", 0 if task is None else task.waits),
        ("nonvoluntary_ctxt_switches", 0 if task is None else task.usage.preemptions),
    )


def io_text(process: Process, task: Task | None, *, whole: bool) -> bytes:
    """/proc/PID/io: of a process with the children that it has waited for. No byte comes from a disk."""
    used = Usage() if task is None else task.usage
    if whole:
        used = process.usage.plus(process.usage_of_children)
        for each in process.tasks:
            used.add_transfers(each.usage)
    rows = (
        ("rchar", used.read),
        ("wchar", used.written),
        ("syscr", used.reads),
        ("syscw", used.writes),
        *((name, 0) for name in ("read_bytes", "write_bytes", "cancelled_write_bytes")),
    )
    return "".join(f"{name}: {value}\n" for name, value in rows).encode()


def _used(process: Process, task: Task | None, *, whole: bool) -> Usage:
    """What the process has used, or the thread alone."""
    if whole:
        return process.used()
    return Usage() if task is None else task.used()


def _terminal(terminal: Controlling) -> tuple[int, int]:
    """The device number of a terminal, as Linux shows it, and the group in front."""
    number = terminal.number
    return number & 0xFF | _PTS_MAJOR << 8 | (number & ~0xFF) << 12, terminal.foreground or -1


def stat_text(process: Process, tid: int, task: Task | None, *, whole: bool) -> bytes:
    """/proc/PID/stat (proc_pid_stat(5)) of the thread `tid`; of the `whole` process, or of it alone."""
    fields = [0] * 52
    terminal, front = (0, -1) if process.terminal is None else _terminal(process.terminal)
    fields[3:8] = [process.parent_pid, process.group, process.session, terminal, front]
    used, children = _used(process, task, whole=whole), process.usage_of_children
    fields[9:13] = [used.faults, children.faults, used.major, children.major]
    times = [each for usage in (used, children) for each in (usage.time - usage.system, usage.system)]
    fields[13:17] = [time * TICKS // 10**9 for time in times]
    scheduling = ORDINARY if task is None else task.scheduling
    real_time = scheduling.policy in REAL_TIME
    priority = -1 - scheduling.priority if real_time else 20 + scheduling.nice
    fields[17:20] = [priority, scheduling.nice, threads_of(process)]
    fields[39:41] = [scheduling.priority if real_time else 0, scheduling.policy]
    fields[21] = process.started * TICKS // 10**9
    fields[24] = process.limits[_RLIMIT_RSS][0]
    if task is not None:
        program, (arguments, environment, end) = process.program, process.program.strings
        fields[22] = process.mm.account.reserved
        fields[23] = resident(process.mm)["Rss"] >> process.mm.table.format.page_shift
        fields[25:28] = [*program.code, program.stack_pointer]
        fields[44:51] = [*program.data, process.mm.heap_start, arguments, environment, environment, end]
    masks = _masks(process, task)
    fields[30] = masks["SigPnd"] | (masks["ShdPnd"] if whole else 0)
    fields[31:34] = [masks["SigBlk"], masks["SigIgn"], masks["SigCgt"]]
    fields[30:34] = [mask & (1 << 31) - 1 for mask in fields[30:34]]
    fields[37:39] = [process.exit_signal, 0 if task is None else task.home]
    ended = process.ended
    if ended is not None:
        fields[51] = ended.signal or (ended.code & 0xFF) << 8
    head = b"%d (%s) %s " % (tid, name_of(process, task), state_of(process, task)[0].encode())
    return head + " ".join(str(value) for value in fields[3:]).encode() + b"\n"


def schedstat_text(process: Process, task: Task | None, *, whole: bool) -> bytes:
    """/proc/PID/schedstat: ns on a CPU, ns of waiting for one, how often it was given one."""
    turns = 0 if task is None else task.waits + task.usage.preemptions + 1
    return b"%d 0 %d\n" % (_used(process, task, whole=whole).time, turns)


def syscall_text(process: Process, task: Task | None) -> bytes:
    """/proc/PID/syscall (proc_pid_syscall(5)): the call in which it waits, its arguments, and where."""
    if task is None or task.working or state_of(process, task).startswith("R"):
        return b"running\n"
    registers = task.cpu.registers() if task.running else task.registers
    names = ("rsp", "rip") if process.abi.isa == "x86_64" else ("sp", "pc")
    where = tuple(registers[name] for name in names)
    if task.call is None:
        return b"-1 0x%x 0x%x\n" % where
    number, arguments = task.call
    return b"%d 0x%x 0x%x 0x%x 0x%x 0x%x 0x%x 0x%x 0x%x\n" % (number, *arguments, *where)


def statm_text(process: Process, task: Task | None) -> bytes:
    """/proc/PID/statm (proc_pid_statm(5)), in pages."""
    if task is None:
        return b"0 0 0 0 0 0 0\n"
    space = process.mm
    counts = resident(space)
    shared, data = counts["File"] + counts["Shmem"], space.account.data + _stack(space)
    sizes = (space.account.reserved, counts["Rss"], shared, _code(process)[0], 0, data, 0)
    return b"%d %d %d %d %d %d %d\n" % tuple(size >> space.table.format.page_shift for size in sizes)


def limits_text(process: Process) -> bytes:
    """/proc/self/limits (proc_pid_limits(5))."""

    def shown(value: int) -> str:
        return "unlimited" if value == RLIM_INFINITY else str(value)

    lines = [f"{'Limit':<25} {'Soft Limit':<20} {'Hard Limit':<20} {'Units':<10}"]
    for (name, unit), resource in zip(_RESOURCES, sorted(process.limits), strict=True):
        soft, hard = process.limits[resource]
        lines.append(f"{name:<25} {shown(soft):<20} {shown(hard):<20} " + (f"{unit:<10}" if unit else ""))
    return "".join(line + "\n" for line in lines).encode()
