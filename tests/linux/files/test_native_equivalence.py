"""The same random calls, by us on the host and by a guest on a copy, give the same results and errnos."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat as modes
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files import host
from tests.linux.files.conftest import CWD, Guest, guest_in, parse_entries

# Both sides stand so deep that no `..` of a path or of forty links leaves the directories compared.
_DEPTH = 48

# Disks are slow at what these calls do most; any file system serves.
_FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

_HOST_FLAGS = {
    fl.O_CREAT: os.O_CREAT,
    fl.O_EXCL: os.O_EXCL,
    fl.O_TRUNC: os.O_TRUNC,
    fl.O_APPEND: os.O_APPEND,
    fl.O_DIRECTORY: os.O_DIRECTORY,
    fl.O_NOFOLLOW: os.O_NOFOLLOW,
    fl.O_PATH: os.O_PATH,
}


class Native:
    """Calls on the host, relative to a directory descriptor. Its open files are numbered like the guest's."""

    def __init__(self, top: Path) -> None:
        self.base = os.open(top, os.O_PATH | os.O_DIRECTORY)
        self.open_fds: list[int] = []

    def close_all(self) -> None:
        for fd in (*self.open_fds, self.base):
            os.close(fd)

    def open(self, path: bytes, flags: int, mode: int) -> int:
        how = flags & fl.O_ACCMODE | sum(theirs for ours, theirs in _HOST_FLAGS.items() if flags & ours)
        fd = os.open(path, how, mode, dir_fd=self.base)
        self.open_fds.append(fd)
        return fcntl.fcntl(fd, fcntl.F_GETFL) & ~fl.O_LARGEFILE

    def close(self, n: int) -> None:
        os.close(self.open_fds.pop(n))

    def dup(self, n: int) -> None:
        self.open_fds.append(os.dup(self.open_fds[n]))

    def read(self, n: int, count: int) -> bytes:
        return os.read(self.open_fds[n], count)

    def write(self, n: int, data: bytes) -> int:
        return os.write(self.open_fds[n], data)

    def pread(self, n: int, count: int, offset: int) -> bytes:
        return os.pread(self.open_fds[n], count, offset)

    def pwrite(self, n: int, data: bytes, offset: int) -> int:
        return os.pwrite(self.open_fds[n], data, offset)

    def lseek(self, n: int, offset: int, whence: int) -> int:
        if modes.S_ISDIR(os.fstat(self.open_fds[n]).st_mode):
            raise OSError(errno.EISDIR, "positions of directories are not compared")
        return os.lseek(self.open_fds[n], offset, whence)

    def ftruncate(self, n: int, size: int) -> None:
        os.ftruncate(self.open_fds[n], size)

    def fstat(self, n: int) -> tuple[int, int, int]:
        return _visible(os.fstat(self.open_fds[n]))

    def stat(self, path: bytes, follow: bool) -> tuple[int, int, int]:
        return _visible(os.stat(path, dir_fd=self.base, follow_symlinks=follow))

    def entries(self, path: bytes) -> list[tuple[bytes, int]]:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.base)
        try:
            with os.scandir(fd) as found:
                return sorted((os.fsencode(e.name), _kind(e)) for e in found)
        finally:
            os.close(fd)

    def access(self, path: bytes, mode: int) -> bool:
        return os.access(path, mode, dir_fd=self.base, effective_ids=True)

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(path, dir_fd=self.base)

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(path, mode, dir_fd=self.base)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(path, dir_fd=self.base)

    def unlink(self, path: bytes) -> None:
        os.unlink(path, dir_fd=self.base)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, path, dir_fd=self.base)

    def link(self, old: bytes, new: bytes, follow: bool) -> None:
        os.link(old, new, src_dir_fd=self.base, dst_dir_fd=self.base, follow_symlinks=follow)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        host.rename_exactly(self.base, old, self.base, new, flags)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(path, mode, dir_fd=self.base)

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(b"/proc/self/fd/%d/%s" % (self.base, path) if path else b"", size)


