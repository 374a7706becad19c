"""Encoded attributes, judged by what the host's kernel puts into the same structures."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from pathlib import Path

from aether_emu.linux.files.stat import (
    Stat,
    StatFs,
    encode_stat_arm64,
    encode_stat_x86_64,
    encode_statfs,
    encode_statx,
)

_libc = ctypes.CDLL(None, use_errno=True)
_NATIVE = {"x86_64": (5, 332, encode_stat_x86_64, 144), "aarch64": (80, 291, encode_stat_arm64, 128)}
_FSTAT, _STATX, _encode_native, _NATIVE_SIZE = _NATIVE[platform.machine()]

_SAMPLE = Stat(
    *(os.makedev(0, 33), 7, 0o100644, 2, 1000, 1001, os.makedev(5, 1), 5000),
    *(10**9 + 1, 2 * 10**9 + 2, 3 * 10**9 + 3),
)


def host_stat(path: Path) -> Stat:
    """A host file whose shown blocks are what the host says too: it is made without holes."""
    path.write_bytes(b"x" * 5000)
    os.utime(path, ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
    path.chmod(0o751)
    s = path.stat()
    assert s.st_blocks == 16
    return Stat(
        *(s.st_dev, s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_rdev, s.st_size),
        *(s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns),
    )


def test_struct_stat_is_byte_for_byte_the_hosts(tmp_path: Path) -> None:
    stat = host_stat(tmp_path / "f")
    buffer = ctypes.create_string_buffer(b"\0" * _NATIVE_SIZE, _NATIVE_SIZE)
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    try:
        assert _libc.syscall(_FSTAT, fd, buffer) == 0
    finally:
        os.close(fd)
    assert _encode_native(stat) == buffer.raw


def test_struct_statx_is_the_hosts_without_birth_and_attributes(tmp_path: Path) -> None:
    stat = host_stat(tmp_path / "f")
    buffer = ctypes.create_string_buffer(256)
    path = os.fsencode(tmp_path / "f")
    assert _libc.syscall(_STATX, -100, path, 0, 0x7FF, buffer) == 0
    host, ours = bytearray(buffer.raw), encode_statx(stat)
    host[:4] = struct.pack("<I", 0x7FF)
    for unshown in (slice(8, 16), slice(56, 64), slice(80, 96), slice(144, 256)):
        host[unshown] = ours[unshown]
    assert bytes(host) == ours


def test_struct_stat_of_x86_64_field_by_field() -> None:
    data = encode_stat_x86_64(_SAMPLE)
    assert len(data) == 144
    assert struct.unpack_from("<QQQIII", data) == (33, 7, 2, 0o100644, 1000, 1001)
    assert struct.unpack_from("<Qqqq", data, 40) == (os.makedev(5, 1), 5000, 4096, 16)
    assert struct.unpack_from("<6q", data, 72) == (1, 1, 2, 2, 3, 3)


def test_struct_stat_of_arm64_field_by_field() -> None:
    data = encode_stat_arm64(_SAMPLE)
    assert len(data) == 128
    assert struct.unpack_from("<QQIIII", data) == (33, 7, 0o100644, 2, 1000, 1001)
    assert struct.unpack_from("<Q", data, 32) == (os.makedev(5, 1),)
    assert struct.unpack_from("<qi", data, 48) == (5000, 4096)
    assert struct.unpack_from("<q6q", data, 64) == (16, 1, 1, 2, 2, 3, 3)


def test_times_before_1970_have_positive_nanoseconds() -> None:
    early = Stat(0, 1, 0o100644, 1, 0, 0, 0, 0, atime=-1, mtime=-(10**9), ctime=0)
    assert struct.unpack_from("<6q", encode_stat_x86_64(early), 72) == (-1, 999_999_999, -1, 0, 0, 0)


def test_struct_statfs_layout() -> None:
    data = encode_statfs(StatFs(kind=0xEF53, number=3, blocks=100, free=50, read_only=True))
    assert len(data) == 120
    assert struct.unpack_from("<qqQQQQQiiqqq", data) == (
        *(0xEF53, 4096, 100, 50, 50, 100, 50, 3, 0, 255, 4096, 0x23),
    )
