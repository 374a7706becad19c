"""What the guest sees of its grants, and that none of it depends on the host."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path

import pytest

from aether_emu.clock import EPOCH_NS
from aether_emu.errors import ConfigError
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.mounts import Bind
from aether_emu.linux.files.namespace import Namespace
from tests.linux.files.conftest import CWD, Guest, Source, host_descriptors, parse_entries, refused


def chance(count: int) -> bytes:
    return bytes(count)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small host directory."""
    (tmp_path / "root" / "etc").mkdir(parents=True)
    (tmp_path / "root" / "etc" / "passwd").write_text("root's")
    (tmp_path / "root" / "usr" / "lib").mkdir(parents=True)
    (tmp_path / "root" / "lib").symlink_to("usr/lib")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("other's")
    return tmp_path


class Opened:
    """A process in a namespace, closed together."""

    def __init__(
        self, root: Path | None, binds: list[Bind], cwd: str = "/", *, memory: int = 512 << 20
    ) -> None:
        self.namespace = Namespace(root, binds, cwd, random=chance, kernel_memory=memory)
        source = Source()
        self.files = source.files = Files(self.namespace, source)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.files.close_all()
        self.namespace.close()

    def names(self, path: bytes) -> list[bytes]:
        fd = self.files.open(CWD, path, fl.O_RDONLY)
        try:
            return [name for name, _, _ in parse_entries(self.files.getdents64(fd, 1 << 16))][2:]
        finally:
            self.files.close(fd)

    def read(self, path: bytes) -> object:
        fd = self.files.open(CWD, path, fl.O_RDONLY)
        try:
            return self.files.read(fd, 100)
        finally:
            self.files.close(fd)


def test_without_a_root_only_the_ways_to_grants_exist(tree: Path) -> None:
    granted = Bind(tree / "other" / "file", "/a/b/file")
    with Opened(None, [granted, Bind(tree / "other", "/a/c")], "/a/c") as it:
        assert it.names(b"/") == [b"a", b"dev", b"proc", b"sys", b"tmp"]
        assert it.names(b"/a") == [b"b", b"c"]
        assert it.names(b"/a/b") == [b"file"]
        assert it.read(b"/a/b/file") == b"other's"
        assert it.files.getcwd() == b"/a/c"
        with refused(errno.ENOENT):
            it.read(b"/etc/passwd")
        with refused(errno.EROFS):
            it.files.mkdir(CWD, b"/a/new", 0o777)
        with refused(errno.EROFS):
            it.files.open(CWD, b"/new", fl.O_WRONLY | fl.O_CREAT, 0o666)


def test_the_directory_above_a_grant_is_the_guests_and_not_the_hosts(tree: Path) -> None:
    with Opened(None, [Bind(tree / "other", "/a/c")], "/a/c") as it:
        listed = it.files.getdents64(it.files.open(CWD, b"/a/c", fl.O_RDONLY), 4096)
        numbers = {name: number for name, number, _ in parse_entries(listed)}
        assert numbers[b".."] == it.files.stat(CWD, b"/a").ino != (tree / "other" / "..").stat().st_ino


def test_binds_lie_over_the_root_and_show_in_its_listings(tree: Path) -> None:
    binds = [Bind(tree / "other", "/mnt/deep"), Bind(tree / "other" / "file", "/etc/passwd")]
    with Opened(tree / "root", binds) as it:
        assert it.names(b"/") == [b"dev", b"etc", b"lib", b"mnt", b"proc", b"sys", b"tmp", b"usr"]
        assert it.read(b"/etc/passwd") == b"other's"
        assert it.names(b"/mnt") == [b"deep"]
        assert it.read(b"/mnt/deep/../../mnt/deep/file") == b"other's"


