"""Calls that alter the tree, beyond what the equivalence test shows: read-only grants, identity, renames."""

from __future__ import annotations

import errno
import os
import stat as modes
from collections.abc import Callable

import pytest

from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.files import Files
from tests.linux.files.conftest import CWD, Guest, refused, standard_input_closed

_WRITES: dict[str, Callable[[Files], object]] = {
    "create": lambda files: files.open(CWD, b"/r/new", fl.O_CREAT | fl.O_RDONLY, 0o666),
    "open to write": lambda files: files.open(CWD, b"/r/file", fl.O_WRONLY),
    "open to read and write": lambda files: files.open(CWD, b"/r/file", fl.O_RDWR | fl.O_CREAT, 0o666),
    "open to truncate": lambda files: files.open(CWD, b"/r/file", fl.O_RDONLY | fl.O_TRUNC),
    "truncate": lambda files: files.truncate(b"/r/file", 0),
    "mkdir": lambda files: files.mkdir(CWD, b"/r/new", 0o777),
    "rmdir": lambda files: files.rmdir(CWD, b"/r/file"),
    "unlink": lambda files: files.unlink(CWD, b"/r/file"),
    "unlink nothing": lambda files: files.unlink(CWD, b"/r/new"),
    "symlink": lambda files: files.symlink(b"x", CWD, b"/r/new"),
    "link": lambda files: files.link(CWD, b"/r/file", CWD, b"/r/new"),
    "rename": lambda files: files.rename(CWD, b"/r/file", CWD, b"/r/new"),
    "mknod": lambda files: files.mknod(CWD, b"/r/new", 0o100666),
    "chmod": lambda files: files.chmod(CWD, b"/r/file", 0o777),
    "fchmod": lambda files: files.fchmod(files.open(CWD, b"/r/file", fl.O_RDONLY), 0o777),
    "chown": lambda files: files.chown(CWD, b"/r/file", 1000, 1000),
    "utimens": lambda files: files.utimens(CWD, b"/r/file", 0, 0),
    "futimens": lambda files: files.utimens(files.open(CWD, b"/r/file", 0), b"", 0, 0, fl.AT_EMPTY_PATH),
    "access to write": lambda files: files.access(CWD, b"/r/file", os.W_OK),
    "through a descriptor": lambda files: files.mkdir(files.open(CWD, b"/r", fl.O_PATH), b"new", 0o777),
}


@pytest.mark.parametrize("name", _WRITES)
def test_nothing_in_a_read_only_grant_can_be_changed(guest: Guest, name: str) -> None:
    before = (guest.r / "file").stat()
    with refused(errno.EROFS):
        _WRITES[name](guest.files)
    after = (guest.r / "file").stat()
    assert os.listdir(guest.r) == ["file"]
    for field in ("st_mode", "st_size", "st_mtime_ns", "st_ctime_ns", "st_nlink"):
        assert getattr(before, field) == getattr(after, field)


def test_what_exists_in_a_read_only_grant_says_so_first(guest: Guest) -> None:
    with refused(errno.EEXIST):
        guest.files.mkdir(CWD, b"/r/file", 0o777)
    with refused(errno.EEXIST):
        guest.files.open(CWD, b"/r/file", fl.O_CREAT | fl.O_EXCL | fl.O_WRONLY, 0o666)
    with refused(errno.EISDIR):
        guest.files.open(CWD, b"/r", fl.O_WRONLY)
    guest.files.access(CWD, b"/r/file", os.R_OK)


def test_the_guests_umask_counts_and_ours_does_not(guest: Guest) -> None:
    ours = os.umask(0o077)
    try:
        files = guest.files
        assert files.umask(0o027) == 0o022
        files.close(files.open(CWD, b"f", fl.O_CREAT | fl.O_WRONLY, 0o666))
        files.mkdir(CWD, b"d", 0o777)
        files.mknod(CWD, b"n", 0o666)
        found = [modes.S_IMODE((guest.w / name).stat().st_mode) for name in "fdn"]
        assert found == [0o640, 0o750, 0o640]
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(ours)


