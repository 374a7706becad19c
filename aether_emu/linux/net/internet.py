"""The ports of the machine, and what TCP and UDP sockets do with them alike.

Only the loopback interface exists: 127.0.0.0/8 and ::1. Any other address is on no network (ENETUNREACH), and
nothing here has to do with the host's.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

from aether_emu.errors import Refused
from aether_emu.linux.credentials import NET_BIND_SERVICE, Actor
from aether_emu.linux.files.stat import Stat
from aether_emu.linux.net.address import ANY4, ANY6, LOOPBACK4, LOOPBACK6, Endpoint, nowhere, pack, parse
from aether_emu.linux.net.inbox import Credentials, SocketAccount
from aether_emu.linux.net.options import IPPROTO_IPV6, IPV6_V6ONLY, SO_REUSEADDR, SO_REUSEPORT, SOL_SOCKET
from aether_emu.linux.net.socket import AF_INET, AF_INET6, Socket

FIRST_PORT, LAST_PORT = 32768, 60999
"""Ports for those who name none (Linux net.ipv4.ip_local_port_range)."""
_PRIVILEGED = 1024


class Ports:
    """The ports of one protocol: who is bound to each, in the order in which they were."""

    def __init__(self) -> None:
        self._bound: dict[int, dict[InetSocket, None]] = {}
        self._last = FIRST_PORT - 1

    def at(self, port: int) -> Iterator[InetSocket]:
        """The sockets that are bound to a port."""
        return iter(list(self._bound.get(port, ())))

    def free(self, socket: InetSocket, ip: bytes) -> int:
        """A port that nobody has. Refused(EADDRINUSE) when there is none."""
        for _ in range(FIRST_PORT, LAST_PORT + 1):
            self._last = self._last + 1 if self._last < LAST_PORT else FIRST_PORT
            if self._last not in self._bound:
                return self._last
        raise Refused(errno.EADDRINUSE, "every port is taken")

    def add(self, socket: InetSocket, port: int) -> None:
        """It is bound to the port."""
        self._bound.setdefault(port, {})[socket] = None

    def remove(self, socket: InetSocket, port: int) -> None:
        """It is bound to it no longer."""
        there = self._bound.get(port, {})
        there.pop(socket, None)
        if not there:
            self._bound.pop(port, None)

    def capture(self, number: Callable[[InetSocket], int]) -> dict[str, Any]:
        """Who is bound to which, by the numbers of the sockets."""
        bound = [[port, [number(socket) for socket in there]] for port, there in self._bound.items()]
        return {"bound": bound, "last": self._last}

    def restore(self, state: dict[str, Any], socket: Callable[[int], InetSocket]) -> None:
        """Take over what `capture` gave."""
        self._bound = {port: dict.fromkeys(map(socket, there)) for port, there in state["bound"]}
        self._last = state["last"]

    def all(self) -> Iterator[InetSocket]:
        """Every socket that is bound."""
        return (socket for there in self._bound.values() for socket in there)


class Internet:
    """What the TCP and UDP sockets of a machine share. `stat` gives the attributes of a new one."""

    def __init__(self, account: SocketAccount, stat: Callable[[], Stat], actor: Actor) -> None:
        self.actor = actor
        self.account, self.stat = account, stat
        self.tcp, self.udp = Ports(), Ports()


class InetSocket(Socket):
    """A TCP or UDP socket. `local` is where it is bound, `remote` whom it is connected to.

    `stat` are the attributes of one that was captured; a new one gets its own.
    """

    def __init__(
        self,
        internet: Internet,
        ports: Ports,
        family: int,
        kind: int,
        who: Credentials,
        flags: int,
        stat: Stat | None,
    ) -> None:
        super().__init__(kind, internet.account, who, flags, stat or internet.stat())
        self.family = family  # type: ignore[misc]  # one class serves both
        self.internet, self.ports = internet, ports
        self.local = nowhere(family)
        self.remote: Endpoint | None = None
        self.is_bound_by_program = False
        self.bound_ip = self.local.ip  # what bind said

    # ---- addresses

    def endpoint(self, address: bytes) -> Endpoint | None:
        """The endpoint in an address, as this socket may use it; None for AF_UNSPEC."""
        found = parse(self.family, address)
        if found is not None and self._is_v6_only() and len(found.ip) == 4:
            raise Refused(errno.ENETUNREACH, "the socket is for IPv6 alone")
        return found

    def _is_v6_only(self) -> bool:
        return self.family == AF_INET6 and bool(self.options.get(IPPROTO_IPV6, IPV6_V6ONLY))

    def destination(self, told: Endpoint) -> Endpoint:
        """Where a packet to `told` goes. Refused(ENETUNREACH) if that is not on this machine."""
        if told.is_any:
            mapped = self.family == AF_INET or len(self.local.ip) == 4
            return Endpoint(LOOPBACK4 if mapped else LOOPBACK6, told.port)
        if not told.is_loopback:
            raise Refused(errno.ENETUNREACH, "there is no network but the loopback interface")
        return told

    def covers(self, ip: bytes) -> bool:
        """Whether packets to this address are for it, as far as its own address says."""
        if self.local.ip == ip:
            return True
        if not self.local.is_any:
            return False
        if len(self.local.ip) == len(ip):
            return True
        return len(self.local.ip) == 16 and not self._is_v6_only()

    def source(self, destination: Endpoint) -> Endpoint:
        """Where packets to `destination` come from."""
        if not self.local.is_any:
            return self.local
        return Endpoint(LOOPBACK4 if len(destination.ip) == 4 else LOOPBACK6, self.local.port)

    # ---- bind

    def bind(self, address: bytes) -> None:
        """See `Socket.bind`."""
        told = self._to_bind(address)
        if self.local.port or self.is_over_bound():
            raise Refused(errno.EINVAL, "it is bound")
        if 0 < told.port < _PRIVILEGED and not self.internet.actor.credentials.has(NET_BIND_SERVICE):
            raise Refused(errno.EACCES, f"port {told.port} is for root")
        before, self.local = self.local, Endpoint(told.ip, 0)
        try:
            self.take_port(told.port)
        except Refused:
            self.local = before
            raise
        self.is_bound_by_program, self.bound_ip = True, told.ip

    def _to_bind(self, address: bytes) -> Endpoint:
        if self.family == AF_INET and len(address) >= 16 and address[:2] == b"\0\0" and not any(address[4:8]):
            address = AF_INET.to_bytes(2, "little") + address[2:]  # as Linux, for old programs
        told = parse(self.family, address)
        if told is None:
            raise Refused(errno.EAFNOSUPPORT, "an address without a family")
        if self._is_v6_only() and len(told.ip) == 4:
            raise Refused(errno.EINVAL, "the socket is for IPv6 alone")
        if not (told.is_any or told.is_loopback):
            raise Refused(errno.EADDRNOTAVAIL, "no interface has this address")
        return told

    def is_over_bound(self) -> bool:
        """Whether it is past the state in which bind can name it."""
        return False

    def take_port(self, port: int = 0) -> None:
        """Bind to `port`, or to one that is free. Refused(EADDRINUSE)."""
        if not port:
            port = self.ports.free(self, self.local.ip)
        elif any(self.conflicts_with(other) for other in self.ports.at(port)):
            raise Refused(errno.EADDRINUSE, f"port {port} is taken")
        self.local = Endpoint(self.local.ip, port)
        self.ports.add(self, port)

    def leave_port(self) -> None:
        """Be bound to nothing."""
        if self.local.port:
            self.ports.remove(self, self.local.port)
        self.local = nowhere(self.family)

    def conflicts_with(self, other: InetSocket) -> bool:
        """Whether both can't be bound to one port (Linux inet_csk_bind_conflict)."""
        if other is self or not self._overlaps(other):
            return False
        if self._both(other, SO_REUSEPORT) and self.who.uid == other.who.uid:
            return False
        return not self._both(other, SO_REUSEADDR) or self.refuses_to_share(other)

    def refuses_to_share(self, other: InetSocket) -> bool:
        """Whether SO_REUSEADDR of both does not suffice."""
        return False

    def _both(self, other: InetSocket, option: int) -> bool:
        return bool(self.options.get(SOL_SOCKET, option) and other.options.get(SOL_SOCKET, option))

    def _overlaps(self, other: InetSocket) -> bool:
        if other.local.is_any and self.local.is_any:
            return len(self.local.ip) == len(other.local.ip) or not (
                self._is_v6_only() or other._is_v6_only()
            )
        return self.covers(other.local.ip) or other.covers(self.local.ip)

    # ---- names

    def name(self) -> bytes:
        """See `Socket.name`."""
        return pack(self.family, self.local)

    def peer_name(self) -> bytes:
        """See `Socket.peer_name`."""
        if self.remote is None:
            raise Refused(errno.ENOTCONN, "it is not connected")
        return pack(self.family, self.remote)


def best(sockets: list[InetSocket], ip: bytes, source_port: int) -> InetSocket | None:
    """Of sockets that are bound to one port and cover `ip`, the nearest; of equals, chosen by who sends."""
    for is_near in (
        lambda socket: socket.local.ip == ip,
        lambda socket: socket.local.ip == (ANY4 if len(ip) == 4 else ANY6),
        lambda socket: True,
    ):
        near = [socket for socket in sockets if is_near(socket)]
        if near:
            return near[source_port % len(near)]
    return None
