"""Addresses, ports and options of sockets, beside the real kernel's where it has the same."""

from __future__ import annotations

import errno
import itertools
import select
import socket
import struct

import pytest

from tests.linux.calls.test_epolling import Sets
from tests.linux.calls.test_sockets import (
    ADDRESS,
    BUFFER,
    DGRAM,
    LENGTH,
    NONBLOCK,
    STREAM,
    connected,
    events,
    option,
    pair,
    ports_of,
    put_each,
)
from tests.linux.calls.twin import A, F, Served, Twin

INET, INET6 = socket.AF_INET, socket.AF_INET6
ADDRESSES = ["0.0.0.0", "127.0.0.1", "127.0.0.2", "::", "::only", "::1", "::ffff:127.0.0.1"]
UNBOUND = (0, 0)


def sockaddr(text: str, port: int) -> bytes:
    """A `struct sockaddr` of 28 bytes at most."""
    text = text.removesuffix("only")
    if ":" in text:
        head = struct.pack("<H", INET6) + struct.pack(">HI", port, 0)
        return head + socket.inet_pton(INET6, text) + bytes(4)
    return struct.pack("<H", INET) + struct.pack(">H", port) + socket.inet_aton(text) + bytes(8)


def made(twin: Twin, name: str, text: str, kind: int, reuse: int, share: int) -> None:
    """A socket with its options."""
    twin.open(name, "socket", INET6 if ":" in text else INET, kind | NONBLOCK, 0)
    for number, value in ((socket.SO_REUSEADDR, reuse), (socket.SO_REUSEPORT, share)):
        twin.put(LENGTH, struct.pack("<i", value))
        assert twin.call("setsockopt", F(name), socket.SOL_SOCKET, number, A(LENGTH), 4) == 0
    if ":" in text:
        twin.put(LENGTH, struct.pack("<i", text.endswith("only")))
        assert twin.call("setsockopt", F(name), socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, A(LENGTH), 4) == 0


def bind(twin: Twin, name: str, text: str, ports: tuple[int, int] = UNBOUND) -> int:
    """bind(2)."""
    ours, theirs = (sockaddr(text, port) for port in ports)
    return twin.call_apart("bind", F(name), put_each(twin, ADDRESS, ours, theirs), len(ours))


@pytest.mark.parametrize("kind", [STREAM, DGRAM], ids=["tcp", "udp"])
def test_who_may_share_a_port_is_as_the_kernel_has_it(twin: Twin, kind: int) -> None:
    options = [((0, 0), (0, 0)), ((1, 0), (1, 0)), ((0, 1), (0, 1)), ((1, 0), (0, 1))]
    listening = (False, True) if kind == STREAM else (False,)
    for one, other, (first, second), listens in itertools.product(ADDRESSES, ADDRESSES, options, listening):
        made(twin, "one", one, kind, *first)
        made(twin, "other", other, kind, *second)
        if bind(twin, "one", one) == 0:
            if listens:
                assert twin.call("listen", F("one"), 1) == 0
            try:
                bound = bind(twin, "other", other, ports_of(twin, "one"))
                if kind == STREAM and not bound:
                    twin.call("listen", F("other"), 1)
            except AssertionError as wrong:
                wrong.add_note(f"{one} {first}, {other} {second}, listening: {listens}")
                raise
        twin.close_descriptor("one")
        twin.close_descriptor("other")


@pytest.mark.parametrize("state", ["new", "bound", "listening"])
def test_nothing_is_received_from_a_socket_that_was_never_connected(twin: Twin, state: str) -> None:
    made(twin, "one", "127.0.0.1", STREAM, 0, 0)
    if state != "new":
        assert bind(twin, "one", "127.0.0.1") == 0
    if state == "listening":
        assert twin.call("listen", F("one"), 1) == 0
    for flags in (0, socket.MSG_DONTWAIT, socket.MSG_PEEK, socket.MSG_WAITALL):
        assert twin.call("recvfrom", F("one"), A(0), 8, flags, 0, 0) == -errno.ENOTCONN
    twin.call("recvfrom", F("one"), A(0), 8, socket.MSG_OOB, 0, 0)
    assert twin.call("read", F("one"), A(0), 8) == -errno.ENOTCONN


def test_nothing_is_on_any_network_but_the_loopback_interface(served: Served) -> None:
    tcp, udp = served("socket", INET, STREAM, 0), served("socket", INET, DGRAM, 0)
    tcp6 = served("socket", INET6, STREAM, 0)
    assert isinstance(tcp, int) and isinstance(udp, int) and isinstance(tcp6, int)
    far, far6 = sockaddr("8.8.8.8", 53), sockaddr("2001:db8::1", 53)
    assert served("connect", tcp, served.put(ADDRESS, far), 16) == -errno.ENETUNREACH
    assert served("connect", udp, served.put(ADDRESS, far), 16) == -errno.ENETUNREACH
    assert served("connect", tcp6, served.put(ADDRESS, far6), 28) == -errno.ENETUNREACH
    assert served("sendto", udp, BUFFER, 0, 0, served.put(ADDRESS, far), 16) == -errno.ENETUNREACH
    assert served("bind", tcp, served.put(ADDRESS, far), 16) == -errno.EADDRNOTAVAIL
    assert served("bind", tcp, served.put(ADDRESS, sockaddr("127.0.0.1", 80)), 16) == -errno.EACCES
    assert served("connect", tcp, served.put(ADDRESS, sockaddr("127.9.9.9", 9)), 16) == -errno.ECONNREFUSED
    assert served("socket", socket.AF_NETLINK, socket.SOCK_RAW, 0) == -errno.EAFNOSUPPORT
    assert served("socket", socket.AF_PACKET, socket.SOCK_RAW, 0) == -errno.EPERM


