"""/dev and /proc: nodes that exist on no disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.synthetic import Link
from tests.linux.files.conftest import CWD, Guest, Shown, Source, guest_in, refused


def test_what_the_memory_devices_read_and_take(guest: Guest) -> None:
    files = guest.files
    expected = {
        b"null": (b"", 3),
        b"zero": (bytes(4), 3),
        b"random": (b"\x07" * 4, 3),
        b"urandom": (b"\x07" * 4, 3),
    }
    for name, (data, taken) in expected.items():
        fd = files.open(CWD, b"/dev/" + name, fl.O_RDWR | fl.O_CREAT | fl.O_TRUNC | fl.O_APPEND, 0o666)
        assert files.read(fd, 4) == files.pread(fd, 4, 100) == data
        assert files.write(fd, b"abc") == files.pwrite(fd, b"abc", 7) == taken
        assert files.lseek(fd, 100, 0) == 0


def test_dev_full_is_full(guest: Guest) -> None:
    fd = guest.files.open(CWD, b"/dev/full", fl.O_RDWR)
    assert guest.files.read(fd, 2) == bytes(2)
    with refused(errno.ENOSPC):
        guest.files.write(fd, b"x")


def test_one_read_of_a_device_is_bounded(guest: Guest) -> None:
    fd = guest.files.open(CWD, b"/dev/zero", fl.O_RDONLY)
    data = guest.files.read(fd, 1 << 30)
    assert isinstance(data, bytes) and len(data) == (32 << 20) - 1


def test_there_is_no_controlling_terminal(guest: Guest) -> None:
    with refused(errno.ENXIO):
        guest.files.open(CWD, b"/dev/tty", fl.O_RDWR)
    assert guest.files.stat(CWD, b"/dev/tty").rdev == os.makedev(5, 0)


def test_devices_look_like_devices_and_stay(guest: Guest) -> None:
    stat = guest.files.stat(CWD, b"/dev/null")
    assert (stat.mode, stat.rdev, stat.uid, stat.size) == (0o20666, os.makedev(1, 3), 0, 0)
    guest.files.access(CWD, b"/dev/null", os.R_OK | os.W_OK)
    with refused(errno.EACCES):
        guest.files.access(CWD, b"/dev/null", os.X_OK)
    for call in (
        lambda: guest.files.unlink(CWD, b"/dev/null"),
        lambda: guest.files.chmod(CWD, b"/dev/null", 0),
        lambda: guest.files.open(CWD, b"/dev/new", fl.O_CREAT | fl.O_WRONLY, 0o666),
        lambda: guest.files.utimens(CWD, b"/dev/null", 0, 0),
    ):
        with refused(errno.EROFS):
            call()


@pytest.fixture
def told(tmp_path: Path) -> Iterator[tuple[Guest, list[int]]]:
    """A guest whose /proc/self/maps counts how often it was made."""
    made: list[int] = []

    def maps() -> bytes:
        made.append(1)
        return b"made %d times\n" % len(made)

    source = Source(
        texts={"meminfo": lambda: b"MemTotal: 1 kB\n", "sys/vm/overcommit_memory": lambda: b"0\n"},
        own={"maps": maps, "exe": Link(lambda: b"/r/file")},
        others={21: Shown({"stat": lambda: b"21 (other) S\n"})},
    )
    with guest_in(tmp_path, source) as guest:
        yield guest, made


def test_texts_are_made_when_they_are_read_from_the_beginning(told: tuple[Guest, list[int]]) -> None:
    guest, made = told
    files = guest.files
    files.stat(CWD, b"/proc/self/maps")
    files.access(CWD, b"/proc/17/maps", os.R_OK)
    assert not made
    fd = files.open(CWD, b"/proc/self/maps", fl.O_RDONLY)
    assert files.read(fd, 5) == b"made "
    assert files.read(fd, 100) == b"1 times\n"
    assert files.pread(fd, 6, 0) == b"made 2"
    assert files.lseek(fd, 5, 0) == 5 and files.read(fd, 1) == b"2"
    with refused(errno.EINVAL):
        files.lseek(fd, 0, 2)
    assert guest.read_all(b"/proc/17/maps") == b"made 3 times\n"
    assert files.fstat(fd).size == 0


def test_the_tree_of_proc(told: tuple[Guest, list[int]]) -> None:
    guest, _ = told
    names = [b"filesystems", b"meminfo", b"mounts", b"net", b"self", b"sys", b"thread-self"]
    assert guest.names(b"/proc")[2:] == [*names, b"17", b"21"]
    assert guest.names(b"/proc/self/")[2:] == [
        b"cwd",
        b"exe",
        b"fd",
        b"fdinfo",
        b"maps",
        b"mountinfo",
        b"mounts",
        b"root",
        b"task",
    ]
    assert guest.names(b"/proc/21")[2:] == [b"cwd", b"fd", b"fdinfo", b"root", b"stat"]
    assert guest.names(b"/proc/self/task")[2:] == [b"17"]
    assert guest.names(b"/proc/21/fd")[2:] == []
    with refused(errno.ENOENT):
        guest.files.readlink(CWD, b"/proc/21/cwd", 99)
    assert guest.read_all(b"/proc/sys/vm/overcommit_memory") == b"0\n"
    assert guest.read_all(b"/proc/mounts") == guest.read_all(b"/proc/self/mounts")
    with refused(errno.ENOENT):
        guest.read_all(b"/proc/22/stat")
    with refused(errno.EACCES):
        guest.files.open(CWD, b"/proc/meminfo", fl.O_RDWR)


@pytest.mark.parametrize("path", [b"/proc/meminfo", b"/dev/null"])
def test_what_is_open_lies_in_the_file_system_of_its_path(told: tuple[Guest, list[int]], path: bytes) -> None:
    files = told[0].files
    fd = files.open(CWD, path, fl.O_RDONLY)
    assert files.fstatfs(fd) == files.statfs(path) == files.statfs(os.path.dirname(path))


def test_links_of_proc(told: tuple[Guest, list[int]]) -> None:
    guest, _ = told
    files = guest.files
    (guest.w / "d").mkdir()
    files.chdir(b"d")
    links = {
        b"/proc/self": b"17",
        b"/proc/self/exe": b"/r/file",
        b"/proc/self/cwd": b"/w/d",
        b"/proc/self/root": b"/",
    }
    assert {path: files.readlink(CWD, path, 99) for path in links} == links
    assert guest.read_all(b"/proc/self/exe") == b"read only"
    assert files.stat(CWD, b"/proc/self/cwd") == files.stat(CWD, b".")
    assert files.stat(CWD, b"/proc/self/root") == files.stat(CWD, b"/")


def test_proc_self_fd_lists_and_names_open_files(guest: Guest) -> None:
    files = guest.files
    fd = guest.create(b"f", b"abc")
    reading, _ = files.pipe()
    event, memory = files.eventfd(0), files.memfd_create(b"name")
    names = guest.names(b"/proc/self/fd")[2:]
    assert names == sorted(b"%d" % n for n in [*range(memory + 1), memory + 1])
    links = {n: files.readlink(CWD, b"/proc/self/fd/%d" % n, 99) for n in (fd, event, memory)}
    assert links == {fd: b"/w/f", event: b"anon_inode:[eventfd]", memory: b"/memfd:name (deleted)"}
    assert files.stat(CWD, b"/proc/self/fd/%d" % reading) == files.fstat(reading)
    assert files.stat(CWD, b"/proc/self/fd/%d" % fd, fl.AT_SYMLINK_NOFOLLOW).mode == 0o120700
    files.rename(CWD, b"f", CWD, b"g")
    assert files.readlink(CWD, b"/proc/self/fd/%d" % fd, 99) == b"/w/g"
    files.unlink(CWD, b"g")
    assert files.readlink(CWD, b"/proc/self/fd/%d" % fd, 99) == b"/w/g (deleted)"
    files.close(guest.create(b"g", b"another"))
    assert guest.read_all(b"/proc/self/fd/%d" % fd) == b"abc"
    with refused(errno.ENXIO):
        files.open(CWD, b"/proc/self/fd/%d" % event, fl.O_RDONLY)
    with refused(errno.ENOENT):
        files.open(CWD, b"/proc/self/fd/99", fl.O_RDONLY)


def test_a_listing_of_descriptors_through_a_held_directory(guest: Guest) -> None:
    files = guest.files
    held = files.open(CWD, b"/proc/self/fd", fl.O_RDONLY | fl.O_DIRECTORY)
    fd = guest.create(b"f")
    assert files.readlink(held, b"%d" % fd, 99) == b"/w/f"
    assert files.fstatfs(held).kind == 0x9FA0
    with pytest.raises(Refused):
        files.open(held, b"x", fl.O_CREAT | fl.O_WRONLY, 0o666)
