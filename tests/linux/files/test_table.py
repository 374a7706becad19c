"""Descriptors: numbers, sharing, limits and what fcntl says of them."""

from __future__ import annotations

import errno
import struct

import pytest

from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import POLLIN, POLLNVAL, POLLOUT
from tests.linux.files.conftest import CWD, Guest, Source, host_descriptors, refused

F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_SETLK, F_DUPFD_CLOEXEC = 0, 1, 2, 3, 4, 6, 1030
FIONREAD, FIONBIO, FIONCLEX, FIOCLEX = 0x541B, 0x5421, 0x5450, 0x5451


def no_argument(size: int) -> bytes:
    raise AssertionError(f"{size} bytes of an argument were asked for")


def test_numbers_are_given_lowest_first(guest: Guest) -> None:
    files = guest.files
    assert [files.dup(0), files.dup(0), files.dup(0)] == [3, 4, 5]
    files.close(3)
    files.close(0)
    assert [files.open(CWD, b"/dev/null", 0), files.dup(4), files.dup(4)] == [0, 3, 6]


def test_dup_shares_the_position_and_open_does_not(guest: Guest) -> None:
    files = guest.files
    fd = guest.create(b"f", b"abcdef")
    twin, other = files.dup(fd), files.open(CWD, b"f", fl.O_RDONLY)
    files.lseek(fd, 2, 0)
    assert files.read(twin, 2) == b"cd"
    assert files.lseek(fd, 0, 1) == 4
    assert files.read(other, 2) == b"ab"
    files.fcntl(twin, F_SETFL, fl.O_APPEND)
    assert files.fcntl(fd, F_GETFL, 0) & fl.O_APPEND


def test_closing_one_of_two_descriptors_keeps_the_file(guest: Guest) -> None:
    before = host_descriptors()
    fd = guest.create(b"f", b"abc")
    twin = guest.files.dup(fd)
    guest.files.close(fd)
    assert guest.files.pread(twin, 3, 0) == b"abc"
    guest.files.close(twin)
    assert host_descriptors() == before


def test_dup2_closes_what_had_the_number(guest: Guest) -> None:
    files = guest.files
    fd, target = guest.create(b"f"), guest.create(b"g")
    before = len(host_descriptors())
    assert files.dup2(fd, target) == target
    assert len(host_descriptors()) == before - 1
    assert files.readlink(CWD, b"/proc/self/fd/%d" % target, 100) == b"/w/f"
    assert files.dup2(fd, fd) == fd
    with refused(errno.EBADF):
        files.dup2(99, 99)
    with refused(errno.EBADF):
        files.dup2(fd, 1024)
    with refused(errno.EINVAL):
        files.dup3(fd, fd, 0)
    assert files.fcntl(files.dup3(fd, 50, fl.O_CLOEXEC), F_GETFD, 0) == 1


def test_the_limit_is_kept_before_anything_is_made(guest: Guest) -> None:
    files = guest.files
    files.table.limit = 4
    files.dup(0)
    for call in (
        lambda: files.open(CWD, b"new", fl.O_CREAT | fl.O_WRONLY, 0o666),
        lambda: files.dup(0),
        files.pipe,
        lambda: files.eventfd(0),
        lambda: files.memfd_create(b"m"),
    ):
        with refused(errno.EMFILE):
            call()
    assert not (guest.w / "new").exists()
    with refused(errno.EINVAL):
        files.fcntl(0, F_DUPFD, 4)
    files.close(3)
    with refused(errno.EMFILE):
        files.pipe()
    assert len(files.table) == 3


def test_close_on_exec_is_per_descriptor(guest: Guest) -> None:
    files = guest.files
    fd = files.open(CWD, b"/dev/null", fl.O_CLOEXEC)
    kept = files.dup(fd)
    cloexec = files.fcntl(kept, F_DUPFD_CLOEXEC, 20)
    assert cloexec == 20
    assert [files.fcntl(n, F_GETFD, 0) for n in (fd, kept, cloexec)] == [1, 0, 1]
    files.ioctl(kept, FIOCLEX, no_argument)
    files.ioctl(fd, FIONCLEX, no_argument)
    files.fcntl(cloexec, F_SETFD, 0)
    files.close_on_exec()
    assert list(files.table.descriptors) == [0, 1, 2, fd, cloexec]


def test_close_range(guest: Guest) -> None:
    files = guest.files
    for _ in range(4):
        files.dup(0)
    files.close_range(3, 4)
    files.close_range(5, 0xFFFFFFFF, 4)
    assert list(files.table.descriptors) == [0, 1, 2, 5, 6]
    files.close_on_exec()
    assert list(files.table.descriptors) == [0, 1, 2]
    with refused(errno.EINVAL):
        files.close_range(2, 1)


