"""socket(2), bind(2), connect(2), accept(2), send(2), recv(2) and their relatives, between guest processes.

Unix sockets, TCP and UDP over the loopback interface. Messages with ancillary data are `messages`.
"""

from __future__ import annotations

import errno
import struct

from aether_emu.errors import Refused
from aether_emu.linux.calls.messages import (
    read_address,
    read_message,
    write_address,
    write_message,
)
from aether_emu.linux.calls.polling import read_timespec
from aether_emu.linux.calls.socket_transfer import (
    MSG_DONTWAIT,
    MSG_TRUNC,
    MSG_WAITFORONE,
    peer_credentials,
    receive,
    send,
    wait_for_socket,
)
from aether_emu.linux.calls.user import read_buffer, s32, u32, write_struct
from aether_emu.linux.credentials import SYS_ADMIN, SYS_RESOURCE
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import WouldBlock
from aether_emu.linux.net import options as op
from aether_emu.linux.net.internet import InetSocket
from aether_emu.linux.net.socket import (
    AF_INET,
    AF_INET6,
    AF_PACKET,
    AF_UNIX,
    SOCK_DGRAM,
    SOCK_RAW,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    Outgoing,
    Socket,
)
from aether_emu.linux.net.tcp import TcpSocket
from aether_emu.linux.net.udp import UdpSocket
from aether_emu.linux.net.unix import UnixSocket, path_of
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import UserFault

_TYPE_MASK, _TYPE_FLAGS = 0xF, fl.O_NONBLOCK | fl.O_CLOEXEC
_MOST_MESSAGES = 1024
_PROTOCOLS = 263  # Linux IPPROTO_MAX
_MESSAGE_SIZE = 64  # struct mmsghdr: a struct msghdr, and the length that was moved
_MESSAGE_LENGTH = 56


def find_socket(task: Task, fd: int) -> Socket:
    """The socket of a descriptor. Refused(EBADF, ENOTSOCK)."""
    file = task.files.table.file(s32(fd))
    if not isinstance(file, Socket):
        raise Refused(errno.ENOTSOCK, f"descriptor {s32(fd)} is a {file.kind}")
    return file


# ---- making


def sys_socket(task: Task, family: int, kind: int, protocol: int, *_: int) -> int:
    kind, flags = _type_and_flags(kind)
    family, protocol = s32(family), s32(protocol)
    table = task.files.table
    made = _make(task, family, kind, protocol, flags & fl.O_NONBLOCK)
    made.hold()
    try:
        return table.install(made, cloexec=bool(flags & fl.O_CLOEXEC))
    finally:
        made.let_go()


def _type_and_flags(kind: int) -> tuple[int, int]:
    kind = s32(kind)
    if kind & ~_TYPE_MASK & ~_TYPE_FLAGS:
        raise Refused(errno.EINVAL, f"socket type {kind:#x}")
    return kind & _TYPE_MASK, kind & _TYPE_FLAGS


def _make(task: Task, family: int, kind: int, protocol: int, flags: int) -> Socket:
    namespace, identity = task.files.namespace, task.credentials
    who = peer_credentials(task)
    if family == AF_UNIX:
        if protocol not in (0, AF_UNIX):
            raise Refused(errno.EPROTONOSUPPORT, f"protocol {protocol}")
        if kind not in (SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET):
            raise Refused(errno.ESOCKTNOSUPPORT, f"socket type {kind}")
        kind = SOCK_DGRAM if kind == SOCK_RAW else kind
        made = UnixSocket(namespace.unix, kind, who, flags)
        is_free = identity.has(SYS_RESOURCE) or identity.has(SYS_ADMIN)
        made.most_flying = None if is_free else task.files.table.limit
        return made
    if family == AF_PACKET:
        raise Refused(errno.EPERM, "packets are root's")
    if family not in (AF_INET, AF_INET6):
        raise Refused(errno.EAFNOSUPPORT, f"address family {family}")
    if not 0 <= protocol < _PROTOCOLS:
        raise Refused(errno.EINVAL, f"protocol {protocol}")
    if kind == SOCK_STREAM and protocol in (0, op.IPPROTO_TCP):
        return TcpSocket(namespace.internet, family, who, flags)
    if kind == SOCK_DGRAM and protocol in (0, op.IPPROTO_UDP):
        return UdpSocket(namespace.internet, family, who, flags)
    if kind == SOCK_RAW:
        number = errno.EPROTONOSUPPORT if not protocol else errno.EPERM
        raise Refused(number, "raw packets are root's")
    number = errno.EPROTONOSUPPORT if kind in (SOCK_STREAM, SOCK_DGRAM) else errno.ESOCKTNOSUPPORT
    raise Refused(number, f"socket type {kind}, protocol {protocol}")


