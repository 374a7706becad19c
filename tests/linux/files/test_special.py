"""Named pipes and names of sockets: what calls on paths do with them, and that the host never has them."""

from __future__ import annotations

import errno
import os
import stat as modes
from collections.abc import Callable

import pytest

from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.directory import OpenDirectory
from aether_emu.linux.files.open_file import POLLHUP, POLLIN
from tests.linux.files.conftest import CWD, Guest, refused

FIFO = modes.S_IFIFO | 0o640


def names(guest: Guest, path: bytes = b".") -> set[bytes]:
    """The names in a directory, as getdents64 shows them."""
    fd = guest.files.open(CWD, path, fl.O_RDONLY | fl.O_DIRECTORY)
    directory = guest.files.table.file(fd)
    assert isinstance(directory, OpenDirectory)
    directory.read_entries(1 << 16)
    assert directory.listing is not None
    found = {item.name for item in directory.listing}
    guest.files.close(fd)
    return found - {b".", b".."}


@pytest.fixture
def fifo(guest: Guest) -> Guest:
    """A guest with a named pipe "p" in its working directory."""
    guest.files.mknod(CWD, b"p", FIFO)
    return guest


def test_it_is_seen_by_the_guest_alone(fifo: Guest) -> None:
    shown = fifo.files.stat(CWD, b"p")
    assert shown.mode == FIFO & ~fifo.files.mask and (shown.uid, shown.gid, shown.nlink) == (1000, 1000, 1)
    assert b"p" in names(fifo)
    assert not os.path.lexists(fifo.w / "p")
    fifo.files.chmod(CWD, b"p", 0o600)
    assert fifo.files.stat(CWD, b"p").mode == modes.S_IFIFO | 0o600
    fifo.files.utimens(CWD, b"p", 7, 9)
    assert (fifo.files.stat(CWD, b"p").atime, fifo.files.stat(CWD, b"p").mtime) == (7, 9)


@pytest.mark.parametrize("make", ["mknod", "mkdir", "symlink", "link", "open"])
def test_nothing_else_gets_its_name(fifo: Guest, make: str) -> None:
    files = fifo.files
    files.close(fifo.create(b"f"))
    ways: dict[str, Callable[[], object]] = {
        "mknod": lambda: files.mknod(CWD, b"p", FIFO),
        "mkdir": lambda: files.mkdir(CWD, b"p", 0o700),
        "symlink": lambda: files.symlink(b"f", CWD, b"p"),
        "link": lambda: files.link(CWD, b"f", CWD, b"p"),
        "open": lambda: files.open(CWD, b"p", fl.O_CREAT | fl.O_EXCL | fl.O_WRONLY, 0o600),
    }
    with refused(errno.EEXIST):
        ways[make]()


def test_it_has_several_names_until_the_last_is_removed(fifo: Guest) -> None:
    files = fifo.files
    files.mkdir(CWD, b"d", 0o700)
    files.link(CWD, b"p", CWD, b"d/q")
    assert files.stat(CWD, b"d/q").ino == files.stat(CWD, b"p").ino
    assert files.stat(CWD, b"p").nlink == 2
    with refused(errno.ENOTEMPTY):
        files.rmdir(CWD, b"d")
    files.unlink(CWD, b"p")
    assert files.stat(CWD, b"d/q").nlink == 1
    with refused(errno.ENOENT):
        files.stat(CWD, b"p")
    files.unlink(CWD, b"d/q")
    files.rmdir(CWD, b"d")
    assert not fifo.files.namespace.specials


def test_it_is_renamed_and_replaces_and_is_replaced(fifo: Guest) -> None:
    files = fifo.files
    number = files.stat(CWD, b"p").ino
    files.close(fifo.create(b"f"))
    files.mkdir(CWD, b"d", 0o700)
    files.rename(CWD, b"p", CWD, b"d/q")
    files.rename(CWD, b"d", CWD, b"e")
    assert files.stat(CWD, b"e/q").ino == number
    files.rename(CWD, b"e/q", CWD, b"f")
    assert files.stat(CWD, b"f").ino == number and not (fifo.w / "f").exists()
    files.close(fifo.create(b"g"))
    files.rename(CWD, b"g", CWD, b"f")
    assert modes.S_ISREG(files.stat(CWD, b"f").mode) and (fifo.w / "f").exists()
    files.mknod(CWD, b"p", FIFO)
    with refused(errno.EISDIR):
        files.rename(CWD, b"p", CWD, b"e")
    with refused(errno.ENOTDIR):
        files.rename(CWD, b"e", CWD, b"p")
    with refused(errno.EEXIST):
        files.rename(CWD, b"p", CWD, b"f", fl.RENAME_NOREPLACE)


def test_its_ends_are_those_of_a_pipe(fifo: Guest) -> None:
    files = fifo.files
    with refused(errno.ENXIO):
        files.open(CWD, b"p", fl.O_WRONLY | fl.O_NONBLOCK)
    reading = files.open(CWD, b"p", fl.O_RDONLY | fl.O_NONBLOCK)
    assert files.read(reading, 9) == b""
    writing = files.open(CWD, b"p", fl.O_WRONLY)
    assert files.write(writing, b"abc") == 3
    assert files.poll(reading) == POLLIN
    assert files.table.file(reading).link() == b"/w/p"
    assert files.fstat(reading).ino == files.stat(CWD, b"p").ino
    files.close(writing)
    assert files.poll(reading) == POLLIN | POLLHUP
    assert files.read(reading, 9) == b"abc"
    files.close(reading)
    both = files.open(CWD, b"p", fl.O_RDWR)
    assert files.write(both, b"x") == 1
    files.close(both)
    both = files.open(CWD, b"p", fl.O_RDWR | fl.O_NONBLOCK)
    with refused(errno.EAGAIN):
        files.read(both, 1)
    files.close(both)
    assert not files.namespace.pipes.used