def test_a_way_to_a_grant_that_the_host_does_not_have_is_not_writable(tree: Path) -> None:
    """Even within a writable grant: there is no directory in which a name could be made."""
    binds = [Bind(tree / "root", "/w", True), Bind(tree / "other", "/w/way/other")]
    with Opened(None, binds, "/w") as it:
        it.files.mkdir(CWD, b"/w/new", 0o777)
        with refused(errno.EROFS):
            it.files.mkdir(CWD, b"/w/way/new", 0o777)


def test_a_bind_below_a_link_lies_where_the_link_leads(tree: Path) -> None:
    with Opened(tree / "root", [Bind(tree / "other" / "file", "/lib/ld.so")]) as it:
        assert it.names(b"/usr/lib") == [b"ld.so"]
        assert it.read(b"/lib/ld.so") == b"other's"


def test_a_bind_on_the_same_path_replaces_the_one_before(tree: Path) -> None:
    before = host_descriptors()
    with Opened(None, [Bind(tree / "root", "/x"), Bind(tree / "other", "/x")]) as it:
        assert it.names(b"/x") == [b"file"]
    assert host_descriptors() == before


def test_a_root_that_is_writable_by_bind_still_pins_its_mounts(tree: Path) -> None:
    with Opened(None, [Bind(tree / "root", "/", True), Bind(tree / "other", "/etc/in")]) as it:
        it.files.mkdir(CWD, b"/new", 0o777)
        for path in (b"/etc", b"/etc/in", b"/dev"):
            with refused(errno.EBUSY):
                it.files.rename(CWD, path, CWD, b"/moved")
            with refused(errno.EBUSY):
                it.files.rmdir(CWD, path)
            with refused(errno.EBUSY):
                it.files.rename(CWD, b"/new", CWD, path, fl.RENAME_EXCHANGE)


@pytest.mark.parametrize(
    ("binds", "cwd"),
    [
        ([("missing", "/x")], "/"),
        ([("other", "relative")], "/"),
        ([("other", "/a/../b")], "/"),
        ([("other/file", "/")], "/"),
        ([("other/file", "/f"), ("other", "/f/below")], "/"),
        ([], "/nowhere"),
        ([("other/file", "/f")], "/f"),
        ([], "."),
        ([("/proc/self", "/p")], "/"),
        ([("/proc/self/status", "/p")], "/"),
    ],
)
def test_grants_that_cannot_be_made_are_refused_at_the_start(
    tree: Path, binds: list[tuple[str, str]], cwd: str
) -> None:
    before = host_descriptors()
    with pytest.raises(ConfigError):
        Namespace(None, [Bind(tree / host, guest) for host, guest in binds], cwd, random=chance)
    assert host_descriptors() == before


def test_a_grant_of_everything_does_not_include_the_hosts_proc() -> None:
    """Under its own name it is hidden by the guest's; through another it would show this process."""
    with Opened(Path("/"), [Bind(Path("/"), "/again")]) as it:
        assert it.names(b"/again/proc") == []
        assert it.names(b"/again/sys") == []
        with refused(errno.ENOENT):
            it.read(b"/again/proc/self/status")
        own = [b"filesystems", b"mounts", b"net", b"self", b"thread-self", b"17"]
        assert it.names(b"/proc") == own


def test_listings_are_sorted_and_numbers_follow_first_sight(guest: Guest) -> None:
    for host_name in ("z", "b", "B", "a"):
        (guest.w / host_name).touch()
    os.link(guest.w / "z", guest.w / "c")
    fd = guest.files.open(CWD, b".", fl.O_RDONLY)
    found = parse_entries(guest.files.getdents64(fd, 4096))
    assert [name for name, _, _ in found] == [b".", b"..", b"B", b"a", b"b", b"c", b"z"]
    numbers = {name: number for name, number, _ in found}
    assert numbers[b"z"] == numbers[b"c"]
    first = numbers[b"B"]
    assert [numbers[name] for name in (b"B", b"a", b"b", b"c")] == [first, first + 1, first + 2, first + 3]
    for name, number, _ in found[2:]:
        assert guest.files.stat(CWD, name).ino == number


