"""TCP on the loopback interface: connections between two sockets of the machine, without packets.

    CLOSED --connect--> CONNECTING --room in the listener's line--> ESTABLISHED --a reset--> CLOSED
    CLOSED --listen--> LISTENING

What is sent is in the receiver's inbox at once. A sender has room for its own SO_SNDBUF and the receiver's
SO_RCVBUF together.
"""

from __future__ import annotations

import errno
import struct
from collections import deque
from enum import Enum, auto

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import POLLERR, POLLHUP, POLLIN, POLLOUT, WouldBlock
from aether_emu.linux.files.ownership import POLL_HUP, POLL_IN, POLL_OUT
from aether_emu.linux.files.stat import Stat
from aether_emu.linux.net.address import Endpoint
from aether_emu.linux.net.inbox import Credentials, Message, Received
from aether_emu.linux.net.internet import InetSocket, Internet, best
from aether_emu.linux.net.options import IPPROTO_TCP, SO_RCVBUF, SO_SNDBUF, SOL_SOCKET
from aether_emu.linux.net.socket import (
    MOST_BACKLOG,
    PLAIN,
    POLLRDHUP,
    SHUT_RD,
    SHUT_WR,
    SOCK_STREAM,
    Outgoing,
    Socket,
)

_PIECE = 1 << 16
_SMALL = 4096  # pieces up to this size are put together
_SEND_BUFFER, _CONNECTED_SEND_BUFFER, _RECEIVE_BUFFER = 16384, 2_626_560, 131_072


class State(Enum):
    """Where a connection is."""

    CLOSED = auto()
    LISTENING = auto()
    CONNECTING = auto()
    ESTABLISHED = auto()


