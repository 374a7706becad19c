"""What sockets of every family have in common: calls and their refusals, wait queues, options of the socket.

Addresses are whole `struct sockaddr` as bytes. A call that must wait answers `WouldBlock`, even of a socket
with O_NONBLOCK: whether to wait is the caller's to decide, since a flag of the call can forbid it.
"""

from __future__ import annotations

import errno
import os
import struct
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Self

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import POLLIN, POLLOUT, OpenFile, WouldBlock
from aether_emu.linux.files.ownership import POLL_ERR, POLL_HUP, POLL_IN, POLL_OUT, Listeners
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.linux.net.inbox import NOBODY, Credentials, Inbox, Received, SocketAccount
from aether_emu.linux.net.options import Options
from aether_emu.waiting import WaitQueue

AF_UNSPEC, AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET = 0, 1, 2, 10, 16, 17
SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET = 1, 2, 3, 5
SHUT_RD, SHUT_WR, SHUT_RDWR = 0, 1, 2
POLLRDHUP, POLLWRBAND = 0x2000, 0x200
MOST_BACKLOG = 4096
"""Connections that wait to be accepted, at most (Linux net.core.somaxconn)."""
SIOCATMARK, SIOCINQ, SIOCOUTQ = 0x8905, 0x541B, 0x5411
_SOCKFS_MAGIC = 0x534F434B


class Outgoing(NamedTuple):
    """What goes with sent bytes. An empty `address` is the peer's; the sender lets go of `rights` itself.

    `at` is the socket that a path leads to, where `address` is one. `more` says that the next call sends the
    rest of the message (MSG_MORE): only UDP waits for it.
    """

    address: bytes = b""
    at: Socket | None = None
    rights: tuple[OpenFile, ...] = ()
    credentials: Credentials | None = None
    more: bool = False


PLAIN = Outgoing()


