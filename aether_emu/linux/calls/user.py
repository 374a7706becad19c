"""Reading arguments: C integers out of registers, strings and structures out of user memory.

A buffer or vector is a list of `Piece`s, (address, length). What moves through it stops at the first bad
address: `gather` and `scatter` say how far they came, and EFAULT is the answer only if that is nowhere.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import Any

from aether_emu.errors import Refused
from aether_emu.machine.cpu import Cpu, UserFault

PATH_MAX = 4096
IOV_MAX = 1024
_PAGE = 4096
_MOST = 0x7FFF_F000  # Linux's MAX_RW_COUNT

Piece = tuple[int, int]
"""(address, length in bytes) of user memory."""


def s32(value: int) -> int:
    """The low 32 bits as a C int."""
    return (value & 0xFFFF_FFFF ^ 0x8000_0000) - 0x8000_0000


def s64(value: int) -> int:
    """All 64 bits as a C long."""
    return (value ^ 1 << 63) - (1 << 63)


def u32(value: int) -> int:
    """The low 32 bits as an unsigned int."""
    return value & 0xFFFF_FFFF


def read_string(cpu: Cpu, address: int, limit: int = PATH_MAX) -> bytes:
    """A NUL-terminated string without its NUL. ENAMETOOLONG when none ends within `limit` bytes."""
    out = bytearray()
    while len(out) < limit:
        room = _PAGE - (address & _PAGE - 1)  # never ask for a page that the string may not reach
        piece = cpu.copy_from_user(address, min(room, limit - len(out)))
        end = piece.find(b"\0")
        if end >= 0:
            return bytes(out + piece[:end])
        out += piece
        address = address + len(piece) & (1 << 64) - 1
    raise Refused(errno.ENAMETOOLONG, f"a string of {limit} bytes or more")


def read_struct(cpu: Cpu, address: int, layout: str) -> tuple[Any, ...]:
    """Unpack a little-endian structure."""
    kind = struct.Struct("<" + layout)
    return kind.unpack(cpu.copy_from_user(address, kind.size))


def write_struct(cpu: Cpu, address: int, layout: str, *values: int) -> None:
    """Pack and write a little-endian structure."""
    cpu.copy_to_user(address, struct.pack("<" + layout, *values))


def require_user(address: int, length: int, user_end: int) -> None:
    """Linux's access_ok: UserFault unless the whole range is in the user half, mapped or not."""
    if length > user_end or address > user_end - length:
        raise UserFault(f"{address:#x}+{length:#x} is not in the user half")


def read_buffer(address: int, length: int, user_end: int) -> list[Piece]:
    """The one piece of read(2) and write(2), cut to what one call moves. UserFault as `require_user`."""
    require_user(address, length, user_end)
    return [(address, min(length, _MOST))]


def read_vector(cpu: Cpu, address: int, count: int, user_end: int) -> list[Piece]:
    """The pieces of an iovec array, cut to what one call moves together. EINVAL, UserFault as Linux."""
    if count > IOV_MAX:
        raise Refused(errno.EINVAL, f"{count} pieces")
    vector = list(struct.iter_unpack("<QQ", cpu.copy_from_user(address, 16 * count)))
    if any(s64(length) < 0 for _, length in vector):
        raise Refused(errno.EINVAL, "a negative length")
    pieces, room = [], _MOST
    for start, length in vector:
        require_user(start, length, user_end)
        pieces.append((start, min(length, room)))
        room -= pieces[-1][1]
    return pieces


def total(pieces: list[Piece]) -> int:
    """Bytes of all pieces."""
    return sum(length for _, length in pieces)


def behind(pieces: list[Piece], done: int) -> list[Piece]:
    """What is left of pieces behind their first `done` bytes."""
    left = []
    for start, length in pieces:
        skipped = min(done, length)
        done -= skipped
        if skipped < length:
            left.append((start + skipped, length - skipped))
    return left


def gather(cpu: Cpu, pieces: list[Piece], most: int) -> bytes:
    """Up to `most` bytes from pieces, as far as they can be read. UserFault if not even the first can."""
    if len(pieces) == 1 and 0 < most <= pieces[0][1]:
        try:
            return cpu.copy_from_user(pieces[0][0], most)
        except UserFault:  # as far as it can be read
            pass
    out = bytearray()
    for start, length in pieces:
        wanted = min(length, most - len(out))
        if not wanted:
            continue
        try:
            out += cpu.copy_from_user(start, wanted)
        except UserFault:
            out += _readable_part(cpu, start, wanted)
            if not out:
                raise
            break
    return bytes(out)


def _readable_part(cpu: Cpu, start: int, length: int) -> bytes:
    """What can be read of a range whose end cannot."""
    out = bytearray()
    for address, count in _by_page(start, length):
        try:
            out += cpu.copy_from_user(address, count)
        except UserFault:
            break
    return bytes(out)


def _by_page(start: int, length: int) -> Iterator[Piece]:
    """A range in parts that cross no page."""
    end = start + length
    while start < end:
        count = min(_PAGE - (start & _PAGE - 1), end - start)
        yield start, count
        start += count


def scatter(cpu: Cpu, pieces: list[Piece], data: bytes) -> int:
    """Spread `data` over pieces, as far as they can be written. Returns how many bytes went."""
    done = 0
    for start, length in pieces:
        part = data[done : done + length] if done or length < len(data) else data
        if not part:
            continue
        try:
            cpu.copy_to_user(start, part)
        except UserFault:
            return done + _write_part(cpu, start, part)
        done += len(part)
    return done


def _write_part(cpu: Cpu, start: int, data: bytes) -> int:
    done = 0
    for address, count in _by_page(start, len(data)):
        try:
            cpu.copy_to_user(address, data[done : done + count])
        except UserFault:
            break
        done += count
    return done


def writable(cpu: Cpu, pieces: list[Piece], most: int) -> int:
    """How many of the first `most` bytes of pieces can be written, found by writing back what is there.

    UserFault if not even the first one can. For data that is gone once it was taken out of a pipe.
    """
    done = 0
    for start, length in pieces:
        for address, count in _by_page(start, min(length, most - done)):
            try:
                cpu.copy_to_user(address, cpu.copy_from_user(address, 1))
            except UserFault:
                if not done:
                    raise
                return done
            done += count
    return done
