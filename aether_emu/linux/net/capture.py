"""Sockets as plain data, and back: queues, peers, names, ports, and those that only others know.

    open file --number--> socket --> peer, listener, line, senders of what it has not received yet

A socket may be known though nobody has it open: it waits to be accepted, or is closed and its last messages
are not received. So sockets have numbers of their own. All are made first, each alone, and then connected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from typing import Any

from aether_emu.linux.files.namespace import Namespace
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.files.stat import Stat
from aether_emu.linux.net.address import Endpoint
from aether_emu.linux.net.inbox import Credentials, Payer
from aether_emu.linux.net.internet import InetSocket
from aether_emu.linux.net.socket import AF_UNIX, SOCK_STREAM, Socket
from aether_emu.linux.net.tcp import State as TcpState
from aether_emu.linux.net.tcp import TcpSocket
from aether_emu.linux.net.udp import UdpSocket
from aether_emu.linux.net.unix import UnixSocket

State = dict[str, Any]
_OF_ALL = ("error", "backlog", "is_listening", "reads_shut", "writes_shut", "wants_room")
_OF_UNIX = ("address", "peer_address", "was_connected", "outstanding", "most_flying")
_OF_INTERNET = ("is_bound_by_program", "bound_ip")
_OF_TCP = (*_OF_INTERNET, "ended", "was_connected", "is_fresh", "outstanding")
_OF_UDP = (*_OF_INTERNET, "taken")
_ONE, _MANY = ("peer", "listener"), ("line", "waiting", "wanting")
"""What a socket knows of others: one, or several in order."""


def _plain(socket: Socket) -> tuple[str, ...]:
    """The names of what is captured as it is."""
    own = (
        _OF_UNIX if isinstance(socket, UnixSocket) else _OF_TCP if isinstance(socket, TcpSocket) else _OF_UDP
    )
    return _OF_ALL + own


# ---- to find them


def known_by_name(namespace: Namespace) -> Iterator[Socket]:
    """Those that a machine knows, whoever has them open: all unix sockets, and who has a port."""
    if "unix" in vars(namespace):
        yield from namespace.unix.sockets
    if "internet" in vars(namespace):
        yield from namespace.internet.tcp.all()
        yield from namespace.internet.udp.all()


def known_to(socket: Socket) -> Iterator[Socket]:
    """Those that a socket knows."""
    for name in _ONE:
        one = getattr(socket, name, None)
        if one is not None:
            yield one
    for name in _MANY:
        yield from getattr(socket, name, ())
    yield from (_payer(message.payer) for message in socket.inbox.messages)


def passed_to(socket: Socket) -> Iterator[OpenFile]:
    """The open files that are on their way to a socket."""
    return (file for message in socket.inbox.messages for file in message.rights)


def _payer(payer: Payer) -> Socket:
    assert isinstance(payer, Socket), "nobody else pays"
    return payer


# ---- capture


def capture(
    namespace: Namespace,
    sockets: Sequence[Socket],
    number: Callable[[Socket], int],
    file: Callable[[OpenFile], int],
) -> State:
    """`sockets`, which are all that are known, and the names that they have."""
    state: State = {"sockets": [_describe(socket, number, file) for socket in sockets]}
    if "unix" in vars(namespace):
        space = namespace.unix
        state["unix"] = {
            "order": [number(socket) for socket in space.sockets],
            "names": [[kind, address, number(socket)] for (kind, address), socket in space.names.items()],
            "last": space.last_name,
        }
    if "internet" in vars(namespace):
        state["tcp"] = namespace.internet.tcp.capture(number)
        state["udp"] = namespace.internet.udp.capture(number)
    return state


def _describe(socket: Socket, number: Callable[[Socket], int], file: Callable[[OpenFile], int]) -> State:
    state: State = {
        "family": socket.family,
        "type": socket.type,
        "flags": socket.flags,
        "stat": list(astuple(socket.stat())),
        "who": [list(socket.who), list(socket.peer_who)],
        "options": socket.options.capture(),
        "inbox": socket.inbox.capture(lambda payer: number(_payer(payer)), file),
        **{name: getattr(socket, name) for name in _plain(socket)},
    }
    for name in _ONE:
        one = getattr(socket, name, None)
        state[name] = None if one is None else number(one)
    for name in _MANY:
        state[name] = [number(other) for other in getattr(socket, name, ())]
    if isinstance(socket, InetSocket):
        state["local"], state["remote"] = list(socket.local), socket.remote and list(socket.remote)
    if isinstance(socket, TcpSocket):
        state["state"] = socket.state.name
    if isinstance(socket, UdpSocket):
        state["begun"] = socket.begun and [socket.begun[0], list(socket.begun[1])]
    return state


# ---- restore


def make(state: State, namespace: Namespace) -> list[Socket]:
    """The sockets of `state` in their order, each alone, and the names that they have."""
    sockets = [_make(described, namespace) for described in state["sockets"]]
    if "unix" in state:
        space, unix = namespace.unix, state["unix"]
        space.last_name = unix["last"]
        space.sockets = {_unix(sockets[index]): None for index in unix["order"]}
        space.names = {(kind, address): _unix(sockets[index]) for kind, address, index in unix["names"]}
    for name in ("tcp", "udp"):
        if name in state:
            ports = namespace.internet.tcp if name == "tcp" else namespace.internet.udp
            ports.restore(state[name], lambda index: _of_internet(sockets[index]))
    return sockets


def _make(described: State, namespace: Namespace) -> Socket:
    family, kind, flags = described["family"], described["type"], described["flags"]
    stat, (who, peer_who) = Stat(*described["stat"]), (Credentials(*each) for each in described["who"])
    socket: Socket
    if family == AF_UNIX:
        socket = UnixSocket(namespace.unix, kind, who, flags, stat)
    elif kind == SOCK_STREAM:
        socket = TcpSocket(namespace.internet, family, who, flags, stat)
    else:
        socket = UdpSocket(namespace.internet, family, who, flags, stat)
    socket.flags, socket.peer_who = flags, peer_who
    socket.options.restore(described["options"])
    for name in _plain(socket):
        setattr(socket, name, described[name])
    if isinstance(socket, InetSocket):
        remote = described["remote"]
        socket.local, socket.remote = Endpoint(*described["local"]), remote and Endpoint(*remote)
    if isinstance(socket, TcpSocket):
        socket.state = TcpState[described["state"]]
    if isinstance(socket, UdpSocket) and described["begun"] is not None:
        data, endpoint = described["begun"]
        socket.begun = data, Endpoint(*endpoint)
    return socket


def connect(
    state: State, namespace: Namespace, sockets: Sequence[Socket], file: Callable[[int], OpenFile]
) -> None:
    """Let those that `make` made know each other, and what was sent to them."""
    for socket, described in zip(sockets, state["sockets"], strict=True):
        for name in _ONE:
            if described[name] is not None:
                setattr(socket, name, sockets[described[name]])
        for name in _MANY:
            others = [sockets[index] for index in described[name]]
            if others:
                present = getattr(socket, name)
                present.update(dict.fromkeys(others)) if isinstance(present, dict) else present.extend(others)
        socket.inbox.restore(described["inbox"], lambda index: sockets[index], file)
        for message in socket.inbox.messages:
            if message.rights:
                namespace.unix.depart(message.rights, None)


def _unix(socket: Socket) -> UnixSocket:
    assert isinstance(socket, UnixSocket), "it has a unix socket's name"
    return socket


def _of_internet(socket: Socket) -> InetSocket:
    assert isinstance(socket, InetSocket), "it has a port"
    return socket
