"""Memory files (memfd_create): what they take, what is in them, and seals, beside the host's own."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.host_file import HostData
from aether_emu.linux.files.mounts import TMPFS_MAGIC
from tests.linux.files.conftest import CWD, Guest, guest_in, refused

ADD_SEALS, GET_SEALS = 1033, 1034
SEAL, SHRINK, GROW, WRITE, FUTURE_WRITE, EXEC = 1, 2, 4, 8, 16, 32
ALLOW_SEALING, NOEXEC_SEAL, MFD_EXEC = 2, 8, 16
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
PAGE = 4096
SEEK_END, SEEK_DATA, SEEK_HOLE = 2, 3, 4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Native:
    """The host's memory files, called as `Files` is."""

    def __init__(self) -> None:
        self.open_files: list[int] = []

    def _kept(self, fd: int) -> int:
        self.open_files.append(fd)
        return fd

    def memfd_create(self, name: bytes, flags: int) -> int:
        return self._kept(os.memfd_create(name.decode(), flags))

    def open(self, _where: int, path: bytes, flags: int) -> int:
        return self._kept(os.open(path, flags))

    def close(self, fd: int) -> None:
        self.open_files.remove(fd)
        os.close(fd)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        if _libc.fallocate(fd, mode, offset, length):
            raise OSError(ctypes.get_errno(), "")

    def fstat(self, fd: int) -> Any:
        return Status(os.fstat(fd))

    def fcntl(self, fd: int, command: int, argument: int) -> int:
        return fcntl.fcntl(fd, command, argument)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call: Callable[..., Any] = getattr(os, name)
        return call


class Status:
    def __init__(self, status: os.stat_result) -> None:
        self.size, self.blocks, self.mode = status.st_size, status.st_blocks, status.st_mode


def outcome(call: Callable[[], Any]) -> object:
    """What a call gave, or the name of its errno."""
    try:
        return call()
    except (OSError, Refused) as error:
        return errno.errorcode[error.errno or 0]


def state_of(files: Any, fd: int) -> list[object]:
    """Size, pages that are there, seals, and where data and holes begin."""
    status = files.fstat(fd)
    size = status.size
    edges = [
        outcome(lambda at=at, whence=whence: files.lseek(fd, at, whence))  # type: ignore[misc]
        for at in (0, 100, PAGE, 2 * PAGE - 1, 3 * PAGE, 5 * PAGE, size)
        for whence in (SEEK_DATA, SEEK_HOLE)
    ]
    return [size, status.blocks, files.fcntl(fd, GET_SEALS, 0), edges, files.pread(fd, 6 * PAGE, 0)]


