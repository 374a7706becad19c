"""What `stat` tells about a file, neutral, and its encodings for the guests' `struct stat` and `statx`."""

from __future__ import annotations

import os
import stat as modes
import struct

from aether_emu.records import dataclass

BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Stat:
    """One file's attributes. Size in bytes, times in nanoseconds since 1970, devices as `os.makedev`.

    `block` is in how many bytes it is best read and written.
    """

    dev: int
    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    atime: int
    mtime: int
    ctime: int
    allocated: int | None = None
    block: int = BLOCK

    @property
    def blocks(self) -> int:
        """What it takes in units of 512 bytes: of `allocated`, where that is known (memory files).

        Else of the size alone: how a host stores holes is not shown.
        """
        if self.allocated is not None:
            return self.allocated // 512
        return -(-self.size // BLOCK) * (BLOCK // 512)

    @property
    def is_directory(self) -> bool:
        """Whether this is a directory."""
        return modes.S_ISDIR(self.mode)


@dataclass(frozen=True, slots=True)
class StatFs:
    """One file system's attributes. `blocks` and `free` in units of `block` bytes.

    `inodes` are how many files it can have, and how many more; None: as many as blocks.
    """

    kind: int
    number: int
    blocks: int
    free: int
    read_only: bool
    inodes: tuple[int, int] | None = None
    block: int = BLOCK


def _times(stat: Stat) -> tuple[int, ...]:
    return (*divmod(stat.atime, 10**9), *divmod(stat.mtime, 10**9), *divmod(stat.ctime, 10**9))


def encode_stat_x86_64(stat: Stat) -> bytes:
    """`struct stat` of x86_64, 144 bytes (Linux `arch/x86/include/uapi/asm/stat.h`)."""
    return struct.pack(
        "<QQQIII4xQqqq6q24x",
        *(stat.dev, stat.ino, stat.nlink, stat.mode, stat.uid, stat.gid, stat.rdev),
        *(stat.size, stat.block, stat.blocks, *_times(stat)),
    )


def encode_stat_arm64(stat: Stat) -> bytes:
    """`struct stat` of ARM64, 128 bytes (Linux `include/uapi/asm-generic/stat.h`)."""
    return struct.pack(
        "<QQIIIIQ8xqi4xq6q8x",
        *(stat.dev, stat.ino, stat.mode, stat.nlink, stat.uid, stat.gid, stat.rdev),
        *(stat.size, stat.block, stat.blocks, *_times(stat)),
    )


_STATX_BASIC_STATS = 0x7FF


def encode_statx(stat: Stat) -> bytes:
    """`struct statx`, 256 bytes on every architecture (Linux `include/uapi/linux/stat.h`)."""

    def moment(nanoseconds: int) -> bytes:
        return struct.pack("<qI4x", *divmod(nanoseconds, 10**9))

    head = struct.pack(
        "<IIQIIIH2xQQQQ",
        *(_STATX_BASIC_STATS, stat.block, 0, stat.nlink, stat.uid, stat.gid, stat.mode, stat.ino),
        *(stat.size, stat.blocks, 0),
    )
    no_birth = bytes(16)
    devices = struct.pack(
        "<IIII", os.major(stat.rdev), os.minor(stat.rdev), os.major(stat.dev), os.minor(stat.dev)
    )
    body = head + moment(stat.atime) + no_birth + moment(stat.ctime) + moment(stat.mtime) + devices
    return body.ljust(256, b"\0")


_ST_RDONLY, _ST_NOSUID = 0x1, 0x2
_ST_VALID = 0x20


def encode_statfs(fs: StatFs) -> bytes:
    """`struct statfs`, 120 bytes on both 64-bit architectures (Linux `include/uapi/asm-generic/statfs.h`)."""
    inodes, free_inodes = fs.inodes or (fs.blocks, fs.free)
    return struct.pack(
        "<qqQQQQQiiqqq32x",
        *(fs.kind, fs.block, fs.blocks, fs.free, fs.free, inodes, free_inodes, fs.number, 0),
        *(255, fs.block, _ST_VALID | _ST_NOSUID | (_ST_RDONLY if fs.read_only else 0)),
    )
