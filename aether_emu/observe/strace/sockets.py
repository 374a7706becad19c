"""Arguments of the calls on sockets: addresses, messages, options."""

from __future__ import annotations

import socket
import struct

from aether_emu.observe.strace import names
from aether_emu.observe.strace.kinds import Kind, Made, bits_of, early, items, late, pointed, unpack
from aether_emu.observe.strace.words import address, bare, clipped, listed, quoted, signed

_LONGEST_ADDRESS = 128
_CONTROL_HEAD = 16


def sockaddr(data: bytes) -> str:
    """A `struct sockaddr`."""
    if len(data) < 2:
        return quoted(data)
    (family,) = struct.unpack_from("<H", data)
    head = f"sa_family={names.ADDRESS_FAMILY.one(family)}"
    if family == 1:
        path = data[2:]
        if not path:
            return f"{{{head}}}"
        if path[:1] == b"\0":
            return f"{{{head}, sun_path=@{quoted(path[1:])}}}"
        return f"{{{head}, sun_path={quoted(path.split(bytes(1), 1)[0])}}}"
    if family == 2 and len(data) >= 16:
        port, ip = struct.unpack_from(">H", data, 2)[0], socket.inet_ntop(socket.AF_INET, data[4:8])
        return f'{{{head}, sin_port=htons({port}), sin_addr=inet_addr("{ip}")}}'
    if family == 10 and len(data) >= 24:
        port, flow = struct.unpack_from(">HI", data, 2)
        ip = socket.inet_ntop(socket.AF_INET6, data[8:24])
        scope = struct.unpack_from("<I", data, 24)[0] if len(data) >= 28 else 0
        shown = f'sin6_flowinfo=htonl({flow}), inet_pton(AF_INET6, "{ip}", &sin6_addr), sin6_scope_id={scope}'
        return f"{{{head}, sin6_port=htons({port}), {shown}}}"
    return f"{{{head}, sa_data={quoted(data[2:16])}}}"


def given_address(length: int) -> Kind:
    """An address of as many bytes as argument `length` says."""

    def show(call: Made, value: int) -> str:
        size = signed(call.arguments[length], 32)
        return sockaddr(call.memory.read(value, size)) if 0 <= size <= _LONGEST_ADDRESS else address(value)

    return early(show)


def found_address(length: int) -> Kind:
    """An address that the kernel filled in; its length stands where argument `length` points."""

    def show(call: Made, value: int) -> str:
        size = unpack(call, call.arguments[length], "i")[0]
        return sockaddr(call.memory.read(value, max(0, min(size, _LONGEST_ADDRESS))))

    return late(show)


def _control(call: Made, at: int, length: int) -> str:
    """The control data of a message."""
    shown, end = [], at + length
    while at + _CONTROL_HEAD <= end:
        size, level, kind = unpack(call, at, "Qii")
        head = f"cmsg_len={size}, cmsg_level={names.SOCKET_LEVEL.one(level)}, "
        head += f"cmsg_type={names.CONTROL_TYPE.one(kind) if level == 1 else bare(kind)}"
        if size < _CONTROL_HEAD:
            shown.append(f"{{{head}}}")
            break
        body = call.memory.read(at + _CONTROL_HEAD, min(size - _CONTROL_HEAD, 256))
        if (level, kind) == (1, 1):
            files = [str(fd) for (fd,) in struct.iter_unpack("<i", body[: len(body) & -4])]
            head += f", cmsg_data={listed(files)}"
        elif (level, kind) == (1, 2) and len(body) == 12:
            pid, uid, gid = struct.unpack("<iII", body)
            head += f", cmsg_data={{pid={pid}, uid={uid}, gid={gid}}}"
        shown.append(f"{{{head}}}")
        at += size + 7 & -8
    return listed(shown)


def _message(call: Made, value: int, moved: int | None) -> str:
    """`struct msghdr`; `moved` bytes were received into it, None if it is sent."""
    name, size, vector, count, control, room, flags = unpack(call, value, "QI4xQQQQI4x")
    left = 1 << 62 if moved is None else moved

    def one(_call: Made, at: int) -> str:
        nonlocal left
        base, length = unpack(call, at, "QQ")
        there = min(length, left)
        left -= there
        return f"{{iov_base={clipped(call.memory.read(base, min(there, 33)))}, iov_len={length}}}"

    shown = sockaddr(call.memory.read(name, min(size, _LONGEST_ADDRESS))) if name else "NULL"
    data = items(call, vector, count, 16, one) if count else "[]"
    text = f"msg_name={shown}, msg_namelen={size}, msg_iov={data}, msg_iovlen={count}"
    if control and room:
        text += f", msg_control={_control(call, control, room)}"
    return f"{{{text}, msg_controllen={room}, msg_flags={names.MESSAGE_FLAGS.bits(flags)}}}"


SENT_MESSAGE = early(lambda call, value: _message(call, value, None))
RECEIVED_MESSAGE = late(lambda call, value: _message(call, value, call.result or 0))


def _messages(call: Made, value: int, count: int, *, received: bool) -> str:
    def one(_call: Made, at: int) -> str:
        length = unpack(call, at + 56, "I")[0]
        head = _message(call, at, length if received else None)
        return f"{{msg_hdr={head}, msg_len={length}}}" if call.result is not None else f"{{msg_hdr={head}}}"

    return items(call, value, count, 64, one)


SENT_MESSAGES = Kind(
    pointed(lambda call, value: _messages(call, value, call.arguments[2] & 0xFFFF_FFFF, received=False)),
    late=True,
)
RECEIVED_MESSAGES = late(lambda call, value: _messages(call, value, call.result or 0, received=True))
FLAGS = bits_of(names.MESSAGE_FLAGS)


def _option(call: Made, value: int) -> str:
    level = signed(call.arguments[1], 32)
    table = {1: names.SOCKET_OPTION, 6: names.TCP_OPTION, 0: names.IP_OPTION, 41: names.IPV6_OPTION}.get(
        level
    )
    return table.one(signed(value, 32)) if table is not None else bare(value & 0xFFFF_FFFF)


OPTION = Kind(_option)


def _value(call: Made, value: int, size: int) -> str:
    """An option's value."""
    level, number = signed(call.arguments[1], 32), signed(call.arguments[2], 32)
    if level == 1 and number == 13 and size >= 8:
        return "{{l_onoff={}, l_linger={}}}".format(*unpack(call, value, "ii"))
    if level == 1 and number == 17 and size >= 12:
        return "{{pid={}, uid={}, gid={}}}".format(*unpack(call, value, "iII"))
    if level == 1 and number in (20, 21) and size >= 16:
        seconds, rest = unpack(call, value, "qq")
        return f"{{tv_sec={seconds}, tv_usec={rest}}}"
    if size == 4:
        return f"[{unpack(call, value, 'i')[0]}]"
    return clipped(call.memory.read(value, max(0, min(size, 33))))


GIVEN_OPTION = early(lambda call, value: _value(call, value, signed(call.arguments[4], 32)))
FOUND_OPTION = late(lambda call, value: _value(call, value, unpack(call, call.arguments[4], "i")[0]))