CALLS: dict[str, Callable[[Any, int], Any]] = {
    "write inside": lambda f, fd: f.pwrite(fd, b"x" * 100, 50),
    "write over pages": lambda f, fd: f.pwrite(fd, b"y" * 2 * PAGE, PAGE - 10),
    "write across the end": lambda f, fd: f.pwrite(fd, b"z" * 4 * PAGE, PAGE + 7),
    "write at the end": lambda f, fd: f.pwrite(fd, b"z", f.fstat(fd).size),
    "write nothing": lambda f, fd: f.pwrite(fd, b"", 0),
    "shrink": lambda f, fd: f.ftruncate(fd, PAGE + 1),
    "grow": lambda f, fd: f.ftruncate(fd, 1 << 40),
    "same size": lambda f, fd: f.ftruncate(fd, f.fstat(fd).size),
    "negative size": lambda f, fd: f.ftruncate(fd, -1),
    "allocate": lambda f, fd: f.fallocate(fd, 0, PAGE + 1, PAGE),
    "allocate behind": lambda f, fd: f.fallocate(fd, 0, 3 * PAGE, 2 * PAGE),
    "keep the size": lambda f, fd: f.fallocate(fd, KEEP_SIZE, 4 * PAGE, PAGE),
    "allocate twice": lambda f, fd: [f.fallocate(fd, KEEP_SIZE, at * PAGE, 2 * PAGE) for at in (4, 5)],
    "punch": lambda f, fd: f.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 100, 2 * PAGE),
    "punch everything": lambda f, fd: f.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 1 << 50),
    "zero range": lambda f, fd: f.fallocate(fd, ZERO_RANGE, 0, PAGE),
    "empty by a reader": lambda f, fd: f.close(f.open(CWD, b"/proc/self/fd/%d" % fd, os.O_TRUNC)),
    "seal shrinking": lambda f, fd: f.fcntl(fd, ADD_SEALS, SHRINK),
    "seal growing": lambda f, fd: f.fcntl(fd, ADD_SEALS, GROW),
    "seal writing": lambda f, fd: f.fcntl(fd, ADD_SEALS, WRITE),
    "seal future writing": lambda f, fd: f.fcntl(fd, ADD_SEALS, FUTURE_WRITE),
    "seal executing": lambda f, fd: f.fcntl(fd, ADD_SEALS, EXEC),
    "seal sealing": lambda f, fd: f.fcntl(fd, ADD_SEALS, SEAL),
    "no such seal": lambda f, fd: f.fcntl(fd, ADD_SEALS, 0x40),
    "seal by a reader": lambda f, fd: f.fcntl(
        f.open(CWD, b"/proc/self/fd/%d" % fd, os.O_RDONLY), ADD_SEALS, 2
    ),
    "seals by a reader": lambda f, fd: f.fcntl(
        f.open(CWD, b"/proc/self/fd/%d" % fd, os.O_RDONLY), GET_SEALS, 0
    ),
    "make executable": lambda f, fd: f.fchmod(fd, 0o755),
    "make private": lambda f, fd: f.fchmod(fd, 0o600),
    "the mode": lambda f, fd: f.fstat(fd).mode,
    "create and empty": lambda f, fd: f.close(
        f.open(CWD, b"/proc/self/fd/%d" % fd, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    ),
    "create anew": lambda f, fd: f.open(CWD, b"/proc/self/fd/%d" % fd, os.O_RDWR | os.O_CREAT | os.O_EXCL),
    "truncate by name": lambda f, fd: f.truncate(b"/proc/self/fd/%d" % fd, 7),
}
PREPARED = {
    "plain": (ALLOW_SEALING, 0),
    "without seals": (0, 0),
    "not executable": (NOEXEC_SEAL, 0),
    "of one size": (ALLOW_SEALING, SHRINK | GROW),
    "not written": (ALLOW_SEALING, WRITE),
    "not written later": (ALLOW_SEALING, FUTURE_WRITE),
    "sealed": (ALLOW_SEALING, SEAL),
}


@pytest.mark.parametrize("flags, seals", PREPARED.values(), ids=PREPARED)
def test_every_call_on_a_memory_file_does_what_the_host_does(guest: Guest, flags: int, seals: int) -> None:
    native = Native()
    try:
        for name, call in CALLS.items():
            seen = []
            for files in (guest.files, native):
                fd = files.memfd_create(b"m", flags)
                files.pwrite(fd, b"a" * (PAGE + 10), 0)
                files.pwrite(fd, b"b", 3 * PAGE)
                if seals:
                    files.fcntl(fd, ADD_SEALS, seals)
                result = outcome(lambda call=call, files=files, fd=fd: call(files, fd))  # type: ignore[misc]
                seen.append((result, state_of(files, fd)))
                files.close(fd)
            assert seen[0] == seen[1], name
    finally:
        for fd in native.open_files:
            os.close(fd)


