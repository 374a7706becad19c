"""What is particular to /tmp and /dev/shm: mounts, limits, permissions, nameless files, capture."""

from __future__ import annotations

import errno
import os
import stat as modes
from collections.abc import Iterator
from pathlib import Path

import pytest

from aether_emu.linux.files import flags as fl
from aether_emu.linux.files import xattr
from aether_emu.linux.files.capture import capture
from aether_emu.linux.files.listing import listed
from aether_emu.linux.files.mounts import TMPFS_MAGIC, Bind
from tests.linux.files.conftest import CWD, Guest, host_descriptors, refused
from tests.linux.files.test_capture import Again, assert_plain
from tests.linux.files.test_namespace import Opened

PAGE = 4096
READ_WRITE = fl.O_RDWR | fl.O_CREAT
TMPFILE = fl.O_TMPFILE_BIT | fl.O_DIRECTORY


@pytest.fixture
def again(guest: Guest) -> Iterator[Again]:
    """See `Again`."""
    made = Again(guest)
    yield made
    made.close()


def make(guest: Guest, path: bytes, content: bytes = b"", mode: int = 0o666) -> None:
    """A closed file."""
    fd = guest.files.open(CWD, path, READ_WRITE, mode)
    assert guest.files.write(fd, content) == len(content)
    guest.files.close(fd)


# ---- mounts


def test_both_are_writable_whatever_was_granted(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "hidden").touch()
    with Opened(tmp_path, []) as it:
        assert it.names(b"/tmp") == [] == it.names(b"/dev/shm")
        for path in (b"/tmp", b"/dev/shm"):
            status = it.files.stat(CWD, path)
            assert (status.mode, status.uid) == (modes.S_IFDIR | 0o1777, 0)
            assert it.files.statfs(path).kind == TMPFS_MAGIC
            it.files.close(it.files.open(CWD, path + b"/new", READ_WRITE, 0o600))
            assert it.names(path) == [b"new"]
        assert b"tmpfs /tmp tmpfs rw,nosuid,relatime 0 0\n" in it.namespace.mounts.table_text()
        it.files.rename(CWD, b"/tmp/new", CWD, b"/tmp/newer")
        with refused(errno.EXDEV):
            it.files.rename(CWD, b"/tmp/newer", CWD, b"/dev/shm/new2")
    assert os.listdir(tmp_path / "tmp") == ["hidden"]


