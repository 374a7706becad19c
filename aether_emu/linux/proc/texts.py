"""What /proc tells of processes, threads and the machine: always the truth of this moment."""

from __future__ import annotations

import errno
import stat as modes
from collections.abc import Callable, Iterable, Iterator, Mapping

from aether_emu.errors import Refused
from aether_emu.linux.abi import RELEASE
from aether_emu.linux.calls import vsyscall
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.proc import Provided
from aether_emu.linux.files.region import Region
from aether_emu.linux.files.synthetic import Control, Link, Text
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.maps import record_of
from aether_emu.linux.proc import memory, smaps, status
from aether_emu.linux.task.process import Member, Process
from aether_emu.linux.task.registry import FIRST, LAST, Registry
from aether_emu.linux.task.task import NAME_MAX, Task
from aether_emu.mm.allocation import Area
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace

_AREAS_PER_LOOK = 1024
_WRITABLE, _PRIVATE = modes.S_IFREG | 0o644, modes.S_IFREG | 0o400
_NOBODY = b"%d" % ((1 << 32) - 1)


class ProcessTexts:
    """The `ProcSource` for one process."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def _looking(self) -> tuple[int, int]:
        """(pid, tid) of the task that looks: that on the CPU. It may only share the process's files."""
        process = self._process
        for task in (*process.tasks, *process.registry.tasks.values()):
            if task.running and isinstance(task, Task) and task.process.files is process.files:
                return task.process.pid, task.tid
        return process.pid, process.pid

    @property
    def pid(self) -> int:
        return self._looking()[0]

    @property
    def tid(self) -> int:
        return self._looking()[1]

    @property
    def texts(self) -> Mapping[str, Provided]:
        return machine_texts(self._process)

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
        """The thread, while it lives."""
        task = self._process.registry.tasks.get(self._tid)
        return task if isinstance(task, Task) and task.process is self._process else None

    @property
    def files(self) -> Files | None:
        return None if self._process.released else self._process.files

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

        return Text(provide, text.mode, text.accept)

    def _of_memory(self) -> Mapping[str, Provided]:
        process, space = self._process, self._process.mm

        def of_space(provide: Callable[[Process], bytes]) -> Callable[[], bytes]:
            return lambda: b"" if process.released else provide(process)

        def is_left() -> bool:
            return process.released or process.mm is not space

        return {
            "maps": of_space(maps_text),
            "smaps": of_space(_smaps_text),
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
                lambda position, count: b"" if is_left() else memory.read_pagemap(process, position, count)
            ),
            "statm": lambda: status.statm_text(process),
        }

    def _of_program(self) -> Mapping[str, Provided]:
        process, program = self._process, self._process.program

        def strings(texts: list[bytes]) -> bytes:
            return b"" if process.released else b"".join(text + b"\0" for text in texts)

        return {
            "exe": Link(self._executable),
            "cmdline": lambda: strings(program.arguments),
            "environ": Text(lambda: strings(program.environment), _PRIVATE),
            "auxv": Text(lambda: b"" if process.released else program.auxiliary, _PRIVATE),
            "personality": Text(lambda: b"%08x\n" % process.personality, _PRIVATE),
            "limits": lambda: status.limits_text(process),
            "wchan": lambda: b"0",
            "cgroup": lambda: b"0::/\n",
            "loginuid": lambda: _NOBODY,
            "sessionid": lambda: _NOBODY,
            "oom_score": lambda: b"%d\n" % _oom_score(process),
            "oom_score_adj": lambda: b"0\n",
        }

    def _executable(self) -> bytes:
        if self._process.released:
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


