"""Captured state is plain data, and what is restored goes on as the original would have."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator

import pytest

from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.capture import Restored, State, capture, restore
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.host_file import HostData
from aether_emu.linux.files.locks import END, F_RDLCK, F_WRLCK, Lock
from aether_emu.linux.files.mounts import Bind
from aether_emu.linux.files.namespace import Namespace
from aether_emu.linux.files.open_file import WouldBlock
from aether_emu.linux.files.ownership import F_OWNER_PID, POLL_IN, Owner, Tell
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.files.synthetic import Text
from aether_emu.linux.files.tmp_capture import CaptureError
from tests.linux.files.conftest import CWD, Guest, Source, host_descriptors, parse_entries, refused


class Again:
    """Restores into fresh namespaces over the same directories, and closes them."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.made: list[tuple[Namespace, Restored]] = []
        self.streams = {name: BufferStream(b"more input") for name in ("stdin", "stdout", "stderr")}

    def __call__(self, state: State, sources: int = 1, tell: Tell | None = None) -> Restored:
        binds = [Bind(self.guest.w, "/w", writable=True), Bind(self.guest.r, "/r")]
        namespace = Namespace(None, binds, "/w", random=bytes, now=self.guest.clock, memory_limit=1 << 20)
        try:
            shown = [Source(17 + n) for n in range(sources)]

            def made(index: int, files: Files) -> None:
                shown[index].files = files

            restored = restore(state, namespace, shown, self.streams, made, tell=tell or (lambda *told: None))
        except BaseException:
            namespace.close()
            raise
        self.made.append((namespace, restored))
        return restored

    def close(self) -> None:
        for namespace, restored in self.made:
            for file in restored.mapped:
                file.let_go()
            for files in restored.processes:
                files.close_all()
            namespace.close()


@pytest.fixture
def again(guest: Guest) -> Iterator[Again]:
    """See `Again`. Its descriptors must be back before the guest's are counted."""
    made = Again(guest)
    yield made
    made.close()


def assert_plain(value: object) -> None:
    """Numbers, bytes, texts, None, and lists and dictionaries of them."""
    json.dumps(value, default=lambda other: other.hex() if isinstance(other, bytes) else 1 / 0)


def test_files_go_on_where_they_were(guest: Guest, again: Again) -> None:
    files = guest.files
    fd = guest.create(b"f", b"abcdef")
    twin = files.dup(fd)
    files.fcntl(twin, 2, 1)
    files.lseek(fd, 2, 0)
    files.fcntl(fd, 4, fl.O_APPEND)
    (guest.w / "d").mkdir()
    files.chdir(b"d")
    files.umask(0o77)
    files.table.limit = 77
    state = capture([files])
    assert_plain(state)
    (restored,) = again(state).processes
    assert restored.read(fd, 2) == b"cd"
    assert restored.lseek(twin, 0, 1) == 4
    restored.write(twin, b"!")
    assert (guest.w / "f").read_bytes() == b"abcdef!"
    assert [restored.fcntl(n, 1, 0) for n in (fd, twin)] == [0, 1]
    assert (restored.getcwd(), restored.umask(0), restored.table.limit) == (b"/w/d", 0o77, 77)
    assert restored.fstat(fd).ino == files.fstat(fd).ino


def test_capturing_twice_through_a_restore_gives_the_same(guest: Guest, again: Again) -> None:
    files = guest.files
    guest.create(b"f", b"abc")
    reading, writing = files.pipe(fl.O_NONBLOCK)
    files.write(writing, b"in flight")
    files.eventfd(5, 1)
    memory = files.memfd_create(b"m", 2)
    files.write(memory, b"content")
    files.fcntl(memory, 1033, 8)
    files.open(CWD, b"/proc/self/fd/%d" % memory, fl.O_RDONLY)
    listing = files.open(CWD, b"/w", fl.O_RDONLY)
    files.getdents64(listing, 48)
    files.open(CWD, b"/proc/mounts", fl.O_RDONLY)
    files.open(CWD, b"/dev/urandom", fl.O_RDONLY)
    files.open(CWD, b"/r/file", fl.O_PATH)
    files.open(CWD, b"/proc/self/fd", fl.O_RDONLY)
    child = guest.fork(18)
    try:
        child.close(reading)
        state = capture([files, child])
    finally:
        child.close_all()
    assert_plain(state)
    assert capture(again(state, 2).processes) == state


