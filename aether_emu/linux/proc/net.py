"""/proc/PID/net (proc_pid_net(5)): the loopback interface, and the sockets that processes have open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from aether_emu.linux.net.internet import InetSocket
from aether_emu.linux.net.socket import Socket
from aether_emu.linux.net.tcp import State, TcpSocket
from aether_emu.linux.net.udp import UdpSocket
from aether_emu.linux.net.unix import UnixSocket
from aether_emu.linux.task.process import Process

_ESTABLISHED, _CONNECTING, _CLOSED, _CLOSE_WAIT, _LISTENING = 1, 2, 7, 8, 10  # TCP_*
_UNCONNECTED, _CONNECTED = 1, 3  # SS_*
_LISTENS = 0x10000  # SO_ACCEPTCON
_ROUTES = (
    b"Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT"
    b"                                                       \n"
)
_COUNTERS = "bytes    packets errs drop fifo frame compressed multicast"


def net_text(process: Process, name: str) -> bytes:
    """What is below net/ by this name. There is one network for all."""
    match name:
        case "dev":
            return _interfaces()
        case "route":
            return _ROUTES
        case "if_inet6":
            return b"00000000000000000000000000000001 01 80 10 80       lo\n"
        case "unix":
            return _unix(process)
    kind = TcpSocket if name.startswith("tcp") else UdpSocket
    return _table(process, kind, 16 if name.endswith("6") else 4)


def _interfaces() -> bytes:
    """The one interface. Nobody counts what passes through it."""
    head = f"Inter-|   Receive{'':36}|  Transmit\n face |{_COUNTERS}|{_COUNTERS[:31]}"
    head += " colls carrier compressed\n"
    zeros = f"{0:8}{0:8}{0:5}{0:5}{0:5}{0:6}{0:11}{0:10}{0:9}{0:8}{0:5}{0:5}{0:5}{0:6}{0:8}{0:11}"
    return f"{head}    lo:{zeros}\n".encode()


def _sockets(process: Process) -> Iterator[Socket]:
    """All that a descriptor leads to, the oldest first."""
    found: dict[Socket, None] = {}
    for each in process.registry.processes.values():
        if not each.released:
            for files in {each.files: None, **{task.files: None for task in each.tasks}}:
                found.update(dict.fromkeys(f for f in files.open_files().values() if isinstance(f, Socket)))
    return iter(sorted(found, key=lambda socket: socket.stat().ino))


def _address(ip: bytes, port: int, length: int) -> str:
    if len(ip) < length:  # an IPv4 address of an IPv6 socket
        ip = (bytes(10) + b"\xff\xff" + ip) if any(ip) else bytes(length)
    words = (int.from_bytes(ip[at : at + 4], "little") for at in range(0, len(ip), 4))
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


def _state(socket: InetSocket) -> int:
    if not isinstance(socket, TcpSocket):
        return _ESTABLISHED if socket.remote is not None else _CLOSED
    if socket.state is State.ESTABLISHED:
        return _CLOSE_WAIT if socket.peer is None else _ESTABLISHED
    return {State.LISTENING: _LISTENING, State.CONNECTING: _CONNECTING}.get(socket.state, _CLOSED)


def _table(process: Process, kind: type[InetSocket], length: int) -> bytes:
    """net/tcp and its like, as Linux writes the addresses: words of the host's order in hexadecimal."""
    width = 8 * length // 4
    local, remote = "local_address".ljust(width + 5), "rem_address".ljust(width + 5)
    lines = [f"  sl  {local} {remote} st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"]
    family = 2 if length == 4 else 10
    chosen: Iterable[Socket] = (s for s in _sockets(process) if isinstance(s, kind) and s.family == family)
    for index, socket in enumerate(socket for socket in chosen if isinstance(socket, InetSocket)):
        if not socket.local.port:
            continue
        there = socket.remote
        ends = (
            _address(*socket.local, length),
            _address(*there, length) if there else _address(b"", 0, length),
        )
        waiting, stat = len(socket.inbox), socket.stat()
        queues = f"{0:08X}:{waiting:08X} 00:{0:08X} {0:08X} {stat.uid:5} {0:8} {stat.ino}"
        lines.append(f"{index:4}: {ends[0]} {ends[1]} {_state(socket):02X} {queues} 1 {0:016x}")
    return "".join(f"{line:<149}\n" for line in lines).encode()


def _unix(process: Process) -> bytes:
    lines = ["Num       RefCount Protocol Flags    Type St Inode Path"]
    for socket in _sockets(process):
        if isinstance(socket, UnixSocket):
            name = socket.address[2:].rstrip(b"\0") if socket.address[2:3] != b"\0" else socket.address[2:]
            path = name.replace(b"\0", b"@").decode("utf-8", "backslashreplace")
            flags = _LISTENS if socket.is_listening else 0
            state = _CONNECTED if socket.peer is not None else _UNCONNECTED
            line = (
                f"{0:016x}: {2:08X} {0:08X} {flags:08X} {socket.type:04X} {state:02X} {socket.stat().ino:5}"
            )
            lines.append(f"{line} {path}" if path else line)
    return "".join(line + "\n" for line in lines).encode()
