"""`struct msghdr`, `struct cmsghdr` and `struct sockaddr` in user memory: how messages are described.

SCM_RIGHTS passes open files, SCM_CREDENTIALS says who sent a message (unix(7), cmsg(3)).
"""

from __future__ import annotations

import errno
import struct

from aether_emu.errors import Refused
from aether_emu.linux.calls.socket_transfer import (
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_TRUNC,
)
from aether_emu.linux.calls.user import Piece, read_vector, s32, write_struct
from aether_emu.linux.credentials import SETGID, SETUID, SYS_ADMIN
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.net.inbox import NOBODY, Credentials, Received
from aether_emu.linux.net.options import SO_PASSCRED, SOL_SOCKET
from aether_emu.linux.net.socket import Outgoing, Socket
from aether_emu.linux.net.unix import UnixSocket
from aether_emu.linux.task.task import Task
from aether_emu.records import dataclass

_LONGEST_ADDRESS = 128  # struct sockaddr_storage
_MOST_CONTROL = 1 << 20
_MOST_RIGHTS = 253
_MOST_PIECES = 1024
_SCM_RIGHTS, _SCM_CREDENTIALS = 1, 2
_HEADER, _CONTROL = struct.Struct("<QI4xQQQQI4x"), struct.Struct("<Qii")
_NAME_LENGTH_AT, _CONTROL_LENGTH_AT, _FLAGS_AT = 8, 40, 48


@dataclass
class MessageHeader:
    """A `struct msghdr`: where the name and the control data are, and the pieces of the data."""

    name: int
    name_length: int
    pieces: list[Piece]
    control: int
    control_length: int

    def outgoing(self, task: Task) -> Outgoing:
        """What is to be sent with the data."""
        address = b""
        if self.name and self.name_length:
            address = read_address(task, self.name, self.name_length)
        rights: tuple[OpenFile, ...] = ()
        who = None
        if self.control_length:
            rights, who = _read_control(task, self.control, self.control_length)
        return Outgoing(address, None, rights, who)


def read_address(task: Task, address: int, length: int) -> bytes:
    """A `struct sockaddr`. Refused(EINVAL) if it is too long."""
    length = s32(length)
    if not 0 <= length <= _LONGEST_ADDRESS:
        raise Refused(errno.EINVAL, f"an address of {length} bytes")
    return bytes(task.cpu.copy_from_user(address, length)) if length else b""


def write_address(task: Task, address: int, length: int, name: bytes) -> None:
    """Write as much of a name as there is room for, and how long it is."""
    (room,) = struct.unpack("<i", task.cpu.copy_from_user(length, 4))
    if room < 0:
        raise Refused(errno.EINVAL, f"room for {room} bytes")
    task.cpu.copy_to_user(address, name[:room])
    write_struct(task.cpu, length, "i", len(name))


def read_message(task: Task, address: int) -> MessageHeader:
    """The header at `address`. Refused(EMSGSIZE, EINVAL, ENOBUFS)."""
    name, name_length, vector, count, control, control_length, _flags = _HEADER.unpack(
        task.cpu.copy_from_user(address, _HEADER.size)
    )
    if not name:
        name_length = 0
    if s32(name_length) < 0:
        raise Refused(errno.EINVAL, f"a name of {s32(name_length)} bytes")
    if count > _MOST_PIECES:
        raise Refused(errno.EMSGSIZE, f"{count} pieces")
    if control_length > _MOST_CONTROL:
        raise Refused(errno.ENOBUFS, f"{control_length} bytes of control data")
    pieces = read_vector(task.cpu, vector, count, task.process.abi.user_end)
    return MessageHeader(name, min(name_length, _LONGEST_ADDRESS), pieces, control, control_length)


