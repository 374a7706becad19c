"""Pipes and eventfd counters."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.accounts import PipeAccount
from aether_emu.linux.files.open_file import POLLERR, POLLHUP, POLLIN, POLLOUT, WouldBlock
from aether_emu.linux.files.pipe import EFD_SEMAPHORE, PIPE_BUF, Pipe, PipeEnd
from aether_emu.linux.files.stat import Stat
from tests.linux.files.conftest import CWD, Guest, refused

F_SETFL, F_SETPIPE_SZ, F_GETPIPE_SZ = 4, 1031, 1032
_STAT = Stat(0, 1, 0o10600, 1, 0, 0, 0, 0, 0, 0, 0)


def test_bytes_come_out_in_order_and_the_end_follows_the_last_writer(guest: Guest) -> None:
    files = guest.files
    reading, writing = files.pipe()
    twin = files.dup(writing)
    assert files.write(writing, b"hello ") == 6 and files.write(twin, b"world") == 5
    assert files.read(reading, 8) == b"hello wo"
    assert files.read(reading, 100) == b"rld"
    files.close(writing)
    waiting = files.read(reading, 1)
    assert isinstance(waiting, WouldBlock) and waiting.events == POLLIN
    files.close(twin)
    assert files.read(reading, 1) == b""


def test_writing_without_a_reader_is_epipe(guest: Guest) -> None:
    reading, writing = guest.files.pipe()
    guest.files.close(reading)
    assert guest.files.poll(writing) & POLLERR
    with refused(errno.EPIPE):
        guest.files.write(writing, b"x")


def test_an_empty_or_full_pipe_is_eagain_when_not_blocking(guest: Guest) -> None:
    reading, writing = guest.files.pipe(fl.O_NONBLOCK)
    with refused(errno.EAGAIN):
        guest.files.read(reading, 1)
    assert guest.files.read(reading, 0) == b""
    assert guest.files.write(writing, b"x" * 70000) == 65536
    with refused(errno.EAGAIN):
        guest.files.write(writing, b"x")
    assert not guest.files.poll(writing) & POLLOUT


def test_a_pipe_is_writable_from_room_for_pipe_buf_on(guest: Guest) -> None:
    files = guest.files
    _reading, writing = files.pipe()
    files.write(writing, b"x" * (65536 - PIPE_BUF))
    assert files.poll(writing) & POLLOUT
    files.write(writing, b"x")
    assert not files.poll(writing) & POLLOUT


def test_a_write_of_pipe_buf_is_whole_or_waits(guest: Guest) -> None:
    files = guest.files
    reading, writing = files.pipe()
    files.write(writing, b"x" * (65536 - PIPE_BUF + 1))
    waiting = files.write(writing, b"y" * PIPE_BUF)
    assert isinstance(waiting, WouldBlock) and waiting.events == POLLOUT
    assert files.write(writing, b"z" * (PIPE_BUF + 1)) == 1, "which fills the last page; no other is free"
    files.read(reading, PIPE_BUF)
    assert files.write(writing, b"y" * PIPE_BUF) == PIPE_BUF


def test_what_poll_says_at_both_ends(guest: Guest) -> None:
    files = guest.files
    reading, writing = files.pipe()
    assert (files.poll(reading), files.poll(writing)) == (0, POLLOUT)
    files.write(writing, b"x")
    assert files.poll(reading) == POLLIN
    files.close(writing)
    assert files.poll(reading) == POLLIN | POLLHUP


def test_a_pipe_has_no_positions_and_only_its_direction(guest: Guest) -> None:
    files = guest.files
    reading, writing = files.pipe()
    for call in (lambda: files.lseek(reading, 0, 0), lambda: files.pread(reading, 1, 0)):
        with refused(errno.ESPIPE):
            call()
    with refused(errno.EBADF):
        files.write(reading, b"x")
    with refused(errno.EBADF):
        files.read(writing, 1)
    with refused(errno.EINVAL):
        files.ftruncate(writing, 0)


def test_capacity_is_a_power_of_two_and_never_below_the_contents(guest: Guest) -> None:
    files = guest.files
    reading, writing = files.pipe()
    assert files.fcntl(reading, F_GETPIPE_SZ, 0) == 65536
    assert files.fcntl(writing, F_SETPIPE_SZ, 5000) == 8192
    assert files.fcntl(writing, F_SETPIPE_SZ, 1) == 4096
    files.fcntl(writing, F_SETPIPE_SZ, 8192)
    files.write(writing, b"x" * 8192)
    with refused(errno.EBUSY):
        files.fcntl(writing, F_SETPIPE_SZ, 4096)
    with refused(errno.EPERM):
        files.fcntl(writing, F_SETPIPE_SZ, (1 << 20) + 1)


def test_a_pipe_opened_through_its_descriptor_is_the_same_pipe(guest: Guest) -> None:
    files = guest.files
    reading, writing = files.pipe()
    again = files.open(CWD, b"/proc/self/fd/%d" % writing, fl.O_WRONLY)
    files.close(writing)
    files.write(again, b"x")
    assert files.read(reading, 10) == b"x"
    assert files.fstat(reading).ino == files.fstat(again).ino
    assert files.readlink(CWD, b"/proc/self/fd/%d" % reading, 99) == b"pipe:[%d]" % files.fstat(again).ino


def test_the_pipes_of_a_user_are_bounded_together(guest: Guest) -> None:
    files, account = guest.files, guest.namespace.pipes
    files.table.limit = 300
    large = account.limit >> 20
    pipes = [files.pipe() for _ in range(large - 1)]
    for _reading, writing in pipes:
        assert files.fcntl(writing, F_SETPIPE_SZ, 1 << 20) == 1 << 20
    ordinary = [files.pipe() for _ in range(16)]
    assert {files.fcntl(writing, F_GETPIPE_SZ, 0) for _, writing in ordinary} == {65536}
    assert account.used == account.limit
    _, small = files.pipe()
    assert files.fcntl(small, F_GETPIPE_SZ, 0) == 8192
    with refused(errno.EPERM):
        files.fcntl(small, F_SETPIPE_SZ, 16384)
    assert files.fcntl(small, F_SETPIPE_SZ, 4096) == 4096
    for fd in pipes[0]:
        files.close(fd)
    assert files.fcntl(small, F_SETPIPE_SZ, 65536) == 65536


@pytest.mark.parametrize(("wanted", "number"), [((1 << 31) + 1, errno.EINVAL), (1 << 31, errno.EPERM)])
def test_a_pipe_of_absurd_size_is_refused(guest: Guest, wanted: int, number: int) -> None:
    _, writing = guest.files.pipe()
    with refused(number):
        guest.files.fcntl(writing, F_SETPIPE_SZ, wanted)
    assert guest.files.fcntl(writing, F_SETPIPE_SZ, 1 << 32) == 4096, "Linux sees 32 bits"


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("w"), st.integers(0, 9000)), st.tuples(st.just("r"), st.integers(0, 9000))
        )
    ),
    st.integers(1, 20000),
)
def test_no_byte_is_lost_doubled_or_reordered(operations: list[tuple[str, int]], capacity: int) -> None:
    pipe = Pipe(_STAT, PipeAccount())
    capacity = pipe.resize(capacity)
    reading, writing = PipeEnd(pipe, fl.O_RDONLY), PipeEnd(pipe, fl.O_WRONLY)
    sent = received = 0
    for what, count in operations:
        if what == "w":
            data = bytes((sent + i) % 251 for i in range(count))
            done = writing.write(data)
            if isinstance(done, WouldBlock):
                assert not pipe.free and count
            else:
                assert done == count or (count > PIPE_BUF and not pipe.free)
                sent += done
            assert pipe.size == sent - received and pipe.used <= capacity // PIPE_BUF
        else:
            found = reading.read(count)
            if isinstance(found, WouldBlock):
                assert sent == received and count
            else:
                assert found == bytes((received + i) % 251 for i in range(min(count, sent - received)))
                received += len(found)


def test_an_eventfd_sums_and_is_taken_at_once(guest: Guest) -> None:
    files = guest.files
    fd = files.eventfd(3)
    assert files.write(fd, struct.pack("<Q", 4)) == 8
    assert files.poll(fd) == POLLIN | POLLOUT
    assert files.read(fd, 8) == struct.pack("<Q", 7)
    assert files.poll(fd) == POLLOUT
    assert isinstance(files.read(fd, 8), WouldBlock)
    with refused(errno.EINVAL):
        files.read(fd, 7)


def test_a_semaphore_is_taken_one_by_one(guest: Guest) -> None:
    fd = guest.files.eventfd(2, EFD_SEMAPHORE | fl.O_NONBLOCK)
    assert [guest.files.read(fd, 8), guest.files.read(fd, 8)] == [struct.pack("<Q", 1)] * 2
    with refused(errno.EAGAIN):
        guest.files.read(fd, 8)


def test_an_eventfd_never_reaches_its_largest_value(guest: Guest) -> None:
    files = guest.files
    fd = files.eventfd(1)
    with refused(errno.EINVAL):
        files.write(fd, b"\xff" * 8)
    waiting = files.write(fd, struct.pack("<Q", (1 << 64) - 2))
    assert isinstance(waiting, WouldBlock) and waiting.events == POLLOUT
    assert files.write(fd, struct.pack("<Q", (1 << 64) - 3)) == 8
    assert files.poll(fd) == POLLIN
