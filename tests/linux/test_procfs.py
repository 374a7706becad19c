"""/proc/self tells the truth about the process: compared with the address space, page by page."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from aether_emu.linux.process import Process
from aether_emu.linux.vfs import flags as fl
from aether_emu.linux.vfs.open_file import WouldBlock
from aether_emu.linux.vfs.streams import BufferStream
from aether_emu.mm.protection import Protection
from aether_emu.system import Grants, Machine
from tests.linux.crafted import ISAS, PROGRAMS

_LINE = re.compile(
    rb"(?P<start>[0-9a-f]{8,})-(?P<end>[0-9a-f]{8,}) (?P<flags>[r-][w-][x-][ps])"
    rb" (?P<offset>[0-9a-f]{8,}) (?P<device>[0-9a-f]{2}:[0-9a-f]{2}) (?P<inode>\d+) *(?P<name>.*)"
)


@pytest.fixture(params=ISAS)
def process(request: pytest.FixtureRequest) -> Iterator[Process]:
    """`hello` with two arguments, some blocks into its run."""
    machine = Machine(request.param, ram="8M", aperture="4M", seed=5)
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    program = PROGRAMS / request.param / "hello"
    try:
        argv = ["hello", "two words", ""]
        made = machine.load(program, argv, env={"K": "V"}, grants=Grants(cwd=program.parent), streams=streams)
        assert machine.run_for(20) is None
        yield made
    finally:
        machine.close()


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
    return PROGRAMS / process.abi.isa / "hello"


def test_maps_has_a_line_for_each_area(process: Process) -> None:
    lines = [_LINE.fullmatch(line) for line in _read(process, "self/maps").splitlines()]
    areas = list(process.space.areas)
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
            assert process.cpu.copy_from_user(start, len(piece)) == piece
            known = process.files.stat(fl.AT_FDCWD, bytes(_program(process)))
            device = b"%02x:%02x" % (os.major(known.dev), os.minor(known.dev))
            assert (int(line["inode"]), line["device"]) == (known.ino, device)
            shown += 1
    assert shown


def test_maps_names_the_stack_where_the_stack_pointer_is(process: Process) -> None:
    (line,) = [line for line in _read(process, "self/maps").splitlines() if line.endswith(b"[stack]")]
    start, end = (int(text, 16) for text in line.split()[0].split(b"-"))
    assert start <= process.cpu.sp < end


def test_maps_follows_what_is_mapped_now(process: Process) -> None:
    before = _read(process, "self/maps")
    space = process.space
    start = space.areas.gap_below(0x5000, space.limits.user_base, space.mmap_base)
    assert start is not None
    space.insert(space.new_area(start, start + 0x3000, Protection.READ, name="[new]"))
    assert f"{start:x}-{start + 0x3000:x} r--p".encode() in _read(process, "self/maps")
    space.unmap(start, start + 0x3000)
    assert _read(process, "self/maps") == before


def test_status_statm_and_stat_agree_with_the_page_table(process: Process) -> None:
    space = process.space
    mapped = [va for area in space.areas for va in range(area.start, area.end, 4096) if _present(process, va)]
    size = sum(area.length for area in space.areas)
    status, statm = _status(process), [int(text) for text in _read(process, "self/statm").split()]
    assert status["VmSize"] == f"{size >> 10} kB"
    assert status["VmRSS"] == f"{4 * len(mapped)} kB"
    assert (status["Name"], status["Pid"], status["PPid"]) == ("hello", "1000", "999")
    assert status["Uid"].split() == ["1000"] * 4
    assert (statm[0], statm[1], len(statm)) == (size >> 12, len(mapped), 7)
    stat = _read(process, "self/stat").decode()
    fields = stat[stat.rindex(")") + 2 :].split()
    assert stat.startswith("1000 (hello) R ")
    assert len(fields) == 50, "fields 3 to 52 of proc_pid_stat(5)"
    assert (fields[4 - 3], int(fields[23 - 3]), int(fields[24 - 3])) == ("999", size, len(mapped))


def _present(process: Process, va: int) -> bool:
    return type(process.space.walk(va)).__name__ == "Mapped"


def test_resident_memory_grows_by_the_page_that_is_touched(process: Process) -> None:
    before = int(_status(process)["RssAnon"].split()[0])
    stack = next(area for area in process.space.areas if area.name == "[stack]")
    assert not _present(process, stack.start)
    process.cpu.copy_to_user(stack.start, b"x")
    assert int(_status(process)["RssAnon"].split()[0]) == before + 4


def test_auxv_is_what_lies_on_the_stack(process: Process) -> None:
    vector = _read(process, "self/auxv")
    pairs = list(struct.iter_unpack("<QQ", vector))
    assert pairs[-1] == (0, 0)
    pointers = 8 * (1 + 3 + 1 + 1 + 1)  # argc, argv and its end, envp and its end
    assert process.cpu.copy_from_user(process.program.stack_pointer + pointers, len(vector)) == vector


def test_links_and_texts_of_the_program(process: Process) -> None:
    path = bytes(_program(process))
    assert process.files.readlink(fl.AT_FDCWD, b"/proc/self/exe", 4096) == path
    assert process.files.readlink(fl.AT_FDCWD, b"/proc/self/cwd", 4096) == bytes(_program(process).parent)
    assert _read(process, "self/cmdline") == b"hello\0two words\0\0"
    assert _read(process, "self/environ") == b"K=V\0"
    assert _read(process, "self/comm") == b"hello\n"
    assert _read(process, "1000/cmdline") == _read(process, "self/cmdline")
    assert _read(process, "self/exe") == _program(process).read_bytes()


def test_meminfo_adds_up(process: Process) -> None:
    rows = dict(re.findall(rb"(\w+): +(\d+) kB", _read(process, "meminfo")))
    buddy = process.kernel.physical.buddy
    assert int(rows[b"MemTotal"]) == buddy.total * 4
    assert int(rows[b"MemFree"]) == buddy.free_frames * 4
    assert int(rows[b"PageTables"]) >= process.space.table.tables * 4


def test_system_settings_are_those_of_the_machine(process: Process) -> None:
    assert _read(process, "sys/vm/max_map_count") == b"65530\n"
    assert _read(process, "sys/vm/mmap_min_addr") == b"65536\n"
    assert _read(process, "sys/kernel/randomize_va_space") == b"2\n"
