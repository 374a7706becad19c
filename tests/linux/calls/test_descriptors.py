"""Calls on descriptors, beside the real kernel's where both can answer."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct

import pytest

from aether_emu.linux.files import flags as fl
from tests.linux.calls.twin import BASE, PAGE, PROT_NONE, A, F, Served, Twin
from tests.linux.files.conftest import Guest, parse_entries

AT_FDCWD = -100
RW = os.O_RDWR | os.O_CREAT
BAD = A(5 * PAGE)
FLOCK = "<hh4xqqi4x"
F_OFD_GETLK, F_OFD_SETLK = 36, 37


@pytest.fixture
def opened(twin: Twin) -> Twin:
    """A file "f" with 100 bytes, also read-only, a pipe, and a bad page."""
    twin.open("f", "openat", F("dir"), twin.text(b"f"), RW, 0o644)
    twin.call("write", F("f"), A(0), 100)
    twin.open("ro", "openat", F("dir"), twin.text(b"f"), os.O_RDONLY)
    twin.open("path", "openat", F("dir"), twin.text(b"f"), os.O_PATH)
    twin.pipe("r", "w")
    twin.forbid(5)
    return twin


def test_descriptors_are_ints(served: Served) -> None:
    fd = served("dup", 0)
    assert isinstance(fd, int)
    assert served("close", fd | 1 << 32) == 0, "the upper half of the register is not looked at"
    assert served("close", fd) == -errno.EBADF
    assert served("close", -1) == -errno.EBADF


def test_duplicating(opened: Twin) -> None:
    opened.open("copy", "dup", F("f"))
    opened.open("high", "dup3", F("f"), 900, os.O_CLOEXEC)
    assert opened.pair("high") == (900, 900)
    opened.call("lseek", F("copy"), 42, os.SEEK_SET)
    assert opened.call("lseek", F("high"), 0, os.SEEK_CUR) == 42
    assert opened.call("fcntl", F("high"), fcntl.F_GETFD, 0) == 1
    assert opened.call("dup", 999) == -errno.EBADF
    assert opened.call("dup3", F("f"), F("f"), 0) == -errno.EINVAL
    assert opened.call("dup3", F("f"), 900, 5) == -errno.EINVAL
    assert opened.call("dup3", 999, 900, 0) == -errno.EBADF
    assert opened.call("fcntl", F("f"), fcntl.F_DUPFD, -1) == -errno.EINVAL
    opened.open("lowest", "fcntl", F("f"), fcntl.F_DUPFD_CLOEXEC, 950)
    assert opened.pair("lowest") == (950, 950)


def test_dup2_of_the_same_descriptor(served: Served) -> None:
    assert served("dup2", 1, 1) == 1
    assert served("dup2", 99, 99) == -errno.EBADF
    assert served("dup2", 1, 50) == 50
    assert served("dup2", 1, 1024) == -errno.EBADF


def test_close_range(served: Served) -> None:
    for fd in (10, 11, 12):
        assert served("dup2", 1, fd) == fd
    assert served("close_range", 11, 11, 4) == 0
    assert served("fcntl", 11, fcntl.F_GETFD, 0) == 1
    assert served("close_range", 10, (1 << 32) - 1, 2) == 0
    assert served("fcntl", 11, fcntl.F_GETFD, 0) == -errno.EBADF
    assert served("close_range", 5, 4, 0) == -errno.EINVAL
    assert served("close_range", 4, 5, 8) == -errno.EINVAL


def test_pipes_that_cannot_be_told_are_closed_again(guest: Guest, served: Served) -> None:
    served.memory.protect(5, PROT_NONE)
    before = len(guest.files.table)
    assert served("pipe", BASE + 5 * PAGE) == -errno.EFAULT
    assert served("pipe2", BASE, 0x40) == -errno.EINVAL
    assert len(guest.files.table) == before
    assert served("pipe", BASE) == 0
    assert served("fcntl", served.unpack("ii", 0)[0], fcntl.F_GETFL, 0) == os.O_RDONLY


def test_memory_files(opened: Twin) -> None:
    opened.open("m", "memfd_create", opened.text(b"x" * 249), 2)
    assert opened.call("write", F("m"), A(0), 10) == 10
    assert opened.call("fcntl", F("m"), 1033, 2) == 0  # F_ADD_SEALS, F_SEAL_SHRINK
    assert opened.call("ftruncate", F("m"), 5) == -errno.EPERM
    assert opened.call("fcntl", F("m"), 1034, 0) == 2
    assert opened.call("memfd_create", opened.text(b"x" * 250), 0) == -errno.EINVAL
    assert opened.call("memfd_create", BAD, 0) == -errno.EFAULT
    assert opened.call("memfd_create", opened.text(b"x"), 1 << 20) == -errno.EINVAL


# Control


def test_status_flags(opened: Twin) -> None:
    kept = os.O_APPEND | os.O_NONBLOCK
    assert opened.call("fcntl", F("r"), fcntl.F_SETFL, 0) == 0
    assert opened.call("fcntl", F("r"), fcntl.F_GETFL, 0) == 0
    assert opened.call("fcntl", F("f"), fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK | os.O_EXCL) == 0
    found = opened.call("fcntl", F("f"), fcntl.F_GETFL, 0)
    assert found & (kept | os.O_ACCMODE | os.O_EXCL) == kept | os.O_RDWR
    assert opened.call("fcntl", F("path"), fcntl.F_SETFL, 0) == -errno.EBADF
    assert opened.call("fcntl", F("f"), 4000, 0) == -errno.EINVAL
    assert opened.call("fcntl", 999, fcntl.F_GETFL, 0) == -errno.EBADF


def test_an_arm64_guest_has_its_own_flags(guest: Guest) -> None:
    with contextlib.closing(Served(guest.files, "arm64")) as served:
        check_arm64_flags(served)


def check_arm64_flags(served: Served) -> None:
    directory, nofollow, direct, large = 0o40000, 0o100000, 0o200000, 0o400000
    fd = served("openat", AT_FDCWD, served.text(b"/w"), directory, 0)
    assert isinstance(fd, int) and fd >= 0
    assert served("openat", AT_FDCWD, served.text(b"/r/file"), directory, 0) == -errno.ENOTDIR
    assert served("fcntl", fd, fcntl.F_GETFL, 0) == directory | large
    assert served("fcntl", fd, fcntl.F_SETFL, direct) == 0
    assert served("fcntl", fd, fcntl.F_GETFL, 0) == directory | large | direct
    assert served("symlinkat", served.text(b"/r/file"), fd, served.text(b"l", 4096 * 8)) == 0
    assert served("openat", fd, served.text(b"l"), nofollow, 0) == -errno.ELOOP
    how = struct.pack("<QQQ", nofollow, 0, 0)
    assert served("openat2", fd, served.text(b"l"), served.put(0, how), 24) == -errno.ELOOP
    # An epoll event has its second word aligned.
    epoll, counter = served("epoll_create1", 0), served("eventfd2", 1, 0)
    assert isinstance(epoll, int) and isinstance(counter, int)
    served.put(0, struct.pack("<IIQ", 1, 0xAAAA, 77))
    assert served("epoll_ctl", epoll, 1, counter, BASE) == 0
    assert served("epoll_pwait", epoll, BASE + 64, 1, 0, 0, 8) == 1
    assert served.unpack("I4xQ", 64) == (1, 77)


def lock(kind: int, whence: int = 0, pid: int = 0) -> bytes:
    """A struct flock of the first ten bytes."""
    return struct.pack(FLOCK, kind, whence, 0, 10, pid)


def test_locks(opened: Twin) -> None:
    opened.put(0, lock(fcntl.F_WRLCK))
    assert opened.call("fcntl", F("f"), F_OFD_GETLK, A(0)) == 0
    assert opened.served.unpack("h", 0) == (fcntl.F_UNLCK,)
    opened.put(0, lock(fcntl.F_WRLCK))
    assert opened.call("fcntl", F("f"), F_OFD_SETLK, A(0)) == 0
    assert opened.call("fcntl", F("ro"), F_OFD_SETLK, A(0)) == -errno.EBADF
    opened.open("wo", "openat", F("dir"), opened.text(b"f"), os.O_WRONLY)
    opened.put(0, lock(fcntl.F_RDLCK))
    assert opened.call("fcntl", F("f"), F_OFD_SETLK, A(0)) == 0
    assert opened.call("fcntl", F("ro"), F_OFD_SETLK, A(0)) == 0
    assert opened.call("fcntl", F("wo"), F_OFD_SETLK, A(0)) == -errno.EBADF
    assert opened.call("fcntl", F("f"), F_OFD_SETLK, BAD) == -errno.EFAULT
    assert opened.call("fcntl", 999, F_OFD_SETLK, BAD) == -errno.EBADF
    opened.put(0, lock(fcntl.F_WRLCK, pid=1))
    assert opened.call("fcntl", F("f"), F_OFD_SETLK, A(0)) == -errno.EINVAL
    opened.put(0, lock(fcntl.F_UNLCK))
    assert opened.call("fcntl", F("f"), fcntl.F_GETLK, A(0)) == -errno.EINVAL
    assert opened.call("fcntl", F("ro"), fcntl.F_SETLK, A(0)) == 0
    opened.put(0, lock(fcntl.F_WRLCK, whence=7))
    assert opened.call("fcntl", F("f"), fcntl.F_SETLK, A(0)) == -errno.EINVAL
    opened.put(0, lock(9))
    assert opened.call("fcntl", F("f"), fcntl.F_SETLK, A(0)) == -errno.EINVAL
    assert opened.call("flock", F("f"), fcntl.LOCK_EX | fcntl.LOCK_NB) == 0
    assert opened.call("flock", F("f"), fcntl.LOCK_UN) == 0
    assert opened.call("flock", F("f"), 0) == -errno.EINVAL
    assert opened.call("flock", F("path"), fcntl.LOCK_SH) == -errno.EBADF
    for operation in (99, 32, 0x60, 0xE0, -1, 64, 128, 3, 9, 12, 16, 257, 1 << 31):
        opened.call("flock", F("f"), operation)
    assert opened.call("flock", 999, 99) == 0, "mandatory locks are ignored"


def test_controlling(opened: Twin) -> None:
    opened.call("write", F("w"), A(0), 77)
    assert opened.call("ioctl", F("r"), 0x541B, A(0)) == 0
    assert opened.served.unpack("i", 0) == (77,)
    assert opened.call("ioctl", F("r"), 0x541B, BAD) == -errno.EFAULT
    opened.open("counter", "eventfd2", 0, 0)
    for name in ("counter", "dir"):  # nothing of either can be counted
        assert opened.call("ioctl", F(name), 0x541B, A(0)) == -errno.ENOTTY
    opened.put(0, struct.pack("<i", 0))
    assert opened.call("ioctl", F("r"), 0x5421, A(0)) == 0
    assert opened.call("fcntl", F("r"), fcntl.F_GETFL, 0) == 0
    assert opened.call("ioctl", F("f"), 0x5451, 0) == 0
    assert opened.call("fcntl", F("f"), fcntl.F_GETFD, 0) == 1
    assert opened.call("ioctl", F("f"), 0x5401, A(0)) == -errno.ENOTTY
    assert opened.call("ioctl", 999, 0x5401, A(0)) == -errno.EBADF


# Positions, sizes, storage


def test_positions(opened: Twin) -> None:
    assert opened.call("lseek", F("f"), -10, os.SEEK_END) == 90
    assert opened.call("lseek", F("f"), -91, os.SEEK_CUR) == -errno.EINVAL
    assert opened.call("lseek", F("f"), (1 << 63) - 1, os.SEEK_CUR) in (-errno.EINVAL, -errno.EOVERFLOW)
    assert opened.call("lseek", F("f"), 100, 3) == -errno.ENXIO
    assert opened.call("lseek", F("f"), 10, 3) == 10
    assert opened.call("lseek", F("f"), 10, 4) == 100
    assert opened.call("lseek", F("f"), 0, 9) == -errno.EINVAL
    assert opened.call("lseek", F("r"), 0, os.SEEK_CUR) == -errno.ESPIPE
    assert opened.call("lseek", F("path"), 0, os.SEEK_CUR) == -errno.EBADF


def test_sizes(opened: Twin) -> None:
    assert opened.call("ftruncate", F("f"), 5000) == 0
    assert opened.call("lseek", F("f"), 0, os.SEEK_END) == 5000
    assert opened.call("ftruncate", F("f"), -1) == -errno.EINVAL
    assert opened.call("ftruncate", 999, -1) == -errno.EINVAL
    assert opened.call("ftruncate", 999, 1) == -errno.EBADF
    assert opened.call("ftruncate", F("ro"), 1) == -errno.EINVAL
    assert opened.call("ftruncate", F("r"), 1) == -errno.EINVAL
    assert opened.call("fallocate", F("f"), 0, 0, 9000) == 0
    assert opened.call("lseek", F("f"), 0, os.SEEK_END) == 9000
    assert opened.call("fallocate", F("f"), 0, -1, 10) == -errno.EINVAL
    assert opened.call("fallocate", F("f"), 0, 0, 0) == -errno.EINVAL
    assert opened.call("fallocate", F("ro"), 0, 0, 10) == -errno.EBADF
    assert opened.call("fallocate", 999, 0, 0, 10) == -errno.EBADF


def test_storage(opened: Twin) -> None:
    assert opened.call("fsync", F("f")) == 0
    assert opened.call("fsync", F("r")) == -errno.EINVAL
    assert opened.call("fsync", 999) == -errno.EBADF
    assert opened.call("sync_file_range", F("f"), 0, 0, 7) == 0
    assert opened.call("sync_file_range", F("f"), 0, 0, 8) == -errno.EINVAL
    assert opened.call("sync_file_range", F("f"), -1, 0, 1) == -errno.EINVAL
    assert opened.call("sync_file_range", F("r"), 0, 0, 1) == -errno.ESPIPE
    assert opened.call("fadvise64", F("f"), 0, 0, 4) == 0
    assert opened.call("fadvise64", F("f"), 0, 0, 9) == -errno.EINVAL
    assert opened.call("fadvise64", F("f"), 0, -1, 0) == -errno.EINVAL
    assert opened.call("fadvise64", F("r"), 0, 0, 0) == -errno.ESPIPE
    assert opened.call("readahead", F("f"), 0, 100) == 0
    assert opened.call("readahead", F("r"), 0, 100) == -errno.EINVAL
    for name in ("sync", "syncfs", "fdatasync"):
        assert opened.served(name, opened.pair("f")[0]) == 0
    assert opened.served("syncfs", 999) == -errno.EBADF


# Description and directories


def test_descriptions(guest: Guest, served: Served) -> None:
    (guest.w / "f").write_bytes(b"x" * 123)
    fd = served("open", served.text(b"f"), os.O_RDONLY, 0)
    assert isinstance(fd, int)
    assert served("fstat", fd, BASE) == 0
    by_fd = served.get(0, 144)
    assert struct.unpack_from("<q", by_fd, 48) == (123,)
    for name, arguments in (
        ("stat", (served.text(b"f"), BASE)),
        ("lstat", (served.text(b"f"), BASE)),
        ("newfstatat", (AT_FDCWD, served.text(b"f"), BASE, 0)),
        ("newfstatat", (fd, 0, BASE, fl.AT_EMPTY_PATH)),
    ):
        served.put(0, bytes(144))
        assert served(name, *arguments) == 0
        assert served.get(0, 144) == by_fd
    assert served("fstatfs", fd, BASE) == 0
    by_fd = served.get(0, 120)
    assert served("statfs", served.text(b"f"), BASE) == 0
    assert served.get(0, 120) == by_fd
    served.memory.protect(5, PROT_NONE)
    for name in ("fstat", "fstatfs"):
        assert served(name, fd, BASE + 5 * PAGE) == -errno.EFAULT
        assert served(name, 999, BASE + 5 * PAGE) == -errno.EBADF


def test_entries_in_both_layouts(guest: Guest, served: Served) -> None:
    for name in ("file", "another", "x" * 200):
        (guest.w / name).write_bytes(b"")
    (guest.w / "sub").mkdir()
    fd = served("open", served.text(b"."), os.O_RDONLY, 0)
    assert isinstance(fd, int)
    size = served("getdents64", fd, BASE, PAGE)
    assert isinstance(size, int)
    modern = parse_entries(served.get(0, size))
    assert [name for name, _, _ in modern] == [b".", b"..", b"another", b"file", b"sub", b"x" * 200]
    assert served("getdents64", fd, BASE, PAGE) == 0
    assert served("lseek", fd, 0, os.SEEK_SET) == 0
    assert served("getdents", fd, BASE, PAGE) == size
    old, at = [], 0
    while at < size:
        number, _, length = served.unpack("QQH", at)
        entry = served.get(at, length)
        old.append((entry[18:-1].split(b"\0")[0], number, entry[-1]))
        at += length
    assert old == modern


def test_entries_meet_a_bad_page(guest: Guest, served: Served) -> None:
    for name in "abcdefgh":
        (guest.w / name).write_bytes(b"")
    fd = served("open", served.text(b"."), os.O_RDONLY, 0)
    assert isinstance(fd, int)
    served.memory.protect(5, PROT_NONE)
    edge = 5 * PAGE
    assert served("getdents64", fd, BASE + edge, 1000) == -errno.EFAULT
    assert served("getdents64", fd, BASE + edge - 24 * 3 - 5, 1000) == 24 * 3
    assert served("getdents64", fd, BASE, 1000) == 24 * 7, "the rest is still there"
    assert served("getdents64", fd, BASE, 10) == 0
    served("lseek", fd, 0, os.SEEK_SET)
    assert served("getdents64", fd, BASE, 10) == -errno.EINVAL


def test_entries_refusals(opened: Twin) -> None:
    assert opened.call("getdents64", F("f"), A(0), 100) == -errno.ENOTDIR
    assert opened.call("getdents64", 999, A(0), 100) == -errno.EBADF
    assert opened.call("getdents64", F("dir"), BAD, 1000) == -errno.EFAULT
    opened.protect(6, mmap.PROT_READ)
    assert opened.call("getdents64", F("dir"), A(6 * PAGE), 1000) == -errno.EFAULT