def test_no_file_ever_gets_a_set_id_bit(guest: Guest) -> None:
    files = guest.files
    files.close(files.open(CWD, b"f", fl.O_CREAT | fl.O_WRONLY, 0o6755))
    files.mknod(CWD, b"n", 0o106755)
    for mode in (0o4755, 0o2755):
        with refused(errno.EPERM):
            files.chmod(CWD, b"f", mode)
    assert {modes.S_IMODE((guest.w / name).stat().st_mode) & 0o6000 for name in "fn"} == {0}
    files.mkdir(CWD, b"d", 0o777)
    files.chmod(CWD, b"d", 0o2755)


@pytest.mark.parametrize("kind", [modes.S_IFCHR, modes.S_IFBLK])
def test_no_devices_can_be_made_by_mknod(guest: Guest, kind: int) -> None:
    with refused(errno.EPERM):
        guest.files.mknod(CWD, b"n", kind | 0o666)
    assert not os.path.lexists(guest.w / "n")


def test_owner_can_be_set_to_what_it_is(guest: Guest) -> None:
    files = guest.files
    files.close(guest.create(b"f"))
    host = (guest.w / "f").stat()
    files.chown(CWD, b"f", 1000, 1000)
    files.chown(CWD, b"f", 0xFFFFFFFF, -1)
    for uid, gid in ((0, 1000), (1000, 0)):
        with refused(errno.EPERM):
            files.chown(CWD, b"f", uid, gid)
    assert ((guest.w / "f").stat().st_uid, (guest.w / "f").stat().st_gid) == (host.st_uid, host.st_gid)


def test_times_are_shown_and_reach_the_host(guest: Guest) -> None:
    files = guest.files
    (guest.w / "f").touch()
    (guest.w / "link").symlink_to("f")
    files.utimens(CWD, b"f", 5, None)
    files.utimens(CWD, b"link", None, 7 * 10**9)
    stat = files.stat(CWD, b"f")
    assert (stat.atime, stat.mtime, stat.ctime) == (5, 7 * 10**9, guest.clock.nanoseconds)
    assert ((guest.w / "f").stat().st_atime_ns, (guest.w / "f").stat().st_mtime_ns) == (5, 7 * 10**9)
    files.utimens(CWD, b"link", 9, None, fl.AT_SYMLINK_NOFOLLOW)
    assert files.stat(CWD, b"link", fl.AT_SYMLINK_NOFOLLOW).atime == 9
    assert files.stat(CWD, b"f").atime == 5
    fd = files.open(CWD, b"f", fl.O_RDONLY)
    files.utimens(fd, b"", 11, None, fl.AT_EMPTY_PATH)
    assert files.fstat(fd).atime == 11
    with refused(errno.EINVAL):
        files.utimens(CWD, b"f", 10**30, None)


def test_rename_can_exchange_and_refuse_to_replace(guest: Guest) -> None:
    files = guest.files
    a, b = guest.create(b"a", b"a's"), guest.create(b"b", b"b's")
    with refused(errno.EEXIST):
        files.rename(CWD, b"a", CWD, b"b", fl.RENAME_NOREPLACE)
    files.rename(CWD, b"a", CWD, b"b", fl.RENAME_EXCHANGE)
    assert guest.read_all(b"a") == b"b's"
    names = [files.readlink(CWD, b"/proc/self/fd/%d" % fd, 99) for fd in (a, b)]
    assert names == [b"/w/b", b"/w/a"]
    with refused(errno.EINVAL):
        files.rename(CWD, b"a", CWD, b"b", 4)


def test_a_replaced_file_stays_what_it_was_for_those_who_have_it_open(guest: Guest) -> None:
    files = guest.files
    old = guest.create(b"f", b"old")
    files.close(guest.create(b"g", b"new"))
    number = files.fstat(old).ino
    files.rename(CWD, b"g", CWD, b"f")
    assert files.pread(old, 9, 0) == b"old"
    assert files.readlink(CWD, b"/proc/self/fd/%d" % old, 99) == b"/w/f (deleted)"
    assert files.fstat(old).ino == number != files.stat(CWD, b"f").ino


