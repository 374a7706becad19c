"""AF_UNIX: sockets named by paths, by abstract names, or not at all (unix(7)); open files as messages.

    stream, seqpacket    connect --> the listener's line --> accept; then two sockets are peers
    dgram                each message finds its receiver; connect only fixes whom

A name with a path is a node of the namespace (`files.special`), which knows the socket. What a sender has on
its way counts against its own SO_SNDBUF, as on Linux.
"""

from __future__ import annotations

import errno
import struct
from collections import Counter, deque
from collections.abc import Callable

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import POLLERR, POLLHUP, POLLIN, POLLOUT, OpenFile, WouldBlock
from aether_emu.linux.files.ownership import POLL_HUP, POLL_IN
from aether_emu.linux.files.stat import Stat
from aether_emu.linux.net.inbox import Credentials, Message, Received, SocketAccount, cost_of
from aether_emu.linux.net.options import SO_PASSCRED, SOL_SOCKET
from aether_emu.linux.net.socket import (
    AF_UNIX,
    AF_UNSPEC,
    MOST_BACKLOG,
    PLAIN,
    POLLRDHUP,
    POLLWRBAND,
    SHUT_RD,
    SHUT_RDWR,
    SHUT_WR,
    SOCK_DGRAM,
    SOCK_SEQPACKET,
    Outgoing,
    Socket,
)

_FAMILY = struct.pack("<H", AF_UNIX)
_LONGEST_ADDRESS = 110
_MOST_WAITING = 10
"""Messages that wait in the inbox of a datagram socket, and one more (Linux net.unix.max_dgram_qlen)."""
_IN_ONE = 4096 - 320
_PIECE = _IN_ONE + (1 << 15)
"""Bytes of a stream that make a message, at most (Linux unix_stream_sendmsg)."""
_AUTOMATIC_NAMES = 1 << 20


def path_of(address: bytes) -> bytes | None:
    """The path in a checked address; None in an abstract or empty one."""
    name = address[2:]
    return name.split(b"\0", 1)[0] if name[:1] not in (b"", b"\0") else None


def checked_address(address: bytes) -> bytes:
    """An address as Linux keeps it: a path ends with one NUL. Refused(EINVAL) if it is none of AF_UNIX."""
    if not 2 < len(address) <= _LONGEST_ADDRESS or address[:2] != _FAMILY:
        raise Refused(errno.EINVAL, f"no address of a unix socket: {address!r}")
    path = path_of(address)
    return address if path is None else _FAMILY + path + b"\0"


class UnixSpace:
    """What the unix sockets of a machine share: abstract names, and the open files that are on their way.

    `stat` gives the attributes of a new one.
    """

    def __init__(self, account: SocketAccount, stat: Callable[[], Stat]) -> None:
        self.account, self.stat = account, stat
        self.names: dict[tuple[int, bytes], UnixSocket] = {}
        self.sockets: dict[UnixSocket, None] = {}
        self.flying: Counter[OpenFile] = Counter()
        self.last_name = -1

    def automatic_name(self, kind: int) -> bytes:
        """A free abstract name. Refused(ENOSPC)."""
        for _ in range(_AUTOMATIC_NAMES):
            self.last_name = (self.last_name + 1) % _AUTOMATIC_NAMES
            address = _FAMILY + b"\0%05x" % self.last_name
            if (kind, address) not in self.names:
                return address
        raise Refused(errno.ENOSPC, "every abstract name is taken")

    def depart(self, files: tuple[OpenFile, ...], most: int | None) -> None:
        """Open files go on their way. Refused(ETOOMANYREFS) if more than `most` would be."""
        if most is not None and files and self.flying.total() > most:
            raise Refused(errno.ETOOMANYREFS, f"{most} open files are on their way")
        for file in files:
            file.hold()
            self.flying[file] += 1

    def arrive(self, files: tuple[OpenFile, ...]) -> None:
        """They are received, or never will be."""
        for file in files:
            self.flying[file] -= 1
            if not self.flying[file]:
                del self.flying[file]

    def drop(self, files: tuple[OpenFile, ...]) -> None:
        """Nobody will receive them."""
        self.arrive(files)
        for file in files:
            file.let_go()

    def collect(self) -> None:
        """Close sockets that only messages hold which nobody can receive: they hold each other (unix_gc)."""
        lost = {
            file
            for file, count in self.flying.items()
            if isinstance(file, UnixSocket) and file.is_held_by(count)
        }
        if not lost:
            return
        line = [socket for socket in self.sockets if socket not in lost and socket.is_held]
        for socket in line:  # which grows on the way
            for inner in (socket, *socket.line):
                for message in inner.inbox.messages:
                    found = [file for file in message.rights if file in lost]
                    lost.difference_update(found)
                    line += [file for file in found if isinstance(file, UnixSocket)]
        dead = [socket for socket in self.sockets if socket in lost]
        for socket in dead:
            socket.hold()
        for socket in dead:
            socket.forget_messages()
        for socket in dead:
            socket.let_go()

    def close(self) -> None:
        """The machine is taken apart: nothing is received any more."""
        self.collect()


