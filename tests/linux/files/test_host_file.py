"""Files with data on the host: what the memory manager is told and given."""

from __future__ import annotations

import errno
import os

import pytest

from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.host_file import HostData
from aether_emu.linux.files.inodes import FileKey
from aether_emu.linux.files.open_file import LARGEST_FILE
from tests.linux.files.conftest import CWD, Guest, refused

F_SETFD, F_SETFL, FD_CLOEXEC = 2, 4, 1
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO_RANGE = 1, 2, 8, 16


def data_of(guest: Guest, fd: int) -> HostData:
    file = guest.files.table.file(fd)
    assert isinstance(file, HostData)
    return file


def test_a_mappable_file_has_a_host_descriptor_and_identity(guest: Guest) -> None:
    fd = guest.create(b"f", b"abc")
    status = (guest.w / "f").stat()
    file = data_of(guest, fd)
    assert file.key == (status.st_dev, status.st_ino)
    assert os.pread(file.host_fd, 3, 0) == b"abc"
    assert file.writable_grant
    assert not data_of(guest, guest.files.open(CWD, b"/r/file", fl.O_RDONLY)).writable_grant


def test_a_held_file_outlives_its_descriptors(guest: Guest) -> None:
    fd = guest.create(b"f", b"abc")
    file = data_of(guest, fd)
    file.hold()
    guest.files.close(fd)
    assert os.pread(file.host_fd, 3, 0) == b"abc"
    file.let_go()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.host_fd)


def test_every_change_of_size_is_announced_while_the_host_file_still_has_the_old(guest: Guest) -> None:
    announced: list[tuple[FileKey, int, int, int]] = []
    path = guest.w / "f"

    def told(key: FileKey, old: int, new: int) -> None:
        announced.append((key, old, new, path.stat().st_size))

    fd = guest.create(b"f", b"x" * 100)
    guest.namespace.on_truncate = told
    files = guest.files
    files.ftruncate(fd, 50)
    files.truncate(b"f", 5000)
    files.fallocate(fd, 0, 0, 6000)
    files.fallocate(fd, 0, 0, 10)
    files.fallocate(fd, KEEP_SIZE, 0, 9000)
    files.close(files.open(CWD, b"f", fl.O_WRONLY | fl.O_TRUNC))
    key = data_of(guest, fd).key
    assert announced == [
        (key, 100, 50, 100),
        (key, 50, 5000, 50),
        (key, 5000, 6000, 5000),
        (key, 6000, 6000, 6000),
        (key, 6000, 0, 6000),
    ]
    assert path.stat().st_size == 0


def test_appending_goes_to_the_end_even_by_offset(guest: Guest) -> None:
    files = guest.files
    fd = guest.create(b"f", b"abc")
    files.fcntl(fd, F_SETFL, fl.O_APPEND)
    files.lseek(fd, 0, 0)
    files.write(fd, b"d")
    assert files.lseek(fd, 0, 1) == 4
    files.pwrite(fd, b"e", 0)
    assert (guest.w / "f").read_bytes() == b"abcde"
    with (guest.w / "f").open("ab") as other:
        other.write(b"f")
    files.write(fd, b"g")
    assert (guest.w / "f").read_bytes() == b"abcdefg"


def test_the_whole_file_is_data(guest: Guest) -> None:
    fd = guest.create(b"f")
    guest.files.ftruncate(fd, 1 << 20)
    seek = guest.files.lseek
    assert (seek(fd, 5, 3), seek(fd, 5, 4)) == (5, 1 << 20)
    for whence in (3, 4):
        with refused(errno.ENXIO):
            seek(fd, 1 << 20, whence)
    assert guest.files.fstat(fd).blocks == 2048


def test_positions_end_where_ext4_ends(guest: Guest) -> None:
    fd = guest.create(b"f")
    assert guest.files.lseek(fd, LARGEST_FILE, 0) == LARGEST_FILE
    with refused(errno.EINVAL):
        guest.files.lseek(fd, LARGEST_FILE + 1, 0)
    for offset in ((1 << 63) - 1, (1 << 63) - 2):
        assert guest.files.pread(fd, 10, offset) == b""
        with refused(errno.EFBIG):
            guest.files.pwrite(fd, b"xx", offset)
    with refused(errno.EINVAL):
        guest.files.pread(fd, 1, -1)


