"""Extended attributes: files of the host have none, those in a tmpfs as Linux 6.6 has them."""

from __future__ import annotations

import errno
import os

import pytest

from aether_emu.linux.files import flags as fl
from aether_emu.linux.files import xattr
from tests.linux.calls.twin import ARGUMENTS, BASE, PAGE, PROT_NONE, Served
from tests.linux.files.conftest import CWD, Guest, refused

SECOND = ARGUMENTS + 2048


@pytest.mark.parametrize(
    "call", ["getxattr", "lgetxattr", "setxattr", "lsetxattr", "removexattr", "lremovexattr"]
)
def test_files_have_no_extended_attributes(guest: Guest, served: Served, call: str) -> None:
    (guest.w / "f").write_bytes(b"")
    served.memory.protect(5, PROT_NONE)
    path, name = served.text(b"f"), served.text(b"user.x", SECOND)
    assert served(call, path, name, BASE, 10, 0) == -errno.EOPNOTSUPP
    assert served(call, served.text(b"none"), name, BASE, 10, 0) == -errno.ENOENT
    path = served.text(b"f")
    assert served(call, path, BASE + 5 * PAGE, BASE, 10, 0) == -errno.EFAULT
    assert served(call, path, served.text(b"", SECOND), BASE, 10, 0) == -errno.ERANGE
    assert served(call, path, served.text(b"x" * 256, SECOND), BASE, 10, 0) == -errno.ERANGE
    if "set" in call:
        assert served(call, path, served.text(b"user.x", SECOND), BASE, 10, 4) == -errno.EINVAL


def test_no_extended_attributes_by_descriptor(guest: Guest, served: Served) -> None:
    (guest.w / "f").write_bytes(b"")
    fd = served("open", served.text(b"f"), os.O_RDONLY, 0)
    path_only = served("open", served.text(b"f"), os.O_PATH, 0)
    assert isinstance(fd, int) and isinstance(path_only, int)
    name = served.text(b"user.x", SECOND)
    for call in ("fgetxattr", "fsetxattr", "fremovexattr"):
        assert served(call, fd, name, BASE, 10, 0) == -errno.EOPNOTSUPP
        assert served(call, path_only, name, BASE, 10, 0) == -errno.EBADF
    assert served("listxattr", served.text(b"f"), BASE, 10) == 0
    assert served("llistxattr", served.text(b"f"), BASE, 10) == 0
    assert served("listxattr", served.text(b"none"), BASE, 10) == -errno.ENOENT
    assert served("flistxattr", fd, BASE, 10) == 0
    assert served("flistxattr", 999, BASE, 10) == -errno.EBADF


def test_files_in_a_tmpfs_keep_what_they_are_given(guest: Guest, served: Served) -> None:
    fd = guest.files.open(CWD, b"/tmp/f", fl.O_RDWR | fl.O_CREAT, 0o600)
    path, name, value = served.text(b"/tmp/f"), served.text(b"user.x", SECOND), served.put(0, b"value")
    used = guest.namespace.memory_used
    assert served("getxattr", path, name, BASE + 64, 64) == -errno.ENODATA
    assert served("setxattr", path, name, value, 5, xattr.XATTR_REPLACE) == -errno.ENODATA
    assert served("setxattr", path, name, value, 5, 0) == 0
    assert served("fsetxattr", fd, name, value, 5, xattr.XATTR_CREATE) == -errno.EEXIST
    assert served("setxattr", path, name, value, (1 << 16) + 1, 0) == -errno.E2BIG
    assert served("fgetxattr", fd, name, 0, 0) == 5
    assert served("fgetxattr", fd, name, BASE + 64, 4) == -errno.ERANGE
    assert (served("getxattr", path, name, BASE + 64, 64), served.get(64, 5)) == (5, b"value")
    assert (served("listxattr", path, BASE + 64, 64), served.get(64, 7)) == (7, b"user.x\0")
    assert guest.namespace.memory_used == used + len(b"user.xvalue")
    assert served("removexattr", path, name) == 0
    assert served("fremovexattr", fd, name) == -errno.ENODATA
    assert guest.namespace.memory_used == used
    served("setxattr", path, name, value, 5, 0)
    guest.files.unlink(CWD, b"/tmp/f")
    assert guest.namespace.memory_used == used + len(b"user.xvalue")
    guest.files.close(fd)
    assert guest.namespace.memory_used == 0


@pytest.mark.parametrize(
    ("name", "reading", "writing"),
    [
        (b"trusted.x", errno.ENODATA, errno.EPERM),
        (b"security.x", errno.ENODATA, errno.EPERM),
        (b"system.posix_acl_access", errno.EOPNOTSUPP, errno.EOPNOTSUPP),
        (b"x", errno.EOPNOTSUPP, errno.EOPNOTSUPP),
        (b"user.", errno.EINVAL, errno.EINVAL),
    ],
)
def test_some_names_are_not_a_users(guest: Guest, name: bytes, reading: int, writing: int) -> None:
    guest.files.close(guest.files.open(CWD, b"/tmp/f", fl.O_RDWR | fl.O_CREAT, 0o600))
    node = guest.files.with_attributes(b"/tmp/f", follow=True)
    with refused(reading):
        xattr.get(node, name)
    with refused(writing):
        xattr.put(node, name, b"", 0)
    with refused(writing):
        xattr.remove(node, name)


def test_permissions_decide_and_links_have_none(guest: Guest) -> None:
    files = guest.files
    files.close(files.open(CWD, b"/tmp/f", fl.O_RDWR | fl.O_CREAT, 0o400))
    files.symlink(b"f", CWD, b"/tmp/l")
    with refused(errno.EACCES):
        xattr.put(files.with_attributes(b"/tmp/l", follow=True), b"user.x", b"", 0)
    with refused(errno.EPERM):
        xattr.put(files.with_attributes(b"/tmp/l", follow=False), b"user.x", b"", 0)
    with refused(errno.EPERM):
        xattr.put(files.with_attributes(b"/tmp", follow=True), b"user.x", b"", 0)
    files.chmod(CWD, b"/tmp/f", 0o200)
    with refused(errno.EACCES):
        xattr.get(files.with_attributes(b"/tmp/f", follow=True), b"user.x")