class Socket(OpenFile):
    """One socket. `who` made it, `peer_who` is whom it is connected to.

    `arrived` is woken when something can be received or accepted, or never will be; `room` when something
    can be sent, or a connection was made or refused. `error` is what the next call answers (SO_ERROR).
    """

    kind = "socket"
    is_socket = True
    family: ClassVar[int]

    def __init__(self, kind: int, account: SocketAccount, who: Credentials, flags: int, stat: Stat) -> None:
        super().__init__(flags & ~fl.O_ACCMODE | fl.O_RDWR, stat)
        self.type = kind
        self.protocol = 0
        self.who, self.peer_who = who, NOBODY
        self.inbox = Inbox(account)
        self.arrived, self.room = WaitQueue(), WaitQueue()
        self._receivers: WaitQueue | None = None
        self.options = Options()
        self.error = 0
        self.backlog = 0
        self.is_listening = self.reads_shut = self.writes_shut = False
        self.told: Listeners | None = None
        self.wants_room = False
        """Whether somebody found no room since an owner was last told that there is some."""
        self.wanting: dict[Socket, None] = {}
        """Sockets that wait for room in this one's inbox, or in its line of connections."""

    @property
    def is_stream(self) -> bool:
        """Whether it carries bytes rather than messages."""
        return self.type == SOCK_STREAM

    # ---- what a family does

    @abstractmethod
    def bind(self, address: bytes) -> None:
        """bind(2)."""

    @abstractmethod
    def listen(self, backlog: int) -> None:
        """listen(2)."""

    @abstractmethod
    def connect(self, address: bytes, at: Socket | None = None) -> WouldBlock | None:
        """connect(2); `at` is the socket that a path leads to, where `address` is one.

        Raises Refused(EINPROGRESS) if it goes on by itself and O_NONBLOCK is set.
        """

    @abstractmethod
    def accept(self) -> Self | WouldBlock:
        """The first connection that waits; nobody holds it yet."""

    @abstractmethod
    def send(self, data: bytes, outgoing: Outgoing = PLAIN) -> int | WouldBlock:
        """Send a message, or as much of a stream's bytes as there is room for. EPIPE is without a signal."""

    @abstractmethod
    def receive(self, count: int, *, peek: bool = False) -> Received | WouldBlock:
        """A message, or up to `count` bytes of a stream, which are fewer only if no more are there."""

    @abstractmethod
    def shutdown(self, how: int) -> None:
        """shutdown(2)."""

    @abstractmethod
    def name(self) -> bytes:
        """getsockname(2)."""

    @abstractmethod
    def peer_name(self) -> bytes:
        """getpeername(2)."""

    @abstractmethod
    def send_room(self) -> int:
        """The most bytes of a stream that one `send` takes now."""

    @abstractmethod
    def paid(self, cost: int) -> None:
        """See `inbox.Payer`."""

    # ---- as any open file

    def read(self, count: int) -> bytes | WouldBlock:
        """See `OpenFile.read`."""
        got = self.receive(count)
        return self.wait_for(got.events) if isinstance(got, WouldBlock) else got.data

    def write(self, data: bytes) -> int | WouldBlock:
        """See `OpenFile.write`."""
        done = self.send(data)
        return self.wait_for(done.events) if isinstance(done, WouldBlock) else done

    def queues(self, events: int) -> tuple[WaitQueue, ...]:
        """See `OpenFile.queues`."""
        both = events & (POLLIN | POLLOUT) == 0
        return ((self.arrived,) if events & POLLIN or both else ()) + (
            (self.room,) if events & POLLOUT else ()
        )

    def listeners(self) -> tuple[Listeners, ...]:
        """See `OpenFile.listeners`."""
        if self.told is None:
            self.told = Listeners()
        return (self.told,)

    def queues_in_call(self, events: int) -> tuple[WaitQueue, ...]:
        """`queues`, for a task that sends, receives, connects or accepts. Who waits so is woken and needs no
        signal: owners hear nothing of room, nor of what comes to a stream (Linux: SOCK_WAKE_WAITD).
        """
        queues = self.queues(events)
        if events & POLLOUT:
            self.wants_room = False
        elif self.is_stream and not self.is_listening:
            if self._receivers is None:
                self._receivers = WaitQueue()
            queues += (self._receivers,)
        return queues

    def tell(self, reason: int) -> None:
        """Something has come to the socket, as its owners are told it before anybody is woken."""
        if self.told and not (self._receivers and reason in (POLL_IN, POLL_HUP)):
            self.told.tell(reason)

    def tell_room(self) -> None:
        """There is room again: who found none hears of it, once (Linux: SOCK_WAKE_SPACE)."""
        if self.told and self.wants_room:
            self.wants_room = False
            self.told.tell(POLL_OUT)

    def lacks_room(self) -> WouldBlock:
        """There is no room to send."""
        self.wants_room = True
        return WouldBlock(self, POLLOUT)

    def available(self) -> int:
        """See `OpenFile.available`: bytes of a stream, or of the first message."""
        if self.is_listening:
            raise Refused(errno.EINVAL, "a listening socket has no bytes")
        return self.inbox.first_size if self.type == SOCK_DGRAM else self.inbox.size

    def ioctl(self, request: int, fetch: Callable[[int], bytes]) -> bytes:
        """See `OpenFile.ioctl`."""
        if request == SIOCOUTQ:
            return struct.pack("<i", self.unsent())
        if request == SIOCATMARK:
            return struct.pack("<i", 0)
        return super().ioctl(request, fetch)

    def unsent(self) -> int:
        """Bytes that the peer has not received yet (SIOCOUTQ)."""
        return 0

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return b"socket:[%d]" % self._stat.ino

    def statfs(self) -> StatFs:
        """See `OpenFile.statfs`."""
        return StatFs(_SOCKFS_MAGIC, os.minor(self._stat.dev), blocks=0, free=0, read_only=False)

    # ---- for the families

    def take_error(self) -> None:
        """Raise what happened to the connection meanwhile, once."""
        number, self.error = self.error, 0
        if number:
            raise Refused(number, "the connection failed")

    def fail(self, number: int) -> None:
        """The connection is over with an error."""
        self.error = number
        self.changed()
        self.tell(POLL_ERR)

    def changed(self) -> None:
        """Something about the connection itself: whoever waits looks."""
        self.arrived.wake()
        self.room.wake()

    def has_room_again(self) -> None:
        """Whoever waited for room in this socket looks again."""
        for socket in list(self.wanting):
            del self.wanting[socket]
            socket.room.wake()

    def wait_on(self, other: Socket) -> WouldBlock:
        """Wait until there is room in another socket."""
        other.wanting[self] = None
        return self.lacks_room()