def test_kinds_that_do_not_exist_are_refused_as_the_kernel_does(twin: Twin) -> None:
    inet = [
        (STREAM, 17),
        (DGRAM, 6),
        (9, 0),
        (4, 0),
        (socket.SOCK_RAW, 0),
        (STREAM | 1 << 12, 0),
        (STREAM, 999),
    ]
    unix = [(4, 0), (9, 0), (STREAM, 7)]
    others = [(99, STREAM, 0), (-1, STREAM, 0)]
    for family, kind, protocol in (*((INET, *one) for one in inet), *((1, *one) for one in unix), *others):
        twin.call("socket", family, kind, protocol)
    assert twin.call_apart("socketpair", INET, STREAM, 0, A(0)) == -errno.EOPNOTSUPP
    twin.put(0, bytes(8))
    for call in ("bind", "connect"):
        twin.call(call, F("dir"), A(ADDRESS), 16)
    twin.call("listen", F("dir"), 1)
    twin.call("shutdown", F("dir"), 1)


def test_options_are_kept_and_refused_as_the_kernel_does(twin: Twin) -> None:
    made(twin, "t", "127.0.0.1", STREAM, 0, 0)
    made(twin, "u", "127.0.0.1", DGRAM, 0, 0)
    made(twin, "6", "::1", STREAM, 0, 0)
    pair(twin, STREAM)
    sol, flags, buffers = socket.SOL_SOCKET, (2, 5, 6, 9, 10, 15), (7, 8, 18)
    settings = [(sol, number, value) for number in flags for value in (0, 1, 3)]
    settings += [(sol, number, value) for number in buffers for value in (0, 1, 3000, 50_000)]
    settings += [(sol, number, 1) for number in (3, 4, 30, 38, 39, 999)]
    for level, numbers in (
        (socket.IPPROTO_TCP, (1, 3, 4, 5, 6, 7, 18)),
        (0, (2, 10, 999)),
        (41, (16, 26)),
    ):
        settings += [(level, number, value) for number in numbers for value in (-1, 0, 2, 300, 1 << 20)]
    settings += [(level, number, value) for level, number in ((0, 1), (41, 67)) for value in (0, 8)]
    settings.append((99, 1, 1))
    for name, (level, number, value) in itertools.product("tu6a", settings):
        if (name, level) == ("6", socket.IPPROTO_IP) or (name, number) == ("a", socket.SO_REUSEPORT):
            continue  # newer kernels refuse the latter
        twin.put(LENGTH + 16, struct.pack("<i", value))
        try:
            twin.call("setsockopt", F(name), level, number, A(LENGTH + 16), 4)
            option(twin, name, number, level)
        except AssertionError as wrong:
            wrong.add_note(f"{name}: level {level}, option {number}, value {value}")
            raise
    for length in (-1, 0, 1, 3, 5):
        twin.put(LENGTH + 16, struct.pack("<i", 1))
        twin.call("setsockopt", F("t"), socket.SOL_SOCKET, socket.SO_REUSEADDR, A(LENGTH + 16), length)


def test_edges_of_a_connection_are_those_of_the_kernel(twin: Twin) -> None:
    connected(twin, INET)
    sets = Sets(twin)
    every = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | 1 << 31
    assert sets.control(1, "b", every, 7) == 0
    assert sets.wait() == [(7, select.EPOLLOUT)]
    assert sets.wait() == []
    for size in (1, 2):
        assert twin.call("write", F("a"), A(BUFFER), size) == size
        assert sets.wait() and sets.wait() == []
    assert twin.call("read", F("b"), A(BUFFER), 1) == 1
    assert sets.wait() == []
    assert twin.call("shutdown", F("a"), 1) == 0
    assert sets.wait() and sets.wait() == []
    assert twin.call("shutdown", F("b"), 1) == 0
    sets.wait()
    assert sets.wait() == []


@pytest.mark.parametrize("kind", [STREAM, DGRAM, socket.SOCK_SEQPACKET])
def test_a_pair_is_full_where_the_kernel_s_is(twin: Twin, kind: int) -> None:
    for size in (1, 300, 4000):
        pair(twin, kind)
        twin.put(BUFFER, bytes(4096))
        for _ in range(600):
            if twin.call("sendto", F("a"), A(BUFFER), size, 0, 0, 0) == -errno.EAGAIN:
                break
            events(twin, "a")
        for _ in range(300):
            if twin.call("recvfrom", F("b"), A(BUFFER), 4096, 0, 0, 0) == -errno.EAGAIN:
                break
            events(twin, "a")
        twin.close_descriptor("a")
        twin.close_descriptor("b")