def test_a_child_shares_open_files_but_no_descriptors_and_no_directory(guest: Guest) -> None:
    files = guest.files
    fd = guest.create(b"f", b"abcdef")
    (guest.w / "d").mkdir()
    files.umask(0o077)
    child = files.fork(Source(pid=18))
    try:
        child.lseek(fd, 1, 0)
        assert files.read(fd, 1) == b"b"
        child.chdir(b"d")
        assert (files.getcwd(), child.getcwd()) == (b"/w", b"/w/d")
        assert child.umask(0) == 0o077 and files.umask(0) == 0o077
        files.close(fd)
        assert child.pread(fd, 6, 0) == b"abcdef"
        assert child.readlink(CWD, b"/proc/self", 100) == b"18"
    finally:
        child.close_all()


@pytest.mark.parametrize("flags", [fl.O_WRONLY, fl.O_PATH])
def test_reading_needs_a_descriptor_for_reading(guest: Guest, flags: int) -> None:
    guest.create(b"f", b"abc")
    fd = guest.files.open(CWD, b"f", flags)
    with refused(errno.EBADF):
        guest.files.read(fd, 1)
    with refused(errno.EBADF):
        guest.files.pread(fd, 1, 0)


def test_a_path_descriptor_allows_no_operation_on_contents(guest: Guest) -> None:
    files = guest.files
    (guest.w / "f").write_bytes(b"abc")
    fd = files.open(CWD, b"f", fl.O_PATH | fl.O_RDWR)
    for call in (
        lambda: files.write(fd, b"x"),
        lambda: files.lseek(fd, 0, 0),
        lambda: files.ftruncate(fd, 0),
        lambda: files.fsync(fd),
        lambda: files.fchmod(fd, 0o600),
        lambda: files.fcntl(fd, F_SETFL, 0),
        lambda: files.ioctl(fd, FIONREAD, no_argument),
    ):
        with refused(errno.EBADF):
            call()
    assert files.poll(fd) == POLLNVAL
    assert files.fstat(fd).size == 3
    assert files.fcntl(fd, F_GETFL, 0) == fl.O_PATH
    assert files.readlink(CWD, b"/proc/self/fd/%d" % fd, 100) == b"/w/f"
    again = files.open(CWD, b"/proc/self/fd/%d" % fd, fl.O_RDONLY)
    assert files.read(again, 3) == b"abc"


def test_a_link_opened_by_path_can_be_read(guest: Guest) -> None:
    (guest.w / "link").symlink_to("nowhere")
    fd = guest.files.open(CWD, b"link", fl.O_PATH | fl.O_NOFOLLOW)
    assert guest.files.readlink(fd, b"", 100) == b"nowhere"
    assert guest.files.readlink(fd, b"", 3) == b"now"
    assert guest.files.fstat(fd).mode >> 12 == 0o12
    with refused(errno.ENOTDIR):
        guest.files.stat(fd, b"x")
    with refused(errno.ENOTDIR):
        guest.files.fchdir(fd)


def test_status_flags_shown_and_settable(guest: Guest) -> None:
    files = guest.files
    fd = files.open(CWD, b"f", fl.O_RDWR | fl.O_CREAT | fl.O_TRUNC | fl.O_CLOEXEC | fl.O_APPEND, 0o666)
    assert files.fcntl(fd, F_GETFL, 0) == fl.O_RDWR | fl.O_APPEND | fl.O_LARGEFILE
    files.fcntl(fd, F_SETFL, fl.O_NONBLOCK | fl.O_WRONLY | fl.O_CREAT)
    assert files.fcntl(fd, F_GETFL, 0) == fl.O_RDWR | fl.O_NONBLOCK | fl.O_LARGEFILE
    files.ioctl(fd, FIONBIO, lambda size: struct.pack("<i", 0))
    assert not files.fcntl(fd, F_GETFL, 0) & fl.O_NONBLOCK


def test_what_fcntl_does_not_know_is_refused(guest: Guest) -> None:
    fd = guest.create(b"f")
    with refused(errno.EINVAL):
        guest.files.fcntl(fd, 999, 0)
    with refused(errno.EBADF):
        guest.files.fcntl(fd, 1032, 0)
    with refused(errno.ENOTTY):
        guest.files.ioctl(fd, 0x5401, no_argument)


def test_fionread_counts_to_the_end(guest: Guest) -> None:
    fd = guest.create(b"f", b"abcdef")
    guest.files.lseek(fd, 2, 0)
    assert guest.files.ioctl(fd, FIONREAD, no_argument) == struct.pack("<i", 4)
    guest.files.lseek(fd, 20, 0)
    assert guest.files.ioctl(fd, FIONREAD, no_argument) == struct.pack("<i", 0)
    assert guest.files.poll(fd) == POLLIN | POLLOUT
