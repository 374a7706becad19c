"""Internet addresses of this machine, and `struct sockaddr_in` and `sockaddr_in6` as bytes.

An `Endpoint` has the packed address: 4 bytes for IPv4, also where a program wrote it as an IPv6 address
(`::ffff:127.0.0.1`), 16 for IPv6. Nothing but the loopback interface exists.
"""

from __future__ import annotations

import errno
import struct
from typing import NamedTuple

from aether_emu.errors import Refused
from aether_emu.linux.net.socket import AF_INET, AF_INET6, AF_UNSPEC

ANY4, ANY6 = bytes(4), bytes(16)
LOOPBACK4, LOOPBACK6 = bytes((127, 0, 0, 1)), bytes(15) + b"\x01"
_MAPPED = bytes(10) + b"\xff\xff"
_SIZE = {AF_INET: 16, AF_INET6: 24}


class Endpoint(NamedTuple):
    """An address and a port."""

    ip: bytes
    port: int

    @property
    def is_any(self) -> bool:
        """Whether it stands for every address of the machine."""
        return not any(self.ip)

    @property
    def is_loopback(self) -> bool:
        """Whether this machine has the address."""
        return self.ip[0] == 127 if len(self.ip) == 4 else self.ip == LOOPBACK6


def nowhere(family: int) -> Endpoint:
    """The endpoint of a socket that is not bound."""
    return Endpoint(ANY4 if family == AF_INET else ANY6, 0)


def parse(family: int, address: bytes) -> Endpoint | None:
    """The endpoint in a `struct sockaddr` for a socket of `family`; None for AF_UNSPEC.

    Refused(EINVAL, EAFNOSUPPORT).
    """
    if len(address) < 2:
        raise Refused(errno.EINVAL, f"an address of {len(address)} bytes")
    (told,) = struct.unpack_from("<H", address)
    if told == AF_UNSPEC:
        return None
    if told != family:
        raise Refused(errno.EAFNOSUPPORT, f"an address of family {told}")
    if len(address) < _SIZE[family]:
        raise Refused(errno.EINVAL, f"an address of {len(address)} bytes")
    (port,) = struct.unpack_from(">H", address, 2)
    if family == AF_INET:
        return Endpoint(address[4:8], port)
    ip = address[8:24]
    return Endpoint(ip[12:] if ip.startswith(_MAPPED) else ip, port)


def pack(family: int, endpoint: Endpoint) -> bytes:
    """The `struct sockaddr` of an endpoint for a socket of `family`."""
    head = struct.pack("<H", family) + struct.pack(">H", endpoint.port)
    if family == AF_INET:
        return head + endpoint.ip[-4:] + bytes(8)
    ip = endpoint.ip
    if len(ip) == 4:
        ip = _MAPPED + ip if any(ip) else ANY6
    return head + bytes(4) + ip + bytes(4)
