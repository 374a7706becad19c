"""/proc/self tells the truth about the process: compared with the address space, page by page."""

from __future__ import annotations

import errno
import os
import re
import struct
import subprocess
from pathlib import Path

import pytest

from aether_emu.arch.paging import MemoryType
from aether_emu.errors import Refused
from aether_emu.linux.credentials import of_user
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import WouldBlock
from aether_emu.linux.files.synthetic import ControlFile, Text
from aether_emu.linux.mappable import MappedFile
from aether_emu.linux.proc import smaps
from aether_emu.linux.proc.machine import machine_texts
from aether_emu.linux.task.process import Process
from aether_emu.machine.cpu import Cpu
from aether_emu.mm import ageing
from aether_emu.mm.allocation import LOCKED, AreaFlags
from aether_emu.mm.mapping import MAP_SHARED, Request, map_memory
from aether_emu.mm.objects.device import DeviceMemory
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.protection import Protection
from tests.guests.running import program

_LINE = re.compile(
    rb"(?P<start>[0-9a-f]{8,})-(?P<end>[0-9a-f]{8,}) (?P<flags>[r-][w-][x-][ps])"
    rb" (?P<offset>[0-9a-f]{8,}) (?P<device>[0-9a-f]{2}:[0-9a-f]{2}) (?P<inode>\d+) *(?P<name>.*)"
)


def _cpu(process: Process) -> Cpu:
    return process.kernel.cpus[0]


def _read(process: Process, name: str) -> bytes:
    fd = process.files.open(fl.AT_FDCWD, f"/proc/{name}".encode(), fl.O_RDONLY)
    try:
        data = process.files.read(fd, 1 << 16)
        assert not isinstance(data, WouldBlock)
        return data
    finally:
        process.files.close(fd)


def _status(process: Process) -> dict[str, str]:
    rows = (line.split(":\t", 1) for line in _read(process, "self/status").decode().splitlines())
    return {name: value.strip() for name, value in rows}


def _program(process: Process) -> Path:
    return program(process.abi.isa, "hello")


def _new_area(process: Process, pages: int, protection: Protection, **more: object) -> tuple[int, int]:
    """An area of its own in free space, with nothing behind it yet."""
    space = process.mm
    length = pages * space.page_size
    start = space.areas.gap_below(3 * length, space.limits.user_base, space.mmap_base)
    assert start is not None
    start += length
    space.insert(space.new_area(start, start + length, protection, **more))
    return start, start + length


def test_maps_has_a_line_for_each_area(process: Process) -> None:
    lines = [_LINE.fullmatch(line) for line in _read(process, "self/maps").splitlines()]
    areas = list(process.mm.areas)
    if process.abi.has_vsyscalls:
        gate = lines.pop()
        assert gate is not None and gate["name"] == b"[vsyscall]"
    assert len(lines) == len(areas) > 2
    for line, area in zip(lines, areas, strict=True):
        assert line is not None
        assert (int(line["start"], 16), int(line["end"], 16)) == (area.start, area.end)
        bits = (Protection.READ, b"r"), (Protection.WRITE, b"w"), (Protection.EXECUTE, b"x")
        assert line["flags"][:3] == b"".join(c if area.protection & bit else b"-" for bit, c in bits)
        assert line["name"].decode() == area.name


def test_maps_shows_the_files_own_bytes_where_it_says(process: Process) -> None:
    content, shown = _program(process).read_bytes(), 0
    for text in _read(process, "self/maps").splitlines():
        line = _LINE.fullmatch(text)
        assert line is not None
        if line["name"] == bytes(_program(process)) and line["flags"][1:2] == b"-":
            offset, start = int(line["offset"], 16), int(line["start"], 16)
            piece = content[offset : offset + 4096]
            assert _cpu(process).copy_from_user(start, len(piece)) == piece
            known = process.files.stat(fl.AT_FDCWD, bytes(_program(process)))
            device = b"%02x:%02x" % (os.major(known.dev), os.minor(known.dev))
            assert (int(line["inode"]), line["device"]) == (known.ino, device)
            shown += 1
    assert shown


