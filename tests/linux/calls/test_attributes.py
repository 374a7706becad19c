"""Calls on attributes, beside the real kernel's where both can answer."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.stat import encode_statx
from tests.linux.calls.twin import ARGUMENTS, BASE, PAGE, A, F, Served, Twin
from tests.linux.files.conftest import Guest

AT_FDCWD = -100
SECOND = ARGUMENTS + 2048
NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2


@pytest.fixture
def named(twin: Twin) -> Twin:
    """A file "f", a link "l" to it, an O_PATH descriptor, and a bad page 5."""
    twin.open("f", "openat", F("dir"), twin.text(b"f"), os.O_RDWR | os.O_CREAT, 0o644)
    twin.open("path", "openat", F("dir"), twin.text(b"f"), os.O_PATH)
    twin.pipe("r", "w")
    assert twin.call("symlinkat", twin.text(b"f"), F("dir"), twin.text(b"l", SECOND)) == 0
    twin.forbid(5)
    return twin


def test_statx(guest: Guest, served: Served) -> None:
    (guest.w / "f").write_bytes(b"x" * 123)
    wanted = encode_statx(guest.files.stat(fl.AT_FDCWD, b"f"))
    assert served("statx", AT_FDCWD, served.text(b"f"), 0, 0x7FF, BASE) == 0
    assert served.get(0, 256) == wanted
    fd = served("open", served.text(b"f"), 0, 0)
    assert isinstance(fd, int)
    served.put(0, bytes(256))
    assert served("statx", fd, 0, fl.AT_EMPTY_PATH, 0, BASE) == 0
    assert served.get(0, 256) == wanted


def test_refusals_of_stat(named: Twin) -> None:
    path = named.text(b"f")
    assert named.call("statx", F("dir"), path, 0, 1 << 31, A(0)) == -errno.EINVAL
    assert named.call("statx", F("dir"), path, 0x6000, 0, A(0)) == -errno.EINVAL
    assert named.call("statx", F("dir"), path, 1, 0, A(0)) == -errno.EINVAL
    assert named.call("statx", F("dir"), path, 0, 0, A(5 * PAGE)) == -errno.EFAULT
    assert named.call("statx", F("dir"), A(5 * PAGE), 0, 0, A(0)) == -errno.EFAULT
    assert named.call("statx", F("dir"), named.text(b"none"), 0, 0, A(0)) == -errno.ENOENT
    assert named.call("newfstatat", F("dir"), named.text(b""), A(0), 0) == -errno.ENOENT
    assert named.call("newfstatat", F("dir"), named.text(b"f"), A(0), 1) == -errno.EINVAL
    assert named.call("newfstatat", 999, named.text(b"f"), A(0), 0) == -errno.EBADF
    assert named.call("statfs", named.text(b"/nowhere"), A(0)) == -errno.ENOENT
    assert named.call("fstatfs", 999, A(0)) == -errno.EBADF


def test_access(named: Twin) -> None:
    assert named.call("faccessat", F("dir"), named.text(b"f"), os.R_OK | os.W_OK) == 0
    assert named.call("faccessat", F("dir"), named.text(b"f"), os.X_OK) == -errno.EACCES
    assert named.call("faccessat", F("dir"), named.text(b"f"), 8) == -errno.EINVAL
    assert named.call("faccessat", F("dir"), named.text(b"none"), 0) == -errno.ENOENT
    assert named.call("faccessat2", F("dir"), named.text(b"f"), 0, 1) == -errno.EINVAL
    assert named.call("faccessat2", F("f"), named.text(b""), 0, 0x1000) == 0
    assert named.call("faccessat", F("dir"), A(5 * PAGE), 0) == -errno.EFAULT


def test_a_read_only_grant_is_not_writable(served: Served) -> None:
    assert served("access", served.text(b"/r/file"), os.R_OK) == 0
    assert served("access", served.text(b"/r/file"), os.W_OK) == -errno.EROFS
    assert served("chmod", served.text(b"/r/file"), 0o600) == -errno.EROFS
    assert served("truncate", served.text(b"/r/file"), 1) == -errno.EROFS
    assert served("utime", served.text(b"/r/file"), 0) == -errno.EROFS


def test_modes(named: Twin, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert named.call("fchmodat", F("dir"), named.text(b"f"), 0o100640) == 0
    assert named.call("fchmod", F("f"), 0o600) == 0
    assert named.call("fchmod", F("path"), 0o600) == -errno.EBADF
    assert named.call("fchmodat", F("dir"), named.text(b"none"), 0o640) == -errno.ENOENT
    assert named.served("fchmodat2", named.pair("dir")[0], named.served.text(b"f"), 0o640, 1) == -errno.EINVAL
    assert named.served("fchmodat2", named.pair("f")[0], named.served.text(b""), 0o400, 0x1000) == 0


def test_the_mode_reaches_the_host(guest: Guest, served: Served) -> None:
    (guest.w / "f").write_bytes(b"")
    assert served("chmod", served.text(b"f"), 0o751) == 0
    assert (guest.w / "f").stat().st_mode & 0o7777 == 0o751


def test_owners(guest: Guest, served: Served) -> None:
    (guest.w / "f").write_bytes(b"")
    fd = served("open", served.text(b"f"), os.O_RDONLY, 0)
    assert isinstance(fd, int)
    assert served("chown", served.text(b"f"), guest.namespace.uid, -1) == 0
    assert served("lchown", served.text(b"f"), -1, guest.namespace.gid) == 0
    assert served("fchown", fd, (1 << 32) - 1, -1) == 0
    assert served("fchown", fd, 0, 0) == -errno.EPERM
    assert served("fchown", 999, 0, 0) == -errno.EBADF
    path_only = served("open", served.text(b"f"), os.O_PATH, 0)
    assert isinstance(path_only, int)
    assert served("fchown", path_only, -1, -1) == -errno.EBADF
    assert served("fchownat", AT_FDCWD, served.text(b"f"), -1, -1, 0x100) == 0
    assert served("fchownat", AT_FDCWD, served.text(b"f"), -1, -1, 0x10) == -errno.EINVAL


def test_truncating_by_name(named: Twin) -> None:
    assert named.served("truncate", named.served.text(b"f"), 300) == 0
    assert named.served("truncate", named.served.text(b"f"), -1) == -errno.EINVAL
    assert named.call("truncate", A(5 * PAGE), -1) == -errno.EINVAL
    assert named.served("truncate", named.served.text(b"."), 1) == -errno.EISDIR
    size = named.served("lseek", named.pair("f")[0], 0, os.SEEK_END)
    assert size == 300


# Times


def times(guest: Guest) -> tuple[int, int]:
    """Access and modification time of "f" in ns."""
    stat = guest.files.stat(fl.AT_FDCWD, b"f")
    return stat.atime, stat.mtime


def test_every_way_to_set_times(guest: Guest, served: Served) -> None:
    (guest.w / "f").write_bytes(b"")
    path, place = served.text(b"f"), BASE
    fd = served("open", path, os.O_RDONLY, 0)
    assert isinstance(fd, int)
    served.put(0, struct.pack("<qq", 11, 22))
    assert served("utime", path, place) == 0
    assert times(guest) == (11 * 10**9, 22 * 10**9)
    served.put(0, struct.pack("<qqqq", 33, 44, 55, 66))
    assert served("utimes", path, place) == 0
    assert times(guest) == (33_000_044_000, 55_000_066_000)
    assert served("futimesat", AT_FDCWD, path, place) == 0
    assert served("utimensat", AT_FDCWD, path, place, 0) == 0
    assert times(guest) == (33_000_000_044, 55_000_000_066)
    served.put(0, struct.pack("<qqqq", 1, OMIT, 2, NOW))
    assert served("utimensat", fd, 0, place, 0) == 0
    assert times(guest) == (33_000_000_044, guest.clock.nanoseconds)
    guest.clock.nanoseconds += 5
    for name, more in (("utime", ()), ("utimes", ())):
        assert served(name, path, 0, *more) == 0
        assert times(guest) == (guest.clock.nanoseconds, guest.clock.nanoseconds)
        guest.clock.nanoseconds += 5
    assert served("utimensat", AT_FDCWD, path, 0, 0) == 0
    assert times(guest) == (guest.clock.nanoseconds, guest.clock.nanoseconds)
    assert (guest.w / "f").stat().st_mtime_ns == guest.clock.nanoseconds


def test_refusals_of_times(named: Twin) -> None:
    bad = named.put(0, struct.pack("<qqqq", 1, 10**9, 2, 0))
    assert named.call("utimensat", F("dir"), named.text(b"f"), bad, 0) == -errno.EINVAL
    assert named.call("utimensat", F("dir"), named.text(b"f"), A(5 * PAGE), 0) == -errno.EFAULT
    nothing = named.put(0, struct.pack("<qqqq", 1, OMIT, 2, OMIT))
    assert named.call("utimensat", F("dir"), named.text(b"none"), nothing, 0) == 0, "nothing is looked up"
    good = named.put(0, struct.pack("<qqqq", 1, 2, 3, 4))
    assert named.call("utimensat", F("dir"), named.text(b"none"), good, 0) == -errno.ENOENT
    assert named.call("utimensat", F("dir"), named.text(b"f"), good, 1) == -errno.EINVAL
    assert named.call("utimensat", F("f"), 0, good, 0) == 0
    assert named.call("utimensat", F("f"), 0, good, 0x100) == -errno.EINVAL
    assert named.call("utimensat", F("path"), 0, good, 0) == -errno.EBADF
    assert named.call("utimensat", AT_FDCWD, 0, good, 0) == -errno.EFAULT
    served = named.served
    served.put(0, struct.pack("<qqqq", 1, 10**6, 2, 0))
    assert served("utimes", served.text(b"f"), BASE) == -errno.EINVAL


# Extended attributes