class Emulated:
    """The same calls by a guest."""

    def __init__(self, guest: Guest) -> None:
        self.files = guest.files
        self.open_fds: list[int] = []

    def open(self, path: bytes, flags: int, mode: int) -> int:
        fd = self.files.open(CWD, path, flags, mode)
        self.open_fds.append(fd)
        return self.files.fcntl(fd, fcntl.F_GETFL, 0) & ~fl.O_LARGEFILE

    def close(self, n: int) -> None:
        self.files.close(self.open_fds.pop(n))

    def dup(self, n: int) -> None:
        self.open_fds.append(self.files.dup(self.open_fds[n]))

    def read(self, n: int, count: int) -> object:
        return self.files.read(self.open_fds[n], count)

    def write(self, n: int, data: bytes) -> object:
        return self.files.write(self.open_fds[n], data)

    def pread(self, n: int, count: int, offset: int) -> bytes:
        return self.files.pread(self.open_fds[n], count, offset)

    def pwrite(self, n: int, data: bytes, offset: int) -> int:
        return self.files.pwrite(self.open_fds[n], data, offset)

    def lseek(self, n: int, offset: int, whence: int) -> int:
        if self.files.fstat(self.open_fds[n]).is_directory:
            raise Refused(errno.EISDIR)
        return self.files.lseek(self.open_fds[n], offset, whence)

    def ftruncate(self, n: int, size: int) -> None:
        self.files.ftruncate(self.open_fds[n], size)

    def fstat(self, n: int) -> tuple[int, int, int]:
        return _visible(self.files.fstat(self.open_fds[n]))

    def stat(self, path: bytes, follow: bool) -> tuple[int, int, int]:
        return _visible(self.files.stat(CWD, path, 0 if follow else fl.AT_SYMLINK_NOFOLLOW))

    def entries(self, path: bytes) -> list[tuple[bytes, int]]:
        fd = self.files.open(CWD, path, fl.O_RDONLY | fl.O_DIRECTORY)
        try:
            found = parse_entries(self.files.getdents64(fd, 1 << 16))
        finally:
            self.files.close(fd)
        assert [name for name, _, _ in found[:2]] == [b".", b".."]
        return [(name, kind) for name, _, kind in found[2:]]

    def access(self, path: bytes, mode: int) -> bool:
        try:
            self.files.access(CWD, path, mode)
        except Refused:
            return False
        return True

    def readlink(self, path: bytes) -> bytes:
        return self.files.readlink(CWD, path, 4096)

    def mkdir(self, path: bytes, mode: int) -> None:
        self.files.mkdir(CWD, path, mode)

    def rmdir(self, path: bytes) -> None:
        self.files.rmdir(CWD, path)

    def unlink(self, path: bytes) -> None:
        self.files.unlink(CWD, path)

    def symlink(self, target: bytes, path: bytes) -> None:
        self.files.symlink(target, CWD, path)

    def link(self, old: bytes, new: bytes, follow: bool) -> None:
        self.files.link(CWD, old, CWD, new, fl.AT_SYMLINK_FOLLOW if follow else 0)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        self.files.rename(CWD, old, CWD, new, flags)

    def chmod(self, path: bytes, mode: int) -> None:
        self.files.chmod(CWD, path, mode)

    def truncate(self, path: bytes, size: int) -> None:
        self.files.truncate(path, size)

    def close_all(self) -> None:
        while self.open_fds:
            self.close(0)

    def tree(self, top: bytes) -> list[tuple[str, int, object]]:
        """See `_tree`."""
        first: dict[int, tuple[str, int]] = {}
        found: list[tuple[str, int, object]] = []

        def visit(path: bytes) -> None:
            status, name = self.files.stat(CWD, path, fl.AT_SYMLINK_NOFOLLOW), os.path.relpath(path, top)
            twin, mode = first.setdefault(status.ino, (name.decode(), status.mode))
            content: object = None
            if modes.S_ISLNK(status.mode):
                content = self.readlink(path).decode()
            else:
                self.chmod(path, 0o700)
            if modes.S_ISREG(status.mode):
                content = self.files.read(fd := self.files.open(CWD, path, fl.O_RDONLY), 1 << 20)
                self.files.close(fd)
            found.append((name.decode(), mode, (content, twin)))
            if modes.S_ISDIR(status.mode):
                for child, _kind in self.entries(path):
                    visit(path + b"/" + child)

        visit(top)
        return found


def _kind(entry: os.DirEntry[str]) -> int:
    """`d_type`, which needs no permission to search the directory."""
    if entry.is_symlink():
        return modes.S_IFLNK >> 12
    return (modes.S_IFDIR if entry.is_dir(follow_symlinks=False) else modes.S_IFREG) >> 12


