"""UDP on the loopback interface: each datagram finds its receiver at once, or is lost."""

from __future__ import annotations

import errno

from aether_emu.errors import Refused
from aether_emu.linux.files.open_file import POLLERR, POLLHUP, POLLIN, POLLOUT, WouldBlock
from aether_emu.linux.files.ownership import POLL_IN
from aether_emu.linux.files.stat import Stat
from aether_emu.linux.net.address import Endpoint, pack
from aether_emu.linux.net.inbox import Credentials, Message, Received, cost_of
from aether_emu.linux.net.internet import InetSocket, Internet, best
from aether_emu.linux.net.options import IPPROTO_UDP, SO_BROADCAST, SOL_SOCKET
from aether_emu.linux.net.socket import (
    PLAIN,
    POLLRDHUP,
    POLLWRBAND,
    SHUT_RD,
    SHUT_WR,
    SOCK_DGRAM,
    Outgoing,
    Socket,
)

_LARGEST = 65507
_BROADCAST = bytes((255, 255, 255, 255))


class UdpSocket(InetSocket):
    """One UDP socket. Equal ones that share a port are chosen by the sender's port (SO_REUSEPORT)."""

    def __init__(
        self, internet: Internet, family: int, who: Credentials, flags: int, stat: Stat | None = None
    ) -> None:
        super().__init__(internet, internet.udp, family, SOCK_DGRAM, who, flags, stat)
        self.protocol = IPPROTO_UDP
        self.taken = 0  # what of SO_RCVBUF is taken
        self.begun: tuple[bytes, Endpoint] | None = None  # a datagram whose rest comes with the next call

    def release(self) -> None:
        """See `OpenFile.release`."""
        self.leave_port()
        self.inbox.clear(lambda _files: None)

    def listen(self, backlog: int) -> None:
        """See `Socket.listen`."""
        raise Refused(errno.EOPNOTSUPP, "UDP has no connections")

    def accept(self) -> UdpSocket:
        """See `Socket.accept`."""
        raise Refused(errno.EOPNOTSUPP, "UDP has no connections")

    def connect(self, address: bytes, at: Socket | None = None) -> None:
        """See `Socket.connect`: whom datagrams go to and come from."""
        told = self.endpoint(address)
        if told is None:
            self._disconnect()
            return
        remote = self.destination(told)
        if not self.local.port:
            self.take_port()
        self.local = self.source(remote)
        self.remote = remote

    def _disconnect(self) -> None:
        """As Linux, which frees what bind did not ask for."""
        self.remote = None
        self.local = Endpoint(self.bound_ip, self.local.port)
        if not self.is_bound_by_program:
            self.leave_port()

    def shutdown(self, how: int) -> None:
        """See `Socket.shutdown`."""
        if self.remote is None:
            raise Refused(errno.ENOTCONN, "it is not connected")
        self.reads_shut |= how != SHUT_WR
        self.writes_shut |= how != SHUT_RD
        self.changed()

    def send(self, data: bytes, outgoing: Outgoing = PLAIN) -> int:
        """See `Socket.send`. What nobody receives, or has no room for, is lost."""
        count, begun = len(data), self.begun
        if begun is not None:
            data = begun[0] + data
        if len(data) > _LARGEST:
            raise Refused(errno.EMSGSIZE, f"a datagram of {len(data)} bytes")
        told = (
            begun[1]
            if begun is not None
            else self.endpoint(outgoing.address)
            if outgoing.address
            else self.remote
        )
        if told is None:
            raise Refused(errno.EDESTADDRREQ, "no address, and no connection")
        if not told.port:
            raise Refused(errno.EINVAL, "port 0")
        self.take_error()
        if self.writes_shut:
            raise Refused(errno.EPIPE, "it was shut down")
        if told.ip == _BROADCAST and not self.options.get(SOL_SOCKET, SO_BROADCAST):
            raise Refused(errno.EACCES, "SO_BROADCAST is not set")
        to = self.destination(told)
        if not self.local.port:
            self.take_port()
        self.begun = (data, told) if outgoing.more else None
        if outgoing.more:
            return count
        source = self.source(to)
        receiver = self._receiver(to, source)
        if receiver is not None:
            receiver.deliver(data, source)
        elif self.remote == to:
            self.fail(errno.ECONNREFUSED)
        return count

    def _receiver(self, to: Endpoint, source: Endpoint) -> UdpSocket | None:
        there = [
            socket
            for socket in self.ports.at(to.port)
            if isinstance(socket, UdpSocket) and socket.covers(to.ip) and socket.remote in (None, source)
        ]
        connected = [socket for socket in there if socket.remote is not None]
        found = best([*connected] or [*there], to.ip, source.port)
        assert found is None or isinstance(found, UdpSocket), "of UDP's ports"
        return found

    def deliver(self, data: bytes, source: Endpoint) -> None:
        """A datagram arrives; without room it is lost."""
        cost = cost_of(len(data))
        if self.taken > self.options.receive_buffer - cost or self.reads_shut:
            return
        try:
            self.inbox.put(Message(data, cost, self, address=pack(self.family, source)))
        except Refused:
            return
        self.taken += cost
        self.arrived.wake()
        self.tell(POLL_IN)

    def paid(self, cost: int) -> None:
        """See `Socket.paid`."""
        self.taken -= cost

    def receive(self, count: int, *, peek: bool = False) -> Received | WouldBlock:
        """See `Socket.receive`."""
        self.take_error()
        if not self.inbox:
            return Received(b"", 0) if self.reads_shut else WouldBlock(self, POLLIN)
        return self.inbox.take_message(count, peek=peek)

    def send_room(self) -> int:
        """See `Socket.send_room`."""
        return _LARGEST + 1

    def poll(self) -> int:
        """See `OpenFile.poll`."""
        events = POLLOUT | POLLWRBAND | (POLLERR if self.error else 0)
        if self.reads_shut:
            events |= POLLRDHUP | POLLIN | (POLLHUP if self.writes_shut else 0)
        return events | (POLLIN if self.inbox else 0)
