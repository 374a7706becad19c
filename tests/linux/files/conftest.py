"""A guest process over a temporary directory, and what its tests share."""

from __future__ import annotations

import contextlib
import errno as numbers
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.mounts import Bind
from aether_emu.linux.files.namespace import Namespace
from aether_emu.linux.files.open_file import WouldBlock
from aether_emu.linux.files.proc import OpenFiles, Provided, ShownTask
from aether_emu.linux.files.streams import BufferStream

CWD = fl.AT_FDCWD


@dataclass
class Shown:
    """A process in /proc; it has `files` when it is the one under test."""

    texts: Mapping[str, Provided]
    files: OpenFiles | None = None
    tasks: Mapping[int, ShownTask] = field(default_factory=dict)
    is_gone: bool = False


@dataclass
class Source:
    """What /proc shows to a process under test, and of it: `own`, and of `others`."""

    pid: int = 17
    texts: Mapping[str, Provided] = field(default_factory=dict)
    own: Mapping[str, Provided] = field(default_factory=dict)
    others: Mapping[int, ShownTask] = field(default_factory=dict)
    files: OpenFiles | None = None
    system: Mapping[str, Provided] = field(default_factory=dict)

    @property
    def tid(self) -> int:
        return self.pid

    def numbers(self) -> list[int]:
        return sorted((self.pid, *self.others))

    def find(self, number: int) -> ShownTask | None:
        if number == self.pid:
            own = Shown(self.own, self.files)
            return Shown(self.own, self.files, {number: own})
        return self.others.get(number)


class Clock:
    """A virtual clock that the test turns."""

    def __init__(self) -> None:
        self.nanoseconds = 2_000_000_000 * 10**9

    def __call__(self) -> int:
        return self.nanoseconds


@dataclass
class Guest:
    """One process in a namespace with /w writable and /r read-only, standing in /w."""

    files: Files
    namespace: Namespace
    clock: Clock
    streams: dict[str, BufferStream]
    w: Path
    r: Path
    outside: Path

    def fork(self, pid: int) -> Files:
        """The files of a child."""
        source = Source(pid)
        child = source.files = self.files.fork(source)
        return child

    def read_all(self, path: bytes) -> bytes:
        """A whole file by its guest path."""
        fd = self.files.open(CWD, path, fl.O_RDONLY)
        try:
            data = self.files.read(fd, 1 << 20)
            assert not isinstance(data, WouldBlock)
            return data
        finally:
            self.files.close(fd)

    def create(self, path: bytes, content: bytes = b"") -> int:
        """Create a file and leave it open for reading and writing."""
        fd = self.files.open(CWD, path, fl.O_RDWR | fl.O_CREAT | fl.O_TRUNC, 0o666)
        assert self.files.write(fd, content) == len(content)
        return fd

    def names(self, path: bytes) -> list[bytes]:
        """A directory's names in the order that the guest reads them."""
        fd = self.files.open(CWD, path, fl.O_RDONLY | fl.O_DIRECTORY)
        try:
            return [name for name, _, _ in parse_entries(self.files.getdents64(fd, 1 << 16))]
        finally:
            self.files.close(fd)


def parse_entries(data: bytes) -> list[tuple[bytes, int, int]]:
    """(name, inode, type) of each `struct linux_dirent64`."""
    found = []
    while data:
        length = int.from_bytes(data[16:18], "little")
        found.append((data[19:length].split(b"\0")[0], int.from_bytes(data[:8], "little"), data[18]))
        data = data[length:]
    return found


def host_descriptors() -> set[str]:
    """The host descriptors that this test process has open."""
    return {fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")}


@contextlib.contextmanager
def refused(*expected: int) -> Iterator[None]:
    """The block must be refused with one of these errnos."""
    with pytest.raises(Refused) as caught:
        yield
    names = [numbers.errorcode[number] for number in expected]
    assert caught.value.errno in expected, f"{caught.value} instead of {names}"


@contextlib.contextmanager
def guest_in(base: Path, source: Source | None = None, uid: int = 1000) -> Iterator[Guest]:
    """A guest over fresh directories below `base`; every host descriptor must be back afterwards."""
    before = host_descriptors()
    w, r, outside = base / "w", base / "r", base / "outside"
    for directory in (w, r, outside):
        directory.mkdir()
    (r / "file").write_bytes(b"read only")
    (outside / "secret").write_bytes(b"secret")
    clock = Clock()
    namespace = Namespace(
        None,
        [Bind(w, "/w", writable=True), Bind(r, "/r")],
        "/w",
        random=lambda count: b"\x07" * count,
        now=clock,
        memory_limit=1 << 20,
        uid=uid,
    )
    source = source or Source()
    files = source.files = Files(namespace, source)
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    files.attach(streams)
    try:
        yield Guest(files, namespace, clock, streams, w, r, outside)
    finally:
        files.close_all()
        namespace.close()
        assert host_descriptors() == before, "host descriptors leaked"


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    """See `guest_in`."""
    with guest_in(tmp_path) as made:
        yield made


@contextlib.contextmanager
def standard_input_closed() -> Iterator[None]:
    """The host's descriptor 0 is free for the next file that is opened."""
    kept = os.dup(0)
    os.close(0)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)
