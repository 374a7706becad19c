"""What /proc and /sys tell of huge pages, of the settings and of how long free rows of frames are."""

from __future__ import annotations

import errno
import os
import re

import pytest

from aether_emu.config import Config
from aether_emu.errors import ConfigError
from aether_emu.grants import Grants
from aether_emu.mm import mapping
from aether_emu.mm.mapping import MAP_ANONYMOUS, MAP_PRIVATE, Request
from aether_emu.mm.populate import populate
from aether_emu.system import Machine
from tests.guests.running import program

HUGE = 2 << 20


def loaded(machine: Machine) -> Machine:
    path = program(machine.abi.isa, "hello")
    machine.load(path, grants=Grants(cwd=path.parent))
    return machine


def read(machine: Machine, path: str) -> str:
    files = machine.entry.task.files
    fd = files.open(-100, path.encode(), os.O_RDONLY)
    data = bytearray()
    while part := files.read(fd, 4096):
        assert isinstance(part, bytes)
        data += part
    files.close(fd)
    return data.decode()


def figures(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"^(\w+):?\s+(\d+)", text, re.MULTILINE)}


def huge_page(machine: Machine, count: int = 1) -> int:
    """Memory of some huge pages, each written to."""
    assert machine.process is not None
    mm = machine.process.mm
    at = mapping.map_memory(mm, Request(0, count * HUGE, 3, MAP_PRIVATE | MAP_ANONYMOUS, None, 0))
    assert at % HUGE == 0
    for number in range(count):
        assert populate(mm, at + number * HUGE, at + number * HUGE + 4096, write=True) is None
    return at


def test_the_settings_are_told() -> None:
    folder = "/sys/kernel/mm/transparent_hugepage"
    with loaded(Machine("x86_64", thp="madvise", mthp="64K,16K", ram="128M")) as machine:
        assert read(machine, f"{folder}/enabled") == "always [madvise] never\n"
        assert read(machine, f"{folder}/defrag") == "always defer defer+madvise [madvise] never\n"
        assert read(machine, f"{folder}/use_zero_page") == "1\n"
        inherits = "always [inherit] madvise never\n"
        assert read(machine, f"{folder}/hugepages-64kB/enabled") == inherits
        assert read(machine, f"{folder}/hugepages-2048kB/enabled") == inherits
        assert read(machine, f"{folder}/hugepages-32kB/enabled") == "always inherit madvise [never]\n"
    with loaded(Machine("x86_64", ram="32M")) as machine:
        assert read(machine, f"{folder}/enabled") == "always madvise [never]\n"
        assert read(machine, f"{folder}/use_zero_page") == "0\n"


def test_figures_count_huge_pages() -> None:
    with loaded(Machine("x86_64", thp="always", ram="64M")) as machine:
        before = figures(read(machine, "/proc/meminfo"))
        at = huge_page(machine, 3)
        assert machine.process is not None
        machine.process.mm.unmap(at, at + 4096)
        now, events = figures(read(machine, "/proc/meminfo")), figures(read(machine, "/proc/vmstat"))
        assert now["AnonHugePages"] - before["AnonHugePages"] == 2 * HUGE >> 10
        assert now["AnonPages"] - before["AnonPages"] == (3 * HUGE - 4096) >> 10
        assert (events["thp_fault_alloc"], events["thp_split_pmd"]) == (3, 1)
        assert events["nr_anon_transparent_hugepages"] == 2
        smaps = read(machine, "/proc/self/smaps").split("VmFlags")
        assert sum(figures(text)["AnonHugePages"] for text in smaps[:-1]) == 2 * HUGE >> 10
        assert [figures(text)["THPeligible"] for text in smaps[:-1]].count(1) == 1
        assert figures(read(machine, "/proc/self/smaps_rollup"))["AnonHugePages"] == 2 * HUGE >> 10
        assert figures(read(machine, "/proc/self/status"))["THP_enabled"] == 1
        machine.process.mm.no_huge = True
        assert figures(read(machine, "/proc/self/status"))["THP_enabled"] == 0
        assert "THPeligible:           1" not in read(machine, "/proc/self/smaps")


def test_free_blocks_are_told_by_their_length() -> None:
    with loaded(Machine("x86_64", thp="always", ram="64M")) as machine:
        counts = [
            int(count) for line in read(machine, "/proc/buddyinfo").splitlines() for count in line.split()[4:]
        ]
        orders = [count << order % 11 for order, count in enumerate(counts)]
        assert sum(orders) == machine.buddy.free_frames
        index = read(machine, "/sys/kernel/debug/extfrag/unusable_index").splitlines()
        assert all(line.split()[4] == "0.000" for line in index)
        assert len(index) == len(machine.buddy.stats().zones)


def test_a_program_disables_them_and_asks() -> None:
    with loaded(Machine("x86_64", thp="always", ram="64M")) as machine:
        numbers = {name: number for number, name in machine.abi.system_calls.items()}

        def prctl(*arguments: int) -> int | None:
            return machine.entry.make_call(numbers["prctl"], *arguments, *[0] * (6 - len(arguments)))

        assert prctl(42) == 0
        assert prctl(41, 1) == 0
        assert prctl(42) == 1
        assert (prctl(41, 1, 1), prctl(42, 1)) == (-errno.EINVAL, -errno.EINVAL)
        assert prctl(41, 0) == prctl(42) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"thp": "always", "page_size": "64K", "ram": "512M"}, "a huge page has 512M here"),
        ({"thp": "always", "ram": "2M"}, "a huge page has 2M here"),
        ({"thp": "always", "mthp": "32K", "page_size": "16K"}, "runs of 64K or more"),
        ({"mthp": "64K"}, "none where thp and shmem_thp are never"),
        ({"shmem_thp": "always", "ram": "2M"}, "a huge page has 2M here"),
    ],
)
def test_settings_that_contradict_are_refused(options: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config.load(overrides=options)


def test_an_edit_without_a_frame_for_the_table_is_refused_with_enomem() -> None:
    with loaded(Machine("x86_64", thp="always", ram="64M")) as machine:
        at = huge_page(machine)
        numbers = {name: number for number, name in machine.abi.system_calls.items()}
        taken = machine.buddy.alloc_bulk(machine.buddy.free_frames)
        assert machine.entry.make_call(numbers["munmap"], at, 4096, 0, 0, 0, 0) == -errno.ENOMEM
        machine.buddy.free_bulk(taken)
        assert machine.entry.make_call(numbers["munmap"], at, 4096, 0, 0, 0, 0) == 0