def test_two_copies_of_a_tree_look_the_same(tmp_path: Path) -> None:
    """Inode numbers and order of the host, and the times of directories and of reading, differ between the
    copies; nothing the guest sees does.
    """
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "d").mkdir(parents=True)
    for number in range(20):
        (first / f"f{number}").write_text("x" * number)
        os.utime(first / f"f{number}", (number, 1))
    (first / "d" / "link").symlink_to("../f3")
    second.mkdir()
    for original in sorted(first.iterdir(), reverse=True):
        copy = second / original.name
        if original.is_dir():
            shutil.copytree(original, copy, symlinks=True)
        else:
            copy.write_bytes(original.read_bytes())
            os.utime(copy, (1, 1))
    seen = []
    for top in (first, second):
        with Opened(None, [Bind(top, "/w")], "/w") as it:
            listing = parse_entries(it.files.getdents64(it.files.open(CWD, b".", 0), 1 << 16))
            seen.append([listing, [it.files.stat(CWD, name) for name, _, _ in listing]])
    assert seen[0] == seen[1]


def test_everything_belongs_to_the_guest_and_has_one_time_but_for_when_files_changed(guest: Guest) -> None:
    (guest.w / "d").mkdir()
    (guest.w / "f").write_bytes(b"x" * 5000)
    os.utime(guest.w / "f", ns=(7, 1_000_000_005))
    directory, file = guest.files.stat(CWD, b"d"), guest.files.stat(CWD, b"f")
    for stat in (directory, file):
        assert (stat.uid, stat.gid, stat.atime, stat.ctime) == (1000, 1000, EPOCH_NS, EPOCH_NS)
    assert (directory.mtime, file.mtime) == (EPOCH_NS, 1_000_000_005)
    assert (directory.size, directory.nlink) == (4096, 1)
    assert (file.size, file.blocks, file.nlink) == (5000, 16, 1)
    assert guest.files.stat(CWD, b"/r/file").dev != file.dev


def test_what_the_guest_changes_has_the_virtual_time(guest: Guest) -> None:
    files, clock = guest.files, guest.clock
    (guest.w / "f").write_bytes(b"old")
    fd = files.open(CWD, b"f", fl.O_RDWR)
    files.write(fd, b"new")
    assert files.fstat(fd).mtime == files.stat(CWD, b"f").mtime == clock.nanoseconds
    clock.nanoseconds += 5
    files.chmod(CWD, b"f", 0o600)
    stat = files.fstat(fd)
    assert (stat.mtime, stat.ctime) == (clock.nanoseconds - 5, clock.nanoseconds)
    assert files.stat(CWD, b".").mtime == EPOCH_NS
    files.mkdir(CWD, b"d", 0o777)
    assert files.stat(CWD, b".").mtime == files.stat(CWD, b"d").mtime == clock.nanoseconds


def test_a_host_files_time_is_what_it_was_at_first_sight_and_never_after_the_machines(guest: Guest) -> None:
    for name, time in (("f", 10**9), ("future", 2 * EPOCH_NS)):
        (guest.w / name).write_bytes(b"old")
        os.utime(guest.w / name, ns=(time, time))
    assert [guest.files.stat(CWD, name).mtime for name in (b"f", b"future")] == [10**9, EPOCH_NS]
    os.utime(guest.w / "f", ns=(5, 5))  # as a store to a shared mapping does, at a time of the host
    assert guest.files.stat(CWD, b"f").mtime == 10**9


def test_a_new_file_never_inherits_a_removed_ones_number_or_times(guest: Guest) -> None:
    """The host gives a freed inode number out again at once."""
    files = guest.files
    files.close(guest.create(b"f", b"x"))
    old = files.stat(CWD, b"f")
    guest.clock.nanoseconds += 1
    files.unlink(CWD, b"f")
    files.close(guest.create(b"f"))
    new = files.stat(CWD, b"f")
    assert new.ino > old.ino
    assert new.mtime == old.mtime + 1