def _visible(status: object) -> tuple[int, int, int]:
    """Mode, links and size, as far as hosts agree on them."""
    if isinstance(status, os.stat_result):
        mode, links, size = status.st_mode, status.st_nlink, status.st_size
    else:
        mode, links, size = (getattr(status, name) for name in ("mode", "nlink", "size"))
    return (mode, bool(links), 0) if modes.S_ISDIR(mode) else (mode, links, size)


_NAME = st.sampled_from([b"a", b"b", b"c", b"d"])
_PATH = st.one_of(
    _NAME,
    st.lists(st.one_of(_NAME, st.sampled_from([b".", b"..", b""])), min_size=1, max_size=4)
    .filter(lambda parts: parts[0] != b"" and parts.count(b"..") <= 2)
    .map(b"/".join),
    st.just(b"x" * 256),
    st.just(b""),
)
_TARGET = st.one_of(_NAME, st.sampled_from([b"../d", b"a/b", b"b/", b".", b"..", b"c/../a", b"", b"t" * 300]))
_SIZE = st.sampled_from([0, 1, 100, 4096, 70000, -1])
_OFFSET = st.sampled_from([0, 1, 50, 5000, -1, -5000])
_COUNT = st.sampled_from([0, 1, 10, 5000])
_DATA = st.sampled_from([b"", b"x", b"data", b"long" * 1500])
_MODE = st.sampled_from([0o777, 0o644, 0o600, 0o400, 0o1755])
_FLAGS = st.builds(
    lambda access, extra: access | sum(extra),
    st.sampled_from([fl.O_RDONLY, fl.O_WRONLY, fl.O_RDWR]),
    st.sets(st.sampled_from(sorted(set(_HOST_FLAGS) - {fl.O_DIRECTORY, fl.O_PATH})), max_size=3),
) | st.sampled_from(
    [
        fl.O_DIRECTORY,
        fl.O_DIRECTORY | fl.O_NOFOLLOW,
        fl.O_DIRECTORY | fl.O_RDWR,
        fl.O_PATH,
        fl.O_PATH | fl.O_NOFOLLOW,
        fl.O_PATH | fl.O_DIRECTORY,
        fl.O_RDWR | fl.O_CREAT,
    ]
)
_N = st.integers(0, 5)
_CALL = st.one_of(
    st.tuples(st.just("open"), _PATH, _FLAGS, _MODE),
    st.tuples(st.just("open"), _NAME, st.just(fl.O_RDWR | fl.O_CREAT), _MODE),
    st.tuples(st.just("close"), _N),
    st.tuples(st.just("dup"), _N),
    st.tuples(st.just("read"), _N, _COUNT),
    st.tuples(st.just("write"), _N, _DATA),
    st.tuples(st.just("pread"), _N, _COUNT, _OFFSET),
    st.tuples(st.just("pwrite"), _N, _DATA, _OFFSET),
    st.tuples(st.just("lseek"), _N, _OFFSET, st.sampled_from([0, 1, 2, 9])),
    st.tuples(st.just("ftruncate"), _N, _SIZE),
    st.tuples(st.just("fstat"), _N),
    st.tuples(st.just("stat"), _PATH, st.booleans()),
    st.tuples(st.just("entries"), _PATH),
    st.tuples(st.just("access"), _PATH, st.integers(0, 7)),
    st.tuples(st.just("readlink"), _PATH),
    st.tuples(st.just("mkdir"), _PATH, _MODE),
    st.tuples(st.just("mkdir"), _NAME, _MODE),
    st.tuples(st.just("rmdir"), _PATH),
    st.tuples(st.just("unlink"), _PATH),
    st.tuples(st.just("symlink"), _TARGET, _PATH),
    st.tuples(st.just("symlink"), _TARGET, _NAME),
    st.tuples(st.just("link"), _PATH, _PATH, st.booleans()),
    st.tuples(st.just("rename"), _PATH, _PATH, st.sampled_from([0, 0, 1, 2, 3, 8])),
    st.tuples(st.just("chmod"), _PATH, _MODE),
    st.tuples(st.just("truncate"), _PATH, _SIZE),
)


def _outcome(call: Callable[..., object], arguments: tuple[object, ...]) -> object:
    try:
        return call(*arguments)
    except OSError as error:
        assert error.errno is not None
        return errno.errorcode[error.errno]
    except Refused as refusal:
        return errno.errorcode[refusal.errno]


