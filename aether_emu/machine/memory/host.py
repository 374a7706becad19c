"""The host's memory calls: a thin, typed binding to the C library for what Python's `mmap` cannot do.

Python's module has no MAP_FIXED, no address and no populate, so these go straight to libc. Everything
here works on host addresses; guest-physical addresses begin in `ram` and `aperture`.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from aether_emu.errors import AetherError

PAGE_SIZE = mmap.PAGESIZE
HUGE_PAGE_SIZE = 2 << 20
"""Alignment of every reservation: the host can then back it with huge pages if its settings say so."""

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE = 0x01, 0x02, 0x10, 0x20, 0x4000
MADV_DONTNEED, MADV_POPULATE_READ, MADV_POPULATE_WRITE = 4, 22, 23
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2

_WAIT_WRITE_WAIT = 7  # SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE, _WAIT_AFTER

_MAP_FAILED = ctypes.c_void_p(-1).value
_PAGEMAP_PRESENT, _PAGEMAP_SWAPPED = 1 << 63, 1 << 62

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


class HostMemoryError(AetherError):
    """The host refused a memory call. Carries the call's name, its errno, address and length."""

    def __init__(self, call: str, code: int, address: int, length: int) -> None:
        self.call, self.errno, self.address, self.length = call, code, address, length
        super().__init__(f"host {call} of {length:#x} bytes at {address:#x} failed: {os.strerror(code)}")


class PopulateResult(Enum):
    """What `populate` found."""

    DONE = "every page is present"
    FAULT = "a touch would raise SIGBUS: end of file, full disk, no memory, an I/O error or a poisoned page"


def _mmap(
    address: int | None, length: int, protection: int, flags: int, *, fd: int = -1, offset: int = 0
) -> int:
    result = _libc.mmap(address, length, protection, flags, fd, offset)
    if result == _MAP_FAILED or result is None:
        raise HostMemoryError("mmap", ctypes.get_errno(), address or 0, length)
    return int(result)


def _checked(call: str, status: int, address: int, length: int) -> None:
    if status != 0:
        raise HostMemoryError(call, ctypes.get_errno(), address, length)