def test_fallocate_makes_punches_and_refuses(guest: Guest) -> None:
    files = guest.files
    fd = guest.create(b"f", b"x" * 8192)
    files.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 4096)
    assert (guest.w / "f").read_bytes() == bytes(4096) + b"x" * 4096
    guest.clock.nanoseconds += 9
    files.fallocate(fd, 0, 0, 8192)
    assert files.fstat(fd).mtime == files.fstat(fd).ctime == guest.clock.nanoseconds
    with refused(errno.EOPNOTSUPP):
        files.fallocate(fd, COLLAPSE, 0, 4096)
    for offset, length in ((-1, 1), (0, 0)):
        with refused(errno.EINVAL):
            files.fallocate(fd, 0, offset, length)
    with refused(errno.EFBIG):
        files.fallocate(fd, 0, (1 << 63) - 1, 1)
    for mode in (PUNCH_HOLE, PUNCH_HOLE | KEEP_SIZE | ZERO_RANGE):
        with refused(errno.EOPNOTSUPP):
            files.fallocate(fd, mode, 0, 4096)
    with refused(errno.EBADF):
        files.fallocate(files.open(CWD, b"f", fl.O_RDONLY), 0, 0, 1)
    with refused(errno.ENODEV):
        files.fallocate(files.eventfd(0), 0, 0, 1)


def test_fsync_is_for_what_is_on_storage(guest: Guest) -> None:
    files = guest.files
    files.fsync(guest.create(b"f"))
    files.fsync(files.open(CWD, b".", fl.O_RDONLY))
    for fd in (0, files.pipe()[0], files.open(CWD, b"/dev/null", fl.O_RDONLY)):
        with refused(errno.EINVAL):
            files.fsync(fd)


def test_the_hosts_refusals_reach_the_guest(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = guest.create(b"f", b"abc")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    for name in ("pwrite", "pread", "ftruncate", "fsync"):
        monkeypatch.setattr(os, name, full)
    for call in (
        lambda: guest.files.write(fd, b"x"),
        lambda: guest.files.pread(fd, 1, 0),
        lambda: guest.files.ftruncate(fd, 1),
        lambda: guest.files.fsync(fd),
    ):
        with refused(errno.ENOSPC):
            call()
    monkeypatch.undo()


# Copying


def test_writes_that_the_host_loses_at_the_close_are_told_to_close_alone(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, closed = guest.files, os.close
    opened = [guest.create(b"%d" % number) for number in range(4)]
    files.fcntl(opened[3], F_SETFD, FD_CLOEXEC)

    def full(fd: int) -> None:
        closed(fd)
        raise OSError(errno.EDQUOT, "no room")

    with monkeypatch.context() as patched:
        patched.setattr(os, "close", full)
        with pytest.raises(OSError, match="no room"):
            files.close(opened[0])
        files.dup2(0, opened[1])
        files.close_range(opened[2], opened[2])
        files.close_on_exec()
    assert [fd for fd in opened if fd in files.table.descriptors] == [opened[1]]


def test_sendfile_moves_from_the_position_or_an_offset(guest: Guest) -> None:
    files = guest.files
    source, out = guest.create(b"f", b"0123456789" * 20000), guest.create(b"g")
    files.lseek(source, 5, 0)
    assert files.sendfile(out, source, None, 10) == 10
    assert files.lseek(source, 0, 1) == 15
    assert files.sendfile(out, source, 0, 1 << 30) == 200000
    assert files.lseek(source, 0, 1) == 15
    assert (guest.w / "g").read_bytes() == b"5678901234" + b"0123456789" * 20000
    assert files.sendfile(1, source, 199_998, 10) == 2
    assert guest.streams["stdout"].written == b"89"


def test_sendfile_to_a_pipe_takes_no_more_than_fits(guest: Guest) -> None:
    files = guest.files
    source = guest.create(b"f", b"x" * 100_000)
    files.lseek(source, 0, 0)
    reading, writing = files.pipe(fl.O_NONBLOCK)
    assert files.sendfile(writing, source, None, 100_000) == 65536
    assert files.lseek(source, 0, 1) == 65536
    with refused(errno.EAGAIN):
        files.sendfile(writing, source, None, 10)
    assert files.lseek(source, 0, 1) == 65536
    with refused(errno.EINVAL):
        files.sendfile(source, reading, None, 1)


def test_copy_file_range(guest: Guest) -> None:
    files = guest.files
    source, out = guest.create(b"f", b"abcdef"), guest.create(b"g", b"......")
    assert files.copy_file_range(source, 1, out, 2, 3) == 3
    assert (guest.w / "g").read_bytes() == b"..bcd."
    files.lseek(source, 4, 0)
    assert files.copy_file_range(source, None, out, None, 100) == 2
    assert (guest.w / "g").read_bytes() == b"..bcd.ef"
    with refused(errno.EINVAL):
        files.copy_file_range(source, 0, source, 1, 3)
    with refused(errno.EINVAL):
        files.copy_file_range(source, 0, files.pipe()[1], None, 3)
    with refused(errno.EISDIR):
        files.copy_file_range(files.open(CWD, b".", 0), 0, out, 0, 3)
