"""Root chooses in /sys where huge pages come, while the machine runs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from aether_emu.errors import Refused
from aether_emu.grants import Grants
from aether_emu.system import Machine
from tests.guests.running import program
from tests.programs.run import ISAS, run_emulated
from tests.programs.test_c import _HERE as HERE

_FOLDER = "/sys/kernel/mm/transparent_hugepage"


@pytest.mark.parametrize("isa", ISAS)
def test_what_root_writes_counts_at_once(isa: str, tmp_path: Path) -> None:
    outcome = run_emulated(
        HERE / "bin" / isa / "thpset", [], Grants(cwd=tmp_path), isa=isa, ram="64M", uid=0, gid=0
    )
    assert (outcome.status, outcome.errors) == (0, b"")
    assert outcome.output == (HERE / "expected" / "thpset.txt").read_bytes()


def _loaded(machine: Machine) -> Machine:
    path = program(machine.abi.isa, "hello")
    machine.load(path, grants=Grants(cwd=path.parent))
    return machine


def _written(machine: Machine, name: str, text: bytes) -> int:
    """How much was written, or the errno less than 0."""
    files = machine.entry.task.files
    try:
        fd = files.open(-100, f"{_FOLDER}/{name}".encode(), os.O_WRONLY)
    except Refused as refused:
        return -refused.errno
    try:
        done = files.write(fd, text)
        assert isinstance(done, int)
        return done
    except Refused as refused:
        return -refused.errno
    finally:
        files.close(fd)


def test_nobody_else_writes() -> None:
    with _loaded(Machine("x86_64", ram="64M", aperture="16M")) as machine:
        assert _written(machine, "enabled", b"always") == -errno.EACCES
        assert _written(machine, "khugepaged/pages_to_scan", b"1") == -errno.EACCES
        assert machine.physical.huge is None


def test_a_scan_that_is_off_begins_when_it_is_told_how_long_to_sleep() -> None:
    with _loaded(
        Machine("x86_64", thp="always", khugepaged_sleep=0, ram="64M", aperture="16M", uid=0)
    ) as machine:
        khugepaged = machine.kernel.khugepaged
        assert khugepaged is not None and not khugepaged.runs
        assert _written(machine, "khugepaged/scan_sleep_millisecs", b"20\n") == 3
        assert khugepaged.runs
        assert khugepaged.due == machine.kernel.time_now() + 20_000_000
        assert _written(machine, "enabled", b"never") == 5
        assert not khugepaged.runs
        assert _written(machine, "shmem_enabled", b"force") == 5
        assert khugepaged.runs
        assert _written(machine, "shmem_enabled", b"deny") == 4
        assert not khugepaged.runs


def test_the_sizes_of_a_granule_are_there(tmp_path: Path) -> None:
    with _loaded(Machine("arm64", page_size="16K", ram="64M", aperture="16M")) as machine:
        files = machine.entry.task.files
        sizes = [16 << order for order in range(2, 12)]
        for name, expected in (("enabled", sizes), ("shmem_enabled", [32, *sizes])):
            for kib in expected:
                about = files.stat(-100, f"{_FOLDER}/hugepages-{kib}kB/{name}".encode())
                assert (about.size, about.mode & 0o777) == (4096, 0o644)
