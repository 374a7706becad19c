"""Ways out of the grants by way of other processes in /proc: each ends inside, or is refused.

The guest sees two folders of the host: `w`, where it may write, and `r`, where it may not. A child stands in
`r` and has open: 10 `r/file` for reading, 11 the folder `r`, 12 `r/file` by O_PATH, 13 `w/file` for writing.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aether_emu.errors import Refused
from aether_emu.grants import Grants
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.mounts import Bind
from aether_emu.linux.files.open_file import WouldBlock
from aether_emu.system import Machine
from tests.guests.running import program
from tests.linux.files.conftest import host_descriptors
from tests.small_programs import streams

_CHILD = "/proc/1001"
_OUT_BY_NAME = [
    "root/secret",
    "root/../secret",
    "root/root/../../secret",
    "root/proc/1001/root/../secret",
    "root/{outside}/secret",
    "cwd/../outside/secret",
    "cwd/../../outside/secret",
    "cwd/../secret",
    "cwd/link/secret",
    "cwd/absolute/secret",
    "fd/11/../outside/secret",
    "fd/11/link/secret",
    "fd/11/absolute/secret",
    "fd/10/../../outside/secret",
    "fd/12/../secret",
    "exe/../secret",
    "exe/secret",
    "task/1001/root/{outside}/secret",
    "task/1001/cwd/../outside/secret",
    "task/1001/fd/11/../outside/secret",
    "task/../../1001/cwd/../outside/secret",
    "../self/root/{outside}/secret",
    "../../{outside}/secret",
    "../1001/root/w/to_cwd/../outside/secret",
    "../1001/root/w/to_root/{outside}/secret",
    "fd/-1",
    "fd/010",
    "fd/99",
    "fd/10/secret",
    "ns/mnt",
    "map_files/secret",
    "mem/secret",
]
_RESOLVE = [fl.RESOLVE_BENEATH, fl.RESOLVE_IN_ROOT, fl.RESOLVE_NO_MAGICLINKS, fl.RESOLVE_NO_SYMLINKS]


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[tuple[Files, Path]]:
    """The parent's files, and the folder of the host that it must not see."""
    outside, w, r = (tmp_path / name for name in ("outside", "w", "r"))
    for folder in (outside, w, r):
        folder.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (r / "file").write_bytes(b"read only")
    (w / "file").write_bytes(b"writable")
    for folder in (w, r):
        (folder / "link").symlink_to("../outside")
        (folder / "absolute").symlink_to(outside)
    (w / "to_cwd").symlink_to(f"{_CHILD}/cwd")
    (w / "to_root").symlink_to(f"{_CHILD}/root")
    before = host_descriptors()
    with Machine("x86_64", ram="8M", aperture="4M") as machine:
        path = program("x86_64", "hello")
        binds = [Bind(w, "/w", writable=True), Bind(r, "/r")]
        first = machine.load(path, grants=Grants(cwd=path.parent, binds=binds), streams=streams())
        child = first.fork(shares_memory=False)
        child.files = first.files.fork(machine.kernel.show(child))
        child.files.chdir(b"/r")
        for fd, name, flags in (
            (10, b"/r/file", fl.O_RDONLY),
            (11, b"/r", fl.O_RDONLY),
            (12, b"/r/file", fl.O_PATH),
            (13, b"/w/file", fl.O_RDWR),
        ):
            opened = child.files.open(fl.AT_FDCWD, name, flags)
            child.files.dup2(opened, fd)
            child.files.close(opened)
        yield first.files, outside
    assert host_descriptors() == before
    assert {each.name: each.read_bytes() for each in outside.iterdir()} == {"secret": b"secret"}
    assert (r / "file").read_bytes() == b"read only"


def _read(files: Files, path: str, resolve: int = 0) -> bytes:
    fd = files.open(fl.AT_FDCWD, path.encode(), fl.O_RDONLY, 0, resolve)
    try:
        data = files.read(fd, 100)
        assert not isinstance(data, WouldBlock)
        return data
    finally:
        files.close(fd)