offsets = st.builds(
    lambda page, within: page * PAGE + within, st.integers(0, 8), st.sampled_from([0, 1, 4000])
)
steps = st.one_of(
    st.tuples(st.just("pwrite"), st.binary(min_size=1, max_size=3).map(lambda b: b * PAGE), offsets),
    st.tuples(st.just("ftruncate"), offsets),
    st.tuples(
        st.just("fallocate"), st.sampled_from([0, KEEP_SIZE, KEEP_SIZE | PUNCH_HOLE]), offsets, offsets
    ),
    st.tuples(st.just("fcntl"), st.just(ADD_SEALS), st.sampled_from([SHRINK, GROW, WRITE, FUTURE_WRITE])),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(steps, min_size=3, max_size=20))
def test_any_calls_in_a_row_do_what_the_host_does(calls: list[tuple[Any, ...]]) -> None:
    native = Native()
    with tempfile.TemporaryDirectory() as base, guest_in(Path(base)) as guest:
        seen: list[list[object]] = []
        for files in (guest.files, native):
            fd = files.memfd_create(b"m", ALLOW_SEALING)
            answers = [
                outcome(lambda name=name, more=more, files=files, fd=fd: getattr(files, name)(fd, *more))  # type: ignore[misc]
                for name, *more in calls
            ]
            seen.append([*answers, state_of(files, fd)])
            files.close(fd)
    assert seen[0] == seen[1]


def test_a_memory_file_is_a_file_without_a_name(guest: Guest) -> None:
    files = guest.files
    fd = files.memfd_create(b"m")
    files.write(fd, b"hello")
    assert files.pread(fd, 9, 1) == b"ello"
    stat = files.fstat(fd)
    assert (stat.size, stat.nlink, stat.mode) == (5, 0, 0o100777)
    file = files.table.file(fd)
    assert isinstance(file, HostData) and file.writable_grant
    again = files.open(CWD, b"/proc/self/fd/%d" % fd, fl.O_RDONLY)
    assert files.read(again, 9) == b"hello"
    assert files.fstat(again) == stat
    assert files.fstatfs(fd).kind == TMPFS_MAGIC


@pytest.mark.parametrize("name, flags", [(b"x" * 250, 0), (b"m", 4), (b"m", NOEXEC_SEAL | MFD_EXEC)])
def test_what_is_no_memory_file_is_refused(guest: Guest, name: bytes, flags: int) -> None:
    with refused(errno.EINVAL):
        guest.files.memfd_create(name, flags)


def test_dup_and_reopening_share_seals_size_and_memory(guest: Guest) -> None:
    files = guest.files
    fd = files.memfd_create(b"m", ALLOW_SEALING)
    other = files.open(CWD, b"/proc/self/fd/%d" % files.dup(fd), fl.O_RDWR)
    files.ftruncate(other, PAGE)
    files.fcntl(fd, ADD_SEALS, GROW)
    assert files.fcntl(other, GET_SEALS, 0) == GROW
    with refused(errno.EPERM):
        files.pwrite(other, b"x", PAGE)
    assert files.fstat(fd) == files.fstat(other)


def test_a_memory_file_has_times_and_an_owner_without_being_in_a_grant(guest: Guest) -> None:
    files = guest.files
    fd = files.memfd_create(b"m")
    link = b"/proc/self/fd/%d" % fd
    files.utimens(CWD, link, 5, 7)
    assert (files.fstat(fd).atime, files.fstat(fd).mtime) == (5, 7)
    guest.clock.nanoseconds += 9
    files.chown(CWD, link, guest.namespace.uid, 0xFFFFFFFF)
    assert files.fstat(fd).ctime == guest.clock.nanoseconds
    with refused(errno.EPERM):
        files.chown(CWD, link, 0, 0)


def test_a_search_for_data_or_a_hole_moves_the_position(guest: Guest) -> None:
    files = guest.files
    fd = files.memfd_create(b"m")
    files.pwrite(fd, b"x" * PAGE, PAGE)
    for whence, start, found in ((SEEK_DATA, 0, PAGE), (SEEK_HOLE, PAGE, 2 * PAGE)):
        assert files.lseek(fd, start, whence) == found
        assert files.lseek(fd, 0, 1) == found


