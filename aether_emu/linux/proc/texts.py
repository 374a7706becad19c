"""What /proc tells of processes, threads and the machine: always the truth of this moment."""

from __future__ import annotations

import errno
import stat as modes
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from aether_emu.errors import Refused
from aether_emu.linux.calls import vsyscall
from aether_emu.linux.credentials import SYS_RESOURCE
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.proc import Provided
from aether_emu.linux.files.region import Region
from aether_emu.linux.files.synthetic import Control, Link, Text
from aether_emu.linux.maps import line_of
from aether_emu.linux.proc import memory, smaps, status
from aether_emu.linux.proc.numa import numa_maps
from aether_emu.linux.task.oom import all_pages, points
from aether_emu.linux.task.process import NAME_MAX, Process
from aether_emu.linux.task.task import Task
from aether_emu.mm import userfault
from aether_emu.mm.allocation import Area
from aether_emu.mm.categories import runs
from aether_emu.mm.merging import merged_pages
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace

_AREAS_PER_LOOK = 1024
_WRITABLE, _PRIVATE = modes.S_IFREG | 0o644, modes.S_IFREG | 0o400
_MOST_ADJUSTMENT = 1000
_MERGE_ITEM = 64  # bytes that Linux keeps for each page that is looked at for equal ones (ksm_rmap_item)
_NET = ("dev", "route", "if_inet6", "tcp", "tcp6", "udp", "udp6", "unix")
_NAMESPACES = {
    "cgroup": ("cgroup", 0xEFFF_FFFB), "ipc": ("ipc", 0xEFFF_FFFF), "mnt": ("mnt", 0xEFFF_FFF8),
    "net": ("net", 0xEFFF_FFF9), "pid": ("pid", 0xEFFF_FFFC), "pid_for_children": ("pid", 0xEFFF_FFFC),
    "time": ("time", 0xEFFF_FFFA), "time_for_children": ("time", 0xEFFF_FFFA),
    "user": ("user", 0xEFFF_FFFD), "uts": ("uts", 0xEFFF_FFFE),
}  # fmt: skip
"""The only namespaces, with the numbers of Linux's first ones (PROC_*_INIT_INO)."""
_NOBODY = b"%d" % ((1 << 32) - 1)