def test_maps_names_the_stack_where_the_stack_pointer_is(process: Process) -> None:
    (line,) = [line for line in _read(process, "self/maps").splitlines() if line.endswith(b"[stack]")]
    start, end = (int(text, 16) for text in line.split()[0].split(b"-"))
    assert start <= _cpu(process).sp < end


def test_maps_follows_what_is_mapped_now(process: Process) -> None:
    before = _read(process, "self/maps")
    space = process.mm
    start, end = _new_area(process, 3, Protection.READ, name="[new]")
    assert f"{start:x}-{end:x} r--p".encode() in _read(process, "self/maps")
    space.unmap(start, end)
    assert _read(process, "self/maps") == before


def test_status_statm_and_stat_agree_with_the_page_table(process: Process) -> None:
    space = process.mm
    page, areas = space.page_size, space.areas
    mapped = [va for area in areas for va in range(area.start, area.end, page) if _present(process, va)]
    size = sum(area.length for area in space.areas)
    status, statm = _status(process), [int(text) for text in _read(process, "self/statm").split()]
    assert status["VmSize"] == f"{size >> 10} kB"
    assert status["VmRSS"] == f"{(page >> 10) * len(mapped)} kB"
    assert (status["Name"], status["Pid"], status["PPid"]) == ("hello", "1000", "999")
    assert status["Uid"].split() == ["1000"] * 4
    assert (statm[0], statm[1], len(statm)) == (size // page, len(mapped), 7)
    stat = _read(process, "self/stat").decode()
    fields = stat[stat.rindex(")") + 2 :].split()
    assert stat.startswith("1000 (hello) R ")
    assert len(fields) == 50, "fields 3 to 52 of proc_pid_stat(5)"
    start, end = int(fields[26 - 3]), int(fields[27 - 3])
    assert start <= process.program.entry < end <= int(fields[47 - 3]) == space.heap_start
    assert (fields[4 - 3], int(fields[23 - 3]), int(fields[24 - 3])) == ("999", size, len(mapped))
    assert int(fields[28 - 3]) == process.program.stack_pointer
    data, data_end = int(fields[45 - 3]), int(fields[46 - 3])
    assert space.areas.covered(data & -page, data_end) and data <= data_end <= space.heap_start
    arguments, end, environment, last = (int(fields[number - 3]) for number in (48, 49, 50, 51))
    assert end == environment
    strings = b"".join(text + b"\0" for text in (*process.program.arguments, *process.program.environment))
    assert _cpu(process).copy_from_user(arguments, last - arguments) == strings


def _present(process: Process, va: int) -> bool:
    return type(process.mm.walk(va)).__name__ == "Mapped"


def test_resident_memory_grows_by_the_page_that_is_touched(process: Process) -> None:
    before = int(_status(process)["RssAnon"].split()[0])
    stack = next(area for area in process.mm.areas if area.name == "[stack]")
    assert not _present(process, stack.start)
    _cpu(process).copy_to_user(stack.start, b"x")
    assert int(_status(process)["RssAnon"].split()[0]) == before + (process.mm.page_size >> 10)


def test_auxv_is_what_lies_on_the_stack(process: Process) -> None:
    vector = _read(process, "self/auxv")
    pairs = list(struct.iter_unpack("<QQ", vector))
    assert pairs[-1] == (0, 0)
    pointers = 8 * (1 + 3 + 1 + 1 + 1)  # argc, argv and its end, envp and its end
    assert _cpu(process).copy_from_user(process.program.stack_pointer + pointers, len(vector)) == vector


def test_links_and_texts_of_the_program(process: Process) -> None:
    path = bytes(_program(process))
    assert process.files.readlink(fl.AT_FDCWD, b"/proc/self/exe", 4096) == path
    assert process.files.readlink(fl.AT_FDCWD, b"/proc/self/cwd", 4096) == bytes(_program(process).parent)
    assert _read(process, "self/cmdline") == b"hello\0two words\0\0"
    assert _read(process, "self/environ") == b"K=V\0"
    assert _read(process, "self/comm") == b"hello\n"
    assert _read(process, "1000/cmdline") == _read(process, "self/cmdline")
    assert _read(process, "self/exe") == _program(process).read_bytes()


def _figures(text: bytes) -> dict[str, int]:
    """Numbers by name, from meminfo or vmstat."""
    rows = (line.replace(b":", b"").split() for line in text.splitlines())
    return {row[0].decode(): int(row[1]) for row in rows}


def test_meminfo_and_vmstat_follow_what_a_process_does(process: Process) -> None:
    rw, kib = Protection.READ | Protection.WRITE, process.mm.page_size >> 10
    backing = SharedMemory(process.kernel.physical, 3)
    before, counts = _figures(_read(process, "meminfo")), _figures(_read(process, "vmstat"))
    own = _new_area(process, 4, rw)[0]
    shared = _new_area(process, 3, rw, shared=True, backing=backing)[0]
    for page in range(4):
        _cpu(process).copy_to_user(own + page * process.mm.page_size, b"x")
    for page in range(2):
        _cpu(process).copy_to_user(shared + page * process.mm.page_size, b"x")
    now, events = _figures(_read(process, "meminfo")), _figures(_read(process, "vmstat"))
    expected = {"AnonPages": 4, "Shmem": 2, "Cached": 2, "Mapped": 2, "Active": 6, "Inactive": 0}
    expected |= {"Active(anon)": 6, "Committed_AS": 4}
    assert {name: (now[name] - before[name]) // kib for name in expected} == expected
    expected = {"nr_anon_pages": 4, "nr_shmem": 2, "nr_mapped": 2, "nr_active_anon": 6, "nr_inactive_anon": 0}
    assert {name: events[name] - counts[name] for name in expected} == expected
    assert _clear_refs(process, b"1") == 1
    aged = _figures(_read(process, "meminfo"))
    assert (aged["Active"], aged["Inactive"]) == (0, now["Active"] + now["Inactive"])
    _cpu(process).copy_to_user(own, b"y")
    assert _figures(_read(process, "vmstat"))["nr_active_anon"] == 1


def test_pagetypeinfo_has_what_is_free(process: Process) -> None:
    text = machine_texts(process)["pagetypeinfo"]
    assert isinstance(text, Text)
    lines = text.provide().decode().splitlines()
    order = process.mm.table.format.levels[0].bits
    assert lines[:2] == [f"Page block order: {order}", f"Pages per block:  {1 << order}"]
    free = {tuple(line.split()[3::2][:2]): line.split()[6:] for line in lines if ", type" in line}
    assert {kind for _zone, kind in free} == {"Unmovable", "Movable", "Reclaimable", "HighAtomic", "Isolate"}
    pages = sum(int(count) << order for row in free.values() for order, count in enumerate(row))
    assert pages == process.kernel.physical.buddy.free_frames
    shown = process.files.stat(fl.AT_FDCWD, b"/proc/pagetypeinfo")
    assert shown.mode == 0o100400, "root alone reads it"


def test_meminfo_adds_up(process: Process) -> None:
    rows = dict(re.findall(rb"(\w+): +(\d+) kB", _read(process, "meminfo")))
    buddy, kib = process.kernel.physical.buddy, process.mm.page_size >> 10
    assert int(rows[b"MemTotal"]) == buddy.total * kib == 8 << 10
    assert int(rows[b"MemFree"]) == buddy.free_frames * kib
    assert int(rows[b"PageTables"]) >= process.mm.table.tables * kib


def test_system_settings_are_those_of_the_machine(process: Process) -> None:
    assert _read(process, "sys/vm/max_map_count") == b"65530\n"
    assert _read(process, "sys/vm/mmap_min_addr") == b"65536\n"
    assert _read(process, "sys/kernel/randomize_va_space") == b"2\n"


_STATUS = (
    *("Name", "Umask", "State", "Tgid", "Ngid", "Pid", "PPid", "TracerPid", "Uid", "Gid", "FDSize", "Groups"),
    *(
        "NStgid",
        "NSpid",
        "NSpgid",
        "NSsid",
        "VmPeak",
        "VmSize",
        "VmLck",
        "VmPin",
        "VmHWM",
        "VmRSS",
        "RssAnon",
    ),
    *("RssFile", "RssShmem", "VmData", "VmStk", "VmExe", "VmLib", "VmPTE", "VmSwap", "HugetlbPages"),
    *("CoreDumping", "THP_enabled", "untag_mask", "Threads", "SigQ", "SigPnd", "ShdPnd", "SigBlk", "SigIgn"),
    *("SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters"),
    *("Speculation_Store_Bypass", "SpeculationIndirectBranch", "Cpus_allowed", "Cpus_allowed_list"),
    *("Mems_allowed", "Mems_allowed_list", "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"),
)


def test_status_has_linuxs_fields_in_their_order(process: Process) -> None:
    assert tuple(_status(process)) == _STATUS
    here = [line.split(":")[0] for line in Path("/proc/self/status").read_text().splitlines()]
    assert [name for name in here if name in _STATUS] == [name for name in _STATUS if name in here]


def test_status_of_a_process_that_did_nothing_is_that_of_one_of_this_host(process: Process) -> None:
    ran = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True)
    here = dict(line.split(":\t", 1) for line in ran.stdout.splitlines())
    alike = ("Ngid", "TracerPid", "VmLck", "VmPin", "VmSwap", "HugetlbPages", "CoreDumping", "Threads")
    masks = ("SigPnd", "ShdPnd", "SigBlk", "SigCgt", "CapInh", "CapAmb")
    ours = _status(process)
    for name in (*alike, *masks):
        assert ours[name] == here[name].strip(), name
    mask = "0xffffffffffffff" if process.abi.isa == "arm64" else here.get("untag_mask", "0xffffffffffffffff")
    assert ours["untag_mask"] == mask


@pytest.mark.parametrize(
    ("highest", "room"), [(63, 64), (64, 128), (127, 128), (128, 256), (256, 512), (1023, 1024)]
)
def test_the_room_for_descriptors_is_what_linux_makes_for_the_highest(
    process: Process, highest: int, room: int
) -> None:
    """Recorded on Linux 6.18 (alloc_fdtable, fs/file.c)."""
    fd = process.files.open(fl.AT_FDCWD, b"/proc/self/status", fl.O_RDONLY)
    assert _status(process)["FDSize"] == "64"
    process.files.dup3(fd, highest, 0)
    assert _status(process)["FDSize"] == str(room)
    for each in (fd, highest):
        process.files.close(each)


def test_status_tells_what_is_locked_and_what_is_data(process: Process) -> None:
    space, rw = process.mm, Protection.READ | Protection.WRITE
    before = _status(process)
    start, end = _new_area(process, 3, rw)
    _cpu(process).copy_to_user(start, b"x")
    area = space.areas.find(start)
    assert area is not None
    space.mark(area, start, end, LOCKED)
    kib = space.page_size >> 10
    after, sizes = _status(process), _smaps(process)[start][0]

    def grown(name: str) -> int:
        return int(after[name].split()[0]) - int(before[name].split()[0])

    assert [grown(name) // kib for name in ("VmLck", "VmData", "VmSize", "VmStk", "VmExe")] == [3, 3, 3, 0, 0]
    assert sizes["Locked"] == sizes["Pss"] == kib
    assert f"Locked: {kib:>16d} kB" in _read(process, "self/smaps_rollup").decode()
    space.unmap(start, end)
    ended = _status(process)
    assert (ended["VmLck"], ended["VmData"]) == ("0 kB", before["VmData"])
    assert ended["VmPeak"] == after["VmSize"]
    statm = [int(text) for text in _read(process, "self/statm").split()]
    stack = sum(area.length for area in space.areas if area.name == "[stack]")
    assert statm[5] == (space.account.data + stack) // space.page_size
    assert statm[3] * kib == int(ended["VmExe"].split()[0]) > 0


def test_limits_are_laid_out_as_this_hosts(process: Process) -> None:
    ours, theirs = _read(process, "self/limits").decode(), Path("/proc/self/limits").read_text()
    columns = [(line[:26], line[68:]) for line in theirs.splitlines()]
    assert [(line[:26], line[68:]) for line in ours.splitlines()] == columns
    rows = {line[:26].strip(): line[26:68].split() for line in ours.splitlines()}
    assert rows["Max locked memory"] == [str(8 << 20)] * 2
    assert rows["Max data size"] == ["unlimited"] * 2
    assert _read(process, "self/personality") == b"00000000\n"


# ---- smaps and clear_refs

_COMMON = (
    *("Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Referenced", "Anonymous", "KSM"),
    *("LazyFree", "AnonHugePages", "ShmemPmdMapped", "FilePmdMapped", "Shared_Hugetlb"),
    *("Private_Hugetlb", "Swap", "SwapPss", "Locked"),
)
# As Linux 6.18 shows them; the last two fields of an area are no sizes.
_OF_AREA = ("Size", "KernelPageSize", "MMUPageSize", "Rss", "Pss", "Pss_Dirty", *_COMMON)
_OF_PROCESS = ("Rss", "Pss", "Pss_Dirty", "Pss_Anon", "Pss_File", "Pss_Shmem", *_COMMON)
_SIZE_FIELD = re.compile(r"(\w+): +(\d+) kB")


def _sizes(lines: list[str]) -> dict[str, int]:
    """KiB by field, in the order of the lines, each of which must be a size in Linux's columns."""
    found: dict[str, int] = {}
    for line in lines:
        match = _SIZE_FIELD.fullmatch(line)
        assert match is not None and len(line) == 27, line
        found[match[1]] = int(match[2])
    return found


def _smaps(process: Process) -> dict[int, tuple[dict[str, int], str]]:
    """By the areas' starts: the sizes, and the letters of VmFlags."""
    lines = _read(process, "self/smaps").decode().splitlines()
    height = 1 + len(_OF_AREA) + 2
    found = {}
    for at in range(0, len(lines), height):
        head, *fields, eligible, flags = lines[at : at + height]
        assert eligible == "THPeligible:           0"
        assert flags.startswith("VmFlags: ") and flags.endswith(" ")
        found[int(head.split("-")[0], 16)] = (_sizes(fields), flags.removeprefix("VmFlags: ").strip())
    return found


def _clear_refs(process: Process, text: bytes) -> int:
    fd = process.files.open(fl.AT_FDCWD, b"/proc/self/clear_refs", fl.O_WRONLY | fl.O_TRUNC)
    try:
        done = process.files.write(fd, text)
        assert isinstance(done, int)
        return done
    finally:
        process.files.close(fd)


def test_smaps_has_linuxs_fields_below_the_lines_of_maps(process: Process) -> None:
    lines = _read(process, "self/smaps").splitlines(keepends=True)
    height = 1 + len(_OF_AREA) + 2
    assert b"".join(lines[::height]) == _read(process, "self/maps")
    for area in process.mm.areas:
        sizes, _flags = _smaps(process)[area.start]
        assert tuple(sizes) == _OF_AREA
        assert sizes["Size"] == area.length >> 10
        assert sizes["KernelPageSize"] == sizes["MMUPageSize"] == process.mm.page_size >> 10


@pytest.mark.parametrize(("name", "flags"), [("clear_refs", os.O_WRONLY), ("mem", os.O_RDWR)])
def test_what_is_no_text_lies_in_proc_too(process: Process, name: str, flags: int) -> None:
    files = process.files
    fd = files.open(fl.AT_FDCWD, f"/proc/self/{name}".encode(), flags)
    assert files.fstatfs(fd) == files.statfs(b"/proc")


def test_smaps_rollup_is_the_sum_of_smaps(process: Process) -> None:
    head, *fields = _read(process, "self/smaps_rollup").decode().splitlines()
    areas = list(process.mm.areas)
    span = f"{areas[0].start:08x}-{areas[-1].end:08x}"
    assert head == f"{span} ---p 00000000 00:00 0".ljust(73) + "[rollup]"
    total = _sizes(fields)
    assert tuple(total) == _OF_PROCESS
    parts = [sizes for sizes, _flags in _smaps(process).values()]
    for name in set(_OF_AREA) & set(_OF_PROCESS):
        assert total[name] == sum(sizes[name] for sizes in parts), name
    status = _status(process)
    assert f"{total['Rss']} kB" == status["VmRSS"]
    assert f"{total['Anonymous']} kB" == status["RssAnon"]
    assert f"{total['Rss'] - total['Anonymous']} kB" == status["RssFile"]
    assert total["Pss"] == total["Pss_Anon"] + total["Pss_File"] <= total["Rss"]
    assert total["Pss_Anon"] == total["Anonymous"] > 0, "no entry of another process shows them"


def test_smaps_says_what_the_kernel_may_do_with_an_area(process: Process) -> None:
    rw = Protection.READ | Protection.WRITE
    read_only_file = Protection.READ | Protection.EXECUTE
    shared, backing = SharedMemory(process.kernel.physical, 1), SharedMemory(process.kernel.physical, 1)
    device = DeviceMemory(process.kernel.physical, "thing", 1, MemoryType.UNCACHED)
    wanted = {
        _new_area(process, 1, rw)[0]: "rd wr mr mw me ac sd",
        _new_area(process, 1, Protection.NONE)[0]: "mr mw me sd",
        _new_area(process, 1, rw, no_reserve=True)[0]: "rd wr mr mw me nr sd",
        _new_area(process, 1, rw, shared=True, backing=shared)[0]: "rd wr sh mr mw me ms sd",
        _new_area(process, 1, Protection.READ, shared=True, backing=backing, maximum=read_only_file)[
            0
        ]: "rd mr me ms sd",
        _new_area(process, 1, rw, shared=True, backing=device)[0]: "rd wr sh mr mw me ms pf io de dd sd",
    }
    advised = _new_area(process, 1, rw)[0]
    area = process.mm.areas.find(advised)
    assert area is not None
    process.mm.mark(area, area.start, area.end, sum(AreaFlags))
    wanted[advised] = "rd wr mr mw me um gu uw lo sr rr dc lf ac wf dd sd hg nh mg ui sl"
    wanted |= {area.start: "rd wr mr mw me gd ac sd" for area in process.mm.areas if area.name == "[stack]"}
    shown = _smaps(process)
    assert {start: shown[start][1] for start in wanted} == wanted
    assert "rd ex mr mw me sd" in {flags for _sizes, flags in shown.values()}, "the program's code"
    device.close()


def test_a_page_that_was_only_read_is_the_zero_page_and_nobodys_memory(process: Process) -> None:
    start, _end = _new_area(process, 2, Protection.READ | Protection.WRITE)
    _cpu(process).copy_from_user(start, 1)
    sizes, _flags = _smaps(process)[start]
    assert sizes["Rss"] == sizes["Pss"] == sizes["Referenced"] == 0
    _cpu(process).copy_to_user(start, b"x")
    sizes, _flags = _smaps(process)[start]
    kib = process.mm.page_size >> 10
    for name in ("Rss", "Pss", "Pss_Dirty", "Private_Dirty", "Referenced", "Anonymous"):
        assert sizes[name] == kib, name


def test_a_page_that_two_entries_show_is_shared_and_counts_half_for_each(process: Process) -> None:
    rw, kib = Protection.READ | Protection.WRITE, process.mm.page_size >> 10
    backing = SharedMemory(process.kernel.physical, 1)
    first, second = (_new_area(process, 1, rw, shared=True, backing=backing)[0] for _ in range(2))
    _cpu(process).copy_to_user(first, b"x")
    assert _smaps(process)[first][0]["Private_Dirty"] == _smaps(process)[first][0]["Pss"] == kib
    _cpu(process).copy_to_user(second, b"x")
    for start in (first, second):
        sizes, _flags = _smaps(process)[start]
        assert (sizes["Rss"], sizes["Pss"], sizes["Shared_Dirty"]) == (kib, kib // 2, kib)
        assert (sizes["Private_Dirty"], sizes["Anonymous"]) == (0, 0)
    assert _status(process)["RssShmem"] == f"{2 * kib} kB"


def test_the_vdso_counts_as_a_files_memory_as_on_linux(process: Process) -> None:
    before = _status(process)["RssFile"]
    (vdso,) = [area for area in process.mm.areas if area.name == "[vdso]"]
    _cpu(process).copy_from_user(vdso.start, 1)
    status, kib = _status(process), process.mm.page_size >> 10
    assert int(status["RssFile"].split()[0]) - int(before.split()[0]) == kib
    assert status["RssShmem"] == "0 kB"


def test_a_page_that_nobody_may_touch_still_takes_memory(process: Process) -> None:
    start, end = _new_area(process, 1, Protection.READ | Protection.WRITE)
    _cpu(process).copy_to_user(start, b"x")
    area = process.mm.areas.find(start)
    assert area is not None
    process.mm.protect(area, start, end, Protection.NONE)
    sizes, _flags = _smaps(process)[start]
    assert sizes["Rss"] == sizes["Private_Dirty"] == process.mm.page_size >> 10


@pytest.mark.parametrize(("what", "kept"), [(b"1", ""), (b"2\n", "file"), (b" 3", "anon"), (b"4", "both")])
def test_clear_refs_forgets_areas_of_one_kind(fresh: Process, what: bytes, kept: str) -> None:
    anonymous, _end = _new_area(fresh, 1, Protection.READ | Protection.WRITE)
    _cpu(fresh).copy_to_user(anonymous, b"x")
    by_file = next(area.start for area in fresh.mm.areas if area.backing is not None)
    _cpu(fresh).copy_from_user(by_file, 1)

    def referenced(start: int) -> bool:
        return _smaps(fresh)[start][0]["Referenced"] > 0

    assert referenced(anonymous) and referenced(by_file)
    assert _clear_refs(fresh, what) == len(what)
    assert referenced(anonymous) == (kept in ("anon", "both"))
    assert referenced(by_file) == (kept in ("file", "both"))
    _cpu(fresh).copy_to_user(anonymous, b"y")
    _cpu(fresh).copy_from_user(by_file, 1)
    assert referenced(anonymous) and referenced(by_file)


def _pages(process: Process, start: int, count: int) -> str:
    """Which pages of a range count as written."""
    fd = process.files.open(fl.AT_FDCWD, b"/proc/self/pagemap", fl.O_RDONLY)
    raw = process.files.pread(fd, 8 * count, start // process.mm.page_size * 8)
    process.files.close(fd)
    return "".join("W" if entry >> 55 & 1 else "." for (entry,) in struct.iter_unpack("<Q", raw))


def test_clear_refs_4_forgets_what_was_written(process: Process) -> None:
    page = process.mm.page_size
    start, _end = _new_area(process, 4, Protection.READ | Protection.WRITE)
    _cpu(process).copy_to_user(start + page, b"x")
    assert _pages(process, start - page, 5) == ".WWWW", "the area is new"
    assert "sd" in _smaps(process)[start][1].split()
    assert _clear_refs(process, b"4") == 1
    assert "sd" not in _smaps(process)[start][1].split()
    _cpu(process).copy_from_user(start, 3 * page)
    assert _pages(process, start, 4) == "...."
    _cpu(process).copy_to_user(start + page, b"xy")
    _cpu(process).copy_to_user(start + 3 * page, b"x")
    assert _pages(process, start, 4) == ".W.W"
    child = process.mm.fork()
    seen = ageing.look(child, start, start + 4 * page)
    assert seen.clean.tolist() == [True, False, True, False], "a fork's pages are as written as they were"
    child.let_go()


@pytest.mark.parametrize("what", [b"", b"0", b"6", b"-1", b"+", b"1x", b"0x1", b"1_0", b"\01"])
def test_clear_refs_refuses_what_is_no_kind(process: Process, what: bytes) -> None:
    with pytest.raises(Refused) as caught:
        _clear_refs(process, what)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(Refused) as caught:
        _clear_refs(process, b"2147483648")
    assert caught.value.errno == errno.ERANGE


def test_clear_refs_is_written_and_never_read(process: Process) -> None:
    path = b"/proc/self/clear_refs"
    for flags in (fl.O_RDONLY, fl.O_RDWR):
        with pytest.raises(Refused) as caught:
            process.files.open(fl.AT_FDCWD, path, flags)
        assert caught.value.errno == errno.EACCES
    stat = process.files.stat(fl.AT_FDCWD, path)
    assert (stat.mode, stat.size) == (0o100200, 0)
    fd = process.files.open(fl.AT_FDCWD, path, fl.O_WRONLY)
    assert process.files.write(fd, b"1".ljust(20)) == 12, "Linux looks at twelve bytes and leaves the rest"
    assert process.files.lseek(fd, 7, 0) == 0
    process.files.ftruncate(fd, 3)
    assert isinstance(process.files.table.file(fd), ControlFile)
    process.files.close(fd)


def test_open_texts_take_of_what_open_files_may_hold_until_they_are_closed(process: Process) -> None:
    """Otherwise a program with many areas and descriptors would take all of the host's memory."""
    files, namespace = process.files, process.files.namespace
    namespace.memory_limit = 5 * len(_read(process, "self/smaps")) // 2
    opened = [files.open(fl.AT_FDCWD, b"/proc/self/smaps", fl.O_RDONLY) for _ in range(3)]
    assert namespace.memory_used == 0, "nothing was read yet"
    for fd in opened[:2]:
        files.read(fd, 1)
    with pytest.raises(Refused) as caught:
        files.read(opened[2], 1)
    assert caught.value.errno == errno.ENOMEM
    for fd in opened:
        files.close(fd)
    assert namespace.memory_used == 0
    assert _read(process, "self/smaps")


def test_smaps_of_many_areas_agrees_with_each_of_them(process: Process) -> None:
    """The areas are counted together: each must get its own pages and no others."""
    rw = Protection.READ | Protection.WRITE
    starts = [_new_area(process, pages, rw)[0] for pages in (1, 2, 3, 4, 5)]
    for number, start in enumerate(starts):
        for page in range(number):
            _cpu(process).copy_to_user(start + page * process.mm.page_size, b"x")
    shown, kib = _smaps(process), process.mm.page_size >> 10
    assert [shown[start][0]["Rss"] // kib for start in starts] == [0, 1, 2, 3, 4]
    assert [shown[start][0]["Size"] // kib for start in starts] == [1, 2, 3, 4, 5]


def test_pages_of_memory_files_are_shared_memory(process: Process) -> None:
    page, before = process.mm.page_size, smaps.usage(process.mm, [0])
    fd = process.files.memfd_create(b"m")
    process.files.ftruncate(fd, 3 * page)
    file = MappedFile(process.kernel, process.files.table.file(fd))
    at = map_memory(process.mm, Request(0, 3 * page, 3, MAP_SHARED, file, 0))
    _cpu(process).copy_to_user(at, b"x")
    _cpu(process).copy_from_user(at + 2 * page, 1)
    after = smaps.usage(process.mm, [0])
    assert {name: int(after[name][0] - before[name][0]) // page for name in ("Rss", "File", "Shmem")} == {
        "Rss": 2,
        "File": 0,
        "Shmem": 2,
    }
    assert after["Pss_Shmem"][0] - before["Pss_Shmem"][0] == 2 * page


@pytest.mark.parametrize("uid", [0, 1000])
def test_the_caches_of_the_kernel_are_shown_to_root_alone(process: Process, uid: int) -> None:
    process.kernel.actor.credentials = of_user(uid, uid)
    files = process.files
    if uid:
        with pytest.raises(Refused) as caught:
            files.open(fl.AT_FDCWD, b"/proc/slabinfo", fl.O_RDONLY)
        assert caught.value.errno == errno.EACCES
        return
    fd = files.open(fl.AT_FDCWD, b"/proc/slabinfo", fl.O_RDONLY)
    read = files.table.file(fd).read(1000)
    assert isinstance(read, bytes)
    assert read.startswith(b"slabinfo - version: 2.1\n# name ")
    names = [line.split()[0] for line in read.splitlines()[2:]]
    stacks = [b"thread_stack"] if process.mm.page_size == 64 << 10 else []
    assert names == [*stacks, b"mm_struct", b"task_struct"]