def test_a_grant_takes_the_place_of_a_tmpfs_or_lies_in_it(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    with Opened(None, [Bind(tmp_path, "/tmp"), Bind(tmp_path, "/dev/shm/a/b")], "/dev/shm/a/b") as it:
        assert it.names(b"/tmp") == [b"there"] == it.names(b"/dev/shm/a/b")
        with refused(errno.EROFS):
            it.files.mkdir(CWD, b"/tmp/new", 0o777)
        assert it.files.getcwd() == b"/dev/shm/a/b"
        it.files.mkdir(CWD, b"../beside", 0o777)
        assert it.names(b"/dev/shm/a") == [b"b", b"beside"]
        for path in (b"/dev/shm/a", b"/dev/shm/a/b"):
            with refused(errno.EBUSY):
                it.files.rename(CWD, path, CWD, b"/dev/shm/moved")
            with refused(errno.EBUSY):
                it.files.rmdir(CWD, path)


# ---- limits


def test_as_many_files_as_one_likes_take_no_descriptors_of_the_host(guest: Guest) -> None:
    before = host_descriptors()
    for number in range(200):
        make(guest, b"/tmp/%d" % number, b"content %d" % number)
    assert host_descriptors() == before
    assert guest.read_all(b"/tmp/199") == b"content 199"


def test_contents_are_bounded_and_given_back(guest: Guest) -> None:
    files, space = guest.files, guest.namespace
    assert files.statfs(b"/tmp").free == space.memory_limit // PAGE
    fd = files.open(CWD, b"/tmp/big", READ_WRITE, 0o666)
    assert files.write(fd, bytes(space.memory_limit + PAGE)) == space.memory_limit
    assert files.statfs(b"/dev/shm").free == 0
    with refused(errno.ENOSPC):
        files.write(fd, b"more")
    with refused(errno.ENOSPC):
        files.symlink(b"x" * 200, CWD, b"/tmp/long")
    files.symlink(b"x" * 100, CWD, b"/tmp/short")
    files.unlink(CWD, b"/tmp/big")
    assert files.fstat(fd).nlink == 0
    assert space.memory_used == space.memory_limit, "it is open still"
    files.close(fd)
    assert space.memory_used == 0


def test_the_number_of_files_is_bounded() -> None:
    with Opened(None, [], memory=10 * 2 * PAGE) as it:
        assert it.files.statfs(b"/tmp").inodes == (10, 9), "the root is one"
        for number in range(9):
            it.files.mkdir(CWD, b"/tmp/%d" % number, 0o777)
        for make_one in (it.files.mkdir, it.files.mknod):
            with refused(errno.ENOSPC):
                make_one(CWD, b"/tmp/more", 0o777)
        it.files.rmdir(CWD, b"/tmp/0")
        it.files.symlink(b"x", CWD, b"/tmp/again")


# ---- permissions


def test_the_owners_bits_decide(guest: Guest) -> None:
    files = guest.files
    make(guest, b"/tmp/f", b"x", 0o200)
    files.close(files.open(CWD, b"/tmp/f", fl.O_WRONLY))
    with refused(errno.EACCES):
        files.open(CWD, b"/tmp/f", fl.O_RDONLY)
    with refused(errno.EACCES):
        files.access(CWD, b"/tmp/f", os.X_OK)
    files.chmod(CWD, b"/tmp/f", 0o400)
    with refused(errno.EACCES):
        files.open(CWD, b"/tmp/f", fl.O_RDONLY | fl.O_TRUNC)
    files.mkdir(CWD, b"/tmp/d", 0o777)
    make(guest, b"/tmp/d/f")
    files.chmod(CWD, b"/tmp/d", 0o600)
    with refused(errno.EACCES):
        files.stat(CWD, b"/tmp/d/f")
    files.chmod(CWD, b"/tmp/d", 0o500)
    with refused(errno.EACCES):
        files.unlink(CWD, b"/tmp/d/f")
    with refused(errno.EACCES):
        files.open(CWD, b"/tmp/d/new", READ_WRITE, 0o666)
    for old, new in ((b"/tmp/d/f", b"/tmp/g"), (b"/tmp/f", b"/tmp/d/g")):
        with refused(errno.EACCES):
            files.rename(CWD, old, CWD, new)
    files.chmod(CWD, b"/tmp/d", 0o300)
    with refused(errno.EACCES):
        files.open(CWD, b"/tmp/d", fl.O_RDONLY)


def test_a_mode_without_writing_does_not_limit_its_first_descriptor(guest: Guest) -> None:
    fd = guest.files.open(CWD, b"/tmp/f", READ_WRITE, 0o444)
    assert guest.files.write(fd, b"x") == 1


def test_writing_takes_the_set_id_bits(guest: Guest) -> None:
    fd = guest.files.open(CWD, b"/tmp/f", READ_WRITE, 0o777)
    guest.files.fchmod(fd, 0o6755)
    assert guest.files.fstat(fd).mode & 0o7777 == 0o6755
    guest.files.write(fd, b"x")
    assert guest.files.fstat(fd).mode & 0o7777 == 0o755


# ---- names


def test_a_file_without_a_name_can_get_one(guest: Guest) -> None:
    files = guest.files
    fd = files.open(CWD, b"/tmp", TMPFILE | fl.O_RDWR, 0o640)
    files.write(fd, b"whole")
    assert (files.fstat(fd).nlink, guest.names(b"/tmp")) == (0, [b".", b".."])
    assert files.table.file(fd).link().endswith(b" (deleted)")
    files.link(CWD, b"/proc/self/fd/%d" % fd, CWD, b"/tmp/f", fl.AT_SYMLINK_FOLLOW)
    assert guest.read_all(b"/tmp/f") == b"whole"
    assert files.fstat(fd).nlink == 1
    hidden = files.open(CWD, b"/tmp", TMPFILE | fl.O_RDWR | fl.O_EXCL, 0o600)
    files.unlink(CWD, b"/tmp/f")
    with refused(errno.ENOENT):
        files.link(CWD, b"/proc/self/fd/%d" % hidden, CWD, b"/tmp/g", fl.AT_SYMLINK_FOLLOW)
    for where, number in ((b"/w", errno.EOPNOTSUPP), (b"/r", errno.EROFS), (b"/r/file", errno.ENOTDIR)):
        with refused(number):
            files.open(CWD, where, TMPFILE | fl.O_RDWR, 0o600)
    with refused(errno.EINVAL):
        files.open(CWD, b"/tmp", TMPFILE, 0o600)


def test_nothing_is_made_in_a_directory_that_was_removed(guest: Guest) -> None:
    guest.files.mkdir(CWD, b"/tmp/d", 0o777)
    guest.files.chdir(b"/tmp/d")
    guest.files.rmdir(CWD, b"/tmp/d")
    with refused(errno.ENOENT):
        guest.files.open(CWD, b"f", READ_WRITE, 0o666)
    with refused(errno.ENOENT):
        guest.files.mkdir(CWD, b"d", 0o777)


def test_directories_count_their_links_and_know_what_is_above(guest: Guest) -> None:
    files = guest.files
    for path in (b"/tmp/a", b"/tmp/b", b"/tmp/a/c"):
        files.mkdir(CWD, path, 0o777)
    files.rename(CWD, b"/tmp/a/c", CWD, b"/tmp/b/c")
    assert [files.stat(CWD, b"/tmp/" + name).nlink for name in (b"a", b"b", b"b/c", b"")] == [2, 3, 2, 4]
    lines = listed(guest.namespace, guest.namespace.lookup(guest.namespace.root(), b"/tmp/b/c"))
    assert lines[1].number == files.stat(CWD, b"/tmp/b").ino
    files.rename(CWD, b"/tmp/a", CWD, b"/tmp/b/c", fl.RENAME_EXCHANGE)
    assert [files.stat(CWD, b"/tmp/" + name).nlink for name in (b"a", b"b", b"")] == [2, 3, 4]


def test_named_pipes_and_sockets_are_names_like_others(guest: Guest) -> None:
    files = guest.files
    files.mknod(CWD, b"/tmp/p", modes.S_IFIFO | 0o666)
    files.mknod(CWD, b"/tmp/s", modes.S_IFSOCK | 0o666)
    files.link(CWD, b"/tmp/p", CWD, b"/tmp/q")
    files.rename(CWD, b"/tmp/p", CWD, b"/tmp/s")
    make(guest, b"/tmp/f", b"file")
    files.rename(CWD, b"/tmp/f", CWD, b"/tmp/s", fl.RENAME_EXCHANGE)
    assert guest.names(b"/tmp")[2:] == [b"f", b"q", b"s"]
    assert files.stat(CWD, b"/tmp/f").nlink == 2
    assert modes.S_ISFIFO(files.stat(CWD, b"/tmp/f").mode)
    fd = files.open(CWD, b"/tmp/q", fl.O_RDWR)
    files.write(fd, b"through")
    assert files.read(files.open(CWD, b"/tmp/f", fl.O_RDONLY | fl.O_NONBLOCK), 10) == b"through"


# ---- state


def test_everything_is_part_of_the_state(guest: Guest, again: Again) -> None:
    files = guest.files
    files.mkdir(CWD, b"/tmp/d", 0o750)
    make(guest, b"/tmp/d/f", b"content", 0o640)
    xattr.put(files.with_attributes(b"/tmp/d/f", follow=True), b"user.x", b"value", 0)
    files.link(CWD, b"/tmp/d/f", CWD, b"/dev/shm/../../tmp/g")
    files.symlink(b"d/f", CWD, b"/tmp/l")
    files.symlink(b"y" * 300, CWD, b"/tmp/long")
    files.mknod(CWD, b"/tmp/p", modes.S_IFIFO | 0o600)
    guest.clock.nanoseconds += 5
    files.utimens(CWD, b"/tmp/d", 1, 2)
    gone = files.open(CWD, b"/dev/shm/gone", READ_WRITE, 0o600)
    files.write(gone, b"nameless")
    files.unlink(CWD, b"/dev/shm/gone")
    sparse = files.open(CWD, b"/tmp/sparse", READ_WRITE, 0o600)
    files.pwrite(sparse, b"end", 1 << 30)
    files.fallocate(sparse, 1, 0, PAGE)
    files.chdir(b"/tmp/d")
    paths = (b"/tmp", b"/tmp/d", b"/tmp/d/f", b"/tmp/g", b"/tmp/l", b"/tmp/long", b"/tmp/p", b"/tmp/sparse")
    state = capture([files])
    assert_plain(state)
    (restored,) = again(state).processes
    assert capture([restored]) == state
    for path in paths:
        shown = [f.stat(CWD, path, fl.AT_SYMLINK_NOFOLLOW) for f in (files, restored)]
        assert shown[0] == shown[1], path
    assert restored.namespace.memory_used == guest.namespace.memory_used
    assert restored.statfs(b"/tmp") == files.statfs(b"/tmp")
    assert restored.pread(gone, 20, 0) == b"nameless"
    assert restored.pread(sparse, 3, 1 << 30) == b"end"
    assert restored.readlink(CWD, b"/tmp/long", 400) == b"y" * 300
    assert xattr.get(restored.with_attributes(b"/tmp/g", follow=True), b"user.x") == b"value"
    assert restored.getcwd() == b"/tmp/d"
    restored.close(gone)
    assert restored.namespace.memory_used == guest.namespace.memory_used - PAGE
    restored.unlink(CWD, b"/tmp/d/f")
    assert restored.stat(CWD, b"/tmp/g").nlink == 1
