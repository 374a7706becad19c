"""Sockets, beside the real kernel's: every call gets the same answer there."""

from __future__ import annotations

import errno
import itertools
import random
import socket
import struct
from collections.abc import Callable

import pytest

from tests.linux.calls.twin import A, F, Twin

STREAM, DGRAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
NONBLOCK = socket.SOCK_NONBLOCK
EVERY_EVENT = 0x23DF
FIONREAD, SIOCOUTQ = 0x541B, 0x5411
BUFFER, ADDRESS, LENGTH = 4096, 36864, 36864 + 512
"""Addresses are on the page that is not compared: ports and inode numbers differ."""
_names = itertools.count()


def pair(twin: Twin, kind: int) -> None:
    """Sockets "a" and "b", connected."""
    assert twin._raw("socketpair", (socket.AF_UNIX, kind | NONBLOCK, 0, A(0))) == (0, 0)
    ours = struct.unpack_from("<ii", twin.served.memory.content)
    theirs = struct.unpack_from("<ii", twin.native.content)
    twin.put(0, bytes(8))
    for name, descriptors in zip("ab", zip(ours, theirs, strict=True), strict=True):
        twin._descriptors[name] = descriptors


def events(twin: Twin, name: str) -> int:
    """What poll(2) says of a socket, on both sides alike."""
    for side, memory in enumerate(twin.memories):
        struct.pack_into("<iHH", memory, ADDRESS, twin.pair(name)[side], EVERY_EVENT, 0)
    twin.call_apart("poll", A(ADDRESS), 1, 0)
    ours, theirs = (struct.unpack_from("<H", memory, ADDRESS + 6)[0] for memory in twin.memories)
    assert ours == theirs, f"{name}: {ours:#x}, the kernel {theirs:#x}"
    return int(ours)


def option(twin: Twin, name: str, number: int, level: int = socket.SOL_SOCKET) -> int:
    """getsockopt(2) of an integer."""
    twin.put(LENGTH, struct.pack("<i", 4))
    twin.call_apart("getsockopt", F(name), level, number, A(ADDRESS), A(LENGTH))
    ours, theirs = (struct.unpack_from("<i", memory, ADDRESS)[0] for memory in twin.memories)
    assert ours == theirs, f"option {number}: {ours}, the kernel {theirs}"
    return int(ours)


def put_each(twin: Twin, offset: int, ours: bytes, theirs: bytes) -> A:
    """Store another thing on each side."""
    twin.served.put(offset, ours)
    twin.native.content[offset : offset + len(theirs)] = theirs
    return A(offset)


def name_of(twin: Twin, name: str, call: str = "getsockname") -> tuple[bytes, bytes]:
    """A socket's name on both sides."""
    twin.put(LENGTH, struct.pack("<i", 128))
    assert twin.call_apart(call, F(name), A(ADDRESS), A(LENGTH)) == 0
    sizes = [struct.unpack_from("<i", memory, LENGTH)[0] for memory in twin.memories]
    assert sizes[0] == sizes[1]
    ours, theirs = (bytes(memory[ADDRESS : ADDRESS + sizes[0]]) for memory in twin.memories)
    return ours, theirs


def look(twin: Twin, name: str) -> None:
    """Compare what can be seen of a socket."""
    events(twin, name)
    twin.call("ioctl", F(name), FIONREAD, A(64))


Step = Callable[[Twin, str, random.Random], object]


def send(twin: Twin, name: str, chance: random.Random) -> object:
    flags = chance.choice([0, socket.MSG_NOSIGNAL, socket.MSG_DONTWAIT])
    return twin.call("sendto", F(name), A(BUFFER), chance.choice([0, 1, 7, 100, 3000]), flags, 0, 0)


def write(twin: Twin, name: str, chance: random.Random) -> object:
    return twin.call("write", F(name), A(BUFFER), chance.choice([1, 10, 500]))


def receive(twin: Twin, name: str, chance: random.Random) -> object:
    flags = chance.choice([0, 0, socket.MSG_PEEK, socket.MSG_TRUNC, socket.MSG_WAITALL, socket.MSG_DONTWAIT])
    return twin.call("recvfrom", F(name), A(BUFFER * 3), chance.choice([1, 5, 50, 4000]), flags, 0, 0)


def read(twin: Twin, name: str, chance: random.Random) -> object:
    return twin.call("read", F(name), A(BUFFER * 3), chance.choice([0, 1, 20, 4000]))


