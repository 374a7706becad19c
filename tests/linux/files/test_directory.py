"""Reading directories with getdents64."""

from __future__ import annotations

import errno
import os

from aether_emu.linux.files import flags as fl
from tests.linux.files.conftest import CWD, Guest, parse_entries, refused, standard_input_closed


def test_entries_are_whole_aligned_and_resume_where_the_buffer_ended(guest: Guest) -> None:
    for number in range(50):
        (guest.w / ("n" * number + "x")).touch()
    fd = guest.files.open(CWD, b".", fl.O_RDONLY)
    names, pieces = [], 0
    while data := guest.files.getdents64(fd, 300):
        assert len(data) <= 300 and len(data) % 8 == 0
        names += [name for name, _, _ in parse_entries(data)]
        pieces += 1
    assert names[:2] == [b".", b".."] and names[2:] == sorted(names[2:]) and len(names) == 52
    assert pieces > 5


def test_types_of_entries(guest: Guest) -> None:
    (guest.w / "d").mkdir()
    (guest.w / "f").touch()
    (guest.w / "l").symlink_to("f")
    fd = guest.files.open(CWD, b".", fl.O_RDONLY)
    kinds = {name: kind for name, _, kind in parse_entries(guest.files.getdents64(fd, 4096))}
    assert kinds == {b".": 4, b"..": 4, b"d": 4, b"f": 8, b"l": 10}


def test_the_numbers_of_dot_and_dot_dot_are_those_of_stat(guest: Guest) -> None:
    (guest.w / "d").mkdir()
    for path in (b"/", b"/w", b"/w/d", b"/proc/self", b"/dev"):
        fd = guest.files.open(CWD, path, fl.O_RDONLY)
        numbers = {name: number for name, number, _ in parse_entries(guest.files.getdents64(fd, 4096))}
        assert numbers[b"."] == guest.files.stat(fd, b".").ino
        assert numbers[b".."] == guest.files.stat(fd, b"..").ino


def test_positions_can_be_kept_and_sought(guest: Guest) -> None:
    for name in "abcdef":
        (guest.w / name).touch()
    files = guest.files
    fd = files.open(CWD, b".", fl.O_RDONLY)
    files.getdents64(fd, 24 * 4)
    here = files.lseek(fd, 0, 1)
    assert here == 4
    rest = files.getdents64(fd, 4096)
    assert files.getdents64(fd, 4096) == b""
    files.lseek(fd, here, 0)
    assert files.getdents64(fd, 4096) == rest
    with refused(errno.EINVAL):
        files.lseek(fd, -1, 0)


def test_a_listing_is_steady_until_rewound(guest: Guest) -> None:
    """`rm -r` removes what it has just read, and must miss nothing."""
    files = guest.files
    for host_name in "abcd":
        (guest.w / host_name).touch()
    fd = files.open(CWD, b".", fl.O_RDONLY)
    seen = []
    while data := files.getdents64(fd, 24):
        (name, _, _), *_ = parse_entries(data)
        seen.append(name)
        if name not in (b".", b".."):
            files.unlink(CWD, name)
    assert seen == [b".", b"..", b"a", b"b", b"c", b"d"]
    files.lseek(fd, 0, 0)
    assert len(parse_entries(files.getdents64(fd, 4096))) == 2


def test_a_buffer_too_small_for_one_entry_is_einval(guest: Guest) -> None:
    fd = guest.files.open(CWD, b".", fl.O_RDONLY)
    with refused(errno.EINVAL):
        guest.files.getdents64(fd, 23)
    assert parse_entries(guest.files.getdents64(fd, 24))[0][0] == b"."


def test_a_removed_directory_has_no_entries(guest: Guest) -> None:
    guest.files.mkdir(CWD, b"d", 0o777)
    fd = guest.files.open(CWD, b"d", fl.O_RDONLY)
    guest.files.rmdir(CWD, b"d")
    with refused(errno.ENOENT):
        guest.files.getdents64(fd, 4096)
    assert guest.files.fstat(fd).nlink == 0


def test_a_directory_holds_no_bytes_and_a_file_no_entries(guest: Guest) -> None:
    files = guest.files
    fd = files.open(CWD, b".", fl.O_RDONLY)
    with refused(errno.EISDIR):
        files.read(fd, 1)
    with refused(errno.EISDIR):
        files.pread(fd, 1, 0)
    with refused(errno.EBADF):
        files.write(fd, b"x")
    with refused(errno.EINVAL):
        files.ftruncate(fd, 0)
    with refused(errno.ENOTDIR):
        files.getdents64(guest.create(b"f"), 4096)


def test_listings_count_among_what_open_files_hold(guest: Guest) -> None:
    for index in range(50):
        (guest.w / f"name-{index:03}").touch()
    account = guest.namespace
    account.memory_limit = 20_000
    fds = [guest.files.open(CWD, b"/w", fl.O_RDONLY) for _ in range(2)]
    guest.files.getdents64(fds[0], 4096)
    assert 0 < account.memory_used < account.memory_limit
    with refused(errno.ENOMEM):
        guest.files.getdents64(fds[1], 4096)
    guest.files.lseek(fds[0], 0, 0)
    assert account.memory_used == 0
    guest.files.getdents64(fds[1], 4096)
    guest.files.close(fds[1])
    assert account.memory_used == 0


def test_the_hosts_descriptor_0_is_as_good_as_any(guest: Guest) -> None:
    with standard_input_closed():
        fd = guest.files.open(CWD, b"/w", fl.O_RDONLY)
        assert os.path.samefile("/proc/self/fd/0", guest.w)
        guest.w.chmod(0o700)
        assert guest.files.fstat(fd).mode & 0o777 == 0o700
        guest.w.rmdir()
        with refused(errno.ENOENT):
            guest.files.getdents64(fd, 4096)
        guest.files.close(fd)
        assert not os.path.lexists("/proc/self/fd/0")