class TcpSocket(InetSocket):
    """One TCP socket. `line` are connections that nobody accepted yet, `waiting` those who wait for the line.

    `was_connected` says that there was a connection: at its end one reads nothing. `is_fresh` says that a
    connection was made which connect(2) has not told its caller.
    """

    def __init__(
        self, internet: Internet, family: int, who: Credentials, flags: int, stat: Stat | None = None
    ) -> None:
        super().__init__(internet, internet.tcp, family, SOCK_STREAM, who, flags, stat)
        self.protocol = IPPROTO_TCP
        self.state = State.CLOSED
        self.peer: TcpSocket | None = None
        self.line: deque[TcpSocket] = deque()
        self.waiting: dict[TcpSocket, None] = {}
        self.listener: TcpSocket | None = None
        self.ended = False  # the peer sends no more
        self.was_connected = self.is_fresh = False
        self.outstanding = 0
        self.options.put(SOL_SOCKET, SO_SNDBUF, _SEND_BUFFER)
        self.options.put(SOL_SOCKET, SO_RCVBUF, _RECEIVE_BUFFER)

    def release(self) -> None:
        """See `OpenFile.release`: unread bytes, or a linger time of 0, reset the connection."""
        lingers, seconds = self.options.linger
        peer, unread = self.peer, bool(self.inbox) or bool(lingers and not seconds)
        self._stop_listening()
        if self.listener is not None:
            self.listener.waiting.pop(self, None)
            unread = True
        self.leave_port()
        self.state, self.peer = State.CLOSED, None
        self.inbox.clear(lambda _files: None)
        if peer is not None:
            peer.peer = None
            if unread:
                peer.reset()
            else:
                peer.end()

    def is_over_bound(self) -> bool:
        """See `InetSocket.is_over_bound`."""
        return self.state is not State.CLOSED

    def refuses_to_share(self, other: InetSocket) -> bool:
        """See `InetSocket.refuses_to_share`: who listens shares with nobody."""
        return isinstance(other, TcpSocket) and other.state is State.LISTENING

    # ---- connections

    def listen(self, backlog: int) -> None:
        """See `Socket.listen`."""
        if self.state not in (State.CLOSED, State.LISTENING) or self.remote is not None:
            raise Refused(errno.EINVAL, "it is connected")
        if self.state is State.CLOSED:
            if not self.local.port:
                self.take_port()
            elif any(self.conflicts_with(other) for other in self.ports.at(self.local.port)):
                raise Refused(errno.EADDRINUSE, f"somebody listens on port {self.local.port}")
        self.backlog = min(backlog & 0xFFFF_FFFF, MOST_BACKLOG)
        self.state, self.is_listening = State.LISTENING, True
        self.was_connected = False
        self._fill_line()

    def _stop_listening(self) -> None:
        self.is_listening = False
        while self.line:
            embryo = self.line.popleft()
            embryo.release()
        for socket in list(self.waiting):
            self.waiting.pop(socket, None)
            socket.refuse()

    def connect(self, address: bytes, at: Socket | None = None) -> WouldBlock | None:
        """See `Socket.connect`."""
        if address[:2] == bytes(2):
            self._disconnect()
            return None
        if self.state is State.CONNECTING:
            return self._wait_connected(already=True)
        if self.is_fresh:
            self.is_fresh = False
            return None
        if self.error and self.remote is not None:
            self.remote = None
            self.take_error()
        if self.state is State.LISTENING or self.state is State.ESTABLISHED or self.was_connected:
            raise Refused(errno.EISCONN, "it is connected, or listens")
        told = self.endpoint(address)
        assert told is not None, "no disconnection"
        remote = self.destination(told)
        if not self.local.port:
            self.take_port()
        self.local = self.source(remote)
        self.remote = remote
        self.reads_shut = self.writes_shut = False
        self._knock(remote)
        return self._wait_connected(already=False)

    def _wait_connected(self, *, already: bool) -> WouldBlock | None:
        """What connect answers, now that the other side was asked."""
        if self.flags & fl.O_NONBLOCK and not (already and self.state is not State.CONNECTING):
            raise Refused(errno.EALREADY if already else errno.EINPROGRESS, "it is being connected")
        if self.state is State.CONNECTING:
            return WouldBlock(self, POLLOUT)
        self.is_fresh = False
        if self.error:
            self.remote = None
            self.take_error()
        return None

    def _knock(self, to: Endpoint) -> None:
        """Ask for a connection: made, refused, or in line."""
        listeners: list[InetSocket] = [
            socket
            for socket in self.ports.at(to.port)
            if isinstance(socket, TcpSocket) and socket.state is State.LISTENING and socket.covers(to.ip)
        ]
        listener = best(listeners, to.ip, self.local.port)
        if listener is None:
            self.refuse()
            return
        assert isinstance(listener, TcpSocket), "of TCP's ports"
        self.state, self.listener = State.CONNECTING, listener
        listener.waiting[self] = None
        listener._fill_line()

    def refuse(self) -> None:
        """Nobody listens there."""
        self.state, self.listener = State.CLOSED, None
        self.reads_shut = self.writes_shut = True
        self.fail(errno.ECONNREFUSED)

    def _fill_line(self) -> None:
        """Make the connections that there is room for."""
        while self.waiting and len(self.line) <= self.backlog:
            client = next(iter(self.waiting))
            del self.waiting[client]
            assert client.remote is not None, "it knows whom it asked"
            made = TcpSocket(self.internet, self.family, self.who, 0)
            made.options = self.options.copy()
            made.local, made.remote, made.listener = client.remote, client.local, self
            self.ports.add(made, made.local.port)
            for one, other in ((client, made), (made, client)):
                one.peer, one.state, one.was_connected = other, State.ESTABLISHED, True
                one.options.put(SOL_SOCKET, SO_SNDBUF, _CONNECTED_SEND_BUFFER)
            client.listener, client.is_fresh = None, True
            self.line.append(made)
            client.room.wake()
            client.tell(POLL_OUT)
            self.arrived.wake()
            self.tell(POLL_IN)

    def _disconnect(self) -> None:
        """connect to AF_UNSPEC: the connection is reset, and the socket is as new."""
        peer, self.peer = self.peer, None
        self._stop_listening()
        if self.listener is not None:
            self.listener.waiting.pop(self, None)
            self.listener = None
        if peer is not None:
            peer.peer = None
            peer.reset()
        self.inbox.clear(lambda _files: None)
        if not self.is_bound_by_program:
            self.leave_port()
        self.state, self.remote, self.error = State.CLOSED, None, 0
        self.was_connected = self.is_fresh = self.ended = self.reads_shut = self.writes_shut = False
        self.changed()

    def accept(self) -> TcpSocket | WouldBlock:
        """See `Socket.accept`."""
        if self.state is not State.LISTENING:
            raise Refused(errno.EINVAL, "it does not listen")
        if not self.line:
            return WouldBlock(self, POLLIN)
        made = self.line.popleft()
        made.listener = None
        self._fill_line()
        return made

    def shutdown(self, how: int) -> None:
        """See `Socket.shutdown`."""
        if self.state is State.LISTENING:
            if how != SHUT_WR:
                self._stop_listening()
                self.state = State.CLOSED
                self.changed()
            return
        if self.state is State.CONNECTING:
            self._disconnect()
            return
        if self.state is State.CLOSED:
            raise Refused(errno.ENOTCONN, "it is not connected")
        self.reads_shut |= how != SHUT_WR
        if how != SHUT_RD and not self.writes_shut:
            self.writes_shut = True
            if self.ended:
                self.state = State.CLOSED
            if self.peer is not None:
                self.peer.end()
        self.changed()

    def end(self) -> None:
        """The peer sends no more."""
        self.ended = True
        if self.writes_shut:
            self.state = State.CLOSED
        self.tell(POLL_HUP if self.writes_shut else POLL_IN)
        self.tell(POLL_IN)  # the end is something to read too (Linux: tcp_data_queue)
        self.changed()

    def reset(self) -> None:
        """The peer knows nothing of the connection any more. What has come is still to be read."""
        number = errno.EPIPE if self.ended else errno.ECONNRESET
        self.state = State.CLOSED
        self.reads_shut = self.writes_shut = True
        self.fail(number)

    # ---- data

    def send(self, data: bytes, outgoing: Outgoing = PLAIN) -> int | WouldBlock:
        """See `Socket.send`. An address is ignored, as on Linux."""
        if self.state is State.CONNECTING:
            return WouldBlock(self, POLLOUT)
        self.take_error()
        if self.writes_shut or self.state is not State.ESTABLISHED:
            raise Refused(errno.EPIPE, "it is not connected, or was shut down")
        if not data:
            return 0
        peer = self.peer
        if peer is None:
            self.reset()
            return len(data)
        if peer.reads_shut and peer.writes_shut:  # it takes data for a mistake, and resets the connection
            peer.peer = self.peer = None
            peer.reset()
            self.reset()
            return len(data)
        room = self.send_room()
        if not room:
            return self.lacks_room()
        data = data[:room] if room < len(data) else data
        for at in range(0, len(data), _PIECE):
            piece = data[at : at + _PIECE] if len(data) > _PIECE else data
            try:
                if not peer.inbox.extend(piece, _SMALL):
                    peer.inbox.put(Message(piece, len(piece), self))
            except Refused:
                if not at and not peer.inbox:
                    raise
                data = data[:at]
                break
            self.outstanding += len(piece)
        if not data:
            return self.lacks_room()
        peer.tell(POLL_IN)
        peer.arrived.wake()
        return len(data)

    def paid(self, cost: int) -> None:
        """See `Socket.paid`."""
        self.outstanding -= cost
        if self._is_writable():
            self.room.wake()
            self.tell_room()

    def _limit(self) -> int:
        window = self.peer.options.receive_buffer if self.peer is not None else 0
        return self.options.send_buffer + window

    def _is_writable(self) -> bool:
        """Whether a third of the buffer is free (Linux sk_stream_is_writeable)."""
        return 3 * self.outstanding <= 2 * self._limit()

    def send_room(self) -> int:
        """See `Socket.send_room`."""
        return max(0, self._limit() - self.outstanding)

    def receive(self, count: int, *, peek: bool = False) -> Received | WouldBlock:
        """See `Socket.receive`."""
        if self.inbox:
            return self.inbox.take_bytes(count, peek=peek, apart=False)
        if self.ended:
            return Received(b"", 0)
        self.take_error()
        if self.state is State.CONNECTING:
            return WouldBlock(self, POLLIN)
        if self.reads_shut:
            return Received(b"", 0)
        if self.state is not State.ESTABLISHED:
            raise Refused(errno.ENOTCONN, "it is not connected")
        return WouldBlock(self, POLLIN)

    def peer_name(self) -> bytes:
        """See `Socket.peer_name`."""
        if self.state is not State.ESTABLISHED:
            raise Refused(errno.ENOTCONN, "it is not connected")
        return super().peer_name()

    def unsent(self) -> int:
        """See `Socket.unsent`."""
        return self.outstanding

    def poll(self) -> int:
        """See `OpenFile.poll`."""
        if self.state is State.LISTENING:
            return POLLIN if self.line else 0
        events = POLLERR if self.error else 0
        no_reads = self.reads_shut or self.ended
        if self.state is State.CLOSED or (no_reads and self.writes_shut):
            events |= POLLHUP
        if no_reads:
            events |= POLLRDHUP | POLLIN
        if self.state is not State.CONNECTING:
            events |= POLLIN if self.inbox else 0
            writable = self.writes_shut or self._is_writable()
            self.wants_room |= not writable
            events |= POLLOUT if writable else 0
        return events

    def info(self) -> bytes:
        """TCP_INFO: the state (`enum` in Linux net/tcp_states.h), and no more, for there are no packets."""
        number = {State.CLOSED: 7, State.LISTENING: 10, State.CONNECTING: 2, State.ESTABLISHED: 1}[self.state]
        if self.state is State.ESTABLISHED and (self.ended or self.writes_shut):
            number = {(True, False): 8, (False, True): 5, (True, True): 7}[self.ended, self.writes_shut]
        return struct.pack("<B", number).ljust(232, b"\0")