def sys_socketpair(task: Task, family: int, kind: int, protocol: int, result: int, *_: int) -> int:
    kind, flags = _type_and_flags(kind)
    table = task.files.table
    table.require_room(2)
    one, two = (_make(task, s32(family), kind, s32(protocol), flags & fl.O_NONBLOCK) for _ in range(2))
    if not isinstance(one, UnixSocket) or not isinstance(two, UnixSocket):
        raise Refused(errno.EOPNOTSUPP, "only unix sockets come in pairs")
    one.pair_with(two)
    cloexec = bool(flags & fl.O_CLOEXEC)
    pair = table.install(one, cloexec=cloexec), table.install(two, cloexec=cloexec)
    try:
        write_struct(task.cpu, result, "ii", *pair)
    except UserFault:
        table.close_each(pair)
        raise
    return 0


# ---- names and connections


def sys_bind(task: Task, fd: int, address: int, length: int, *_: int) -> int:
    socket, name = find_socket(task, fd), read_address(task, address, length)
    if isinstance(socket, UnixSocket):
        name = socket.checked_name(name)
        path = path_of(name)
        if path is not None:
            task.files.bind_socket(socket, name, path)
            return 0
    socket.bind(name)
    return 0


def sys_listen(task: Task, fd: int, backlog: int, *_: int) -> int:
    socket = find_socket(task, fd)
    socket.listen(s32(backlog))
    socket.who = peer_credentials(task)
    return 0


def sys_connect(task: Task, fd: int, address: int, length: int, *_: int) -> int:
    socket, name = find_socket(task, fd), read_address(task, address, length)
    blocked = socket.connect(name, _at(task, socket, name))
    if blocked is not None:
        try:
            wait_for_socket(task, blocked, 0, sending=True)
        except Refused as refused:
            number = errno.EINPROGRESS if isinstance(socket, TcpSocket) else refused.errno
            raise Refused(number, str(refused)) from None
    return 0


def _at(task: Task, socket: Socket, name: bytes) -> Socket | None:
    """The socket that a path leads to, if the address is one."""
    if not isinstance(socket, UnixSocket):
        return None
    path = socket.path_to(name)
    return None if path is None else task.files.find_socket(path)


def sys_accept(task: Task, fd: int, address: int, length: int, *_: int) -> int:
    return sys_accept4(task, fd, address, length, 0)


def sys_accept4(task: Task, fd: int, address: int, length: int, flags: int, *_: int) -> int:
    if s32(flags) & ~_TYPE_FLAGS:
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    listener, table = find_socket(task, fd), task.files.table
    table.require_room()
    made = listener.accept()
    if isinstance(made, WouldBlock):
        wait_for_socket(task, made, 0, sending=False)
    made.flags |= flags & fl.O_NONBLOCK
    made.hold()
    try:
        if address:
            write_address(task, address, length, _peer_or_nothing(made))
        return table.install(made, cloexec=bool(flags & fl.O_CLOEXEC))
    finally:
        made.let_go()


def _peer_or_nothing(socket: Socket) -> bytes:
    """Whom an accepted socket is connected to, though it may be over by now."""
    if isinstance(socket, InetSocket):
        return InetSocket.peer_name(socket)
    return socket.peer_name()


def sys_shutdown(task: Task, fd: int, how: int, *_: int) -> int:
    socket, how = find_socket(task, fd), s32(how)
    if not 0 <= how <= 2:
        raise Refused(errno.EINVAL, f"how {how}")
    socket.shutdown(how)
    return 0


def sys_getsockname(task: Task, fd: int, address: int, length: int, *_: int) -> int:
    write_address(task, address, length, find_socket(task, fd).name())
    return 0


def sys_getpeername(task: Task, fd: int, address: int, length: int, *_: int) -> int:
    write_address(task, address, length, find_socket(task, fd).peer_name())
    return 0


# ---- data


def sys_sendto(task: Task, fd: int, buffer: int, size: int, flags: int, address: int, length: int) -> int:
    socket = find_socket(task, fd)
    pieces = read_buffer(buffer, size, task.process.abi.user_end)
    outgoing = Outgoing()
    if address:
        name = read_address(task, address, length)
        outgoing = Outgoing(name, _at_of_message(task, socket, name))
    return send(task, socket, pieces, u32(flags), outgoing)