def test_pipes_between_processes_keep_contents_and_ends(guest: Guest, again: Again) -> None:
    files = guest.files
    reading, writing = files.pipe()
    files.write(writing, b"in flight")
    child = guest.fork(18)
    try:
        child.close(reading)
        files.close(writing)
        state = capture([files, child])
    finally:
        child.close_all()
    parent, child = again(state, 2).processes
    assert parent.read(reading, 100) == b"in flight"
    assert isinstance(parent.read(reading, 1), WouldBlock)
    child.write(writing, b"later")
    child.close(writing)
    assert (parent.read(reading, 100), parent.read(reading, 1)) == (b"later", b"")


def test_who_owns_a_file_is_kept_and_told(guest: Guest, again: Again) -> None:
    files = guest.files
    reading, writing = files.pipe()
    told: list[tuple[int, int, int, int]] = []

    def tell(owner: Owner, descriptor: int, reason: int) -> None:
        told.append((owner.number, owner.signal, descriptor, reason))

    files.table.file(reading).owner = Owner(tell, F_OWNER_PID, 17, 1000, 1000, 40)
    files.fcntl(reading, 4, fl.FASYNC)
    (after,) = again(capture([files]), 1, tell).processes
    after.write(writing, b"x")
    assert told == [(17, 40, reading, POLL_IN)]
    after.fcntl(reading, 4, 0)
    after.write(writing, b"x")
    assert len(told) == 1


def test_memory_files_keep_contents_sharing_and_seals(guest: Guest, again: Again) -> None:
    files = guest.files
    fd = files.memfd_create(b"m", 2)
    files.write(fd, b"content")
    other = files.open(CWD, b"/proc/self/fd/%d" % fd, fl.O_RDWR)
    files.fcntl(fd, 1033, 2)
    (restored,) = again(capture([files])).processes
    assert restored.pread(other, 9, 0) == b"content"
    restored.pwrite(other, b"C", 0)
    assert restored.pread(fd, 9, 0) == b"Content"
    with refused(errno.EPERM):
        restored.ftruncate(fd, 0)
    assert restored.namespace.memory_used == files.namespace.memory_used == 4096
    assert restored.fstat(fd).ino == files.fstat(fd).ino


def test_of_a_memory_file_only_the_pages_that_are_there_are_kept(guest: Guest, again: Again) -> None:
    files = guest.files
    fd = files.memfd_create(b"m")
    files.ftruncate(fd, 1 << 50)
    files.pwrite(fd, b"far", (1 << 50) - 3)
    for _ in range(2):
        files.fallocate(fd, 1, (1 << 50) + 4096, 4096)  # behind the end; the second gives it contents
    files.fallocate(fd, 1, 1 << 50, 4096)
    state = capture([files])
    assert_plain(state)
    (restored,) = again(state).processes
    assert restored.pread(fd, 9, (1 << 50) - 5) == b"\0\0far"
    assert restored.fstat(fd) == files.fstat(fd)
    assert restored.lseek(fd, 0, 3) == (1 << 50) - 4096  # SEEK_DATA
    assert restored.namespace.memory_used == 3 * 4096
    restored.fallocate(fd, 1, 1 << 50, 2 * 4096)
    assert restored.namespace.memory_used == 3 * 4096, "what was allocated is"
    file = restored.table.file(fd)
    assert isinstance(file, HostData) and os.fstat(file.host_fd).st_blocks == 3 * 8, "on the host too"


def test_a_half_read_directory_goes_on_with_what_it_had(guest: Guest, again: Again) -> None:
    for name in "abc":
        (guest.w / name).touch()
    fd = guest.files.open(CWD, b".", fl.O_RDONLY)
    guest.files.getdents64(fd, 24 * 3)
    state = capture([guest.files])
    (guest.w / "aa").touch()
    (restored,) = again(state).processes
    assert [name for name, _, _ in parse_entries(restored.getdents64(fd, 4096))] == [b"b", b"c"]