def shut(twin: Twin, name: str, chance: random.Random) -> object:
    return twin.call("shutdown", F(name), chance.choice([0, 1, 2])) if chance.random() < 0.1 else None


def error(twin: Twin, name: str, _chance: random.Random) -> object:
    return option(twin, name, socket.SO_ERROR)


STEPS: tuple[Step, ...] = (send, send, write, receive, receive, read, shut, error)


def walk(twin: Twin, chance: random.Random, steps: int = 60) -> None:
    """Do one thing after another to "a" and "b", close one of them in the end, and go on with the other."""
    twin.put(BUFFER, bytes(i % 251 for i in range(BUFFER)))
    for number in range(steps):
        name = chance.choice("ab")
        try:
            chance.choice(STEPS)(twin, name, chance)
            look(twin, "a")
            look(twin, "b")
        except AssertionError as wrong:
            wrong.add_note(f"step {number}")
            raise
    twin.close_descriptor("a")
    for _ in range(4):
        look(twin, "b")
        chance.choice(STEPS)(twin, "b", chance)
    twin.close_descriptor("b")


@pytest.mark.parametrize("kind", [STREAM, DGRAM, SEQPACKET], ids=["stream", "dgram", "seqpacket"])
@pytest.mark.parametrize("seed", range(4))
def test_a_pair_answers_as_the_kernel_does(twin: Twin, kind: int, seed: int) -> None:
    pair(twin, kind)
    walk(twin, random.Random(seed))


def internet(twin: Twin, family: int, kind: int, name: str) -> None:
    """A socket that is bound to the loopback address and a free port."""
    twin.open(name, "socket", family, kind | NONBLOCK, 0)
    assert (
        twin.call_apart("bind", F(name), address(twin, family), 28 if family == socket.AF_INET6 else 16) == 0
    )


def address(twin: Twin, family: int, ports: tuple[int, int] = (0, 0)) -> A:
    """A `struct sockaddr` of the loopback address."""
    packed = [
        struct.pack("<H", family)
        + struct.pack(">H", port)
        + (bytes((127, 0, 0, 1)) + bytes(8) if family == socket.AF_INET else bytes(19) + b"\x01" + bytes(4))
        for port in ports
    ]
    return put_each(twin, ADDRESS, *packed)


def ports_of(twin: Twin, name: str) -> tuple[int, int]:
    """A socket's port on both sides."""
    ours, theirs = name_of(twin, name)
    return struct.unpack(">H", ours[2:4])[0], struct.unpack(">H", theirs[2:4])[0]


FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["4", "6"])


def connected(twin: Twin, family: int) -> None:
    """TCP sockets "a" and "b", connected, and their listener "l"."""
    size = 28 if family == socket.AF_INET6 else 16
    internet(twin, family, STREAM, "l")
    assert twin.call("listen", F("l"), 1) == 0
    twin.open("a", "socket", family, STREAM | NONBLOCK, 0)
    where = address(twin, family, ports_of(twin, "l"))
    assert twin.call_apart("connect", F("a"), where, size) == -errno.EINPROGRESS
    look(twin, "a")
    events(twin, "l")
    assert twin.call_apart("connect", F("a"), where, size) == 0
    assert twin.call_apart("connect", F("a"), where, size) == -errno.EISCONN
    twin.open("b", "accept4", F("l"), 0, 0, NONBLOCK)
    assert twin.call("accept4", F("l"), 0, 0, 0) == -errno.EAGAIN
    twin.put(ADDRESS, struct.pack("<i", 1))
    for name in "ab":  # or the kernel holds small pieces back for a while
        assert twin.call("setsockopt", F(name), socket.IPPROTO_TCP, socket.TCP_NODELAY, A(ADDRESS), 4) == 0


@FAMILIES
@pytest.mark.parametrize("seed", range(3))
def test_a_connection_answers_as_the_kernel_does(twin: Twin, family: int, seed: int) -> None:
    connected(twin, family)
    walk(twin, random.Random(seed))


@FAMILIES
def test_datagrams_answer_as_the_kernel_does(twin: Twin, family: int) -> None:
    size = 28 if family == socket.AF_INET6 else 16
    internet(twin, family, DGRAM, "a")
    internet(twin, family, DGRAM, "b")
    for name, other in ("ab", "ba"):
        look(twin, name)
        assert twin.call("write", F(name), A(0), 3) == -errno.EDESTADDRREQ
        assert twin.call_apart("connect", F(name), address(twin, family, ports_of(twin, other)), size) == 0
    walk(twin, random.Random(family))