# What they take. The limit of this guest is 1 MiB: 256 pages.


def test_holes_take_nothing_and_pages_what_they_are(guest: Guest) -> None:
    files, namespace = guest.files, guest.namespace
    fd = files.memfd_create(b"m")
    files.ftruncate(fd, 4 << 30)
    assert (namespace.memory_used, files.fstat(fd).blocks) == (0, 0)
    files.pwrite(fd, b"x" * 2, (1 << 30) - 1)
    assert (namespace.memory_used, files.fstat(fd).blocks) == (2 * PAGE, 16)
    files.fallocate(fd, 0, 0, 10 * PAGE)
    files.pwrite(fd, b"x", 0)
    assert namespace.memory_used == 12 * PAGE, "a page that is allocated already takes nothing more"
    files.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 1, 3 * PAGE)
    assert namespace.memory_used == 10 * PAGE, "of a page at the end of a hole a part stays"
    files.ftruncate(fd, 1 << 30)
    assert namespace.memory_used == 9 * PAGE
    again = files.open(CWD, b"/proc/self/fd/%d" % fd, fl.O_RDONLY)
    files.close(fd)
    assert namespace.memory_used == 9 * PAGE
    files.close(again)
    assert namespace.memory_used == 0


def test_beyond_the_limit_writes_are_short_and_then_refused(guest: Guest) -> None:
    files, namespace = guest.files, guest.namespace
    first, second = files.memfd_create(b"a"), files.memfd_create(b"b")
    files.fallocate(first, 0, 0, 250 * PAGE)
    assert files.pwrite(second, b"x" * 10 * PAGE, 100) == 6 * PAGE - 100
    for call in (
        lambda: files.pwrite(second, b"x", 6 * PAGE),
        lambda: files.pwrite(first, b"x", 250 * PAGE),
        lambda: files.fallocate(second, KEEP_SIZE, 0, 7 * PAGE),
        lambda: files.fallocate(second, 0, 0, 1 << 62),
    ):
        with refused(errno.ENOSPC):
            call()
    assert namespace.memory_used == namespace.memory_limit
    assert files.pwrite(first, b"x" * 300 * PAGE, 0) == 250 * PAGE, "what was allocated can be written"
    assert files.pwrite(second, b"again", 0) == 5
    files.ftruncate(first, 249 * PAGE)
    assert files.pwrite(second, b"x", 1 << 40) == 1


def test_what_the_host_refuses_takes_nothing(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    files = guest.files
    fd = files.memfd_create(b"a")

    def full(*_: object) -> int:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(os, "pwrite", full)
    with refused(errno.ENOMEM):
        files.pwrite(fd, b"x", 0)
    assert guest.namespace.memory_used == 0


# Copies


def test_copies_stay_on_one_file_system(guest: Guest) -> None:
    files = guest.files
    memory, other, stored = files.memfd_create(b"a"), files.memfd_create(b"b"), guest.create(b"f", b"stored")
    files.write(memory, b"hello")
    assert files.copy_file_range(memory, 0, other, 1, 100) == 5
    assert files.pread(other, 9, 0) == b"\0hello"
    assert files.copy_file_range(memory, 0, memory, 5, 100) == 5, "it ends with the source"
    with refused(errno.EINVAL):
        files.copy_file_range(memory, 0, memory, 4, 100)
    for source, target in ((memory, stored), (stored, memory)):
        with refused(errno.EXDEV):
            files.copy_file_range(source, 0, target, 0, 5)
    assert files.sendfile(stored, memory, 0, 5) == 5
    sealed = files.memfd_create(b"d", ALLOW_SEALING)
    files.fcntl(sealed, ADD_SEALS, WRITE)
    with refused(errno.EPERM):
        files.sendfile(sealed, memory, 0, 5)
    with refused(errno.EPERM):
        files.copy_file_range(memory, 0, sealed, 0, 5)