def has_room(length: int) -> bool:
    """Whether the host would give `length` bytes of address space more. Nothing is taken."""
    try:
        start = _mmap(None, length, 0, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
    except HostMemoryError:
        return False
    unmap(start, length)
    return True


def reserve(length: int, alignment: int = HUGE_PAGE_SIZE) -> int:
    """Reserve `length` bytes of private zero memory, readable and writable; return its aligned address.

    Nothing is committed: pages appear when touched. `length` is a multiple of the host page,
    `alignment` a power of two.
    """
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    start = _mmap(None, length + alignment, PROT_READ | PROT_WRITE, flags)
    address = -(-start // alignment) * alignment
    if address > start:
        unmap(start, address - start)
    if start + alignment > address:
        unmap(address + length, start + alignment - address)
    return address


def place_zeroes(address: int, length: int) -> None:
    """Replace whatever is mapped at `address` by untouched private zero pages, atomically."""
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
    _mmap(address, length, PROT_READ | PROT_WRITE, flags)


def place_file(address: int, length: int, fd: int, offset: int, *, shared: bool) -> None:
    """Replace whatever is mapped at `address` by a part of an open file, atomically.

    Shared: stores reach the file (`fd` must be open for reading and writing). Otherwise the window is
    private: it reads the file with no copy, and a store makes a private copy of its page.
    """
    flags = MAP_FIXED | MAP_NORESERVE | (MAP_SHARED if shared else MAP_PRIVATE)
    _mmap(address, length, PROT_READ | PROT_WRITE, flags, fd=fd, offset=offset)


def unmap(address: int, length: int) -> None:
    """Give the address range back to the host."""
    _checked("munmap", _libc.munmap(address, length), address, length)


def discard(address: int, length: int) -> None:
    """Free the pages of a private anonymous range: it reads as zero afterwards.

    Only for such ranges: on a shared or file mapping MADV_DONTNEED brings the file's bytes back.
    """
    _checked("madvise", _libc.madvise(address, length, MADV_DONTNEED), address, length)


def leave_to_file(address: int, length: int) -> None:
    """Let go of the pages of a file window: the next touch finds the file's bytes again.

    Stores to a shared window are the file's already. A private copy that a store made is lost.
    """
    _checked("madvise", _libc.madvise(address, length, MADV_DONTNEED), address, length)


def write_back(fd: int, offset: int, length: int) -> int:
    """Return when a part of a file is on disk, as far as it was stored. Returns 0 or an errno.

    Not what is needed to find it there, such as a new size: that takes fdatasync.
    """
    if _libc.sync_file_range(fd, offset, length, _WAIT_WRITE_WAIT) == 0:
        return 0
    return ctypes.get_errno()


def protect(address: int, length: int, protection: int) -> None:
    """Set the host protection (`PROT_*` bits) of a range."""
    _checked("mprotect", _libc.mprotect(address, length, protection), address, length)


def populate(address: int, length: int, *, write: bool) -> PopulateResult:
    """Bring pages in as a load (or a store) would, without the SIGBUS that the touch could raise.

    Needs `can_populate()`. With `write` on a private file window every page would be copied: never do that.
    """
    advice = MADV_POPULATE_WRITE if write else MADV_POPULATE_READ
    if _libc.madvise(address, length, advice) == 0:
        return PopulateResult.DONE
    code = ctypes.get_errno()
    if code == errno.EINVAL:  # nothing that the file or the host's memory is to blame for
        raise HostMemoryError("madvise", code, address, length)
    return PopulateResult.FAULT


@functools.cache
def can_populate() -> bool:
    """Whether the host kernel has MADV_POPULATE_READ and _WRITE (Linux 5.14 and newer)."""
    page = _mmap(None, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    try:
        return int(_libc.madvise(page, PAGE_SIZE, MADV_POPULATE_READ)) == 0
    finally:
        unmap(page, PAGE_SIZE)


def allocate_blocks(fd: int, offset: int, length: int) -> int:
    """Give a part of a file its disk blocks without changing its size or bytes. Returns 0 or an errno."""
    if _libc.fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, length) == 0:
        return 0
    return ctypes.get_errno()


def punch_hole(fd: int, offset: int, length: int) -> int:
    """Make a hole in a file, which reads as zeroes, without changing its size. Returns 0 or an errno."""
    if _libc.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) == 0:
        return 0
    return ctypes.get_errno()


def mapping_refusal(fd: int, *, shared: bool) -> int:
    """The errno with which the host refuses to place this open file in memory; 0 if it does not.

    Files of huge pages (hugetlbfs) are refused with EINVAL: a window of theirs cannot be cut at 4K.
    """
    try:
        address = reserve(2 * PAGE_SIZE)
    except HostMemoryError as refusal:
        return refusal.errno
    try:
        # Never aligned to a huge page, as the beginning of the reservation is.
        place_file(address + PAGE_SIZE, PAGE_SIZE, fd, 0, shared=shared)
    except HostMemoryError as refusal:
        return refusal.errno
    finally:
        unmap(address, 2 * PAGE_SIZE)
    return 0


def map_code(code: bytes) -> int:
    """Place machine code in fresh memory; return its address. Writable first, then executable: never both."""
    length = -(-len(code) // PAGE_SIZE) * PAGE_SIZE
    address = _mmap(None, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    ctypes.memmove(address, code, len(code))
    protect(address, length, PROT_READ | PROT_EXEC)
    return address


def copy_in(address: int, data: bytes | memoryview) -> bool:
    """Store at an address whose page may have vanished. Whether it was there.

    The host's kernel copies, out of a file of its own, so that nobody gets SIGBUS.
    """
    return _copied(os.preadv, address, len(data), data) is not None


def copy_out(address: int, length: int) -> bytes | None:
    """Load likewise; None when a page was not there."""
    return _copied(os.pwritev, address, length, b"")


def _copied(
    move: Callable[[int, list[Any], int], int], address: int, length: int, data: bytes | memoryview
) -> bytes | None:
    between = os.memfd_create("copied")
    try:
        os.pwrite(between, data, 0)
        move(between, [(ctypes.c_char * length).from_address(address)], 0)
        return os.pread(between, length, 0)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        return None
    finally:
        os.close(between)


def resident_pages(address: int, length: int) -> int:
    """How many host pages of the range are in host memory now (mincore).

    A page that was only ever read counts too, although it is the host's one shared zero page.
    """
    flags = np.zeros(length // PAGE_SIZE, np.uint8)
    _checked("mincore", _libc.mincore(address, length, flags.ctypes.data), address, length)
    return int(np.count_nonzero(flags & 1))


def held_pages(address: int, length: int) -> npt.NDArray[np.bool_]:
    """For each host page of the range, whether it can hold anything but zeroes: present, or swapped out.

    mincore cannot answer this (it calls a swapped-out page absent), /proc/self/pagemap can. Where the host
    does not show it, every page counts as held.
    """
    count = length // PAGE_SIZE
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            pagemap.seek(address // PAGE_SIZE * 8)
            entries = np.frombuffer(pagemap.read(count * 8), np.uint64)
    except OSError:
        entries = np.zeros(0, np.uint64)
    if len(entries) != count:
        return np.ones(count, np.bool_)
    held: npt.NDArray[np.bool_] = (entries & np.uint64(_PAGEMAP_PRESENT | _PAGEMAP_SWAPPED)) != 0
    return held