class UnixSocket(Socket):
    """One unix socket. `address` is what bind gave it. `line` are connections that nobody accepted yet.

    `stat` are the attributes of one that was captured; a new one gets its own.
    """

    family = AF_UNIX

    def __init__(
        self, space: UnixSpace, kind: int, who: Credentials, flags: int, stat: Stat | None = None
    ) -> None:
        super().__init__(kind, space.account, who, flags, stat or space.stat())
        self.space = space
        self.address = b""
        self.peer: UnixSocket | None = None
        self.line: deque[UnixSocket] = deque()
        self.listener: UnixSocket | None = None
        self.was_connected = False
        self.outstanding = 0  # what of SO_SNDBUF is on its way
        self.most_flying: int | None = None
        space.sockets[self] = None

    def release(self) -> None:
        """See `OpenFile.release`."""
        space, peer = self.space, self.peer
        space.sockets.pop(self, None)
        if path_of(self.address) is None and space.names.get((self.type, self.address)) is self:
            del space.names[self.type, self.address]
        self.is_listening, self.peer = False, None
        while self.line:
            self.line.popleft().release()
        unread = bool(self.inbox) or self.listener is not None
        if peer is not None and self.type != SOCK_DGRAM and peer.peer is self:
            peer.reads_shut = peer.writes_shut = True
            if unread:
                peer.error = errno.ECONNRESET
            peer.tell(POLL_HUP)
            peer.changed()
        self.forget_messages()
        self.has_room_again()
        self.reads_shut = self.writes_shut = True
        if space.flying:
            space.collect()

    @property
    def is_gone(self) -> bool:
        """Whether nobody has it any more."""
        return self not in self.space.sockets

    def is_held_by(self, count: int) -> bool:
        """Whether so many messages are all that hold it."""
        return self._holders == count

    def forget_messages(self) -> None:
        """What was not received never will be."""
        self.inbox.clear(self.space.drop)

    # ---- names

    def bind(self, address: bytes) -> None:
        """Take an abstract name. (A path is made by `Files.bind_socket`.)"""
        self.require_nameless()
        if len(address) == len(_FAMILY):
            address = self.space.automatic_name(self.type)
        if (self.type, address) in self.space.names:
            raise Refused(errno.EADDRINUSE, f"{address!r} is taken")
        self.space.names[self.type, address] = self
        self.address = address

    def checked_name(self, address: bytes) -> bytes:
        """An address to bind to: that of two bytes asks for a name. Refused(EINVAL)."""
        return address if address == _FAMILY else checked_address(address)

    def path_to(self, address: bytes) -> bytes | None:
        """The path in an address to connect or send to; None if it is none. Refused(EINVAL)."""
        if self.type == SOCK_DGRAM and address[:2] == bytes(2):
            return None
        return path_of(checked_address(address))

    def require_nameless(self) -> None:
        """Refused(EINVAL) if it has a name."""
        if self.address:
            raise Refused(errno.EINVAL, "it has a name")

    def name(self) -> bytes:
        """See `Socket.name`."""
        return self.address or _FAMILY

    def peer_name(self) -> bytes:
        """See `Socket.peer_name`."""
        if self.peer is None and not (self.was_connected and self.type != SOCK_DGRAM):
            raise Refused(errno.ENOTCONN, "it has no peer")
        return self.peer_address or _FAMILY

    peer_address = b""

    def _find(self, address: bytes, at: Socket | None) -> UnixSocket:
        if path_of(address) is not None:
            assert isinstance(at, UnixSocket), "the caller has followed the path"
            if at.type != self.type:
                raise Refused(errno.EPROTOTYPE, "the socket there is of another type")
            return at
        found = self.space.names.get((self.type, address))
        if found is None:
            raise Refused(errno.ECONNREFUSED, f"nobody has the name {address!r}")
        return found

    def _name_itself(self) -> None:
        if self.options.get(SOL_SOCKET, SO_PASSCRED) and not self.address:
            self.bind(_FAMILY)

    # ---- connections

    def pair_with(self, other: UnixSocket) -> None:
        """socketpair(2)."""
        for one, two in ((self, other), (other, self)):
            one.peer, one.peer_who = two, two.who
            one.was_connected = True

    def listen(self, backlog: int) -> None:
        """See `Socket.listen`."""
        if self.type == SOCK_DGRAM:
            raise Refused(errno.EOPNOTSUPP, "datagram sockets have no connections")
        if not self.address or self.was_connected:
            raise Refused(errno.EINVAL, "it has no name, or is connected")
        longer = min(backlog & 0xFFFF_FFFF, MOST_BACKLOG)
        self.is_listening, self.backlog, grown = True, longer, longer > self.backlog
        if grown:
            self.has_room_again()

    def connect(self, address: bytes, at: Socket | None = None) -> WouldBlock | None:
        """See `Socket.connect`. A full line is Refused(EAGAIN) under O_NONBLOCK, as Linux has it."""
        if self.type == SOCK_DGRAM:
            self._connect_datagrams(address, at)
            return None
        self._name_itself()
        other = self._find(checked_address(address), at)
        if other.is_gone or not other.is_listening or other.reads_shut:
            raise Refused(errno.ECONNREFUSED, "nobody listens there")
        if len(other.line) > other.backlog:
            if self.flags & fl.O_NONBLOCK:
                raise Refused(errno.EAGAIN, "the line of connections is full")
            return self.wait_on(other)
        if self.was_connected:
            raise Refused(errno.EISCONN, "it is connected")
        if self.is_listening:
            raise Refused(errno.EINVAL, "it listens")
        accepted = UnixSocket(self.space, self.type, other.who, 0)
        accepted.address, accepted.listener = other.address, other
        self.pair_with(accepted)
        self.peer_who, self.peer_address, accepted.peer_address = other.who, other.address, self.address
        other.line.append(accepted)
        other.arrived.wake()
        other.tell(POLL_IN)
        self.room.wake()
        return None

    def _connect_datagrams(self, address: bytes, at: Socket | None) -> None:
        if int.from_bytes(address[:2], "little") == AF_UNSPEC:
            other = None
        else:
            address = checked_address(address)
            self._name_itself()
            other = self._find(address, at)
            if other.is_gone:
                raise Refused(errno.ECONNREFUSED, "nobody has that name any more")
            if not self._may_send_to(other):
                raise Refused(errno.EPERM, "it is connected to another")
        before = self.peer
        if before is not None and before is not other:
            self.forget_messages()
            self.has_room_again()
            if before.peer is self and other is None:
                before.fail(errno.ECONNRESET)
        self.peer = other
        self.peer_address = b"" if other is None else other.address
        self.room.wake()

    def accept(self) -> UnixSocket | WouldBlock:
        """See `Socket.accept`."""
        if self.type == SOCK_DGRAM:
            raise Refused(errno.EOPNOTSUPP, "datagram sockets have no connections")
        if not self.is_listening:
            raise Refused(errno.EINVAL, "it does not listen")
        if not self.line:
            if self.reads_shut:
                raise Refused(errno.EINVAL, "it was shut down")
            return WouldBlock(self, POLLIN)
        accepted = self.line.popleft()
        accepted.listener = None
        self.has_room_again()
        return accepted

    def shutdown(self, how: int) -> None:
        """See `Socket.shutdown`: what one side shuts, the other's opposite is shut too."""
        self.reads_shut |= how != SHUT_WR
        self.writes_shut |= how != SHUT_RD
        peer = self.peer
        if peer is not None and self.type != SOCK_DGRAM:
            peer.writes_shut |= how != SHUT_WR
            peer.reads_shut |= how != SHUT_RD
            if how != SHUT_RD:
                peer.tell(POLL_HUP if how == SHUT_RDWR else POLL_IN)
            peer.changed()
        self.changed()

    # ---- data

    def _may_send_to(self, other: UnixSocket) -> bool:
        return other.peer is None or other.peer is self

    def _is_full(self, other: UnixSocket) -> bool:
        """Whether a datagram has to wait for another's reader (its own peer's never wait for each other)."""
        return other.peer is not self and len(other.inbox) > _MOST_WAITING

    def send(self, data: bytes, outgoing: Outgoing = PLAIN) -> int | WouldBlock:
        """See `Socket.send`."""
        if self.type == SOCK_DGRAM:
            return self._send_datagram(data, outgoing)
        if outgoing.address and self.is_stream:
            raise Refused(errno.EISCONN if self.peer else errno.EOPNOTSUPP, "connections have no addresses")
        if self.type == SOCK_SEQPACKET:
            self.take_error()
        peer = self.peer
        if peer is None and not self.was_connected:
            raise Refused(errno.ENOTCONN, "it is not connected")
        if self.writes_shut or peer is None or peer.reads_shut:
            raise Refused(errno.EPIPE, "nobody receives any more")
        if not self.is_stream:
            return self._send_record(peer, data, outgoing)
        return self._send_bytes(peer, data, outgoing)

    def _send_bytes(self, peer: UnixSocket, data: bytes, outgoing: Outgoing) -> int | WouldBlock:
        if not data and not outgoing.rights:
            return 0
        done = 0
        while done < len(data) or not done:
            if self.outstanding >= self.options.send_buffer:
                if not done:
                    return self.lacks_room()
                self.wants_room = True
                break
            most = min(_PIECE, (self.options.send_buffer >> 1) - 64)
            piece = data[done : done + most] if done or len(data) > most else data
            try:
                self._put(peer, piece, outgoing._replace(rights=()) if done else outgoing)
            except Refused:
                if not done:
                    raise
                break
            done += len(piece)
            peer.tell(POLL_IN)
            if not piece:
                break
        peer.arrived.wake()
        return done

    def _send_record(self, peer: UnixSocket, data: bytes, outgoing: Outgoing) -> int | WouldBlock:
        if len(data) > self.options.send_buffer - 32:
            raise Refused(errno.EMSGSIZE, f"a message of {len(data)} bytes")
        if self.outstanding >= self.options.send_buffer:
            return self.lacks_room()
        if self._is_full(peer):
            return self.wait_on(peer)
        self._put(peer, data, outgoing)
        peer.arrived.wake()
        peer.tell(POLL_IN)
        return len(data)

    def _send_datagram(self, data: bytes, outgoing: Outgoing) -> int | WouldBlock:
        self.take_error()
        if self.writes_shut:
            raise Refused(errno.EPIPE, "it was shut down")
        if outgoing.address:
            peer = self._find(checked_address(outgoing.address), outgoing.at)
        elif self.peer is not None:
            peer = self.peer
        else:
            raise Refused(errno.ENOTCONN, "it is not connected")
        self._name_itself()
        if len(data) > self.options.send_buffer - 32:
            raise Refused(errno.EMSGSIZE, f"a message of {len(data)} bytes")
        if peer.is_gone:
            if peer is self.peer:
                self.peer = None
                self.forget_messages()
                self.room.wake()
            raise Refused(errno.ECONNREFUSED, "the receiver is gone")
        if not self._may_send_to(peer):
            raise Refused(errno.EPERM, "the receiver is connected to another")
        if peer.reads_shut:
            raise Refused(errno.EPIPE, "the receiver was shut down")
        return self._send_record(peer, data, outgoing)

    def _put(self, peer: UnixSocket, data: bytes, outgoing: Outgoing) -> None:
        passes = any(end.options.get(SOL_SOCKET, SO_PASSCRED) for end in (self, peer))
        who = outgoing.credentials if passes or outgoing.rights or peer.listener is not None else None
        self.space.depart(outgoing.rights, self.most_flying)
        cost = cost_of(len(data), _IN_ONE) if self.is_stream else cost_of(len(data))
        message = Message(data, cost, self, address=self.address, rights=outgoing.rights, credentials=who)
        try:
            peer.inbox.put(message)
        except Refused:
            self.space.drop(outgoing.rights)
            raise
        self.outstanding += cost

    def paid(self, cost: int) -> None:
        """See `Socket.paid`: there may be room again."""
        self.outstanding -= cost
        if self._is_writable():
            self.room.wake()
            self.tell_room()

    def _is_writable(self) -> bool:
        return 4 * self.outstanding <= self.options.send_buffer

    def send_room(self) -> int:
        """See `Socket.send_room`. A message may go beyond the buffer with its end."""
        room = self.options.send_buffer - self.outstanding
        return room + _PIECE if room > 0 else 0

    def receive(self, count: int, *, peek: bool = False) -> Received | WouldBlock:
        """See `Socket.receive`."""
        if not self.is_stream:
            self.take_error()
        if self.type != SOCK_DGRAM and (self.is_listening or not self.was_connected):
            number = errno.EINVAL if self.is_stream else errno.ENOTCONN
            raise Refused(number, "it is not connected")
        if not self.inbox:
            self.take_error()
            if self.reads_shut:
                return Received(b"", 0)
            return WouldBlock(self, POLLIN)
        passes = bool(self.options.get(SOL_SOCKET, SO_PASSCRED))
        if self.is_stream:
            got = self.inbox.take_bytes(count, peek=peek, apart=passes)
        else:
            got = self.inbox.take_message(count, peek=peek)
        if not peek:
            self.space.arrive(got.rights)
            self.has_room_again()
        return got

    def unsent(self) -> int:
        """See `Socket.unsent`."""
        return self.outstanding

    def poll(self) -> int:
        """See `OpenFile.poll`."""
        events = POLLERR if self.error else 0
        if self.reads_shut:
            events |= POLLRDHUP | POLLIN
            events |= POLLHUP if self.writes_shut else 0
        if self.inbox or self.line:
            events |= POLLIN
        if self.type != SOCK_DGRAM and not self.was_connected and not self.is_listening:
            events |= POLLHUP
        if not self.is_listening and self._is_writable() and not self._waits_for_peer():
            events |= POLLOUT | POLLWRBAND
        else:
            self.wants_room = True
        return events

    def _waits_for_peer(self) -> bool:
        peer = self.peer
        if self.is_stream or peer is None or not self._is_full(peer):
            return False
        peer.wanting[self] = None
        return True
