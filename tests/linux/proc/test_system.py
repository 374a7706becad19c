"""/sys tells what the machine is configured to be."""

from __future__ import annotations

import errno
import os

import pytest

from aether_emu.errors import Refused
from aether_emu.grants import Grants
from aether_emu.linux.files.stat import Stat
from aether_emu.system import Machine
from tests.guests.running import program

_HUGE = b"/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"


def _loaded(machine: Machine) -> None:
    path = program(machine.abi.isa, "hello")
    machine.load(path, grants=Grants(cwd=path.parent))


def _read(machine: Machine, path: bytes) -> bytes:
    files = machine.entry.task.files
    fd = files.open(-100, path, os.O_RDONLY)
    data = files.read(fd, 4096)
    files.close(fd)
    assert isinstance(data, bytes)
    return data


@pytest.mark.parametrize(("isa", "granule", "size"), [
    ("x86_64", 4096, 2 << 20), ("arm64", 4096, 2 << 20),
    ("arm64", 16384, 32 << 20), ("arm64", 65536, 512 << 20),
])  # fmt: skip
def test_a_huge_page_is_a_block_of_the_next_level(isa: str, granule: int, size: int) -> None:
    with Machine(isa, page_size=granule, ram="64M", aperture="16M") as machine:
        _loaded(machine)
        assert _read(machine, _HUGE) == b"%d\n" % size


def test_a_node_has_the_machine_s_memory_and_what_is_free_now() -> None:
    with Machine("x86_64", ram="64M", aperture="16M") as machine:
        _loaded(machine)
        text = _read(machine, b"/sys/devices/system/node/node0/meminfo").decode()
        rows = {line.split()[2].rstrip(":"): int(line.split()[3]) for line in text.splitlines()}
        assert rows["MemTotal"] == machine.buddy.total * 4
        assert rows["MemTotal"] == rows["MemFree"] + rows["MemUsed"]


def test_files_have_a_page_and_nobody_writes_them() -> None:
    with Machine("x86_64", ram="64M", aperture="16M", uid=0) as machine:
        _loaded(machine)
        files = machine.entry.task.files
        about: Stat = files.stat(-100, b"/sys/devices/system/cpu/online")
        assert (about.size, about.mode & 0o777, about.uid) == (4096, 0o444, 0)
        with pytest.raises(Refused) as refused:
            files.open(-100, b"/sys/devices/system/cpu/online", os.O_WRONLY)
        assert refused.value.errno == errno.EACCES
        with pytest.raises(Refused) as refused:
            files.stat(-100, b"/sys/fs/cgroup")
        assert refused.value.errno == errno.ENOENT
        assert _read(machine, b"/sys/class/net/lo/mtu") == b"65536\n"
