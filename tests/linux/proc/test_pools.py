"""Pools of huge pages as /proc and /sys tell of them, made larger and smaller there, and captured."""

from __future__ import annotations

import errno
import os

import pytest

from aether_emu import state
from aether_emu.config import Config
from aether_emu.errors import ConfigError, Refused
from aether_emu.linux.files.huge_file import HugeFile
from aether_emu.mm import mapping
from aether_emu.mm.mapping import MAP_ANONYMOUS, MAP_HUGETLB, MAP_PRIVATE, MAP_SHARED, Request
from aether_emu.mm.user import UserMemory
from aether_emu.observe.stats import collect
from aether_emu.system import Machine
from tests.linux.proc.test_huge import figures, loaded, read

HUGE = 2 << 20
SYS = "/sys/kernel/mm/hugepages/hugepages-2048kB"


def write(machine: Machine, path: str, text: bytes) -> None:
    files = machine.entry.task.files
    fd = files.open(-100, path.encode(), os.O_WRONLY)
    try:
        assert files.write(fd, text) == len(text)
    finally:
        files.close(fd)


def huge(machine: Machine, pages: int, flags: int = MAP_PRIVATE) -> int:
    assert machine.process is not None
    request = Request(0, pages * HUGE, 3, flags | MAP_ANONYMOUS | MAP_HUGETLB, None, 0)
    return mapping.map_memory(machine.process.mm, request)


def pool(machine: Machine) -> list[int]:
    told = figures(read(machine, "/proc/meminfo"))
    return [told[f"HugePages_{name}"] for name in ("Total", "Free", "Rsvd", "Surp")]


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_meminfo_and_sys_tell_of_a_pool(isa: str) -> None:
    with loaded(Machine(isa, hugepages="2M=8", ram="128M", uid=0, gid=0)) as machine:
        assert machine.process is not None
        at = huge(machine, 3)
        UserMemory(machine.process.mm).write(at, b"x")
        assert pool(machine) == [8, 7, 2, 0]
        names = ("nr_hugepages", "free_hugepages", "resv_hugepages", "surplus_hugepages")
        assert [read(machine, f"{SYS}/{name}") for name in names] == ["8\n", "7\n", "2\n", "0\n"]
        told = figures(read(machine, "/proc/meminfo"))
        assert (told["Hugepagesize"], told["Hugetlb"]) == (2048, 8 * 2048)
        assert figures(read(machine, "/proc/self/status"))["HugetlbPages"] == 2048
        assert read(machine, "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages") == "0\n"
        assert collect(machine, 1.0)["hugetlb"] == {
            "2M": {"pages": 8, "free": 7, "promised": 2, "surplus": 0}
        }


def test_root_makes_a_pool_larger_and_smaller() -> None:
    with loaded(Machine("x86_64", ram="128M", uid=0, gid=0)) as machine:
        assert pool(machine) == [0, 0, 0, 0]
        write(machine, f"{SYS}/nr_hugepages", b"5\n")
        at = huge(machine, 2)
        write(machine, "/proc/sys/vm/nr_hugepages", b"1")
        assert pool(machine) == [2, 2, 2, 1]
        assert machine.process is not None
        mapping.unmap_memory(machine.process.mm, at, 2 * HUGE)
        assert pool(machine) == [1, 1, 0, 0]
        write(machine, f"{SYS}/nr_hugepages", b"100000")
        assert 20 < pool(machine)[0] < 64
        with pytest.raises(Refused) as caught:
            write(machine, f"{SYS}/nr_hugepages", b"many")
        assert caught.value.errno == errno.EINVAL


def test_nobody_but_root_does() -> None:
    with loaded(Machine("x86_64", ram="128M")) as machine, pytest.raises(Refused) as caught:
        write(machine, f"{SYS}/nr_hugepages", b"5\n")
    assert caught.value.errno == errno.EACCES


@pytest.mark.parametrize(("text", "why"), [("2M=100", "room for"), ("4M=1", "pages of 2M and 1G")])
def test_a_pool_that_cannot_be_is_refused_at_the_start(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Machine("x86_64", hugepages=text, ram="128M")


@pytest.mark.parametrize("text", ["2M", "2M=", "2M=-1", "2M=1,2M=2", "=1", "", "2M=x"])
def test_what_names_no_pool_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="hugepages"):
        Config(hugepages=text)


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_pages_promises_and_files_are_captured(isa: str) -> None:
    with loaded(Machine(isa, hugepages="2M=8", ram="128M", seed=3)) as machine:
        process = machine.process
        assert process is not None
        own, shared = huge(machine, 2), huge(machine, 2, MAP_SHARED)
        memory = UserMemory(process.mm)
        memory.write(own, b"own")
        memory.write(shared + HUGE, b"shared")
        fd = process.files.memfd_create(b"file", 4, machine.physical)
        file = process.files.table.file(fd)
        assert isinstance(file, HugeFile)
        file.truncate(2 * HUGE)
        file.allocate(0, 0, HUGE)
        before = pool(machine)
        snapshot = state.capture(machine)
    with state.restore(snapshot) as again:
        assert again.process is not None
        assert pool(again) == before == [8, 5, 2, 0]
        memory = UserMemory(again.process.mm)
        assert memory.read(own, 3) == b"own"
        assert memory.read(shared + HUGE, 6) == b"shared"
        memory.write(own + HUGE, b"promised")
        file = again.process.files.table.file(fd)
        assert isinstance(file, HugeFile)
        assert (file.size(), file.stat().blocks * 512, file.link()) == (
            2 * HUGE,
            HUGE,
            b"/memfd:file (deleted)",
        )
        mapping.unmap_memory(again.process.mm, own, 2 * HUGE)
        mapping.unmap_memory(again.process.mm, shared, 2 * HUGE)
        again.process.files.close(fd)
        assert pool(again) == [8, 8, 0, 0]