def _at_of_message(task: Task, socket: Socket, name: bytes) -> Socket | None:
    """`_at` of a message's address: connected kinds don't look at one."""
    return _at(task, socket, name) if name and socket.type == SOCK_DGRAM else None


def sys_recvfrom(task: Task, fd: int, buffer: int, size: int, flags: int, address: int, length: int) -> int:
    socket, flags = find_socket(task, fd), u32(flags)
    got, done = receive(task, socket, read_buffer(buffer, size, task.process.abi.user_end), flags)
    for file in got.rights:
        file.let_go()
    if address:
        write_address(task, address, length, got.address)
    return got.size if flags & MSG_TRUNC and not socket.is_stream else done


def sys_sendmsg(task: Task, fd: int, message: int, flags: int, *_: int) -> int:
    return _send_message(task, find_socket(task, fd), message, u32(flags))


def _send_message(task: Task, socket: Socket, address: int, flags: int, *, is_first: bool = True) -> int:
    message = read_message(task, address)
    outgoing = message.outgoing(task)
    if outgoing.address:
        outgoing = outgoing._replace(at=_at_of_message(task, socket, outgoing.address))
    if outgoing.rights and not isinstance(socket, UnixSocket):
        outgoing = outgoing._replace(rights=())  # as Linux, which leaves them to the family
    return send(task, socket, message.pieces, flags, outgoing, is_first=is_first)


def sys_recvmsg(task: Task, fd: int, message: int, flags: int, *_: int) -> int:
    return _receive_message(task, find_socket(task, fd), message, u32(flags))


def _receive_message(task: Task, socket: Socket, address: int, flags: int, *, is_first: bool = True) -> int:
    message = read_message(task, address)
    got, done = receive(task, socket, message.pieces, flags, is_first=is_first)
    write_message(task, address, message, socket, got, flags)
    return got.size if flags & MSG_TRUNC and not socket.is_stream else done


def sys_sendmmsg(task: Task, fd: int, messages: int, count: int, flags: int, *_: int) -> int:
    """sendmmsg(2). After a wait it goes on with the message that had to wait."""
    socket, done = find_socket(task, fd), 0
    for at in _in_turn(messages, u32(count)):
        try:
            # The first waits as sendmsg does; for a later one the call does not wait, but says how many went.
            how = u32(flags) | (MSG_DONTWAIT if done else 0)
            moved = _send_message(task, socket, at, how, is_first=not done)
            write_struct(task.cpu, at + _MESSAGE_LENGTH, "I", moved)
        except (Refused, UserFault):
            if not done:
                raise
            break
        done += 1
    return done


def sys_recvmmsg(task: Task, fd: int, messages: int, count: int, flags: int, timeout: int, *_: int) -> int:
    """recvmmsg(2). It waits for the first message, and takes those that are there behind it.

    Linux waits for all of them without MSG_WAITFORONE: here too, as long as nothing was received yet.
    """
    socket, done, flags = find_socket(task, fd), 0, u32(flags)
    if timeout:
        read_timespec(task, timeout)
    for at in _in_turn(messages, u32(count)):
        try:
            how = flags & ~MSG_WAITFORONE | (MSG_DONTWAIT if done else 0)
            moved = _receive_message(task, socket, at, how, is_first=not done)
            write_struct(task.cpu, at + _MESSAGE_LENGTH, "I", moved)
        except (Refused, UserFault):
            if not done:
                raise
            break
        done += 1
    return done


def _in_turn(messages: int, count: int) -> range:
    return range(messages, messages + _MESSAGE_SIZE * min(count, _MOST_MESSAGES), _MESSAGE_SIZE)


# ---- options


def sys_getsockopt(task: Task, fd: int, level: int, number: int, value: int, length: int, *_: int) -> int:
    socket = find_socket(task, fd)
    (room,) = struct.unpack("<i", task.cpu.copy_from_user(length, 4))
    if room < 0:
        raise Refused(errno.EINVAL, f"a length of {room}")
    answer = _option(socket, s32(level), s32(number))[:room]
    task.cpu.copy_to_user(value, answer)
    write_struct(task.cpu, length, "i", len(answer))
    return 0


