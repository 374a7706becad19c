"""The libc binding: each call does what its name says, and refuses with the host's errno."""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aether_emu.errors import AetherError
from aether_emu.machine.memory import host

pytestmark = pytest.mark.usefixtures("exact_pages")

PAGE = host.PAGE_SIZE


def protection_at(address: int) -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return line.split()[1]
    return "unmapped"


@pytest.fixture
def area() -> Iterator[int]:
    address = host.reserve(16 * PAGE)
    yield address
    host.unmap(address, 16 * PAGE)


def file_of(content: bytes) -> int:
    fd, path = tempfile.mkstemp()
    os.unlink(path)
    os.write(fd, content)
    return fd


@pytest.mark.parametrize("alignment", [PAGE, 2 << 20, 1 << 30])
def test_a_reservation_is_aligned_zero_and_costs_nothing(alignment: int) -> None:
    address = host.reserve(8 << 20, alignment)
    assert address % alignment == 0
    assert host.resident_pages(address, 8 << 20) == 0
    assert ctypes.string_at(address + (8 << 20) - 8, 8) == bytes(8)
    assert protection_at(address) == "rw-p"
    host.unmap(address, 8 << 20)
    assert protection_at(address) == protection_at(address + (8 << 20) - 1) == "unmapped"


def test_a_refusal_carries_the_call_its_errno_and_the_range() -> None:
    with pytest.raises(host.HostMemoryError) as refusal:
        host.reserve(1 << 62)
    assert isinstance(refusal.value, AetherError)
    assert (refusal.value.call, refusal.value.errno) == ("mmap", errno.ENOMEM)
    assert "mmap" in str(refusal.value) and "\n" not in str(refusal.value)
    with pytest.raises(host.HostMemoryError) as refusal:
        host.unmap(PAGE + 1, PAGE)
    assert (refusal.value.errno, refusal.value.address) == (errno.EINVAL, PAGE + 1)


def test_a_shared_file_window_stores_into_the_file_and_a_private_one_does_not(area: int) -> None:
    fd = file_of(b"a" * 2 * PAGE)
    host.place_file(area, PAGE, fd, PAGE, shared=True)
    host.place_file(area + PAGE, PAGE, fd, 0, shared=False)
    ctypes.memset(area, ord("b"), 4)
    ctypes.memset(area + PAGE, ord("c"), 4)
    assert os.pread(fd, 4, PAGE) == b"bbbb"
    assert os.pread(fd, 4, 0) == b"aaaa"
    host.place_zeroes(area, PAGE)
    assert ctypes.string_at(area, 4) == bytes(4)
    assert os.pread(fd, 4, PAGE) == b"bbbb"
    os.close(fd)


def test_discarded_pages_read_zero_and_leave_host_memory(area: int) -> None:
    ctypes.memset(area, 7, 4 * PAGE)
    assert host.resident_pages(area, 16 * PAGE) == 4
    host.discard(area, 3 * PAGE)
    assert host.resident_pages(area, 16 * PAGE) == 1
    assert ctypes.string_at(area, 4 * PAGE) == bytes(3 * PAGE) + b"\7" * PAGE


def test_held_pages_are_those_that_were_touched(area: int) -> None:
    ctypes.memset(area + 5 * PAGE, 7, 1)
    assert host.held_pages(area, 16 * PAGE).nonzero()[0].tolist() == [5]


def test_without_pagemap_every_page_counts_as_held(area: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_proc(*_arguments: object, **_keywords: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(host, "open", no_proc, raising=False)
    assert host.held_pages(area, 16 * PAGE).tolist() == [True] * 16


def test_populate_tells_the_end_of_a_file_from_a_page(area: int) -> None:
    fd = file_of(b"a" * (PAGE + 1))
    host.place_file(area, 4 * PAGE, fd, 0, shared=True)
    assert host.populate(area, 2 * PAGE, write=False) is host.PopulateResult.DONE
    assert host.populate(area, 2 * PAGE, write=True) is host.PopulateResult.DONE
    assert host.populate(area + 2 * PAGE, PAGE, write=False) is host.PopulateResult.FAULT
    assert host.populate(area, 3 * PAGE, write=True) is host.PopulateResult.FAULT
    with pytest.raises(host.HostMemoryError):
        host.populate(area + 1, PAGE, write=False)
    os.close(fd)


def test_populate_is_there_since_linux_5_14() -> None:
    major, minor = (int(part) for part in os.uname().release.split(".")[:2])
    assert host.can_populate() == ((major, minor) >= (5, 14))


def test_allocated_blocks_change_neither_size_nor_bytes() -> None:
    fd = file_of(b"ab")
    os.ftruncate(fd, 64 * PAGE)
    before = os.fstat(fd)
    assert host.allocate_blocks(fd, 16 * PAGE, 4 * PAGE) == 0
    assert host.allocate_blocks(fd, 64 * PAGE, PAGE) == 0
    after = os.fstat(fd)
    assert after.st_size == before.st_size
    assert (after.st_blocks - before.st_blocks) * 512 == 5 * PAGE
    assert os.pread(fd, 4 * PAGE, 16 * PAGE) == bytes(4 * PAGE)
    os.close(fd)
    assert host.allocate_blocks(fd, 0, PAGE) == errno.EBADF


def test_a_mapping_refusal_is_known_beforehand(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    readable, directory = os.open(path, os.O_RDONLY), os.open(tmp_path, os.O_RDONLY)
    assert host.mapping_refusal(readable, shared=False) == 0
    assert host.mapping_refusal(readable, shared=True) == errno.EACCES
    assert host.mapping_refusal(directory, shared=False) == errno.ENODEV
    os.close(readable)
    os.close(directory)


def test_a_file_of_huge_pages_is_refused_and_leaves_nothing_mapped() -> None:
    try:
        fd = os.memfd_create("huge", os.MFD_HUGETLB)
    except OSError:
        return  # this host has no such files, so there is nothing to refuse
    before = Path("/proc/self/maps").read_text().count("\n")
    assert host.mapping_refusal(fd, shared=True) == errno.EINVAL
    assert host.mapping_refusal(fd, shared=False) == errno.EINVAL
    assert Path("/proc/self/maps").read_text().count("\n") == before
    os.close(fd)


def test_code_is_executable_and_not_writable() -> None:
    address = host.map_code(b"\xc3" * 5000)
    assert protection_at(address) == protection_at(address + 4999) == "r-xp"
    assert ctypes.string_at(address, 5000) == b"\xc3" * 5000
    host.unmap(address, -(-5000 // PAGE) * PAGE)
