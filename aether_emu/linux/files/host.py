"""The few host system calls that the standard library does not offer, and the host's umask."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator

from aether_emu.errors import Refused

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)

# File systems through which a kernel is steered or processes are reached (linux/magic.h and fs/*).
# Their files are no data, and proc's links lead anywhere: no grant includes them.
_KERNEL_INTERFACES = frozenset(
    {
        0x9FA0,  # proc
        0x62656572,  # sysfs
        0x64626720,  # debugfs
        0x74726163,  # tracefs
        0x1CD1,  # devpts
        0x27E0EB,  # cgroup
        0x63677270,  # cgroup2
        0x73636673,  # securityfs
        0xF97CFF8C,  # selinuxfs
        0xCAFE4A11,  # bpf
        0x65735543,  # fusectl
        0x62656570,  # configfs
        0xDE5E81E4,  # efivarfs
        0x6E736673,  # nsfs
        0x19800202,  # mqueue
        0x6165676C,  # pstore
        0x42494E4D,  # binfmt_misc
        0x0187,  # autofs
    }
)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2). Raises OSError."""
    _check(_libc.fallocate(fd, mode, offset, length))


def rename_exactly(source: int, old: bytes, destination: int, new: bytes, flags: int) -> None:
    """renameat2(2) with flags. Raises OSError."""
    _check(_libc.renameat2(source, old, destination, new, flags))


def is_kernel_interface(fd: int) -> bool:
    """Whether `fd` lies on a file system that is an interface to the host's kernel."""
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.fstatfs(fd, buffer))
    kind: int = struct.unpack_from("@l", buffer)[0]
    return kind & 0xFFFFFFFF in _KERNEL_INTERFACES


def by_descriptor(fd: int) -> str:
    """A path by which the host reaches exactly what `fd` holds, whatever its name is by now."""
    return f"/proc/self/fd/{fd}"


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    """Create files under the guest's mask: the host then treats default ACLs and set-group-id as usual."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn the host's refusal of `what` into the guest's, with the same errno."""
    try:
        yield
    except OSError as error:
        raise refused(error, what) from None


def refused(error: OSError, what: str) -> Refused:
    """The guest's refusal that stands for the host's `error`."""
    assert error.errno is not None, f"a host error without a number: {error!r}"
    return Refused(error.errno, f"{what}: {os.strerror(error.errno)}")