def test_an_unlinked_open_file_keeps_its_number(guest: Guest) -> None:
    files = guest.files
    fd = guest.create(b"f")
    number = files.fstat(fd).ino
    files.unlink(CWD, b"f")
    assert files.fstat(fd).ino == files.stat(CWD, b"/proc/self/fd/%d" % fd).ino == number
    assert files.fstat(fd).nlink == 0


@pytest.mark.parametrize("kind", ["fifo", "socket", "link to fifo"])
def test_what_could_hang_or_touch_the_host_cannot_be_opened(guest: Guest, kind: str) -> None:
    if kind == "socket":
        listener = socket.socket(socket.AF_UNIX)
        here = os.open(".", os.O_RDONLY)
        os.chdir(guest.w)
        listener.bind("special")
        os.fchdir(here)
        os.close(here)
        listener.close()
    else:
        os.mkfifo(guest.w / "special")
    name = b"special"
    if kind == "link to fifo":
        (guest.w / "link").symlink_to("special")
        name = b"link"
    for flags in (fl.O_RDONLY, fl.O_WRONLY | fl.O_NONBLOCK, fl.O_RDWR | fl.O_TRUNC, fl.O_RDWR | fl.O_CREAT):
        with refused(errno.EACCES):
            guest.files.open(CWD, name, flags, 0o666)
    with refused(errno.EACCES):
        guest.files.access(CWD, name, os.R_OK)
    with refused(errno.EPERM):
        guest.files.chmod(CWD, name, 0o777)
    assert guest.files.stat(CWD, name).mode >> 12 == (0o14 if kind == "socket" else 0o1)
    held = guest.files.open(CWD, name, fl.O_PATH)
    with refused(errno.EACCES):
        guest.files.open(CWD, b"/proc/self/fd/%d" % held, fl.O_RDONLY)
    guest.files.unlink(CWD, b"special")


def test_a_host_device_in_a_grant_can_be_looked_at_but_not_opened(tmp_path: Path) -> None:
    with Opened(None, [Bind(Path("/dev/null"), "/d/null", True)]) as it:
        stat = it.files.stat(CWD, b"/d/null")
        assert (stat.mode >> 12, stat.rdev) == (0o2, os.makedev(1, 3))
        for flags in (fl.O_RDONLY, fl.O_WRONLY):
            with refused(errno.EACCES):
                it.files.open(CWD, b"/d/null", flags)


def test_a_grant_stays_what_it_was_when_its_host_name_changes(tree: Path) -> None:
    with Opened(None, [Bind(tree / "other", "/w")], "/w") as it:
        (tree / "other").rename(tree / "moved")
        (tree / "other").symlink_to("/")
        assert it.names(b"/w") == [b"file"]
        it.files.chdir(b"..")
        assert it.files.getcwd() == b"/"


def test_mount_tables_escape_what_separates_fields(tree: Path) -> None:
    with Opened(None, [Bind(tree / "other", "/a b")]) as it:
        assert b"ext4 /a\\040b ext4 ro,nosuid,relatime 0 0\n" in it.namespace.mounts.table_text()
        assert b" / /a\\040b ro,nosuid,relatime - ext4 ext4 ro\n" in it.namespace.mounts.info_text()


def test_statfs_shows_a_fixed_size_and_what_can_be_written(guest: Guest) -> None:
    writable, fixed = guest.files.statfs(b"/w"), guest.files.statfs(b"/r")
    assert (writable.kind, writable.blocks, writable.free) == (0xEF53, 1 << 24, 1 << 23)
    assert (writable.read_only, fixed.read_only) == (False, True)
    assert guest.files.statfs(b"/proc/self").kind == 0x9FA0
    assert guest.files.fstatfs(0).kind == 0x09041934