def _read_control(task: Task, address: int, length: int) -> tuple[tuple[OpenFile, ...], Credentials | None]:
    """The open files and the sender that control data names. Refused(EINVAL, EBADF, EPERM)."""
    raw, at = task.cpu.copy_from_user(address, length), 0
    rights: list[OpenFile] = []
    who = None
    while at + _CONTROL.size <= length:
        size, level, kind = _CONTROL.unpack_from(raw, at)
        if not _CONTROL.size <= size <= length - at:
            raise Refused(errno.EINVAL, f"control data of {size} bytes")
        data = raw[at + _CONTROL.size : at + size]
        at += size + 7 & -8
        if level != SOL_SOCKET:
            continue
        if kind == _SCM_RIGHTS:
            numbers = struct.unpack(f"<{len(data) // 4}i", data[: len(data) // 4 * 4])
            if len(rights) + len(numbers) > _MOST_RIGHTS:
                raise Refused(errno.EINVAL, f"more than {_MOST_RIGHTS} open files")
            rights += [task.files.table.file(fd) for fd in numbers]
        elif kind == _SCM_CREDENTIALS and len(data) == 12:
            who = Credentials(*struct.unpack("<iII", data))
            _require_ones_own(task, who)
        else:
            raise Refused(errno.EINVAL, f"control data of type {kind}")
    return tuple(rights), who


def _require_ones_own(task: Task, told: Credentials) -> None:
    """Refused(EPERM) for credentials that the caller may not give as its own (Linux: scm_check_creds)."""
    who = task.credentials
    if (
        (told.pid != task.process.pid and not who.has(SYS_ADMIN))
        or (told.uid not in (who.uid, who.euid, who.suid) and not who.has(SETUID))
        or (told.gid not in (who.gid, who.egid, who.sgid) and not who.has(SETGID))
    ):
        raise Refused(errno.EPERM, "another's credentials")


def write_message(
    task: Task, address: int, message: MessageHeader, socket: Socket, got: Received, flags: int
) -> None:
    """Tell what was received: the sender's name, control data, and flags."""
    told = flags & MSG_CMSG_CLOEXEC
    if not socket.is_stream and got.size > len(got.data):
        told |= MSG_TRUNC
    try:
        if message.name:
            task.cpu.copy_to_user(message.name, got.address[: message.name_length])
            write_struct(task.cpu, address + _NAME_LENGTH_AT, "i", len(got.address))
        used, is_cut = _write_control(task, message, socket, got, bool(flags & MSG_CMSG_CLOEXEC))
    finally:
        for file in got.rights:
            file.let_go()
    write_struct(task.cpu, address + _CONTROL_LENGTH_AT, "Q", used)
    write_struct(task.cpu, address + _FLAGS_AT, "I", told | (MSG_CTRUNC if is_cut else 0))


def _write_control(
    task: Task, message: MessageHeader, socket: Socket, got: Received, cloexec: bool
) -> tuple[int, bool]:
    """Write control data, as far as there is room: the bytes used, and whether something was left out."""
    at, room, is_cut = message.control, message.control_length, False
    if isinstance(socket, UnixSocket) and socket.options.get(SOL_SOCKET, SO_PASSCRED):
        data = struct.pack("<iII", *(got.credentials or NOBODY))
        size = _CONTROL.size + len(data)
        if room < size:
            is_cut = True
        if room >= _CONTROL.size:
            size = min(size, room)
            whole = _CONTROL.pack(size, SOL_SOCKET, _SCM_CREDENTIALS) + data
            task.cpu.copy_to_user(at, whole[:size])
            taken = min(size + 7 & -8, room)
            at, room = at + taken, room - taken
    if got.rights:
        fits = min(len(got.rights), max(0, room - _CONTROL.size) // 4)
        numbers = _install(task, got.rights[:fits], cloexec)
        if numbers:
            size = _CONTROL.size + 4 * len(numbers)
            head = _CONTROL.pack(size, SOL_SOCKET, _SCM_RIGHTS)
            task.cpu.copy_to_user(at, head + struct.pack(f"<{len(numbers)}i", *numbers))
            taken = min(size + 7 & -8, room)
            at, room = at + taken, room - taken
        is_cut |= len(numbers) < len(got.rights)
    return at - message.control, is_cut


def _install(task: Task, files: tuple[OpenFile, ...], cloexec: bool) -> list[int]:
    """Descriptors for open files, as many as there is room for."""
    numbers: list[int] = []
    for file in files:
        try:
            numbers.append(task.files.table.install(file, cloexec=cloexec))
        except Refused:
            break
    return numbers
