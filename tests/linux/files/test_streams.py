"""Standard streams: passed through, a terminal only if they are one."""

from __future__ import annotations

import errno
import os
import pty
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from aether_emu.linux.abi.signal import SIGINT
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.namespace import Namespace
from aether_emu.linux.files.open_file import POLLIN, POLLOUT, WouldBlock
from aether_emu.linux.files.pipe import PIPE_BUF
from aether_emu.linux.files.streams import BufferStream, DescriptorStream, Stream
from aether_emu.linux.tty.modes import ECHO, Modes
from aether_emu.waiting import HostQueue
from tests.linux.files.conftest import CWD, Guest, Source, refused

TCGETS, TIOCGPGRP, TIOCGWINSZ, FIONREAD = 0x5401, 0x540F, 0x5413, 0x541B


def no_argument(size: int) -> bytes:
    raise AssertionError(f"{size} bytes of an argument were asked for")


def process(stdin: Stream, stdout: Stream) -> Files:
    namespace = Namespace(None, [], "/", random=bytes)
    source = Source()
    files = source.files = Files(namespace, source)
    files.attach({"stdin": stdin, "stdout": stdout, "stderr": BufferStream()})
    return files


def end(files: Files) -> None:
    files.close_all()
    files.namespace.close()


def test_bytes_pass_through(guest: Guest) -> None:
    guest.streams["stdin"].source += b"typed"
    assert guest.files.read(0, 3) == b"typ"
    assert guest.files.read(0, 30) == b"ed"
    assert guest.files.read(0, 30) == b""
    assert guest.files.write(1, b"out") == 3 and guest.files.write(2, b"err") == 3
    assert [bytes(guest.streams[name].written) for name in ("stdout", "stderr")] == [b"out", b"err"]


def test_opening_dev_stdout_is_the_same_stream_whatever_the_flags(guest: Guest) -> None:
    guest.files.write(1, b"first ")
    for path in (b"/dev/stdout", b"/proc/self/fd/1", b"/dev/fd/1"):
        fd = guest.files.open(CWD, path, fl.O_WRONLY | fl.O_CREAT | fl.O_TRUNC, 0o666)
        guest.files.write(fd, b"again ")
    assert guest.streams["stdout"].written == b"first again again again "


def test_a_stream_that_is_no_terminal_is_a_pipe(guest: Guest) -> None:
    files = guest.files
    stats = [files.fstat(fd) for fd in range(3)]
    assert [stat.mode for stat in stats] == [0o10600] * 3
    assert len({stat.ino for stat in stats}) == 3
    for request in (TCGETS, TIOCGWINSZ, TIOCGPGRP):
        with refused(errno.ENOTTY):
            files.ioctl(1, request, no_argument)
    with refused(errno.ESPIPE):
        files.lseek(1, 0, 0)
    with refused(errno.EBADF):
        files.read(1, 1)
    with refused(errno.EBADF):
        files.write(0, b"x")
    assert files.readlink(CWD, b"/proc/self/fd/1", 99) == b"pipe:[%d]" % stats[1].ino


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    """Both ends of a host pipe."""
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        try:
            os.close(fd)
        except OSError:
            continue


def test_an_idle_descriptor_would_block_and_its_end_is_read(pair: tuple[int, int]) -> None:
    files = process(DescriptorStream(pair[0]), BufferStream())
    waiting = files.read(0, 10)
    assert isinstance(waiting, WouldBlock) and waiting.events == POLLIN
    assert (files.poll(0), files.ioctl(0, FIONREAD, no_argument)) == (0, bytes(4))
    os.write(pair[1], b"now")
    assert files.poll(0) == POLLIN
    assert files.read(0, 10) == b"now"
    files.fcntl(0, 4, fl.O_NONBLOCK)
    with refused(errno.EAGAIN):
        files.read(0, 10)
    os.close(pair[1])
    assert files.read(0, 10) == b""
    end(files)


def test_a_stream_that_nobody_reads_is_epipe(pair: tuple[int, int]) -> None:
    files = process(BufferStream(), DescriptorStream(pair[1]))
    assert files.write(1, b"x") == 1 and files.poll(1) == POLLOUT
    os.close(pair[0])
    with refused(errno.EPIPE):
        files.write(1, b"x")
    end(files)