def _oom_score(process: Process) -> int:
    """How ready a kernel out of memory would be to kill it: from 666 on, by its part of all memory."""
    if process.released:
        return 0
    total = process.kernel.physical.buddy.total
    pages = status.resident(process.mm)["Rss"] // process.mm.page_size + process.mm.table.tables
    return (1000 + pages * 1000 // total) * 2 // 3


def machine_texts(process: Process) -> Mapping[str, Provided]:
    """What /proc tells of the machine, to a process."""
    kernel, config, registry = process.kernel, process.config, process.registry
    fixed: dict[str, str | int] = {
        "version": f"Linux version {RELEASE} (aether_emu) #1 SMP",
        "sys/kernel/ostype": "Linux",
        "sys/kernel/osrelease": RELEASE,
        "sys/kernel/version": "#1 SMP aether_emu",
        "sys/kernel/hostname": config.hostname,
        "sys/kernel/domainname": "(none)",
        "sys/kernel/pid_max": LAST + 1,
        "sys/kernel/threads-max": registry.most,
        "sys/kernel/ngroups_max": 65536,
        "sys/kernel/cap_last_cap": 40,
        "sys/kernel/overflowuid": 65534,
        "sys/kernel/overflowgid": 65534,
        "sys/kernel/randomize_va_space": 2 if config.aslr else 0,
        "sys/vm/overcommit_memory": 0,
        "sys/vm/memfd_noexec": 0,
        "sys/vm/max_map_count": config.max_mmap_areas,
        "sys/vm/mmap_min_addr": process.mm.limits.user_base,
    }
    isa = process.abi.isa.encode()
    return {
        **{name: Text(f"{value}\n".encode) for name, value in fixed.items()},
        "meminfo": lambda: _meminfo(kernel),
        "uptime": lambda: b"%.2f %.2f\n" % tuple(ns / 10**9 for ns in _now_and_idle(kernel)),
        "loadavg": lambda: (
            b"0.00 0.00 0.00 %d/%d %d\n" % (_running(registry), len(registry.tasks), registry.last)
        ),
        "cpuinfo": lambda: (
            b"processor\t: 0\nmodel name\t: emulated %s\nphysical id\t: 0\nsiblings\t: 1\n"
            b"core id\t\t: 0\ncpu cores\t: 1\n\n" % isa
        ),
        "stat": lambda: _stat(process),
    }


def _running(registry: Registry[Process, Member]) -> int:
    tasks = (task for task in registry.tasks.values() if isinstance(task, Task))
    return sum(status.state_of(task.process, task).startswith("R") for task in tasks)


def _now_and_idle(kernel: Kernel) -> tuple[int, int]:
    """The time since the start, and for how much of it no task could run, in ns."""
    now = kernel.observe_time()
    return now, now - kernel.clock.busy_ns


def _stat(process: Process) -> bytes:
    """/proc/stat (proc_stat(5)): all time of the one CPU is the programs', or idle."""
    kernel, registry = process.kernel, process.registry
    now, idle = _now_and_idle(kernel)
    busy_ticks, idle_ticks = (ns * status.TICKS // 10**9 for ns in (now - idle, idle))
    times = b"%d 0 0 %d 0 0 0 0 0 0" % (busy_ticks, idle_ticks)
    tasks = [task for task in registry.tasks.values() if isinstance(task, Task)]
    states = [status.state_of(task.process, task) for task in tasks]
    rows = (
        (b"cpu ", times),
        (b"cpu0", times),
        (b"intr", b"0"),
        (b"ctxt", b"%d" % sum(task.waits + task.usage.preemptions for task in tasks)),
        (b"btime", b"%d" % ((kernel.clock.realtime_ns - now) // 10**9)),
        (b"processes", b"%d" % (registry.last - FIRST + 1)),
        (b"procs_running", b"%d" % sum(state.startswith("R") for state in states)),
        (b"procs_blocked", b"%d" % sum(state.startswith("D") for state in states)),
        (b"softirq", b"0" + b" 0" * 10),
    )
    return b"".join(b"%s %s\n" % row for row in rows)


def _meminfo(kernel: Kernel) -> bytes:
    buddy, kib = kernel.physical.buddy, kernel.config.page_size >> 10
    census = kernel.physical.frames.census()
    rows = (
        ("MemTotal", buddy.total * kib),
        ("MemFree", buddy.free_frames * kib),
        ("MemAvailable", buddy.free_frames * kib),
        ("Buffers", 0),
        ("Cached", 0),  # file pages stand in the aperture, outside MemTotal
        ("SwapCached", 0),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("AnonPages", (census[Kind.ANON] + census[Kind.SHARED]) * kib),
        ("Mapped", census[Kind.FILE] * kib),
        ("SReclaimable", 0),
        ("PageTables", census[Kind.TABLE] * kib),
    )
    return "".join(f"{name + ':':<16}{value:8d} kB\n" for name, value in rows).encode()


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
    return [process.mm.new_area(vsyscall.PAGE, end, execute, maximum=nothing, name=name)]


def _smaps_text(process: Process) -> bytes:
    """/proc/PID/smaps (proc_pid_smaps(5)): below each of those lines, what memory is behind the area."""
    space = process.mm
    texts = smaps.area_texts(space)
    areas = _with_looks(process, space.areas)
    shown = b"".join(_line(space, area) + text for area, text in zip(areas, texts, strict=True))
    return shown + b"".join(_line(space, area) + smaps.gate_text(area) for area in _gate(process))


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
    return (str(record_of(space, area)) + "\n").encode("utf-8", "surrogateescape")