def test_streams_are_found_by_name_and_keep_their_modes(guest: Guest, again: Again) -> None:
    guest.files.dup2(1, 7)
    (restored,) = again(capture([guest.files])).processes
    restored.write(7, b"out")
    assert again.streams["stdout"].written == b"out"
    assert restored.read(0, 4) == b"more"


def test_files_held_only_by_mappings_are_captured_too(guest: Guest, again: Again) -> None:
    fd = guest.create(b"f", b"abc")
    file = guest.files.table.file(fd)
    file.hold()
    guest.files.close(fd)
    state = capture([guest.files], [file])
    restored = again(state)
    assert restored.mapped[0].pread(3, 0) == b"abc"
    file.let_go()


def test_numbers_go_on_after_a_restore(guest: Guest, again: Again) -> None:
    state = capture([guest.files])
    (restored,) = again(state).processes
    guest.files.close(guest.create(b"f"))
    first = guest.files.stat(CWD, b"f").ino
    (guest.w / "f").unlink()
    restored.close(restored.open(CWD, b"f", fl.O_CREAT | fl.O_WRONLY, 0o666))
    assert restored.stat(CWD, b"f").ino == first


def test_what_has_no_name_any_more_cannot_be_captured(guest: Guest) -> None:
    fd = guest.create(b"f")
    guest.files.unlink(CWD, b"f")
    with pytest.raises(
        CaptureError, match=rf"/w/f, which no longer has this name, is open as descriptor {fd} of process 17:"
    ):
        capture([guest.files])
    guest.files.close(guest.create(b"f"))
    with pytest.raises(CaptureError):
        capture([guest.files])
    guest.files.close(fd)
    capture([guest.files])
    guest.files.mkdir(CWD, b"d", 0o777)
    guest.files.chdir(b"d")
    guest.files.rmdir(CWD, b"/w/d")
    with pytest.raises(CaptureError, match=r"/w/d"):
        capture([guest.files])


def test_a_name_that_the_host_gave_to_another_file_is_noticed(guest: Guest) -> None:
    guest.create(b"f")
    (guest.w / "f").rename(guest.w / "g")
    (guest.w / "f").touch()
    with pytest.raises(CaptureError):
        capture([guest.files])


def test_a_file_that_is_gone_at_restoring_is_named_and_nothing_leaks(guest: Guest, again: Again) -> None:
    guest.create(b"f")
    guest.files.memfd_create(b"m")
    state = capture([guest.files])
    (guest.w / "f").unlink()
    before = host_descriptors()
    with pytest.raises(CaptureError, match=r"/w/f can't be opened again: ENOENT"):
        again(state)
    assert host_descriptors() == before


def test_nothing_to_capture_is_nothing_to_restore(guest: Guest) -> None:
    assert restore(capture([]), guest.namespace, [], {}).processes == []


def test_a_process_ends_without_leaving_descriptors(guest: Guest) -> None:
    """Twice the fixture's own check, in the middle of a run."""
    before = host_descriptors()
    child = guest.fork(18)
    for path in (b"/w", b"/r/file", b"/proc/mounts", b"/dev/null"):
        child.open(CWD, path, fl.O_RDONLY)
    child.pipe()
    child.memfd_create(b"m")
    child.chdir(b"/r")
    child.close_all()
    assert host_descriptors() == before


def test_a_refusal_names_process_and_descriptor(guest: Guest) -> None:
    fd = guest.create(b"f")
    guest.files.unlink(CWD, b"f")
    own = guest.files.proc
    assert isinstance(own, Source)
    own.own = {"comm": Text(lambda: b"a name\n")}
    with pytest.raises(
        CaptureError, match=rf"^[^\n]*is open as descriptor {fd} of process 17 \(a name\): [^\n]*$"
    ):
        capture([guest.files])


