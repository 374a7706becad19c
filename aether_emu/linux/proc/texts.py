"""What /proc tells of the process and the machine: always the truth of this moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from aether_emu.linux.abi import RELEASE
from aether_emu.linux.calls import vsyscall
from aether_emu.linux.files.region import Region
from aether_emu.linux.files.synthetic import Control
from aether_emu.linux.maps import record_of
from aether_emu.linux.proc import memory, smaps, status
from aether_emu.linux.task.process import Process
from aether_emu.mm.allocation import Area
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace

_AREAS_PER_LOOK = 1024


class ProcessTexts:
    """The `ProcSource` for one process."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def texts(self) -> Mapping[str, Callable[[], bytes] | Control | Region]:
        process, program, space = self._process, self._process.program, self._process.mm
        return {
            "self/maps": lambda: maps_text(self._process),
            "self/smaps": lambda: _smaps_text(self._process),
            "self/smaps_rollup": lambda: _rollup_text(self._process),
            "self/clear_refs": Control(
                lambda data: smaps.clear_refs(space, _with_looks(self._process, space.areas), data)
            ),
            "self/mem": Region(
                lambda position, count: memory.read_memory(process, position, count),
                lambda position, data: memory.write_memory(process, position, data),
                unsigned=True,
            ),
            "self/pagemap": Region(lambda position, count: memory.read_pagemap(process, position, count)),
            "self/status": lambda: status.status_text(self._process),
            "self/statm": lambda: status.statm_text(self._process),
            "self/limits": lambda: status.limits_text(self._process),
            "self/personality": lambda: b"%08x\n" % self._process.personality,
            "self/stat": self._stat,
            "self/auxv": lambda: program.auxiliary,
            "self/exe": lambda: program.path,
            "self/cmdline": lambda: b"".join(text + b"\0" for text in program.arguments),
            "self/environ": lambda: b"".join(text + b"\0" for text in program.environment),
            "self/comm": lambda: self._process.tasks[0].name + b"\n",
            "meminfo": self._meminfo,
            "version": f"Linux version {RELEASE} (aether_emu) #1 SMP\n".encode,
            "uptime": self._uptime,
            "loadavg": lambda: b"0.00 0.00 0.00 1/1 %d\n" % self._process.pid,
            "cpuinfo": lambda: (
                b"processor\t: 0\nmodel name\t: emulated %s\n" % self._process.abi.isa.encode()
            ),
            "sys/vm/overcommit_memory": lambda: b"0\n",
            "sys/kernel/randomize_va_space": lambda: b"2\n" if self._process.config.aslr else b"0\n",
            "sys/vm/memfd_noexec": lambda: b"0\n",
            "sys/vm/max_map_count": lambda: b"%d\n" % self._process.config.max_mmap_areas,
            "sys/vm/mmap_min_addr": lambda: b"%d\n" % self._process.mm.limits.user_base,
        }

    def _stat(self) -> bytes:
        process = self._process
        resident = status.resident(process.mm)["Rss"] >> process.mm.table.format.page_shift
        fields = [0] * 52
        fields[3:8] = [process.parent_pid, process.pid, process.pid, 0, -1]
        fields[9] = process.kernel.minor_faults()
        fields[17:20] = [20, 0, len(process.tasks)]
        program, (arguments, environment, end) = process.program, process.program.strings
        fields[22:28] = [process.mm.reserved, resident, (1 << 64) - 1, *program.code, program.stack_pointer]
        fields[44:51] = [*program.data, process.mm.heap_start, arguments, environment, environment, end]
        head = b"%d (%s) R " % (process.pid, process.tasks[0].name)
        return head + " ".join(str(value) for value in fields[3:]).encode() + b"\n"

    def _meminfo(self) -> bytes:
        buddy, kib = self._process.kernel.physical.buddy, self._process.mm.page_size >> 10
        census = self._process.kernel.physical.frames.census()
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

    def _uptime(self) -> bytes:
        seconds = self._process.kernel.observe_time() / 10**9
        return b"%.2f %.2f\n" % (seconds, 0.0)


def maps_text(process: Process) -> bytes:
    """/proc/self/maps (proc_pid_maps(5)): one line for each area, and for the vsyscall page."""
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
    """/proc/self/smaps (proc_pid_smaps(5)): below each of those lines, what memory is behind the area."""
    space = process.mm
    texts = smaps.area_texts(space)
    areas = _with_looks(process, space.areas)
    shown = b"".join(_line(space, area) + text for area, text in zip(areas, texts, strict=True))
    return shown + b"".join(_line(space, area) + smaps.gate_text(area) for area in _gate(process))


def _rollup_text(process: Process) -> bytes:
    """/proc/self/smaps_rollup: the same for everything from the first area to the last."""
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
