"""Sockets, named pipes and locks between processes that wait for each other, on both ISAs."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from pathlib import Path

import pytest

from aether_emu.grants import Grants
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.mounts import Bind
from aether_emu.linux.task import family
from aether_emu.linux.task.deadlock import Deadlock
from aether_emu.linux.task.ended import Ended
from tests.guests.running import ISAS, program
from tests.linux.task.scripts import DATA, Call, Several

MILLISECOND = 10**6
SHORT = struct.pack("<qq", 0, MILLISECOND)
"""A time to sleep, at DATA + 200."""
TEXT, TIME = DATA + 100, DATA + 200
LOOPBACK = struct.pack("<H", socket.AF_INET) + struct.pack(">H", 8080) + bytes((127, 0, 0, 1)) + bytes(8)
ABSTRACT = struct.pack("<H", socket.AF_UNIX) + b"\0there"
SLEEP: Call = ("nanosleep", TIME, 0)

every_isa = pytest.mark.parametrize("isa", ISAS)


def memory(at_data: bytes, text: bytes = b"") -> bytes:
    """The memory of a process: something at DATA, a text at TEXT, and a millisecond at TIME."""
    return at_data.ljust(100, b"\0") + text.ljust(100, b"\0") + SHORT


@every_isa
@pytest.mark.parametrize(
    ("family", "kind", "address"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, LOOPBACK),
        (socket.AF_UNIX, socket.SOCK_STREAM, ABSTRACT),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET, ABSTRACT),
    ],
    ids=["tcp", "unix", "seqpacket"],
)
def test_a_client_and_a_server_wait_for_each_other(isa: str, family: int, kind: int, address: bytes) -> None:
    with Several(isa) as several:
        begin: list[Call] = [("socket", family, kind, 0), ("bind", 3, DATA, len(address)), ("listen", 3, 1)]
        several.calls(
            *begin,
            ("accept4", 3, 0, 0, 0),
            ("recvfrom", 4, TEXT, 5, 0, 0, 0),
            ("write", 1, TEXT, 5),
            ("shutdown", 4, 1),
            ("recvfrom", 4, TEXT, 5, 0, 0, 0),
            data=memory(address),
        )
        several.calls(
            ("socket", family, kind, 0),
            ("connect", 3, DATA, len(address)),
            SLEEP,
            ("write", 3, TEXT, 5),
            ("read", 3, DATA, 9),
            data=memory(address, b"hello"),
        )
        assert several.run() == [0, 0]
        assert several.out.written == b"hello"


@every_isa
def test_a_full_line_of_connections_lets_one_wait(isa: str) -> None:
    with Several(isa) as several:
        begin: list[Call] = [("socket", 2, 1, 0), ("bind", 3, DATA, 16), ("listen", 3, 0)]
        accept: list[Call] = [("accept4", 3, 0, 0, 0), SLEEP]
        several.calls(*begin, SLEEP, ("write", 1, TEXT, 1), *accept, *accept, data=memory(LOOPBACK, b"s"))
        connect: list[Call] = [("socket", 2, 1, 0), ("connect", 3, DATA, 16), ("write", 1, TEXT, 1)]
        several.calls(*connect, data=memory(LOOPBACK, b"1"))
        several.calls(*connect, data=memory(LOOPBACK, b"2"))
        assert several.run() == [0, 1, 1]
        assert several.out.written == b"1s2"


@every_isa
def test_more_than_fits_goes_as_one_write_and_a_dead_peer_kills(isa: str) -> None:
    size, most = 400_000, 600_000
    with Several(isa) as several:
        begin: list[Call] = [
            ("socket", 1, 1, 0),
            ("bind", 3, DATA, 8),
            ("listen", 3, 1),
            ("accept4", 3, 0, 0, 0),
        ]
        several.calls(*begin, ("recvfrom", 4, DATA, size, 0x100, 0, 0), data=ABSTRACT)
        several.calls(
            *(("socket", 1, 1, 0), ("connect", 3, DATA, 8)),
            *(("write", 3, DATA, size), SLEEP, ("write", 3, DATA, most)),
            data=memory(ABSTRACT),
        )
        assert several.run() == [size & 0xFF, 128 + 13]


@every_isa
def test_a_timeout_of_a_socket_passes_in_virtual_time(isa: str) -> None:
    timeout = struct.pack("<qq", 0, 1000)
    with Several(isa) as several:
        option: Call = ("setsockopt", 3, 1, socket.SO_RCVTIMEO, DATA, 16)
        several.calls(
            ("socketpair", 1, 1, 0, TEXT), option, ("recvfrom", 3, TEXT, 1, 0, 0, 0), data=memory(timeout)
        )
        before = several.machine.clock.now_ns
        assert several.run() == [256 - errno.EAGAIN]
        assert MILLISECOND <= several.machine.clock.now_ns - before < 2 * MILLISECOND


@every_isa
def test_a_deadlock_names_a_socket(isa: str) -> None:
    with Several(isa) as several:
        several.calls(("socketpair", 1, 1, 0, TEXT), ("read", 3, TEXT, 1))
        with pytest.raises(Deadlock, match="waits for a socket"):
            several.run()


# ---- named pipes


@every_isa
@pytest.mark.parametrize("reader_first", [True, False])
def test_opening_a_named_pipe_waits_for_the_other_side(isa: str, reader_first: bool, tmp_path: Path) -> None:
    path = program(isa, "hello")
    binds = [Bind(path.parent, str(path.parent)), Bind(tmp_path, "/w", writable=True)]
    with Several(isa, Grants(binds=binds, cwd=path.parent)) as several:
        several.first.files.mknod(fl.AT_FDCWD, b"/w/pipe", 0o010600)

        def reader() -> None:
            several.calls(
                *(("openat", fl.AT_FDCWD, DATA, 0, 0), ("read", 3, TEXT, 9)),
                *(("write", 1, TEXT, 3), ("read", 3, TEXT, 9)),
                data=memory(b"/w/pipe"),
            )

        def writer() -> None:
            several.calls(
                ("openat", fl.AT_FDCWD, DATA, 1, 0),
                SLEEP,
                ("write", 3, TEXT, 3),
                data=memory(b"/w/pipe", b"abc"),
            )

        for make in (reader, writer) if reader_first else (writer, reader):
            make()
        assert several.run() == ([0, 3] if reader_first else [3, 0])
        assert several.out.written == b"abc"
        assert not list(tmp_path.iterdir()), "the host sees none of it"


# ---- locks


def lock(kind: int, start: int = 0, length: int = 0) -> bytes:
    """A `struct flock`."""
    return struct.pack("<hh4xqqi4x", kind, 0, start, length, 0)


@every_isa
def test_a_locked_range_is_waited_for_and_goes_with_its_process(isa: str) -> None:
    with Several(isa) as several:
        fd = several.first.files.memfd_create(b"shared")
        wait, ask = (("fcntl", fd, command, DATA) for command in (fcntl.F_SETLKW, fcntl.F_SETLK))
        write: Call = ("write", 1, TEXT, 1)
        several.calls(wait, SLEEP, write, data=memory(lock(fcntl.F_WRLCK), b"a"))
        several.calls(wait, write, data=memory(lock(fcntl.F_WRLCK), b"b"))
        several.calls(ask, data=memory(lock(fcntl.F_RDLCK)))
        apart = lock(fcntl.F_WRLCK, 10, 10)
        several.calls(("fcntl", fd, fcntl.F_GETLK, DATA), ("write", 1, DATA + 24, 4), data=memory(apart))
        assert several.run() == [1, 1, 256 - errno.EAGAIN, 4]
        assert several.out.written == struct.pack("<i", 2000) + b"ab"


@every_isa
def test_closing_any_descriptor_of_a_file_gives_its_locks_up(isa: str) -> None:
    with Several(isa) as several:
        fd = several.first.files.memfd_create(b"shared")
        take: Call = ("fcntl", fd, fcntl.F_SETLK, DATA)
        several.calls(take, ("dup", fd), ("close", fd + 1), SLEEP, SLEEP, data=memory(lock(fcntl.F_WRLCK)))
        several.calls(SLEEP, take, data=memory(lock(fcntl.F_WRLCK)))
        assert several.run() == [0, 0]


@every_isa
def test_two_who_would_wait_for_each_other_s_locks_are_told(isa: str) -> None:
    with Several(isa) as several:
        fd = several.first.files.memfd_create(b"shared")
        for first, second in ((0, 1), (1, 0)):
            one, other = lock(fcntl.F_WRLCK, first, 1), lock(fcntl.F_WRLCK, second, 1)
            calls = (("fcntl", fd, fcntl.F_SETLKW, DATA), SLEEP, ("fcntl", fd, fcntl.F_SETLKW, TEXT))
            several.calls(*calls, data=memory(one, other))
        assert sorted(several.run()) == [0, 256 - errno.EDEADLK]


@every_isa
def test_flock_is_of_the_open_file_that_a_child_shares(isa: str, tmp_path: Path) -> None:
    path = program(isa, "hello")
    binds = [Bind(path.parent, str(path.parent)), Bind(tmp_path, "/w", writable=True)]
    (tmp_path / "f").touch()
    with Several(isa, Grants(binds=binds, cwd=path.parent)) as several:
        fd = several.first.files.open(fl.AT_FDCWD, b"/w/f", fl.O_RDWR)
        take, refuse = ("flock", fd, fcntl.LOCK_EX), ("flock", fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        several.calls(take, SLEEP, ("flock", fd, fcntl.LOCK_UN), data=memory(b""))
        several.calls(refuse)
        anew: Call = ("openat", fl.AT_FDCWD, DATA, 2, 0)
        several.calls(anew, ("flock", fd + 1, fcntl.LOCK_SH | fcntl.LOCK_NB), data=memory(b"/w/f"))
        several.calls(
            anew, ("flock", fd + 1, fcntl.LOCK_SH), ("write", 1, TEXT, 1), data=memory(b"/w/f", b"x")
        )
        assert several.run() == [0, 0, 256 - errno.EAGAIN, 1]
        assert several.out.written == b"x"


@every_isa
def test_an_exit_signal_that_does_not_exist_is_sent_to_nobody(isa: str) -> None:
    with Several(isa) as several:
        parent = several.calls(("close", 99)).process
        child = parent.fork(shares_memory=True)
        child.exit_signal = 200
        child.end(Ended(code=3))
        family.tell_parent(child, *family.how_it_ended(child))
        assert not parent.signals.pending.mask
        child.mm.let_go()
