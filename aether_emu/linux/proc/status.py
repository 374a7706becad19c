"""/proc/self/status, statm and limits: the process in numbers, as Linux 6.6 writes them (fs/proc/array.c)."""

from __future__ import annotations

from collections.abc import Callable

from aether_emu.linux.proc import smaps
from aether_emu.linux.task.process import RLIM_INFINITY, RLIMIT_SIGPENDING, Process
from aether_emu.mm.space import AddressSpace

_DESCRIPTORS = 64  # room that a table of descriptors has from the start (NR_OPEN_DEFAULT)
_CAPABILITIES = (1 << 41) - 1  # up to CAP_CHECKPOINT_RESTORE
_RESOURCES = (
    ("Max cpu time", "seconds"), ("Max file size", "bytes"), ("Max data size", "bytes"),
    ("Max stack size", "bytes"), ("Max core file size", "bytes"), ("Max resident set", "bytes"),
    ("Max processes", "processes"), ("Max open files", "files"), ("Max locked memory", "bytes"),
    ("Max address space", "bytes"), ("Max file locks", "locks"), ("Max pending signals", "signals"),
    ("Max msgqueue size", "bytes"), ("Max nice priority", ""), ("Max realtime priority", ""),
    ("Max realtime timeout", "us"),
)  # fmt: skip

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


def status_text(process: Process) -> bytes:
    """/proc/self/status (proc_pid_status(5))."""
    rows = (*_identity(process), *_memory(process), *_signals(process), *_rights(process))
    return "".join(f"{name}:\t{value}\n" for name, value in rows).encode()


def _identity(process: Process) -> Rows:
    pid, config, leader = process.pid, process.config, process.tasks[0]
    highest = max(process.files.table.descriptors, default=0)
    room = max(_DESCRIPTORS, 1 << highest.bit_length())
    return (
        ("Name", leader.name.decode("utf-8", "replace")),
        ("Umask", f"{process.files.mask:04o}"),
        ("State", "R (running)"),
        ("Tgid", pid),
        ("Ngid", 0),
        ("Pid", pid),
        ("PPid", process.parent_pid),
        ("TracerPid", 0),
        ("Uid", "\t".join([str(config.uid)] * 4)),
        ("Gid", "\t".join([str(config.gid)] * 4)),
        ("FDSize", room),
        ("Groups", f"{config.gid} "),
        *((name, pid) for name in ("NStgid", "NSpid", "NSpgid", "NSsid")),
    )


def _memory(process: Process) -> Rows:
    space = process.mm
    counts, (own, others) = resident(space), _code(process)
    most = max(process.kernel.peak_memory(), counts["Rss"])
    sizes = (
        ("VmPeak", space.most_reserved),
        ("VmSize", space.reserved),
        ("VmLck", space.locked),
        ("VmPin", 0),
        ("VmHWM", most),
        ("VmRSS", counts["Rss"]),
        ("RssAnon", counts["Anonymous"]),
        ("RssFile", counts["File"]),
        ("RssShmem", counts["Shmem"]),
        ("VmData", space.data),
        ("VmStk", _stack(space)),
        ("VmExe", own),
        ("VmLib", others),
        ("VmPTE", space.table.tables * space.page_size),
        ("VmSwap", 0),
        ("HugetlbPages", 0),
    )
    untag = (1 << 56) - 1 if process.abi.isa == "arm64" else (1 << 64) - 1
    return (
        *((name, f"{size >> 10:8d} kB") for name, size in sizes),
        ("CoreDumping", 0),
        ("THP_enabled", 0),
        ("untag_mask", f"{untag:#x}"),
    )


def _signals(process: Process) -> Rows:
    signals, leader = process.signals, process.tasks[0]
    pending, shared = leader.signals.pending.mask, signals.pending.mask

    def actions(chosen: Callable[[int], bool]) -> int:
        return sum(1 << n - 1 for n, a in enumerate(signals.actions) if n and chosen(a.handler))

    masks = (
        ("SigPnd", pending),
        ("ShdPnd", shared),
        ("SigBlk", leader.signals.blocked),
        ("SigIgn", actions(lambda handler: handler == 1)),
        ("SigCgt", actions(lambda handler: handler > 1)),
    )
    return (
        ("Threads", len(process.tasks)),
        ("SigQ", f"{process.queued_signals}/{process.limits[RLIMIT_SIGPENDING][0]}"),
        *((name, f"{mask:016x}") for name, mask in masks),
    )


def _rights(process: Process) -> Rows:
    owned = _CAPABILITIES if process.is_root else 0
    sets = (("CapInh", 0), ("CapPrm", owned), ("CapEff", owned), ("CapBnd", _CAPABILITIES), ("CapAmb", 0))
    return (
        *((name, f"{mask:016x}") for name, mask in sets),
        ("NoNewPrivs", process.no_new_privileges),
        ("Seccomp", 0),
        ("Seccomp_filters", 0),
        ("Speculation_Store_Bypass", "not vulnerable"),
        ("SpeculationIndirectBranch", "not affected"),
        ("Cpus_allowed", 1),
        ("Cpus_allowed_list", 0),
        ("Mems_allowed", 1),
        ("Mems_allowed_list", 0),
        ("voluntary_ctxt_switches", process.tasks[0].waits),
        ("nonvoluntary_ctxt_switches", 0),
    )


def statm_text(process: Process) -> bytes:
    """/proc/self/statm (proc_pid_statm(5)), in pages."""
    space = process.mm
    counts = resident(space)
    shared, data = counts["File"] + counts["Shmem"], space.data + _stack(space)
    sizes = (space.reserved, counts["Rss"], shared, _code(process)[0], 0, data, 0)
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
