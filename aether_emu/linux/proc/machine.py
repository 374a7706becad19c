"""What /proc tells of the machine: its memory, time, processor and the limits under sys/."""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from aether_emu.errors import Refused, shown
from aether_emu.linux.abi import RELEASE
from aether_emu.linux.cached_files import cache_texts
from aether_emu.linux.files.mounts import escaped
from aether_emu.linux.files.proc import Provided
from aether_emu.linux.files.synthetic import Text
from aether_emu.linux.ipc import limits as mqueue
from aether_emu.linux.ipc.messages import LARGEST, MOST_BYTES, MOST_QUEUES
from aether_emu.linux.ipc.semaphores import MOST_IN_A_SET, MOST_IN_ALL, MOST_OPERATIONS, MOST_SETS
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.net.internet import FIRST_PORT, LAST_PORT
from aether_emu.linux.net.socket import MOST_BACKLOG
from aether_emu.linux.proc import pools, status
from aether_emu.linux.proc.buddy import buddyinfo, pagetypeinfo
from aether_emu.linux.proc.overcommit import overcommit_texts
from aether_emu.linux.proc.slabinfo import slabinfo
from aether_emu.linux.proc.sysvipc import SHARED
from aether_emu.linux.proc.watermarks import marks_of, watermark_texts
from aether_emu.linux.task.process import Member, Process
from aether_emu.linux.task.registry import FIRST, LAST, Registry
from aether_emu.linux.task.task import Task
from aether_emu.linux.tty.limits import MOST as MOST_TERMINALS
from aether_emu.mm import ageing
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.hugepage import huge_order, leaves
from aether_emu.mm.objects.protocol import Backing
from aether_emu.mm.space import AddressSpace
from aether_emu.random import Stream

_WIDE = 10_000_000  # KiB: a number that takes a tab less
_OPEN_FILES = 1 << 20  # that a process may have, whatever its limit (fs.nr_open)
_DEVICES = b"Character devices:\n  1 mem\n  5 /dev/tty\n136 pts\n\nBlock devices:\n"
_EMPTY: Mapping[str, bytes] = {
    "partitions": b"major minor  #blocks  name\n\n",
    "diskstats": b"",
    "interrupts": b"           CPU0       \n",
    "softirqs": b"                    CPU0       \n",
    "cmdline": b"\n",
    "cgroups": b"#subsys_name\thierarchy\tnum_cgroups\tenabled\n",
    "devices": _DEVICES,
}
"""What the machine has nothing of, or nothing that changes."""


def machine_texts(process: Process) -> Mapping[str, Provided]:
    """What /proc tells of the machine, to a process."""
    kernel, registry = process.kernel, process.registry
    isa, cpus = process.abi.isa.encode(), len(kernel.cpus)
    terminals = process.files.namespace.terminals
    return {
        **{name: Text(f"{value}\n".encode) for name, value in _settings(process).items()},
        "sys/vm/nr_hugepages": pools.default_size(kernel),
        "sys/vm/nr_overcommit_hugepages": pools.default_overcommit(kernel),
        "sys/vm/hugetlb_shm_group": pools.segment_group(kernel),
        "sys/vm/unprivileged_userfaultfd": user_faults_text(kernel),
        **overcommit_texts(kernel.physical.overcommit),
        **watermark_texts(kernel),
        **cache_texts(kernel),
        "meminfo": lambda: _meminfo(kernel, registry),
        "uptime": lambda: b"%.2f %.2f\n" % tuple(ns / 10**9 for ns in _now_and_idle(kernel)),
        "sys/kernel/pty/nr": lambda: b"%d\n" % terminals.pairs,
        "loadavg": lambda: (
            b"0.00 0.00 0.00 %d/%d %d\n" % (_running(registry), len(registry.tasks), registry.last)
        ),
        "cpuinfo": lambda: b"".join(
            b"processor\t: %d\nmodel name\t: emulated %s\nphysical id\t: 0\nsiblings\t: %d\n"
            b"core id\t\t: %d\ncpu cores\t: %d\n\n" % (number, isa, cpus, number, cpus)
            for number in range(cpus)
        ),
        "stat": lambda: _stat(process),
        **{f"sysvipc/{name}": functools.partial(show, kernel) for name, show in SHARED.items()},
        "vmstat": lambda: _vmstat(kernel, registry),
        "swaps": lambda: _swaps(kernel),
        "pressure/memory": lambda: _pressure(kernel),
        "sys/kernel/random/boot_id": lambda: _uuid(kernel, "boot"),
        "sys/kernel/random/uuid": lambda: _uuid(kernel, None),
        **{name: _constant(text) for name, text in _EMPTY.items()},
        "buddyinfo": lambda: buddyinfo(kernel),
        "pagetypeinfo": Text(
            lambda: pagetypeinfo(kernel, huge_order(process.mm.table.format)), stat.S_IFREG | 0o400
        ),
        "slabinfo": Text(lambda: slabinfo(kernel), stat.S_IFREG | 0o400),
    }


