"""Numbers of the Linux file interface, in the x86_64 numbering that this folder speaks.

The host may be an ARM64 machine and so may the guest, and four `O_*` flags have other values there
(Linux `arch/arm64/include/uapi/asm/fcntl.h`). Guest flags are translated at the system-call boundary,
host flags in `to_host`; everything between uses these names.
"""

from __future__ import annotations

import os

O_ACCMODE = 0o3
O_RDONLY = 0o0
O_WRONLY = 0o1
O_RDWR = 0o2
O_CREAT = 0o100
O_EXCL = 0o200
O_NOCTTY = 0o400
O_TRUNC = 0o1000
O_APPEND = 0o2000
O_NONBLOCK = 0o4000
O_DSYNC = 0o10000
FASYNC = 0o20000
O_DIRECT = 0o40000
O_LARGEFILE = 0o100000
O_DIRECTORY = 0o200000
O_NOFOLLOW = 0o400000
O_NOATIME = 0o1000000
O_CLOEXEC = 0o2000000
O_SYNC = 0o4010000
O_PATH = 0o10000000
O_TMPFILE_BIT = 0o20000000
"""`O_TMPFILE` is this bit together with `O_DIRECTORY`."""

SETTABLE = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME
"""What `fcntl(F_SETFL)` may change; FASYNC where the kind of file has it."""
ONLY_AT_OPEN = O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_CLOEXEC
"""What `fcntl(F_GETFL)` no longer shows."""
KNOWN_OPEN_FLAGS = (
    O_ACCMODE
    | ONLY_AT_OPEN
    | SETTABLE
    | FASYNC
    | O_SYNC
    | O_LARGEFILE
    | O_DIRECTORY
    | O_NOFOLLOW
    | O_PATH
    | O_TMPFILE_BIT
)

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EACCESS = 0x200
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
RESOLVE_CACHED = 0x20

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_SWAPPED_ON_ARM64 = (
    (O_DIRECTORY, 0o40000),
    (O_NOFOLLOW, 0o100000),
    (O_DIRECT, 0o200000),
    (O_LARGEFILE, 0o400000),
)
_ARM64_MASK = 0o740000


def from_arm64(flags: int) -> int:
    """An ARM64 guest's open flags in this folder's numbering."""
    return flags & ~_ARM64_MASK | sum(ours for ours, theirs in _SWAPPED_ON_ARM64 if flags & theirs)


def to_arm64(flags: int) -> int:
    """Open flags as an ARM64 guest expects them, for `F_GETFL`."""
    return flags & ~_ARM64_MASK | sum(theirs for ours, theirs in _SWAPPED_ON_ARM64 if flags & ours)


def wants_write(flags: int) -> bool:
    """Whether opening with these flags changes the file."""
    return flags & O_ACCMODE != O_RDONLY or bool(flags & O_TRUNC)


def to_host(flags: int) -> int:
    """The part of guest flags that a host descriptor needs: how it is accessed and how it syncs.

    Appending is done by position (the memory manager writes through the same descriptor), and
    `O_DIRECT` would demand aligned host buffers without changing any result.
    `O_NONBLOCK`: a file under a host lease answers EAGAIN instead of stopping us.
    """
    host = {O_RDONLY: os.O_RDONLY, O_WRONLY: os.O_WRONLY, O_RDWR: os.O_RDWR}[flags & O_ACCMODE]
    if flags & O_SYNC == O_SYNC:
        host |= os.O_SYNC
    elif flags & O_DSYNC:
        host |= os.O_DSYNC
    return host | os.O_CLOEXEC | os.O_NONBLOCK