@pytest.mark.parametrize("blocking", [False, True])
def test_a_full_pipe_would_block_until_somebody_reads(pair: tuple[int, int], blocking: bool) -> None:
    os.set_blocking(pair[1], blocking)
    files = process(BufferStream(), DescriptorStream(pair[1]))
    while not isinstance(taken := files.write(1, bytes(PIPE_BUF)), WouldBlock):
        assert taken == PIPE_BUF
    assert taken.events == POLLOUT
    (queue,) = files.table.file(1).queues(taken.events)
    assert isinstance(queue, HostQueue) and not queue.arrived()
    assert files.poll(1) == 0
    os.read(pair[0], PIPE_BUF)
    assert queue.arrived()
    assert files.poll(1) == POLLOUT
    assert files.write(1, bytes(PIPE_BUF)) == PIPE_BUF
    end(files)


def test_a_full_device_is_enospc() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    files = process(BufferStream(), DescriptorStream(full))
    with refused(errno.ENOSPC):
        files.write(1, b"x")
    end(files)
    os.close(full)


def test_a_terminal_answers_as_one_and_its_modes_are_the_hosts_while_the_machine_runs() -> None:
    leader, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    files = process(DescriptorStream(terminal), DescriptorStream(terminal))
    console = files.namespace.terminals.console
    assert console is not None and console.size == (24, 80, 0, 0)
    assert files.fstat(1).mode == 0o20620 and files.fstat(1).rdev == os.makedev(136, 0)
    assert files.fstat(1) == files.stat(CWD, b"/dev/pts/0")
    assert files.readlink(CWD, b"/proc/self/fd/0", 99) == b"/dev/pts/0"
    assert struct.unpack_from("<IIII", console.modes.pack("termios")) == tuple(before[:4])
    console.enter()
    console.change(Modes(local=ECHO), flush=False)
    iflag, _oflag, _cflag, lflag, *_speeds, characters = termios.tcgetattr(terminal)
    assert iflag == termios.ICRNL | termios.IXON
    assert lflag == termios.ECHO | termios.ISIG | termios.NOFLSH  # so that Ctrl-C is heard
    assert characters[termios.VQUIT] == b"\x1c"
    console.leave()
    assert termios.tcgetattr(terminal) == before
    console.enter()
    assert not termios.tcgetattr(terminal)[3] & termios.ICANON
    console.leave()
    end(files)
    os.close(leader)
    os.close(terminal)


def test_a_terminal_says_how_much_was_typed_and_the_key_for_an_interrupt_comes_first() -> None:
    leader, terminal = pty.openpty()
    files = process(DescriptorStream(terminal), BufferStream())
    console = files.namespace.terminals.console
    assert console is not None
    os.write(leader, b"typed\n")
    assert files.read(0, 3) == b"typ"
    assert files.ioctl(0, FIONREAD, no_argument) == struct.pack("<i", 3)
    console.change(Modes(local=0), flush=False)
    console.press(SIGINT)
    assert files.ioctl(0, FIONREAD, no_argument) == struct.pack("<i", 4)
    assert files.poll(0) == POLLIN | POLLOUT
    assert files.read(0, 10) == b"\x03"
    end(files)
    os.close(leader)
    os.close(terminal)


def test_the_host_descriptor_stays_open(pair: tuple[int, int]) -> None:
    files = process(DescriptorStream(pair[0]), DescriptorStream(pair[1]))
    end(files)
    assert os.write(pair[1], b"x") == 1


def test_nothing_is_reached_through_a_directory_that_no_grant_shows(tmp_path: Path) -> None:
    (tmp_path / "inside").write_text("hidden")
    directory = os.open(tmp_path, os.O_RDONLY)
    files = process(DescriptorStream(directory), BufferStream())
    assert files.fstat(0).is_directory
    assert files.readlink(CWD, b"/proc/self/fd/0", 99) == b"/stdin"
    with refused(errno.EISDIR):
        files.read(0, 1)
    for attempt in (
        lambda: files.open(0, b"inside", fl.O_RDONLY),
        lambda: files.open(CWD, b"/dev/stdin/inside", fl.O_RDONLY),
        lambda: files.open(CWD, b"/dev/stdin", fl.O_RDONLY | fl.O_DIRECTORY),
        lambda: files.getdents64(0, 999),
        lambda: files.fchdir(0),
    ):
        with refused(errno.EACCES, errno.ENOTDIR):
            attempt()
    end(files)
    os.close(directory)
