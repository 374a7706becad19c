"""Calls on names, beside the real kernel's where both can answer."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from tests.linux.calls.twin import ARGUMENTS, BASE, PAGE, PAGES, PROT_NONE, A, F, Served, Twin
from tests.linux.files.conftest import Guest

AT_FDCWD = -100
RW = os.O_RDWR | os.O_CREAT
SECOND = ARGUMENTS + 2048
"""Where a second string goes."""
END = PAGES * PAGE


@pytest.fixture
def names(twin: Twin) -> Twin:
    """A directory "d" with a file "f" in it, a link "l" to the file, and a bad page 5."""
    assert twin.call("mkdirat", F("dir"), twin.text(b"d"), 0o755) == 0
    twin.open("f", "openat", F("dir"), twin.text(b"d/f"), RW, 0o644)
    assert twin.call("symlinkat", twin.text(b"d/f"), F("dir"), twin.text(b"l", SECOND)) == 0
    twin.forbid(5)
    return twin


def test_opening(names: Twin) -> None:
    def refusal(path: bytes, flags: int = 0, mode: int = 0) -> int:
        return names.call("openat", F("dir"), names.text(path), flags, mode)

    assert refusal(b"none") == -errno.ENOENT
    assert refusal(b"") == -errno.ENOENT
    assert refusal(b"d/f/x") == -errno.ENOTDIR
    assert refusal(b"d", os.O_WRONLY) == -errno.EISDIR
    assert refusal(b"d/f", RW | os.O_EXCL) == -errno.EEXIST
    assert refusal(b"l", os.O_NOFOLLOW) == -errno.ELOOP
    assert refusal(b"d/f", os.O_DIRECTORY) == -errno.ENOTDIR
    assert refusal(b"x" * 256) == -errno.ENAMETOOLONG
    assert names.call("openat", 999, names.text(b"f"), 0, 0) == -errno.EBADF
    assert names.call("openat", F("f"), names.text(b"f"), 0, 0) == -errno.ENOTDIR
    assert names.call("openat", F("dir"), A(5 * PAGE), 0, 0) == -errno.EFAULT


def test_a_path_may_end_at_the_end_of_memory(names: Twin) -> None:
    names.open("again", "openat", F("dir"), names.text(b"d/f", 5 * PAGE - 4), os.O_RDONLY)
    unending = names.put(5 * PAGE - 3, b"d/f")
    assert names.call("openat", F("dir"), unending, 0, 0) == -errno.EFAULT


def test_the_longest_path(names: Twin) -> None:
    names.open("long", "openat", F("dir"), names.text(b"./" * 2046 + b"d/f", 0), os.O_RDONLY)
    assert names.call("openat", F("dir"), names.text(b"./" * 2047 + b"d/f", 0), 0, 0) == -errno.ENAMETOOLONG
    names.put(0, bytes(2 * PAGE))


def test_the_mode_obeys_the_mask(guest: Guest, served: Served) -> None:
    assert served("umask", 0o077) == 0o022
    assert served("umask", 0o10027) == 0o077
    fd = served("creat", served.text(b"new"), 0o100666)
    assert isinstance(fd, int)
    assert (guest.w / "new").stat().st_mode & 0o7777 == 0o640
    assert served("mkdir", served.text(b"sub"), 0o777) == 0
    assert (guest.w / "sub").stat().st_mode & 0o777 == 0o750
    assert served("mknod", served.text(b"node"), 0o100666, 0) == 0
    assert served("mknod", served.text(b"fifo"), 0o010666, 0) == 0
    assert served("mknod", served.text(b"device"), 0o020666, 0) == -errno.EPERM
    assert sorted(path.name for path in guest.w.iterdir()) == ["new", "node", "sub"]


def how(flags: int = 0, mode: int = 0, resolve: int = 0, more: bytes = b"") -> bytes:
    """struct open_how."""
    return struct.pack("<QQQ", flags, mode, resolve) + more


def test_openat2_is_strict(names: Twin) -> None:
    def answer(content: bytes, size: int | None = None, path: bytes = b"d/f") -> int:
        place = names.put(0, content)
        return names.call(
            "openat2", F("dir"), names.text(path), place, len(content) if size is None else size
        )

    names.put(0, how())
    names.open("two", "openat2", F("dir"), names.text(b"d/f"), A(0), 24)
    assert answer(how(), 23) == -errno.EINVAL
    assert answer(how(), PAGE + 1) == -errno.E2BIG
    assert answer(how(more=bytes(7) + b"\1")) == -errno.E2BIG
    assert answer(how(flags=1 << 40)) == -errno.EINVAL
    assert answer(how(flags=1 << 30)) == -errno.EINVAL
    assert answer(how(mode=0o644)) == -errno.EINVAL
    assert answer(how(flags=RW, mode=1 << 20)) == -errno.EINVAL
    assert answer(how(flags=os.O_PATH | os.O_APPEND)) == -errno.EINVAL
    assert answer(how(resolve=1 << 10)) == -errno.EINVAL
    assert answer(how(resolve=0x18)) == -errno.EINVAL
    assert answer(how(resolve=4), path=b"l") == -errno.ELOOP
    assert answer(how(resolve=8), path=b"../x") == -errno.EXDEV
    assert names.call("openat2", F("dir"), A(ARGUMENTS), A(5 * PAGE), 24) == -errno.EFAULT


def test_the_working_directory(guest: Guest, served: Served) -> None:
    (guest.w / "sub").mkdir()
    assert served("getcwd", BASE, 3) == 3
    assert served.get(0, 3) == b"/w\0"
    assert served("getcwd", BASE, 2) == -errno.ERANGE
    assert served("getcwd", 0, 0) == -errno.ERANGE
    assert served("getcwd", 0, 100) == -errno.EFAULT
    assert served("chdir", served.text(b"sub")) == 0
    assert served("getcwd", BASE, 100) == 7
    fd = served("open", served.text(b"/"), os.O_RDONLY, 0)
    assert isinstance(fd, int)
    assert served("fchdir", fd) == 0
    assert served("getcwd", BASE, 100) == 2
    assert served("chdir", served.text(b"/none")) == -errno.ENOENT
    assert served("fchdir", 1) == -errno.ENOTDIR


def test_links(names: Twin) -> None:
    link = names.text(b"l")
    assert names.call("readlinkat", F("dir"), link, A(0), 100) == 3
    assert names.served.get(0, 4) == b"d/f\0"
    assert names.call("readlinkat", F("dir"), link, A(10), 2) == 2
    assert names.call("readlinkat", F("dir"), link, A(0), 0) == -errno.EINVAL
    assert names.call("readlinkat", F("dir"), link, A(0), -1) == -errno.EINVAL
    assert names.call("readlinkat", F("dir"), A(5 * PAGE), A(0), 0) == -errno.EINVAL
    assert names.call("readlinkat", F("dir"), link, A(5 * PAGE), 10) == -errno.EFAULT
    assert names.call("readlinkat", F("dir"), names.text(b"d"), A(0), 10) == -errno.EINVAL
    assert names.call("symlinkat", names.text(b""), F("dir"), names.text(b"m", SECOND)) == -errno.ENOENT
    assert names.call("symlinkat", names.text(b"x"), F("dir"), names.text(b"l", SECOND)) == -errno.EEXIST
    old, new = names.text(b"d/f"), names.text(b"hard", SECOND)
    assert names.call("linkat", F("dir"), old, F("dir"), new, 0) == 0
    assert names.call("linkat", F("dir"), old, F("dir"), new, 0) == -errno.EEXIST
    assert names.call("linkat", F("dir"), old, F("dir"), new, 1) == -errno.EINVAL
    assert (
        names.call("linkat", F("dir"), names.text(b"d"), F("dir"), names.text(b"x", SECOND), 0)
        == -errno.EPERM
    )


def test_removing_and_renaming(names: Twin) -> None:
    assert names.call("unlinkat", F("dir"), names.text(b"d"), 0) == -errno.EISDIR
    assert names.call("unlinkat", F("dir"), names.text(b"d"), 0x200) == -errno.ENOTEMPTY
    assert names.call("unlinkat", F("dir"), names.text(b"d/f"), 0x200) == -errno.ENOTDIR
    assert names.call("unlinkat", F("dir"), names.text(b"d/f"), 1) == -errno.EINVAL
    move = (F("dir"), names.text(b"d/f"), F("dir"), names.text(b"g", SECOND))
    assert names.call("renameat2", *move, 0) == 0
    assert names.call("renameat2", *move, 0) == -errno.ENOENT
    names.text(b"l")
    assert names.call("renameat2", *move, 1) == -errno.EEXIST
    assert names.call("renameat2", *move, 3) == -errno.EINVAL
    assert names.call("renameat2", *move, 2) == 0
    assert names.call("unlinkat", F("dir"), names.text(b"l"), 0) == 0
    assert names.call("unlinkat", F("dir"), names.text(b"d"), 0x200) == 0
    assert names.call("unlinkat", F("dir"), names.text(b"d"), 0x200) == -errno.ENOENT


def test_the_older_calls_do_the_same(guest: Guest, served: Served) -> None:
    first, second = served.text(b"a"), served.text(b"b", SECOND)
    (guest.w / "a").write_bytes(b"1")
    assert served("link", first, second) == 0
    assert served("unlink", first) == 0
    assert served("rename", second, first) == 0
    assert served("renameat", AT_FDCWD, first, AT_FDCWD, second) == 0
    assert served("symlink", second, first) == 0
    assert served("readlink", first, BASE, 10) == 1
    assert served("mkdirat", AT_FDCWD, served.text(b"sub"), 0o700) == 0
    assert served("rmdir", served.text(b"sub")) == 0
    assert served("mknodat", AT_FDCWD, served.text(b"node"), 0o644, 0) == 0
    assert sorted(path.name for path in guest.w.iterdir()) == ["a", "b", "node"]
    assert (guest.w / "b").read_bytes() == b"1"


def test_every_path_argument_may_be_bad(served: Served) -> None:
    served.memory.protect(5, PROT_NONE)
    bad = BASE + 5 * PAGE
    for name in ("open", "creat", "chdir", "mkdir", "rmdir", "unlink", "mknod", "stat", "truncate", "chmod"):
        assert served(name, bad, 0, 0) == -errno.EFAULT, name
    for name in ("rename", "link", "symlink"):
        assert served(name, served.text(b"x"), bad) == -errno.EFAULT, name
