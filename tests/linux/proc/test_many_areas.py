"""What /proc tells of a process with many areas takes work for each of them once, and little.

stress-ng and others read these files hundreds of times from processes with thousands of areas. The work is
counted in calls of functions, which is the same on every machine.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from aether_emu.linux.files import flags as fl
from aether_emu.linux.maps import line_of, record_of
from aether_emu.linux.proc import memory
from aether_emu.linux.task.process import Process
from aether_emu.mm.allocation import Area, AreaMap
from aether_emu.mm.protection import Protection
from aether_emu.mm.tables.tree import Tree

_READ, _WRITE = Protection.READ, Protection.READ | Protection.WRITE
_AT = 0x10_0000_0000
_ENTRY = 8  # bytes of /proc/PID/pagemap for a page


def _grow(process: Process, pages: range) -> None:
    """One area for each of the pages; every second one has memory."""
    space = process.mm
    for number in pages:
        start = _AT + number * space.page_size
        protection = _WRITE if number % 2 else _READ
        space.insert(space.new_area(start, start + space.page_size, protection))
        if number % 2:
            process.kernel.cpus[0].copy_to_user(start, b"x")


def _read(process: Process, name: bytes) -> list[bytes]:
    """The lines of a file of /proc/self, all made at its opening."""
    fd = process.files.open(fl.AT_FDCWD, b"/proc/self/" + name, fl.O_RDONLY)
    try:
        data = process.files.read(fd, 1 << 22)
        assert isinstance(data, bytes)
        return data.splitlines()
    finally:
        process.files.close(fd)


def _calls(action: Callable[[], object]) -> int:
    """How many functions written in Python are called, and generators gone on with."""
    count = 0

    def told(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    gc.disable()  # a test library hears of collections, by functions that would count
    sys.setprofile(told)
    try:
        action()
    finally:
        sys.setprofile(before)
        gc.enable()
    return count


@pytest.mark.parametrize(("name", "most"), [(b"maps", 4), (b"smaps", 7), (b"numa_maps", 8)], ids=str)
def test_an_area_more_is_a_line_more_and_few_calls(process: Process, name: bytes, most: int) -> None:
    _grow(process, range(100))
    _read(process, name)
    few = _calls(lambda: _read(process, name))
    _grow(process, range(100, 200))
    _read(process, name)
    assert _calls(lambda: _read(process, name)) - few <= 100 * most


@pytest.mark.parametrize("name", [b"smaps", b"numa_maps", b"smaps_rollup"])
def test_the_tables_are_not_walked_for_each_area(
    process: Process, name: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks, visit = 0, Tree.visit

    def counted(self: Tree, start: int, end: int) -> object:
        nonlocal walks
        walks += 1
        return visit(self, start, end)

    monkeypatch.setattr(Tree, "visit", counted)
    _grow(process, range(10))
    walks = 0
    _read(process, name)
    before = walks
    _grow(process, range(10, 60))
    walks = 0
    _read(process, name)
    assert 0 < walks <= before


def test_a_page_of_pagemap_is_told_without_a_look_at_other_areas(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    _grow(process, range(20))

    def refused(_self: AreaMap) -> Iterator[Area]:
        raise AssertionError("all areas are gone through for one page")

    monkeypatch.setattr(AreaMap, "__iter__", refused)
    for number in range(20):
        position = (_AT // process.mm.page_size + number) * _ENTRY
        entry = int.from_bytes(memory.read_pagemap(process, position, _ENTRY), "little")
        assert bool(entry >> 63) == bool(number % 2)


def test_a_line_of_maps_is_that_of_the_record(process: Process) -> None:
    space = process.mm
    _grow(process, range(4))
    start = _AT + 10 * space.page_size
    space.insert(space.new_area(start, start + space.page_size, _WRITE, name="[anon:a\nb]", shared=False))
    for area in space.areas:
        assert line_of(space, area) == str(record_of(space, area))
    assert any(line_of(space, area).endswith(" [anon:a\\012b]") for area in space.areas)


def test_numa_maps_tells_of_the_pages_of_each_area(process: Process) -> None:
    kib = process.mm.page_size >> 10
    _grow(process, range(4))
    ours = [line for line in _read(process, b"numa_maps") if int(line.split()[0], 16) >= _AT]
    shown = [line.split(b" ", 2)[1:] for line in ours[:4]]
    there = b"anon=1 dirty=1 active=0 N0=1 kernelpagesize_kB=%d" % kib
    accessed = b"anon=1 dirty=1 N0=1 kernelpagesize_kB=%d" % kib
    assert shown[0] == shown[2] == [b"default"]
    assert shown[1] == shown[3] and shown[1] in ([b"default", there], [b"default", accessed])


def test_alike_areas_share_what_smaps_says_and_others_do_not(process: Process) -> None:
    _grow(process, range(4))
    space = process.mm
    large = _AT + 100 * space.page_size
    space.insert(space.new_area(large, large + 3 * space.page_size, _WRITE))
    lines, sizes = _read(process, b"smaps"), dict[int, list[bytes]]()
    for line in lines:
        first = line.split()[0]
        if b"-" in first:
            latest = sizes[int(first.split(b"-")[0], 16)] = []
        else:
            latest.append(b" ".join(line.split()))
    starts = [_AT + number * space.page_size for number in range(4)]
    assert sizes[starts[0]] == sizes[starts[2]] and sizes[starts[1]] == sizes[starts[3]]
    assert sizes[starts[0]] != sizes[starts[1]]
    assert b"Size: %d kB" % (3 * space.page_size >> 10) in sizes[large]