def user_faults_text(kernel: Kernel) -> Text:
    """Whether userfaultfd(2) needs no right; root writes it: 0 or 1."""

    def accept(data: bytes) -> int:
        text = data.split(b"\0")[0].strip()
        if text not in (b"0", b"1"):
            raise Refused(errno.EINVAL, f"not set to {shown(text)}")
        kernel.user_faults_for_all = text == b"1"
        return len(data)

    return Text(lambda: b"%d\n" % kernel.user_faults_for_all, stat.S_IFREG | 0o644, accept)


def _settings(process: Process) -> dict[str, str | int]:
    """What does not change while the machine runs: below sys/, and the version."""
    config = process.config
    return {
        "version": f"Linux version {RELEASE} (aether_emu) #1 SMP",
        "sys/kernel/ostype": "Linux",
        "sys/kernel/osrelease": RELEASE,
        "sys/kernel/version": "#1 SMP aether_emu",
        "sys/kernel/hostname": config.hostname,
        "sys/kernel/domainname": "(none)",
        "sys/kernel/pid_max": LAST + 1,
        "sys/kernel/threads-max": process.registry.most,
        "sys/kernel/dmesg_restrict": 1,
        "sys/kernel/ngroups_max": 65536,
        "sys/kernel/cap_last_cap": 40,
        "sys/kernel/overflowuid": 65534,
        "sys/kernel/overflowgid": 65534,
        "sys/kernel/randomize_va_space": 2 if config.aslr else 0,
        "sys/kernel/shmmax": (1 << 64) - 1 - (1 << 24),
        "sys/kernel/shmall": (1 << 64) - 1 - (1 << 24),
        "sys/kernel/shmmni": 4096,
        "sys/kernel/pty/max": MOST_TERMINALS,
        "sys/kernel/pty/reserve": 0,
        "sys/kernel/sem": f"{MOST_IN_A_SET}\t{MOST_IN_ALL}\t{MOST_OPERATIONS}\t{MOST_SETS}",
        "sys/kernel/msgmax": LARGEST,
        "sys/kernel/msgmnb": MOST_BYTES,
        "sys/kernel/msgmni": MOST_QUEUES,
        "sys/kernel/core_pattern": "core",
        "sys/kernel/tainted": 0,
        "sys/fs/mqueue/msg_default": mqueue.MSG_DEFAULT,
        "sys/fs/mqueue/msg_max": mqueue.MSG_MAX,
        "sys/fs/mqueue/msgsize_default": mqueue.MSGSIZE_DEFAULT,
        "sys/fs/mqueue/msgsize_max": mqueue.MSGSIZE_MAX,
        "sys/fs/mqueue/queues_max": mqueue.QUEUES_MAX,
        "sys/fs/file-max": (1 << 63) - 1,
        "sys/fs/nr_open": _OPEN_FILES,
        "sys/fs/pipe-max-size": 1 << 20,
        "sys/fs/protected_hardlinks": 0,
        "sys/fs/protected_symlinks": 0,
        "sys/fs/suid_dumpable": 0,
        "sys/net/core/somaxconn": MOST_BACKLOG,
        "sys/net/ipv4/ip_local_port_range": f"{FIRST_PORT}\t{LAST_PORT}",
        "sys/net/ipv4/ip_unprivileged_port_start": 1024,
        "sys/vm/memfd_noexec": 0,
        "sys/vm/max_map_count": config.max_mmap_areas,
        "sys/vm/mmap_min_addr": process.mm.limits.user_base,
    }


def _running(registry: Registry[Process, Member]) -> int:
    tasks = (task for task in registry.tasks.values() if isinstance(task, Task))
    return sum(status.state_of(task.process, task).startswith("R") for task in tasks)


def _now_and_idle(kernel: Kernel) -> tuple[int, int]:
    """The time since the start, and how much of it the CPUs had nothing to do, in ns, all together."""
    now = kernel.observe_time()
    return now, max(0, now * len(kernel.cpus) - kernel.clock.busy_ns)