@pytest.mark.parametrize("where", [b"/w/fifo", b"/tmp/fifo"])
def test_a_named_pipe_keeps_its_name_and_what_is_in_it(guest: Guest, again: Again, where: bytes) -> None:
    files = guest.files
    files.mknod(CWD, where, 0o010600)
    fd = files.open(CWD, where, fl.O_RDWR)
    files.write(fd, b"in flight")
    state = capture([files])
    assert_plain(state)
    (restored,) = again(state).processes
    assert capture([restored]) == state
    other = restored.open(CWD, where, fl.O_RDONLY | fl.O_NONBLOCK)
    assert restored.read(other, 100) == b"in flight"


def test_a_pseudo_terminal_keeps_what_was_typed(guest: Guest, again: Again) -> None:
    fd = guest.files.open(CWD, b"/dev/ptmx", fl.O_RDWR)
    guest.files.write(fd, b"half a line")
    state = capture([guest.files])
    assert_plain(state)
    (restored,) = again(state).processes
    assert capture([restored]) == state
    assert restored.read(fd, 100) == b"half a line", "the echo"


def test_packets_in_a_pipe_stay_packets(guest: Guest, again: Again) -> None:
    files = guest.files
    reading, writing = files.pipe(fl.O_DIRECT)
    for packet in (b"first", b"second"):
        files.write(writing, packet)
    files.fcntl(writing, 4, 0)
    files.write(writing, b"bytes")
    (restored,) = again(state := capture([files])).processes
    assert_plain(state)
    assert [restored.read(reading, 3), restored.read(reading, 9), restored.read(reading, 9)] == [
        *(b"fir", b"second"),
        b"bytes",
    ]


def _lock(files: Files, fd: int, owner: object, kind: int, start: int, end: int, pid: int = -1) -> None:
    file = files.table.file(fd)
    files.watch_locks(file)
    files.namespace.locks.put(file, Lock(owner, kind, start, end, pid))


@pytest.mark.parametrize("where", [b"/w/f", b"/tmp/f"])
def test_locks_are_held_by_whom_they_were(guest: Guest, again: Again, where: bytes) -> None:
    files = guest.files
    fd, other = (files.open(CWD, where, fl.O_CREAT | fl.O_RDWR, 0o666) for _ in range(2))
    child = guest.fork(18)
    try:
        _lock(files, fd, files.table, F_WRLCK, 0, 10, 17)
        _lock(child, fd, child.table, F_RDLCK, 20, 30, 18)
        _lock(files, other, files.table.file(other), F_RDLCK, 20, END)
        for each in (fd, other):
            files.namespace.locks.lock_whole(files.table.file(each), False)
        state = capture([files, child])
    finally:
        child.close_all()
    assert_plain(state)
    first, second = again(state, 2).processes
    locks, file = first.namespace.locks, first.table.file(fd)

    def in_the_way(start: int, end: int) -> list[int]:
        probe = Lock("another", F_WRLCK, start, end, 1)
        return [lock.pid for _, ranges, _ in locks.held() for lock in ranges if lock.conflicts_with(probe)]

    assert (in_the_way(5, 6), in_the_way(20, 21), in_the_way(40, 41)) == ([17], [18, -1], [-1])
    assert locks.is_taken(file, True) and not locks.is_taken(file, False)
    assert locks.holds_whole(first.table.file(other), False)
    assert capture([first, second])["locks"] == state["locks"]
    second.close(fd)
    assert in_the_way(20, 21) == [-1], "a table's locks go with any descriptor of the file"
    first.close(other)
    second.close(other)
    assert not in_the_way(0, END), "an open file's with the last"
    assert not locks.is_taken(file, True), "only its own is left"
    first.close(fd)
    assert not len(locks)


def test_a_lock_that_nothing_open_holds_is_refused(guest: Guest) -> None:
    fd = guest.create(b"f")
    file = guest.files.table.file(fd)
    file.hold()
    guest.files.watch_locks(file)
    guest.files.namespace.locks.lock_whole(file, True)
    guest.files.close(fd)
    with pytest.raises(CaptureError, match="locked that only a mapping holds"):
        capture([guest.files])
    file.let_go()
    capture([guest.files])