@pytest.mark.parametrize("name", _OUT_BY_NAME)
def test_no_name_leads_out(guest: tuple[Files, Path], name: str) -> None:
    files, outside = guest
    path = f"{_CHILD}/{name.format(outside=str(outside).lstrip('/'))}"
    for resolve in (0, *_RESOLVE):
        with pytest.raises(Refused):
            _read(files, path, resolve)
    with pytest.raises(Refused):
        files.stat(fl.AT_FDCWD, path.encode())


def test_what_is_inside_is_found_by_the_same_ways(guest: tuple[Files, Path]) -> None:
    files, _ = guest
    for name in (
        "cwd/file",
        "fd/10",
        "fd/11/file",
        "fd/12",
        "root/r/file",
        "root/../r/file",
        "cwd/../r/file",
    ):
        assert _read(files, f"{_CHILD}/{name}") == b"read only", name
    assert _read(files, f"{_CHILD}/fd/13") == b"writable"
    assert _read(files, "/w/to_cwd/file") == _read(files, "/w/to_root/r/file") == b"read only"


_Change = Callable[[Files, bytes], object]


@pytest.mark.parametrize(
    "change",
    [
        lambda files, path: files.open(fl.AT_FDCWD, path, fl.O_WRONLY),
        lambda files, path: files.open(fl.AT_FDCWD, path, fl.O_RDWR),
        lambda files, path: files.open(fl.AT_FDCWD, path, fl.O_RDONLY | fl.O_TRUNC),
        lambda files, path: files.open(fl.AT_FDCWD, path, fl.O_WRONLY | fl.O_CREAT, 0o666),
        lambda files, path: files.truncate(path, 0),
        lambda files, path: files.chmod(fl.AT_FDCWD, path, 0o777),
        lambda files, path: files.chown(fl.AT_FDCWD, path, -1, -1),
        lambda files, path: files.utimens(fl.AT_FDCWD, path, 0, 0),
        lambda files, path: files.link(fl.AT_FDCWD, path, fl.AT_FDCWD, b"/w/new", fl.AT_SYMLINK_FOLLOW),
        lambda files, path: files.rename(fl.AT_FDCWD, path, fl.AT_FDCWD, b"/w/new"),
        lambda files, path: files.unlink(fl.AT_FDCWD, path),
    ],
)
@pytest.mark.parametrize("name", ["fd/10", "fd/12", "cwd/file", "root/r/file", "fd/11/file"])
def test_what_is_read_only_stays_so_through_another_process(
    guest: tuple[Files, Path], change: _Change, name: str
) -> None:
    with pytest.raises(Refused) as caught:
        change(guest[0], f"{_CHILD}/{name}".encode())
    assert caught.value.errno in (errno.EROFS, errno.EXDEV, errno.EACCES, errno.EPERM)


@pytest.mark.parametrize(
    "make",
    [
        lambda files: files.mkdir(fl.AT_FDCWD, b"/proc/1001/new", 0o777),
        lambda files: files.mkdir(fl.AT_FDCWD, b"/proc/1001/cwd/new", 0o777),
        lambda files: files.symlink(b"/", fl.AT_FDCWD, b"/proc/1001/root/r/new"),
        lambda files: files.mknod(fl.AT_FDCWD, b"/proc/1001/fd/11/new", 0o100666),
        lambda files: files.open(fl.AT_FDCWD, b"/proc/1001/fd/11/new", fl.O_WRONLY | fl.O_CREAT, 0o666),
        lambda files: files.rmdir(fl.AT_FDCWD, b"/proc/1001"),
    ],
)
def test_nothing_is_made_or_removed_there(guest: tuple[Files, Path], make: Callable[[Files], object]) -> None:
    with pytest.raises(Refused) as caught:
        make(guest[0])
    assert caught.value.errno == errno.EROFS
