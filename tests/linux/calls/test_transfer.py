"""Moving data: beside the real kernel wherever it answers, and what only a guest can see."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_emu.linux.abi.signal import SIGPIPE
from aether_emu.linux.calls.transfer import CHUNK
from aether_emu.linux.files.open_file import MOST_PER_CALL
from aether_emu.linux.files.streams import BufferStream, StreamFile
from tests.linux.calls.conftest import twin_in
from tests.linux.calls.twin import BASE, BLOCKED, PAGE, PROT_NONE, A, F, Served, Twin
from tests.linux.files.conftest import Guest

AT_FDCWD = -100
RW = os.O_RDWR | os.O_CREAT
BAD = 5
"""The forbidden page of these tests; 4 before it and 6 behind it are good."""
EDGE = BAD * PAGE


def pattern(length: int) -> bytes:
    """Bytes that tell where they come from."""
    return bytes((i * 7 + i // 251) & 0xFF for i in range(length))


@pytest.fixture
def prepared(twin: Twin) -> Twin:
    """Files "f" (10,000 bytes), "log" (appending), pipes and counters; memory with a bad page."""
    prepare(twin)
    return twin


def prepare(twin: Twin) -> None:
    """See `prepared`."""
    twin.put(0, pattern(3 * PAGE))
    for name, flags in (("f", RW), ("log", RW | os.O_APPEND)):
        twin.open(name, "openat", F("dir"), twin.text(name.encode()), flags, 0o644)
        twin.call("write", F(name), A(0), 10_000)
    twin.open("ro", "openat", F("dir"), twin.text(b"f"), os.O_RDONLY)
    twin.open("wo", "openat", F("dir"), twin.text(b"f"), os.O_WRONLY)
    twin.pipe("r", "w")
    twin.open("counter", "eventfd2", 3, os.O_NONBLOCK)
    twin.put(0, bytes(3 * PAGE))
    twin.forbid(BAD)


# A bad address in the middle


@pytest.mark.parametrize("before", [0, 1, 100, 4095, 4096, 5000])
def test_reading_a_file_stops_at_the_bad_page(prepared: Twin, before: int) -> None:
    prepared.call("lseek", F("f"), 0, os.SEEK_SET)
    got = prepared.call("read", F("f"), A(EDGE - before), 8000)
    assert got == (before or -errno.EFAULT)
    assert prepared.call("lseek", F("f"), 0, os.SEEK_CUR) == before


@pytest.mark.parametrize("before", [0, 1, 100, 4095, 4096, 5000])
def test_writing_a_file_stops_at_the_bad_page(prepared: Twin, before: int) -> None:
    prepared.call("lseek", F("f"), 3, os.SEEK_SET)
    got = prepared.call("write", F("f"), A(EDGE - before), 8000)
    assert got == (before or -errno.EFAULT)
    assert prepared.call("lseek", F("f"), 0, os.SEEK_CUR) == 3 + before


@pytest.mark.parametrize("before", [0, 1, 4095, 4096, 5000])
def test_writing_a_pipe_takes_whole_pages_before_the_bad_one(prepared: Twin, before: int) -> None:
    prepared.call("write", F("w"), A(EDGE - before), 8000)
    prepared.call("read", F("r"), A(0), 8000)


def test_reading_a_pipe_keeps_what_the_bad_page_could_not_take(served: Served) -> None:
    assert served("pipe2", BASE, os.O_NONBLOCK) == 0
    reading, writing = served.unpack("ii", 0)
    served.put(0, pattern(300))
    assert served("write", writing, BASE, 300) == 300
    served.memory.protect(BAD, PROT_NONE)
    assert served("read", reading, BASE + EDGE, 300) == -errno.EFAULT
    assert served("read", reading, BASE + EDGE - 100, 300) == -errno.EFAULT
    assert served("read", reading, BASE, 300) == 300
    assert served.get(0, 300) == pattern(300)


def test_reading_a_stream_keeps_what_could_not_be_delivered(guest: Guest, served: Served) -> None:
    guest.streams["stdin"].source += pattern(300)
    served.memory.protect(BAD, PROT_NONE)
    assert served("read", 0, BASE + EDGE, 300) == -errno.EFAULT
    assert served("read", 0, BASE + EDGE - 7, 300) == 7
    assert served("read", 0, BASE, 300) == 293


def test_a_stream_that_gets_something_meanwhile_keeps_it(guest: Guest, served: Served) -> None:
    class Late(BufferStream):
        answers = iter((False, True, True, True))

        def ready(self) -> bool:
            return next(self.answers)

    stdin = guest.files.table.file(0)
    assert isinstance(stdin, StreamFile)
    stdin.stream = late = Late(b"abc")
    served.memory.protect(BAD, PROT_NONE)
    assert served("read", 0, BASE + EDGE - 1, 3) == 1
    assert late.source == b"bc"


def test_reading_a_counter_keeps_its_value_when_it_cannot_be_delivered(served: Served) -> None:
    fd = served("eventfd2", 5, os.O_NONBLOCK)
    assert isinstance(fd, int)
    served.memory.protect(BAD, PROT_NONE)
    assert served("read", fd, BASE + EDGE - 4, 8) == -errno.EFAULT
    assert served("read", fd, BASE, 8) == 8
    assert served.unpack("Q", 0) == (5,)


def test_an_empty_pipe_is_asked_before_the_address(prepared: Twin) -> None:
    assert prepared.call("read", F("r"), A(EDGE), 10) == -errno.EAGAIN
    prepared.close_descriptor("w")
    assert prepared.call("read", F("r"), A(EDGE), 10) == 0


def test_a_read_only_page_cannot_be_read_into(prepared: Twin) -> None:
    prepared.protect(2, mmap.PROT_READ)
    prepared.call("lseek", F("f"), 0, os.SEEK_SET)
    assert prepared.call("read", F("f"), A(2 * PAGE), 10) == -errno.EFAULT
    assert prepared.call("read", F("f"), A(2 * PAGE - 6), 10) == 6
    assert prepared.call("write", F("f"), A(2 * PAGE), 10) == 10


# The order of refusals


@pytest.mark.parametrize("name", ["read", "write", "readv", "writev", "pread64", "pwrite64"])
def test_a_bad_descriptor_comes_before_a_bad_address(prepared: Twin, name: str) -> None:
    assert prepared.call(name, 9999, 1 << 62, 10, 0) == -errno.EBADF
    assert prepared.call(name, -1, 1 << 62, 10, 0) == -errno.EBADF
    wrong = F("wo" if "read" in name else "ro")
    assert prepared.call(name, wrong, 1 << 62, 10, 0) == -errno.EBADF
    assert prepared.call(name, F("f"), 1 << 62, 10, 0) == -errno.EFAULT


@pytest.mark.parametrize("name", ["read", "write", "pread64", "pwrite64"])
def test_a_range_that_leaves_the_user_half_is_refused_as_a_whole(prepared: Twin, name: str) -> None:
    assert prepared.call(name, F("f"), A(0), 1 << 62, 0) == -errno.EFAULT
    assert prepared.call(name, F("f"), A(0), -1, 0) == -errno.EFAULT
    assert prepared.call(name, F("f"), 0x7FFF_FFFF_E000, 0x10000, 0) == -errno.EFAULT


def test_nothing_asked_is_nothing_touched(prepared: Twin) -> None:
    for name, fd in (("read", "f"), ("write", "f"), ("read", "r"), ("write", "w"), ("pread64", "f")):
        assert prepared.call(name, F(fd), A(EDGE), 0, 0) == 0
    assert prepared.call("read", F("counter"), A(0), 0) == -errno.EINVAL
    assert prepared.call("write", F("counter"), A(0), 7) == -errno.EINVAL


def test_a_directory_is_not_read(prepared: Twin) -> None:
    assert prepared.call("read", F("dir"), A(0), 10) == -errno.EISDIR
    assert prepared.call("pread64", F("dir"), A(0), 10, 0) == -errno.EISDIR
    assert prepared.call("write", F("dir"), A(0), 10) == -errno.EBADF


def test_offsets(prepared: Twin) -> None:
    for name in ("pread64", "pwrite64", "preadv", "pwritev"):
        assert prepared.call(name, 9999, A(0), 1, -1) == -errno.EINVAL
        assert prepared.call(name, F("r"), A(0), 1, 0) == -errno.ESPIPE
    assert prepared.call("pread64", F("f"), A(0), 100, 9_950) == 50
    assert prepared.call("pread64", F("f"), A(0), 100, 1 << 40) == 0
    assert prepared.call("pwrite64", F("f"), A(0), 5, 20_000) == 5
    assert prepared.call("pread64", F("f"), A(0), 100, 19_990) == 15
    assert prepared.call("lseek", F("f"), 0, os.SEEK_CUR) == 10_000


def test_counts_are_clamped_and_not_allocated(served: Served) -> None:
    fd = served("openat", AT_FDCWD, served.text(b"/dev/zero"), os.O_RDWR, 0)
    assert isinstance(fd, int)
    served.memory.protect(BAD, PROT_NONE)
    assert served("read", fd, BASE, 1 << 40) == EDGE
    assert served("write", fd, BASE, 1 << 40) == MOST_PER_CALL, "nobody looks at the bytes"


# Vectors


def test_vectors(prepared: Twin) -> None:
    prepared.call("lseek", F("f"), 0, os.SEEK_SET)
    vector = prepared.vector([(A(10), 5), (A(EDGE), 0), (A(100), 3000), (A(PAGE * 2), 10)])
    assert prepared.call("readv", F("f"), vector, 4) == 3015
    assert prepared.call("writev", F("log"), vector, 4) == 3015
    assert prepared.call("preadv", F("f"), vector, 4, 9_000) == 1000
    assert prepared.call("pwritev", F("f"), vector, 4, 50) == 3015
    assert prepared.call("writev", F("w"), vector, 4) == 3015
    assert prepared.call("readv", F("r"), vector, 2) == 5
    assert prepared.call("readv", F("f"), vector, 0) == 0


def test_vectors_stop_at_a_bad_piece(prepared: Twin) -> None:
    prepared.call("lseek", F("f"), 0, os.SEEK_SET)
    vector = prepared.vector([(A(10), 5), (A(EDGE - 3), 30), (A(100), 30)])
    assert prepared.call("readv", F("f"), vector, 3) == 8
    assert prepared.call("writev", F("f"), vector, 3) == 8
    first_bad = prepared.vector([(A(EDGE), 5), (A(10), 5)])
    assert prepared.call("readv", F("f"), first_bad, 2) == -errno.EFAULT
    assert prepared.call("writev", F("f"), first_bad, 2) == -errno.EFAULT


def test_bad_vectors(prepared: Twin) -> None:
    good = prepared.vector([(A(0), 1)] * 2)
    assert prepared.call("readv", F("f"), good, 1025) == -errno.EINVAL
    assert prepared.call("readv", F("f"), good, -1) == -errno.EINVAL
    assert prepared.call("readv", F("f"), A(EDGE), 1) == -errno.EFAULT
    negative = prepared.vector([(A(0), 1), (A(0), 1 << 63)])
    assert prepared.call("writev", F("f"), negative, 2) == -errno.EINVAL
    kernel = prepared.vector([(A(0), 1), (A(0), 1 << 62)])
    assert prepared.call("writev", F("f"), kernel, 2) == -errno.EFAULT


def test_flags_of_the_second_vector_calls(prepared: Twin) -> None:
    vector = prepared.vector([(A(10), 5), (A(100), 30)])
    prepared.call("lseek", F("f"), 7, os.SEEK_SET)
    assert prepared.call("preadv2", F("f"), vector, 2, -1, 0, 0) == 35
    assert prepared.call("preadv2", F("f"), vector, 2, 100, 0, 1) == 35
    assert prepared.call("lseek", F("f"), 0, os.SEEK_CUR) == 42
    assert prepared.call("pwritev2", F("f"), vector, 2, 100, 0, 0x10) == 35  # appends all the same
    assert prepared.call("lseek", F("f"), 0, os.SEEK_END) == 10_035
    assert prepared.call("pwritev2", F("f"), vector, 2, -1, 0, 0x10 | 4) == 35
    assert prepared.call("lseek", F("f"), 0, os.SEEK_CUR) == 10_070
    assert prepared.call("fcntl", F("f"), fcntl.F_GETFL, 0) & os.O_APPEND == 0
    assert prepared.call("pwritev2", F("f"), vector, 2, 0, 0, 2) == 35
    assert prepared.call("preadv2", F("f"), vector, 2, -2, 0, 0) == -errno.EINVAL
    assert prepared.call("preadv2", F("f"), vector, 2, 0, 0, 0x4000_0000) == -errno.EOPNOTSUPP
    assert prepared.call("preadv2", F("r"), vector, 2, 5, 0, 0) == -errno.ESPIPE


# Appending, waiting, broken pipes


def test_appending_writes_ignore_the_position(prepared: Twin) -> None:
    prepared.call("lseek", F("log"), 5, os.SEEK_SET)
    assert prepared.call("write", F("log"), A(0), 10) == 10
    assert prepared.call("lseek", F("log"), 0, os.SEEK_CUR) == 10_010
    assert prepared.call("pwrite64", F("log"), A(0), 10, 3) == 10
    assert prepared.call("lseek", F("log"), 0, os.SEEK_END) == 10_020


def test_a_blocking_write_goes_on_where_it_stopped(served: Served) -> None:
    assert served("pipe2", BASE, 0) == 0
    reading, writing = served.unpack("ii", 0)
    assert served("fcntl", writing, 1031, PAGE) == PAGE  # F_SETPIPE_SZ
    size = 3 * PAGE
    served.put(0, pattern(size))
    pipe = served.process.files
    assert served("write", writing, BASE, size) == BLOCKED
    received = [pipe.read(reading, PAGE)]
    assert served.again() == BLOCKED
    received.append(pipe.read(reading, PAGE))
    assert served.again() == size
    received.append(pipe.read(reading, 2 * PAGE))
    assert received == [pattern(size)[at : at + PAGE] for at in range(0, size, PAGE)]


def test_another_write_does_not_go_on_where_the_first_stopped(served: Served) -> None:
    assert served("pipe2", BASE, 0) == 0
    reading, writing = served.unpack("ii", 0)
    assert served("fcntl", writing, 1031, PAGE) == PAGE
    assert served("write", writing, BASE, 2 * PAGE) == BLOCKED
    assert served("read", reading, BASE + 4 * PAGE, PAGE) == PAGE
    assert served("write", writing, BASE + 1, 10) == 10
    assert served("read", reading, BASE + 4 * PAGE, PAGE) == 10


def test_a_write_without_blocking_returns_what_fits(prepared: Twin) -> None:
    assert prepared.call("fcntl", F("w"), 1031, PAGE) == PAGE
    assert prepared.call("write", F("w"), A(0), 2 * PAGE) == PAGE
    assert prepared.call("write", F("w"), A(0), 1) == -errno.EAGAIN


def test_reading_waits_for_whoever_can_bring_something(guest: Guest, served: Served) -> None:
    assert served("pipe2", BASE, 0) == 0
    reading, _ = served.unpack("ii", 0)
    assert served("read", reading, BASE, 10) == BLOCKED
    counter = served("eventfd2", 0, 0)
    assert isinstance(counter, int)
    assert served("read", counter, BASE, 8) == BLOCKED
    assert served.waits_for(guest.files.table.file(counter))


def test_a_pipe_without_readers_raises_the_signal(prepared: Twin) -> None:
    prepared.close_descriptor("r")
    assert prepared.call("write", F("w"), A(0), 10) == -errno.EPIPE
    pending = prepared.served.task.signals.pending
    posted = pending.take(0)
    assert posted is not None and pending.take(0) is None
    assert (posted.number, posted.code, posted.pid) == (SIGPIPE, 0, prepared.served.process.pid)
    prepared.call("lseek", F("f"), 0, os.SEEK_SET)
    assert prepared.call("sendfile", F("w"), F("f"), 0, 100) == -errno.EPIPE
    assert pending.take(0) == posted


def test_a_stream_that_takes_little_at_a_time_gets_all(guest: Guest, served: Served) -> None:
    class Slow(BufferStream):
        def write(self, data: bytes) -> int:
            return super().write(data[:1000])

    slow = Slow()
    stdout = guest.files.table.file(1)
    assert isinstance(stdout, StreamFile)
    stdout.stream = slow
    served.put(0, pattern(5000))
    assert served("write", 1, BASE, 5000) == 5000
    assert slow.written == pattern(5000)


def test_counters_move_eight_bytes(prepared: Twin) -> None:
    prepared.put(0, struct.pack("<Q", 4))
    assert prepared.call("write", F("counter"), A(0), 8) == 8
    assert prepared.call("read", F("counter"), A(32), 16) == 8
    assert prepared.served.unpack("Q", 32) == (7,)
    assert prepared.call("read", F("counter"), A(32), 8) == -errno.EAGAIN


def test_more_than_a_chunk_is_one_call(guest: Guest, served: Served) -> None:
    size = 2 * CHUNK + 12_345
    (guest.w / "big").write_bytes(pattern(1000) * (size // 1000 + 1))
    fd = served("openat", AT_FDCWD, served.text(b"big"), os.O_RDONLY, 0)
    assert isinstance(fd, int)
    served.memory.resize(size // PAGE + 8)
    assert served("read", fd, BASE, size) == size
    assert served.get(0, size) == (pattern(1000) * (size // 1000 + 1))[:size]
    out = served("openat", AT_FDCWD, served.text(b"copy", size), os.O_RDWR | os.O_CREAT, 0o600)
    assert isinstance(out, int)
    assert served("write", out, BASE, size) == size
    assert (guest.w / "copy").read_bytes() == served.get(0, size)


# From file to file


def test_sendfile(prepared: Twin) -> None:
    offset = prepared.put(0, struct.pack("<q", 9_000))
    prepared.call("lseek", F("f"), 4, os.SEEK_SET)
    assert prepared.call("sendfile", F("w"), F("f"), offset, 5000) == 1000
    assert prepared.served.unpack("q", 0) == (10_000,)
    assert prepared.call("lseek", F("f"), 0, os.SEEK_CUR) == 4
    assert prepared.call("sendfile", F("w"), F("f"), 0, 50) == 50
    assert prepared.call("lseek", F("f"), 0, os.SEEK_CUR) == 54
    assert prepared.call("read", F("r"), A(0), 4096) == 1050
    assert prepared.call("sendfile", F("w"), F("wo"), 0, 50) == -errno.EBADF
    assert prepared.call("sendfile", F("ro"), F("f"), 0, 50) == -errno.EBADF
    assert prepared.call("sendfile", F("w"), F("f"), A(EDGE), 50) == -errno.EFAULT
    assert prepared.call("sendfile", F("f"), F("r"), A(0), 50) == -errno.ESPIPE
    assert prepared.call("sendfile", F("log"), F("f"), 0, 50) == -errno.EINVAL


def test_copy_file_range(prepared: Twin) -> None:
    prepared.open("to", "openat", F("dir"), prepared.text(b"to"), RW, 0o644)
    offsets = prepared.put(0, struct.pack("<qq", 9_000, 3))
    assert prepared.call("copy_file_range", F("f"), offsets, F("to"), A(8), 5000, 0) == 1000
    assert prepared.served.unpack("qq", 0) == (10_000, 1003)
    prepared.call("lseek", F("f"), 0, os.SEEK_SET)
    assert prepared.call("copy_file_range", F("f"), 0, F("to"), 0, 100, 0) == 100
    assert prepared.call("lseek", F("to"), 0, os.SEEK_CUR) == 100
    assert prepared.call("pread64", F("to"), A(0), 4096, 0) == 1003
    assert prepared.call("copy_file_range", F("f"), 0, F("to"), 0, 100, 1) == -errno.EINVAL
    assert prepared.call("copy_file_range", F("dir"), 0, F("to"), 0, 100, 0) == -errno.EISDIR
    assert prepared.call("copy_file_range", F("r"), 0, F("to"), 0, 100, 0) == -errno.EINVAL
    assert prepared.call("copy_file_range", F("f"), 0, F("log"), 0, 100, 0) == -errno.EBADF


def test_splicing_is_left_to_the_program(served: Served) -> None:
    assert served("splice", 0, 0, 1, 0, 100, 0) == -errno.EINVAL


# Anything, beside the kernel

FILES = ("f", "log", "ro", "wo", "dir", "r", "w")
places = st.one_of(
    st.integers(0, 200),
    st.integers(EDGE - 20, EDGE + PAGE + 20),
    st.sampled_from([PAGE - 1, PAGE, EDGE - PAGE, EDGE, EDGE + PAGE]),
)
lengths = st.one_of(st.integers(0, 40), st.sampled_from([4095, 4096, 4097, 5000]))
offsets = st.one_of(st.integers(-3, 50), st.sampled_from([4096, 9_990, 10_000]))
"""Inside the files: a write from a bad address behind the end makes the file longer on some kernels."""
pieces = st.lists(st.tuples(places, lengths), max_size=4)
steps = st.one_of(
    st.tuples(st.sampled_from(["read", "write"]), st.sampled_from(FILES), places, lengths),
    st.tuples(st.sampled_from(["pread64", "pwrite64"]), st.sampled_from(FILES), places, lengths, offsets),
    st.tuples(st.sampled_from(["readv", "writev"]), st.sampled_from(FILES), pieces),
    st.tuples(st.sampled_from(["preadv", "pwritev"]), st.sampled_from(FILES), pieces, offsets),
    st.tuples(st.just("lseek"), st.sampled_from(FILES), offsets, st.just(os.SEEK_SET)),
    st.tuples(
        st.just("lseek"), st.sampled_from(("f", "log", "r")), st.integers(-20_000, 0), st.integers(0, 2)
    ),
    # Of a counter only what no version of Linux treats in another way.
    st.tuples(st.just("read"), st.just("counter"), st.integers(0, 200), lengths),
    st.tuples(st.just("write"), st.just("counter"), st.integers(0, 200), st.integers(0, 8)),
    st.tuples(st.just("ftruncate"), st.sampled_from(("f", "log", "ro", "r")), st.integers(10_000, 20_000)),
)


def perform(twin: Twin, step: tuple[object, ...]) -> None:
    """One step on both."""
    name, file, *rest = step
    assert isinstance(name, str) and isinstance(file, str)
    if name.endswith("v"):
        chosen = rest[0]
        assert isinstance(chosen, list)
        vector = twin.vector([(A(place), length) for place, length in chosen])
        twin.call(name, F(file), vector, len(chosen), *numbers(rest[1:]))
    elif name in ("lseek", "ftruncate"):
        twin.call(name, F(file), *numbers(rest))
    else:
        place, *others = numbers(rest)
        twin.call(name, F(file), A(place), *others)


def numbers(values: list[object]) -> list[int]:
    """The same, known to be numbers."""
    found = [value for value in values if isinstance(value, int)]
    assert len(found) == len(values)
    return found


def drain(twin: Twin) -> None:
    """Empty the pipe."""
    while twin.call("read", F("r"), A(0), PAGE) > 0:
        pass


@settings(max_examples=100)
@given(st.lists(steps, max_size=12))
def test_any_sequence_answers_as_the_kernel(sequence: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as base, twin_in(Path(base)) as twin:
        prepare(twin)
        twin.put(0, pattern(EDGE))
        for step in sequence:
            perform(twin, step)
        drain(twin)
        for name in ("f", "log"):
            twin.call("pread64", F(name), A(0), 4 * PAGE, 0)


def test_a_write_that_does_not_fit_into_a_counter_waits_for_a_reader(served: Served) -> None:
    counter = served("eventfd2", 0, 0)
    assert isinstance(counter, int)
    served.put(0, struct.pack("<2Q", (1 << 64) - 2, 1))
    assert served("write", counter, BASE, 8) == 8
    assert served("write", counter, BASE + 8, 8) == BLOCKED
    assert served.task.wait is not None and str(served.task.wait.what) == "an eventfd"
    assert served.waits_for(served.process.files.table.file(counter))


# Where nothing is looked at, and where nothing is


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/dev/full"])
def test_a_device_that_ignores_what_is_written_does_not_look_at_it(prepared: Twin, path: str) -> None:
    prepared.open("device", "openat", AT_FDCWD, prepared.text(path.encode()), os.O_WRONLY)
    for count in (0, 10, 3 * PAGE):
        prepared.call("write", F("device"), A(EDGE), count)
        prepared.call("pwrite64", F("device"), A(EDGE), count, 5)


@pytest.mark.parametrize("before", [0, 1, 2])
def test_no_transfer_reaches_behind_the_largest_offset(prepared: Twin, before: int) -> None:
    at = (1 << 63) - 1 - before
    prepared.open("m", "memfd_create", prepared.text(b"m"), 0)
    for count in (1, 2):
        prepared.call("pread64", F("m"), A(0), count, at)
        prepared.call("pread64", F("f"), A(0), count, at)
        prepared.call("pwrite64", F("m"), A(0), count, at)
        prepared.call("lseek", F("m"), at, os.SEEK_SET)
        prepared.call("read", F("m"), A(0), count)
        prepared.call("write", F("m"), A(0), count)
        prepared.call("sendfile", F("m"), F("f"), 0, count)