def _option(socket: Socket, level: int, number: int) -> bytes:
    """The value of an option, as the program sees it."""
    if level not in _levels(socket):
        is_inet6 = socket.family == AF_INET6
        raise Refused(errno.ENOPROTOOPT if is_inet6 else errno.EOPNOTSUPP, f"level {level}")
    if level == op.IPPROTO_TCP and number == op.TCP_INFO and isinstance(socket, TcpSocket):
        return socket.info()
    if level == op.SOL_SOCKET:
        timeouts = {
            op.SO_RCVTIMEO: socket.options.receive_timeout,
            op.SO_SNDTIMEO: socket.options.send_timeout,
        }
        if number in timeouts:
            seconds, rest = divmod(timeouts[number] or 0, 10**9)
            return struct.pack("<qq", seconds, rest // 1000)
        if number == op.SO_LINGER:
            return struct.pack("<ii", *socket.options.linger)
        if number == op.SO_PEERCRED:
            return struct.pack("<iII", *socket.peer_who)
        if number == op.SO_ERROR:
            error, socket.error = socket.error, 0
            return struct.pack("<i", error)
        known = {
            op.SO_TYPE: socket.type,
            op.SO_DOMAIN: socket.family,
            op.SO_PROTOCOL: socket.protocol,
            op.SO_ACCEPTCONN: int(socket.is_listening),
        }
        if number in known:
            return struct.pack("<i", known[number])
    return struct.pack("<i", socket.options.get(level, number))


def _levels(socket: Socket) -> tuple[int, ...]:
    """The levels of options that a kind of socket has."""
    if isinstance(socket, UnixSocket):
        return (op.SOL_SOCKET,)
    levels: tuple[int, ...] = (op.SOL_SOCKET, op.IPPROTO_IP)
    levels += (op.IPPROTO_TCP,) if isinstance(socket, TcpSocket) else ()
    return levels + ((op.IPPROTO_IPV6,) if socket.family == AF_INET6 else ())


def sys_setsockopt(task: Task, fd: int, level: int, number: int, value: int, length: int, *_: int) -> int:
    socket, level, number, length = find_socket(task, fd), s32(level), s32(number), s32(length)
    if length < 0:
        raise Refused(errno.EINVAL, f"a length of {length}")
    if level not in _levels(socket):
        is_unix = isinstance(socket, UnixSocket)
        raise Refused(errno.EOPNOTSUPP if is_unix else errno.ENOPROTOOPT, f"level {level}")
    if level == op.SOL_SOCKET and number in (op.SO_RCVTIMEO, op.SO_SNDTIMEO):
        _set_timeout(socket, number, _fetch(task, value, length, "qq"))
    elif level == op.SOL_SOCKET and number == op.SO_LINGER:
        on, seconds = _fetch(task, value, length, "ii")
        socket.options.linger = (int(on != 0), seconds)
    elif level == op.SOL_SOCKET and number in (
        op.SO_TYPE,
        op.SO_ERROR,
        op.SO_PROTOCOL,
        op.SO_DOMAIN,
        op.SO_ACCEPTCONN,
    ):
        raise Refused(errno.ENOPROTOOPT, f"option {number} is only shown")
    else:
        if 0 < length < 4 and level == op.IPPROTO_IP:
            setting = task.cpu.copy_from_user(value, 1)[0]
        else:
            (setting,) = _fetch(task, value, length, "i")
        _set_integer(socket, level, number, setting)
    return 0


def _set_integer(socket: Socket, level: int, number: int, setting: int) -> None:
    if (
        level == op.IPPROTO_IPV6
        and number == op.IPV6_V6ONLY
        and isinstance(socket, InetSocket)
        and socket.local.port
    ):
        raise Refused(errno.EINVAL, "it is bound")
    socket.options.set(level, number, setting)


def _fetch(task: Task, value: int, length: int, layout: str) -> tuple[int, ...]:
    """An option's value. Refused(EINVAL) if it is too short."""
    kind = struct.Struct("<" + layout)
    if length < kind.size:
        raise Refused(errno.EINVAL, f"a value of {length} bytes")
    return kind.unpack(task.cpu.copy_from_user(value, kind.size))


def _set_timeout(socket: Socket, number: int, value: tuple[int, ...]) -> None:
    seconds, microseconds = value
    if not 0 <= microseconds < 10**6:
        raise Refused(errno.EDOM, f"{microseconds} microseconds")
    # Linux takes a negative time for none at all: the call does not wait.
    timeout = 0 if seconds < 0 else seconds * 10**9 + microseconds * 1000 or None
    if number == op.SO_RCVTIMEO:
        socket.options.receive_timeout = timeout
    else:
        socket.options.send_timeout = timeout