def test_hard_links_share_number_and_count(guest: Guest) -> None:
    files = guest.files
    fd = guest.create(b"a")
    files.link(CWD, b"a", CWD, b"b")
    files.link(CWD, b"/proc/self/fd/%d" % fd, CWD, b"c", fl.AT_SYMLINK_FOLLOW)
    files.link(fd, b"", CWD, b"d", fl.AT_EMPTY_PATH)
    stats = [files.stat(CWD, name) for name in (b"a", b"b", b"c", b"d")]
    assert {stat.ino for stat in stats} == {files.fstat(fd).ino}
    assert {stat.nlink for stat in stats} == {4}
    files.unlink(CWD, b"a")
    assert files.stat(CWD, b"b").ino == stats[0].ino


def test_a_link_to_a_link_links_the_link(guest: Guest) -> None:
    guest.files.symlink(b"nowhere", CWD, b"l")
    guest.files.link(CWD, b"l", CWD, b"m")
    assert guest.files.readlink(CWD, b"m", 99) == b"nowhere"


def test_names_may_be_any_bytes(guest: Guest) -> None:
    name = bytes(range(1, 256)).replace(b"/", b"")[:120] + b"\xff\xfe"
    guest.files.close(guest.create(name, b"x"))
    assert guest.names(b".") == [b".", b"..", name]
    assert guest.read_all(name) == b"x"
    assert os.listdir(os.fsencode(guest.w)) == [name]


def test_o_tmpfile_is_not_supported_and_says_so(guest: Guest) -> None:
    with refused(errno.EOPNOTSUPP):
        guest.files.open(CWD, b".", fl.O_TMPFILE_BIT | fl.O_DIRECTORY | fl.O_RDWR, 0o600)
    with refused(errno.EINVAL):
        guest.files.open(CWD, b".", fl.O_TMPFILE_BIT | fl.O_DIRECTORY | fl.O_RDONLY, 0o600)


def test_a_name_that_comes_and_goes_on_the_host_ends_the_call(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def taken(path: bytes, how: int, *rest: int, dir_fd: int | None = None) -> int:
        if how & os.O_CREAT:
            raise FileExistsError(errno.EEXIST, "another was faster")
        return real_open(path, how, *rest, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", taken)
    with refused(errno.EBUSY):
        guest.files.open(CWD, b"f", fl.O_CREAT | fl.O_WRONLY, 0o666)


def test_a_removed_name_is_not_revived_by_a_namesake(guest: Guest) -> None:
    """The file lives on under its other name, so its link count does not tell."""
    files = guest.files
    fd = guest.create(b"a")
    files.link(CWD, b"a", CWD, b"other")
    files.unlink(CWD, b"a")
    files.close(guest.create(b"a"))
    files.rename(CWD, b"a", CWD, b"moved")
    assert files.readlink(CWD, b"/proc/self/fd/%d" % fd, 99) == b"/w/a (deleted)"


def test_nothing_is_remembered_of_files_that_are_gone(guest: Guest) -> None:
    files = guest.files
    before = guest.namespace.inodes.capture()["inodes"]
    files.close(guest.create(b"f"))
    files.mkdir(CWD, b"d", 0o777)
    files.unlink(CWD, b"f")
    files.rmdir(CWD, b"d")
    after = guest.namespace.inodes.capture()["inodes"]
    assert isinstance(before, list) and isinstance(after, list)
    assert len(after) <= len(before) + 1, "only the directory that held them is new"


def test_a_file_that_the_host_opens_at_descriptor_0_gets_another_name(guest: Guest) -> None:
    guest.files.close(guest.create(b"/w/one", b"contents"))
    with standard_input_closed():
        guest.files.link(CWD, b"/w/one", CWD, b"/w/two")
        guest.files.rename(CWD, b"/w/two", CWD, b"/w/three")
    assert guest.read_all(b"/w/three") == b"contents"