def _stat(process: Process) -> bytes:
    """/proc/stat (proc_stat(5)): all time of the CPUs is the programs', or idle. Each has an equal share."""
    kernel, registry = process.kernel, process.registry
    now, idle = _now_and_idle(kernel)
    cpus = len(kernel.cpus)

    def times(of: int) -> bytes:
        ticks = (ns * status.TICKS // of // 10**9 for ns in (now * cpus - idle, idle))
        return b"%d 0 0 %d 0 0 0 0 0 0" % tuple(ticks)

    tasks = [task for task in registry.tasks.values() if isinstance(task, Task)]
    states = [status.state_of(task.process, task) for task in tasks]
    rows = (
        (b"cpu ", times(1)),
        *((b"cpu%d" % number, times(cpus)) for number in range(cpus)),
        (b"intr", b"0"),
        (b"ctxt", b"%d" % sum(task.waits + task.usage.preemptions for task in tasks)),
        (b"btime", b"%d" % ((kernel.clock.realtime_ns - now) // 10**9)),
        (b"processes", b"%d" % (registry.last - FIRST + 1)),
        (b"procs_running", b"%d" % sum(state.startswith("R") for state in states)),
        (b"procs_blocked", b"%d" % sum(state.startswith("D") for state in states)),
        (b"softirq", b"0" + b" 0" * 10),
    )
    return b"".join(b"%s %s\n" % row for row in rows)


def _constant(text: bytes) -> Callable[[], bytes]:
    return lambda: text


def _uuid(kernel: Kernel, boot: str | None) -> bytes:
    """A random number in the form of RFC 9562, version 4: always the same for a boot, else a new one."""
    stream = kernel.streams.stream("uuid") if boot is None else Stream(kernel.config.seed, boot)
    raw = bytearray(stream.bytes(16))
    raw[6], raw[8] = raw[6] & 0x0F | 0x40, raw[8] & 0x3F | 0x80
    digits = raw.hex()
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return ("-".join(parts) + "\n").encode()


def _spaces(registry: Registry[Process, Member]) -> list[AddressSpace]:
    """The address spaces of all processes, each once."""
    spaces = {id(process.mm): process.mm for process in registry.processes.values() if not process.released}
    return list(spaces.values())


def _huge_pages(registry: Registry[Process, Member]) -> set[int]:
    """The first frames of the huge pages of their own that processes show whole."""
    return {frame for space in _spaces(registry) for _address, frame in leaves(space)}


def _shared_huge_pages(kernel: Kernel, registry: Registry[Process, Member]) -> tuple[int, int]:
    """How many huge pages shared memory has, and how many of them some process shows whole."""
    kinds = Kind.SHARED, Kind.FILE
    shown = {frame for space in _spaces(registry) for _address, frame in leaves(space, kinds)}
    return sum(len(item.folios) for item in kernel.physical.objects if isinstance(item, Backing)), len(shown)


class _InUse(NamedTuple):
    """Pages of memory that processes and their objects use, as /proc tells of them."""

    anonymous: int
    shared: int
    mapped: int  # of files and shared memory, shown by an entry
    active: int  # private or shared ones, accessed since that was last forgotten
    inactive: int
    files: int  # of files, where they count
    active_files: int
    dirty: int


def _in_use(kernel: Kernel, registry: Registry[Process, Member]) -> _InUse:
    frames = kernel.physical.frames
    kinds, accessed = frames.kind_array, np.zeros(frames.count, np.bool_)
    for space in _spaces(registry):
        seen = ageing.look(space, 0, space.limits.user_end)
        accessed[seen.frames[seen.accessed]] = True
    anonymous, shared = kinds == int(Kind.ANON), kinds == int(Kind.SHARED)
    both = anonymous | shared
    active = int(np.count_nonzero(accessed & both))
    cache = kernel.physical.cache
    files = np.zeros(0, np.int64) if cache is None else cache.all_pages()
    return _InUse(
        int(np.count_nonzero(anonymous)),
        int(np.count_nonzero(shared)),
        int(np.count_nonzero((shared | (kinds == int(Kind.FILE))) & (frames.maps_array > 0))),
        active,
        int(np.count_nonzero(both)) - active,
        files.size,
        int(np.count_nonzero(accessed[files])),
        0 if cache is None else cache.dirty,
    )


def _vmstat(kernel: Kernel, registry: Registry[Process, Member]) -> bytes:
    """/proc/vmstat (proc_vmstat(5)), as far as there is something to count."""
    census, counted = kernel.physical.frames.census(), kernel.physical.counters.n
    swap, kib = kernel.physical.swap, kernel.config.page_size >> 10
    used = _in_use(kernel, registry)
    shared_huge, shared_shown = _shared_huge_pages(kernel, registry)
    scanned = counted[Event.RECLAIM_SCANNED] + counted[Event.KSWAPD_SCANNED]
    taken = counted[Event.RECLAIM_TAKEN] + counted[Event.KSWAPD_TAKEN]
    rows = (
        ("nr_free_pages", kernel.physical.buddy.free_frames),
        ("nr_inactive_anon", used.inactive),
        ("nr_active_anon", used.active),
        ("nr_anon_pages", used.anonymous),
        ("nr_mapped", used.mapped),
        ("nr_inactive_file", used.files - used.active_files),
        ("nr_active_file", used.active_files),
        ("nr_file_pages", used.shared + used.files),
        ("nr_dirty", used.dirty),
        ("nr_writeback", 0),  # who has pages written waits for that
        ("nr_shmem", used.shared),
        ("nr_slab_reclaimable", 0),
        ("nr_slab_unreclaimable", census[Kind.SLAB]),
        ("nr_kernel_stack", kernel.physical.slabs.stack_bytes >> 10),
        ("nr_page_table_pages", census[Kind.TABLE]),
        ("nr_shmem_hugepages", shared_huge),
        ("nr_shmem_pmdmapped", shared_shown),
        ("nr_file_hugepages", 0),
        ("nr_file_pmdmapped", 0),
        ("nr_anon_transparent_hugepages", len(_huge_pages(registry))),
        ("nr_swapcached", 0 if swap is None else swap.cached),
        ("workingset_refault_anon", counted[Event.REFAULT]),
        ("workingset_refault_file", counted[Event.FILE_REFAULT]),
        ("workingset_activate_anon", counted[Event.REFAULT_SOON]),
        ("workingset_activate_file", counted[Event.FILE_REFAULT_SOON]),
        ("nr_dirtied", counted[Event.FILE_DIRTIED]),
        ("nr_written", counted[Event.FILE_WRITTEN]),
        ("pgpgin", (counted[Event.SWAP_READ] + counted[Event.FILE_READ]) * kib),
        ("pgpgout", (counted[Event.SWAP_WRITTEN] + counted[Event.FILE_WRITTEN]) * kib),
        ("pswpin", counted[Event.SWAP_READ]),
        ("pswpout", counted[Event.SWAP_WRITTEN]),
        ("allocstall_normal", counted[Event.RECLAIM_STALLS]),
        ("pglazyfree", counted[Event.LAZY_FREE]),
        ("pgfault", kernel.minor_faults() + kernel.major_faults()),
        ("pgmajfault", kernel.major_faults()),
        ("slabs_scanned", counted[Event.SLABS_SCANNED]),
        ("pglazyfreed", counted[Event.LAZY_FREED]),
        ("pgsteal_kswapd", counted[Event.KSWAPD_TAKEN]),
        ("pgsteal_direct", counted[Event.RECLAIM_TAKEN]),
        ("pgscan_kswapd", counted[Event.KSWAPD_SCANNED]),
        ("pgscan_direct", counted[Event.RECLAIM_SCANNED]),
        ("pgscan_anon", scanned - counted[Event.FILE_SCANNED]),
        ("pgscan_file", counted[Event.FILE_SCANNED]),
        ("pgsteal_anon", taken - counted[Event.FILE_TAKEN]),
        ("pgsteal_file", counted[Event.FILE_TAKEN]),
        ("pageoutrun", counted[Event.KSWAPD_RUNS]),
        ("swap_ra", counted[Event.SWAP_AHEAD]),
        ("zswpin", counted[Event.SWAP_IN] - counted[Event.SWAP_READ]),
        ("zswpout", counted[Event.SWAP_OUT]),
        ("zswpwb", counted[Event.SWAP_WRITTEN]),
        ("oom_kill", counted[Event.FAULT_OUT_OF_MEMORY]),
        ("pgmigrate_success", counted[Event.MIGRATED_PAGES]),
        ("compact_stall", counted[Event.COMPACTED] + counted[Event.COMPACTION_FAILED]),
        ("compact_fail", counted[Event.COMPACTION_FAILED]),
        ("compact_success", counted[Event.COMPACTED]),
        ("thp_fault_alloc", counted[Event.HUGE_FAULT]),
        ("thp_fault_fallback", counted[Event.HUGE_FALLBACK]),
        ("thp_collapse_alloc", counted[Event.HUGE_COLLAPSE]),
        ("thp_collapse_alloc_failed", counted[Event.HUGE_COLLAPSE_FAILED]),
        ("thp_file_alloc", counted[Event.SHARED_HUGE]),
        ("thp_file_fallback", counted[Event.SHARED_HUGE_FALLBACK]),
        ("thp_file_mapped", counted[Event.SHARED_HUGE_MAPPED]),
        ("thp_split_pmd", counted[Event.HUGE_SPLIT]),
        ("thp_underused_split_page", counted[Event.HUGE_UNDERUSED]),
        (
            "thp_zero_page_alloc",
            int(kernel.physical.thp is not None and kernel.physical.thp.zero_block >= 0),
        ),
    )
    return "".join(f"{name} {value}\n" for name, value in rows).encode()


def _pressure(kernel: Kernel) -> bytes:
    kernel.note_pressure()
    return kernel.pressure.text()


def _swaps(kernel: Kernel) -> bytes:
    """/proc/swaps: the files that are on. The pool in front of the machine's own is part of it."""
    text = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    swap, kib = kernel.physical.swap, kernel.config.page_size >> 10
    for part in () if swap is None else swap.parts:
        if part.on:
            name = escaped(os.fsencode(part.name))
            sizes = b"".join(
                b"%d\t%s" % (size, b"\t" if size < _WIDE else b"")
                for size in (part.slots * kib, part.used * kib)
            )
            text += b"%-39s file\t\t%s%d\n" % (name, sizes, part.priority)
    return text


def _meminfo(kernel: Kernel, registry: Registry[Process, Member]) -> bytes:
    buddy, kib = kernel.physical.buddy, kernel.config.page_size >> 10
    census, swap, (swap_total, swap_free) = (
        kernel.physical.frames.census(),
        kernel.physical.swap,
        kernel.swap_bytes(),
    )
    store = None if swap is None else swap.store
    used, whole = _in_use(kernel, registry), kib * (kernel.config.page_size >> 3)
    shared_huge, shared_shown = _shared_huge_pages(kernel, registry)
    low = marks_of(kernel).low
    rows = (
        ("MemTotal", buddy.total * kib),
        ("MemFree", buddy.free_frames * kib),
        ("MemAvailable", (buddy.free_frames + used.files - min(used.files >> 1, low)) * kib),
        ("Buffers", 0),
        ("Cached", (used.shared + used.files) * kib),  # files' pages that do not count are outside MemTotal
        ("SwapCached", 0 if swap is None else swap.cached * kib),
        ("Active", (used.active + used.active_files) * kib),
        ("Inactive", (used.inactive + used.files - used.active_files) * kib),
        ("Active(anon)", used.active * kib),
        ("Inactive(anon)", used.inactive * kib),
        ("Active(file)", used.active_files * kib),
        ("Inactive(file)", (used.files - used.active_files) * kib),
        ("SwapTotal", swap_total >> 10),
        ("SwapFree", swap_free >> 10),
        ("Zswap", 0 if store is None else store.pooled >> 10),
        ("Zswapped", 0 if store is None else store.compressed * kib),
        ("Dirty", used.dirty * kib),
        ("Writeback", 0),  # who has pages written waits for that
        ("AnonPages", used.anonymous * kib),
        ("Mapped", used.mapped * kib),
        ("Shmem", used.shared * kib),
        ("CommitLimit", kernel.physical.overcommit.limit >> 10),
        ("Committed_AS", kernel.physical.overcommit.committed >> 10),
        ("Slab", census[Kind.SLAB] * kib),
        ("SReclaimable", 0),  # no cache is of what can be read again, as inodes can
        ("SUnreclaim", census[Kind.SLAB] * kib),
        ("KernelStack", kernel.physical.slabs.stack_bytes >> 10),
        ("PageTables", census[Kind.TABLE] * kib),
        ("AnonHugePages", len(_huge_pages(registry)) * whole),
        ("ShmemHugePages", shared_huge * whole),
        ("ShmemPmdMapped", shared_shown * whole),
        ("FileHugePages", 0),
        ("FilePmdMapped", 0),
    )
    text = "".join(f"{name + ':':<16}{value:8d} kB\n" for name, value in rows) + pools.meminfo(kernel)
    return text.encode()