class ProcessTexts:
    """The `ProcSource` for one process."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def _looking(self) -> tuple[int, int]:
        """(pid, tid) of the task that looks: the one on the CPU that works."""
        process = self._process
        for task in process.tasks:
            if task.working:
                return process.pid, task.tid
        return process.pid, process.pid

    @property
    def pid(self) -> int:
        return self._looking()[0]

    @property
    def tid(self) -> int:
        return self._looking()[1]

    @property
    def texts(self) -> Mapping[str, Provided]:
        from aether_emu.linux.proc.machine import machine_texts  # noqa: PLC0415  # few look into /proc

        return machine_texts(self._process)

    @property
    def system(self) -> Mapping[str, Provided]:
        from aether_emu.linux.proc.system import system_texts  # noqa: PLC0415  # fewer look into /sys

        return system_texts(self._process)

    def numbers(self) -> Iterable[int]:
        return list(self._process.registry.processes)

    def find(self, number: int) -> TaskTexts | None:
        registry = self._process.registry
        process, task = registry.processes.get(number), registry.tasks.get(number)
        if process is None and isinstance(task, Task):
            process = task.process
        return None if process is None else TaskTexts(process, number, self, has_threads=True)


class TaskTexts:
    """The `ShownTask` for a thread, by its number. The number of a process is that of its first thread."""

    def __init__(self, process: Process, tid: int, source: ProcessTexts, *, has_threads: bool) -> None:
        self._process, self._tid, self._source, self._has_threads = process, tid, source, has_threads

    @property
    def _task(self) -> Task | None:
        """The thread, while it lives. A process may live on without its first."""
        task = self._process.registry.tasks.get(self._tid)
        return task if isinstance(task, Task) and task.process is self._process else None

    @property
    def files(self) -> Files | None:
        task = self._task
        if task is not None:
            return task.files
        return None if self._has_left else self._process.files

    @property
    def _has_left(self) -> bool:
        """Whether it has given back memory and files: as a zombie, or as a first thread that has ended."""
        return self._process.released or (bool(self._process.tasks) and self._task is None)

    @property
    def is_gone(self) -> bool:
        process = self._process
        if self._tid == process.pid:
            return process.registry.processes.get(self._tid) is not process
        return self._task is None

    @property
    def tasks(self) -> Mapping[int, TaskTexts]:
        if not self._has_threads:
            return {}
        process = self._process
        numbers = dict.fromkeys((process.pid, *sorted(task.tid for task in process.tasks)))
        return {tid: TaskTexts(process, tid, self._source, has_threads=False) for tid in numbers}

    @property
    def texts(self) -> Mapping[str, Provided]:
        process, tid = self._process, self._tid
        own = {
            "stat": Text(lambda: status.stat_text(process, tid, self._task, whole=self._has_threads)),
            "status": Text(lambda: status.status_text(process, tid, self._task)),
            "comm": Text(lambda: status.name_of(process, self._task) + b"\n", _WRITABLE, self._rename),
        }
        if not self._has_threads:
            own["children"] = Text(self._children)
        everything = {**self._of_memory(), **self._of_program(), **own}
        return {name: self._checked(provided) for name, provided in everything.items()}

    def _checked(self, provided: Provided) -> Provided:
        """The same, but who reads a text of a process that is gone gets ESRCH."""
        if not callable(provided) and not isinstance(provided, Text):
            return provided
        text = Text(provided) if callable(provided) else provided

        def provide() -> bytes:
            if self.is_gone:
                raise Refused(errno.ESRCH, f"process {self._tid} is gone")
            return text.provide()

        return replace(text, provide=provide)

    def _of_memory(self) -> Mapping[str, Provided]:
        process, space = self._process, self._process.mm

        def of_space(provide: Callable[[Process], bytes]) -> Callable[[], bytes]:
            return lambda: b"" if self._has_left else provide(process)

        def is_left() -> bool:
            return self._has_left or process.mm is not space

        def areas() -> AddressSpace:
            if is_left():
                raise Refused(errno.ESRCH, "its memory is gone")
            return space

        return {
            "maps": Text(of_space(maps_text), areas=areas),
            "smaps": of_space(_smaps_text),
            "numa_maps": of_space(_numa_text),
            "smaps_rollup": of_space(_rollup_text),
            "clear_refs": Control(
                lambda data: (
                    len(data)
                    if is_left()
                    else smaps.clear_refs(space, _with_looks(process, space.areas), data)
                )
            ),
            "mem": Region(
                lambda position, count: b"" if is_left() else memory.read_memory(process, position, count),
                lambda position, data: 0 if is_left() else memory.write_memory(process, position, data),
                unsigned=True,
            ),
            "pagemap": Region(
                lambda position, count: b"" if is_left() else memory.read_pagemap(process, position, count),
                scan=lambda start, end: iter(()) if is_left() else runs(space, start, end),
                protect=lambda start, end: (
                    None if is_left() else userfault.protect(space, start, end, on=True)
                ),
            ),
            "ksm_stat": Text(of_space(_merging_text), _PRIVATE),
            "ksm_merging_pages": Text(of_space(lambda found: b"%d\n" % merged_pages(found.mm)), _PRIVATE),
            "statm": lambda: status.statm_text(process, self._task),
        }

    def _of_program(self) -> Mapping[str, Provided]:
        process, program = self._process, self._process.program

        def strings(texts: list[bytes]) -> bytes:
            return b"" if self._has_left else b"".join(text + b"\0" for text in texts)

        return {
            "exe": Link(self._executable),
            "cmdline": lambda: strings(program.arguments),
            "environ": Text(lambda: strings(program.environment), _PRIVATE),
            "auxv": Text(lambda: b"" if self._has_left else program.auxiliary, _PRIVATE),
            "personality": Text(lambda: b"%08x\n" % process.personality, _PRIVATE),
            "limits": lambda: status.limits_text(process),
            "wchan": lambda: b"0",
            "cgroup": lambda: b"0::/\n",
            "cpuset": lambda: b"/\n",
            "syscall": Text(lambda: status.syscall_text(process, self._task), _PRIVATE),
            "io": Text(lambda: status.io_text(process, self._task, whole=self._has_threads), _PRIVATE),
            "schedstat": lambda: status.schedstat_text(process, self._task, whole=self._has_threads),
            "coredump_filter": lambda: b"00000033\n",
            "timerslack_ns": lambda: b"50000\n",
            "setgroups": lambda: b"allow\n",
            **dict.fromkeys(("uid_map", "gid_map", "projid_map"), _one_to_one),
            **{f"ns/{name}": _namespace_link(*known) for name, known in _NAMESPACES.items()},
            **{f"net/{name}": _of_net(process, name) for name in _NET},
            "loginuid": lambda: _NOBODY,
            "sessionid": lambda: _NOBODY,
            "oom_score": lambda: b"%d\n" % _oom_score(process),
            "oom_score_adj": Text(
                lambda: b"%d\n" % process.oom_adjustment, _WRITABLE, lambda data: _adjust(process, data)
            ),
        }

    def _executable(self) -> bytes:
        if self._has_left:
            raise Refused(errno.ENOENT, "the process has given it back")
        return self._process.program.path

    def _rename(self, data: bytes) -> int:
        """A write to comm: only a thread of the same process may (EINVAL)."""
        task = self._task
        if task is None:
            raise Refused(errno.ESRCH, "the thread has ended")
        if self._source.pid != self._process.pid:
            raise Refused(errno.EINVAL, "another process's name")
        task.name = data[:NAME_MAX].split(b"\0")[0]
        return len(data)

    def _children(self) -> bytes:
        """The processes that this one made: those of all its threads are told of the first."""
        children = self._process.children if self._tid == self._process.pid else ()
        return b"".join(b"%d " % child.pid for child in children)


def _of_net(process: Process, name: str) -> Callable[[], bytes]:
    def text() -> bytes:
        from aether_emu.linux.proc.net import net_text  # noqa: PLC0415  # few ask

        return net_text(process, name)

    return text


def _one_to_one() -> bytes:
    """uid_map of the only user namespace."""
    return b"%10d %10d %10d\n" % (0, 0, (1 << 32) - 1)


def _namespace_link(kind: str, number: int) -> Link:
    return Link(f"{kind}:[{number}]".encode)


def _oom_score(process: Process) -> int:
    """How ready a kernel out of memory would be to kill it: from 666 on, by its part of all memory."""
    if process.released or process.oom_adjustment == -_MOST_ADJUSTMENT:
        return 0
    return max(0, (1000 + points(process) * 1000 // all_pages(process)) * 2 // 3)


def _merging_text(process: Process) -> bytes:
    """/proc/PID/ksm_stat: what merging has brought this process; how much memory, less what it costs."""
    space, scan = process.mm, process.kernel.ksm.scan
    items, pages = scan.looked_at(space), merged_pages(space)
    zeros = len(scan.zeros_of(space))
    profit = (pages + zeros) * space.page_size - items * _MERGE_ITEM
    return b"ksm_rmap_items %d\nksm_zero_pages %d\nksm_merging_pages %d\nksm_process_profit %d\n" % (
        items, zeros, pages, profit
    )  # fmt: skip


def _adjust(process: Process, data: bytes) -> int:
    """A write to oom_score_adj. Only CAP_SYS_RESOURCE makes a process less likely to be killed."""
    try:
        wanted = int(data.split(b"\0")[0].strip())
    except ValueError:
        raise Refused(errno.EINVAL, f"{data!r} is no number") from None
    if abs(wanted) > _MOST_ADJUSTMENT:
        raise Refused(errno.EINVAL, f"{wanted} is not from -1000 to 1000")
    if wanted < process.oom_least and not process.kernel.actor.credentials.has(SYS_RESOURCE):
        raise Refused(errno.EACCES, "only the superuser lowers it")
    process.oom_adjustment = wanted
    if process.kernel.actor.credentials.has(SYS_RESOURCE):
        process.oom_least = wanted
    return len(data)


def maps_text(process: Process) -> bytes:
    """/proc/PID/maps (proc_pid_maps(5)): one line for each area, and for the vsyscall page."""
    space = process.mm
    return b"".join(_line(space, area) for area in (*_with_looks(process, space.areas), *_gate(process)))


def _gate(process: Process) -> list[Area]:
    """The vsyscall page: shown like an area, although no process has it as one (Linux: the gate area)."""
    if not process.abi.has_vsyscalls:
        return []
    end, execute = vsyscall.PAGE + vsyscall.SIZE, Protection.EXECUTE
    name, nothing = "[vsyscall]", Protection.NONE
    return [process.mm.new_area(vsyscall.PAGE, end, execute, maximum=nothing, name=name, fresh=False)]


def _smaps_text(process: Process) -> bytes:
    """/proc/PID/smaps (proc_pid_smaps(5)): below each of those lines, what memory is behind the area."""
    space = process.mm
    texts = smaps.area_texts(space)
    areas = _with_looks(process, space.areas)
    shown = b"".join(_line(space, area) + text for area, text in zip(areas, texts, strict=True))
    return shown + b"".join(_line(space, area) + smaps.gate_text(area) for area in _gate(process))


def _numa_text(process: Process) -> bytes:
    """/proc/PID/numa_maps (numa(7))."""
    policy = 0 if process.leader is None else process.leader.memory_policy
    return numa_maps(process.mm, _with_looks(process, process.mm.areas), policy)


def _rollup_text(process: Process) -> bytes:
    """/proc/PID/smaps_rollup: the same for everything from the first area to the last."""
    space = process.mm
    areas = list(space.areas)
    everything = space.new_area(areas[0].start, areas[-1].end, Protection.NONE, name="[rollup]")
    return _line(space, everything) + smaps.rollup_text(space)


def _with_looks(process: Process, areas: Iterable[Area]) -> Iterator[Area]:
    """The areas, with a look now and then at whether the run is to end."""
    for index, area in enumerate(areas):
        if index % _AREAS_PER_LOOK == 0:
            process.kernel.checkpoint()
        yield area


def _line(space: AddressSpace, area: Area) -> bytes:
    return (line_of(space, area) + "\n").encode("utf-8", "surrogateescape")