def _tree(top: Path) -> list[tuple[str, int, object]]:
    """Everything below `top`: path, mode, contents, and which names are one file (by the first of them).

    Permissions are opened to look behind them, each after it was noted.
    """
    first: dict[int, tuple[str, int]] = {}
    found: list[tuple[str, int, object]] = []

    def visit(path: Path) -> None:
        status, name = path.lstat(), str(path.relative_to(top))
        twin, mode = first.setdefault(status.st_ino, (name, status.st_mode))
        content: object = None
        if modes.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        else:
            path.chmod(0o700)
        if modes.S_ISREG(status.st_mode):
            content = path.read_bytes()
        found.append((name, mode, (content, twin)))
        if modes.S_ISDIR(status.st_mode):
            for child in sorted(path.iterdir()):
                visit(child)

    visit(top)
    return found


def _compare(native: Native, emulated: Emulated, calls: list[tuple[object, ...]]) -> None:
    """Make the calls on both sides, and close what the real one opened."""
    try:
        for name, *arguments in calls:
            assert isinstance(name, str)
            if name in _ON_DESCRIPTORS:
                number = arguments[0]
                assert isinstance(number, int)
                if not native.open_fds:
                    continue
                arguments[0] = number % len(native.open_fds)
            expected = _outcome(getattr(native, name), tuple(arguments))
            actual = _outcome(getattr(emulated, name), tuple(arguments))
            assert actual == expected, (name, arguments)
    finally:
        native.close_all()


@contextlib.contextmanager
def _two_trees() -> Iterator[tuple[Path, str]]:
    """A directory for both sides, and how deep in it they stand."""
    base = Path(tempfile.mkdtemp(dir=_FAST))
    mask = os.umask(0o022)
    below = "/".join(["n"] * _DEPTH)
    try:
        (base / "native" / below).mkdir(parents=True)
        yield base, below
    finally:
        os.umask(mask)
        shutil.rmtree(base, ignore_errors=True)


_calls = given(calls=st.lists(_CALL, max_size=60))


@settings(max_examples=70)
@_calls
def test_random_calls_do_what_the_host_does(calls: list[tuple[object, ...]]) -> None:
    _compare_calls(calls)


@pytest.mark.slow
@settings(max_examples=200)
@_calls
def test_many_random_calls_do_what_the_host_does(calls: list[tuple[object, ...]]) -> None:
    _compare_calls(calls)


def _compare_calls(calls: list[tuple[object, ...]]) -> None:
    with _two_trees() as (base, below), guest_in(base) as guest:
        (guest.w / below).mkdir(parents=True)
        guest.files.chdir(below.encode())
        _compare(Native(base / "native" / below), Emulated(guest), calls)
        assert _tree(base / "native") == _tree(guest.w)


@settings(max_examples=70)
@_calls
def test_random_calls_in_a_tmpfs_do_what_the_host_does(calls: list[tuple[object, ...]]) -> None:
    _compare_calls_in_a_tmpfs(calls)


@pytest.mark.slow
@settings(max_examples=200)
@_calls
def test_many_random_calls_in_a_tmpfs_do_what_the_host_does(calls: list[tuple[object, ...]]) -> None:
    _compare_calls_in_a_tmpfs(calls)


def _compare_calls_in_a_tmpfs(calls: list[tuple[object, ...]]) -> None:
    with _two_trees() as (base, below), guest_in(base, uid=os.geteuid()) as guest:
        guest.files.mkdir(CWD, b"/tmp/top", 0o777)
        guest.files.chdir(b"/tmp/top")
        for name in below.split("/"):
            guest.files.mkdir(CWD, name.encode(), 0o777)
            guest.files.chdir(name.encode())
        emulated = Emulated(guest)
        _compare(Native(base / "native" / below), emulated, calls)
        emulated.close_all()
        assert guest.namespace.memory_used == sum(_allocated(guest, b"/tmp/top", set()))
        assert _tree(base / "native") == emulated.tree(b"/tmp/top")


def _allocated(guest: Guest, path: bytes, seen: set[int]) -> Iterator[int]:
    """What each file below `path` takes, by stat(2)."""
    status = guest.files.stat(CWD, path, fl.AT_SYMLINK_NOFOLLOW)
    if status.ino not in seen:
        seen.add(status.ino)
        yield status.blocks * 512
    if status.is_directory:
        guest.files.chmod(CWD, path, status.mode | 0o700)
        for name in guest.names(path)[2:]:
            yield from _allocated(guest, path + b"/" + name, seen)
        guest.files.chmod(CWD, path, status.mode & 0o7777)


_ON_DESCRIPTORS = {"close", "dup", "read", "write", "pread", "pwrite", "lseek", "ftruncate", "fstat"}
