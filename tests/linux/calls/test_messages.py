"""sendmsg(2) and recvmsg(2) with open files and credentials, names and options, beside the real kernel's."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct

import pytest

from tests.linux.calls.test_sockets import (
    ADDRESS,
    BUFFER,
    DGRAM,
    LENGTH,
    NONBLOCK,
    SEQPACKET,
    STREAM,
    events,
    name_of,
    option,
    pair,
)
from tests.linux.calls.twin import BASE, A, F, Served, Twin
from tests.linux.files.conftest import Guest

HEADER, CONTROL, VECTOR, TAKEN = ADDRESS, ADDRESS + 128, ADDRESS + 1024, 16384
CTRUNC, TRUNC, CLOEXEC = 8, 0x20, 0x4000_0000
RIGHTS, CREDENTIALS = 1, 2
NOBODYS = 1 << 20  # a descriptor that nobody has open, whatever else the test process has
_names = itertools.count()


def header(twin: Twin, pieces: list[tuple[A, int]], control: int) -> A:
    """A `struct msghdr` with so many bytes of control data at CONTROL."""
    twin.vector(pieces, VECTOR)
    for memory, start in ((twin.served.memory.content, BASE), (twin.native.content, twin.native.start)):
        at = start + CONTROL if control else 0
        struct.pack_into("<QI4xQQQQI", memory, HEADER, 0, 0, start + VECTOR, len(pieces), at, control, 0)
    return A(HEADER)


def send(twin: Twin, name: str, data: bytes, files: list[str], flags: int = 0) -> int:
    """Send bytes and open files."""
    twin.put(BUFFER, data)
    size = 16 + 4 * len(files)
    for side, memory in enumerate(twin.memories):
        struct.pack_into("<Qii", memory, CONTROL, size, socket.SOL_SOCKET, RIGHTS)
        struct.pack_into(f"<{len(files)}i", memory, CONTROL + 16, *(twin.pair(file)[side] for file in files))
    message = header(twin, [(A(BUFFER), len(data))], (size + 7 & -8) if files else 0)
    return twin.call_apart("sendmsg", F(name), message, flags)


def receive(
    twin: Twin, name: str, size: int, room: int, flags: int = 0
) -> tuple[int, list[list[int]], list[list[int]], int]:
    """What recvmsg answers: its result, the descriptors and credentials of each side, and the flags."""
    message = header(twin, [(A(TAKEN), size)], room)
    result = twin.call_apart("recvmsg", F(name), message, flags)
    files: list[list[int]] = []
    people: list[list[int]] = []
    ends = set()
    for memory in twin.memories:
        length, told = struct.unpack_from("<QI", memory, HEADER + 40)
        ends.add((length, told & ~CLOEXEC))
        mine: list[int] = []
        who: list[int] = []
        at = CONTROL
        while result >= 0 and at + 16 <= CONTROL + length:
            of_one, level, kind = struct.unpack_from("<Qii", memory, at)
            assert level == socket.SOL_SOCKET
            count = (of_one - 16) // 4
            (mine if kind == RIGHTS else who).extend(struct.unpack_from(f"<{count}i", memory, at + 16))
            at += of_one + 7 & -8
        files.append(mine)
        people.append(who)
    assert len(ends) == 1 or result < 0, ends
    assert len(files[0]) == len(files[1]) and len(people[0]) == len(people[1])
    assert twin.memories[0][TAKEN : TAKEN + 4096] == twin.memories[1][TAKEN : TAKEN + 4096]
    return result, files, people, ends.pop()[1]


def own(twin: Twin, name: str, files: list[list[int]], at: int = 0) -> None:
    """Call what was received by a name."""
    twin._descriptors[name] = files[0][at], files[1][at]


@pytest.mark.parametrize("kind", [STREAM, DGRAM, SEQPACKET], ids=["stream", "dgram", "seqpacket"])
def test_open_files_go_with_a_message(twin: Twin, kind: int) -> None:
    pair(twin, kind)
    twin.pipe("r", "w")
    assert send(twin, "a", b"one", ["r"]) == 3
    assert send(twin, "a", b"two", []) == 3
    twin.close_descriptor("r")
    assert twin.call("write", F("w"), A(0), 1) == 1, "the reader is on its way"
    result, files, _, _ = receive(twin, "b", 2, 64, socket.MSG_PEEK)
    assert result == 2
    own(twin, "peeked", files)
    result, files, _, flags = receive(twin, "b", 100, 64)
    assert result == 3 and not flags
    own(twin, "again", files)
    assert receive(twin, "b", 100, 64)[0:2] == (3, [[], []])
    assert twin.call("read", F("again"), A(0), 9) == 1
    for name in ("again", "peeked", "w"):
        twin.close_descriptor(name)


def test_bytes_before_open_files_go_with_them_and_those_behind_do_not(twin: Twin) -> None:
    pair(twin, STREAM)
    assert [send(twin, "a", *one) for one in ((b"aa", []), (b"bb", ["a", "b"]), (b"cc", []))] == [2, 2, 2]
    result, files, _, _ = receive(twin, "b", 100, 64)
    assert result == 4 and len(files[0]) == 2
    for index, name in enumerate(("x", "y")):
        own(twin, name, files, index)
        twin.close_descriptor(name)
    assert receive(twin, "b", 100, 64)[0] == 2


def test_what_has_no_room_is_told(twin: Twin) -> None:
    pair(twin, DGRAM)
    for room in (0, 15, 16, 19, 20, 24):
        assert send(twin, "a", b"0123456789", ["a", "b"]) == 10
        result, files, _, flags = receive(twin, "b", 5, room)
        assert result == 5 and flags & TRUNC and bool(flags & CTRUNC) == (len(files[0]) < 2)
        for index in range(len(files[0])):
            own(twin, "x", files, index)
            twin.close_descriptor("x")


def test_who_sent_it_is_told_to_those_who_ask(twin: Twin) -> None:
    pair(twin, STREAM)
    twin.put(LENGTH, struct.pack("<i", 1))
    assert twin.call("setsockopt", F("b"), socket.SOL_SOCKET, socket.SO_PASSCRED, A(LENGTH), 4) == 0
    assert twin.call("write", F("a"), A(BUFFER), 3) == 3
    result, _, people, _ = receive(twin, "b", 100, 64)
    assert result == 3
    assert people == [[17, 1000, 1000], [os.getpid(), os.getuid(), os.getgid()]]
    assert send(twin, "a", b"x", ["a"]) == 1
    for room in (28, 100):
        result, files, _, _ = receive(twin, "b", 100, room, socket.MSG_PEEK if room == 28 else 0)
        for index in range(len(files[0])):
            own(twin, "x", files, index)
            twin.close_descriptor("x")


def test_bad_messages_are_refused_as_the_kernel_does(twin: Twin) -> None:
    pair(twin, STREAM)
    for size, level, kind in ((8, 1, 1), (200, 1, 1), (20, 1, 9), (20, 7, 1), (17, 1, 1)):
        for memory in twin.memories:
            struct.pack_into("<Qiii", memory, CONTROL, size, level, kind, NOBODYS)
        twin.call_apart("sendmsg", F("a"), header(twin, [(A(BUFFER), 1)], 24), 0)
    for memory in twin.memories:
        struct.pack_into("<Qiii", memory, CONTROL, 20, 1, RIGHTS, NOBODYS)
    assert twin.call_apart("sendmsg", F("a"), header(twin, [(A(BUFFER), 1)], 24), 0) == -errno.EBADF
    assert twin.call_apart("recvmsg", F("a"), A(HEADER), socket.MSG_OOB) < 0
    for call in ("sendmsg", "recvmsg"):
        twin.call_apart(call, F("dir"), A(HEADER), 0)


def test_names_are_told_as_the_kernel_does(twin: Twin) -> None:
    name = b"\0aether-%d-%d" % (os.getpid(), next(_names))
    address = struct.pack("<H", socket.AF_UNIX) + name
    for one in "lac":
        twin.open(one, "socket", socket.AF_UNIX, STREAM | NONBLOCK, 0)
    twin.put(ADDRESS, address)
    assert twin.call("connect", F("a"), A(ADDRESS), len(address)) == -errno.ECONNREFUSED
    assert twin.call("listen", F("l"), 0) == -errno.EINVAL
    assert twin.call("bind", F("l"), A(ADDRESS), len(address)) == 0
    assert twin.call("bind", F("c"), A(ADDRESS), len(address)) == -errno.EADDRINUSE
    assert twin.call("bind", F("l"), A(ADDRESS), len(address)) == -errno.EINVAL
    assert twin.call("listen", F("l"), 0) == 0
    assert events(twin, "l") == 0
    twin.put(ADDRESS, address)
    assert twin.call("connect", F("a"), A(ADDRESS), len(address)) == 0
    assert twin.call("connect", F("c"), A(ADDRESS), len(address)) == -errno.EAGAIN
    assert twin.call("connect", F("a"), A(ADDRESS), len(address)) == -errno.EAGAIN
    twin.open("s", "accept4", F("l"), 0, 0, NONBLOCK)
    twin.put(ADDRESS, address)
    assert twin.call("connect", F("a"), A(ADDRESS), len(address)) == -errno.EISCONN
    assert name_of(twin, "s") == name_of(twin, "a", "getpeername") == (address, address)
    assert name_of(twin, "a") == name_of(twin, "s", "getpeername") == (b"\x01\0", b"\x01\0")
    for one in "las":
        for number in (
            socket.SO_TYPE,
            socket.SO_DOMAIN,
            socket.SO_PROTOCOL,
            socket.SO_ACCEPTCONN,
            socket.SO_ERROR,
        ):
            option(twin, one, number)
    twin.close_descriptor("l")
    twin.put(ADDRESS, address)
    assert twin.call("connect", F("c"), A(ADDRESS), len(address)) == -errno.ECONNREFUSED
    for length in (0, 1, 2, 111, 128, 129):
        twin.put(ADDRESS, address)
        twin.call("connect", F("c"), A(ADDRESS), length)
    assert twin.call("bind", F("c"), A(ADDRESS), 2) == 0, "it gets a name"
    assert len(name_of(twin, "c")[0]) == 8


def test_a_path_is_a_name_that_only_guests_see(served: Served, guest: Guest) -> None:
    address = struct.pack("<H", socket.AF_UNIX) + b"/w/name\0"
    where = served.put(ADDRESS, address)
    listener = served("socket", 1, STREAM, 0)
    client = served("socket", 1, STREAM, 0)
    assert isinstance(listener, int) and isinstance(client, int)
    assert served("bind", listener, where, len(address)) == 0
    assert served("bind", client, where, len(address)) == -errno.EADDRINUSE
    assert served("connect", client, where, len(address)) == -errno.ECONNREFUSED
    assert served("listen", listener, 1) == 0
    assert served("connect", client, where, len(address)) == 0
    assert served("open", served.text(b"/w/name"), os.O_RDWR, 0) == -errno.ENXIO
    assert not (guest.w / "name").exists()
    assert served("rename", served.text(b"/w/name"), served.text(b"/w/other", ADDRESS + 300)) == 0
    other = served.put(ADDRESS, struct.pack("<H", socket.AF_UNIX) + b"/w/other\0")
    another = served("socket", 1, STREAM, 0)
    assert isinstance(another, int)
    assert served("connect", another, other, 11) == 0
    assert served("unlink", served.text(b"/w/other")) == 0
    assert (
        served("connect", another, served.put(ADDRESS, struct.pack("<H", 1) + b"/w/other\0"), 11)
        == -errno.ENOENT
    )


def test_sockets_that_only_hold_each_other_are_given_back(served: Served, guest: Guest) -> None:
    space = guest.files.namespace.unix
    assert served("socketpair", 1, STREAM, 0, served.put(0, bytes(8))) == 0
    a, b = served.unpack("ii", 0)
    served.put(CONTROL, struct.pack("<Qiiii", 24, 1, RIGHTS, a, b))
    served.put(VECTOR, struct.pack("<QQ", BASE + BUFFER, 1))
    served.put(HEADER, struct.pack("<QI4xQQQQI", 0, 0, BASE + VECTOR, 1, BASE + CONTROL, 24, 0))
    for _ in range(3):
        assert served("sendmsg", a, BASE + HEADER, 0) == 1
        assert served("sendmsg", b, BASE + HEADER, 0) == 1
    served("close", a)
    served("close", b)
    assert space.flying.total() == 12
    last = served("socket", 1, STREAM, 0)
    assert isinstance(last, int)
    served("close", last)
    assert not space.flying and not space.sockets and not space.account.used


def test_open_files_on_their_way_are_limited(served: Served, guest: Guest) -> None:
    guest.files.table.limit = 20
    assert served("socketpair", 1, DGRAM, 0, served.put(0, bytes(8))) == 0
    a, b = served.unpack("ii", 0)
    served.put(CONTROL, struct.pack("<Qii10i", 56, 1, RIGHTS, *[a] * 10))
    served.put(VECTOR, struct.pack("<QQ", BASE + BUFFER, 1))
    served.put(HEADER, struct.pack("<QI4xQQQQI", 0, 0, BASE + VECTOR, 1, BASE + CONTROL, 56, 0))
    answers = [served("sendmsg", a, BASE + HEADER, 0) for _ in range(4)]
    assert answers == [1, 1, 1, -errno.ETOOMANYREFS]
    assert served("recvfrom", b, BASE, 1, 0, 0, 0) == 1
    assert served("recvfrom", b, BASE, 1, 0, 0, 0) == 1
    assert served("sendmsg", a, BASE + HEADER, 0) == 1
